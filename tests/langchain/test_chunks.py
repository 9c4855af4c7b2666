"""Streamed and complete answers as messages: separate blocks, and metadata on one chunk only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.messages import AIMessageChunk, HumanMessage
from langchain_core.outputs import ChatGenerationChunk
from support.scripted_upstream import delta, finish, tool_call, usage

from langchain_prem import ChatPremEncrypted
from langchain_prem._responses import _MESSAGE, ChunkConverter
from prem_core import APIResponseValidationError, ChatCompletionChunk, LengthFinishReasonError, Protection
from prem_core.enclave import ScriptedEngine

Scripted = Callable[..., ChatPremEncrypted]

#: Reasoning, text and two parallel calls, their arguments interleaved, as the hardest streams have them.
MIXED = [
    delta(role="assistant", content=None),
    delta(reasoning_content="Two "),
    delta(reasoning_content="cities."),
    delta(content="Let me "),
    delta(content="look."),
    delta(tool_calls=[tool_call(0, "call_a", "get_weather", "")]),
    delta(tool_calls=[tool_call(1, "call_b", "get_weather", "")]),
    delta(tool_calls=[tool_call(0, arguments='{"location": '), tool_call(1, arguments='{"loc')]),
    delta(tool_calls=[tool_call(1, arguments='ation": "Tokyo"}'), tool_call(0, arguments='"Paris"}')]),
    finish("tool_calls"),
    usage(11, 7, reasoning=2),
]
CALLS = [("call_a", "get_weather", {"location": "Paris"}), ("call_b", "get_weather", {"location": "Tokyo"})]

PROTECTION = Protection(key_fingerprint="ab" * 32, key_source="fetched", reply_nonce="own")


async def added_up(model: ChatPremEncrypted, *, asynchronous: bool) -> AIMessageChunk:
    full: AIMessageChunk | None = None
    chunks = [c async for c in model.astream("?")] if asynchronous else list(model.stream("?"))
    for chunk in chunks:
        full = chunk if full is None else full + chunk
    assert full is not None
    return full


def calls_of(message: Any) -> list[tuple[str, str, dict[str, Any]]]:
    return [(call["id"], call["name"], call["args"]) for call in message.tool_calls]


def kinds(blocks: list[Any]) -> list[str]:
    return [block["type"] for block in blocks]


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("output_version", [None, "v1"])
async def test_reasoning_text_and_two_parallel_tool_calls_add_up_to_the_answer(
    scripted: Scripted, output_version: str | None, asynchronous: bool
) -> None:
    options = {"output_version": output_version} if output_version else {}
    full = await added_up(scripted(*MIXED, **options), asynchronous=asynchronous)

    assert calls_of(full) == CALLS
    assert not full.invalid_tool_calls
    assert full.text == "Let me look."
    blocks = full.content_blocks
    assert kinds(blocks) == ["reasoning", "text", "tool_call", "tool_call"]
    assert blocks[0]["reasoning"] == "Two cities."
    assert blocks[1]["text"] == "Let me look."
    assert [(b["id"], b["name"], b["args"]) for b in blocks[2:]] == CALLS


@pytest.mark.parametrize("output_version", [None, "v1"])
async def test_an_answer_that_is_not_streamed_has_the_same_blocks(
    scripted: Scripted, output_version: str | None
) -> None:
    options = {"output_version": output_version} if output_version else {}
    model = scripted(*MIXED, **options)
    for message in (model.invoke("?"), await model.ainvoke("?")):
        assert calls_of(message) == CALLS
        assert kinds(message.content_blocks) == ["reasoning", "text", "tool_call", "tool_call"]
        assert message.content_blocks[0]["reasoning"] == "Two cities."


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_stream_events_v3_keep_every_block_apart(scripted: Scripted, asynchronous: bool) -> None:
    model = scripted(*MIXED)
    if asynchronous:
        stream = await model.astream_events("?", version="v3")
        events = [event async for event in stream]
        message = await stream.output
    else:
        sync_stream = model.stream_events("?", version="v3")
        events = list(sync_stream)
        message = sync_stream.output

    assert calls_of(message) == CALLS
    assert kinds(message.content_blocks) == ["reasoning", "text", "tool_call", "tool_call"]
    finished = [event["content"] for event in events if event["event"] == "content-block-finish"]
    assert kinds(finished) == ["reasoning", "text", "tool_call", "tool_call"]
    assert [block["args"] for block in finished[2:]] == [args for _, _, args in CALLS]


def test_two_tool_calls_in_one_chunk_are_two_tool_calls(scripted: Scripted) -> None:
    both = [tool_call(0, "a", "f", '{"x": 1}'), tool_call(1, "b", "g", "{}")]
    full = None
    for chunk in scripted(delta(tool_calls=both), finish("tool_calls")).stream("?"):
        full = chunk if full is None else full + chunk
    assert full is not None
    assert calls_of(full) == [("a", "f", {"x": 1}), ("b", "g", {})]


def test_tool_calls_without_an_index_are_merged_by_order(scripted: Scripted) -> None:
    pieces = [
        delta(tool_calls=[{"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":'}}]),
        delta(tool_calls=[{"function": {"arguments": "1}"}}]),
        delta(tool_calls=[{"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}}]),
        finish("tool_calls"),
    ]
    assert calls_of(scripted(*pieces).invoke("?")) == [("a", "f", {"x": 1}), ("b", "g", {})]


def test_a_first_chunk_with_reasoning_and_null_content_is_kept(scripted: Scripted) -> None:
    chunks = list(
        scripted(delta(role="assistant", content=None, reasoning_content="Hm."), finish()).stream("?")
    )
    assert chunks[0].additional_kwargs["reasoning_content"] == "Hm."


def test_usage_and_metadata_are_on_one_chunk_only(scripted: Scripted) -> None:
    counting = [
        {**delta(content="a"), "usage": {"prompt_tokens": 11, "completion_tokens": 1, "total_tokens": 12}},
        {**delta(content="b"), "usage": {"prompt_tokens": 11, "completion_tokens": 2, "total_tokens": 13}},
        finish(),
        usage(11, 3),
    ]
    chunks = list(scripted(*counting).stream("?"))
    assert [c.usage_metadata for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].usage_metadata == {"input_tokens": 11, "output_tokens": 3, "total_tokens": 14}
    full = chunks[0]
    for chunk in chunks[1:]:
        full += chunk
    assert full.response_metadata["model_name"] == "scripted"
    assert full.response_metadata["finish_reason"] == "stop"
    assert full.response_metadata["model_provider"] == "prem"
    assert full.usage_metadata is not None
    assert full.usage_metadata["input_tokens"] == 11


def test_token_details_have_langchains_names(scripted: Scripted) -> None:
    message = scripted(delta(content="a"), finish(), usage(11, 7, reasoning=2, cached=5)).invoke("?")
    assert message.usage_metadata == {
        "input_tokens": 11,
        "output_tokens": 7,
        "total_tokens": 18,
        "input_token_details": {"cache_read": 5},
        "output_token_details": {"reasoning": 2},
    }


@pytest.mark.parametrize("stream_usage", [True, False])
def test_stream_usage_decides_whether_usage_is_requested(
    scripted: Scripted, engine: ScriptedEngine, stream_usage: bool
) -> None:
    chunks = list(scripted(delta(content="a"), finish(), usage(1, 1), stream_usage=stream_usage).stream("?"))
    assert (chunks[-1].usage_metadata is not None) is stream_usage
    assert ("stream_options" in engine.requests[-1].params) is stream_usage


def test_a_refusal_is_kept_and_shown_as_a_block(scripted: Scripted) -> None:
    model = scripted(delta(refusal="I can"), delta(refusal="not."), finish())
    full = None
    for chunk in model.stream("?"):
        full = chunk if full is None else full + chunk
    assert full is not None
    for message in (full, model.invoke("?")):
        assert message.additional_kwargs["refusal"] == "I cannot."
        assert message.content_blocks[0]["value"] == {"type": "refusal", "refusal": "I cannot."}


def test_logprobs_are_in_the_metadata(llm: Callable[..., ChatPremEncrypted]) -> None:
    model = llm(logprobs=True, top_logprobs=1)
    answer = model.invoke("Hello")
    full = None
    for chunk in model.stream("Hello"):
        full = chunk if full is None else full + chunk
    assert full is not None
    tokens = [entry["token"] for entry in answer.response_metadata["logprobs"]["content"]]
    assert "".join(tokens) == answer.content
    assert [entry["token"] for entry in full.response_metadata["logprobs"]["content"]] == tokens


@pytest.mark.parametrize("streamed", [False, True])
def test_arguments_truncated_by_the_token_limit_are_an_error_and_not_repaired(
    scripted: Scripted, streamed: bool
) -> None:
    cut = scripted(delta(tool_calls=[tool_call(0, "a", "pay", '{"amount": 10')]), finish("length"))
    with pytest.raises(LengthFinishReasonError):
        list(cut.stream("?")) if streamed else cut.invoke("?")


@pytest.mark.parametrize("reason", ["stop", "tool_calls", "content_filter"])
def test_truncated_arguments_are_an_error_whatever_the_finish_reason(scripted: Scripted, reason: str) -> None:
    cut = scripted(delta(tool_calls=[tool_call(0, "a", "pay", '{"amount": 10')]), finish(reason))
    with pytest.raises(APIResponseValidationError, match="arguments of a tool call are truncated"):
        list(cut.stream("?"))
    assert cut.invoke("?").tool_calls == []


def test_a_tool_call_without_a_name_is_an_invalid_tool_call(scripted: Scripted) -> None:
    message = scripted(
        delta(tool_calls=[{"index": 0, "id": "a", "type": "custom"}]), finish("tool_calls")
    ).invoke("?")
    assert message.tool_calls == []
    assert [bad["error"] for bad in message.invalid_tool_calls] == ["the call names no function"]


def test_text_truncated_by_the_token_limit_has_the_finish_reason_length(scripted: Scripted) -> None:
    message = scripted(delta(content="Once upon"), finish("length")).invoke("?")
    assert message.content == "Once upon"
    assert message.response_metadata["finish_reason"] == "length"


def test_arguments_that_are_not_json_are_an_invalid_tool_call(scripted: Scripted) -> None:
    message = scripted(delta(tool_calls=[tool_call(0, "a", "f", "no json")]), finish("tool_calls")).invoke(
        "?"
    )
    assert message.tool_calls == []
    assert [(bad["id"], bad["name"], bad["args"]) for bad in message.invalid_tool_calls] == [
        ("a", "f", "no json")
    ]
    assert kinds(message.content_blocks) == ["invalid_tool_call"]


async def test_several_answers_are_several_generations_and_counted_once(
    llm: Callable[..., ChatPremEncrypted],
) -> None:
    model = llm(n=2)
    for result in (
        model.generate([[HumanMessage("Hello")]]),
        await model.agenerate([[HumanMessage("Hello")]]),
    ):
        assert len(result.generations[0]) == 2
        assert [bool(g.message.usage_metadata) for g in result.generations[0]] == [True, False]  # type: ignore[attr-defined]


def test_several_answers_cannot_be_streamed(llm: Callable[..., ChatPremEncrypted]) -> None:
    with pytest.raises(ValueError, match="^n: a streamed answer can have one choice only"):
        list(llm(n=2).stream("Hello"))


@pytest.mark.parametrize(
    ("delta", "fields"),
    [
        ({"content": "a"}, {"content": "a"}),
        (
            {"content": "a", "reasoning_content": "b"},
            {"content": "a", "additional_kwargs": {"reasoning_content": "b"}},
        ),
        ({"refusal": "c"}, {"content": "", "additional_kwargs": {"refusal": "c"}}),
    ],
)
@pytest.mark.parametrize("logprobs", [None, {"content": []}])
def test_a_chunk_copied_from_the_prototype_equals_a_validated_one(
    delta: dict[str, str], fields: dict[str, Any], logprobs: Any
) -> None:
    chunk = ChatCompletionChunk.model_validate({"choices": [{"delta": delta, "logprobs": logprobs}]})
    converted, again = (ChunkConverter(PROTECTION, json_requested=False).convert(chunk) for _ in range(2))
    info = {"generation_info": {"logprobs": logprobs}} if logprobs else {}
    message = AIMessageChunk(**fields, response_metadata={"model_provider": "prem"})
    validated = ChatGenerationChunk(message=message, **info)
    assert converted is not None
    assert again is not None
    for one, other in ((converted, validated), (converted.message, message)):
        assert one.__dict__ == other.__dict__
        assert one.__pydantic_extra__ == other.__pydantic_extra__
        assert one.__pydantic_private__ == other.__pydantic_private__
        assert one.model_fields_set >= other.model_fields_set
    containers = [value for value in converted.message.__dict__.values() if isinstance(value, list | dict)]
    assert containers
    others = [*again.message.__dict__.values(), *_MESSAGE.__dict__.values()]
    assert not any(value is other for value in containers for other in others)


async def test_token_callbacks_are_called_once_for_each_chunk(llm: Callable[..., ChatPremEncrypted]) -> None:
    from langchain_core.callbacks import BaseCallbackHandler

    class Tokens(BaseCallbackHandler):
        def __init__(self) -> None:
            self.received: list[Any] = []

        def on_llm_new_token(self, token: Any, **_: Any) -> None:
            self.received.append(token)

    tokens, async_tokens = Tokens(), Tokens()
    text = "".join(c.text for c in llm().stream("Hello", config={"callbacks": [tokens]}))
    assert "".join(tokens.received) == text
    async for _ in llm().astream("Hello", config={"callbacks": [async_tokens]}):
        pass
    assert async_tokens.received == tokens.received
