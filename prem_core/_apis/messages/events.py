"""A streamed answer as the events of the Messages API.

``message_start``; for each block ``content_block_start``, ``content_block_delta`` and ``content_block_stop``; then
``message_delta`` and ``message_stop``. A block ends before the next one starts. A tool call's block ends only when its
arguments are a complete JSON object: agents run a tool as soon as its block ends.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from prem_core._adapters.tools import read_arguments
from prem_core._apis.base import ApiError, Encoder, to_json
from prem_core._apis.messages.answer import (
    SIGNATURE,
    made_call_id,
    message_head,
    stop_fields,
    tool_input,
    usage_fields,
)
from prem_core._apis.messages.errors import error_body
from prem_core._apis.messages.request import AnswerForm
from prem_core._protocol.accumulator import ToolCallMerger
from prem_core._protocol.response_types import ChatCompletionChunk, ChunkChoice, ToolCallDelta, Usage

PING: Final = b'event: ping\ndata: {"type":"ping"}\n\n'

#: Chunks of reasoning that the caller did not ask for, until a ping takes their place. Some clients close a stream that
#: is silent.
PING_EVERY: Final = 50


@dataclass(slots=True)
class _Call:
    """A tool call so far: what has arrived, and how much of its arguments has been sent."""

    position: int
    id: str = ""
    name: str = ""
    parts: list[str] = field(default_factory=list)
    sent: int = 0

    @property
    def complete(self) -> bool:
        # Without arguments it may be a call that has only started.
        return any(self.parts) and read_arguments("".join(self.parts)) is not None


class MessageEncoder(Encoder):
    """Encodes one streamed answer.

    Args:
        form: What the request asked for.
    """

    def __init__(self, form: AnswerForm) -> None:
        self._form = form
        self._id = ""
        self._started = False
        self._blocks = 0
        #: The open block: text or thinking.
        self._open: str | None = None
        #: The tool call whose block is open.
        self._call: _Call | None = None
        self._calls: dict[int, _Call] = {}
        self._merger = ToolCallMerger()
        # What has to wait until the arguments of the open call are complete. Some servers mix the parts of calls.
        self._waiting: list[_Call | tuple[str, str]] = []
        self._hidden = 0
        self._refused = False
        self._end: ChunkChoice | None = None
        self._usage: Usage | None = None

    def chunk(self, chunk: ChatCompletionChunk) -> bytes:
        """The events of one chunk."""
        if chunk.usage is not None:
            self._usage = chunk.usage
        out = [] if self._started else [self._start(chunk)]
        for choice in chunk.choices:
            if choice.index != 0:
                continue
            delta = choice.delta
            if delta.reasoning_content:
                self._reason(delta.reasoning_content, out)
            if delta.content:
                self._write("text", delta.content, out)
            if delta.refusal:
                self._refused = True
                self._write("text", delta.refusal, out)
            for part in delta.tool_calls or ():
                self._add(part, out)
            if choice.finish_reason is not None:
                self._end = choice
        return b"".join(out)

    def end(self) -> bytes:
        """The end of the open blocks, ``message_delta`` with the token counts, and ``message_stop``.

        Raises:
            LengthFinishReasonError: The token limit truncated a tool call.
            APIResponseValidationError: A tool call is not complete, or there is no finish reason.
        """
        out: list[bytes] = []
        reason = self._end.finish_reason if self._end else None
        stop = stop_fields(
            reason,
            self._end.matched_stop if self._end else None,
            self._form,
            called=bool(self._calls),
            refused=self._refused,
        )
        # All calls, before the first block ends.
        for call in self._calls.values():
            tool_input(call.name, "".join(call.parts), reason)
        self._close(out)
        self._resume(out, all_arrived=True)
        self._close(out)
        out.append(_event("message_delta", delta=stop, usage=usage_fields(self._usage)))
        out.append(_event("message_stop"))
        return b"".join(out)

    def error(self, error: ApiError) -> bytes:
        """An error event. Anthropic's clients raise it."""
        return b"event: error\ndata: %b\n\n" % error_body(error)

    def keep_alive(self) -> bytes:
        """A ``ping``."""
        return PING

    def _start(self, chunk: ChatCompletionChunk) -> bytes:
        self._started, self._id = True, chunk.id
        # The input is counted at the end, in `message_delta`, unless the service reports usage with each chunk.
        message = {
            **message_head(chunk.id, chunk.model),
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage_fields(self._usage),
        }
        return _event("message_start", message=message)

    def _reason(self, text: str, out: list[bytes]) -> None:
        if self._form.thinking == "text":
            self._write("thinking", text, out)
            return
        if self._form.thinking == "empty":
            self._write("thinking", "", out)
        self._hidden += 1
        if self._hidden % PING_EVERY == 0:
            out.append(PING)

    def _write(self, kind: str, text: str, out: list[bytes]) -> None:
        """Text or thinking. It waits while the arguments of a tool call are incomplete."""
        if self._call is not None and (self._waiting or not self._call.complete):
            self._waiting.append((kind, text))
        else:
            self._write_now(kind, text, out)

    def _write_now(self, kind: str, text: str, out: list[bytes]) -> None:
        if self._open != kind:
            self._close(out)
            self._open = kind
            empty = {"thinking": "", "signature": ""} if kind == "thinking" else {"text": ""}
            out.append(self._block_start({"type": kind, **empty}))
        if text:
            out.append(self._delta({"type": f"{kind}_delta", kind: text}))

    def _add(self, part: ToolCallDelta, out: list[bytes]) -> None:
        """A part of a tool call."""
        position = self._merger.add(part)
        call = self._calls.get(position)
        if call is None:
            call = self._calls[position] = _Call(position)
            self._waiting.append(call)
        if part.id and not call.id:
            call.id = part.id
        if part.function is not None:
            if part.function.name and not call.name:
                call.name = part.function.name
            if part.function.arguments:
                call.parts.append(part.function.arguments)
        if call is self._call:
            self._send_arguments(call, out)
        if self._waiting:
            self._resume(out)

    def _resume(self, out: list[bytes], *, all_arrived: bool = False) -> None:
        """Send what waits, up to a tool call whose arguments are not complete."""
        while self._waiting:
            if self._call is not None and not (all_arrived or self._call.complete):
                return
            item = self._waiting[0]
            if isinstance(item, _Call):
                if not item.name:
                    return
                self._close(out)
                self._call = item
                made = {
                    "id": item.id or made_call_id(self._id, item.position),
                    "name": item.name,
                    "input": {},
                }
                out.append(self._block_start({"type": "tool_use", **made}))
                self._send_arguments(item, out)
            else:
                self._write_now(*item, out)
            del self._waiting[0]

    def _send_arguments(self, call: _Call, out: list[bytes]) -> None:
        text = "".join(call.parts[call.sent :])
        call.sent = len(call.parts)
        if text:
            out.append(self._delta({"type": "input_json_delta", "partial_json": text}))

    def _close(self, out: list[bytes]) -> None:
        """End the open block, if there is one."""
        if self._open is None and self._call is None:
            return
        if self._open == "thinking":
            out.append(self._delta({"type": "signature_delta", "signature": SIGNATURE}))
        out.append(_event("content_block_stop", index=self._blocks - 1))
        self._open = self._call = None

    def _block_start(self, block: dict[str, Any]) -> bytes:
        self._blocks += 1
        return _event("content_block_start", index=self._blocks - 1, content_block=block)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._blocks - 1, delta=delta)


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), to_json({"type": kind, **fields}))
