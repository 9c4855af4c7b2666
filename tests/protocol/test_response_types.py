import json

import pytest
from support.fake_gateway import COMPLETION, HELLO, chunk, error_text
from support.paths import SCHEMAS

from prem_core._errors import APIResponseValidationError
from prem_core._protocol.response_types import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessage,
    ChunkChoice,
    Model,
    Usage,
    read_json,
)

SCHEMA = json.loads((SCHEMAS / "chat-chunk.schema.json").read_text())


def read(value, kind=ChatCompletionChunk):
    return read_json(kind, json.dumps(value).encode())


@pytest.mark.parametrize("value", SCHEMA["examples"])
def test_the_published_examples_are_parsed(value):
    found = read(value)
    assert found.id == value["id"]
    assert found.model == value["model"]
    assert found.choices[0].finish_reason == value["choices"][0]["finish_reason"]


def test_a_complete_response_is_parsed():
    found = read(COMPLETION, ChatCompletion)
    assert found.choices[0].message.content == "Hello"
    assert found.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("delta", [[], {}, None])
def test_an_empty_delta_is_parsed_in_every_form(delta):
    found = read(chunk({"choices": [{"index": 0, "delta": delta, "finish_reason": "stop"}]}))
    assert found.choices[0].delta.content is None
    assert found.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("function", [[], {}, None])
def test_an_empty_function_is_parsed_in_every_form(function):
    found = read(
        chunk({"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": function}]}}]})
    )
    assert len(found.choices[0].delta.tool_calls) == 1


def test_null_counts_as_an_absent_field():
    fields = dict.fromkeys(
        ["id", "object", "created", "model", "choices", "usage", "system_fingerprint", "error"]
    )
    assert read(fields) == read({})
    choice = dict.fromkeys(["index", "delta", "logprobs", "finish_reason", "matched_stop"])
    assert read({"choices": [choice]}).choices == [ChunkChoice()]
    message = dict.fromkeys(["role", "content", "reasoning_content", "refusal", "tool_calls"])
    found = read({"choices": [{"message": message, "finish_reason": None}]}, ChatCompletion)
    assert found.choices[0].message.role == "assistant"


def test_a_null_field_next_to_an_empty_delta_does_not_affect_other_fields():
    # Read leniently because of the delta; what stands beside it must not suffer.
    logprobs = {"content": [{"token": "a", "logprob": -0.5, "bytes": None, "top_logprobs": []}]}
    value = chunk({"choices": [{"index": 1, "delta": [], "logprobs": logprobs, "finish_reason": "stop"}]})
    found = read(value).choices[0]
    assert (found.index, found.finish_reason) == (1, "stop")
    assert found.logprobs["content"][0]["token"] == "a"


def test_a_usage_chunk_has_no_choices():
    found = read(chunk(HELLO[-1]))
    assert found.choices == []
    assert found.usage == Usage(prompt_tokens=3, completion_tokens=2, total_tokens=5)


def test_unknown_fields_are_kept():
    delta = {"content": "a", "annotations": [{"url": "b"}]}
    found = read(chunk({"choices": [{"index": 0, "delta": delta, "new": 1}], "x": {"y": 2}}))
    assert found.x == {"y": 2}
    assert found.choices[0].new == 1
    assert found.choices[0].delta.annotations == [{"url": "b"}]


@pytest.mark.parametrize("reason", ["stop", "length", "tool_calls", "content_filter", "something_new"])
def test_a_finish_reason_may_be_new(reason):
    assert (
        read(chunk({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}))
        .choices[0]
        .finish_reason
        == reason
    )


def test_defaults_are_not_shared_between_responses():
    one, other = read({"choices": [{}]}), read({"choices": [{}]})
    one.choices[0].delta.content = "changed"
    one.choices.append(ChunkChoice())
    assert other.choices[0].delta.content is None
    assert read({"choices": [{}]}).choices[0].delta.content is None
    assert len(ChatCompletionChunk().choices) == 0


