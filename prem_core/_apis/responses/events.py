"""An answer as the events of OpenAI's Responses API, in the order that its clients check.

::

    response.created, response.in_progress
    for each item:  output_item.added … its parts and deltas … output_item.done
    response.completed | response.incomplete | error and response.failed
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from prem_core._apis.base import ApiError, Encoder, quote_names, to_json
from prem_core._apis.responses.output import (
    CustomCall,
    FunctionCall,
    ItemStatus,
    Message,
    OutputItem,
    Reasoning,
)
from prem_core._protocol.accumulator import ToolCallMerger, chunks_of
from prem_core._protocol.response_types import (
    ChatCompletion,
    ChatCompletionChunk,
    ChunkChoice,
    ToolCallDelta,
    Usage,
)

#: The finish reasons of a complete answer.
_COMPLETE: Final = ("stop", "tool_calls", "function_call")

#: The finish reasons of an incomplete one, with OpenAI's reason.
_INCOMPLETE: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}

#: `code` of a failed response, by status: OpenAI's clients accept only listed codes.
_FAILURES: Final = {400: "invalid_prompt", 429: "rate_limit_exceeded"}


@dataclass(slots=True, kw_only=True)
class Draft:
    """A response before its answer.

    Attributes:
        token: What its ids have in common.
        head: The fields that repeat the request, and its id and time.
        custom: Names of the custom tools.
        mark_reasoning: Whether reasoning needs an `encrypted_content`.
        logprobs: Whether log probabilities were asked for.
        now: Seconds since the epoch.
        keep: Stores the finished response; None for one that is not stored.
    """

    token: str
    head: dict[str, Any] = field(repr=False)
    custom: set[str] = field(default_factory=set, repr=False)
    mark_reasoning: bool = False
    logprobs: bool = False
    now: Callable[[], float] = field(repr=False)
    keep: Callable[[dict[str, Any]], None] | None = field(default=None, repr=False)


@dataclass(slots=True)
class _Call:
    """A tool call as it arrives: `waiting` are the parts of its arguments that are not yet in an event."""

    id: str = ""
    name: str = ""
    waiting: list[str] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)
    item: FunctionCall | None = None
    closed: bool = False
    checked: int = 0

    def has_all_arguments(self) -> bool:
        """Whether its arguments are a whole JSON value, so that nothing can follow."""
        if self.checked == len(self.sent):
            return False  # nothing has arrived since the last check
        self.checked = len(self.sent)
        try:
            json.loads("".join(self.sent))
        except (ValueError, RecursionError):
            return False
        return True


class ResponseEncoder(Encoder):
    """Encodes one answer.

    Calls are emitted one after the other, each whole, because clients rely on it. A second call is held back until the
    first one's arguments are whole.

    Args:
        draft: The response before its answer.
        silent: Make no bytes: only `response` is needed.

    Attributes:
        response: The finished response; empty before the end.
    """

    def __init__(self, draft: Draft, *, silent: bool = False) -> None:
        self._draft = draft
        self._silent = silent
        self._events: list[bytes] = []
        self._sequence = 0
        self._started = False
        self._model: str = draft.head["model"]
        self._items = 0
        self._output: dict[int, dict[str, Any]] = {}
        self._open: Message | Reasoning | None = None
        self._merger = ToolCallMerger()
        self._calls: dict[int, _Call] = {}
        self._current: _Call | None = None
        self._finish: str | None = None
        self._usage: Usage | None = None
        self.response: dict[str, Any] = {}

    def chunk(self, chunk: ChatCompletionChunk) -> bytes:
        """See `Encoder.chunk`.

        Raises:
            ApiError: 502, parts of two calls are mixed in a way that cannot be put in order.
        """
        self._model = chunk.model or self._model
        self._start()
        if chunk.usage is not None:
            self._usage = chunk.usage
        for choice in chunk.choices:
            if choice.index == 0:
                self._add(choice)
        return self._flush()

    def end(self) -> bytes:
        """See `Encoder.end`.

        Raises:
            ApiError: 502, the answer has no finish reason, or one that is not known.
        """
        self._start()
        reason = _INCOMPLETE.get(self._finish or "")
        if reason is None and self._finish not in _COMPLETE:
            why = "without a finish reason" if self._finish is None else f"with {quote_names([self._finish])}"
            raise ApiError(502, f"the answer ended {why}", type="server_error", code="stream_interrupted")
        self._close_all("completed" if reason is None else "incomplete")
        status = "completed" if reason is None else "incomplete"
        self.response = self._response(
            status,
            output=[self._output[position] for position in sorted(self._output)],
            usage=_usage(self._usage),
            incomplete_details=None if reason is None else {"reason": reason},
        )
        if self._draft.keep is not None:
            self._draft.keep(self.response)
        self._emit(f"response.{status}", response=self.response)
        return self._flush()

    def error(self, error: ApiError) -> bytes:
        """See `Encoder.error`."""
        self._start()
        value = {"code": error.code, "message": error.message, "param": error.param}
        # OpenAI's clients raise an event with an `error`, and pass on one without.
        self._emit("error", **value, error={**value, "type": error.type})
        failure = {"code": _FAILURES.get(error.status, "server_error"), "message": error.message}
        self._emit("response.failed", response=self._response("failed", error=failure))
        return self._flush()

    # The answer's parts

    def _add(self, choice: ChunkChoice) -> None:
        delta = choice.delta
        if delta.reasoning_content:
            item = self._open
            if not isinstance(item, Reasoning):
                self._close_open("completed")
                self._close_finished_call()
                marked = self._draft.mark_reasoning
                item = self._open = Reasoning(self._emit, self._draft.token, self._next(), marked=marked)
            item.add(delta.reasoning_content)
        if delta.content:
            self._message().add(delta.content, self._logprobs(choice))
        if delta.refusal:
            self._message().refuse(delta.refusal)
        for part in delta.tool_calls or ():
            self._add_call(part)
        self._finish = choice.finish_reason or self._finish

    def _message(self) -> Message:
        item = self._open
        if not isinstance(item, Message):
            self._close_open("completed")
            self._close_finished_call()
            item = self._open = Message(self._emit, self._draft.token, self._next())
        return item

    def _add_call(self, part: ToolCallDelta) -> None:
        call = self._calls.setdefault(self._merger.add(part), _Call())
        call.id = part.id or call.id
        function = part.function
        if function is not None:
            call.name = call.name or function.name or ""
            if function.arguments:
                call.waiting.append(function.arguments)
        if call.closed and "".join(call.waiting).strip():
            raise ApiError(
                502,
                "the service sent more arguments for a tool call after their end",
                type="server_error",
                code="invalid_response",
            )
        if self._current is not call:
            self._close_finished_call()
        if self._current is None and not call.closed and call.name:
            self._current = call
        if self._current is call:
            self._send_call(call)

    def _send_call(self, call: _Call) -> FunctionCall:
        """Emit what has arrived of a call."""
        if call.item is None:
            self._close_open("completed")
            kind = CustomCall if call.name in self._draft.custom else FunctionCall
            index = self._next()
            call.id = call.id or f"call_{self._draft.token}{index:04x}"
            call.item = kind(self._emit, self._draft.token, index, call.id, call.name)
        for text in call.waiting:
            call.item.add(text)
        call.sent += call.waiting
        call.waiting = []
        return call.item

    def _close_finished_call(self) -> None:
        if self._current is not None and self._current.has_all_arguments():
            self._close_call(self._current, "completed")

    def _close_call(self, call: _Call, status: ItemStatus) -> None:
        self._close(self._send_call(call), status)
        call.closed = True
        if self._current is call:
            self._current = None

    def _close_open(self, status: ItemStatus) -> None:
        if self._open is not None:
            self._close(self._open, status)
            self._open = None

    def _close(self, item: OutputItem, status: ItemStatus) -> None:
        self._output[item.index] = item.close(status)

    def _close_all(self, status: ItemStatus) -> None:
        """Close every item. Only the last one can be incomplete."""
        calls = [self._calls[position] for position in sorted(self._calls)]
        # The one that has begun comes first.
        calls = sorted((call for call in calls if not call.closed), key=lambda call: call.item is None)
        if any(not call.name for call in calls):
            why = "the answer has a tool call without a name"
            raise ApiError(502, why, type="server_error", code="invalid_response")
        if not calls and self._open is None and not self._output:
            self._message()
        elif status == "completed" and not self._calls and isinstance(self._open, Reasoning):
            self._message()  # agents end at a message
        self._close_open("completed" if calls else status)
        for call in calls:
            self._close_call(call, status if call is calls[-1] else "completed")

    def _next(self) -> int:
        self._items += 1
        return self._items - 1

    def _logprobs(self, choice: ChunkChoice) -> list[dict[str, Any]]:
        entries = (choice.logprobs or {}).get("content") if self._draft.logprobs else None
        return [_logprob(entry, top=True) for entry in entries or () if isinstance(entry, dict)]

    # Events

    def _start(self) -> None:
        if not self._started:
            self._started = True
            response = self._response("in_progress")
            self._emit("response.created", response=response)
            self._emit("response.in_progress", response=response)

    def _response(self, status: str, **fields: Any) -> dict[str, Any]:
        return {
            **self._draft.head,
            "model": self._model,
            "status": status,
            "completed_at": int(self._draft.now()) if status == "completed" else None,
            "error": None,
            "incomplete_details": None,
            "output": [],
            "usage": None,
            **fields,
        }

    def _emit(self, kind: str, /, **fields: Any) -> None:
        if self._silent:
            return
        data = to_json({"type": kind, "sequence_number": self._sequence, **fields})
        self._sequence += 1
        self._events.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), data))

    def _flush(self) -> bytes:
        events = b"".join(self._events)
        self._events.clear()
        return events


def whole_response(completion: ChatCompletion, draft: Draft) -> dict[str, Any]:
    """A whole answer as a response.

    Raises:
        ApiError: See `ResponseEncoder.end`.
    """
    encoder = ResponseEncoder(draft, silent=True)
    for chunk in chunks_of(completion, include_usage=True):
        encoder.chunk(chunk)
    encoder.end()
    return encoder.response


def _usage(usage: Usage | None) -> dict[str, Any] | None:
    if usage is None:
        return None
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": _count(usage.prompt_tokens_details, "cached_tokens"),
            "cache_write_tokens": _count(usage.prompt_tokens_details, "cache_write_tokens"),
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {
            "reasoning_tokens": _count(usage.completion_tokens_details, "reasoning_tokens")
        },
        "total_tokens": usage.total_tokens,
    }


def _count(details: dict[str, Any] | None, name: str) -> int:
    value = (details or {}).get(name)
    return value if isinstance(value, int) else 0


def _logprob(entry: dict[str, Any], *, top: bool) -> dict[str, Any]:
    made = {
        "token": entry.get("token") or "",
        "logprob": entry.get("logprob") or 0.0,
        "bytes": entry.get("bytes") or [],
    }
    if top:
        tops = entry.get("top_logprobs")
        made["top_logprobs"] = [_logprob(each, top=False) for each in tops or () if isinstance(each, dict)]
    return made
