"""Streamed answers as events of the Messages API."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.messages_api import API, accumulate, body, events, stream, translate
from support.scripted_upstream import delta, finish, tool_call, usage

from prem_core import APIResponseValidationError, LengthFinishReasonError
from prem_core._apis.base import ApiError
from prem_core._protocol.response_types import ChatCompletionChunk, read_value

THINK = body(stream=True, thinking={"type": "adaptive"})


def kinds(sent: Sequence[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in sent]


def calls(*parts: dict[str, Any]) -> dict[str, Any]:
    return delta(tool_calls=list(parts))


def blocks(*chunks: dict[str, Any], reason: str = "tool_calls") -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = accumulate(stream([*chunks, finish(reason)]))["content"]
    return content


def test_a_text_answer_has_the_events_in_their_order() -> None:
    sent = stream(
        [delta(role="assistant", content="Hel"), delta(content="lo"), finish(), usage(10, 4, cached=3)]
    )
    assert kinds(sent) == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    message = sent[0]["message"]
    assert (message["id"], message["role"], message["content"]) == ("msg_chatcmpl-1", "assistant", [])
    assert message["stop_reason"] is None
    whole = accumulate(sent)
    assert whole["content"] == [{"type": "text", "text": "Hello"}]
    assert whole["stop_reason"] == "end_turn"
    assert whole["usage"] == {
        "input_tokens": 7,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 3,
        "output_tokens": 4,
    }


def test_thinking_comes_in_a_block_before_the_text_and_ends_with_its_signature() -> None:
    sent = stream(
        [delta(reasoning_content="Hm"), delta(reasoning_content="."), delta(content="Hi"), finish()], THINK
    )
    assert accumulate(sent)["content"] == [
        {"type": "thinking", "thinking": "Hm.", "signature": "unsigned"},
        {"type": "text", "text": "Hi"},
    ]
    assert [event["delta"]["type"] for event in sent if event["type"] == "content_block_delta"] == [
        "thinking_delta",
        "thinking_delta",
        "signature_delta",
        "text_delta",
    ]


def test_reasoning_that_was_not_requested_becomes_pings() -> None:
    sent = stream([*[delta(reasoning_content="x")] * 120, delta(content="Hi"), finish()])
    assert kinds(sent).count("ping") == 2
    assert accumulate(sent)["content"] == [{"type": "text", "text": "Hi"}]


def test_omitted_thinking_is_an_empty_block() -> None:
    request = body(stream=True, thinking={"type": "adaptive", "display": "omitted"})
    sent = stream([delta(reasoning_content="secret"), delta(content="Hi"), finish()], request)
    assert "secret" not in json.dumps(sent)
    assert accumulate(sent)["content"][0] == {"type": "thinking", "thinking": "", "signature": "unsigned"}


def test_the_arguments_of_a_tool_call_are_streamed_as_they_arrive() -> None:
    sent = stream(
        [
            delta(content="I look."),
            calls(tool_call(0, "t1", "look")),
            calls(tool_call(0, arguments='{"at":')),
            calls(tool_call(0, arguments='"a"}')),
            finish("tool_calls"),
        ]
    )
    parts = [e["delta"]["partial_json"] for e in sent if e.get("delta", {}).get("type") == "input_json_delta"]
    assert parts == ['{"at":', '"a"}']
    assert accumulate(sent)["stop_reason"] == "tool_use"
    assert accumulate(stream([delta(content="a"), finish()]))["stop_reason"] == "end_turn"


@pytest.mark.parametrize(
    "parts",
    [
        # One after the other
        [(0, "t1", "a", ""), (0, None, None, '{"x":1}'), (1, "t2", "b", ""), (1, None, None, '{"y":2}')],
        # Names first
        [(0, "t1", "a", ""), (1, "t2", "b", ""), (0, None, None, '{"x":1}'), (1, None, None, '{"y":2}')],
        # Mixed
        [
            (0, "t1", "a", '{"x"'),
            (1, "t2", "b", '{"y"'),
            (0, None, None, ":1"),
            (1, None, None, ":2}"),
            (0, None, None, "}"),
        ],
        # Whole
        [(0, "t1", "a", '{"x":1}'), (1, "t2", "b", '{"y":2}')],
    ],
)
def test_parallel_tool_calls_are_blocks_one_after_the_other(parts: list[Any]) -> None:
    assert blocks(*(calls(tool_call(*part)) for part in parts)) == [
        {"type": "tool_use", "id": "t1", "name": "a", "input": {"x": 1}},
        {"type": "tool_use", "id": "t2", "name": "b", "input": {"y": 2}},
    ]


def test_a_tool_call_without_arguments_has_an_empty_input() -> None:
    found = blocks(calls(tool_call(0, "t1", "a")), calls(tool_call(1, "t2", "b", "{}")))
    assert [block["input"] for block in found] == [{}, {}]


def test_a_tool_call_without_an_id_gets_one() -> None:
    assert blocks(calls(tool_call(0, None, "a", "{}")))[0]["id"] == "toolu_chatcmpl-1_0"


def test_text_between_the_parts_of_a_call_waits_for_its_end() -> None:
    found = blocks(
        calls(tool_call(0, "t1", "a", '{"x":')),
        delta(content="one "),
        delta(content="two"),
        calls(tool_call(0, arguments="1}")),
        delta(content=" three"),
    )
    assert found == [
        {"type": "tool_use", "id": "t1", "name": "a", "input": {"x": 1}},
        {"type": "text", "text": "one two three"},
    ]


def test_a_refusal_is_text_with_the_stop_reason_refusal() -> None:
    message = accumulate(stream([delta(refusal="No."), finish()]))
    assert message["content"] == [{"type": "text", "text": "No."}]
    assert message["stop_reason"] == "refusal"


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "text", "think"]), st.integers(1, 4)), max_size=12),
    st.randoms(use_true_random=False),
)
def test_every_mixture_of_parts_gives_complete_blocks_in_order(plan: list[Any], random: Any) -> None:
    arguments = {"a": '{"x": [1, 2, {"y": "}"}]}', "b": '{"z": "\\"}"}'}
    left, parts = dict(arguments), []
    for kind, size in plan:
        if kind in left:
            number = "ab".index(kind)
            first = left[kind] == arguments[kind]
            part, left[kind] = left[kind][:size], left[kind][size:]
            parts.append(calls(tool_call(number, kind if first else None, kind if first else None, part)))
        else:
            parts.append(delta(**{"content" if kind == "text" else "reasoning_content": "w"}))
    started = {kind for kind, _ in plan if kind in arguments}
    parts += [
        calls(tool_call("ab".index(kind), arguments=left[kind])) for kind in sorted(started) if left[kind]
    ]
    message = accumulate(stream([*parts, finish("tool_calls" if started else "stop")], THINK))
    found = {block["name"]: block["input"] for block in message["content"] if block["type"] == "tool_use"}
    assert found == {kind: json.loads(arguments[kind]) for kind in started}
    texts = "".join(block["text"] for block in message["content"] if block["type"] == "text")
    assert len(texts) == sum(kind == "text" for kind, _ in plan)


# Truncated and broken


@pytest.mark.parametrize(
    ("chunks", "error"),
    [
        ([calls(tool_call(0, "t", "a", '{"x":')), finish("length")], LengthFinishReasonError),
        ([calls(tool_call(0, "t", "a", '{"x":')), finish("tool_calls")], APIResponseValidationError),
        ([calls(tool_call(0, "t", "a", "[1]")), finish("tool_calls")], APIResponseValidationError),
        ([calls(tool_call(0, "t", None, "{}")), finish("tool_calls")], APIResponseValidationError),
        ([delta(content="a"), finish("abort")], APIResponseValidationError),
        ([delta(content="a")], APIResponseValidationError),
    ],
)
def test_a_truncated_or_broken_stream_never_ends_its_block(
    chunks: list[dict[str, Any]], error: type[Exception]
) -> None:
    encoder = API.stream(translate(body(stream=True)))
    sent = b"".join(encoder.chunk(read_value(ChatCompletionChunk, chunk)) for chunk in chunks)
    with pytest.raises(error):
        encoder.end()
    sent += encoder.error(ApiError(502, "truncated"))
    assert not {"content_block_stop", "message_delta", "message_stop"} & set(kinds(events(sent)))
    assert events(sent)[-1] == {
        "type": "error",
        "error": {"type": "api_error", "message": "truncated", "details": None},
    }


def test_a_truncated_text_ends_with_max_tokens() -> None:
    assert accumulate(stream([delta(content="a"), finish("length")]))["stop_reason"] == "max_tokens"


def test_a_keep_alive_is_a_ping_also_before_the_first_chunk() -> None:
    assert events(API.stream(translate(body(stream=True))).keep_alive()) == [{"type": "ping"}]
