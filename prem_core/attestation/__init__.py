"""Verifies that a machine is a confidential one: AMD SEV-SNP reports, Intel TDX quotes and NVIDIA GPU tokens.

The verifiers are pure: evidence, collateral and the time go in; an `AttestationReport` or an `AttestationError` comes
out. TDX and NVIDIA need the extra ``prem-encrypted[attestation]``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prem_core._errors import AttestationError
    from prem_core.attestation.collateral import TdxCollateral
    from prem_core.attestation.errors import (
        CertificateExpiredError,
        ChipMismatchError,
        CollateralExpiredError,
        CollateralUnavailableError,
        DebugEnabledError,
        GpuAttestationFailedError,
        GpuTokenMismatchError,
        KeyNotBoundError,
        MalformedEvidenceError,
        MeasurementNotAllowedError,
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
    )
    from prem_core.attestation.evidence import Evidence
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
    from prem_core.attestation.roots import VENDOR_ROOTS, CollateralSources, TrustedRoots
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
    "CollateralSources",
    "CollateralUnavailableError",
    "DebugEnabledError",
    "Evidence",
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
    "NotAttestedError",
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

#: Where the names are that are not errors. They are imported when they are first used: the verifiers read
#: certificates, which every client would otherwise load for the types of its options.
_MODULES = {
    "collateral": ("TdxCollateral",),
    "evidence": ("Evidence",),
    "nvidia": ("verify_nvidia_tokens",),
    "policy": (
        "AllOf",
        "AnyOf",
        "MeasurementAllowList",
        "PremPolicy",
        "UnsafeNoOp",
        "VerificationPolicy",
    ),
    "report": (
        "AttestationReport",
        "Check",
        "GpuReport",
        "SnpTcb",
    ),
    "roots": (
        "VENDOR_ROOTS",
        "CollateralSources",
        "TrustedRoots",
    ),
    "snp": (
        "SnpFields",
        "parse_snp_report",
        "verify_snp_report",
    ),
    "tdx": ("verify_tdx_quote",),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = next((module for module, names in _MODULES.items() if name in names), "errors")
    value = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
