"""NVIDIA GPUs: the tokens of NVIDIA's Remote Attestation Service (NRAS), read with PyJWT.

The text is JSON: ``[["JWT", overall], {"GPU-0": token, …}]``. The overall token lists the SHA-256 of each GPU's token.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from prem_core._errors import ConfigurationError
from prem_core.attestation import report as reports
from prem_core.attestation._checks import CheckLog, checked_nonce, checked_size, checked_time, decide
from prem_core.attestation.errors import (
    GpuAttestationFailedError,
    GpuTokenMismatchError,
    MalformedEvidenceError,
    MissingGpuTokenError,
    NonceMismatchError,
    SignatureInvalidError,
    TokenExpiredError,
    UnknownRootError,
)
from prem_core.attestation.policy import PremPolicy, VerificationPolicy
from prem_core.attestation.report import AttestationReport, GpuReport
from prem_core.attestation.roots import VENDOR_ROOTS, TrustedRoots

NONCE_SIZE = 32
MAX_TEXT = 1 << 20
#: NVIDIA signs with this algorithm; the token's own header never chooses.
ALGORITHM = "ES384"
#: How far the issuer's clock may be ahead.
CLOCK_SKEW = timedelta(seconds=60)
#: Results that every GPU's token must hold as true. No other claim with this prefix may be false.
RESULT_PREFIX = "x-nvidia-gpu-"
REQUIRED_RESULTS = tuple(
    RESULT_PREFIX + name
    for name in (
        "arch-check",
        "attestation-report-parsed",
        "attestation-report-nonce-match",
        "attestation-report-signature-verified",
        "attestation-report-cert-chain-fwid-match",
        "driver-rim-signature-verified",
        "driver-rim-version-match",
        "vbios-rim-signature-verified",
        "vbios-rim-version-match",
    )
)
CHAIN_SUFFIX = "-cert-chain"
REQUIRED_CHAINS = tuple(
    RESULT_PREFIX + name + CHAIN_SUFFIX for name in ("attestation-report", "driver-rim", "vbios-rim")
)


def verify_nvidia_tokens(
    text: str,
    *,
    jwks: str | Mapping[str, Any],
    nonce: bytes,
    policy: VerificationPolicy | None = None,
    now: datetime,
    roots: TrustedRoots = VENDOR_ROOTS,
) -> AttestationReport:
    """Verify the tokens that NVIDIA's service issued for a platform's GPUs.

    Args:
        text: The tokens, in JSON.
        jwks: NVIDIA's public keys, as JSON text or parsed. They are the root of trust: fetch them from NVIDIA.
        nonce: The 32 random bytes that the tokens must answer.
        policy: Decides whether the genuine result is acceptable; `PremPolicy()` if None.
        now: The time, with a time zone.
        roots: Names the issuer that is trusted.

    Returns:
        What the tokens show of each GPU, and what they do not prove.

    Raises:
        AttestationError: If a token is not genuine, not fresh or not acceptable; the class names the kind.
        ConfigurationError: If the nonce or the time cannot be used, or the extra is not installed.
    """
    policy = PremPolicy() if policy is None else policy
    now, nonce = checked_time(now), checked_nonce(nonce, NONCE_SIZE)
    with CheckLog() as log:
        overall, tokens = _read_tokens(text)
        log.record("format", f"a platform token and {len(tokens)} GPU tokens")
        verifier = _TokenVerifier(_read_keys(jwks), roots.nvidia_issuer, nonce, now)
        platform = verifier.verify("the platform's token", overall)
        if platform.get("x-nvidia-overall-att-result") is not True:
            raise GpuAttestationFailedError("NVIDIA's service reports that the platform's attestation failed")
        _check_digests(platform.get("submods"), tokens)
        log.record("GPU tokens", "each is the one that the platform's token lists")
        claims = {name: verifier.verify(f"the token of {name}", token) for name, token in tokens.items()}
        log.record("signature", f"all tokens are signed by {roots.nvidia_issuer}")
        log.record("validity", f"the tokens are valid until {verifier.valid_until.isoformat()}")
        log.record("nonce", "every token answers the nonce")
        gpus = tuple(_gpu(name, values) for name, values in claims.items())
        if len({gpu.ueid for gpu in gpus}) != len(gpus):
            raise GpuTokenMismatchError("one GPU appears under several names")
        log.record("GPU result", "NVIDIA's service accepts every GPU's evidence, firmware and driver")
        debug, secure = any(gpu.debug for gpu in gpus), all(gpu.secure_boot for gpu in gpus)
        log.record("debug", "debugging is enabled" if debug else "debugging is disabled", passed=not debug)
        log.record("secure boot", "every GPU" if secure else "not every GPU", passed=secure)
        result = AttestationReport(
            technology="nvidia",
            verified_at=now,
            valid_until=verifier.valid_until,
            debug=debug,
            gpus=gpus,
            not_proven=(
                reports.GPU_LINK_NOT_PROVEN,
                reports.GPU_EVIDENCE_NOT_PROVEN,
                reports.PHYSICAL_NOT_PROVEN,
            ),
        )
        return decide(result, policy, log)


def _read_tokens(text: str) -> tuple[str, dict[str, str]]:
    try:
        (kind, overall), tokens = json.loads(checked_size("the tokens' text", text, MAX_TEXT))
        well_formed = (
            kind == "JWT"
            and isinstance(overall, str)
            and isinstance(tokens, dict)
            and all(isinstance(token, str) for token in tokens.values())
        )
    except (ValueError, TypeError, RecursionError):
        well_formed = False
    if not well_formed:
        raise MalformedEvidenceError(
            'the tokens are not JSON of the form [["JWT", token], {"GPU-0": token, …}]'
        )
    return overall, tokens


def _read_keys(jwks: str | Mapping[str, Any]) -> dict[str, ec.EllipticCurvePublicKey]:
    """The P-384 keys of the JWKS by their key id."""
    jwt = _jwt()
    try:
        content = json.loads(jwks) if isinstance(jwks, str) else dict(jwks)
        entries = jwt.PyJWKSet.from_dict(content).keys
    except (ValueError, TypeError, AttributeError, RecursionError, jwt.PyJWTError):
        raise MalformedEvidenceError("NVIDIA's JWKS cannot be read", check="JWKS") from None
    keys: dict[str, ec.EllipticCurvePublicKey] = {}
    for entry in entries:
        if isinstance(entry.key, ec.EllipticCurvePublicKey) and isinstance(entry.key.curve, ec.SECP384R1):
            if entry.key_id in keys:
                raise MalformedEvidenceError("NVIDIA's JWKS holds one key id twice", check="JWKS")
            keys[str(entry.key_id)] = entry.key
    return keys


class _TokenVerifier:
    def __init__(
        self, keys: Mapping[str, ec.EllipticCurvePublicKey], issuer: str, nonce: bytes, now: datetime
    ) -> None:
        self._keys, self._issuer, self._nonce, self._now = keys, issuer, nonce, now
        self.valid_until = datetime.max.replace(tzinfo=UTC)

    def verify(self, name: str, token: str) -> dict[str, Any]:
        """The claims of a token whose signature, issuer, times and nonce are right."""
        jwt = _jwt()
        try:
            kid = jwt.get_unverified_header(token).get("kid")
        except jwt.PyJWTError:
            raise MalformedEvidenceError(f"{name} is not a JWT") from None
        key = self._keys.get(kid) if isinstance(kid, str) else None
        if key is None:
            raise UnknownRootError(f"{name} is not signed with a P-384 key of NVIDIA's JWKS")
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[ALGORITHM],
                issuer=self._issuer,
                options={
                    "require": ["iss", "exp", "iat", "nbf", "eat_nonce"],
                    # The clock is an argument here, so times are checked below.
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                    "verify_aud": False,
                },
            )
        except (jwt.InvalidSignatureError, jwt.InvalidAlgorithmError, jwt.InvalidKeyError):
            raise SignatureInvalidError(f"{name} has no valid {ALGORITHM} signature") from None
        except jwt.InvalidIssuerError:
            raise UnknownRootError(f"{name} is not issued by {self._issuer}", check="issuer") from None
        except jwt.MissingRequiredClaimError as error:
            raise MalformedEvidenceError(f"{name} has no claim {error.claim}") from None
        except jwt.PyJWTError:
            raise MalformedEvidenceError(f"{name} cannot be decoded as a JWT") from None
        self._check_times(name, claims)
        eat_nonce = claims["eat_nonce"]
        if not isinstance(eat_nonce, str) or eat_nonce.lower() != self._nonce.hex():
            raise NonceMismatchError(f"{name} does not answer the nonce")
        return claims

    def _check_times(self, name: str, claims: Mapping[str, Any]) -> None:
        try:
            start, issued, end = (_time(claims[claim]) for claim in ("nbf", "iat", "exp"))
        except (ValueError, OverflowError, OSError):
            raise MalformedEvidenceError(f"{name} has no readable times") from None
        if self._now >= end:
            raise TokenExpiredError(
                f"{name} expired at {end.isoformat()}; the time is {self._now.isoformat()}"
            )
        if max(start, issued) > self._now + CLOCK_SKEW:
            raise TokenExpiredError(
                f"{name} is valid from {start.isoformat()}; the time is {self._now.isoformat()}"
            )
        self.valid_until = min(self.valid_until, end)


def _time(value: Any) -> datetime:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("not a number")
    return datetime.fromtimestamp(value, UTC)


def _check_digests(submods: Any, tokens: Mapping[str, str]) -> None:
    """Check that the GPUs' tokens are exactly those of the platform's token: ``["DIGEST", ["SHA-256", hex]]`` each."""
    if not isinstance(submods, dict):
        raise MalformedEvidenceError("the platform's token lists no GPU tokens")
    missing, extra = sorted(submods.keys() - tokens.keys()), sorted(tokens.keys() - submods.keys())
    if missing or not submods:
        raise MissingGpuTokenError(f"there is no token for {_listed(missing) or 'any GPU'}")
    if extra:
        raise GpuTokenMismatchError(f"the platform's token does not list {_listed(extra)}")
    for name, token in tokens.items():
        if submods[name] != ["DIGEST", ["SHA-256", hashlib.sha256(token.encode()).hexdigest()]]:
            raise GpuTokenMismatchError(f"the token of {name} is not the one that the platform's token lists")


def _listed(names: list[str]) -> str:
    return ", ".join(repr(name[:40]) for name in names[:16])


def _gpu(name: str, claims: Mapping[str, Any]) -> GpuReport:
    results = {claim: value for claim, value in claims.items() if claim.startswith(RESULT_PREFIX)}
    failed = [claim for claim in REQUIRED_RESULTS if claims.get(claim) is not True]
    failed += [claim for claim, value in results.items() if value is False]
    chains = {claim for claim in results if claim.endswith(CHAIN_SUFFIX)} | set(REQUIRED_CHAINS)
    failed += [claim for claim in chains if not _chain_is_good(claims.get(claim))]
    if claims.get("measres") != "success":
        failed.append("measres")
    if failed:
        raise GpuAttestationFailedError(f"{name}: {', '.join(sorted(set(failed)))} failed, or is missing")
    ueid = claims.get("ueid")
    if not isinstance(ueid, str) or not ueid:
        raise MalformedEvidenceError(f"the token of {name} does not name the GPU (ueid)")
    return GpuReport(
        name=name,
        ueid=ueid,
        model=str(claims.get("hwmodel", "")),
        driver_version=str(claims.get("x-nvidia-gpu-driver-version", "")),
        vbios_version=str(claims.get("x-nvidia-gpu-vbios-version", "")),
        debug=claims.get("dbgstat") != "disabled",
        secure_boot=claims.get("secboot") is True,
    )


def _chain_is_good(chain: Any) -> bool:
    return (
        isinstance(chain, dict)
        and chain.get("x-nvidia-cert-status") == "valid"
        and chain.get("x-nvidia-cert-ocsp-status") == "good"
    )


def _jwt() -> Any:
    try:
        import jwt
    except ImportError as error:
        raise ConfigurationError(
            'verifying NVIDIA\'s tokens needs PyJWT: pip install "prem-encrypted[attestation]"'
        ) from error
    return jwt
