"""AMD SEV-SNP: a report of 1184 bytes, signed by the chip's own key (VCEK).

Layout and algorithms: AMD's "SEV Secure Nested Paging Firmware ABI Specification" (56860) and "Versioned Chip
Endorsement Key Certificate and KDS Interface Specification" (57230).
"""

from __future__ import annotations

import struct
from dataclasses import asdict, dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from prem_core.attestation import report as reports
from prem_core.attestation._checks import (
    CheckLog,
    check_report_data,
    checked_nonce,
    checked_size,
    checked_time,
    decide,
)
from prem_core.attestation.certificates import (
    check_certificate_time,
    check_crl,
    check_issued,
    read_certificate,
    read_chain,
    read_crl,
    spki_sha256,
)
from prem_core.attestation.errors import (
    ChipMismatchError,
    MalformedEvidenceError,
    SignatureInvalidError,
    TcbMismatchError,
    UnknownRootError,
)
from prem_core.attestation.policy import PremPolicy, VerificationPolicy, compared_measurements
from prem_core.attestation.report import AttestationReport, SnpTcb
from prem_core.attestation.roots import VENDOR_ROOTS, TrustedRoots

REPORT_SIZE = 1184
SIGNED_SIZE = 0x2A0
#: r and s, little-endian; the rest of the signature's 512 bytes is zero.
SCALAR_SIZE = 72
#: Versions that have every field that is read here at its place.
VERSIONS = range(2, 6)
ECDSA_P384_SHA384 = 1
POLICY_MIGRATION = 1 << 18
POLICY_DEBUG = 1 << 19
#: Larger than any real one: chains and lists of AMD have some kilobytes.
MAX_COLLATERAL = 1 << 20

