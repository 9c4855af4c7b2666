"""SEV-SNP reports of 1184 bytes, signed by a P-384 key under an RSA-PSS chain."""

from __future__ import annotations

import dataclasses
import secrets
import struct
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from prem_core.attestation.report import SnpTcb
from prem_core.attestation.roots import TrustedRoots
from prem_core.attestation.snp import OID_CHIP_ID, OID_PRODUCT, OID_SPL, TCB_LAYOUT
from prem_core.enclave.evidence.certificates import (
    Authority,
    Binding,
    der,
    der_integer,
    pem_chain,
    report_data,
)

SnpFault = Literal[
    "bad_signature",
    "debug",
    "expired_certificate",
    "expired_crl",
    "foreign_chain",
    "foreign_crl",
    "foreign_root",
    "masked_chip",
    "migration",
    "no_crl",
    "old_tcb",
    "other_chip",
    "other_key",
    "other_product",
    "revoked",
    "short_report",
    "tcb_mismatch",
    "vlek",
    "vmpl",
    "wrong_nonce",
]

#: The processor's family and model by generation.
CPUID = {"Milan": (0x19, 0x01), "Genoa": (0x19, 0x11), "Turin": (0x1A, 0x02)}
POLICY = 0x30000  # SMT is allowed; the reserved bit that is always set


@dataclass(frozen=True)
class SnpEvidence:
    """A report and what is needed to verify it, as `verify_snp_report` takes it."""

    report: bytes
    vcek: bytes
    chain: bytes
    crl: bytes | None


@dataclass(frozen=True)
class SnpGuest:
    """What the report states of the guest and its processor."""

    generation: str = "Genoa"
    chip_id: bytes = bytes(range(1, 65))
    tcb: SnpTcb = SnpTcb(bootloader=10, tee=0, snp=23, microcode=84)  # noqa: RUF009 - frozen
    measurement: bytes = b"\x5a" * 48
    host_data: bytes = bytes(32)
    policy: int = POLICY
    vmpl: int = 0
    version: int = 3
    key_info: int = 0


