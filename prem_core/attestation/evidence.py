"""One attestation's evidence with everything that verifies it: to verify now, to keep, and to verify again offline."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from prem_core._crypto.files import write_atomically
from prem_core._errors import AttestationError, ConfigurationError
from prem_core.attestation.collateral import TdxCollateral
from prem_core.attestation.documents import MAX_DOCUMENT, Role
from prem_core.attestation.errors import (
    CollateralUnavailableError,
    MalformedEvidenceError,
    MissingGpuTokenError,
)
from prem_core.attestation.nvidia import verify_nvidia_tokens
from prem_core.attestation.policy import VerificationPolicy, required_gpus
from prem_core.attestation.report import FOREIGN_ROOT_NOT_PROVEN, NO_GPU_NOT_PROVEN, AttestationReport, Check
from prem_core.attestation.roots import VENDOR_ROOTS, TrustedRoots
from prem_core.attestation.snp import verify_snp_report
from prem_core.attestation.tdx import verify_tdx_quote

#: The file in a folder of saved evidence that names the others.
INDEX = "evidence.json"
_REPORT = "report.bin"
_TOKENS = "gpu-tokens.json"


@dataclass(frozen=True)
class Evidence:
    """What a machine answered to a nonce, and the documents to verify it with. It holds no secret.

    Attributes:
        model: The model whose machine answered.
        gateway_url: The gateway that forwarded the answer.
        collected_at: When it was collected.
        technology: What `report` is.
        nonce: The 64 bytes that `report` must answer.
        report: The SEV-SNP report, or the TDX quote.
        gpu_nonce: The 32 bytes that `gpu_tokens` must answer.
        gpu_tokens: NVIDIA's tokens; None if the gateway names no GPU.
        public_key: The enclave's public key that requests are sealed to, if it is known.
        documents: The documents by role.
        names: Their file names.
    """

    model: str
    gateway_url: str
    collected_at: datetime
    technology: Literal["sev-snp", "tdx"]
    nonce: bytes
    report: bytes
    gpu_nonce: bytes | None = None
    gpu_tokens: str | None = None
    public_key: bytes | None = None
    documents: Mapping[Role, bytes] = field(default_factory=dict)
    names: Mapping[Role, str] = field(default_factory=dict)

    def verify(
        self,
        *,
        policy: VerificationPolicy | None = None,
        now: datetime | None = None,
        require_key_binding: bool = False,
        roots: TrustedRoots = VENDOR_ROOTS,
    ) -> AttestationReport:
        """Verify the CPU's evidence and then the GPUs'.

        Args:
            policy: Decides whether genuine evidence is acceptable; `PremPolicy()` if None.
            now: The time; `collected_at` if None.
            require_key_binding: Whether a report that does not commit to the public key is refused.
            roots: The roots that are trusted.

        Raises:
            AttestationError: The evidence is not accepted; the class names the kind.
            ConfigurationError: An argument cannot be used, or the extra is not installed.
        """
        common: dict[str, Any] = {"policy": policy, "now": now or self.collected_at, "roots": roots}
        of_cpu = {"public_key": self.public_key, "require_key_binding": require_key_binding, **common}
        if self.technology == "sev-snp":
            report = verify_snp_report(
                self.report,
                vcek=self._document("vcek"),
                chain=self._document("chain"),
                crl=self._document("crl"),
                nonce=self.nonce,
                **of_cpu,
            )
        else:
            collateral = TdxCollateral.from_json(self._document("tdx").decode(errors="replace"))
            report = verify_tdx_quote(self.report, collateral=collateral, nonce=self.nonce, **of_cpu)
        if (roots.amd, roots.intel) != (VENDOR_ROOTS.amd, VENDOR_ROOTS.intel):
            report = report.without_proof_of(FOREIGN_ROOT_NOT_PROVEN)
        required = required_gpus(policy) if policy is not None else 0
        if self.gpu_tokens is None or self.gpu_nonce is None:
            return _with_enough_gpus(report.without_proof_of(NO_GPU_NOT_PROVEN), required)
        try:
            gpus = verify_nvidia_tokens(
                self.gpu_tokens,
                jwks=self._document("jwks").decode(errors="replace"),
                nonce=self.gpu_nonce,
                **common,
            )
        except AttestationError as error:
            error.checks = report.checks + error.checks
            raise
        return _with_enough_gpus(report.with_gpus(gpus), required)

    def _document(self, role: Role) -> bytes:
        try:
            return self.documents[role]
        except KeyError:
            raise CollateralUnavailableError(f"the evidence comes without its {role} document") from None

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the evidence and the documents to a folder, which is made if it does not exist.

        Files of earlier evidence there are replaced.

        Raises:
            OSError: A file cannot be written.
        """
        os.makedirs(folder, exist_ok=True)
        files: dict[str, bytes] = {self.names[role]: body for role, body in self.documents.items()}
        files[_REPORT] = self.report
        if self.gpu_tokens is not None:
            files[_TOKENS] = self.gpu_tokens.encode()
        index = {
            "model": self.model,
            "gateway_url": self.gateway_url,
            "collected_at": self.collected_at.isoformat(),
            "technology": self.technology,
            "nonce": self.nonce.hex(),
            "gpu_nonce": self.gpu_nonce.hex() if self.gpu_nonce is not None else None,
            "public_key": self.public_key.hex() if self.public_key is not None else None,
            "documents": dict(self.names),
        }
        # The index last: where it exists, the files that it names are complete.
        files[INDEX] = json.dumps(index, indent=2).encode() + b"\n"
        for name, body in files.items():
            write_atomically(os.path.join(folder, name), body, overwrite=True)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Evidence:
        """The evidence that `save` wrote.

        Raises:
            ConfigurationError: The folder has no saved evidence, or a file that it names is missing.
            MalformedEvidenceError: The index cannot be read.
        """
        try:
            index = json.loads(read_file(folder, INDEX))
            names: dict[Role, str] = index["documents"]
            tokens = index["gpu_nonce"] is not None
            return cls(
                model=index["model"],
                gateway_url=index["gateway_url"],
                collected_at=datetime.fromisoformat(index["collected_at"]),
                technology=index["technology"],
                nonce=bytes.fromhex(index["nonce"]),
                report=read_file(folder, _REPORT),
                gpu_nonce=bytes.fromhex(index["gpu_nonce"]) if tokens else None,
                gpu_tokens=read_file(folder, _TOKENS).decode() if tokens else None,
                public_key=bytes.fromhex(index["public_key"]) if index["public_key"] else None,
                documents={role: read_file(folder, name) for role, name in names.items()},
                names=names,
            )
        except OSError as error:
            raise ConfigurationError(
                f"{os.fsdecode(folder)} has no saved evidence: {os.path.basename(error.filename or '')} "
                "cannot be read"
            ) from None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise MalformedEvidenceError(f"{INDEX} is not the index of saved evidence") from None


def _with_enough_gpus(report: AttestationReport, required: int) -> AttestationReport:
    if len(report.gpus) < required:
        error = MissingGpuTokenError(
            f"{len(report.gpus)} GPUs are attested; the policy requires at least {required}"
        )
        error.checks = (*report.checks, Check(error.check, False, str(error)))
        raise error
    return report


def read_file(folder: str | os.PathLike[str], name: str) -> bytes:
    """The content of a document's file.

    Raises:
        OSError: It cannot be read.
        ValueError: The name is not one of a file in the folder, or the file is too large.
    """
    if os.path.basename(name) != name or name in ("", os.curdir, os.pardir):
        raise ValueError("not a file name")
    with open(os.path.join(folder, name), "rb") as file:
        body = file.read(MAX_DOCUMENT + 1)
    if len(body) > MAX_DOCUMENT:
        raise ValueError("the file is too large")
    return body
