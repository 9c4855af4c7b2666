"""Parameters of the Messages API as parameters of a chat."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.messages_api import MODEL, body, translate

from prem_core import PremError
from prem_core._apis.base import ApiError

TOOL = {
    "name": "get_weather",
    "description": "The weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}


def refused(request: dict[str, Any], *, strict: bool = False) -> ApiError:
    with pytest.raises(ApiError) as caught:
        translate(request, strict=strict)
    assert caught.value.status == 400
    return caught.value


def test_a_request_with_the_required_parameters_only() -> None:
    adjusted = translate(body())
    assert adjusted.params == {
        "model": MODEL,
        "max_tokens": 100,
        "messages": [{"role": "user", "content": "Say hello."}],
    }
    assert (adjusted.dropped, adjusted.adjusted, adjusted.first_call_only) == ([], [], False)


def test_sampling_stop_sequences_and_user_id_have_their_chat_names() -> None:
    params = translate(
        body(
            temperature=0.5, top_p=0.9, stop_sequences=["END"], metadata={"user_id": "u"}, service_tier="auto"
        )
    ).params
    del params["messages"], params["model"], params["max_tokens"]
    assert params == {
        "temperature": 0.5,
        "top_p": 0.9,
        "stop": ["END"],
        "safety_identifier": "u",
        "service_tier": "auto",
    }


def test_a_stream_asks_for_usage() -> None:
    adjusted = translate(body(stream=True))
    assert adjusted.streamed
    assert adjusted.params["stream_options"] == {"include_usage": True}


def test_null_counts_as_not_given() -> None:
    nulls = dict.fromkeys(["system", "tools", "thinking", "top_k", "container", "tool_choice", "metadata"])
    assert translate(body(**nulls)).params == translate(body()).params


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        ("Be brief.", "Be brief."),
        (
            [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind."}],
            "Be brief.\n\nBe kind.",
        ),
    ],
)
def test_system_instructions_are_the_first_message(system: Any, expected: str) -> None:
    assert translate(body(system=system)).params["messages"][0] == {"role": "system", "content": expected}


def test_cache_control_is_dropped_and_listed_once() -> None:
    mark = {"cache_control": {"type": "ephemeral"}}
    adjusted = translate(
        body(
            [{"type": "text", "text": "a", **mark}, {"type": "text", "text": "b", **mark}],
            system=[{"type": "text", "text": "s", **mark}],
            tools=[TOOL | mark],
            **mark,
        )
    )
    assert adjusted.dropped == ["cache_control"]
    assert "cache_control" not in repr(adjusted.params)


def test_hints_without_meaning_are_dropped_and_listed() -> None:
    adjusted = translate(
        body(
            top_k=5,
            context_management={"edits": []},
            metadata={"user_id": "u", "team": "t"},
            tools=[TOOL | {"defer_loading": True}],
        )
    )
    assert adjusted.dropped == ["top_k", "context_management", "tools.defer_loading", "metadata.team"]


def test_strict_refuses_what_would_be_dropped() -> None:
    error = refused(body(top_k=5, speed="fast"), strict=True)
    assert "top_k, speed" in error.message
    assert error.param == "top_k"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mcp_servers", [{"type": "url", "url": "https://mcp.invalid", "name": "m"}]),
        ("container", "c"),
        ("inference_geo", "us"),
        ("frequency_penalty", 1),
    ],
)
def test_a_parameter_that_changes_the_answer_is_refused_by_name(name: str, value: Any) -> None:
    error = refused(body(**{name: value}))
    assert name in error.message
    assert (error.param, error.code) == (name, "unsupported_parameter")


def test_a_thread_is_refused_with_the_code_after_which_clients_send_all_messages() -> None:
    error = refused(body(thread={"type": "create"}))
    assert (error.param, error.code) == ("thread", "thread_unsupported_request")


# Tools


def test_a_tool_is_a_function_with_its_input_schema() -> None:
    assert translate(body(tools=[TOOL | {"type": "custom", "strict": True}])).params["tools"] == [
        {
            "type": "function",
            "function": {
                "name": "get_weather",
                "description": "The weather.",
                "parameters": TOOL["input_schema"],
                "strict": True,
            },
        }
    ]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "get_weather"}, {"type": "function", "function": {"name": "get_weather"}}),
    ],
)
def test_tool_choice(choice: dict[str, Any], expected: Any) -> None:
    adjusted = translate(body(tools=[TOOL], tool_choice=choice))
    assert adjusted.params["tool_choice"] == expected
    assert not adjusted.first_call_only


def test_tool_choice_auto_without_tools_is_left_out() -> None:
    assert "tool_choice" not in translate(body(tool_choice={"type": "auto"})).params


def test_disable_parallel_tool_use_passes_on_the_first_call_only_and_is_listed() -> None:
    adjusted = translate(body(tools=[TOOL], tool_choice={"type": "auto", "disable_parallel_tool_use": True}))
    assert adjusted.first_call_only
    assert adjusted.adjusted == ["tool_choice.disable_parallel_tool_use"]


@pytest.mark.parametrize("kind", ["web_search_20250305", "bash_20250124", "computer_20251124", "mcp_toolset"])
def test_anthropics_own_tools_are_refused_by_name(kind: str) -> None:
    error = refused(body(tools=[TOOL, {"type": kind, "name": "x"}]))
    assert kind in error.message
    assert error.param == "tools.1"


# Thinking and output


@pytest.mark.parametrize(
    ("budget", "effort"),
    [
        (1_024, "low"),
        (4_095, "low"),
        (4_096, "medium"),
        (16_383, "medium"),
        (16_384, "high"),
        (100_000, "high"),
    ],
)
def test_the_thinking_budget_selects_the_reasoning_effort(budget: int, effort: str) -> None:
    adjusted = translate(body(thinking={"type": "enabled", "budget_tokens": budget}))
    assert adjusted.params["reasoning_effort"] == effort
    assert adjusted.adjusted == ["thinking.budget_tokens"]


def test_disabled_thinking_is_no_reasoning_effort() -> None:
    assert translate(body(thinking={"type": "disabled"})).params["reasoning_effort"] == "none"


def test_adaptive_thinking_leaves_the_effort_to_the_model() -> None:
    assert "reasoning_effort" not in translate(body(thinking={"type": "adaptive"})).params


@pytest.mark.parametrize(("effort", "expected"), [("low", "low"), ("high", "high"), ("max", "high")])
def test_the_effort_of_output_config_wins_over_the_budget(effort: str, expected: str) -> None:
    adjusted = translate(
        body(thinking={"type": "enabled", "budget_tokens": 1_024}, output_config={"effort": effort})
    )
    assert adjusted.params["reasoning_effort"] == expected
    assert ("output_config.effort" in adjusted.adjusted) == (effort != expected)


@pytest.mark.parametrize("name", ["output_config", "output_format"])
def test_a_json_schema_for_the_output_is_the_response_format(name: str) -> None:
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    form = {"type": "json_schema", "schema": schema}
    given = {"format": form} if name == "output_config" else form
    assert translate(body(**{name: given})).params["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "output", "schema": schema, "strict": True},
    }


# Invalid


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": None}, "model"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"stop_sequences": "END"}, "stop_sequences"),
        ({"stop_sequences": list("abcde")}, "stop_sequences"),
        ({"system": 5}, "system"),
        ({"system": [{"type": "image"}]}, "system.0"),
        ({"tools": {}}, "tools"),
        ({"tools": [5]}, "tools.0"),
        ({"tools": [{"name": "x"}]}, "tools.0.input_schema"),
        ({"tools": [{"input_schema": {}}]}, "tools.0.name"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": {"type": "each"}}, "tool_choice.type"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "other"}}, "tool_choice.name"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "sometimes"}}, "thinking.type"),
        ({"output_config": {"effort": []}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
        ({"metadata": "u"}, "metadata"),
        ({"metadata": {"user_id": 5}}, "metadata.user_id"),
        ({"service_tier": []}, "service_tier"),
    ],
)
def test_an_invalid_parameter_is_a_400_that_names_its_path(change: dict[str, Any], param: str) -> None:
    error = refused(body(**change))
    assert error.param == param
    assert param in error.message


def test_an_error_never_quotes_the_request() -> None:
    error = refused(body([{"type": "SECRET" * 20, "text": "SECRET PROMPT"}]))
    assert "PROMPT" not in error.message
    assert len(error.message) < 200


SECRET = "SECRET"

_leaves = st.none() | st.booleans() | st.integers() | st.sampled_from([SECRET, "", "text", "enabled", "auto"])
_names = st.sampled_from(
    ["text", "source", "content", "data", "media_type", "url", "id", "name", "input", "input_schema"]
    + ["thinking", "budget_tokens", "tool_use_id", "title", "role", "schema", "format", "effort", "user_id"]
)
_kinds = st.sampled_from(
    ["text", "image", "document", "tool_use", "tool_result", "thinking", "search_result", "base64", "content"]
)
_values = st.recursive(
    _leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.builds(
            lambda kind, rest: {"type": kind, **rest}, _kinds, st.dictionaries(_names, inner, max_size=4)
        )
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(
        st.sampled_from(
            ["system", "tools", "tool_choice", "thinking", "output_config", "metadata", "stream"]
        ),
        _values,
        max_size=3,
    ),
    st.lists(
        st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": _values}),
        max_size=3,
    ),
)
def test_any_json_is_a_valid_chat_or_an_error_without_content(
    more: dict[str, Any], given_messages: list[Any]
) -> None:
    messages = [*given_messages, {"role": "user", "content": "Hello"}]
    try:
        translate(body(**more) | {"messages": messages})
    except (ApiError, PremError) as error:
        assert SECRET not in str(error)
