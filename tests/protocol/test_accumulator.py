import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fake_gateway import HELLO, chunk

from prem_core._protocol.accumulator import CompletionBuilder, ToolCallMerger
from prem_core._protocol.response_types import ChatCompletionChunk, ToolCallDelta, read_json


def merged(*pieces):
    merger = ToolCallMerger()
    places = [merger.add(ToolCallDelta.model_validate(piece)) for piece in pieces]
    return places, [(call.id, call.function.name, call.function.arguments) for call in merger.calls()]


def read(value):
    return read_json(ChatCompletionChunk, json.dumps(chunk(value)).encode())


def build(*chunks):
    builder = CompletionBuilder()
    for value in chunks:
        builder.add(read(value))
    return builder.build()


def delta(index=0, reason=None, **fields):
    return {"choices": [{"index": index, "delta": fields, "finish_reason": reason}]}


def piece(index=None, id=None, name=None, arguments=None):  # noqa: A002
    return {"index": index, "id": id, "function": {"name": name, "arguments": arguments}}


def test_the_arguments_of_a_tool_call_are_concatenated():
    places, calls = merged(piece(0, "a", "f", ""), piece(0, arguments='{"x"'), piece(0, arguments=": 1}"))
    assert places == [0, 0, 0]
    assert calls == [("a", "f", '{"x": 1}')]


def test_a_name_repeated_in_every_delta_is_one_name():
    assert merged(piece(0, "a", "f", "1"), piece(0, "a", "f", "2"))[1] == [("a", "f", "12")]


def test_parallel_tool_calls_are_separated_by_index():
    places, calls = merged(
        piece(0, "a", "f"), piece(1, "b", "g"), piece(1, arguments="2"), piece(0, arguments="1")
    )
    assert places == [0, 1, 1, 0]
    assert calls == [("a", "f", "1"), ("b", "g", "2")]


def test_tool_calls_are_ordered_by_index():
    _, calls = merged(piece(2, "c", "h"), piece(0, "a", "f"), piece(1, "b", "g"))
    assert [call[0] for call in calls] == ["a", "b", "c"]


def test_without_an_index_a_new_id_starts_a_tool_call_and_no_id_continues_it():
    places, calls = merged(
        piece(id="a", name="f"), piece(arguments="1"), piece(id="b", name="g"), piece(arguments="2")
    )
    assert places == [0, 0, 1, 1]
    assert calls == [("a", "f", "1"), ("b", "g", "2")]


def test_without_an_index_the_same_id_continues_the_tool_call():
    places, calls = merged(piece(id="a", name="f"), piece(id="a", arguments="1"))
    assert places == [0, 0]
    assert calls == [("a", "f", "1")]


def test_a_delta_without_index_and_id_starts_the_first_tool_call():
    assert merged(piece(name="f", arguments="1")) == ([0], [("", "f", "1")])


def test_a_delta_without_a_function_makes_a_tool_call():
    assert merged({"index": 0, "id": "a", "type": "function"}) == ([0], [("a", "", "")])


def test_the_type_of_a_tool_call_is_kept():
    merger = ToolCallMerger()
    merger.add(ToolCallDelta(index=0, type="custom"))
    merger.add(ToolCallDelta(index=1))
    assert [call.type for call in merger.calls()] == ["custom", "function"]


def test_reading_the_tool_calls_early_changes_nothing():
    merger = ToolCallMerger()
    for part in ("1", "2", "3"):
        merger.add(ToolCallDelta.model_validate(piece(0, arguments=part)))
        merger.calls()
    assert merger.calls()[0].function.arguments == "123"
    assert merger.calls()[0].function.arguments == "123"


def test_without_a_delta_there_is_no_tool_call():
    assert ToolCallMerger().calls() == []


@given(st.lists(st.lists(st.text(max_size=4), max_size=5), min_size=1, max_size=4), st.randoms())
def test_interleaved_tool_calls_are_complete(calls, random):
    queues = [
        [piece(i, f"id{i}", f"f{i}"), *(piece(i, arguments=part) for part in parts)]
        for i, parts in enumerate(calls)
    ]
    pieces = []
    while any(queues):
        pieces.append(random.choice([queue for queue in queues if queue]).pop(0))
    assert merged(*pieces)[1] == [(f"id{i}", f"f{i}", "".join(parts)) for i, parts in enumerate(calls)]