@pytest.mark.parametrize(
    "plaintext",
    [
        b"",
        b"SECRET",
        b'{"id": "SECRET"',
        b"\xff\xfe SECRET",
        b'{"a": "\xff SECRET"}',
        b"[" * 5000,
        b'{"id":' * 5000,
        b"\x00",
    ],
)
def test_a_response_that_is_not_json_is_rejected(plaintext):
    with pytest.raises(APIResponseValidationError, match="not JSON") as caught:
        read_json(ChatCompletionChunk, plaintext)
    assert "SECRET" not in error_text(caught.value)


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ([], ""),
        ("SECRET", ""),
        (5, ""),
        (None, ""),
        ({"choices": "SECRET"}, "choices"),
        ({"choices": {"SECRET": 1}}, "choices"),
        ({"choices": ["SECRET"]}, "choices.0"),
        ({"choices": [None]}, "choices.0"),
        ({"choices": [{"delta": "SECRET"}]}, "choices.0.delta"),
        ({"choices": [{"delta": ["SECRET"]}]}, "choices.0.delta"),
        ({"choices": [{"delta": {"content": {"SECRET": 1}}}]}, "choices.0.delta.content"),
        ({"choices": [{"delta": {"tool_calls": "SECRET"}}]}, "choices.0.delta.tool_calls"),
        ({"choices": [{"index": "SECRET"}]}, "choices.0.index"),
        ({"created": "SECRET"}, "created"),
        ({"usage": {"prompt_tokens": "SECRET"}}, "usage.prompt_tokens"),
    ],
)
def test_an_invalid_response_is_rejected_by_field_name_without_quoting_it(value, where):
    with pytest.raises(APIResponseValidationError) as caught:
        read(value)
    assert where in str(caught.value)
    assert "SECRET" not in error_text(caught.value)


def test_a_repr_contains_the_structure_and_no_content():
    call = {"index": 0, "id": "call_1", "function": {"name": "SECRET", "arguments": "SECRET"}}
    delta = {
        "role": "assistant",
        "content": "SECRET",
        "reasoning_content": "SECRET",
        "refusal": "SECRET",
        "tool_calls": [call],
        "new": "SECRET",
        "newer": {"a": "SECRET"},
        "newest": ["SECRET"],
    }
    logprobs = {"content": [{"token": "SECRET"}]}
    choice = {
        "index": 0,
        "delta": delta,
        "logprobs": logprobs,
        "matched_stop": "SECRET",
        "finish_reason": "stop",
    }
    value = read(chunk({"choices": [choice], "error": {"message": "SECRET"}, "number": 424242}))
    for text in (
        repr(value),
        str(value),
        f"{value}",
        repr([value]),
        repr(value.choices),
        str(value.choices[0]),
    ):
        assert "SECRET" not in text
        assert "424242" not in text
    assert "finish_reason='stop'" in repr(value)
    assert "call_1" in repr(value)
    assert value.choices[0].delta.content == "SECRET"
    assert value.model_dump()["choices"][0]["delta"]["content"] == "SECRET"


def test_a_repr_of_a_response_contains_only_the_length_of_its_text():
    message = {"role": "assistant", "content": "SECRET", "tool_calls": []}
    value = read(
        {**COMPLETION, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}, ChatCompletion
    )
    assert "SECRET" not in repr(value)
    assert "…(6)" in repr(value)


def test_a_response_survives_a_round_trip_through_json():
    value = read(chunk(HELLO[1]))
    assert ChatCompletionChunk.model_validate_json(value.model_dump_json()) == value


def test_the_id_of_a_model_is_the_name_to_request_it_by():
    assert Model(id="a", model="b").id == "b"
    assert Model(id="a").id == "a"
    assert Model(id="a", model="").id == "a"


def test_the_repr_of_a_model_contains_its_name():
    model = Model(id="a", model="b", type="CHAT", enabled=True)
    assert model.model_dump(exclude_none=True) == {"id": "b", "model": "b", "type": "CHAT", "enabled": True}
    assert "id='b'" in repr(model)


def test_a_message_has_the_assistants_role():
    assert ChatCompletionMessage().role == "assistant"
