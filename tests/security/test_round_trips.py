"""Whatever users of either framework write arrives at the model as they wrote it, in the published schema's form.

Every example is sealed, sent over loopback, opened by the embedded enclave and passed on to a model server, whose
request is what is looked at.
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
    Call,
    Said,
    arrived,
    conversations,
    expected,
    langchain,
    llama_index,
    replies,
)
from support.wire_schemas import PARAMS

from langchain_prem import ChatPremEncrypted
from llama_index_prem import PremEncrypted
from prem_core.enclave import LocalEnclave

few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@dataclass
class Model:
    """A model of either framework on a real enclave, and the server behind that."""

    langchain: ChatPremEncrypted
    llama_index: PremEncrypted
    server: Upstream = field(repr=False)

    def says(self, *chunks: Any) -> None:
        self.server.says(*chunks)

    def asked(self) -> list[Said]:
        """What the last request's messages say, which satisfied the published schema."""
        _, request = self.server.requests[-1]
        assert [error.message for error in PARAMS.iter_errors(request)] == []
        return arrived(request["messages"])


@pytest.fixture(scope="module")
def model(upstream_server: list[Upstream]) -> Iterator[Model]:
    stub = Upstream()
    stub.says(delta(content="Yes"), finish())
    upstream_server.append(stub)
    with LocalEnclave(upstream=upstream_server[0].url) as prem:
        made = {"model": "m", "max_retries": 0, **prem.client_options}
        yield Model(ChatPremEncrypted(**made), PremEncrypted(**made), stub)
    upstream_server.remove(stub)


@given(conversations())
@few
def test_a_langchain_conversation_arrives_as_it_was_written(model: Model, said: list[Said]) -> None:
    model.langchain.invoke(langchain(said))
    assert model.asked() == expected(said)


@given(conversations())
@few
def test_a_llama_index_conversation_arrives_as_it_was_written(model: Model, said: list[Said]) -> None:
    model.llama_index.chat(llama_index(said))
    assert model.asked() == expected(said)


# --- what the model says goes back to it


def _pieces(text: str, size: int) -> list[str]:
    return [text[i : i + size] for i in range(0, len(text), size)]


def chunks(reply: Said, size: int) -> list[Any]:
    """`reply` as a server streams it, in pieces of so many characters."""
    said = [delta(reasoning_content=piece) for piece in _pieces(reply.reasoning, size)]
    said += [delta(content=piece) for piece in _pieces(reply.parts[0][1], size)]
    said += [delta(refusal=piece) for piece in _pieces(reply.refusal, size)]
    for i, call in enumerate(reply.calls):
        said.append(delta(tool_calls=[tool_call(i, call.id, call.name)]))
        said += [
            delta(tool_calls=[tool_call(i, arguments=piece)])
            for piece in _pieces(json.dumps(call.arguments), size)
        ]
    return [*said, finish("tool_calls" if reply.calls else "stop")]


def _langchain_invoked(model: Model) -> Callable[[list[Said]], None]:
    answer = model.langchain.invoke("Well?")
    return lambda results: model.langchain.invoke([("human", "Well?"), answer, *langchain(results)])  # type: ignore[return-value]


def _langchain_streamed(model: Model) -> Callable[[list[Said]], None]:
    answer: Any = None
    for chunk in model.langchain.stream("Well?"):
        answer = chunk if answer is None else answer + chunk
    assert isinstance(answer, AIMessageChunk)
    return lambda results: model.langchain.invoke([("human", "Well?"), answer, *langchain(results)])  # type: ignore[return-value]


def _llama_index_chatted(model: Model) -> Callable[[list[Said]], None]:
    question = llama_index([Said("user", [("text", "Well?")])])
    answer = model.llama_index.chat(question).message
    return lambda results: model.llama_index.chat([*question, answer, *llama_index(results)])  # type: ignore[return-value]


def _llama_index_streamed(model: Model) -> Callable[[list[Said]], None]:
    question = llama_index([Said("user", [("text", "Well?")])])
    *_, last = model.llama_index.stream_chat(question)
    return lambda results: model.llama_index.chat([*question, last.message, *llama_index(results)])  # type: ignore[return-value]


@pytest.mark.parametrize(
    "way", [_langchain_invoked, _langchain_streamed, _llama_index_chatted, _llama_index_streamed]
)
@given(reply=replies, size=st.integers(1, 40))
@few
def test_an_answer_goes_back_as_the_model_said_it(
    way: Callable[[Model], Callable[[list[Said]], None]], model: Model, reply: Said, size: int
) -> None:
    model.says(*chunks(reply, size))
    go_on = way(model)
    model.says(delta(content="Yes"), finish())
    results = [Said("tool", [("text", f"result of {call.name}")], answers=call.id) for call in reply.calls]
    go_on(results)
    assert model.asked() == [Said("user", [("text", "Well?")]), reply, *results]


def test_the_comparison_sees_a_difference() -> None:
    one = Said("assistant", [("text", "a")], [Call("1", "f", {"x": 1})])
    assert expected([one]) != expected([Said("assistant", [("text", "a")], [Call("1", "f", {"x": 2})])])
    assert arrived([{"role": "user", "content": "a"}]) != arrived([{"role": "user", "content": "b"}])