class SnpIssuer:
    """AMD and one of its processors.

    Args:
        now: The time around which the certificates are valid.
        guest: What the reports state.
        key_size: The size of the RSA keys. AMD's have 4096 bits, which take a second to make.
    """

    def __init__(self, now: datetime, *, guest: SnpGuest | None = None, key_size: int = 2048) -> None:
        self.guest = guest or SnpGuest()
        self._key_size = key_size
        generation = self.guest.generation
        self._ark = Authority.root(f"ARK-{generation}", self._rsa_key(), now)
        self._ask = self._ark.authority(f"SEV-{generation}", self._rsa_key(), now)
        self._vcek = ec.generate_private_key(ec.SECP384R1())

    def _rsa_key(self) -> rsa.RSAPrivateKey:
        return rsa.generate_private_key(65537, self._key_size)

    @property
    def roots(self) -> TrustedRoots:
        """This issuer's root, to be trusted in tests."""
        return TrustedRoots(amd={self.guest.generation: frozenset({self._ark.pin})})

    def evidence(
        self,
        nonce: bytes,
        *,
        now: datetime,
        public_key: bytes = b"",
        binding: Binding = "nonce",
        fault: SnpFault | None = None,
    ) -> SnpEvidence:
        """A report that answers the nonce, with its certificates and the revocation list.

        Args:
            nonce: The 64 bytes to answer.
            now: The time around which the revocation list is valid.
            public_key: The enclave's public key.
            binding: Whether the report commits to the public key, and how.
            fault: What to make wrong.
        """
        ark, ask = self._ark, self._ask
        if fault in ("foreign_root", "foreign_crl"):
            foreign = Authority.root(f"ARK-{self.guest.generation}", self._rsa_key(), now)
        if fault == "foreign_root":
            ark, ask = foreign, foreign.authority(f"SEV-{self.guest.generation}", self._rsa_key(), now)
        certified = reported = self.guest
        match fault:
            case "debug":
                reported = dataclasses.replace(reported, policy=POLICY | 1 << 19)
            case "migration":
                reported = dataclasses.replace(reported, policy=POLICY | 1 << 18)
            case "vmpl":
                reported = dataclasses.replace(reported, vmpl=2)
            case "vlek":
                reported = dataclasses.replace(reported, key_info=1 << 2)
            case "other_chip":
                reported = dataclasses.replace(reported, chip_id=secrets.token_bytes(len(reported.chip_id)))
            case "masked_chip":
                reported = dataclasses.replace(reported, chip_id=bytes(64))
            case "old_tcb":
                certified = reported = dataclasses.replace(
                    reported, tcb=dataclasses.replace(reported.tcb, microcode=71)
                )
            case "tcb_mismatch":
                certified = dataclasses.replace(
                    certified, tcb=dataclasses.replace(certified.tcb, microcode=certified.tcb.microcode + 1)
                )
            case "other_product":
                certified = dataclasses.replace(
                    certified, generation="Milan" if certified.generation != "Milan" else "Genoa"
                )
            case "wrong_nonce":
                nonce = secrets.token_bytes(len(nonce))
            case "other_key":
                binding, public_key = "sha256", b"the key of another enclave"
        signer = self._vcek
        issuer = self._foreign_ask(now) if fault == "foreign_chain" else ask
        vcek = issuer.leaf(
            "SEV-VCEK",
            self._vcek,
            now,
            extensions=_vcek_extensions(certified),
            expired=fault == "expired_certificate",
        )
        if fault == "bad_signature":
            signer = ec.generate_private_key(ec.SECP384R1())
        report = _report(reported, report_data(binding, nonce, public_key), signer)
        crl_issuer = foreign if fault == "foreign_crl" else ark
        crl = crl_issuer.crl(
            now, [ask.certificate] if fault == "revoked" else [], expired=fault == "expired_crl"
        )
        return SnpEvidence(
            report=report[:-1] if fault == "short_report" else report,
            vcek=vcek.public_bytes(Encoding.DER),
            chain=pem_chain(ask.certificate, ark.certificate),
            crl=None if fault == "no_crl" else crl.public_bytes(Encoding.DER),
        )

    def _foreign_ask(self, now: datetime) -> Authority:
        """An authority of the same name that the root did not certify."""
        return Authority.root(f"SEV-{self.guest.generation}", self._rsa_key(), now)


def _vcek_extensions(guest: SnpGuest) -> dict[str, bytes]:
    # In Turin's certificates the identifier has 8 bytes.
    chip_id = guest.chip_id[:8] if guest.generation == "Turin" else guest.chip_id
    levels = {OID_SPL[name]: der_integer(getattr(guest.tcb, name)) for name in TCB_LAYOUT[guest.generation]}
    return {OID_PRODUCT: der(0x16, guest.generation.encode()), OID_CHIP_ID: chip_id, **levels}


def _report(guest: SnpGuest, data: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    tcb = bytearray(8)
    for name, offset in TCB_LAYOUT[guest.generation].items():
        tcb[offset] = getattr(guest.tcb, name)
    family, model = CPUID[guest.generation] if guest.version >= 3 else (0, 0)
    chip_id = guest.chip_id[:8].ljust(64, b"\0") if guest.generation == "Turin" else guest.chip_id
    report = bytearray(0x4A0)
    struct.pack_into("<IIQ", report, 0x00, guest.version, 0, guest.policy)
    struct.pack_into("<II8s", report, 0x30, guest.vmpl, 1, bytes(tcb))
    struct.pack_into("<I", report, 0x48, guest.key_info)
    struct.pack_into("64s48s32s", report, 0x50, data, guest.measurement, guest.host_data)
    struct.pack_into("8sBBB", report, 0x180, bytes(tcb), family, model, 1)
    struct.pack_into("64s8s", report, 0x1A0, chip_id, bytes(tcb))
    struct.pack_into("8s", report, 0x1F0, bytes(tcb))
    r, s = decode_dss_signature(key.sign(bytes(report[:0x2A0]), ec.ECDSA(hashes.SHA384())))
    report[0x2A0:0x2E8], report[0x2E8:0x330] = r.to_bytes(72, "little"), s.to_bytes(72, "little")
    return bytes(report)
