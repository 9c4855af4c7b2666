"""``prem keys``: it prints no secret and replaces no file by accident."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import stat
from pathlib import Path

import pytest
from support.prem_program import Prem, Result, run

from prem_core import EncryptionKeys, PremClient
from prem_core._crypto.xwing import PrivateKey
from prem_core.enclave import LocalEnclave

KEK = hashlib.sha256(b"a KEK of the CLI's tests").hexdigest()
PUBLIC = PrivateKey(bytes(32)).public_key()
PIN = ("--enclave-public-key", bytes(PUBLIC).hex())


@pytest.fixture
def keys(prem: Prem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prem:
    """Run ``prem keys`` in a temporary directory."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, **environment: str) -> Result:
        result = prem("keys", *arguments, **environment)
        assert "\x1b" not in result.out + result.err
        assert_no_secret(result, tmp_path)
        return result

    return call


def assert_no_secret(result: Result, folder: Path) -> None:
    """The output contains neither a KEK nor a secret that a KEK opens."""
    printed = result.out + result.err
    keks = [KEK, *(path.read_text().strip() for path in folder.glob("*kek*") if path.is_file())]
    secrets = [bytes.fromhex(kek) for kek in keks if len(kek) == 64]
    for path in folder.glob("k*"):
        for kek in list(secrets):
            try:
                secrets.append(EncryptionKeys.load(path, kek).shared_secret)
            except ValueError:
                continue
    for secret in secrets:
        for form in (secret.hex(), base64.b64encode(secret).decode(), repr(secret)[2:-1]):
            assert form not in printed


def assert_error(result: Result, status: int, *parts: str) -> None:
    result.assert_error(status, "prem keys ", *parts)


def test_generated_keys_work_with_the_enclave_they_were_made_for(
    keys: Prem, enclave: LocalEnclave, tmp_path: Path
) -> None:
    result = keys("generate", "k", "--enclave-url", enclave.enclave_url, CLIENT_KEK=KEK)
    assert (result.status, result.err) == (0, "")
    assert f"enclave key  sha256:{enclave.public_key.fingerprint()}\n" in result.out
    loaded = EncryptionKeys.load(tmp_path / "k", KEK)
    assert f"cipher text  sha256:{hashlib.sha256(loaded.cipher_text).hexdigest()}\n" in result.out
    with PremClient(
        api_key=enclave.api_key,
        gateway_url=enclave.gateway_url,
        enclave_url=enclave.enclave_url,
        encryption_keys=loaded,
    ) as client:
        messages = [{"role": "user", "content": "Context: It opens at eight. Question: When?"}]
        assert client.chat.completions.create(model="openai/gpt-oss-120b", messages=messages).choices


def test_it_runs_as_a_program(tmp_path: Path) -> None:
    result = run("keys", "generate", str(tmp_path / "k"), *PIN, "--new-kek", str(tmp_path / "kek"))
    assert (result.returncode, result.stderr) == (0, b"")
    assert_no_secret(Result(0, result.stdout.decode(), ""), tmp_path)


def test_the_enclave_url_can_be_in_the_environment(keys: Prem, enclave: LocalEnclave) -> None:
    result = keys("generate", "k", CLIENT_KEK=KEK, PREM_ENCLAVE_URL=enclave.enclave_url)
    assert enclave.public_key.fingerprint() in result.out


def test_a_new_kek_is_stored_in_a_file_and_not_printed(keys: Prem, tmp_path: Path) -> None:
    result = keys("generate", "k", *PIN, "--new-kek", "kek")
    assert (result.status, result.err) == (0, "")
    assert re.fullmatch(r"[0-9a-f]{64}\n", (tmp_path / "kek").read_text())
    if os.name != "nt":
        assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}
    again = keys("generate", "k2", *PIN, "--kek-file", "kek", CLIENT_KEK=KEK)
    assert again.status == 0
    loaded = EncryptionKeys.load(tmp_path / "k2", (tmp_path / "kek").read_text())
    assert loaded.enclave_fingerprint == PUBLIC.fingerprint()


