"""Evidence of real machines, where PREM_ATTESTATION_SAMPLES names a folder with it; it is not part of the project.

The folder holds an SEV-SNP report of a Genoa processor with its certificates (microsoft/TEE-Attestation-Verification),
a TDX quote with its collateral (Phala-Network/dcap-qvl), and NVIDIA's tokens of an expired session
(premAI-io/pcci-attestation-stack).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from prem_core.attestation import (
    AttestationError,
    CertificateExpiredError,
    CollateralExpiredError,
    NonceMismatchError,
    PremPolicy,
    RevocationUnknownError,
    TdxCollateral,
    TokenExpiredError,
    UnknownRootError,
    verify_nvidia_tokens,
    verify_snp_report,
    verify_tdx_quote,
)
from prem_core.enclave.evidence import NvidiaIssuer

SAMPLES = Path(os.environ.get("PREM_ATTESTATION_SAMPLES") or "no folder")
pytestmark = pytest.mark.skipif(
    not SAMPLES.is_dir(), reason="PREM_ATTESTATION_SAMPLES names no folder of samples"
)

SNP_TIME = datetime(2026, 6, 1, tzinfo=UTC)
TDX_TIME = datetime(2025, 6, 20, tzinfo=UTC)
GPU_TIME = datetime.fromtimestamp(1765834641 + 60, UTC)


@pytest.fixture
def genoa() -> dict[str, Any]:
    read = {name: (SAMPLES / f"genoa_{name}.pem").read_bytes() for name in ("vcek", "ask", "ark")}
    return {
        "report": (SAMPLES / "genoa_attestation_report.bin").read_bytes(),
        "vcek": read["vcek"],
        "chain": read["ask"] + read["ark"],
        "crl": None,
        "nonce": bytes(64),
        "policy": PremPolicy(require_revocation_check=False),
        "now": SNP_TIME,
    }


@pytest.fixture
def quote() -> dict[str, Any]:
    collateral = TdxCollateral.from_json((SAMPLES / "tdx_quote_collateral.json").read_text())
    content = (SAMPLES / "tdx_quote.bin").read_bytes()
    return {"quote": content, "collateral": collateral, "nonce": content[568:632], "now": TDX_TIME}


@pytest.fixture
def tokens() -> str:
    return (SAMPLES / "nvidia_eat_example.json").read_text()


def test_the_report_of_a_real_genoa_processor_is_accepted(genoa: dict[str, Any]) -> None:
    report = verify_snp_report(**genoa)
    assert (report.product, report.tcb["microcode"], report.vmpl, report.debug) == ("Genoa", 84, 0, False)


def test_the_default_policy_refuses_it_without_a_revocation_list(genoa: dict[str, Any]) -> None:
    with pytest.raises(RevocationUnknownError):
        verify_snp_report(**{**genoa, "policy": None})


def test_the_report_is_refused_before_its_certificate_is_valid(genoa: dict[str, Any]) -> None:
    with pytest.raises(CertificateExpiredError):
        verify_snp_report(**{**genoa, "now": datetime(2026, 1, 1, tzinfo=UTC)})


def test_every_changed_byte_of_the_real_report_is_refused(genoa: dict[str, Any]) -> None:
    accepted = []
    for offset in range(len(genoa["report"])):
        changed = bytearray(genoa["report"])
        changed[offset] ^= 0x10
        try:
            verify_snp_report(**{**genoa, "report": bytes(changed)})
        except AttestationError:
            continue
        accepted.append(offset)
    assert accepted == []


def test_a_real_tdx_quote_is_accepted_at_its_time(quote: dict[str, Any]) -> None:
    report = verify_tdx_quote(**quote)
    assert (report.product, report.tcb_status, report.debug) == ("b0c06f000000", "UpToDate", False)


def test_a_real_tdx_quote_is_refused_after_its_collateral_expired(quote: dict[str, Any]) -> None:
    with pytest.raises(CollateralExpiredError):
        verify_tdx_quote(**{**quote, "now": SNP_TIME})


def test_a_real_tdx_quote_is_refused_with_a_changed_revocation_list(quote: dict[str, Any]) -> None:
    changed = bytearray(quote["collateral"].pck_crl)
    changed[500] ^= 1
    collateral = dataclasses.replace(quote["collateral"], pck_crl=bytes(changed))
    with pytest.raises(AttestationError):
        verify_tdx_quote(**{**quote, "collateral": collateral})


def test_nvidias_tokens_are_refused_without_nvidias_key(tokens: str) -> None:
    with pytest.raises(UnknownRootError):
        verify_nvidia_tokens(tokens, jwks=NvidiaIssuer().jwks, nonce=bytes(32), now=GPU_TIME)


def signed_anew(tokens: str) -> dict[str, Any]:
    """The sample's claims, signed by a key of this test: NVIDIA's keys of that time are not part of the samples."""
    import jwt

    issuer = NvidiaIssuer()

    def again(token: str, **changed: Any) -> str:
        claims = jwt.decode(token, options={"verify_signature": False})
        return issuer._token({**claims, **changed}, None)

    (_, overall), gpus = json.loads(tokens)
    gpus = {name: again(token) for name, token in gpus.items()}
    digests = {
        name: ["DIGEST", ["SHA-256", hashlib.sha256(token.encode()).hexdigest()]]
        for name, token in gpus.items()
    }
    return {"text": json.dumps([["JWT", again(overall, submods=digests)], gpus]), "jwks": issuer.jwks}


def test_nvidias_claims_are_accepted_at_their_time(tokens: str) -> None:
    report = verify_nvidia_tokens(**signed_anew(tokens), nonce=bytes(32), now=GPU_TIME)
    assert [gpu.model for gpu in report.gpus] == ["GH100 A01 GSP BROM"] * 2


def test_nvidias_claims_are_refused_as_expired_now(tokens: str) -> None:
    with pytest.raises(TokenExpiredError):
        verify_nvidia_tokens(**signed_anew(tokens), nonce=bytes(32), now=datetime.now(UTC))


def test_nvidias_claims_are_refused_for_their_nonce_of_zeros(tokens: str) -> None:
    with pytest.raises(NonceMismatchError):
        verify_nvidia_tokens(**signed_anew(tokens), nonce=b"\1" * 32, now=GPU_TIME)
