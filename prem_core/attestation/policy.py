"""Policies: which genuine evidence is acceptable.

A verifier first proves that the evidence is genuine and answers the nonce. Then the policy decides whether what it
shows is good enough.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from prem_core._errors import AttestationError, ConfigurationError
from prem_core.attestation.errors import (
    DebugEnabledError,
    MeasurementNotAllowedError,
    MigrationAllowedError,
    RevocationUnknownError,
    SecureBootDisabledError,
    TcbTooOldError,
    VmplTooHighError,
)
from prem_core.attestation.report import AttestationReport, SnpTcb


@runtime_checkable
class VerificationPolicy(Protocol):
    """Decides whether genuine evidence is acceptable."""

    def verify(self, report: AttestationReport) -> None:
        """Raise an `AttestationError` if the report is not acceptable.

        Args:
            report: Evidence that is genuine and answers the nonce.
        """
        ...


def _refuse_debug(report: AttestationReport) -> None:
    if report.debug:
        subject = "a GPU" if report.technology == "nvidia" else "the guest"
        raise DebugEnabledError(f"debugging is enabled in {subject}: its memory can be read from outside")


@dataclass(frozen=True, repr=False)
class PremPolicy:
    """Prem's published policy and more: no debugging, recent firmware, revocation checked, secure boot.

    Args:
        minimum_snp_tcb: The lowest firmware versions of SEV-SNP. Prem's own policy is microcode 72.
        tdx_statuses: The TCB statuses of TDX that are accepted.
        max_vmpl: The least privileged level of an SEV-SNP guest that may have requested the report.
        allow_migration: Whether an SEV-SNP guest may be one that can be migrated.
        require_revocation_check: Whether evidence without a revocation list is refused.
        minimum_gpus: How many GPUs must be attested. With 0, a gateway that names no GPU is believed; the report then
            states that no GPU was attested. It counts where a CPU and its GPUs are verified together: by a client, and
            by `Evidence.verify`.
    """

    minimum_snp_tcb: SnpTcb = SnpTcb(microcode=72)  # noqa: RUF009 - frozen
    tdx_statuses: frozenset[str] = frozenset({"UpToDate"})
    max_vmpl: int = 0
    allow_migration: bool = False
    require_revocation_check: bool = True
    minimum_gpus: int = 0

    def verify(self, report: AttestationReport) -> None:
        """Raise an `AttestationError` if the report does not meet the policy."""
        _refuse_debug(report)
        for gpu in report.gpus:
            if not gpu.secure_boot:
                raise SecureBootDisabledError(f"{gpu.name} started without secure boot")
        if report.technology == "nvidia":
            return
        if report.migratable and not self.allow_migration:
            raise MigrationAllowedError(
                "the guest may be migrated to another machine; the policy does not allow it"
            )
        if self.require_revocation_check and not report.revocation_checked:
            raise RevocationUnknownError("no revocation list was given; the policy requires one")
        if report.technology == "sev-snp":
            self._verify_snp(report)
        elif report.tcb_status not in self.tdx_statuses:
            accepted = ", ".join(sorted(self.tdx_statuses)) or "none"
            raise TcbTooOldError(
                f"the platform's TCB status is {report.tcb_status}; the policy accepts: {accepted}"
            )

    def __repr__(self) -> str:
        given = (f"{field.name}={getattr(self, field.name)!r}" for field in dataclasses.fields(self)
                 if getattr(self, field.name) != field.default)  # fmt: skip
        return f"PremPolicy({', '.join(given)})"

    def _verify_snp(self, report: AttestationReport) -> None:
        if report.vmpl is None or not 0 <= report.vmpl <= self.max_vmpl:
            raise VmplTooHighError(
                f"the report is of VMPL {report.vmpl}; the policy accepts at most {self.max_vmpl}"
            )
        tcb = SnpTcb(**report.tcb)
        if not tcb.covers(self.minimum_snp_tcb):
            raise TcbTooOldError(
                f"the platform's TCB is {tcb}; the policy requires at least {self.minimum_snp_tcb}"
            )


class MeasurementAllowList:
    """Accepts CPU evidence only with a listed launch measurement; a guest that can be debugged is refused.

    It checks nothing else: combine it with `PremPolicy` in an `AllOf`. Evidence of GPUs has no launch measurement and
    passes.

    Args:
        measurements: The accepted launch measurements, in hex: 48 bytes each (for TDX the MRTD).
        rtmrs: For TDX, the accepted values of runtime measurements by their number, 0 to 3. RTMR 1 and 2 usually cover
            the kernel and its command line.

    Raises:
        ConfigurationError: If a measurement is not 48 bytes of hex, or none is given.
    """

    def __init__(
        self, measurements: Iterable[str], *, rtmrs: Mapping[int, Iterable[str]] | None = None
    ) -> None:
        self.measurements = _digests("measurements", measurements)
        self.rtmrs = {
            number: _digests(f"rtmrs[{number}]", values) for number, values in (rtmrs or {}).items()
        }
        if not set(self.rtmrs) <= {0, 1, 2, 3}:
            raise ConfigurationError("rtmrs must be numbered 0 to 3")

    @property
    def compares(self) -> frozenset[str]:
        """The measurements that this policy compares: ``measurement``, and ``rtmr1`` for RTMR 1."""
        return frozenset({"measurement", *(f"rtmr{number}" for number in self.rtmrs)})

    def verify(self, report: AttestationReport) -> None:
        """Raise an `AttestationError` if a measurement is not in the list."""
        _refuse_debug(report)
        if report.technology == "nvidia":
            return
        if report.measurement not in self.measurements:
            raise MeasurementNotAllowedError(
                f"the launch measurement {report.measurement} is not in the allow list"
            )
        for number, allowed in self.rtmrs.items():
            found = report.runtime_measurements[number] if report.runtime_measurements else None
            if found not in allowed:
                raise MeasurementNotAllowedError(f"RTMR {number} is {found}, which is not in the allow list")

    def __repr__(self) -> str:
        rtmrs = f", RTMR {sorted(self.rtmrs)}" if self.rtmrs else ""
        return f"MeasurementAllowList({len(self.measurements)} measurements{rtmrs})"


def _digests(name: str, values: Iterable[str]) -> frozenset[str]:
    if isinstance(values, str):
        raise ConfigurationError(f"{name} must be a list of measurements, not one string")
    digests = set()
    for value in values:
        try:
            digest = bytes.fromhex(value)
        except ValueError:
            digest = b""
        if len(digest) != 48:
            raise ConfigurationError(f"{name} holds {value!r}, which is not 48 bytes of hex")
        digests.add(digest.hex())
    if not digests:
        raise ConfigurationError(f"{name} is empty, so no evidence could pass")
    return frozenset(digests)


class AllOf:
    """Accepts evidence that every one of the policies accepts."""

    def __init__(self, *policies: VerificationPolicy) -> None:
        self.policies = _not_empty(policies)

    @property
    def compares(self) -> frozenset[str]:
        """The measurements that any of the policies compares."""
        return frozenset().union(*(compared_measurements(policy) for policy in self.policies))

    @property
    def minimum_gpus(self) -> int:
        """The most GPUs that any of the policies requires."""
        return max(map(required_gpus, self.policies))

    def verify(self, report: AttestationReport) -> None:
        """Raise the error of the first policy that refuses."""
        for policy in self.policies:
            apply_policy(policy, report)

    def __repr__(self) -> str:
        return f"AllOf({', '.join(map(repr, self.policies))})"


class AnyOf:
    """Accepts evidence that at least one of the policies accepts."""

    def __init__(self, *policies: VerificationPolicy) -> None:
        self.policies = _not_empty(policies)

    @property
    def compares(self) -> frozenset[str]:
        """The measurements that all of the policies compare."""
        first, *others = (compared_measurements(policy) for policy in self.policies)
        return first.intersection(*others)

    @property
    def minimum_gpus(self) -> int:
        """The fewest GPUs that any of the policies requires."""
        return min(map(required_gpus, self.policies))

    def verify(self, report: AttestationReport) -> None:
        """Raise the first policy's error if all refuse."""
        errors: list[AttestationError] = []
        for policy in self.policies:
            try:
                return apply_policy(policy, report)
            except AttestationError as error:
                errors.append(error)
        raise errors[0]

    def __repr__(self) -> str:
        return f"AnyOf({', '.join(map(repr, self.policies))})"


