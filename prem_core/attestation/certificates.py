"""Certificates and revocation lists: reading them, and checking signatures, validity and revocation."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from prem_core.attestation.errors import (
    CertificateExpiredError,
    CollateralExpiredError,
    MalformedEvidenceError,
    RevokedError,
    SignatureInvalidError,
)

T = TypeVar("T")

#: What `cryptography` raises for bytes that it cannot read or does not support.
UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


def _read(name: str, data: bytes, der: Callable[[bytes], T], pem: Callable[[bytes], T]) -> T:
    try:
        # AMD's chip certificates have the serial number 0, which `cryptography` reads with a warning.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Parsed a serial number which wasn't positive", Warning)
            return pem(data) if data.lstrip().startswith(b"-----BEGIN") else der(data)
    except UNREADABLE:
        raise MalformedEvidenceError(f"{name} cannot be read: it must be in DER or PEM") from None


def read_certificate(name: str, data: bytes) -> x509.Certificate:
    """Read one certificate, in DER or PEM."""
    certificate = _read(name, data, x509.load_der_x509_certificate, x509.load_pem_x509_certificate)
    _read_fields(name, certificate)
    return certificate


def read_chain(name: str, data: bytes) -> list[x509.Certificate]:
    """Read certificates that follow each other, in PEM."""
    certificates = _read(name, data, x509.load_pem_x509_certificates, x509.load_pem_x509_certificates)
    for certificate in certificates:
        _read_fields(name, certificate)
    return certificates


def _read_fields(name: str, certificate: x509.Certificate) -> None:
    """Read the fields that are parsed only when they are used, so that no later use can fail."""
    try:
        _ = (certificate.subject, certificate.issuer, certificate.extensions, certificate.public_key())
        _ = (certificate.not_valid_before_utc, certificate.not_valid_after_utc)
        _ = (certificate.signature_hash_algorithm, certificate.signature_algorithm_parameters)
    except UNREADABLE:
        raise MalformedEvidenceError(f"{name} cannot be read: a field of it is malformed") from None


def read_crl(name: str, data: bytes) -> x509.CertificateRevocationList:
    """Read a revocation list, in DER or PEM."""
    return _read(name, data, x509.load_der_x509_crl, x509.load_pem_x509_crl)


def pem_to_der(name: str, crl: bytes) -> bytes:
    """A revocation list in DER, from DER or PEM."""
    return read_crl(name, crl).public_bytes(Encoding.DER)


def spki_sha256(certificate: x509.Certificate) -> str:
    """The pin of a certificate: the SHA-256 of its DER SubjectPublicKeyInfo, in hex."""
    key = certificate.public_key()
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def check_issued(
    name: str, certificate: x509.Certificate, issuer_name: str, issuer: x509.Certificate
) -> None:
    """Check that the issuer is a CA and signed the certificate.

    Raises:
        SignatureInvalidError: If it is not, or did not.
    """
    try:
        is_ca = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        if not is_ca:
            raise ValueError("not a CA")
        certificate.verify_directly_issued_by(issuer)
    except (*UNREADABLE, InvalidSignature, x509.ExtensionNotFound):
        raise SignatureInvalidError(
            f"the {name} was not issued by the {issuer_name}", check="chain"
        ) from None


def check_certificate_time(name: str, certificate: x509.Certificate, now: datetime) -> datetime:
    """Check that the certificate is valid now; return when it expires."""
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < start:
        raise CertificateExpiredError(
            f"the {name} is valid from {start.isoformat()}; the time is {now.isoformat()}"
        )
    if now > end:
        raise CertificateExpiredError(
            f"the {name} expired at {end.isoformat()}; the time is {now.isoformat()}"
        )
    return end


def check_crl(
    name: str,
    crl: x509.CertificateRevocationList,
    issuer: x509.Certificate,
    certificates: Sequence[tuple[str, x509.Certificate]],
    now: datetime,
) -> datetime:
    """Check that the issuer signed the list, that the list is current, and that no certificate is on it.

    Args:
        name: What to call the list in an error.
        crl: The revocation list.
        issuer: The certificate authority of the list.
        certificates: Names and certificates of that authority.
        now: The time.

    Returns:
        When the next list is due.
    """
    key = issuer.public_key()
    try:
        signed = (
            crl.issuer == issuer.subject
            and isinstance(key, (rsa.RSAPublicKey, ec.EllipticCurvePublicKey))
            and crl.is_signature_valid(key)
        )
    except UNREADABLE:
        signed = False
    if not signed:
        raise SignatureInvalidError(
            f"the {name} was not signed by the certificates' issuer", check="revocation"
        )
    start, end = crl.last_update_utc, crl.next_update_utc
    if end is None:
        raise MalformedEvidenceError(
            f"the {name} does not state when the next one is due", check="revocation"
        )
    check_collateral_time(name, start, end, now)
    for certificate_name, certificate in certificates:
        if certificate.issuer != crl.issuer:
            raise MalformedEvidenceError(
                f"the {name} is not of the {certificate_name}'s issuer", check="revocation"
            )
        if crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None:
            raise RevokedError(f"the {certificate_name} is revoked")
    return end


def check_collateral_time(name: str, start: datetime, end: datetime, now: datetime) -> None:
    """Check that a signed list or document is current.

    Raises:
        CollateralExpiredError: If it is expired, or issued in the future.
    """
    if now < start:
        raise CollateralExpiredError(
            f"the {name} is valid from {start.isoformat()}; the time is {now.isoformat()}"
        )
    if now > end:
        raise CollateralExpiredError(
            f"the {name} expired at {end.isoformat()}; the time is {now.isoformat()}"
        )
