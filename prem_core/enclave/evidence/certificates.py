"""Certificate authorities for made-up evidence: RSA-PSS as AMD uses it, ECDSA P-256 as Intel does."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
Binding = Literal["nonce", "sha512", "sha256"]

YEAR = timedelta(days=365)


def report_data(binding: Binding, nonce: bytes, public_key: bytes) -> bytes:
    """The 64 bytes that a report commits to: the nonce alone, or the nonce and the public key."""
    if binding == "sha512":
        return hashlib.sha512(nonce + public_key).digest()
    if binding == "sha256":
        return hashlib.sha256(nonce).digest() + hashlib.sha256(public_key).digest()
    return nonce


@dataclass(frozen=True)
class Authority:
    """A key and its certificate, with which other certificates and revocation lists are signed."""

    key: PrivateKey
    certificate: x509.Certificate

    @classmethod
    def root(cls, name: str, key: PrivateKey, now: datetime, *, expired: bool = False) -> Authority:
        """A self-signed authority."""
        subject = _name(name)
        return cls(key, _sign(_builder(subject, subject, key, now, ca=True, expired=expired), key))

    def authority(self, name: str, key: PrivateKey, now: datetime, *, expired: bool = False) -> Authority:
        """An authority below this one."""
        builder = _builder(_name(name), self.certificate.subject, key, now, ca=True, expired=expired)
        return Authority(key, _sign(builder, self.key))

    def leaf(
        self,
        name: str,
        key: PrivateKey,
        now: datetime,
        *,
        extensions: Mapping[str, bytes] | None = None,
        expired: bool = False,
    ) -> x509.Certificate:
        """A certificate that signs no others, with extensions in DER."""
        builder = _builder(_name(name), self.certificate.subject, key, now, ca=False, expired=expired)
        for oid, value in (extensions or {}).items():
            builder = builder.add_extension(
                x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value), critical=False
            )
        return _sign(builder, self.key)

    def crl(
        self, now: datetime, revoked: Iterable[x509.Certificate] = (), *, expired: bool = False
    ) -> x509.CertificateRevocationList:
        """The list of revoked certificates."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - timedelta(days=30))
            .next_update(now - timedelta(days=1) if expired else now + timedelta(days=30))
            .add_extension(x509.CRLNumber(1), critical=False)
            .add_extension(_key_identifier(self.key), critical=False)
        )
        for certificate in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(certificate.serial_number)
            builder = builder.add_revoked_certificate(entry.revocation_date(now - timedelta(days=2)).build())
        if isinstance(self.key, rsa.RSAPrivateKey):
            return builder.sign(self.key, hashes.SHA384(), rsa_padding=_pss())
        return builder.sign(self.key, hashes.SHA256())

    @property
    def pin(self) -> str:
        """The SHA-256 of the SubjectPublicKeyInfo, in hex."""
        spki = self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha256(spki).hexdigest()


def pem_chain(*certificates: x509.Certificate) -> bytes:
    """Certificates in PEM, one after the other."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def _name(name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Embedded enclave, for tests only"),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: PrivateKey, now: datetime, *, ca: bool, expired: bool
) -> x509.CertificateBuilder:
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
    )
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 2 * YEAR)
        .not_valid_after(now - timedelta(days=1) if expired else now + 10 * YEAR)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(
                **usage,
                digital_signature=not ca,
                key_cert_sign=ca,
                crl_sign=ca,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _sign(builder: x509.CertificateBuilder, key: PrivateKey) -> x509.Certificate:
    builder = builder.add_extension(_key_identifier(key), critical=False)
    if isinstance(key, rsa.RSAPrivateKey):
        return builder.sign(key, hashes.SHA384(), rsa_padding=_pss())
    return builder.sign(key, hashes.SHA256())


def _key_identifier(key: PrivateKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())


def _pss() -> padding.PSS:
    return padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=48)


def der(tag: int, *content: bytes) -> bytes:
    """A DER value of less than 64 KiB: the tag, the length, the content."""
    body = b"".join(content)
    if len(body) < 0x80:
        return bytes((tag, len(body))) + body
    size = len(body).to_bytes(2 if len(body) > 0xFF else 1, "big")
    return bytes((tag, 0x80 | len(size))) + size + body


def der_integer(value: int) -> bytes:
    """A DER INTEGER that is not negative."""
    return der(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def der_oid(dotted: str) -> bytes:
    """A DER OBJECT IDENTIFIER."""
    first, second, *rest = map(int, dotted.split("."))
    body = bytearray((first * 40 + second,))
    for arc in rest:
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(arc & 0x7F | 0x80)
        body += bytes(reversed(groups))
    return der(0x06, bytes(body))
