"""``prem attest`` and ``--attestation``: the table, the JSON, the kept evidence and the exit codes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.prem_program import Prem, client_environment

from prem_core._protocol.attestation.collateral_cache import COLLATERAL
from prem_core._protocol.attestation.settings import VERDICTS
from prem_core.cli.connection import LOCAL_ROOTS
from prem_core.enclave import Exchange, LocalEnclave

MEASUREMENT = "5a" * 48


@pytest.fixture
def exchanges() -> list[Exchange]:
    return []


@pytest.fixture(params=["sev-snp", "tdx"])
def attested(request: pytest.FixtureRequest, exchanges: list[Exchange]) -> Iterator[LocalEnclave]:
    """An enclave whose root `prem` trusts, as with ``--local``."""
    VERDICTS.clear()
    COLLATERAL.clear()
    with LocalEnclave(attest=request.param, on_exchange=exchanges.append) as prem:
        token = LOCAL_ROOTS.set(prem.attestation_roots)
        yield prem
        LOCAL_ROOTS.reset(token)


@contextlib.contextmanager
def untrusted() -> Iterator[None]:
    token = LOCAL_ROOTS.set(None)
    yield
    LOCAL_ROOTS.reset(token)


def test_the_table_has_each_check_and_what_is_not_proven(prem: Prem, attested: LocalEnclave) -> None:
    result = prem("attest", **client_environment(attested))
    assert (result.status, result.err) == (0, "")
    lines = result.out.splitlines()
    assert f"measurement       {MEASUREMENT}" in lines
    assert "✓ nonce           the report answers the nonce" in lines
    assert "✗ key binding     the report does not commit to the public key" in lines
    assert any(line.startswith("- The evidence does not name the encryption key.") for line in lines)


def test_json_has_the_whole_report(prem: Prem, attested: LocalEnclave) -> None:
    result = prem("attest", "--model", "m", "--json", **client_environment(attested))
    written = json.loads(result.out)
    assert (written["ok"], written["model"], result.status) == (True, "m", 0)
    assert written["report"]["measurement"] == MEASUREMENT
    assert written["report"]["not_proven"]


def test_a_failed_check_is_shown_and_the_exit_code_is_1(prem: Prem, attested: LocalEnclave) -> None:
    attested.attestation_faults = ["wrong_nonce"]
    result = prem("attest", **client_environment(attested))
    assert result.status == 1
    assert result.out.splitlines()[-1].startswith("✗ nonce")
    assert result.err.startswith("prem attest: NonceMismatchError at the check 'nonce'")
    written = json.loads(prem("attest", "--json", **client_environment(attested)).out)
    assert (written["ok"], written["error"]["type"]) == (False, "NonceMismatchError")


def test_saved_evidence_is_verified_again_without_the_service(
    prem: Prem, attested: LocalEnclave, exchanges: list[Exchange], tmp_path: Path
) -> None:
    folder = str(tmp_path / "evidence")
    saved = prem("attest", "--json", "--save", folder, **client_environment(attested))
    exchanges.clear()
    again = prem("attest", "--json", "--from", folder)
    assert (again.status, json.loads(again.out)) == (0, json.loads(saved.out))
    assert exchanges == []
    with untrusted():
        prem("attest", "--from", folder).assert_error(1, "UnknownRootError")


def test_the_evidence_of_a_failed_attestation_is_saved(
    prem: Prem, attested: LocalEnclave, tmp_path: Path
) -> None:
    attested.attestation_faults = ["debug"]
    assert prem("attest", "--save", str(tmp_path), **client_environment(attested)).status == 1
    prem("attest", "--from", str(tmp_path)).assert_error(1, "DebugEnabledError")


@pytest.mark.parametrize("attested", ["sev-snp"], indirect=True)
def test_a_changed_byte_of_saved_evidence_is_refused(
    prem: Prem, attested: LocalEnclave, tmp_path: Path
) -> None:
    prem("attest", "--save", str(tmp_path), **client_environment(attested))
    report = tmp_path / "report.bin"
    content = bytearray(report.read_bytes())
    content[0x90] ^= 1
    report.write_bytes(content)
    prem("attest", "--from", str(tmp_path)).assert_error(1, "SignatureInvalidError")


@pytest.mark.parametrize("attested", ["sev-snp"], indirect=True)
def test_listed_measurements_and_key_binding_can_be_required(prem: Prem, attested: LocalEnclave) -> None:
    environment = client_environment(attested)
    listed = prem("attest", "--measurement", "00" * 48, "--measurement", MEASUREMENT, **environment)
    assert "✓ measurement     the launch measurement is in the allow list" in listed.out
    prem("attest", "--measurement", "00" * 48, **environment).assert_error(1, "MeasurementNotAllowedError")
    prem("attest", "--require-key-binding", **environment).assert_error(1, "KeyNotBoundError")


@pytest.mark.parametrize("attested", ["sev-snp"], indirect=True)
def test_usage_errors_have_exit_code_2(prem: Prem, attested: LocalEnclave, tmp_path: Path) -> None:
    prem("attest", "--from", str(tmp_path)).assert_error(2, "has no saved evidence")
    prem("attest", "--from", str(tmp_path), "--model", "m").assert_error(2, "--from cannot be combined")
    prem("attest", "--measurement", "1", **client_environment(attested)).assert_error(2, "48 bytes of hex")
    prem("attest").assert_error(2, "no API key")


def test_local_attests_the_embedded_enclave_and_states_that_it_is_no_genuine_machine(prem: Prem) -> None:
    result = prem("--local", "attest")
    assert result.status == 0
    assert "- The roots that were trusted are not the vendors' own" in result.out


@pytest.mark.parametrize("attested", ["sev-snp"], indirect=True)
@pytest.mark.parametrize(
    ("options", "variables"), [(["--attestation", "require"], {}), ([], {"PREM_ATTESTATION": "require"})]
)
def test_attestation_require_keeps_the_prompt_from_a_machine_that_fails(
    prem: Prem,
    attested: LocalEnclave,
    exchanges: list[Exchange],
    options: list[str],
    variables: dict[str, str],
) -> None:
    environment = {**client_environment(attested), **variables}
    assert prem("chat", "Hello", *options, **environment).status == 0
    VERDICTS.clear()
    exchanges.clear()
    attested.attestation_faults = ["debug"]
    prem("chat", "Hello", *options, **environment).assert_error(1, "debugging is enabled")
    assert not [each for each in exchanges if each.path == "/rvenc/chat/completions"]


@pytest.mark.parametrize("attested", ["sev-snp"], indirect=True)
def test_a_wrong_mode_is_a_usage_error(prem: Prem, attested: LocalEnclave) -> None:
    prem("chat", "Hello", "--attestation", "always", **client_environment(attested)).assert_error(
        2, "'--attestation'"
    )
    environment = {**client_environment(attested), "PREM_ATTESTATION": "always"}
    prem("chat", "Hello", **environment).assert_error(
        2, "PREM_ATTESTATION must be 'off', 'warn' or 'require'"
    )


@pytest.mark.parametrize("attested", ["sev-snp"], indirect=True)
def test_doctor_reports_whether_the_attestation_was_verified(prem: Prem, attested: LocalEnclave) -> None:
    def check(*options: str) -> tuple[str, str]:
        result = prem("doctor", "--json", "--no-calls", *options, **client_environment(attested))
        found = [each for each in json.loads(result.out)["checks"] if each["name"] == "attestation"]
        assert len(found) == 1
        return found[0]["state"], found[0]["detail"]

    assert check()[0] == "not verified"
    assert check("--attestation", "require")[0] == "ok"
    attested.attestation_faults = ["debug"]
    assert check("--attestation", "require")[0] == "failed"
    assert check("--attestation", "warn")[0] == "not verified"
