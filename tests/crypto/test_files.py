"""`write_atomically`: a file appears complete or not at all. What key files add is in test_keyfile.py."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from prem_core._crypto.files import write_atomically


def test_an_existing_file_is_replaced_only_with_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomically(path, b"one")
    with pytest.raises(FileExistsError):
        write_atomically(path, b"two")
    assert path.read_bytes() == b"one"
    write_atomically(path, b"three", overwrite=True)
    assert path.read_bytes() == b"three"
    assert os.listdir(tmp_path) == ["a"]


def test_without_hard_links_an_existing_file_is_not_replaced_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_hard_links(*_: object) -> None:
        raise PermissionError(1, "no hard links here")

    monkeypatch.setattr(os, "link", no_hard_links)
    write_atomically(tmp_path / "a", b"one")
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "a", b"two")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"one")]


@pytest.mark.skipif(os.name == "nt", reason="permission bits")
@pytest.mark.parametrize(("umask", "mode"), [(0o000, 0o600), (0o027, 0o600), (0o277, 0o400)])
def test_a_file_has_mode_0600_unless_the_umask_is_stricter(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


@pytest.mark.skipif(os.name == "nt", reason="permission bits")
def test_a_replaced_file_that_others_could_read_becomes_private(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    path.chmod(0o644)
    write_atomically(path, b"two", overwrite=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "none" / "a", b"one")
    (tmp_path / "directory").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_atomically(tmp_path / "directory", b"one", overwrite=True)
    with pytest.raises(ValueError, match="null"):
        write_atomically(tmp_path / "a\0b", b"one")
    assert os.listdir(tmp_path) == ["directory"]
