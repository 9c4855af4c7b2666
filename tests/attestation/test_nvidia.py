"""NVIDIA's tokens: genuine ones are accepted, and each fault is refused with an error of its own."""

from __future__ import annotations

import dataclasses
import json
import sys
from datetime import timedelta
from typing import get_args

import jwt
import pytest
from support.attestation import GPU_NONCE, NOW, NVIDIA_FAULTS, verify_nvidia, verify_snp

from prem_core import ConfigurationError
from prem_core.attestation import (
    AttestationError,
    MalformedEvidenceError,
    TokenExpiredError,
    UnknownRootError,
)
from prem_core.enclave.evidence import NvidiaFault, NvidiaIssuer, SnpIssuer


def test_genuine_tokens_are_accepted_with_every_check(nvidia: NvidiaIssuer) -> None:
    report = verify_nvidia(nvidia)
    assert [(gpu.name, gpu.debug, gpu.secure_boot) for gpu in report.gpus] == [
        ("GPU-0", False, True),
        ("GPU-1", False, True),
    ]
    assert all(check.passed for check in report.checks)
    assert report.valid_until == NOW + timedelta(hours=1)
    json.dumps(report.as_dict())


@pytest.mark.parametrize("fault", get_args(NvidiaFault))
def test_each_fault_is_refused_with_its_error(nvidia: NvidiaIssuer, fault: NvidiaFault) -> None:
    error, check = NVIDIA_FAULTS[fault]
    with pytest.raises(AttestationError) as refused:
        verify_nvidia(nvidia, nvidia.evidence(GPU_NONCE, now=NOW, fault=fault))
    assert (type(refused.value), refused.value.check) == (error, check)
    assert refused.value.checks[-1].name == check


def test_a_key_that_the_jwks_does_not_hold_is_not_trusted(nvidia: NvidiaIssuer) -> None:
    other = {"keys": [{**NvidiaIssuer().jwks["keys"][0], "kid": "another"}]}
    with pytest.raises(UnknownRootError):
        verify_nvidia(nvidia, jwks=other)


@pytest.mark.parametrize("jwks", ["", "[]", "{}", '{"keys": []}', {"keys": "none"}, {"keys": [1]}])
def test_a_jwks_that_cannot_be_read_is_refused(nvidia: NvidiaIssuer, jwks: object) -> None:
    with pytest.raises(MalformedEvidenceError):
        verify_nvidia(nvidia, jwks=jwks)


def test_a_jwks_with_one_key_id_twice_is_refused(nvidia: NvidiaIssuer) -> None:
    with pytest.raises(MalformedEvidenceError, match="twice"):
        verify_nvidia(nvidia, jwks={"keys": nvidia.jwks["keys"] * 2})


def test_a_jwks_is_also_read_as_text(nvidia: NvidiaIssuer) -> None:
    assert verify_nvidia(nvidia, jwks=json.dumps(nvidia.jwks)).gpus


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        '[["JWT"], {}]',
        '[["JWT", 1], {}]',
        '[["JWT", "a.b.c"], {"GPU-0": 1}]',
        "[" * 100_000,
    ],
)
def test_text_of_another_form_is_refused(nvidia: NvidiaIssuer, text: str) -> None:
    with pytest.raises(MalformedEvidenceError):
        verify_nvidia(nvidia, text=text)


def test_every_changed_character_of_a_token_is_refused(nvidia: NvidiaIssuer) -> None:
    evidence = nvidia.evidence(GPU_NONCE, now=NOW)
    (kind, overall), tokens = json.loads(evidence.text)
    accepted = []
    for index, character in enumerate(overall):
        changed = overall[:index] + ("A" if character != "A" else "B") + overall[index + 1 :]
        try:
            verify_nvidia(nvidia, dataclasses.replace(evidence, text=json.dumps([[kind, changed], tokens])))
        except AttestationError:
            continue
        accepted.append(index)
    assert accepted == []


def test_the_issuers_clock_may_be_a_minute_ahead(nvidia: NvidiaIssuer) -> None:
    evidence = nvidia.evidence(GPU_NONCE, now=NOW)
    assert verify_nvidia(nvidia, evidence, now=NOW - timedelta(seconds=59)).gpus
    with pytest.raises(TokenExpiredError):
        verify_nvidia(nvidia, evidence, now=NOW - timedelta(seconds=61))


def test_a_token_is_expired_at_its_exact_end(nvidia: NvidiaIssuer) -> None:
    with pytest.raises(TokenExpiredError):
        verify_nvidia(nvidia, nvidia.evidence(GPU_NONCE, now=NOW), now=NOW + timedelta(hours=1))


def test_a_nonce_of_the_wrong_size_is_an_error_of_the_caller(nvidia: NvidiaIssuer) -> None:
    with pytest.raises(ConfigurationError, match="32"):
        verify_nvidia(nvidia, nonce=bytes(64))


def test_a_report_of_a_cpu_with_gpus_states_that_nothing_links_them(
    snp: SnpIssuer, nvidia: NvidiaIssuer
) -> None:
    cpu, gpus = verify_snp(snp), verify_nvidia(nvidia)
    both = cpu.with_gpus(gpus)
    assert (both.technology, both.gpus) == ("sev-snp", gpus.gpus)
    assert both.valid_until == gpus.valid_until
    assert both.checks == cpu.checks + gpus.checks
    assert any("Nothing links the GPUs to the CPU" in sentence for sentence in both.not_proven)
    assert len(set(both.not_proven)) == len(both.not_proven)


def test_a_critical_header_that_is_not_understood_is_refused(nvidia: NvidiaIssuer) -> None:
    evidence = nvidia.evidence(GPU_NONCE, now=NOW)
    (kind, overall), tokens = json.loads(evidence.text)
    claims = jwt.decode(overall, options={"verify_signature": False})
    token = jwt.encode(claims, nvidia._key, "ES384", headers={"kid": nvidia._kid, "crit": ["x"], "x": 1})
    text = json.dumps([[kind, token], tokens])
    with pytest.raises(MalformedEvidenceError):
        verify_nvidia(nvidia, dataclasses.replace(evidence, text=text))


def test_without_the_extra_the_error_names_it(nvidia: NvidiaIssuer, monkeypatch: pytest.MonkeyPatch) -> None:
    evidence = nvidia.evidence(GPU_NONCE, now=NOW)
    monkeypatch.setitem(sys.modules, "jwt", None)
    with pytest.raises(ConfigurationError, match=r"prem-encrypted\[attestation\]"):
        verify_nvidia(nvidia, evidence)
