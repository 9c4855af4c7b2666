"""A request of the Messages API as the parameters of a chat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from prem_core._adapters.tools import json_schema_format
from prem_core._apis.base import MAX_NAME_LENGTH, Adjusted, ApiError, quote_names
from prem_core._apis.messages.content import chat_messages, system_message
from prem_core._apis.messages.reading import Block, Notes, invalid, kind_of, object_at, text_at, unsupported

#: The `reasoning_effort` of ``thinking.budget_tokens``, by the lowest budget that gets it.
EFFORT_BY_BUDGET: Final = ((16_384, "high"), (4_096, "medium"), (0, "low"))

#: The `reasoning_effort` of ``output_config.effort``. Prem's API has no more than high.
_EFFORTS: Final = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}

_SERVICE_TIERS: Final = {"auto": "auto", "standard_only": "default"}

#: What `stop` may have, in Prem's published schema.
MAX_STOP_SEQUENCES: Final = 4

ThinkingForm = Literal["text", "empty", "none"]

#: Parameters that are translated.
_KNOWN: Final = frozenset(
    {"model", "messages", "system", "max_tokens", "stream", "temperature", "top_p", "stop_sequences", "tools"}
    | {"tool_choice", "thinking", "output_config", "output_format", "metadata", "service_tier"}
)

#: Parameters without a meaning for Prem's API: hints about cost, speed and accounts, and one of three sampling limits.
_DROPPED: Final = (
    "top_k",
    "cache_control",
    "context_management",
    "compaction",
    "speed",
    "diagnostics",
    "billing_policy",
    "fallbacks",
    "fallback_credit_token",
    "user_profile_id",
    "workspace_id",
)

#: Parameters that would change what the answer is.
_REFUSED: Final = {
    "mcp_servers": "Prem's API connects to no MCP servers: offer their tools as tools of your own",
    "container": "Prem's API has no containers and no skills",
    "inference_geo": "Prem's API does not let the caller choose where a request is processed",
}

#: Fields of a tool without a meaning for Prem's API.
_TOOL_HINTS: Final = ("input_examples", "defer_loading", "allowed_callers", "eager_input_streaming")


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """What the encoding of an answer needs of its request.

    Attributes:
        thinking: Whether thinking blocks have their text, are empty, or are left out.
        stop_sequences: The caller's stop sequences.
    """

    thinking: ThinkingForm = "none"
    stop_sequences: tuple[str, ...] = ()


def chat_params(body: dict[str, Any], *, strict: bool) -> Adjusted:
    """The chat that a request asks for.

    Raises:
        ApiError: A parameter is not valid, or Prem's API does not have it.
    """
    given = {name: value for name, value in body.items() if value is not None}
    _refuse(given)
    notes = Notes()
    params: dict[str, Any] = {"model": text_at(given, "model", "")}
    system = [system_message(given["system"], "system", notes)] if given.get("system") else []
    params["messages"] = system + chat_messages(given.get("messages"), notes)
    notes.drop(given, *_DROPPED)
    for name in ("temperature", "top_p"):
        if name in given:
            params[name] = given[name]
    if "max_tokens" in given:
        params["max_tokens"] = _positive(given["max_tokens"], "max_tokens")
    if given.get("stream") is True:
        params |= {"stream": True, "stream_options": {"include_usage": True}}
    elif given.get("stream") not in (None, False):
        raise invalid("stream", "must be a boolean")
    stops = _stop_sequences(given.get("stop_sequences"))
    if stops:
        params["stop"] = list(stops)
    first_call_only = _set_tools(params, given, notes)
    _set_output(params, given, notes)
    thinking = _set_thinking(params, given, notes)
    _set_account(params, given, notes)
    if strict and notes.dropped:
        raise unsupported(
            notes.dropped[0],
            f"Prem's API does not have {quote_names(notes.dropped)}, and the proxy runs with --strict",
        )
    return Adjusted(
        params=params,
        dropped=notes.dropped,
        adjusted=notes.adjusted,
        first_call_only=first_call_only,
        context=AnswerForm(thinking, stops),
    )


def _refuse(given: dict[str, Any]) -> None:
    if "thread" in given:
        # By this code, the tool loop of Anthropic's clients sends the request again, without a thread.
        why = "Prem's API keeps no conversations: send all messages"
        raise invalid("thread", why, code="thread_unsupported_request")
    for name, why in _REFUSED.items():
        if given.get(name):
            raise unsupported(name, why)
    unknown = [name for name in given if not (name in _KNOWN or name in _DROPPED or name in _REFUSED)]
    if unknown:
        names = quote_names(unknown)
        raise ApiError(
            400,
            f"the Messages API does not have these parameters: {names}. Remove them",
            code="unsupported_parameter",
            param=unknown[0][:MAX_NAME_LENGTH],
        )


def _positive(value: Any, path: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    raise invalid(path, "must be a positive integer")


def _stop_sequences(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise invalid("stop_sequences", "must be a list of strings")
    if len(value) > MAX_STOP_SEQUENCES:
        raise unsupported("stop_sequences", f"Prem's API has at most {MAX_STOP_SEQUENCES}, not {len(value)}")
    return tuple(value)


def _set_tools(params: dict[str, Any], given: Block, notes: Notes) -> bool:
    """Set `tools` and `tool_choice`. Return whether only the first call of the answer is passed on."""
    tools = given.get("tools", [])
    if not isinstance(tools, list):
        raise invalid("tools", "must be a list")
    if tools:
        params["tools"] = [_tool(tool, f"tools.{position}", notes) for position, tool in enumerate(tools)]
    if "tool_choice" not in given:
        return False
    choice = object_at(given, "tool_choice", "")
    kind = choice.get("type")
    if kind not in ("auto", "any", "tool", "none"):
        raise invalid("tool_choice.type", "must be auto, any, tool or none")
    if tools:
        if kind == "tool":
            name = text_at(choice, "name", "tool_choice")
            if name not in [tool["function"]["name"] for tool in params["tools"]]:
                raise invalid("tool_choice.name", "must be the name of one of the tools")
            params["tool_choice"] = {"type": "function", "function": {"name": name}}
        else:
            params["tool_choice"] = "required" if kind == "any" else kind
    elif kind in ("any", "tool"):
        raise invalid("tool_choice", f"{kind} needs tools, and there are none")
    if choice.get("disable_parallel_tool_use") is not True or not tools:
        return False
    # Prem's API does not have it: the service may make several calls, of which the first is passed on.
    notes.adjust("tool_choice.disable_parallel_tool_use")
    return True


def _tool(tool: Any, path: str, notes: Notes) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise invalid(path, "must be a JSON object")
    if tool.get("type") not in (None, "custom"):
        raise unsupported(
            path,
            f"Prem's models do not have Anthropic's tool {kind_of(tool)}: remove it, or offer a tool of your own with "
            "an input_schema",
        )
    notes.drop(tool, "cache_control")
    notes.drop(tool, *_TOOL_HINTS, prefix="tools.")
    function: dict[str, Any] = {"name": text_at(tool, "name", path)}
    if tool.get("description") is not None:
        function["description"] = text_at(tool, "description", path)
    function["parameters"] = object_at(tool, "input_schema", path)
    if tool.get("strict") is not None:
        function["strict"] = tool["strict"]
    return {"type": "function", "function": function}


def _set_output(params: dict[str, Any], given: Block, notes: Notes) -> None:
    config = object_at(given, "output_config", "") if "output_config" in given else {}
    form = config.get("format") or given.get("output_format")
    if form is not None:
        if not isinstance(form, dict) or form.get("type") != "json_schema":
            raise invalid("output_config.format.type", "must be json_schema")
        schema = object_at(form, "schema", "output_config.format")
        params["response_format"] = json_schema_format("output", schema, strict=True)
    effort = config.get("effort")
    if effort is not None:
        if not isinstance(effort, str) or effort not in _EFFORTS:
            raise invalid("output_config.effort", f"must be one of {', '.join(_EFFORTS)}")
        params["reasoning_effort"] = _EFFORTS[effort]
        if effort != _EFFORTS[effort]:
            notes.adjust("output_config.effort")
    notes.drop(config, *config.keys() - {"format", "effort"}, prefix="output_config.")


def _set_thinking(params: dict[str, Any], given: Block, notes: Notes) -> ThinkingForm:
    """Set `reasoning_effort`. Return which thinking blocks the answer has.

    Without ``thinking`` there are none, so that the first block of the answer is its text.
    """
    if "thinking" not in given:
        return "none"
    thinking = object_at(given, "thinking", "")
    kind = thinking.get("type")
    if kind == "disabled":
        params["reasoning_effort"] = "none"
        return "none"
    if kind == "enabled":
        budget = _positive(thinking.get("budget_tokens"), "thinking.budget_tokens")
        effort = next(effort for lowest, effort in EFFORT_BY_BUDGET if budget >= lowest)
        params.setdefault("reasoning_effort", effort)
        notes.adjust("thinking.budget_tokens")
    elif kind not in ("adaptive", "between_tools"):
        raise invalid("thinking.type", "must be enabled, disabled or adaptive")
    return "empty" if thinking.get("display") == "omitted" else "text"


def _set_account(params: dict[str, Any], given: Block, notes: Notes) -> None:
    if "metadata" in given:
        metadata = object_at(given, "metadata", "")
        if metadata.get("user_id") is not None:
            params["safety_identifier"] = text_at(metadata, "user_id", "metadata")
        notes.drop(metadata, *metadata.keys() - {"user_id"}, prefix="metadata.")
    if "service_tier" in given:
        tier = given["service_tier"]
        if not isinstance(tier, str) or tier not in _SERVICE_TIERS:
            raise invalid("service_tier", "must be auto or standard_only")
        params["service_tier"] = _SERVICE_TIERS[tier]
