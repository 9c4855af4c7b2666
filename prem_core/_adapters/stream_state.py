"""The state of a streamed answer in both adapters, and the checks at its end."""

from __future__ import annotations

from prem_core._adapters.tools import are_truncated, raise_if_truncated
from prem_core._errors import APIResponseValidationError
from prem_core._protocol.accumulator import ToolCallMerger
from prem_core._protocol.protection import Protection
from prem_core._protocol.response_types import (
    ChatCompletionChunk,
    ChunkChoice,
    ToolCall,
    ToolCallDelta,
    Usage,
)

__all__ = ["StreamState", "ToolCall", "ToolCallDelta"]


class StreamState:
    """The usage, finish reason, text and tool calls of one stream so far.

    Some servers send usage and finish reason in several chunks. Frameworks would add them up, so they are attached only
    to the last message.

    Args:
        protection: How the answer is protected.
        json_requested: Whether the request asks for JSON, so that a truncated answer is an error.
        first_call_only: Whether tool calls after the first one are ignored.
    """

    def __init__(
        self, protection: Protection, *, json_requested: bool, first_call_only: bool = False
    ) -> None:
        #: How the answer is protected.
        self.prem = protection.as_dict()
        #: The last usage report; it is cumulative.
        self.usage: Usage | None = None
        #: The chunk with the finish reason.
        self.final: ChatCompletionChunk | None = None
        self._text: list[str] = []
        self._tools: ToolCallMerger | None = None
        self._named: set[int] = set()
        self._json_requested = json_requested
        self._first_call_only = first_call_only

    def read(self, chunk: ChatCompletionChunk) -> ChunkChoice | None:
        """Record `chunk` and return its choice. None for chunks without choices, such as the usage chunk."""
        if chunk.usage is not None:
            self.usage = chunk.usage
        if not chunk.choices:
            return None
        choice = chunk.choices[0]
        if choice.finish_reason is not None:
            self.final = chunk
        if choice.delta.content:
            self._text.append(choice.delta.content)
        return choice

    @property
    def text(self) -> str:
        """The text so far."""
        text = "".join(self._text)
        self._text = [text]
        return text

    def add_tool_call(self, delta: ToolCallDelta) -> tuple[int, str | None]:
        """Merge a part of a tool call. Return its position, and its name when the name first appears."""
        if self._tools is None:
            self._tools = ToolCallMerger()
        index = self._tools.add(delta)
        name = delta.function.name if delta.function is not None and index not in self._named else None
        if name:
            self._named.add(index)
        return index, name or None

    def keeps(self, position: int) -> bool:
        """Whether the tool call at `position` is not one that `first_call_only` ignores."""
        return not self._first_call_only or self._tools is None or position == self._tools.first

    @property
    def left_out_calls(self) -> int:
        """How many tool calls `first_call_only` ignores so far."""
        return len(self._tools.calls()) - 1 if self._first_call_only and self._tools is not None else 0

    def tool_calls(self) -> list[ToolCall]:
        """The tool calls so far."""
        if self._tools is None:
            return []
        return self._tools.calls()[: 1 if self._first_call_only else None]

    def check_end(self) -> None:
        """Check that the answer is complete, after its last chunk.

        Raises:
            LengthFinishReasonError: The token limit truncated a tool call or the requested JSON.
            APIResponseValidationError: The arguments of a tool call are truncated, whatever the finish reason.
        """
        arguments = [call.function.arguments for call in self.tool_calls()]
        if self.final is not None and self.final.choices[0].finish_reason == "length":
            raise_if_truncated(arguments, self.text if self._json_requested else None)
        elif any(map(are_truncated, arguments)):
            raise APIResponseValidationError(
                "the arguments of a tool call are truncated: they are not complete JSON"
            )
