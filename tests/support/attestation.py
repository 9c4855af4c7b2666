"""Verifying made-up evidence in tests, with the arguments that a test does not care about."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any

from prem_core import InternalServerError, PremError
from prem_core.attestation import (
    AttestationError,
    AttestationReport,
    CertificateExpiredError,
    ChipMismatchError,
    CollateralExpiredError,
    CollateralUnavailableError,
    DebugEnabledError,
    GpuAttestationFailedError,
    GpuTokenMismatchError,
    KeyNotBoundError,
    MalformedEvidenceError,
    MigrationAllowedError,
    MissingGpuTokenError,
    NonceMismatchError,
    NotAttestedError,
    QuoteRefusedError,
    RevocationUnknownError,
    RevokedError,
    SecureBootDisabledError,
    SignatureInvalidError,
    TcbMismatchError,
    TcbTooOldError,
    TokenExpiredError,
    UnknownRootError,
    VmplTooHighError,
    verify_nvidia_tokens,
    verify_snp_report,
    verify_tdx_quote,
)
from prem_core.enclave.attester import GPU_PREFIX, ServiceFault, Technology
from prem_core.enclave.evidence import (
    NvidiaEvidence,
    NvidiaFault,
    NvidiaIssuer,
    SnpEvidence,
    SnpFault,
    SnpIssuer,
    TdxEvidence,
    TdxFault,
    TdxIssuer,
)

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
NONCE = bytes(range(64))
GPU_NONCE = bytes(range(32))
PUBLIC_KEY = b"k" * 1216

#: The error of each fault of the evidence, and the check that it names.
SNP_FAULTS: dict[SnpFault, tuple[type[AttestationError], str]] = {
    "bad_signature": (SignatureInvalidError, "signature"),
    "debug": (DebugEnabledError, "debug"),
    "expired_certificate": (CertificateExpiredError, "validity"),
    "expired_crl": (CollateralExpiredError, "collateral"),
    "foreign_chain": (SignatureInvalidError, "chain"),
    "foreign_crl": (SignatureInvalidError, "revocation"),
    "foreign_root": (UnknownRootError, "root"),
    "masked_chip": (ChipMismatchError, "chip"),
    "migration": (MigrationAllowedError, "migration"),
    "no_crl": (RevocationUnknownError, "revocation"),
    "old_tcb": (TcbTooOldError, "TCB"),
    "other_chip": (ChipMismatchError, "chip"),
    "other_key": (KeyNotBoundError, "key binding"),
    "other_product": (ChipMismatchError, "product"),
    "revoked": (RevokedError, "revocation"),
    "short_report": (MalformedEvidenceError, "format"),
    "tcb_mismatch": (TcbMismatchError, "certificate TCB"),
    "vlek": (MalformedEvidenceError, "format"),
    "vmpl": (VmplTooHighError, "VMPL"),
    "wrong_nonce": (NonceMismatchError, "nonce"),
}

TDX_FAULTS: dict[TdxFault, tuple[type[AttestationError], str]] = {
    "bad_qe_signature": (SignatureInvalidError, "signature"),
    "bad_signature": (SignatureInvalidError, "signature"),
    "changed_tcb_info": (SignatureInvalidError, "signature"),
    "debug": (DebugEnabledError, "debug"),
    "expired_certificate": (CertificateExpiredError, "validity"),
    "expired_crl": (CollateralExpiredError, "collateral"),
    "expired_tcb_info": (CollateralExpiredError, "collateral"),
    "foreign_crl": (MalformedEvidenceError, "format"),
    "foreign_root": (UnknownRootError, "root"),
    "migration": (MigrationAllowedError, "migration"),
    "other_key": (KeyNotBoundError, "key binding"),
    "other_pce": (MalformedEvidenceError, "format"),
    "other_platform": (QuoteRefusedError, "quote"),
    "out_of_date": (TcbTooOldError, "TCB"),
    "revoked": (RevokedError, "revocation"),
    "revoked_authority": (RevokedError, "revocation"),
    "revoked_tcb": (RevokedError, "revocation"),
    "sgx": (MalformedEvidenceError, "format"),
    "trailing_bytes": (MalformedEvidenceError, "format"),
    "wrong_nonce": (NonceMismatchError, "nonce"),
}

NVIDIA_FAULTS: dict[NvidiaFault, tuple[type[AttestationError], str]] = {
    "changed_token": (GpuTokenMismatchError, "GPU tokens"),
    "debug": (DebugEnabledError, "debug"),
    "expired": (TokenExpiredError, "validity"),
    "extra_token": (GpuTokenMismatchError, "GPU tokens"),
    "failed_result": (GpuAttestationFailedError, "GPU result"),
    "foreign_key": (SignatureInvalidError, "signature"),
    "gpu_wrong_nonce": (NonceMismatchError, "nonce"),
    "missing_token": (MissingGpuTokenError, "GPU tokens"),
    "no_gpus": (MissingGpuTokenError, "GPU tokens"),
    "no_secure_boot": (SecureBootDisabledError, "secure boot"),
    "omitted_result": (GpuAttestationFailedError, "GPU result"),
    "other_algorithm": (SignatureInvalidError, "signature"),
    "other_issuer": (UnknownRootError, "issuer"),
    "platform_failed": (GpuAttestationFailedError, "GPU result"),
    "revoked": (GpuAttestationFailedError, "GPU result"),
    "same_gpu_twice": (GpuTokenMismatchError, "GPU tokens"),
    "unsigned": (SignatureInvalidError, "signature"),
    "wrong_nonce": (NonceMismatchError, "nonce"),
}

#: What a client raises for each fault of the gateway's answers, and of the vendors' services.
SERVICE_FAULTS: dict[ServiceFault, type[PremError]] = {
    "collateral_redirects": CollateralUnavailableError,
    "collateral_unavailable": CollateralUnavailableError,
    "large_report": MalformedEvidenceError,
    "no_deployment": NotAttestedError,
    "not_found": NotAttestedError,
    "report_not_found": NotAttestedError,
    "unavailable": InternalServerError,
    "unknown_cpu": MalformedEvidenceError,
}


def wire_faults(technology: Technology) -> dict[str, type[PremError]]:
    """Every fault of an embedded enclave that a client must refuse, and the error that it raises."""
    of_cpu = SNP_FAULTS if technology == "sev-snp" else TDX_FAULTS
    faults: dict[str, type[PremError]] = {fault: error for fault, (error, _) in of_cpu.items()}
    if technology == "sev-snp":
        faults["no_crl"] = CollateralUnavailableError  # the client always asks for the list
    faults |= {GPU_PREFIX + fault: error for fault, (error, _) in NVIDIA_FAULTS.items()}
    return {**faults, **SERVICE_FAULTS}


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
