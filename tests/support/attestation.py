"""Verifying made-up evidence in tests, with the arguments that a test does not care about."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any

from prem_core.attestation import AttestationReport, verify_nvidia_tokens, verify_snp_report, verify_tdx_quote
from prem_core.enclave.evidence import (
    NvidiaEvidence,
    NvidiaIssuer,
    SnpEvidence,
    SnpIssuer,
    TdxEvidence,
    TdxIssuer,
)

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
NONCE = bytes(range(64))
GPU_NONCE = bytes(range(32))
PUBLIC_KEY = b"k" * 1216


def verify_snp(issuer: SnpIssuer, evidence: SnpEvidence | None = None, **arguments: Any) -> AttestationReport:
    evidence = evidence or issuer.evidence(NONCE, now=NOW)
    values = {field.name: getattr(evidence, field.name) for field in dataclasses.fields(evidence)}
    return verify_snp_report(**{**values, "nonce": NONCE, "now": NOW, "roots": issuer.roots, **arguments})


def verify_tdx(issuer: TdxIssuer, evidence: TdxEvidence | None = None, **arguments: Any) -> AttestationReport:
    evidence = evidence or issuer.evidence(NONCE, now=NOW)
    values = {"quote": evidence.quote, "collateral": evidence.collateral}
    return verify_tdx_quote(**{**values, "nonce": NONCE, "now": NOW, "roots": issuer.roots, **arguments})


def verify_nvidia(
    issuer: NvidiaIssuer, evidence: NvidiaEvidence | None = None, **arguments: Any
) -> AttestationReport:
    evidence = evidence or issuer.evidence(GPU_NONCE, now=NOW)
    values = {"text": evidence.text, "jwks": evidence.jwks}
    return verify_nvidia_tokens(**{**values, "nonce": GPU_NONCE, "now": NOW, **arguments})
