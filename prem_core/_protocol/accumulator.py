"""Join the chunks of a stream into the whole completion."""

from __future__ import annotations

from prem_core._protocol.response_types import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessage,
    Choice,
    Function,
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


class CompletionBuilder:
    """`add` the chunks in order, then `build` the completion."""

    def __init__(self) -> None:
        self._head: ChatCompletionChunk | None = None
        self._parts: dict[int, _ChoiceParts] = {}
        self._usage: Usage | None = None
        self._fingerprint: str | None = None

    def add(self, chunk: ChatCompletionChunk) -> None:
        """Add the next chunk."""
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
            delta = choice.delta
            if delta.content:
                parts.content.append(delta.content)
            if delta.reasoning_content:
                parts.reasoning.append(delta.reasoning_content)
            if delta.refusal:
                parts.refusal.append(delta.refusal)
            for part in delta.tool_calls or ():
                parts.tools.add(part)
            for name, entries in (choice.logprobs or {}).items():
                if isinstance(entries, list):
                    parts.logprobs.setdefault(name, []).extend(entries)
            if choice.finish_reason is not None:
                parts.choice.finish_reason = choice.finish_reason
                parts.choice.matched_stop = choice.matched_stop

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
