"""Intel TDX quotes: genuine ones are accepted, and each fault is refused with an error of its own."""

from __future__ import annotations

import dataclasses
import json
import sys
from datetime import timedelta
from typing import Any, get_args
from urllib.parse import quote as url_quote

import pytest
from support.attestation import NONCE, NOW, PUBLIC_KEY, TDX_FAULTS, verify_tdx

from prem_core import ConfigurationError
from prem_core.attestation import (
    VENDOR_ROOTS,
    AttestationError,
    MalformedEvidenceError,
    RevokedError,
    TdxCollateral,
    UnknownRootError,
    UnsafeNoOp,
)
from prem_core.enclave.evidence import TdxFault, TdxIssuer


def test_a_genuine_quote_is_accepted_with_every_check(tdx: TdxIssuer) -> None:
    report = verify_tdx(tdx)
    assert (report.technology, report.product, report.tcb_status) == ("tdx", "b0c06f000000", "UpToDate")
    assert report.measurement == "5a" * 48
    assert report.runtime_measurements == ("01" * 48, "02" * 48, "03" * 48, "00" * 48)
    assert (report.debug, report.migratable, report.key_bound) == (False, False, False)
    assert report.valid_until == NOW + timedelta(days=30)
    assert [check.name for check in report.checks if check.passed] == [
        *("format", "root", "chain", "validity", "revocation", "signature", "nonce", "debug", "policy")
    ]
    json.dumps(report.as_dict())


@pytest.mark.parametrize("fault", get_args(TdxFault))
def test_each_fault_is_refused_with_its_error(tdx: TdxIssuer, fault: TdxFault) -> None:
    evidence = tdx.evidence(NONCE, now=NOW, public_key=PUBLIC_KEY, fault=fault)
    error, check = TDX_FAULTS[fault]
    with pytest.raises(AttestationError) as refused:
        verify_tdx(tdx, evidence, public_key=PUBLIC_KEY)
    assert (type(refused.value), refused.value.check) == (error, check)
    assert refused.value.checks[-1].name == check


def test_a_platform_with_a_revoked_tcb_is_refused_by_every_policy(tdx: TdxIssuer) -> None:
    with pytest.raises(RevokedError):
        verify_tdx(tdx, tdx.evidence(NONCE, now=NOW, fault="revoked_tcb"), policy=UnsafeNoOp())


def test_every_changed_byte_of_a_quote_before_its_certificates_is_refused(tdx: TdxIssuer) -> None:
    evidence = tdx.evidence(NONCE, now=NOW)
    accepted = []
    for offset in range(evidence.quote.index(b"-----BEGIN")):
        changed = bytearray(evidence.quote)
        changed[offset] ^= 1 << offset % 8
        try:
            verify_tdx(tdx, dataclasses.replace(evidence, quote=bytes(changed)))
        except AttestationError:
            continue
        accepted.append(offset)
    assert accepted == []


def test_collateral_of_another_moment_verifies_the_quote(tdx: TdxIssuer) -> None:
    evidence = tdx.evidence(NONCE, now=NOW)
    later = tdx.evidence(bytes(64), now=NOW + timedelta(days=1)).collateral
    assert verify_tdx(tdx, dataclasses.replace(evidence, collateral=later)).tcb_status == "UpToDate"


def test_zeros_after_a_quote_are_padding(tdx: TdxIssuer) -> None:
    evidence = tdx.evidence(NONCE, now=NOW)
    assert verify_tdx(tdx, dataclasses.replace(evidence, quote=evidence.quote + bytes(64))).tcb_status


@pytest.mark.parametrize("size", [0, 47, 636, 1000])
def test_a_truncated_quote_is_refused(tdx: TdxIssuer, size: int) -> None:
    evidence = tdx.evidence(NONCE, now=NOW)
    with pytest.raises(MalformedEvidenceError):
        verify_tdx(tdx, dataclasses.replace(evidence, quote=evidence.quote[:size]))


def test_an_issuer_of_the_tests_is_not_trusted_by_default(tdx: TdxIssuer) -> None:
    with pytest.raises(UnknownRootError):
        verify_tdx(tdx, roots=VENDOR_ROOTS)


@pytest.mark.parametrize("binding", ["sha512", "sha256"])
def test_a_quote_that_commits_to_the_public_key_is_bound(tdx: TdxIssuer, binding: Any) -> None:
    evidence = tdx.evidence(NONCE, now=NOW, public_key=PUBLIC_KEY, binding=binding)
    assert verify_tdx(tdx, evidence, public_key=PUBLIC_KEY, require_key_binding=True).key_bound


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(TdxCollateral)])
def test_collateral_that_cannot_be_read_is_refused(tdx: TdxIssuer, field: str) -> None:
    evidence = tdx.evidence(NONCE, now=NOW)
    empty: Any = b"" if isinstance(getattr(evidence.collateral, field), bytes) else ""
    collateral = dataclasses.replace(evidence.collateral, **{field: empty})
    with pytest.raises(AttestationError):
        verify_tdx(tdx, dataclasses.replace(evidence, collateral=collateral))


def test_collateral_is_read_from_its_own_json(tdx: TdxIssuer) -> None:
    collateral = tdx.evidence(NONCE, now=NOW).collateral
    assert TdxCollateral.from_json(collateral.as_json()) == collateral


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"tcb_info": 1}'])
def test_json_that_is_no_collateral_is_refused(text: str) -> None:
    with pytest.raises(MalformedEvidenceError):
        TdxCollateral.from_json(text)


def test_collateral_is_read_from_the_responses_of_a_certificate_service(tdx: TdxIssuer) -> None:
    evidence = tdx.evidence(NONCE, now=NOW)
    wanted = evidence.collateral

    def envelope(name: str, document: str, signature: bytes) -> str:
        return f'{{ "{name}" : {document}, "signature":"{signature.hex()}"}}'

    collateral = TdxCollateral.from_responses(
        tcb_info=envelope("tcbInfo", wanted.tcb_info, wanted.tcb_info_signature),
        tcb_info_issuer_chain=url_quote(wanted.tcb_info_issuer_chain),
        qe_identity=envelope("enclaveIdentity", wanted.qe_identity, wanted.qe_identity_signature),
        qe_identity_issuer_chain=url_quote(wanted.qe_identity_issuer_chain),
        pck_crl=wanted.pck_crl,
        pck_crl_issuer_chain=url_quote(wanted.pck_crl_issuer_chain),
        root_ca_crl=wanted.root_ca_crl,
    )
    assert collateral == wanted
    assert verify_tdx(tdx, dataclasses.replace(evidence, collateral=collateral)).tcb_status == "UpToDate"


def test_without_the_extra_the_error_names_it(tdx: TdxIssuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dcap_qvl", None)
    with pytest.raises(ConfigurationError, match=r"prem-encrypted\[attestation\]"):
        verify_tdx(tdx)
