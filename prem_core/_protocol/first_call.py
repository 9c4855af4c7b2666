"""Keep the first tool call of an answer: what `parallel_tool_calls=False` asks for.

The published schema does not have that parameter, and the service may make several calls at once.
"""

from __future__ import annotations

from prem_core._protocol.accumulator import ToolCallMerger
from prem_core._protocol.response_types import ChatCompletion, ChatCompletionChunk


class FirstCallOnly:
    """Removes the tool calls after the first one, from the chunks of one answer or from a whole one.

    Attributes:
        left_out: How many tool calls were removed.
    """

    def __init__(self) -> None:
        self._mergers: dict[int, ToolCallMerger] = {}
        self._left_out: set[tuple[int, int]] = set()

    @property
    def left_out(self) -> int:
        return len(self._left_out)

    def filter_chunk(self, chunk: ChatCompletionChunk) -> None:
        """Remove the parts of later calls from the next chunk of the answer."""
        for choice in chunk.choices:
            if not choice.delta.tool_calls:
                continue
            merger = self._mergers.setdefault(choice.index, ToolCallMerger())
            kept = []
            for part in choice.delta.tool_calls:
                # Parts without an index belong together by their order, which the merger follows.
                position = merger.add(part)
                if position == merger.first:
                    kept.append(part)
                else:
                    self._left_out.add((choice.index, position))
            choice.delta.tool_calls = kept or None
            if not kept:
                choice.delta.model_fields_set.discard("tool_calls")

    def filter_completion(self, completion: ChatCompletion) -> None:
        """Remove the later calls of each choice of a whole answer."""
        for choice in completion.choices:
            calls = choice.message.tool_calls or []
            self._left_out.update((choice.index, position) for position in range(1, len(calls)))
            choice.message.tool_calls = calls[:1] or None
