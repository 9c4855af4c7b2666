"""TDX quotes (DCAP, version 4) with the collateral that Intel would publish, under a P-256 root."""

from __future__ import annotations

import hashlib
import json
import secrets
import struct
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from prem_core.attestation.collateral import TdxCollateral
from prem_core.attestation.roots import TrustedRoots
from prem_core.enclave.evidence.certificates import (
    Authority,
    Binding,
    der,
    der_integer,
    der_oid,
    pem_chain,
    report_data,
)

TdxFault = Literal[
    "bad_qe_signature",
    "bad_signature",
    "changed_tcb_info",
    "debug",
    "expired_certificate",
    "expired_crl",
    "expired_tcb_info",
    "foreign_crl",
    "foreign_root",
    "migration",
    "other_key",
    "other_pce",
    "other_platform",
    "out_of_date",
    "revoked",
    "revoked_authority",
    "revoked_tcb",
    "sgx",
    "trailing_bytes",
    "wrong_nonce",
]

SGX_EXTENSION = "1.2.840.113741.1.13.1"
FMSPC, PCE_ID, PPID = bytes.fromhex("b0c06f000000"), bytes(2), bytes(range(16))
CPU_SVN = bytes((3, 3, 2, 2, 4, 1, 0, 5)) + bytes(8)
TEE_TCB_SVN = bytes((6, 1, 3)) + bytes(13)
PCE_SVN = 11
QE_SVN = 6
QE_SIGNER = hashlib.sha256(b"the embedded enclave's quoting enclave").digest()
QE_AUTH_DATA = bytes(range(32))
VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
ATTRIBUTES = 1 << 28  # virtualisation exceptions are disabled


@dataclass(frozen=True)
class TdxEvidence:
    """A quote and its collateral, as `verify_tdx_quote` takes them."""

    quote: bytes
    collateral: TdxCollateral


def _p256() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


class TdxIssuer:
    """Intel and one of its platforms.

    Args:
        now: The time around which the certificates are valid.
        measurement: The launch measurement (MRTD) of the quotes.
        rtmrs: The runtime measurements of the quotes.
    """

    def __init__(
        self,
        now: datetime,
        *,
        measurement: bytes = b"\x5a" * 48,
        rtmrs: tuple[bytes, bytes, bytes, bytes] = (b"\1" * 48, b"\2" * 48, b"\3" * 48, bytes(48)),
    ) -> None:
        self._measurement, self._rtmrs = measurement, rtmrs
        self._root = Authority.root("SGX Root CA", _p256(), now)
        self._pck_ca = self._root.authority("SGX PCK Platform CA", _p256(), now)
        self._pck_key, self._attestation_key, self._tcb_key = _p256(), _p256(), _p256()

    @property
    def roots(self) -> TrustedRoots:
        """This issuer's root, to be trusted in tests."""
        return TrustedRoots(intel=frozenset({self._root.pin}))

    def evidence(
        self,
        nonce: bytes,
        *,
        now: datetime,
        public_key: bytes = b"",
        binding: Binding = "nonce",
        fault: TdxFault | None = None,
    ) -> TdxEvidence:
        """A quote that answers the nonce, with its collateral.

        Args:
            nonce: The 64 bytes to answer.
            now: The time around which the collateral is valid.
            public_key: The enclave's public key.
            binding: Whether the quote commits to the public key, and how.
            fault: What to make wrong.
        """
        if fault == "wrong_nonce":
            nonce = secrets.token_bytes(len(nonce))
        elif fault == "other_key":
            binding, public_key = "sha256", b"the key of another enclave"
        root, pck_ca = self._root, self._pck_ca
        if fault == "foreign_root":
            root = Authority.root("SGX Root CA", _p256(), now)
            pck_ca = root.authority("SGX PCK Platform CA", _p256(), now)
        crl_ca = root.authority("SGX PCK Processor CA", _p256(), now) if fault == "foreign_crl" else pck_ca
        pck = pck_ca.leaf(
            "SGX PCK Certificate",
            self._pck_key,
            now,
            extensions={SGX_EXTENSION: _pck_extension()},
            expired=fault == "expired_certificate",
        )
        tcb_signer = root.leaf("SGX TCB Signing", self._tcb_key, now)
        body = self._body(report_data(binding, nonce, public_key), fault)
        quote = self._quote(body, pem_chain(pck, pck_ca.certificate, root.certificate), fault)
        tcb_info = json.dumps(_tcb_info(now, fault), separators=(",", ":"))
        qe_identity = json.dumps(_qe_identity(now), separators=(",", ":"))
        signed_info = (
            tcb_info.replace('"isvsvn":1', '"isvsvn":9') if fault == "changed_tcb_info" else tcb_info
        )
        signers = pem_chain(tcb_signer, root.certificate).decode()
        collateral = TdxCollateral(
            pck_crl_issuer_chain=pem_chain(crl_ca.certificate, root.certificate).decode(),
            root_ca_crl=root.crl(
                now, [pck_ca.certificate] if fault == "revoked_authority" else []
            ).public_bytes(Encoding.DER),
            pck_crl=crl_ca.crl(
                now, [pck] if fault == "revoked" else [], expired=fault == "expired_crl"
            ).public_bytes(Encoding.DER),
            tcb_info_issuer_chain=signers,
            tcb_info=tcb_info,
            tcb_info_signature=_signature(self._tcb_key, signed_info.encode()),
            qe_identity_issuer_chain=signers,
            qe_identity=qe_identity,
            qe_identity_signature=_signature(self._tcb_key, qe_identity.encode()),
        )
        return TdxEvidence(quote + b"\1" if fault == "trailing_bytes" else quote, collateral)

    def _body(self, data: bytes, fault: TdxFault | None) -> bytes:
        attributes = ATTRIBUTES
        if fault == "debug":
            attributes |= 1
        elif fault == "migration":
            attributes |= 1 << 29
        return struct.pack(
            "<16s48s48s8sQ8s48s48s48s48s48s48s48s48s64s",
            TEE_TCB_SVN,
            b"\x5b" * 48,  # the TDX module
            bytes(48),
            bytes(8),
            attributes,
            bytes.fromhex("e702060000000000"),
            self._measurement,
            bytes(48),
            bytes(48),
            bytes(48),
            *self._rtmrs,
            data,
        )

    def _quote(self, body: bytes, chain: bytes, fault: TdxFault | None) -> bytes:
        tee = 0 if fault == "sgx" else 0x81
        header = struct.pack("<HHIHH16s20s", 4, 2, tee, 0, 0, VENDOR, bytes(20))
        key = self._attestation_key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[
            1:
        ]
        qe_report = struct.pack(
            "<16sI28s16s32s32s32s96sHH60s64s",
            CPU_SVN,
            0,
            bytes(28),
            bytes.fromhex("1500000000000000e700000000000000"),
            hashlib.sha256(b"a quoting enclave").digest(),
            bytes(32),
            QE_SIGNER,
            bytes(96),
            2,
            QE_SVN,
            bytes(60),
            hashlib.sha256(key + QE_AUTH_DATA).digest(),
        )
        quote_key = _p256() if fault == "bad_signature" else self._attestation_key
        qe_key = _p256() if fault == "bad_qe_signature" else self._pck_key
        certification = (
            qe_report
            + _signature(qe_key, qe_report)
            + struct.pack("<H", len(QE_AUTH_DATA))
            + QE_AUTH_DATA
            + struct.pack("<HI", 5, len(chain))
            + chain
        )
        auth = (
            _signature(quote_key, header + body)
            + key
            + struct.pack("<HI", 6, len(certification))
            + certification
        )
        return header + body + struct.pack("<I", len(auth)) + auth