def test_inspect_shows_the_contents_and_with_the_kek_that_the_file_opens(keys: Prem) -> None:
    assert keys("generate", "k", *PIN, "--new-kek", "kek").status == 0
    without = keys("inspect", "k")
    assert (without.status, without.err) == (0, "")
    lines = dict(re.split(r"  +", line, maxsplit=1) for line in without.out.splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", lines.pop("created"))
    assert re.fullmatch("sha256:[0-9a-f]{64}", lines.pop("cipher text"))
    assert lines == {
        "version": "1",
        "enclave key": f"sha256:{PUBLIC.fingerprint()}",
        "mode": "0600" if os.name != "nt" else lines["mode"],
        "opens": "not checked (no KEK)",
    }
    opened = keys("inspect", "k", "--kek-file", "kek")
    assert (opened.status, opened.err) == (0, "")
    assert opened.out == without.out.replace("not checked (no KEK)", "yes")


def test_inspect_reports_a_wrong_kek(keys: Prem) -> None:
    assert keys("generate", "k", *PIN, "--new-kek", "kek").status == 0
    result = keys("inspect", "k", CLIENT_KEK=KEK)
    assert_error(result, 1, "the KEK is not the one", "damaged")
    assert result.out.endswith("opens        no\n")


@pytest.mark.skipif(os.name == "nt", reason="permission bits")
def test_inspect_reports_a_mode_that_lets_others_read_the_file(keys: Prem, tmp_path: Path) -> None:
    EncryptionKeys(bytes(32), bytes(1120)).save(tmp_path / "k", KEK)
    (tmp_path / "k").chmod(0o644)
    result = keys("inspect", "k")
    assert_error(result, 1, "chmod 600 k")
    assert "mode         0644\n" in result.out
    assert "enclave key  unknown\n" in result.out


def test_inspect_reports_a_file_that_is_not_a_key_file(keys: Prem, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("PREM_API_KEY=sk_live_1")
    (tmp_path / "later").write_bytes(b"PREMKEYS\0\2")
    assert_error(keys("inspect", "text"), 1, "not an encryption-key file")
    assert_error(keys("inspect", "later"), 1, "version 2")
    assert_error(keys("inspect", "none"), 1, "No such file")
    assert_error(keys("inspect", "."), 1, "directory")


def test_without_a_kek_nothing_is_generated(keys: Prem, tmp_path: Path) -> None:
    assert_error(keys("generate", "k", *PIN), 2, "CLIENT_KEK", "--kek-file", "--new-kek")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kek", [KEK[:-1], KEK[:-2] + "zz", "hunter2"])
def test_a_malformed_kek_is_an_error_that_does_not_quote_it(keys: Prem, kek: str) -> None:
    for result in (keys("generate", "k", *PIN, CLIENT_KEK=kek), keys("inspect", "k", CLIENT_KEK=kek)):
        assert_error(result, 2, "CLIENT_KEK must be 32 bytes")
        assert kek[:7] not in result.err


def test_an_unusable_kek_file_is_an_error(keys: Prem, tmp_path: Path) -> None:
    assert_error(keys("generate", "k", *PIN, "--kek-file", "none"), 2, "none", "No such file")
    (tmp_path / "kek").write_text(KEK)
    (tmp_path / "kek").chmod(0o644)
    if os.name != "nt":
        assert_error(keys("generate", "k", *PIN, "--kek-file", "kek"), 2, "chmod 600 kek")


def test_an_existing_file_is_replaced_only_with_force(keys: Prem, tmp_path: Path) -> None:
    assert keys("generate", "k", *PIN, CLIENT_KEK=KEK).status == 0
    before = EncryptionKeys.load(tmp_path / "k", KEK)
    assert_error(keys("generate", "k", *PIN, CLIENT_KEK=KEK), 2, "already exists")
    assert EncryptionKeys.load(tmp_path / "k", KEK) == before
    assert keys("generate", "k", *PIN, "--force", CLIENT_KEK=KEK).status == 0
    assert EncryptionKeys.load(tmp_path / "k", KEK) != before


def test_a_kek_file_is_never_replaced_even_with_force(keys: Prem, tmp_path: Path) -> None:
    assert keys("generate", "k", *PIN, "--new-kek", "kek").status == 0
    before = (tmp_path / "kek").read_bytes()
    assert_error(keys("generate", "k2", *PIN, "--new-kek", "kek", "--force"), 2, "already exists")
    for option in ("--new-kek", "--kek-file"):
        assert_error(keys("generate", "./kek", *PIN, option, "kek", "--force"), 2, "two different files")
    assert_error(
        keys("generate", "k2", *PIN, "--kek-file", "kek", "--new-kek", "kek2"), 2, "cannot be combined"
    )
    assert (tmp_path / "kek").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["k", "kek"]


def test_a_failed_write_leaves_no_new_kek_behind(keys: Prem, tmp_path: Path) -> None:
    assert_error(keys("generate", "no/k", *PIN, "--new-kek", "kek"), 1, "cannot be written")
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_enclave_is_a_failure_that_leaves_no_file(keys: Prem, tmp_path: Path) -> None:
    result = keys("generate", "k", "--new-kek", "kek", "--enclave-url", "http://127.0.0.1:9")
    assert_error(result, 1)
    assert list(tmp_path.iterdir()) == []


def test_wrong_options_are_usage_errors(keys: Prem) -> None:
    assert_error(
        keys("generate", "k", "--enclave-public-key", "abc", CLIENT_KEK=KEK), 2, "--enclave-public-key: "
    )
    assert_error(
        keys("generate", "k", "--enclave-url", "http://example.org", CLIENT_KEK=KEK), 2, "plain http"
    )
    assert keys("generate").status == 2
    assert keys("show", "k").status == 2


def test_the_help_names_both_commands_and_the_exit_codes(keys: Prem) -> None:
    for words in ("generate", "inspect"):
        assert words in keys("--help").out
        assert "Exit codes" in keys(words, "--help").out
