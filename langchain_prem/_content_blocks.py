"""Standard content blocks of Prem's messages.

langchain-core asks the translator registered for ``model_provider`` what blocks a message holds. Its own
numbering would count text and reasoning blocks 0, 1, … while tool-call chunks carry 0, 1, … too, and
merging would then fuse a call into a text block. The string indexes given here keep them apart, in the
default form, with ``output_version="v1"`` and in stream events v3 alike.
"""

from __future__ import annotations

from typing import Any, cast

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages import content as types
from langchain_core.messages.block_translators import register_translator

PROVIDER = "prem"

REASONING_INDEX = "lc_rs_0"
TEXT_INDEX = "lc_txt_0"
REFUSAL_INDEX = "lc_rf_0"


def tool_call_index(position: int | str | None) -> str:
    """The block index of the tool call at `position`."""
    return f"lc_tc_{0 if position is None else position}"


def blocks_of(message: AIMessage) -> list[types.ContentBlock]:
    """The blocks of a whole message: reasoning, text, refusal, tool calls, in that order."""
    blocks = _said(message, indexed=False)
    for call in message.tool_calls:
        blocks.append({"type": "tool_call", "id": call["id"], "name": call["name"], "args": call["args"]})
    for bad in message.invalid_tool_calls:
        blocks.append({**bad, "type": "invalid_tool_call"})
    return cast("list[types.ContentBlock]", blocks)


def blocks_of_chunk(message: AIMessageChunk) -> list[types.ContentBlock]:
    """The blocks of one chunk, or of several that were added up."""
    if message.chunk_position == "last" and not _streams(message):
        return blocks_of(message)
    blocks = _said(message, indexed=True)
    for piece in message.tool_call_chunks:
        blocks.append(
            {
                "type": "tool_call_chunk",
                "id": piece.get("id"),
                "name": piece.get("name"),
                "args": piece.get("args"),
                "index": tool_call_index(piece.get("index")),
            }
        )
    return cast("list[types.ContentBlock]", blocks)


def _streams(message: AIMessageChunk) -> bool:
    # A last chunk by itself holds no answer; added to those before it, it makes the whole one.
    return not message.content and not message.tool_call_chunks and not message.additional_kwargs


def _said(message: AIMessage, *, indexed: bool) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    kwargs = message.additional_kwargs
    if reasoning := kwargs.get("reasoning_content"):
        blocks.append({"type": "reasoning", "reasoning": reasoning})
        if indexed:
            blocks[-1]["index"] = REASONING_INDEX
    if isinstance(message.content, str):
        if message.content:
            blocks.append({"type": "text", "text": message.content})
            if indexed:
                blocks[-1]["index"] = TEXT_INDEX
    else:
        for block in message.content:
            blocks.append({"type": "text", "text": block} if isinstance(block, str) else block)
    if refusal := kwargs.get("refusal"):
        blocks.append({"type": "non_standard", "value": {"type": "refusal", "refusal": refusal}})
        if indexed:
            blocks[-1]["index"] = REFUSAL_INDEX
    return blocks


register_translator(PROVIDER, blocks_of, blocks_of_chunk)
