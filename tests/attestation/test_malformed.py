"""Damaged evidence and collateral of every kind: refused with an `AttestationError`, and never another error."""

from __future__ import annotations

import dataclasses
import json
import random
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cryptography import x509
from support.attestation import GPU_NONCE, NONCE, NOW, verify_nvidia, verify_snp, verify_tdx

from prem_core.attestation import AttestationError, TdxCollateral
from prem_core.enclave.evidence import NvidiaIssuer, SnpIssuer, TdxIssuer

CHANGES = 100


def damaged(chance: random.Random, content: Any) -> Any:
    """The content with one to four changes: other bytes, missing bytes, additional bytes."""
    data = bytearray(content.encode() if isinstance(content, str) else content)
    for _ in range(chance.randrange(1, 5)):
        offset = chance.randrange(len(data))
        match chance.randrange(4):
            case 0:
                data[offset] ^= 1 << chance.randrange(8)
            case 1:
                data[offset] = chance.choice(b'0"[]{}-\n,:\x00\xff')
            case 2:
                del data[offset : offset + chance.randrange(1, 20)]
            case _:
                data[offset:offset] = chance.randbytes(chance.randrange(1, 8))
    return data.decode("utf-8", "replace") if isinstance(content, str) else bytes(data)


def refused_or_accepted(verify: Callable[..., object], *given: Any, **arguments: Any) -> None:
    """Some changes have no meaning, such as a line break in PEM; all others raise an `AttestationError`."""
    try:
        verify(*given, **arguments)
    except AttestationError as error:
        assert error.checks[-1].passed is False


@pytest.mark.parametrize("field", ["report", "vcek", "chain", "crl"])
def test_a_damaged_snp_report_or_certificate(snp: SnpIssuer, field: str) -> None:
    evidence, chance = snp.evidence(NONCE, now=NOW), random.Random(field)
    for _ in range(CHANGES):
        changed = dataclasses.replace(evidence, **{field: damaged(chance, getattr(evidence, field))})
        refused_or_accepted(verify_snp, snp, changed)


def changed_bytes(chain: bytes) -> Iterator[bytes]:
    """A chain in PEM, with each byte of its first certificate changed in turn."""
    end = b"-----END CERTIFICATE-----\n"
    first, rest = chain.split(end, 1)
    der = ssl.PEM_cert_to_DER_cert((first + end).decode())
    for offset in range(len(der)):
        changed = bytearray(der)
        changed[offset] ^= 1 << offset % 8
        yield ssl.DER_cert_to_PEM_cert(bytes(changed)).encode() + rest


def test_a_changed_byte_of_an_intermediate_certificate_of_amd(snp: SnpIssuer) -> None:
    evidence = snp.evidence(NONCE, now=NOW)
    genuine = x509.load_pem_x509_certificate(evidence.chain)
    for chain in changed_bytes(evidence.chain):
        try:
            verify_snp(snp, dataclasses.replace(evidence, chain=chain))
        except AttestationError:
            continue
        # One byte counts the unused bits of the signature. If the signature ends in zeros, another count is the same.
        changed = x509.load_pem_x509_certificate(chain)
        assert changed.tbs_certificate_bytes == genuine.tbs_certificate_bytes
        assert changed.signature == genuine.signature


def test_a_changed_byte_of_an_intermediate_certificate_of_intel(tdx: TdxIssuer) -> None:
    evidence = tdx.evidence(NONCE, now=NOW)
    for chain in changed_bytes(evidence.collateral.pck_crl_issuer_chain.encode()):
        # It is compared with the quote's certificate by its key and name, so a change elsewhere has no meaning.
        collateral = dataclasses.replace(evidence.collateral, pck_crl_issuer_chain=chain.decode())
        refused_or_accepted(verify_tdx, tdx, dataclasses.replace(evidence, collateral=collateral))


def test_a_damaged_tdx_quote(tdx: TdxIssuer) -> None:
    evidence, chance = tdx.evidence(NONCE, now=NOW), random.Random(1)
    for _ in range(3 * CHANGES):
        changed = dataclasses.replace(evidence, quote=damaged(chance, evidence.quote))
        refused_or_accepted(verify_tdx, tdx, changed)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(TdxCollateral)])
def test_damaged_tdx_collateral(tdx: TdxIssuer, field: str) -> None:
    evidence, chance = tdx.evidence(NONCE, now=NOW), random.Random(field)
    for _ in range(CHANGES):
        content = damaged(chance, getattr(evidence.collateral, field))
        collateral = dataclasses.replace(evidence.collateral, **{field: content})
        changed = dataclasses.replace(evidence, collateral=collateral)
        refused_or_accepted(verify_tdx, tdx, changed)


def test_damaged_nvidia_tokens(nvidia: NvidiaIssuer) -> None:
    evidence, chance = nvidia.evidence(GPU_NONCE, now=NOW), random.Random(2)
    for _ in range(3 * CHANGES):
        changed = dataclasses.replace(evidence, text=damaged(chance, evidence.text))
        refused_or_accepted(verify_nvidia, nvidia, changed)


def test_a_damaged_jwks(nvidia: NvidiaIssuer) -> None:
    evidence, chance = nvidia.evidence(GPU_NONCE, now=NOW), random.Random(3)
    for _ in range(CHANGES):
        jwks = damaged(chance, json.dumps(evidence.jwks))
        refused_or_accepted(verify_nvidia, nvidia, evidence, jwks=jwks)