def test_a_response_is_built_from_its_chunks():
    answer = build(*HELLO)
    assert (answer.id, answer.object, answer.created, answer.model) == ("c1", "chat.completion", 1, "m")
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == (
        "assistant",
        "Hello",
        "stop",
    )
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (3, 5)


def test_reasoning_and_refusal_are_separate_from_content():
    message = (
        build(
            delta(reasoning_content="th"),
            delta(reasoning_content="ink", content="a"),
            delta(content="b", refusal="no"),
            delta(refusal="pe", reason="stop"),
        )
        .choices[0]
        .message
    )
    assert (message.reasoning_content, message.content, message.refusal) == ("think", "ab", "nope")


def test_a_field_in_no_chunk_is_none():
    message = build(delta(role="assistant"), delta(reason="stop")).choices[0].message
    assert (message.content, message.reasoning_content, message.refusal, message.tool_calls) == (None,) * 4


def test_choices_are_built_separately_and_in_order():
    answer = build(
        delta(1, content="b"), delta(0, content="a"), delta(1, "length", content="B"), delta(0, "stop")
    )
    assert [(c.index, c.message.content, c.finish_reason) for c in answer.choices] == [
        (0, "a", "stop"),
        (1, "bB", "length"),
    ]


def test_tool_calls_are_built_into_the_message():
    answer = build(
        delta(tool_calls=[piece(0, "a", "f", "{")]),
        delta(tool_calls=[piece(0, arguments="}")]),
        delta(0, "tool_calls"),
    )
    call = answer.choices[0].message.tool_calls[0]
    assert (call.id, call.type, call.function.name, call.function.arguments) == ("a", "function", "f", "{}")
    assert answer.choices[0].finish_reason == "tool_calls"


def test_two_calls_in_one_chunk_are_two_calls():
    answer = build(
        delta(tool_calls=[piece(0, "a", "f", "1"), piece(1, "b", "g", "2")]), delta(0, "tool_calls")
    )
    assert [call.id for call in answer.choices[0].message.tool_calls] == ["a", "b"]


def test_the_last_cumulative_usage_is_the_total():
    counted = [{**delta(content="a"), "usage": {"completion_tokens": n}} for n in (1, 2, 3)]
    assert build(*counted, delta(0, "stop")).usage.completion_tokens == 3


def test_usage_is_none_when_no_chunk_has_it():
    assert build(delta(content="a"), delta(0, "stop")).usage is None


def test_log_probabilities_are_concatenated():
    def with_logprobs(*tokens, **more):
        logprobs = {"content": [{"token": token} for token in tokens], **more}
        return {"choices": [{"index": 0, "delta": {}, "logprobs": logprobs}]}

    answer = build(with_logprobs("a", "b"), delta(), with_logprobs("c", refusal=None), delta(0, "stop"))
    assert [entry["token"] for entry in answer.choices[0].logprobs["content"]] == ["a", "b", "c"]


def test_the_matched_stop_comes_with_the_finish_reason():
    answer = build({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "matched_stop": "END"}]})
    assert answer.choices[0].matched_stop == "END"


@pytest.mark.parametrize("position", range(3))
def test_the_system_fingerprint_is_kept_whichever_chunk_has_it(position):
    chunks = [delta(content="a"), delta(content="b"), delta(0, "stop")]
    chunks[position] = {**chunks[position], "system_fingerprint": "fp"}
    assert build(*chunks).system_fingerprint == "fp"


def test_no_chunks_build_an_empty_response():
    answer = CompletionBuilder().build()
    assert (answer.id, answer.choices, answer.usage) == ("", [], None)


@given(st.lists(st.text(max_size=5), max_size=20))
def test_the_content_is_the_concatenation_of_its_deltas(parts):
    answer = build(*(delta(content=part) for part in parts), delta(0, "stop"))
    assert (answer.choices[0].message.content or "") == "".join(parts)


def test_building_does_not_change_the_chunks():
    chunks = [read(value) for value in HELLO]
    before = [value.model_dump() for value in chunks]
    builder = CompletionBuilder()
    for value in chunks:
        builder.add(value)
    builder.build()
    assert [value.model_dump() for value in chunks] == before