class UnsafeNoOp:
    """Accepts all genuine evidence: old firmware, guests that can be debugged, any software. For experiments only.

    The library that verifies TDX quotes still refuses those of a guest that can be debugged or migrated.
    """

    def verify(self, report: AttestationReport) -> None:
        """Do nothing."""

    def __repr__(self) -> str:
        return "UnsafeNoOp()"


def _not_empty(policies: tuple[VerificationPolicy, ...]) -> tuple[VerificationPolicy, ...]:
    if not policies:
        raise ConfigurationError("no policy is given; use UnsafeNoOp() to accept all genuine evidence")
    return policies


def apply_policy(policy: VerificationPolicy, report: AttestationReport) -> None:
    """Raise what the policy raises; a policy that returns a value instead is refused.

    A policy that answers False instead of raising would otherwise accept everything.
    """
    verify: Callable[[AttestationReport], object] = policy.verify
    if verify(report) is not None:
        raise ConfigurationError(f"{type(policy).__name__}.verify returned a value; it must raise to refuse")


def compared_measurements(policy: VerificationPolicy) -> frozenset[str]:
    """The measurements that a policy compares with trusted values; none for a policy that does not state it."""
    compares: Collection[str] = getattr(policy, "compares", ())
    return frozenset(compares)


def required_gpus(policy: VerificationPolicy) -> int:
    """How many GPUs a policy requires to be attested; none for a policy that does not state it."""
    minimum: int = getattr(policy, "minimum_gpus", 0)
    return minimum
