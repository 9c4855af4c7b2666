"""Requests: where their parameters come from, and what is sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langchain_core.rate_limiters import InMemoryRateLimiter
from support.wire_schemas import Opened

from langchain_prem import ChatPremEncrypted
from prem_core import InvalidParameterError

Make = Callable[..., ChatPremEncrypted]


def asked(seen: Any) -> dict[str, Any]:
    return Opened.request(seen.chats[-1].request_body).params


def test_parameters_of_the_call_replace_those_of_the_model(llm: Make, seen: Any) -> None:
    llm(temperature=0.1, max_tokens=9, stop=["a"]).invoke("Hello", temperature=0.9, stop=["b"])
    params = asked(seen)
    assert (params["temperature"], params["max_tokens"], params["stop"]) == (0.9, 9, ["b"])


def test_parameters_that_are_not_set_are_not_sent(llm: Make, seen: Any) -> None:
    llm().invoke("Hello")
    assert set(asked(seen)) == {"model", "messages"}


def test_a_stream_requests_its_usage(llm: Make, seen: Any) -> None:
    list(llm().stream("Hello"))
    params = asked(seen)
    assert params["stream"] is True
    assert params["stream_options"] == {"include_usage": True}


def test_langchains_metadata_is_not_sent_and_request_metadata_is(llm: Make, seen: Any) -> None:
    llm(metadata={"trace": "1"}, request_metadata={"ward": "7"}).invoke("Hello")
    assert asked(seen)["metadata"] == {"ward": "7"}


@pytest.mark.parametrize("kwargs", [{"temperature": 3}, {"top_logprobs": 21}, {"nonsense": 1}, {"user": "x"}])
async def test_a_parameter_that_the_schema_forbids_is_an_error_before_anything_is_sent(
    llm: Make, seen: Any, kwargs: dict[str, Any]
) -> None:
    name = next(iter(kwargs))
    for call in (lambda: llm().invoke("Hello", **kwargs), lambda: list(llm().stream("Hello", **kwargs))):
        with pytest.raises(InvalidParameterError, match=f"^{name}"):
            call()
    with pytest.raises(InvalidParameterError, match=f"^{name}"):
        await llm().ainvoke("Hello", **kwargs)
    assert seen.exchanges == []


def test_extra_body_passes_names_through_unchecked(llm: Make) -> None:
    # The embedded enclave holds to the published schema, and so shows that the name arrived.
    from prem_core import BadRequestError

    with pytest.raises(BadRequestError, match="top_k"):
        llm(extra_body={"top_k": 4}).invoke("Hello")
    llm(extra_body={"seed": 4}).invoke("Hello")


@pytest.fixture(autouse=True)
def forgive_unschematic_bodies(gateway_saw: Any) -> Any:
    """The test above sends, on purpose, what the schema does not know."""
    yield
    gateway_saw.problems[:] = [p for p in gateway_saw.problems if p != "$: additionalProperties"]


def test_the_profile_is_known_for_known_models_and_empty_for_others(llm: Make) -> None:
    known = llm().profile
    assert known is not None
    assert known["max_input_tokens"] == 131_072
    assert known["structured_output"] is True
    assert llm(model="somebody/else").profile is None
    assert llm(profile={"max_input_tokens": 5}).profile == {"max_input_tokens": 5}


def test_tracing_parameters_name_the_provider_and_the_calls_model(llm: Make) -> None:
    params = llm(temperature=0.5, stop="x", max_completion_tokens=7)._get_ls_params(model="other")
    assert params["ls_provider"] == "prem"
    assert params["ls_model_name"] == "other"
    assert params["ls_temperature"] == 0.5
    assert params["ls_max_tokens"] == 7
    assert params["ls_stop"] == ["x"]


def test_counting_tokens_downloads_nothing(llm: Make) -> None:
    model = llm()
    assert model.get_num_tokens("four chars or so") == 4
    assert model.get_num_tokens_from_messages([HumanMessage("Hello there")]) > 0
    counted = llm(custom_get_token_ids=lambda text: [0] * len(text))
    assert counted.get_num_tokens("abc") == 3


async def test_langchains_rate_limiter_is_acquired_once_for_each_request(llm: Make) -> None:
    class Counting(InMemoryRateLimiter):
        acquired = 0

        def acquire(self, *, blocking: bool = True) -> bool:
            Counting.acquired += 1
            return super().acquire(blocking=blocking)

        async def aacquire(self, *, blocking: bool = True) -> bool:
            Counting.acquired += 1
            return await super().aacquire(blocking=blocking)

    model = llm(rate_limiter=Counting(requests_per_second=1000, max_bucket_size=10))
    model.invoke("Hello")
    list(model.stream("Hello"))
    await model.ainvoke("Hello")
    assert Counting.acquired == 3


def test_an_empty_model_name_is_an_error() -> None:
    with pytest.raises(ValueError, match="model"):
        ChatPremEncrypted(model="", api_key="sk_test_x")


def test_a_missing_key_is_named_at_the_first_call() -> None:
    model = ChatPremEncrypted(model="m")
    with pytest.raises(ValueError, match="PREM_API_KEY"):
        model.invoke("Hello")


def test_every_way_of_calling_gives_the_same_answer(llm: Make) -> None:
    model = llm(reasoning_effort="none")
    whole = model.invoke("Hello").text
    assert "".join(chunk.text for chunk in model.stream("Hello")) == whole
    assert [message.text for message in model.batch(["Hello", "Hello"])] == [whole, whole]
    streamed = llm(streaming=True, reasoning_effort="none").invoke("Hello")
    assert streamed.text == whole
    assert streamed.response_metadata["finish_reason"] == "stop"
