"""The Responses API: an answer becomes a response, or its events."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.response_events import check_response, check_stream, read_events

from prem_core._apis.base import ApiError, ApiRequest, Encoder, Route
from prem_core._apis.responses.api import Responses
from prem_core._apis.responses.items import REASONING_MARK
from prem_core._protocol.accumulator import CompletionBuilder
from prem_core._protocol.response_types import ChatCompletionChunk

TOKEN = "0" * 32


def adjusted_for(**body: Any) -> tuple[Responses, Any]:
    api = Responses(now=lambda: 1_700_000_000.5, new_token=lambda: TOKEN)
    request = ApiRequest(route=Route("POST", "/responses"), body={"model": "m", "input": "Hello", **body})
    return api, api.chat_params(request)


def encoder(**body: Any) -> Encoder:
    api, adjusted = adjusted_for(**body)
    return api.stream(adjusted)


def chunk(finish_reason: str | None = None, logprobs: Any = None, **delta: Any) -> ChatCompletionChunk:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": logprobs}
    return ChatCompletionChunk.model_validate({"id": "c", "created": 1, "model": "m-1", "choices": [choice]})


def usage_chunk() -> ChatCompletionChunk:
    usage = {
        "prompt_tokens": 5,
        "completion_tokens": 7,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 2},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    return ChatCompletionChunk.model_validate({"id": "c", "model": "m-1", "choices": [], "usage": usage})


def call_part(
    index: int | None,
    arguments: str = "",
    *,
    id: str | None = None,  # noqa: A002 - the name in a chunk
    name: str | None = None,
) -> dict[str, Any]:
    return {"index": index, "id": id, "function": {"name": name, "arguments": arguments}}


def stream(*chunks: ChatCompletionChunk, **body: Any) -> bytes:
    encoding = encoder(**body)
    return b"".join(map(encoding.chunk, chunks)) + encoding.end()


def whole(*chunks: ChatCompletionChunk, **body: Any) -> dict[str, Any]:
    builder = CompletionBuilder()
    for each in chunks:
        builder.add(each.model_copy(deep=True))
    api, adjusted = adjusted_for(**body)
    return check_response(json.loads(api.whole(builder.build(), adjusted)))


def test_a_text_is_streamed_in_the_order_of_openai() -> None:
    data = stream(
        chunk(role="assistant", content=""),
        chunk(content="Hel"),
        chunk(content="lo"),
        chunk("stop"),
        usage_chunk(),
    )
    assert [event["type"] for event in read_events(data)] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    response = check_stream(data)
    assert (response["status"], response["model"], response["completed_at"]) == (
        "completed",
        "m-1",
        1_700_000_000,
    )
    assert response["output"][0]["content"][0]["text"] == "Hello"
    assert response["usage"] == {
        "input_tokens": 5,
        "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 12,
    }


def test_reasoning_is_an_item_with_a_summary_before_the_message() -> None:
    data = stream(
        chunk(reasoning_content="Hm"), chunk(reasoning_content="."), chunk(content="Yes."), chunk("stop")
    )
    assert [event["type"] for event in read_events(data)][2:8] == [
        "response.output_item.added",
        "response.reasoning_summary_part.added",
        "response.reasoning_summary_text.delta",
        "response.reasoning_summary_text.delta",
        "response.reasoning_summary_text.done",
        "response.reasoning_summary_part.done",
    ]
    reasoning, message = check_stream(data)["output"]
    assert reasoning["summary"] == [{"type": "summary_text", "text": "Hm."}]
    assert "encrypted_content" not in reasoning
    assert message["content"][0]["text"] == "Yes."


def test_reasoning_has_a_mark_where_encrypted_content_is_asked_for() -> None:
    data = stream(chunk("stop", reasoning_content="Hm."), include=["reasoning.encrypted_content"])
    assert check_stream(data)["output"][0]["encrypted_content"] == REASONING_MARK


def test_parallel_tool_calls_are_streamed_one_after_the_other() -> None:
    data = stream(
        chunk(tool_calls=[call_part(0, id="call_a", name="f")]),
        chunk(tool_calls=[call_part(0, '{"a":')]),
        chunk(tool_calls=[call_part(0, "1}")]),
        chunk(tool_calls=[call_part(1, "{}", id="call_b", name="g")]),
        chunk("tool_calls"),
    )
    assert [event["type"].removeprefix("response.") for event in read_events(data)][2:] == [
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    calls = [(item["call_id"], item["name"], item["arguments"]) for item in check_stream(data)["output"]]
    assert calls == [("call_a", "f", '{"a":1}'), ("call_b", "g", "{}")]


def test_the_second_call_is_streamed_before_the_answer_ends() -> None:
    encoding = encoder()
    encoding.chunk(chunk(tool_calls=[call_part(0, '{"a":1}', id="call_a", name="f")]))
    part = encoding.chunk(chunk(tool_calls=[call_part(1, '{"b"', id="call_b", name="g")]))
    assert b"response.function_call_arguments.delta" in part


@pytest.mark.parametrize("numbered", [True, False])
def test_interleaved_parts_of_two_calls_are_put_in_order(numbered: bool) -> None:
    first, second = (0, 1) if numbered else (None, None)
    parts = [
        call_part(first, '{"a":', id="call_a", name="f"),
        call_part(second, '{"b":', id="call_b", name="g"),
    ]
    rest = [call_part(0, "1}"), call_part(1, "2}")] if numbered else [call_part(None, "2}")]
    data = stream(chunk(tool_calls=parts), chunk(tool_calls=rest), chunk("tool_calls"))
    output = check_stream(data)["output"]
    assert [item["arguments"] for item in output] == (
        ['{"a":1}', '{"b":2}'] if numbered else ['{"a":', '{"b":2}']
    )


def test_more_arguments_after_the_end_of_a_call_are_an_error() -> None:
    encoding = encoder()
    encoding.chunk(chunk(tool_calls=[call_part(0, "{}", id="call_a", name="f")]))
    encoding.chunk(chunk(tool_calls=[call_part(1, "{}", id="call_b", name="g")]))
    with pytest.raises(ApiError) as caught:
        encoding.chunk(chunk(tool_calls=[call_part(0, '{"a":1}')]))
    assert (caught.value.status, caught.value.code) == (502, "invalid_response")


def test_a_call_without_arguments_has_an_empty_object() -> None:
    data = stream(chunk("tool_calls", tool_calls=[call_part(0, id="call_a", name="f")]))
    assert check_stream(data)["output"][0]["arguments"] == "{}"


def test_a_call_without_an_id_gets_one() -> None:
    data = stream(chunk("tool_calls", tool_calls=[call_part(0, "{}", name="f")]))
    assert check_stream(data)["output"][0]["call_id"].startswith("call_")


def test_a_custom_tool_call_has_its_text() -> None:
    tools = [{"type": "custom", "name": "shell"}]
    part = call_part(0, '{"input": "ls \\"a\\""}', id="call_a", name="shell")
    output = check_stream(stream(chunk("tool_calls", tool_calls=[part]), tools=tools))["output"]
    assert (output[0]["type"], output[0]["input"]) == ("custom_tool_call", 'ls "a"')


def test_a_refusal_is_a_part_of_the_message() -> None:
    data = stream(chunk(refusal="No"), chunk(refusal="."), chunk("stop"))
    assert check_stream(data)["output"][0]["content"] == [{"type": "refusal", "refusal": "No."}]


def test_a_text_and_then_a_refusal_are_two_parts() -> None:
    data = stream(chunk(content="Well."), chunk(refusal="No."), chunk("stop"))
    assert [part["type"] for part in check_stream(data)["output"][0]["content"]] == ["output_text", "refusal"]


@pytest.mark.parametrize("chunks", [[chunk("stop")], [chunk("stop", reasoning_content="Hm.")]])
def test_a_complete_answer_without_text_has_an_empty_message(chunks: list[ChatCompletionChunk]) -> None:
    assert check_stream(stream(*chunks))["output"][-1]["content"][0]["text"] == ""


@pytest.mark.parametrize(
    ("finish_reason", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")]
)
def test_an_answer_that_was_cut_is_incomplete_with_the_reason(finish_reason: str, reason: str) -> None:
    data = stream(chunk(content="Hel"), chunk(finish_reason))
    assert read_events(data)[-1]["type"] == "response.incomplete"
    response = check_stream(data)
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": reason})
    assert response["output"][0]["status"] == "incomplete"


def test_of_several_calls_only_the_last_one_is_incomplete() -> None:
    parts = [call_part(0, "{}", id="a", name="f"), call_part(1, '{"b":', id="b", name="g")]
    output = check_stream(stream(chunk("length", content="Hi.", tool_calls=parts)))["output"]
    assert [item["status"] for item in output] == ["completed", "completed", "incomplete"]
    assert output[-1]["arguments"] == '{"b":'


@pytest.mark.parametrize("finish_reason", [None, "abort", "error"])
def test_an_answer_that_broke_is_an_error_and_never_completed(finish_reason: str | None) -> None:
    encoding = encoder()
    data = encoding.chunk(chunk(finish_reason, content="Hel"))
    with pytest.raises(ApiError) as caught:
        encoding.end()
    data += encoding.error(caught.value)
    assert [event["type"] for event in read_events(data)[-2:]] == ["error", "response.failed"]
    assert b"response.completed" not in data
    with pytest.raises(ApiError):
        whole(chunk(finish_reason, content="Hel"))


@pytest.mark.parametrize("started", [True, False])
def test_an_error_ends_the_stream_as_failed(started: bool) -> None:
    encoding = encoder()
    data = encoding.chunk(chunk(content="Hel")) if started else b""
    error = ApiError(429, "slow down", type="rate_limit_error", code="rate_limit_exceeded")
    events = read_events(data + encoding.error(error))
    assert events[0]["type"] == "response.created"
    assert (events[-2]["message"], events[-2]["error"]["type"]) == ("slow down", "rate_limit_error")
    failed = events[-1]["response"]
    assert (failed["status"], failed["output"], failed["error"]["code"]) == (
        "failed",
        [],
        "rate_limit_exceeded",
    )


def test_log_probabilities_are_passed_on_where_asked_for() -> None:
    entry = {
        "token": "Hi",
        "logprob": -0.5,
        "bytes": None,
        "top_logprobs": [{"token": "Hi", "logprob": -0.5}],
    }
    chunks = [chunk("stop", {"content": [entry]}, content="Hi")]
    asked = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
    [part] = check_stream(stream(*chunks, **asked))["output"][0]["content"]
    assert [(each["token"], len(each["top_logprobs"])) for each in part["logprobs"]] == [("Hi", 1)]
    assert not check_stream(stream(*chunks))["output"][0]["content"][0]["logprobs"]


def test_a_response_repeats_its_request() -> None:
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}
    body = {
        "instructions": "Be brief.",
        "tools": [tool],
        "tool_choice": "required",
        "temperature": 0.5,
        "metadata": {"a": "b"},
        "max_output_tokens": 9,
        "parallel_tool_calls": False,
        "reasoning": {"effort": "low"},
        "text": {"format": {"type": "json_object"}},
        "user": "u",
    }
    response = whole(chunk("stop", content="{}"), **body)
    assert {name: response[name] for name in body if name not in ("tools", "reasoning", "text")} == {
        name: body[name] for name in body if name not in ("tools", "reasoning", "text")
    }
    assert response["tools"] == [{**tool, "description": None}]
    assert response["reasoning"]["effort"] == "low"
    assert response["text"]["format"] == {"type": "json_object"}
    assert (response["id"], response["store"]) == (f"resp_{TOKEN}", False)


_TEXT = st.text(min_size=1, max_size=5)
_DELTAS = st.one_of(
    st.builds(lambda text: {"content": text}, _TEXT),
    st.builds(lambda text: {"reasoning_content": text}, _TEXT),
    st.builds(lambda text: {"refusal": text}, _TEXT),
    st.builds(lambda n: {"tool_calls": [call_part(n, '"x"', id=f"c{n}", name="f")]}, st.integers(0, 2)),
)


@given(st.lists(_DELTAS, max_size=12), st.sampled_from(["stop", "length", "tool_calls", "content_filter"]))
def test_the_events_of_any_answer_are_in_order(deltas: list[dict[str, Any]], reason: str) -> None:
    encoding = encoder()
    data = b""
    for delta in deltas:
        try:
            data += encoding.chunk(chunk(**delta))
        except ApiError as error:
            assert error.code == "invalid_response"
            return
    data += encoding.chunk(chunk(reason)) + encoding.end()
    response = read_events(data)[-1]["response"]
    check_response(response)
    if len({"tool_calls" in delta for delta in deltas}) < 2:
        check_stream(data)


def test_a_whole_answer_and_its_stream_are_the_same_response() -> None:
    chunks = [
        chunk(reasoning_content="Hm."),
        chunk(content="One moment."),
        chunk(tool_calls=[call_part(0, '{"a":1}', id="call_a", name="f")]),
        chunk(tool_calls=[call_part(1, "{}", id="call_b", name="g")]),
        chunk("tool_calls"),
        usage_chunk(),
    ]
    assert whole(*chunks) == check_stream(stream(*chunks))
