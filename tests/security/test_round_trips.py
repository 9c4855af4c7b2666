"""The model receives every conversation of either framework unchanged, in the published schema.

Every example is sealed, sent over loopback, decrypted by the embedded enclave and forwarded to a model server.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessageChunk
from support.scripted_upstream import Upstream, delta, finish, tool_call
from support.security.conversations import (
    PlainMessage,
    ToolCall,
    conversations,
    expected,
    langchain,
    llama_index,
    model_replies,
    received,
)
from support.wire_schemas import PARAMS

from langchain_prem import ChatPremEncrypted
from llama_index_prem import PremEncrypted
from prem_core.enclave import LocalEnclave

few_examples = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@dataclass
class Model:
    """Models of both frameworks on a real enclave, and the model server behind it."""

    langchain: ChatPremEncrypted
    llama_index: PremEncrypted
    server: Upstream = field(repr=False)

    def respond_with(self, *chunks: Any) -> None:
        self.server.respond_with(*chunks)

    def received(self) -> list[PlainMessage]:
        """The messages of the last request, which must satisfy the published schema."""
        _, request = self.server.requests[-1]
        assert [error.message for error in PARAMS.iter_errors(request)] == []
        return received(request["messages"])


@pytest.fixture(scope="module")
def model(upstream_server: list[Upstream]) -> Iterator[Model]:
    stub = Upstream()
    stub.respond_with(delta(content="Yes"), finish())
    upstream_server.append(stub)
    with LocalEnclave(upstream=upstream_server[0].url) as prem:
        made = {"model": "m", "max_retries": 0, **prem.client_options}
        yield Model(ChatPremEncrypted(**made), PremEncrypted(**made), stub)
    upstream_server.remove(stub)


@given(conversations())
@few_examples
def test_a_langchain_conversation_arrives_unchanged(model: Model, messages: list[PlainMessage]) -> None:
    model.langchain.invoke(langchain(messages))
    assert model.received() == expected(messages)


@given(conversations())
@few_examples
def test_a_llama_index_conversation_arrives_unchanged(model: Model, messages: list[PlainMessage]) -> None:
    model.llama_index.chat(llama_index(messages))
    assert model.received() == expected(messages)


# --- the messages of the model are sent back to it


def _pieces(text: str, size: int) -> list[str]:
    return [text[i : i + size] for i in range(0, len(text), size)]


def chunks(reply: PlainMessage, size: int) -> list[Any]:
    """`reply` as the chunks of a stream, with so many characters each."""
    messages = [delta(reasoning_content=piece) for piece in _pieces(reply.reasoning, size)]
    messages += [delta(content=piece) for piece in _pieces(reply.parts[0][1], size)]
    messages += [delta(refusal=piece) for piece in _pieces(reply.refusal, size)]
    for i, call in enumerate(reply.calls):
        messages.append(delta(tool_calls=[tool_call(i, call.id, call.name)]))
        messages += [
            delta(tool_calls=[tool_call(i, arguments=piece)])
            for piece in _pieces(json.dumps(call.arguments), size)
        ]
    return [*messages, finish("tool_calls" if reply.calls else "stop")]


def _langchain_invoked(model: Model) -> Callable[[list[PlainMessage]], None]:
    answer = model.langchain.invoke("Well?")
    return lambda results: model.langchain.invoke([("human", "Well?"), answer, *langchain(results)])  # type: ignore[return-value]


def _langchain_streamed(model: Model) -> Callable[[list[PlainMessage]], None]:
    answer: Any = None
    for chunk in model.langchain.stream("Well?"):
        answer = chunk if answer is None else answer + chunk
    assert isinstance(answer, AIMessageChunk)
    return lambda results: model.langchain.invoke([("human", "Well?"), answer, *langchain(results)])  # type: ignore[return-value]


def _llama_index_chatted(model: Model) -> Callable[[list[PlainMessage]], None]:
    question = llama_index([PlainMessage("user", [("text", "Well?")])])
    answer = model.llama_index.chat(question).message
    return lambda results: model.llama_index.chat([*question, answer, *llama_index(results)])  # type: ignore[return-value]


def _llama_index_streamed(model: Model) -> Callable[[list[PlainMessage]], None]:
    question = llama_index([PlainMessage("user", [("text", "Well?")])])
    *_, last = model.llama_index.stream_chat(question)
    return lambda results: model.llama_index.chat([*question, last.message, *llama_index(results)])  # type: ignore[return-value]


@pytest.mark.parametrize(
    "way", [_langchain_invoked, _langchain_streamed, _llama_index_chatted, _llama_index_streamed]
)
@given(reply=model_replies, size=st.integers(1, 40))
@few_examples
def test_a_response_is_sent_back_unchanged(
    way: Callable[[Model], Callable[[list[PlainMessage]], None]], model: Model, reply: PlainMessage, size: int
) -> None:
    model.respond_with(*chunks(reply, size))
    go_on = way(model)
    model.respond_with(delta(content="Yes"), finish())
    results = [
        PlainMessage("tool", [("text", f"result of {call.name}")], answers=call.id) for call in reply.calls
    ]
    go_on(results)
    assert model.received() == [PlainMessage("user", [("text", "Well?")]), reply, *results]


def test_the_comparison_detects_a_difference() -> None:
    one = PlainMessage("assistant", [("text", "a")], [ToolCall("1", "f", {"x": 1})])
    assert expected([one]) != expected(
        [PlainMessage("assistant", [("text", "a")], [ToolCall("1", "f", {"x": 2})])]
    )
    assert received([{"role": "user", "content": "a"}]) != received([{"role": "user", "content": "b"}])
