"""Errors are instances of prem_core's class and of langchain-core's, and contain no response."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import langchain_core.exceptions as core
import pytest
from support.scripted_upstream import delta

import prem_core
from langchain_prem import ChatPremEncrypted, RefusalError
from langchain_prem._errors import CONDITIONS, combined_error_class, translate
from prem_core.enclave import LocalEnclave, ScriptedEngine

Make = Callable[..., ChatPremEncrypted]


@pytest.mark.parametrize(
    ("status", "ours", "theirs", "retryable"),
    [
        (400, prem_core.BadRequestError, core.ModelInvalidRequestError, False),
        (404, prem_core.NotFoundError, core.ModelNotFoundError, False),
        (413, prem_core.RequestTooLargeError, core.ModelInvalidRequestError, False),
        (429, prem_core.RateLimitError, core.ModelRateLimitError, True),
        (500, prem_core.InternalServerError, core.ModelAPIError, True),
        (503, prem_core.InternalServerError, core.ModelAPIError, True),
    ],
)
@pytest.mark.parametrize("way", ["invoke", "stream", "ainvoke", "astream"])
async def test_a_status_raises_an_error_of_both_packages(
    engine: ScriptedEngine,
    scripted_options: dict[str, Any],
    status: int,
    ours: Any,
    theirs: Any,
    retryable: bool,
    way: str,
) -> None:
    engine.replies = [prem_core.APIStatusError(status_code=status)]
    # Limits of its own: a rate limit would make the models of other tests wait.
    model = ChatPremEncrypted(model="m", limits=prem_core.Limits(), **scripted_options)
    with pytest.raises(ours) as caught:
        match way:
            case "invoke":
                model.invoke("?")
            case "stream":
                list(model.stream("?"))
            case "ainvoke":
                await model.ainvoke("?")
            case "astream":
                [_ async for _ in model.astream("?")]
    error = caught.value
    assert isinstance(error, theirs)
    assert error.is_retryable is retryable
    assert error.status_code == status
    assert not hasattr(error, "response")
    assert not hasattr(error, "request")


def test_a_wrong_key_and_a_missing_scope_raise_different_errors(enclave: LocalEnclave) -> None:
    wrong = ChatPremEncrypted(model="m", **{**enclave.client_options, "api_key": "sk_test_wrong"})
    with pytest.raises(core.ModelAuthenticationError) as caught:
        wrong.invoke("?")
    assert "sk_test_wrong" not in str(caught.value)
    with LocalEnclave(scopes=["audio.translation"]) as prem:
        model = ChatPremEncrypted(model="openai/gpt-oss-120b", **prem.client_options)
        with pytest.raises(core.ModelPermissionDeniedError) as denied:
            model.invoke("?")
    assert denied.value.scope == "chats.completion"  # type: ignore[attr-defined]
    assert "chats.completion" in str(denied.value)


def test_an_unreachable_service_is_a_connection_error() -> None:
    model = ChatPremEncrypted(
        model="m",
        api_key="sk_test_x",
        gateway_url="http://127.0.0.1:9",
        enclave_url="http://127.0.0.1:9",
        max_retries=0,
    )
    with pytest.raises(core.ModelConnectionError) as caught:
        model.invoke("?")
    assert isinstance(caught.value, prem_core.APIConnectionError)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_truncated_answer_is_an_error(scripted: Make, streamed: bool) -> None:
    model = scripted(delta(content="Once upon a time"), truncated=True)
    got = []
    with pytest.raises(prem_core.APIError):
        for chunk in model.stream("?") if streamed else [model.invoke("?")]:
            got.append(chunk.text)
    assert got == (["Once upon a time"] if streamed else [])


def test_every_condition_names_a_class_of_core() -> None:
    names = {name for _, name in CONDITIONS}
    assert {name for name in names if not hasattr(core, name)} == set()


@pytest.mark.parametrize("kind", sorted({k for k, _ in CONDITIONS}, key=lambda k: k.__name__))
def test_a_combined_error_survives_pickle_and_copy(kind: type[prem_core.PremError]) -> None:
    error = translate(kind("a message"))
    error.__dict__["support_id"] = "support_1"
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is type(error)
        assert again.args == error.args
        assert again.__dict__ == error.__dict__


def test_without_a_class_in_core_the_error_is_prem_cores_only() -> None:
    assert combined_error_class(prem_core.DecryptionError) is prem_core.DecryptionError
    refusal = combined_error_class(RefusalError)
    assert issubclass(refusal, RefusalError)
    assert (refusal is RefusalError) is not hasattr(core, "ModelRefusalError")


def test_a_prompt_longer_than_the_context_is_cores_context_overflow(
    engine: ScriptedEngine, scripted_options: dict[str, Any]
) -> None:
    engine.replies = [prem_core.APIStatusError(status_code=400, code="context_length_exceeded")]
    with pytest.raises(core.ContextOverflowError) as caught:
        ChatPremEncrypted(model="m", **scripted_options).invoke("?")
    assert isinstance(caught.value, prem_core.ContextLengthExceededError)
