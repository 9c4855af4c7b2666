"""The Responses API: a request becomes the parameters of a chat."""

from __future__ import annotations

from typing import Any

import pytest

from prem_core._apis.base import Adjusted, ApiError, ApiRequest, Route
from prem_core._apis.responses.api import Responses
from prem_core._apis.responses.items import REASONING_MARK
from prem_core._protocol.request_schema import chat_plaintext

POST = Route("POST", "/responses")
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": True,
}
PNG = "data:image/png;base64,iVBORw0KGgo="


def read(*, strict: bool = False, **body: Any) -> Adjusted:
    """The chat of a request, checked against the published schema."""
    given = {"model": "m", "input": "Hello", **body}
    adjusted = Responses().chat_params(ApiRequest(route=POST, body=given, strict=strict))
    chat_plaintext(adjusted.params)
    return adjusted


def messages_of(*items: Any, **body: Any) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = read(input=list(items), **body).params["messages"]
    return messages


def refused(**body: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read(**body)
    return caught.value


def test_text_and_instructions_become_a_user_and_a_system_message() -> None:
    assert read(input="Hello", instructions="Be brief.").params == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
    }


def test_every_role_and_form_of_a_message_is_accepted() -> None:
    assert messages_of(
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Hi.", "annotations": []}],
        },
        {"role": "user", "content": "How are you?"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
    ) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "How are you?"},
        {"role": "assistant", "refusal": "No."},
    ]


def test_images_files_and_recordings_are_parts_of_the_user_message() -> None:
    [message] = messages_of(
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "Look."},
                {"type": "input_image", "image_url": PNG, "detail": "original"},
                {
                    "type": "input_file",
                    "filename": "a.pdf",
                    "file_data": "data:application/pdf;base64,JVBERg==",
                },
                {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
            ],
        }
    )
    assert message["content"] == [
        {"type": "text", "text": "Look."},
        {"type": "image_url", "image_url": {"url": PNG, "detail": "high"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBERg==", "filename": "a.pdf"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    ]


def call(number: int) -> dict[str, Any]:
    return {
        "type": "function_call",
        "id": f"fc_{number}",
        "status": "completed",
        "call_id": f"call_{number}",
        "name": "get_weather",
        "arguments": "{}",
    }


def chat_call(number: int) -> dict[str, Any]:
    return {
        "id": f"call_{number}",
        "type": "function",
        "function": {"name": "get_weather", "arguments": "{}"},
    }


def test_reasoning_text_and_parallel_tool_calls_become_one_assistant_message() -> None:
    assert messages_of(
        {"role": "user", "content": "Weather?"},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Look it up."}]},
        {"role": "assistant", "content": "One moment."},
        call(1),
        call(2),
        {"type": "function_call_output", "call_id": "call_1", "output": "Sunny."},
        {"type": "function_call_output", "call_id": "call_2", "output": "Rainy."},
    )[1:] == [
        {
            "role": "assistant",
            "reasoning_content": "Look it up.",
            "content": "One moment.",
            "tool_calls": [chat_call(1), chat_call(2)],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "Sunny."},
        {"role": "tool", "tool_call_id": "call_2", "content": "Rainy."},
    ]


def test_a_text_between_a_tool_call_and_its_output_does_not_separate_them() -> None:
    roles = [
        message["role"]
        for message in messages_of(
            {"role": "user", "content": "Weather?"},
            call(1),
            {"role": "assistant", "content": "One moment."},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]},
            call(2),
            {"type": "function_call_output", "call_id": "call_1", "output": "Sunny."},
            {"type": "function_call_output", "call_id": "call_2", "output": "Rainy."},
        )
    ]
    assert roles == ["user", "assistant", "tool", "tool"]


def test_consecutive_answers_stay_separate_messages() -> None:
    assert messages_of(
        {"role": "assistant", "content": "One."}, {"role": "assistant", "content": "Two."}
    ) == [{"role": "assistant", "content": "One."}, {"role": "assistant", "content": "Two."}]


def test_reasoning_that_only_openai_can_read_is_dropped_and_listed() -> None:
    item = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA"}
    adjusted = read(input=[{"role": "user", "content": "Hello"}, item])
    assert adjusted.dropped == ["input.1.encrypted_content"]
    own = {"type": "reasoning", "summary": [], "encrypted_content": REASONING_MARK}
    assert not read(input=[{"role": "user", "content": "Hello"}, own]).dropped


def test_tools_and_their_choice_are_passed_on() -> None:
    params = read(tools=[WEATHER], tool_choice={"type": "function", "name": "get_weather"}).params
    function = {name: WEATHER[name] for name in ("name", "description", "parameters", "strict")}
    assert params["tools"] == [{"type": "function", "function": function}]
    assert params["tool_choice"] == {"type": "function", "function": {"name": "get_weather"}}


def test_only_the_allowed_tools_are_passed_on() -> None:
    choice = {
        "type": "allowed_tools",
        "mode": "required",
        "tools": [{"type": "function", "name": "get_weather"}],
    }
    params = read(tools=[{"type": "function", "name": "b"}, WEATHER], tool_choice=choice).params
    assert [tool["function"]["name"] for tool in params["tools"]] == ["get_weather"]
    assert params["tool_choice"] == "required"


def test_a_custom_tool_becomes_a_function_with_one_text() -> None:
    adjusted = read(
        tools=[{"type": "custom", "name": "shell", "description": "Run."}],
        input=[
            {"role": "user", "content": "List."},
            {"type": "custom_tool_call", "call_id": "call_1", "name": "shell", "input": 'ls "a"'},
            {"type": "custom_tool_call_output", "call_id": "call_1", "output": "a.txt"},
        ],
    )
    [tool] = adjusted.params["tools"]
    assert adjusted.adjusted == ["tools"]
    assert tool["function"]["parameters"]["required"] == ["input"]
    assert adjusted.params["messages"][1]["tool_calls"][0]["function"] == {
        "name": "shell",
        "arguments": '{"input": "ls \\"a\\""}',
    }


@pytest.mark.parametrize("kind", ["web_search", "code_interpreter", "file_search", "mcp", "image_generation"])
def test_an_unsupported_tool_is_a_400_that_names_it(kind: str) -> None:
    error = refused(tools=[WEATHER, {"type": kind}])
    assert (error.status, error.param, error.code) == (400, "tools.1.type", "unsupported_parameter")
    assert kind in error.message


def test_the_parameters_of_an_answer_are_renamed() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    params = read(
        max_output_tokens=9,
        temperature=0.5,
        top_p=0.9,
        metadata={"a": "b"},
        reasoning={"effort": "low", "summary": "auto"},
        text={
            "format": {"type": "json_schema", "name": "thing", "schema": schema, "strict": True},
            "verbosity": "low",
        },
        include=["message.output_text.logprobs", "reasoning.encrypted_content"],
        top_logprobs=2,
        stream=True,
        truncation="disabled",
        background=False,
        store=False,
        parallel_tool_calls=True,
    ).params
    del params["messages"]
    assert params == {
        "model": "m",
        "max_completion_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "metadata": {"a": "b"},
        "reasoning_effort": "low",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "thing", "schema": schema, "strict": True},
        },
        "verbosity": "low",
        "logprobs": True,
        "top_logprobs": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_parameters_without_meaning_are_dropped_and_listed() -> None:
    adjusted = read(
        truncation="auto",
        max_tool_calls=3,
        reasoning={"effort": "xhigh", "mode": "pro"},
        user="u-1",
        parallel_tool_calls=False,
    )
    assert sorted(adjusted.dropped) == ["max_tool_calls", "reasoning.mode", "truncation"]
    assert sorted(adjusted.adjusted) == ["parallel_tool_calls", "reasoning.effort", "user"]
    assert adjusted.first_call_only
    assert adjusted.params["reasoning_effort"] == "high"
    assert adjusted.params["safety_identifier"] == "u-1"