OID_PREFIX = "1.3.6.1.4.1.3704.1."
OID_PRODUCT = OID_PREFIX + "2"
OID_CHIP_ID = OID_PREFIX + "4"
OID_SPL = {
    "bootloader": OID_PREFIX + "3.1",
    "tee": OID_PREFIX + "3.2",
    "snp": OID_PREFIX + "3.3",
    "microcode": OID_PREFIX + "3.8",
    "fmc": OID_PREFIX + "3.9",
}
#: Where each number is in the report's eight bytes, by generation.
TCB_LAYOUT = {
    "Milan": {"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7},
    "Genoa": {"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7},
    "Turin": {"fmc": 0, "bootloader": 1, "tee": 2, "snp": 3, "microcode": 7},
}


@dataclass(frozen=True)
class SnpFields:
    """The fields of a report that are used here, unverified."""

    version: int
    policy: int
    vmpl: int
    report_data: bytes
    measurement: bytes
    host_data: bytes
    reported_tcb: bytes
    family: int
    model: int
    chip_id: bytes
    r: int
    s: int

    @property
    def generation(self) -> str | None:
        """The processor's generation; None for a report of version 2, which does not name it.

        Raises:
            ChipMismatchError: If the processor is not of a generation that is supported.
        """
        if self.version < 3:
            return None
        match self.family, self.model >> 4:
            case 0x19, 0x0:
                return "Milan"
            case 0x19, 0x1 | 0xA:
                return "Genoa"
            case 0x1A, 0x0 | 0x1:
                return "Turin"
        raise ChipMismatchError(
            f"the processor's family 0x{self.family:x}, model 0x{self.model:x} is not supported",
            check="product",
        )


def parse_snp_report(report: bytes) -> SnpFields:
    """Read the fields of a report. Nothing is verified: its use is to find the right certificate.

    Raises:
        MalformedEvidenceError: If it is not a report of a supported version, signed by a VCEK.
    """
    if len(report) != REPORT_SIZE:
        raise MalformedEvidenceError(
            f"the report has {len(report)} bytes; an SEV-SNP report has {REPORT_SIZE}"
        )
    version, policy = struct.unpack_from("<I4xQ", report, 0x00)
    vmpl, algorithm = struct.unpack_from("<II", report, 0x30)
    (key_info,) = struct.unpack_from("<I", report, 0x48)
    if version not in VERSIONS:
        raise MalformedEvidenceError(f"the report has version {version}; supported are 2 to {VERSIONS[-1]}")
    if algorithm != ECDSA_P384_SHA384:
        raise MalformedEvidenceError(f"the report is signed with algorithm {algorithm}, not with ECDSA P-384")
    if key_info >> 2 & 0b111:
        raise MalformedEvidenceError("the report is not signed by the chip's own key (VCEK)")
    scalars = SIGNED_SIZE + 2 * SCALAR_SIZE
    if any(report[scalars:]):
        raise MalformedEvidenceError("the bytes after the report's signature are not zero")
    return SnpFields(
        version=version,
        policy=policy,
        vmpl=vmpl,
        report_data=report[0x50:0x90],
        measurement=report[0x90:0xC0],
        host_data=report[0xC0:0xE0],
        reported_tcb=report[0x180:0x188],
        family=report[0x188],
        model=report[0x189],
        chip_id=report[0x1A0:0x1E0],
        r=int.from_bytes(report[SIGNED_SIZE : SIGNED_SIZE + SCALAR_SIZE], "little"),
        s=int.from_bytes(report[SIGNED_SIZE + SCALAR_SIZE : scalars], "little"),
    )


def read_tcb(generation: str, tcb: bytes) -> SnpTcb:
    """Read the eight bytes of a TCB version."""
    return SnpTcb(**{name: tcb[offset] for name, offset in TCB_LAYOUT[generation].items()})


def verify_snp_report(
    report: bytes,
    *,
    vcek: bytes,
    chain: bytes,
    crl: bytes | None,
    nonce: bytes,
    policy: VerificationPolicy | None = None,
    now: datetime,
    public_key: bytes | None = None,
    require_key_binding: bool = False,
    roots: TrustedRoots = VENDOR_ROOTS,
) -> AttestationReport:
    """Verify an AMD SEV-SNP report.

    Args:
        report: The report, 1184 bytes.
        vcek: The certificate of the chip's key, in DER or PEM.
        chain: AMD's intermediate (ASK) and root (ARK) certificates, in PEM.
        crl: AMD's revocation list for the generation, in DER or PEM. Without one, `PremPolicy` refuses.
        nonce: The 64 random bytes that the report must answer.
        policy: Decides whether the genuine report is acceptable; `PremPolicy()` if None.
        now: The time, with a time zone.
        public_key: The enclave's public key, to see whether the report commits to it.
        require_key_binding: Whether a report that does not commit to the public key is refused.
        roots: The roots that are trusted.

    Returns:
        What the report shows, and what it does not prove.

    Raises:
        AttestationError: If the report is not genuine, not fresh or not acceptable; the class names the kind.
        ConfigurationError: If the nonce or the time cannot be used.
    """
    policy = PremPolicy() if policy is None else policy
    now, nonce = checked_time(now), checked_nonce(nonce)
    with CheckLog() as log:
        fields = parse_snp_report(bytes(report))
        log.record("format", f"report of version {fields.version}")
        leaf, generation, revocation_checked, valid_until = _verify_chain(vcek, chain, crl, now, roots, log)
        _check_signature(report, fields, leaf)
        log.record("signature", "the report is signed by the chip's key")
        tcb = _check_chip(fields, leaf, generation, log)
        key_bound = check_report_data(
            fields.report_data,
            nonce=nonce,
            public_key=public_key,
            require_key_binding=require_key_binding,
            log=log,
        )
        debug, migratable = bool(fields.policy & POLICY_DEBUG), bool(fields.policy & POLICY_MIGRATION)
        log.record("debug", "debugging is enabled" if debug else "debugging is disabled", passed=not debug)
        compared = compared_measurements(policy)
        result = AttestationReport(
            technology="sev-snp",
            verified_at=now,
            valid_until=valid_until,
            product=generation,
            chip_id=fields.chip_id.hex(),
            tcb=asdict(tcb),
            measurement=fields.measurement.hex(),
            host_data=fields.host_data.hex(),
            debug=debug,
            migratable=migratable,
            vmpl=fields.vmpl,
            key_bound=key_bound,
            revocation_checked=revocation_checked,
            not_proven=tuple(
                sentence
                for sentence, applies in (
                    (reports.KEY_NOT_PROVEN, not key_bound),
                    (reports.MEASUREMENT_NOT_PROVEN, "measurement" not in compared),
                    (reports.CHIP_REVOCATION_NOT_PROVEN, revocation_checked),
                    (reports.REVOCATION_NOT_PROVEN, not revocation_checked),
                    (reports.PHYSICAL_NOT_PROVEN, True),
                )
                if applies
            ),
        )
        return decide(result, policy, log)


def _verify_chain(
    vcek: bytes, chain: bytes, crl: bytes | None, now: datetime, roots: TrustedRoots, log: CheckLog
) -> tuple[x509.Certificate, str, bool, datetime]:
    leaf = read_certificate(
        "the VCEK certificate", checked_size("the VCEK certificate", vcek, MAX_COLLATERAL)
    )
    certificates = read_chain(
        "the certificate chain", checked_size("the certificate chain", chain, MAX_COLLATERAL)
    )
    if len(certificates) != 2:
        raise MalformedEvidenceError(
            f"the chain has {len(certificates)} certificates; it must be ASK, then ARK"
        )
    ask, ark = certificates
    pin = spki_sha256(ark)
    generation = next((name for name, pins in roots.amd.items() if pin in pins), None)
    if generation not in TCB_LAYOUT:
        raise UnknownRootError(f"the root key (ARK) with SHA-256 {pin} is not a trusted root of AMD")
    log.record("root", f"AMD's root key of {generation}")
    named = (
        ("root certificate (ARK)", ark),
        ("intermediate certificate (ASK)", ask),
        ("VCEK certificate", leaf),
    )
    for (name, certificate), (issuer_name, issuer) in zip(named, (named[0], *named), strict=False):
        check_issued(name, certificate, issuer_name, issuer)
        if not _uses_pss_sha384(certificate):
            raise SignatureInvalidError(
                f"the {name} is not signed with RSASSA-PSS and SHA-384", check="chain"
            )
    log.record("chain", "VCEK, intermediate and root certificates")
    valid_until = min(check_certificate_time(name, certificate, now) for name, certificate in named)
    log.record("validity", f"the certificates are valid until {valid_until.isoformat()}")
    if crl is None:
        log.record("revocation", "no revocation list was given", passed=False)
    else:
        revoked = read_crl("the revocation list", checked_size("the revocation list", crl, MAX_COLLATERAL))
        due = check_crl("revocation list", revoked, ark, named[:2], now)
        log.record("revocation", f"no certificate is on the list, which is valid until {due.isoformat()}")
        valid_until = min(valid_until, due)
    return leaf, generation, crl is not None, valid_until


def _uses_pss_sha384(certificate: x509.Certificate) -> bool:
    return isinstance(certificate.signature_algorithm_parameters, padding.PSS) and isinstance(
        certificate.signature_hash_algorithm, hashes.SHA384
    )


def _check_signature(report: bytes, fields: SnpFields, leaf: x509.Certificate) -> None:
    key = leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise MalformedEvidenceError("the VCEK certificate does not hold a P-384 key")
    try:
        key.verify(encode_dss_signature(fields.r, fields.s), report[:SIGNED_SIZE], ec.ECDSA(hashes.SHA384()))
    except (InvalidSignature, ValueError):
        raise SignatureInvalidError("the report's signature does not verify with the chip's key") from None


def _check_chip(fields: SnpFields, leaf: x509.Certificate, generation: str, log: CheckLog) -> SnpTcb:
    extensions = _extensions(leaf)
    product = _product(extensions)
    if product != generation or fields.generation not in (None, generation):
        raise ChipMismatchError(
            f"the root is of {generation}, the certificate of {product or 'no known product'}, "
            f"the report of {fields.generation or 'no named product'}",
            check="product",
        )
    log.record("product", generation)
    chip_id = extensions.get(OID_CHIP_ID, b"")
    # Turin has identifiers of 8 bytes; the rest of the report's field is zero.
    expected_size = 8 if generation == "Turin" else 64
    if len(chip_id) != expected_size or fields.chip_id != chip_id.ljust(64, b"\0"):
        masked = "; the host hides the chip's identifier" if not any(fields.chip_id) else ""
        raise ChipMismatchError(f"the report is not of the chip that its certificate names{masked}")
    log.record("chip", "the report is of the certificate's chip")
    tcb = read_tcb(generation, fields.reported_tcb)
    certified = SnpTcb(**{name: _spl(extensions, name) for name in TCB_LAYOUT[generation]})
    # A VCEK is derived from one TCB version, so anything but equality means that they do not belong together.
    if tcb != certified:
        raise TcbMismatchError(f"the report's TCB is {tcb}; its certificate is for {certified}")
    log.record("certificate TCB", str(tcb))
    return tcb


def _extensions(leaf: x509.Certificate) -> dict[str, bytes]:
    return {
        extension.oid.dotted_string: extension.value.value
        for extension in leaf.extensions
        if isinstance(extension.value, x509.UnrecognizedExtension)
    }


def _product(extensions: dict[str, bytes]) -> str | None:
    """The generation: an IA5String such as ``Genoa`` or ``Milan-B0``."""
    value = extensions.get(OID_PRODUCT, b"")
    if len(value) < 2 or value[0] != 0x16 or value[1] != len(value) - 2:
        return None
    name = value[2:].decode("ascii", "replace").split("-")[0]
    return name if name in TCB_LAYOUT else None


def _spl(extensions: dict[str, bytes], name: str) -> int:
    """A security patch level: a DER INTEGER of 0 to 255."""
    value = extensions.get(OID_SPL[name], b"")
    digits = value[2:]
    valid = value[:1] == b"\x02" and len(digits) in (1, 2) and value[1] == len(digits)
    if not valid or (len(digits) == 1 and digits[0] > 127) or (len(digits) == 2 and digits[0] != 0):
        raise MalformedEvidenceError(f"the VCEK certificate has no readable security patch level for {name}")
    return digits[-1]
