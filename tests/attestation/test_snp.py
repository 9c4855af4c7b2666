"""AMD SEV-SNP reports: genuine ones are accepted, and each fault is refused with an error of its own."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from datetime import datetime, timedelta
from typing import Any, get_args

import pytest
from support.attestation import NONCE, NOW, PUBLIC_KEY, SNP_FAULTS, verify_snp

from prem_core import ConfigurationError
from prem_core.attestation import (
    VENDOR_ROOTS,
    AttestationError,
    CertificateExpiredError,
    ChipMismatchError,
    CollateralExpiredError,
    KeyNotBoundError,
    MalformedEvidenceError,
    NonceMismatchError,
    SnpTcb,
    UnknownRootError,
    parse_snp_report,
)
from prem_core.enclave.evidence import SnpFault, SnpIssuer
from prem_core.enclave.evidence.snp import SnpGuest


def test_a_genuine_report_is_accepted_with_every_check(snp: SnpIssuer) -> None:
    report = verify_snp(snp)
    assert report.technology == "sev-snp"
    assert report.product == "Genoa"
    assert report.chip_id == bytes(range(1, 65)).hex()
    assert report.tcb == {"bootloader": 10, "tee": 0, "snp": 23, "microcode": 84, "fmc": 0}
    assert report.measurement == "5a" * 48
    assert (report.debug, report.migratable, report.vmpl, report.revocation_checked) == (
        False,
        False,
        0,
        True,
    )
    assert [check.name for check in report.checks if check.passed] == [
        *("format", "root", "chain", "validity", "revocation", "signature", "product", "chip"),
        *("certificate TCB", "nonce", "debug", "policy"),
    ]
    assert [check.name for check in report.checks if not check.passed] == ["key binding", "measurement"]


@pytest.mark.parametrize("fault", get_args(SnpFault))
def test_each_fault_is_refused_with_its_error(snp: SnpIssuer, fault: SnpFault) -> None:
    evidence = snp.evidence(NONCE, now=NOW, public_key=PUBLIC_KEY, fault=fault)
    error, check = SNP_FAULTS[fault]
    with pytest.raises(AttestationError) as refused:
        verify_snp(snp, evidence, public_key=PUBLIC_KEY)
    assert (type(refused.value), refused.value.check) == (error, check)
    assert refused.value.checks[-1].name == check
    assert [each.name for each in refused.value.checks if each.name == check] == [check]


def test_every_changed_byte_of_a_report_is_refused(snp: SnpIssuer) -> None:
    evidence = snp.evidence(NONCE, now=NOW)
    accepted = []
    for offset in range(len(evidence.report)):
        changed = bytearray(evidence.report)
        changed[offset] ^= 1 << offset % 8
        try:
            verify_snp(snp, dataclasses.replace(evidence, report=bytes(changed)))
        except AttestationError:
            continue
        accepted.append(offset)
    assert accepted == []


def test_every_changed_byte_of_a_vcek_certificate_is_refused(snp: SnpIssuer) -> None:
    evidence = snp.evidence(NONCE, now=NOW)
    accepted = []
    for offset in range(len(evidence.vcek)):
        changed = bytearray(evidence.vcek)
        changed[offset] ^= 1 << offset % 8
        try:
            verify_snp(snp, dataclasses.replace(evidence, vcek=bytes(changed)))
        except AttestationError:
            continue
        accepted.append(offset)
    assert accepted == []


@pytest.mark.parametrize("generation", ["Milan", "Genoa", "Turin"])
def test_each_generation_has_its_own_layout(generation: str) -> None:
    tcb = SnpTcb(bootloader=4, tee=1, snp=22, microcode=213, fmc=2 if generation == "Turin" else 0)
    issuer = SnpIssuer(NOW, guest=SnpGuest(generation=generation, tcb=tcb))
    report = verify_snp(issuer)
    assert (report.product, SnpTcb(**report.tcb)) == (generation, tcb)


def test_a_report_of_version_2_without_a_processor_model_is_accepted() -> None:
    report = verify_snp(SnpIssuer(NOW, guest=SnpGuest(version=2)))
    assert report.product == "Genoa"


@pytest.mark.parametrize("version", [0, 1, 6])
def test_a_report_of_an_unknown_version_is_refused(version: int) -> None:
    with pytest.raises(MalformedEvidenceError, match=f"version {version}"):
        verify_snp(SnpIssuer(NOW, guest=SnpGuest(version=version)))


def test_an_issuer_of_the_tests_is_not_trusted_by_default(snp: SnpIssuer) -> None:
    with pytest.raises(UnknownRootError):
        verify_snp(snp, roots=VENDOR_ROOTS)


def test_a_root_of_another_generation_is_not_trusted(snp: SnpIssuer) -> None:
    (pins,) = snp.roots.amd.values()
    with pytest.raises(ChipMismatchError, match="the root is of Milan"):
        verify_snp(snp, roots=dataclasses.replace(snp.roots, amd={"Milan": pins}))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_chain_must_be_the_intermediate_and_the_root(snp: SnpIssuer, count: int) -> None:
    evidence = snp.evidence(NONCE, now=NOW)
    end = b"-----END CERTIFICATE-----\n"
    certificates = [part + end for part in evidence.chain.split(end) if part]
    chain = b"".join((certificates * 2)[:count])
    with pytest.raises(MalformedEvidenceError):
        verify_snp(snp, dataclasses.replace(evidence, chain=chain))


def test_a_chain_in_the_wrong_order_is_refused(snp: SnpIssuer) -> None:
    evidence = snp.evidence(NONCE, now=NOW)
    end = b"-----END CERTIFICATE-----\n"
    first, second = (part + end for part in evidence.chain.split(end) if part)
    with pytest.raises(UnknownRootError):
        verify_snp(snp, dataclasses.replace(evidence, chain=second + first))


@pytest.mark.parametrize("field", ["vcek", "chain", "crl"])
@pytest.mark.parametrize(
    "content", [b"", b"no certificate", b"-----BEGIN CERTIFICATE-----\n", b"x" * (1 << 21)]
)
def test_unreadable_collateral_is_refused(snp: SnpIssuer, field: str, content: bytes) -> None:
    evidence = snp.evidence(NONCE, now=NOW)
    with pytest.raises(MalformedEvidenceError):
        verify_snp(snp, dataclasses.replace(evidence, **{field: content}))


@pytest.mark.parametrize("days", [-1000, 31, 4000])
def test_the_clock_is_an_argument(snp: SnpIssuer, days: int) -> None:
    evidence = snp.evidence(NONCE, now=NOW)
    with pytest.raises((CertificateExpiredError, CollateralExpiredError)):
        verify_snp(snp, evidence, now=NOW + timedelta(days=days))


def test_the_report_expires_with_its_first_collateral(snp: SnpIssuer) -> None:
    assert verify_snp(snp).valid_until == NOW + timedelta(days=30)


def test_the_forms_of_key_binding_are_hashes_of_the_nonce_and_the_key(snp: SnpIssuer) -> None:
    def bound(binding: Any) -> bytes:
        report = snp.evidence(NONCE, now=NOW, public_key=PUBLIC_KEY, binding=binding).report
        return parse_snp_report(report).report_data

    assert bound("sha512") == hashlib.sha512(NONCE + PUBLIC_KEY).digest()
    assert bound("sha256") == hashlib.sha256(NONCE).digest() + hashlib.sha256(PUBLIC_KEY).digest()


@pytest.mark.parametrize("binding", ["sha512", "sha256"])
def test_a_report_that_commits_to_the_public_key_is_bound(snp: SnpIssuer, binding: Any) -> None:
    evidence = snp.evidence(NONCE, now=NOW, public_key=PUBLIC_KEY, binding=binding)
    report = verify_snp(snp, evidence, public_key=PUBLIC_KEY, require_key_binding=True)
    assert report.key_bound
    assert not any("key" in sentence for sentence in report.not_proven)


def test_a_report_of_the_nonce_alone_states_that_the_key_is_not_proven(snp: SnpIssuer) -> None:
    report = verify_snp(snp, public_key=PUBLIC_KEY)
    assert not report.key_bound
    assert "that the key belongs to the same machine is not proven" in report.not_proven[0]


@pytest.mark.parametrize("public_key", [None, PUBLIC_KEY])
def test_required_key_binding_refuses_a_report_of_the_nonce_alone(
    snp: SnpIssuer, public_key: bytes | None
) -> None:
    with pytest.raises(KeyNotBoundError):
        verify_snp(snp, public_key=public_key, require_key_binding=True)


@pytest.mark.parametrize("binding", ["sha512", "sha256"])
def test_a_report_that_commits_to_another_key_is_refused(snp: SnpIssuer, binding: Any) -> None:
    evidence = snp.evidence(NONCE, now=NOW, public_key=b"another", binding=binding)
    with pytest.raises((KeyNotBoundError, NonceMismatchError)):
        verify_snp(snp, evidence, public_key=PUBLIC_KEY)


@pytest.mark.parametrize("nonce", [b"", bytes(32), bytes(65)])
def test_a_nonce_of_the_wrong_size_is_an_error_of_the_caller(snp: SnpIssuer, nonce: bytes) -> None:
    with pytest.raises(ConfigurationError, match="64"):
        verify_snp(snp, nonce=nonce)


def test_a_time_without_a_time_zone_is_an_error_of_the_caller(snp: SnpIssuer) -> None:
    with pytest.raises(ConfigurationError, match="time zone"):
        verify_snp(snp, now=datetime(2026, 6, 1))


def test_the_report_is_written_as_json(snp: SnpIssuer) -> None:
    written = json.loads(json.dumps(verify_snp(snp).as_dict()))
    assert written["checks"][0] == {"name": "format", "passed": True, "detail": "report of version 3"}
    assert (written["product"], written["key_bound"]) == ("Genoa", False)
    assert written["verified_at"] == NOW.isoformat()
