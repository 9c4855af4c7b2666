"""One error for each way in which attestation evidence can fail. All are kinds of `AttestationError`."""

from __future__ import annotations

from prem_core._errors import AttestationError

__all__ = [
    "AttestationError",
    "CertificateExpiredError",
    "ChipMismatchError",
    "CollateralExpiredError",
    "CollateralUnavailableError",
    "DebugEnabledError",
    "GpuAttestationFailedError",
    "GpuTokenMismatchError",
    "KeyNotBoundError",
    "MalformedEvidenceError",
    "MeasurementNotAllowedError",
    "MigrationAllowedError",
    "MissingGpuTokenError",
    "NonceMismatchError",
    "NotAttestedError",
    "QuoteRefusedError",
    "RevocationUnknownError",
    "RevokedError",
    "SecureBootDisabledError",
    "SignatureInvalidError",
    "TcbMismatchError",
    "TcbTooOldError",
    "TokenExpiredError",
    "UnknownRootError",
    "VmplTooHighError",
]


class NotAttestedError(AttestationError):
    """The gateway has no evidence for this model: it is not attested."""

    DEFAULT_CHECK = "evidence"


class CollateralUnavailableError(AttestationError):
    """A certificate, revocation list or key that the verification needs cannot be fetched or found."""

    DEFAULT_CHECK = "collateral"


class MalformedEvidenceError(AttestationError):
    """The evidence or the collateral does not have the form that its specification gives."""

    DEFAULT_CHECK = "format"


class UnknownRootError(AttestationError):
    """The certificates, or the key of a token, do not lead to a trusted root."""

    DEFAULT_CHECK = "root"


class SignatureInvalidError(AttestationError):
    """A signature on the evidence, a certificate, a revocation list or a token does not verify."""

    DEFAULT_CHECK = "signature"


class CertificateExpiredError(AttestationError):
    """A certificate is expired, or not valid yet."""

    DEFAULT_CHECK = "validity"


class CollateralExpiredError(AttestationError):
    """A revocation list, the TCB info or the QE identity is expired, or not valid yet."""

    DEFAULT_CHECK = "collateral"


class TokenExpiredError(AttestationError):
    """A token is expired, or not valid yet."""

    DEFAULT_CHECK = "validity"


class QuoteRefusedError(AttestationError):
    """The library that verifies TDX quotes refuses this one, for a reason that has no class of its own here."""

    DEFAULT_CHECK = "quote"


class RevokedError(AttestationError):
    """The vendor revoked a certificate, or the platform's TCB level."""

    DEFAULT_CHECK = "revocation"


class RevocationUnknownError(AttestationError):
    """The policy requires a revocation list, and none was given."""

    DEFAULT_CHECK = "revocation"


class NonceMismatchError(AttestationError):
    """The evidence does not answer this nonce: it may be a recording."""

    DEFAULT_CHECK = "nonce"


class KeyNotBoundError(AttestationError):
    """Key binding is required, and the evidence does not commit to the public key."""

    DEFAULT_CHECK = "key binding"


class ChipMismatchError(AttestationError):
    """The report and its certificate are of different chips or different products."""

    DEFAULT_CHECK = "chip"


class TcbMismatchError(AttestationError):
    """The report's TCB version is not the one that its certificate is for."""

    DEFAULT_CHECK = "certificate TCB"


class TcbTooOldError(AttestationError):
    """The platform's firmware is older than the policy accepts, or the vendor lists it as not up to date."""

    DEFAULT_CHECK = "TCB"


class DebugEnabledError(AttestationError):
    """The guest or the GPU can be debugged, so the host can read its memory."""

    DEFAULT_CHECK = "debug"


class MigrationAllowedError(AttestationError):
    """The guest may be migrated to another machine, which this evidence does not cover."""

    DEFAULT_CHECK = "migration"


class VmplTooHighError(AttestationError):
    """The report comes from a less privileged level (VMPL) of the guest than the policy accepts."""

    DEFAULT_CHECK = "VMPL"


class MeasurementNotAllowedError(AttestationError):
    """A measurement is not in the allow list."""

    DEFAULT_CHECK = "measurement"


class MissingGpuTokenError(AttestationError):
    """A GPU of the platform has no token."""

    DEFAULT_CHECK = "GPU tokens"


class GpuTokenMismatchError(AttestationError):
    """A GPU's token is not the one that the platform's token lists, or one GPU appears twice."""

    DEFAULT_CHECK = "GPU tokens"


class GpuAttestationFailedError(AttestationError):
    """NVIDIA's service reports that a check of the GPU's evidence failed, or omits its result."""

    DEFAULT_CHECK = "GPU result"


class SecureBootDisabledError(AttestationError):
    """The GPU started without secure boot."""

    DEFAULT_CHECK = "secure boot"
