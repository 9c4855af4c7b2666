"""The journal: an incomplete last line, locks, a full disk, and sealed lines."""

from __future__ import annotations

import os
import pickle
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prem_core import ConfigurationError
from prem_core.batch.api import RunOptions
from prem_core.batch.journal import Journal, read_lines
from prem_core.batch.seal import LineSeal

KEK = bytes(range(32))
OTHER_KEK = bytes(range(1, 33))


@pytest.fixture(params=[None, KEK], ids=["plain", "sealed"])
def kek(request: pytest.FixtureRequest) -> bytes | None:
    value: bytes | None = request.param
    return value


def write(path: Path, *lines: bytes, kek: bytes | None = None) -> None:
    with Journal.open(path, kek=kek) as journal:
        for line in lines:
            journal.append(line)


def test_lines_are_read_back_in_order(tmp_path: Path, kek: bytes | None) -> None:
    write(tmp_path / "j", b"one", b"two", kek=kek)
    write(tmp_path / "j", b"three", kek=kek)
    assert list(read_lines(tmp_path / "j", kek)) == [b"one", b"two", b"three"]


def test_only_the_owner_can_read_the_file(tmp_path: Path) -> None:
    write(tmp_path / "j", b"one")
    assert stat.S_IMODE((tmp_path / "j").stat().st_mode) & 0o077 == 0


def test_a_line_cut_at_any_byte_is_removed_and_can_be_written_again(
    tmp_path: Path, kek: bytes | None
) -> None:
    path = tmp_path / "j"
    write(path, b'{"a":1}', kek=kek)
    first = path.stat().st_size
    write(path, b'{"b":2}', kek=kek)
    image = path.read_bytes()
    for end in range(len(image)):
        path.write_bytes(image[:end])
        found: list[bytes] = []
        with Journal.open(path, found.append, kek=kek) as journal:
            assert found == ([b'{"a":1}'] if end >= first else [])
            journal.append(b'{"b":2}')
        assert list(read_lines(path, kek)) == [*found, b'{"b":2}']


def test_an_incomplete_line_of_many_blocks_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_bytes(b"one\n" + b"x" * 300_000)
    write(path, b"two")
    assert path.read_bytes() == b"one\ntwo\n"


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "j"), pytest.raises(ConfigurationError, match="another process"):
        Journal.open(tmp_path / "j")
    write(tmp_path / "j", b"one")


def test_a_file_that_cannot_be_resumed_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="not a regular file"):
        Journal.open(os.devnull)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The disk is full where a file would be larger than this."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_only_complete_lines(tmp_path: Path, kek: bytes | None) -> None:
    path = tmp_path / "j"
    write(path, b"one", kek=kek)
    before = path.read_bytes()
    with Journal.open(path, kek=kek) as journal:
        with largest_file(len(before) + 10), pytest.raises(OSError, match=r"j'$"):
            journal.append(b"x" * 100)
        assert path.read_bytes() == before
        journal.append(b"two")
    assert list(read_lines(path, kek)) == [b"one", b"two"]


def test_a_sealed_file_shows_nothing_of_its_lines(tmp_path: Path) -> None:
    write(tmp_path / "j", b"secret word", kek=KEK)
    assert b"secret" not in (tmp_path / "j").read_bytes()


def test_no_key_is_shown_or_pickled() -> None:
    seal = LineSeal(KEK)
    for value in (seal, RunOptions(kek=KEK.hex())):
        assert KEK.hex() not in repr(value)
        assert repr(seal._key)[2:-1] not in repr(value)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(seal)


def test_a_sealed_file_does_not_open_with_another_kek(tmp_path: Path) -> None:
    write(tmp_path / "j", b"one", kek=KEK)
    for wrong, problem in ((OTHER_KEK, "does not open"), (None, "is sealed")):
        with pytest.raises(ConfigurationError, match=problem):
            list(read_lines(tmp_path / "j", wrong))
        with pytest.raises(ConfigurationError, match=problem):
            Journal.open(tmp_path / "j", kek=wrong)


def test_a_plain_file_is_not_continued_with_sealed_lines(tmp_path: Path) -> None:
    write(tmp_path / "j", b"one")
    with pytest.raises(ConfigurationError, match="is not sealed"):
        Journal.open(tmp_path / "j", kek=KEK)


def test_sealed_lines_open_only_in_their_own_file_and_place(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, b"one", b"two", kek=KEK)
    a, b = ((tmp_path / name).read_bytes().splitlines(keepends=True) for name in ("a", "b"))
    changed = bytearray(a[1])
    changed[60] ^= 1
    for number, lines in enumerate(
        ([a[0], a[2], a[1]], [a[0], a[2]], [a[0], b[1], a[2]], [b[0], *a[1:]], [a[0], bytes(changed), a[2]])
    ):
        (tmp_path / "c").write_bytes(b"".join(lines))
        with pytest.raises(ConfigurationError, match=r"line [23] does not open"):
            list(read_lines(tmp_path / "c", KEK))
        assert number < 5


def test_the_header_of_a_sealed_file_may_be_damaged(tmp_path: Path) -> None:
    write(tmp_path / "j", b"one", kek=KEK)
    rest = (tmp_path / "j").read_bytes().partition(b"\n")[2]
    for header, problem in (
        (b'{"prem_sealed_lines":1}', "not a header"),
        (b'{"prem_sealed_lines":1,"file":"zz","check":""}', "not a header"),
        (b'{"prem_sealed_lines":2,"file":"00","check":""}', "format 2"),
    ):
        (tmp_path / "j").write_bytes(header + b"\n" + rest)
        with pytest.raises(ConfigurationError, match=problem):
            list(read_lines(tmp_path / "j", KEK))
