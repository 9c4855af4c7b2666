"""Whole answers, errors, models and token counts of the Messages API."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.messages_api import API, MESSAGES, MODEL, body, whole

from prem_core import APIResponseValidationError, LengthFinishReasonError
from prem_core._apis.base import ApiError, ApiRequest, Route
from prem_core._protocol.response_types import Model

THINK = {"thinking": {"type": "adaptive"}}
LENGTH = LengthFinishReasonError


def choice(content: str | None = None, *, finish: str | None = "stop", **more: Any) -> dict[str, Any]:
    matched = more.pop("matched_stop", None)
    message = {"role": "assistant", "content": content, **more}
    return {"message": message, "finish_reason": finish, "matched_stop": matched}


def tool_call(arguments: str = "{}", call_id: str = "t1") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": "look", "arguments": arguments}}


def test_an_answer_is_a_message_with_usage() -> None:
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 4,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    assert whole(choice("Hello"), usage=usage) == {
        "id": "msg_abc",
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [{"type": "text", "text": "Hello"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "stop_details": None,
        "usage": {
            "input_tokens": 7,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 3,
            "output_tokens": 4,
            "output_tokens_details": {"thinking_tokens": 2},
        },
    }


def test_reasoning_is_a_thinking_block_with_a_signature_that_signs_nothing() -> None:
    answer = whole(choice("Hello", reasoning_content="Hm."), body(**THINK))
    assert answer["content"] == [
        {"type": "thinking", "thinking": "Hm.", "signature": "unsigned"},
        {"type": "text", "text": "Hello"},
    ]


@pytest.mark.parametrize("more", [{}, {"thinking": {"type": "disabled"}}])
def test_without_thinking_in_the_request_the_first_block_is_the_text(more: dict[str, Any]) -> None:
    answer = whole(choice("Hello", reasoning_content="Hm."), body(**more))
    assert answer["content"] == [{"type": "text", "text": "Hello"}]


def test_omitted_thinking_is_an_empty_block() -> None:
    request = body(thinking={"type": "adaptive", "display": "omitted"})
    assert whole(choice("Hello", reasoning_content="Hm."), request)["content"][0]["thinking"] == ""


def test_tool_calls_are_tool_use_blocks_with_their_ids() -> None:
    calls = [tool_call('{"at": "a"}'), tool_call("", call_id="t2"), tool_call(call_id="")]
    answer = whole(choice("I look.", finish="tool_calls", tool_calls=calls))
    assert answer["stop_reason"] == "tool_use"
    assert answer["content"] == [
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "t1", "name": "look", "input": {"at": "a"}},
        {"type": "tool_use", "id": "t2", "name": "look", "input": {}},
        {"type": "tool_use", "id": "toolu_abc_2", "name": "look", "input": {}},
    ]


@pytest.mark.parametrize(
    ("given", "reason", "sequence"),
    [
        (choice("a"), "end_turn", None),
        (choice("a", finish="length"), "max_tokens", None),
        (choice("a", matched_stop="END"), "stop_sequence", "END"),
        (choice("a", matched_stop="<|end|>"), "end_turn", None),
        (choice("a", matched_stop=200002), "end_turn", None),
        (choice("a", finish="content_filter"), "refusal", None),
        (choice(refusal="No."), "refusal", None),
        (choice("a", tool_calls=[tool_call()]), "tool_use", None),
        (choice("a", finish="tool_calls"), "end_turn", None),
    ],
)
def test_stop_reasons(given: dict[str, Any], reason: str, sequence: str | None) -> None:
    answer = whole(given, body(stop_sequences=["END"]))
    assert (answer["stop_reason"], answer["stop_sequence"]) == (reason, sequence)
    assert (answer["stop_details"] is not None) == (reason == "refusal")


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (choice(finish="length", tool_calls=[tool_call('{"a": ')]), LENGTH),
        (choice(finish="tool_calls", tool_calls=[tool_call('{"a": ')]), APIResponseValidationError),
        (choice(finish="tool_calls", tool_calls=[tool_call("[]")]), APIResponseValidationError),
        (choice("a", finish="abort"), APIResponseValidationError),
        (choice("a", finish=None), APIResponseValidationError),
    ],
)
def test_a_truncated_or_broken_answer_is_an_error(given: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        whole(given)


# Errors, models, token counts


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (405, "invalid_request_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
    ],
)
def test_an_error_has_anthropics_type_for_its_status(status: int, kind: str) -> None:
    assert json.loads(API.error_body(ApiError(status, "why", type="server_error", code="name"))) == {
        "type": "error",
        "error": {"type": kind, "message": "why", "details": {"error_code": "name"}},
    }


def listed(path_params: dict[str, str]) -> dict[str, Any]:
    models = [Model(id="1", model="openai/gpt-oss-120b", name="GPT-OSS"), Model(id="glm-5.2")]
    request = ApiRequest(route=Route("GET", "/models", "models"), path_params=path_params)
    value: dict[str, Any] = json.loads(API.models(request, models).body)
    return value


def test_the_models_list_is_one_page_in_anthropics_form() -> None:
    page = listed({})
    assert page["data"][0] == {
        "type": "model",
        "id": "openai/gpt-oss-120b",
        "display_name": "GPT-OSS",
        "created_at": "1970-01-01T00:00:00Z",
        "lifecycle": "active",
    }
    assert (page["has_more"], page["first_id"], page["last_id"]) == (False, "openai/gpt-oss-120b", "glm-5.2")


def test_one_model_by_its_name_and_a_404_for_an_unknown_one() -> None:
    assert listed({"id": "openai/gpt-oss-120b"})["display_name"] == "GPT-OSS"
    with pytest.raises(ApiError) as caught:
        listed({"id": "other"})
    assert caught.value.status == 404


def count(**request: Any) -> int:
    reply = API.local(ApiRequest(route=Route("POST", "/messages/count_tokens", "local"), body=request))
    assert ("x-prem-adjusted", "input_tokens=estimate") in reply.headers
    tokens: int = json.loads(reply.body)["input_tokens"]
    return tokens


def test_the_token_count_is_an_estimate_by_size() -> None:
    empty, long = body(""), body("x" * 3_500)
    for request in (empty, long):
        del request["max_tokens"]
    assert count(**long) - count(**empty) == 1_000


def test_the_token_count_has_system_tools_images_documents_and_tool_calls() -> None:
    def document(data: str) -> list[dict[str, Any]]:
        source = {"type": "base64", "media_type": "application/pdf", "data": data}
        return [{"type": "document", "source": source}]

    plain = count(**body("Hi"))
    image = {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}
    tool = {"name": "t", "input_schema": {"type": "object"}}
    use = {"type": "tool_use", "id": "1", "name": "t", "input": {"text": "x" * 700}}
    used = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "y" * 700}]},
    ]
    assert count(**body("Hi", system="x" * 700)) >= plain + 200
    assert count(**body("Hi", tools=[tool])) > plain
    assert count(**body([image])) >= 1_600
    assert count(**body(document("A" * 16_000))) >= 1_000
    assert count(**body() | {"messages": used}) >= plain + 400


def test_an_invalid_request_is_not_counted() -> None:
    with pytest.raises(ApiError, match="^messages"):
        count(**body() | {"messages": []})


def test_the_api_has_anthropics_routes() -> None:
    assert API.family == "anthropic"
    assert MESSAGES in API.routes
