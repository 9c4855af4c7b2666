"""What verified evidence shows, each check by name, and what it does not prove."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

Technology = Literal["sev-snp", "tdx", "nvidia"]

KEY_NOT_PROVEN = (
    "The evidence does not name the encryption key. A genuine machine answered this nonce; that the key belongs to "
    "the same machine is not proven."
)
MEASUREMENT_NOT_PROVEN = (
    "The measurement identifies the software only when it is compared with a value that you trust. "
    "It was not compared."
)
RUNTIME_MEASUREMENT_NOT_PROVEN = (
    "The launch measurement (MRTD) covers the virtual firmware. The kernel and the applications are in the runtime "
    "measurements (RTMR), which were not all compared."
)
CHIP_REVOCATION_NOT_PROVEN = (
    "AMD's revocation list covers its intermediate certificates. A list of revoked chips was not consulted."
)
REVOCATION_NOT_PROVEN = "No revocation list was given: a revoked certificate would not be noticed."
GPU_LINK_NOT_PROVEN = (
    "Nothing links the GPUs to the CPU: the tokens prove that genuine GPUs answered the nonce, not that they are in "
    "the same machine."
)
GPU_EVIDENCE_NOT_PROVEN = "NVIDIA's service judged the GPUs' evidence. The evidence itself was not seen here."
FOREIGN_ROOT_NOT_PROVEN = (
    "The roots that were trusted are not the vendors' own: that the machine is a genuine one is not proven."
)
NO_GPU_NOT_PROVEN = (
    "The gateway names no GPU for this model, and no GPU was attested. That it names none is not proven."
)
PHYSICAL_NOT_PROVEN = "Attestation does not exclude attacks with physical access to the machine."


@dataclass(frozen=True)
class Check:
    """One check of the evidence.

    Attributes:
        name: What was checked, for example ``nonce``.
        passed: Whether it passed. An accepted report can hold a check that did not pass, if its policy permits that.
        detail: What was found.
    """

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, order=False)
class SnpTcb:
    """The security version numbers of an SEV-SNP platform's firmware. Milan and Genoa have no `fmc`."""

    bootloader: int = 0
    tee: int = 0
    snp: int = 0
    microcode: int = 0
    fmc: int = 0

    def covers(self, floor: SnpTcb) -> bool:
        """Whether every number is at least the floor's."""
        mine, other = dataclasses.asdict(self), dataclasses.asdict(floor)
        return all(mine[name] >= other[name] for name in mine)

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in dataclasses.asdict(self).items())


@dataclass(frozen=True)
class GpuReport:
    """What NVIDIA's service attests of one GPU."""

    name: str
    ueid: str
    model: str
    driver_version: str
    vbios_version: str
    debug: bool
    secure_boot: bool


@dataclass(frozen=True)
class AttestationReport:
    """What verified evidence shows.

    Attributes:
        technology: ``sev-snp``, ``tdx`` or ``nvidia``.
        verified_at: The time that the verifier was given.
        valid_until: When the first certificate, revocation list or token that was used expires.
        product: The processor's generation; for TDX its FMSPC.
        chip_id: The processor's identifier in hex; for TDX the PPID.
        tcb: Security version numbers.
        tcb_status: TDX: the status that Intel's TCB info gives, for example ``UpToDate``.
        advisories: TDX: the security advisories that apply to the platform.
        measurement: The launch measurement in hex; for TDX the MRTD.
        runtime_measurements: TDX: RTMR 0 to 3 in hex.
        host_data: What the host gave the guest at its start, in hex; for TDX the MRCONFIGID.
        debug: Whether the guest, or any GPU, can be debugged.
        migratable: Whether the guest may be migrated to another machine.
        vmpl: SEV-SNP: the privilege level of the report's requester; 0 is the most privileged.
        key_bound: Whether the evidence commits to the public key that was given.
        revocation_checked: Whether revocation lists were checked.
        gpus: What is attested of each GPU.
        checks: Every check, in order.
        not_proven: What the evidence does not establish, one sentence each.
    """

    technology: Technology
    verified_at: datetime
    valid_until: datetime
    product: str = ""
    chip_id: str = ""
    tcb: Mapping[str, int] = field(default_factory=dict)
    tcb_status: str | None = None
    advisories: tuple[str, ...] = ()
    measurement: str | None = None
    runtime_measurements: tuple[str, ...] = ()
    host_data: str | None = None
    debug: bool = False
    migratable: bool = False
    vmpl: int | None = None
    key_bound: bool = False
    revocation_checked: bool = False
    gpus: tuple[GpuReport, ...] = ()
    checks: tuple[Check, ...] = ()
    not_proven: tuple[str, ...] = ()

    def with_gpus(self, gpus: AttestationReport) -> AttestationReport:
        """This report of a CPU, together with a report of `verify_nvidia_tokens`."""
        return dataclasses.replace(
            self,
            valid_until=min(self.valid_until, gpus.valid_until),
            gpus=self.gpus + gpus.gpus,
            debug=self.debug or gpus.debug,
            checks=self.checks + gpus.checks,
            not_proven=tuple(dict.fromkeys(self.not_proven + gpus.not_proven)),
        )

    def without_proof_of(self, *sentences: str) -> AttestationReport:
        """This report, with further sentences about what the evidence does not establish, first."""
        return dataclasses.replace(self, not_proven=(*sentences, *self.not_proven))

    def as_dict(self) -> dict[str, Any]:
        """The report in types that JSON has."""
        values = {name.name: getattr(self, name.name) for name in dataclasses.fields(self)}
        return {
            **values,
            "verified_at": self.verified_at.isoformat(),
            "valid_until": self.valid_until.isoformat(),
            "tcb": dict(self.tcb),
            "advisories": list(self.advisories),
            "runtime_measurements": list(self.runtime_measurements),
            "gpus": [dataclasses.asdict(gpu) for gpu in self.gpus],
            "checks": [dataclasses.asdict(check) for check in self.checks],
            "not_proven": list(self.not_proven),
        }
