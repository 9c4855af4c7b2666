"""Join the chunks of a stream into the whole completion, and cut a whole completion into chunks."""

from __future__ import annotations

from collections.abc import Iterator

from prem_core._errors import ResponseTooLargeError
from prem_core._protocol.response_types import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessage,
    Choice,
    ChunkChoice,
    Delta,
    Function,
    FunctionDelta,
    ToolCall,
    ToolCallDelta,
    Usage,
)


class ToolCallMerger:
    """Joins the parts of parallel tool calls.

    Parts belong together by `index`. Without an index their order counts: a part with a new id starts a call, a part
    without one continues the last.
    """

    __slots__ = ("_calls", "_order")

    def __init__(self) -> None:
        self._calls: dict[int, ToolCall] = {}
        self._order: dict[int, list[str]] = {}

    def add(self, part: ToolCallDelta) -> int:
        """Add a part; return the position of the call that it belongs to."""
        index = part.index
        if index is None:
            last = max(self._calls, default=-1)
            index = last + 1 if last < 0 or (part.id and part.id != self._calls[last].id) else last
        call = self._calls.get(index)
        if call is None:
            call = self._calls[index] = ToolCall(function=Function())
            self._order[index] = []
        if part.id:
            call.id = part.id
        if part.type:
            call.type = part.type
        if part.function is not None:
            # Once: some servers repeat the name with every part.
            if part.function.name and not call.function.name:
                call.function.name = part.function.name
            if part.function.arguments:
                self._order[index].append(part.function.arguments)
        return index

    @property
    def first(self) -> int:
        """The position of the call that came first."""
        return next(iter(self._calls))

    def calls(self) -> list[ToolCall]:
        """The calls so far, in order, their arguments joined."""
        for index, parts in self._order.items():
            if parts:
                self._calls[index].function.arguments += "".join(parts)
                self._order[index] = []
        return [self._calls[index] for index in sorted(self._calls)]


class _ChoiceParts:
    __slots__ = ("choice", "content", "logprobs", "reasoning", "refusal", "tools")

    def __init__(self, index: int) -> None:
        self.choice = Choice(index=index, message=ChatCompletionMessage())
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.refusal: list[str] = []
        self.logprobs: dict[str, list[object]] = {}
        self.tools = ToolCallMerger()


#: What a choice, a tool call or a log probability counts at least, in bytes of the answer.
_ENTRY_BYTES = 64


class CompletionBuilder:
    """`add` the chunks in order, then `build` the completion.

    Args:
        max_size: How many characters the answer may have; None for no limit.
    """

    def __init__(self, max_size: int | None = None) -> None:
        self._max = max_size
        self._size = 0
        self._head: ChatCompletionChunk | None = None
        self._parts: dict[int, _ChoiceParts] = {}
        self._usage: Usage | None = None
        self._fingerprint: str | None = None

    def add(self, chunk: ChatCompletionChunk) -> None:
        """Add the next chunk.

        Raises:
            ResponseTooLargeError: The answer is larger than `max_size`.
        """
        if self._head is None:
            self._head = chunk
        if chunk.usage is not None:
            # Servers that report usage with every chunk count up: the last one is the total.
            self._usage = chunk.usage
        self._fingerprint = chunk.system_fingerprint or self._fingerprint
        for choice in chunk.choices:
            parts = self._parts.get(choice.index)
            if parts is None:
                parts = self._parts[choice.index] = _ChoiceParts(choice.index)
                self._count(_ENTRY_BYTES)
            delta = choice.delta
            if delta.content:
                parts.content.append(delta.content)
                self._count(len(delta.content))
            if delta.reasoning_content:
                parts.reasoning.append(delta.reasoning_content)
                self._count(len(delta.reasoning_content))
            if delta.refusal:
                parts.refusal.append(delta.refusal)
                self._count(len(delta.refusal))
            for part in delta.tool_calls or ():
                parts.tools.add(part)
                self._count(_ENTRY_BYTES + len((part.function and part.function.arguments) or ""))
            for name, entries in (choice.logprobs or {}).items():
                if isinstance(entries, list):
                    self._count(_ENTRY_BYTES * len(entries))
                    parts.logprobs.setdefault(name, []).extend(entries)
            if choice.finish_reason is not None:
                parts.choice.finish_reason = choice.finish_reason
                parts.choice.matched_stop = choice.matched_stop

    def _count(self, size: int) -> None:
        self._size += size
        if self._max is not None and self._size > self._max:
            raise ResponseTooLargeError(f"the answer is larger than max_buffer_size ({self._max} bytes)")

    def build(self) -> ChatCompletion:
        """The completion so far. Content is None if a choice had none."""
        choices = []
        for index in sorted(self._parts):
            parts = self._parts[index]
            message = parts.choice.message
            message.content = "".join(parts.content) if parts.content else None
            message.reasoning_content = "".join(parts.reasoning) or None
            message.refusal = "".join(parts.refusal) or None
            message.tool_calls = parts.tools.calls() or None
            parts.choice.logprobs = dict(parts.logprobs) or None
            choices.append(parts.choice)
        head = self._head or ChatCompletionChunk()
        return ChatCompletion(
            id=head.id,
            created=head.created,
            model=head.model,
            choices=choices,
            usage=self._usage,
            system_fingerprint=self._fingerprint,
        )


def chunks_of(completion: ChatCompletion, *, include_usage: bool) -> Iterator[ChatCompletionChunk]:
    """A whole completion as a stream has it: the text, then the finish reasons, then the usage if it was asked for."""
    head = {
        "id": completion.id,
        "created": completion.created,
        "model": completion.model,
        "system_fingerprint": completion.system_fingerprint,
    }
    texts, ends = [], []
    for choice in completion.choices:
        message = choice.message.model_dump(exclude_none=True, exclude={"tool_calls"})
        calls = [
            ToolCallDelta(
                index=position,
                id=call.id,
                type=call.type,
                function=FunctionDelta(name=call.function.name, arguments=call.function.arguments),
            )
            for position, call in enumerate(choice.message.tool_calls or ())
        ]
        delta = Delta(**message, **({"tool_calls": calls} if calls else {}))
        texts.append(ChunkChoice(index=choice.index, delta=delta, logprobs=choice.logprobs))
        ends.append(
            ChunkChoice(
                index=choice.index,
                delta=Delta(),
                finish_reason=choice.finish_reason,
                matched_stop=choice.matched_stop,
            )
        )
    yield ChatCompletionChunk(**head, choices=texts)
    yield ChatCompletionChunk(**head, choices=ends)
    if include_usage and completion.usage is not None:
        yield ChatCompletionChunk(**head, choices=[], usage=completion.usage)
