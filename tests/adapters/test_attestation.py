"""Attestation with the models of both frameworks: what is required, reported and copied."""

from __future__ import annotations

import copy
import functools
import operator
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

from langchain_prem import ChatPremEncrypted
from llama_index_prem import PremEncrypted
from prem_core import AttestationError
from prem_core._protocol.attestation.settings import VERDICTS
from prem_core.attestation import AttestationReport, MeasurementAllowList
from prem_core.enclave import Exchange, LocalEnclave

CHAT = "/rvenc/chat/completions"


@pytest.fixture(scope="module")
def exchanges() -> list[Exchange]:
    return []


@pytest.fixture(scope="module")
def attested(exchanges: list[Exchange]) -> Iterator[LocalEnclave]:
    with LocalEnclave(respond=lambda request: "Hello", on_exchange=exchanges.append) as prem:
        yield prem


@pytest.fixture
def options(attested: LocalEnclave, exchanges: list[Exchange]) -> dict[str, Any]:
    """The settings of a model that requires attestation."""
    VERDICTS.clear()
    exchanges.clear()
    attested.attestation_faults = ()
    roots = attested.attestation_roots
    return {"model": "m", **attested.client_options, "attestation": "require", "attestation_roots": roots}


def prem_of_langchain(model: Any) -> Any:
    return model.invoke("Hi").response_metadata["prem"]


def prem_of_a_langchain_stream(model: Any) -> Any:
    return functools.reduce(operator.add, model.stream("Hi")).response_metadata["prem"]


def prem_of_llama_index(model: Any) -> Any:
    return model.complete("Hi").raw["prem"]


FRAMEWORKS = [
    (ChatPremEncrypted, prem_of_langchain),
    (ChatPremEncrypted, prem_of_a_langchain_stream),
    (PremEncrypted, prem_of_llama_index),
]


@pytest.mark.parametrize(("kind", "prem_of"), FRAMEWORKS)
def test_an_answer_reports_whether_the_enclave_was_attested_and_the_key_bound(
    kind: Any, prem_of: Any, options: dict[str, Any]
) -> None:
    prem = prem_of(kind(**options))
    assert (prem["attested"], prem["key_bound"]) == (True, False)
    prem = prem_of(kind(**{**options, "attestation": None}))
    assert (prem["attested"], prem["key_bound"]) == (False, False)


@pytest.mark.parametrize(("kind", "prem_of"), FRAMEWORKS)
def test_require_keeps_the_prompt_from_a_machine_that_fails(
    kind: Any, prem_of: Any, options: dict[str, Any], attested: LocalEnclave, exchanges: list[Exchange]
) -> None:
    attested.attestation_faults = ["old_tcb"]
    with pytest.raises(AttestationError):
        prem_of(kind(**options))
    assert CHAT not in [each.path for each in exchanges]


class OwnPolicy:
    """A policy that cannot be hashed."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return True

    def verify(self, report: AttestationReport) -> None:
        pass


@pytest.mark.parametrize(("kind", "prem_of"), FRAMEWORKS)
def test_a_policy_of_the_callers_own_is_applied_and_shared_with_copies(
    kind: Any, prem_of: Any, options: dict[str, Any]
) -> None:
    model = kind(**options, attestation_policy=OwnPolicy())
    assert prem_of(model)["attested"]
    assert copy.deepcopy(model).attestation_policy is model.attestation_policy
    assert copy.deepcopy(model)._client() is model._client()
    strict = kind(**options, attestation_policy=MeasurementAllowList(["00" * 48]))
    with pytest.raises(AttestationError):
        prem_of(strict)


@pytest.mark.parametrize(("kind", "prem_of"), FRAMEWORKS)
def test_an_unpickled_model_still_requires_attestation(
    kind: Any, prem_of: Any, options: dict[str, Any], attested: LocalEnclave, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREM_API_KEY", attested.api_key)
    model = pickle.loads(pickle.dumps(kind(**options)))
    assert model.attestation_roots == attested.attestation_roots
    assert prem_of(model)["attested"]


@pytest.mark.parametrize("kind", [ChatPremEncrypted, PremEncrypted])
def test_the_environment_sets_the_mode_of_models(
    kind: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    del options["attestation"]
    assert not kind(**options)._client()._requester.requires_attestation
    monkeypatch.setenv("PREM_ATTESTATION", "require")
    assert kind(**options)._client()._requester.requires_attestation
