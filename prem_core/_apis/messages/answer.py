"""A whole answer as a message, and the stop reasons and token counts of both forms of an answer."""

from __future__ import annotations

from typing import Any, Final

from prem_core._adapters.tools import read_arguments
from prem_core._apis.messages.request import AnswerForm
from prem_core._errors import APIResponseValidationError, LengthFinishReasonError
from prem_core._protocol.response_types import ChatCompletion, Usage

#: The signature of every thinking block. Anthropic signs its thinking; nothing signs this.
SIGNATURE: Final = "unsigned"

_STOP_REASONS: Final = {
    "stop": "end_turn",
    "tool_calls": "tool_use",
    "length": "max_tokens",
    "content_filter": "refusal",
}


def message(completion: ChatCompletion, form: AnswerForm) -> dict[str, Any]:
    """A whole answer.

    Raises:
        LengthFinishReasonError: The token limit truncated a tool call.
        APIResponseValidationError: The arguments of a tool call are not a JSON object, or the answer has no choice.
    """
    if not completion.choices:
        raise APIResponseValidationError("the answer has no choices")
    choice = completion.choices[0]
    answer = choice.message
    content: list[dict[str, Any]] = []
    if answer.reasoning_content and form.thinking != "none":
        thinking = answer.reasoning_content if form.thinking == "text" else ""
        content.append({"type": "thinking", "thinking": thinking, "signature": SIGNATURE})
    text = (answer.content or "") + (answer.refusal or "")
    if text:
        content.append({"type": "text", "text": text})
    calls = answer.tool_calls or []
    for position, call in enumerate(calls):
        made = {
            "type": "tool_use",
            "id": call.id or made_call_id(completion.id, position),
            "name": call.function.name,
            "input": tool_input(call.function.name, call.function.arguments, choice.finish_reason),
        }
        content.append(made)
    stop = stop_fields(
        choice.finish_reason, choice.matched_stop, form, called=bool(calls), refused=bool(answer.refusal)
    )
    return {
        **message_head(completion.id, completion.model),
        "content": content,
        **stop,
        "usage": usage_fields(completion.usage),
    }


def message_head(chat_id: str, model: str) -> dict[str, Any]:
    """The fields of a message that are the same from its start to its end."""
    return {"id": f"msg_{chat_id}", "type": "message", "role": "assistant", "model": model}


def made_call_id(chat_id: str, position: int) -> str:
    """An id for a tool call that came without one: its result refers to it."""
    return f"toolu_{chat_id}_{position}"


def tool_input(name: str, arguments: str, finish_reason: str | None) -> dict[str, Any]:
    """The arguments of a complete tool call.

    Raises:
        LengthFinishReasonError: The token limit truncated them.
        APIResponseValidationError: They are not a JSON object, or the call has no name.
    """
    if not name:
        raise APIResponseValidationError("a tool call has no name")
    read = read_arguments(arguments)
    if read is None:
        if finish_reason == "length":
            raise LengthFinishReasonError
        raise APIResponseValidationError("the arguments of a tool call are not a complete JSON object")
    return read


def stop_fields(
    finish_reason: str | None, matched: Any, form: AnswerForm, *, called: bool, refused: bool
) -> dict[str, Any]:
    """Why an answer ended.

    Args:
        finish_reason: The service's reason.
        matched: The stop sequence that the service reports; some servers report the number of a token.
        form: What the request asked for.
        called: Whether the answer has tool calls.
        refused: Whether the model refused.

    Raises:
        APIResponseValidationError: The service's reason is unknown: the answer may be truncated.
    """
    reason = _STOP_REASONS.get(finish_reason or "")
    if reason is None:
        raise APIResponseValidationError("the answer has no known finish reason")
    sequence = None
    if refused and reason != "max_tokens":
        reason = "refusal"
    elif reason in ("end_turn", "tool_use"):
        reason = "tool_use" if called else "end_turn"
        if reason == "end_turn" and matched in form.stop_sequences:
            reason, sequence = "stop_sequence", matched
    details = {"type": "refusal", "category": None, "explanation": None} if reason == "refusal" else None
    return {"stop_reason": reason, "stop_sequence": sequence, "stop_details": details}


def usage_fields(usage: Usage | None) -> dict[str, Any]:
    """Token counts. Anthropic's `input_tokens` do not include those that were read from a cache."""
    if usage is None:
        usage = Usage()
    cached = _count(usage.prompt_tokens_details, "cached_tokens")
    fields: dict[str, Any] = {
        "input_tokens": max(usage.prompt_tokens - cached, 0),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.completion_tokens,
    }
    reasoning = _count(usage.completion_tokens_details, "reasoning_tokens")
    if reasoning:
        fields["output_tokens_details"] = {"thinking_tokens": reasoning}
    return fields


def _count(details: dict[str, Any] | None, name: str) -> int:
    value = (details or {}).get(name)
    return value if isinstance(value, int) else 0
