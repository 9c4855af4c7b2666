"""The parameters of ``POST /responses``, as those of a chat."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from prem_core._apis.base import Adjusted, ApiRequest
from prem_core._apis.openai.parameters import DROPPED, adjust
from prem_core._apis.responses.items import NOT_STORED, Conversation
from prem_core._apis.responses.reading import (
    invalid,
    name_of,
    read_list,
    read_object,
    read_text,
    unsupported,
)
from prem_core._apis.responses.store import ResponseStore
from prem_core._apis.responses.tools import Tools, read_tools

#: Parameters that both APIs have under one name. The last five are not in OpenAI's Responses API: Prem's API has them.
_SAME: Final = frozenset(
    {"model", "stream", "temperature", "top_p", "metadata", "prompt_cache_key", "prompt_cache_retention"}
    | {"safety_identifier", "service_tier"}
    | {"stop", "seed", "frequency_penalty", "presence_penalty", "logit_bias"}
)

#: Parameters that change nothing in an answer that Prem's API can give. They are dropped and listed.
_DROPPED: Final = DROPPED | {"context_management", "max_tool_calls", "stream_options", "truncation"}

#: Parameters that are refused, each with the reason. False counts as not given.
_REFUSED: Final = {
    "background": "Prem's API has no background responses; use stream=true for a long answer",
    "conversation": "Prem's API stores no conversations; send the whole conversation in input",
    "moderation": "Prem's API has no moderation",
    "prompt": "Prem's API stores no prompts; send the text in instructions and input",
}

#: Values that mean the same as no value.
_DEFAULTS: Final = {"truncation": "disabled"}

#: Efforts above the highest that Prem's API has.
_HIGHEST_EFFORTS: Final = ("xhigh", "max")

_LOGPROBS: Final = "message.output_text.logprobs"
_ENCRYPTED_REASONING: Final = "reasoning.encrypted_content"


@dataclass(slots=True, kw_only=True)
class ReadRequest:
    """A request, read.

    Attributes:
        adjusted: The chat.
        tools: Its tools.
        head: The fields in which a response repeats its request.
        items: The conversation's items, with those of the previous responses.
        store: Whether to store the response.
        mark_reasoning: Whether reasoning needs an `encrypted_content`.
        logprobs: Whether log probabilities were asked for.
    """

    adjusted: Adjusted
    tools: Tools = field(repr=False)
    head: dict[str, Any] = field(repr=False)
    items: list[Any] = field(repr=False)
    store: bool
    mark_reasoning: bool
    logprobs: bool


def read_request(request: ApiRequest, store: ResponseStore | None) -> ReadRequest:
    """Read a request.

    Raises:
        ApiError: It is not valid, or asks for something that Prem's API does not have.
    """
    body = {
        name: value
        for name, value in request.body.items()
        if value is not None and value != _DEFAULTS.get(name) and not (name in _REFUSED and value is False)
    }
    for name, why in _REFUSED.items():
        if name in body:
            raise unsupported(name, why)
    head: dict[str, Any] = {name: body.get(name) for name in _REPEATED}
    head |= {
        "metadata": body.get("metadata", {}),
        "parallel_tool_calls": body.get("parallel_tool_calls", True),
    }

    stored = _read_store(body.pop("store", None), store)
    history: list[Any] = []
    if (previous := body.pop("previous_response_id", None)) is not None:
        if store is None:
            raise invalid("previous_response_id", NOT_STORED, code="response_not_stored")
        name = read_text(previous, "previous_response_id")
        history = store.get(request.caller, name).items
    conversation = Conversation(
        lambda item_id: None if store is None else store.find_item(request.caller, item_id),
        strict=request.strict,
    )
    if (instructions := body.pop("instructions", None)) is not None:
        content = read_text(instructions, "instructions")
        conversation.messages.append({"role": "system", "content": content})
    items = _read_input(body.pop("input", None))
    conversation.add_all(history, "previous_response_id")
    conversation.add_all(items, "input")
    if not items and not history:
        raise invalid("input", "must be a text or have one or more items")

    tools = read_tools(body.pop("tools", None), body.pop("tool_choice", None))
    head["tools"], head["tool_choice"] = tools.echo, request.body.get("tool_choice") or "auto"
    params: dict[str, Any] = {"messages": conversation.messages, **tools.params}
    if (limit := body.pop("max_output_tokens", None)) is not None:
        if not isinstance(limit, int):
            raise invalid("max_output_tokens", "must be an integer")
        params["max_completion_tokens"] = limit
    head["text"] = _read_text_settings(body.pop("text", None), params)
    included = {each for each in read_list(body.pop("include", []), "include") if isinstance(each, str)}
    logprobs = _LOGPROBS in included
    if logprobs:
        params["logprobs"] = True
    if (top := body.pop("top_logprobs", None)) and logprobs:
        params["top_logprobs"] = top
    dropped, changed = list(conversation.dropped), ["tools"] if tools.custom else []
    head["reasoning"] = _read_reasoning(
        body.pop("reasoning", None), params, dropped, changed, strict=request.strict
    )
    if body.get("stream") is True:
        params["stream_options"] = {"include_usage": True}

    adjusted = adjust(body, _SAME, strict=request.strict, droppable=_DROPPED)
    adjusted.params |= params
    adjusted.dropped += dropped
    adjusted.adjusted += changed
    return ReadRequest(
        adjusted=adjusted,
        tools=tools,
        head=head,
        items=[*history, *items],
        store=stored,
        mark_reasoning=_ENCRYPTED_REASONING in included,
        logprobs=logprobs,
    )


#: The parameters that a response repeats as they were given.
_REPEATED: Final = (
    *("instructions", "max_output_tokens", "max_tool_calls", "previous_response_id", "prompt_cache_key"),
    *("safety_identifier", "service_tier", "temperature", "top_logprobs", "top_p", "user"),
)


def _read_store(value: Any, store: ResponseStore | None) -> bool:
    if value is None:
        return store is not None
    if not isinstance(value, bool):
        raise invalid("store", "must be a boolean")
    if value and store is None:
        raise invalid(
            "store",
            "responses are not stored. Remove the parameter, or start the proxy with --store-responses (PremTransport: "
            "store_responses=True), which keeps them in memory",
            code="response_not_stored",
        )
    return value


def _read_input(value: Any) -> list[Any]:
    if value is None:
        raise invalid("input", "is required")
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": value}]
    return read_list(value, "input")


def _read_text_settings(value: Any, params: dict[str, Any]) -> dict[str, Any]:
    """`text` as the response repeats it. Adds what it asks for to `params`."""
    text = {} if value is None else read_object(value, "text")
    if text.get("verbosity") is not None:
        params["verbosity"] = text["verbosity"]
    form = text.get("format") or {"type": "text"}
    kind = read_object(form, "text.format").get("type")
    if kind == "json_schema":
        names = ("name", "description", "schema", "strict")
        schema = {name: form[name] for name in names if form.get(name) is not None}
        params["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif kind == "json_object":
        params["response_format"] = {"type": "json_object"}
    elif kind != "text":
        raise unsupported("text.format.type", f"Prem's API has no format {name_of(kind)}")
    return {"format": form, "verbosity": text.get("verbosity")}


def _read_reasoning(
    value: Any, params: dict[str, Any], dropped: list[str], changed: list[str], *, strict: bool
) -> dict[str, Any]:
    """`reasoning` as the response repeats it. Adds what it asks for to `params`."""
    reasoning = {} if value is None else read_object(value, "reasoning")
    effort = reasoning.get("effort")
    if effort is not None:
        params["reasoning_effort"] = effort
        if effort in _HIGHEST_EFFORTS and not strict:
            params["reasoning_effort"] = "high"
            changed.append("reasoning.effort")
    for name in ("context", "mode"):
        if reasoning.get(name) is not None:
            if strict:
                raise unsupported(f"reasoning.{name}", "Prem's API does not have it")
            dropped.append(f"reasoning.{name}")
    return {"effort": effort, "summary": reasoning.get("summary")}
