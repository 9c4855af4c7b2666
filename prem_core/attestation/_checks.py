"""What all verifiers share: the record of checks, the arguments, nonce and key binding, the policy's decision."""

from __future__ import annotations

import dataclasses
import hashlib
from datetime import UTC, datetime
from types import TracebackType
from typing import TypeVar

from prem_core._errors import AttestationError, ConfigurationError
from prem_core.attestation.errors import KeyNotBoundError, MalformedEvidenceError, NonceMismatchError
from prem_core.attestation.policy import VerificationPolicy, apply_policy, compared_measurements
from prem_core.attestation.report import AttestationReport, Check

T = TypeVar("T", bytes, str)

NONCE_SIZE = 64


class CheckLog:
    """Records checks in order; an `AttestationError` that leaves its block receives all of them."""

    def __init__(self) -> None:
        self._checks: list[Check] = []

    def record(self, name: str, detail: str, *, passed: bool = True) -> None:
        """Add a check."""
        self._checks.append(Check(name, passed, detail))

    @property
    def checks(self) -> tuple[Check, ...]:
        """The checks until now."""
        return tuple(self._checks)

    def __enter__(self) -> CheckLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, AttestationError):
            passed = (check for check in self._checks if check.passed or check.name != error.check)
            error.checks = (*passed, Check(error.check, False, str(error)))


def checked_time(now: datetime) -> datetime:
    """The clock's time in UTC.

    Raises:
        ConfigurationError: If the time has no time zone.
    """
    if now.tzinfo is None:
        raise ConfigurationError("now has no time zone: use datetime.now(timezone.utc)")
    return now.astimezone(UTC)


def checked_nonce(nonce: bytes, size: int = NONCE_SIZE) -> bytes:
    """The nonce.

    Raises:
        ConfigurationError: If it does not have the size that the evidence has room for.
    """
    if len(nonce) != size:
        raise ConfigurationError(f"the nonce has {len(nonce)} bytes; use secrets.token_bytes({size})")
    return bytes(nonce)


def checked_size(name: str, data: T, limit: int) -> T:
    """The data.

    Raises:
        MalformedEvidenceError: If it is larger than the limit.
    """
    if len(data) > limit:
        raise MalformedEvidenceError(f"{name} has {len(data)} bytes; at most {limit} are accepted")
    return data


def check_report_data(
    report_data: bytes, *, nonce: bytes, public_key: bytes | None, require_key_binding: bool, log: CheckLog
) -> bool:
    """Check that the report answers the nonce; return whether it also commits to the public key.

    Prem documents ``report_data = nonce``. Two forms that commit to the key as well are recognised:
    ``SHA-512(nonce ‖ public key)`` and ``SHA-256(nonce) ‖ SHA-256(public key)``.
    """
    bound = False
    fresh = report_data == nonce
    nonce_digest = hashlib.sha256(nonce).digest()
    if public_key is not None and report_data == hashlib.sha512(nonce + public_key).digest():
        bound = fresh = True
    elif report_data[:32] == nonce_digest:
        if public_key is not None and report_data[32:] != hashlib.sha256(public_key).digest():
            log.record("nonce", "the report answers the nonce")
            raise KeyNotBoundError("the report commits to another public key than the given one")
        fresh, bound = True, public_key is not None
    if not fresh:
        raise NonceMismatchError(
            "the report's data is not the nonce, nor a commitment to the nonce and the public key"
        )
    log.record("nonce", "the report answers the nonce")
    if require_key_binding and not bound:
        reason = (
            "does not commit to the public key"
            if public_key
            else "cannot be compared: no public key was given"
        )
        raise KeyNotBoundError(f"key binding is required, and the report {reason}")
    if public_key is None:
        detail = "no public key was given"
    else:
        detail = (
            "the report commits to the public key"
            if bound
            else "the report does not commit to the public key"
        )
    log.record("key binding", detail, passed=bound)
    return bound


def decide(report: AttestationReport, policy: VerificationPolicy, log: CheckLog) -> AttestationReport:
    """Apply the policy; return the report with every check.

    Raises:
        AttestationError: The policy's error, if it refuses.
    """
    apply_policy(policy, dataclasses.replace(report, checks=log.checks))
    if report.measurement is not None:
        compared = "measurement" in compared_measurements(policy)
        detail = "the launch measurement is in the allow list" if compared else "no allow list was given"
        log.record("measurement", detail, passed=compared)
    log.record("policy", f"accepted by {policy!r}")
    return dataclasses.replace(report, checks=log.checks)