@pytest.mark.parametrize(
    "body",
    [{"truncation": "auto"}, {"reasoning": {"mode": "pro"}}, {"user": "u-1"}, {"parallel_tool_calls": False}],
)
def test_strict_refuses_parameters_without_meaning(body: dict[str, Any]) -> None:
    assert refused(strict=True, **body).code == "unsupported_parameter"


def with_part(**part: Any) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": [part]}]}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"moderation": {"model": "m"}}, "moderation"),
        ({"n": 2}, "n"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 7}, "input"),
        ({"input": ["Hello"]}, "input.0"),
        ({"input": [{"role": "robot", "content": "Hi"}]}, "input.0.role"),
        ({"input": [{"role": "user", "content": [{"type": "video"}]}]}, "input.0.content.0.type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input.0.content.0.file_id",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "u"}]}]},
            "input.0.content.0.file_url",
        ),
        ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input.0.type"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f"}]}, "input.0.arguments"),
        ({"tools": [{"type": "function"}]}, "tools.0.name"),
        ({"tools": [{"type": "custom", "name": "c", "format": {"type": "grammar"}}]}, "tools.0.format"),
        ({"tools": [WEATHER], "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"instructions": 7}, "instructions"),
        ({"max_output_tokens": "many"}, "max_output_tokens"),
        ({"store": "yes"}, "store"),
    ],
)
def test_what_cannot_be_passed_on_is_a_400_that_names_the_parameter(body: dict[str, Any], param: str) -> None:
    error = refused(**body)
    assert (error.status, error.param) == (400, param)


def test_an_error_holds_nothing_of_the_input() -> None:
    secret = "the patient's name"
    error = refused(input=[{"role": "user", "content": [{"type": "input_text", "text": [secret]}]}])
    assert secret not in error.message


@pytest.mark.parametrize(
    "body",
    [
        {"store": True},
        {"previous_response_id": "resp_1"},
        {"input": [{"type": "item_reference", "id": "msg_1"}]},
    ],
)
def test_without_stored_responses_an_error_names_the_option_that_stores_them(body: dict[str, Any]) -> None:
    error = refused(**body)
    assert (error.status, error.code) == (400, "response_not_stored")
    assert "--store-responses" in error.message


def test_a_reference_to_reasoning_that_is_not_stored_is_dropped_and_listed() -> None:
    items = [{"role": "user", "content": "Hello"}, {"type": "item_reference", "id": "rs_1"}]
    assert read(input=items).dropped == ["input.1"]
    assert refused(input=items, strict=True).status == 400
