"""Verifies that a machine is a confidential one: AMD SEV-SNP reports, Intel TDX quotes and NVIDIA GPU tokens.

The verifiers are pure: evidence, collateral and the time go in; an `AttestationReport` or an `AttestationError` comes
out. TDX and NVIDIA need the extra ``prem-encrypted[attestation]``.
"""

from prem_core._errors import AttestationError
from prem_core.attestation.collateral import TdxCollateral
from prem_core.attestation.errors import (
    CertificateExpiredError,
    ChipMismatchError,
    CollateralExpiredError,
    DebugEnabledError,
    GpuAttestationFailedError,
    GpuTokenMismatchError,
    KeyNotBoundError,
    MalformedEvidenceError,
    MeasurementNotAllowedError,
    MigrationAllowedError,
    MissingGpuTokenError,
    NonceMismatchError,
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
)
from prem_core.attestation.nvidia import verify_nvidia_tokens
from prem_core.attestation.policy import (
    AllOf,
    AnyOf,
    MeasurementAllowList,
    PremPolicy,
    UnsafeNoOp,
    VerificationPolicy,
)
from prem_core.attestation.report import AttestationReport, Check, GpuReport, SnpTcb
from prem_core.attestation.roots import VENDOR_ROOTS, TrustedRoots
from prem_core.attestation.snp import SnpFields, parse_snp_report, verify_snp_report
from prem_core.attestation.tdx import verify_tdx_quote

__all__ = [
    "VENDOR_ROOTS",
    "AllOf",
    "AnyOf",
    "AttestationError",
    "AttestationReport",
    "CertificateExpiredError",
    "Check",
    "ChipMismatchError",
    "CollateralExpiredError",
    "DebugEnabledError",
    "GpuAttestationFailedError",
    "GpuReport",
    "GpuTokenMismatchError",
    "KeyNotBoundError",
    "MalformedEvidenceError",
    "MeasurementAllowList",
    "MeasurementNotAllowedError",
    "MigrationAllowedError",
    "MissingGpuTokenError",
    "NonceMismatchError",
    "PremPolicy",
    "QuoteRefusedError",
    "RevocationUnknownError",
    "RevokedError",
    "SecureBootDisabledError",
    "SignatureInvalidError",
    "SnpFields",
    "SnpTcb",
    "TcbMismatchError",
    "TcbTooOldError",
    "TdxCollateral",
    "TokenExpiredError",
    "TrustedRoots",
    "UnknownRootError",
    "UnsafeNoOp",
    "VerificationPolicy",
    "VmplTooHighError",
    "parse_snp_report",
    "verify_nvidia_tokens",
    "verify_snp_report",
    "verify_tdx_quote",
]