def _signature(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def _pck_extension() -> bytes:
    def entry(number: str, value: bytes) -> bytes:
        return der(0x30, der_oid(f"{SGX_EXTENSION}.{number}"), value)

    components = (entry(f"2.{index}", der_integer(svn)) for index, svn in enumerate(CPU_SVN, 1))
    tcb = der(0x30, *components, entry("2.17", der_integer(PCE_SVN)), entry("2.18", der(0x04, CPU_SVN)))
    yes = der(0x01, b"\xff")
    return der(
        0x30,
        entry("1", der(0x04, PPID)),
        entry("2", tcb),
        entry("3", der(0x04, PCE_ID)),
        entry("4", der(0x04, FMSPC)),
        entry("5", der(0x0A, b"\1")),
        entry("6", der(0x04, bytes(16))),
        entry("7", der(0x30, entry("7.1", yes), entry("7.2", yes), entry("7.3", yes))),
    )


def _times(now: datetime, *, expired: bool = False) -> dict[str, str]:
    end = now - timedelta(days=1) if expired else now + timedelta(days=30)
    form = "%Y-%m-%dT%H:%M:%SZ"
    return {"issueDate": (now - timedelta(days=30)).strftime(form), "nextUpdate": end.strftime(form)}


def _tcb_info(now: datetime, fault: TdxFault | None) -> dict[str, Any]:
    level = {
        "tcb": {
            "sgxtcbcomponents": [{"svn": svn} for svn in CPU_SVN],
            "pcesvn": PCE_SVN,
            "tdxtcbcomponents": [{"svn": svn} for svn in TEE_TCB_SVN],
        },
        "tcbDate": "2024-03-13T00:00:00Z",
        "tcbStatus": {"out_of_date": "OutOfDate", "revoked_tcb": "Revoked"}.get(fault or "", "UpToDate"),
    }
    module = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
    module_level = {"tcb": {"isvsvn": 1}, "tcbDate": "2024-03-13T00:00:00Z", "tcbStatus": "UpToDate"}
    fmspc = bytes(6) if fault == "other_platform" else FMSPC
    return {
        "id": "TDX",
        "version": 3,
        **_times(now, expired=fault == "expired_tcb_info"),
        "fmspc": fmspc.hex().upper(),
        "pceId": "0001" if fault == "other_pce" else PCE_ID.hex(),
        "tcbType": 0,
        "tcbEvaluationDataNumber": 17,
        "tdxModule": module,
        "tdxModuleIdentities": [{"id": "TDX_01", **module, "tcbLevels": [module_level]}],
        "tcbLevels": [level],
    }


def _qe_identity(now: datetime) -> dict[str, Any]:
    level = {"tcb": {"isvsvn": QE_SVN}, "tcbDate": "2024-03-13T00:00:00Z", "tcbStatus": "UpToDate"}
    return {
        "id": "TD_QE",
        "version": 2,
        **_times(now),
        "tcbEvaluationDataNumber": 17,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": "11000000000000000000000000000000",
        "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
        "mrsigner": QE_SIGNER.hex().upper(),
        "isvprodid": 2,
        "tcbLevels": [level],
    }
