"""Standard content blocks of Prem's messages.

langchain-core calls the translator registered for ``model_provider`` to get a message's blocks. Its own numbering would
count text and reasoning blocks 0, 1, … while tool call chunks are numbered 0, 1, … too, and merging would add a call to
a text block. The string indexes here keep them apart: in the default form, with ``output_version="v1"`` and in stream
events v3.
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
    """The blocks of a complete message: reasoning, text, refusal and tool calls, in that order."""
    blocks = _text_blocks(message, indexed=False)
    for call in message.tool_calls:
        blocks.append({"type": "tool_call", "id": call["id"], "name": call["name"], "args": call["args"]})
    for invalid in message.invalid_tool_calls:
        blocks.append({**invalid, "type": "invalid_tool_call"})
    return cast("list[types.ContentBlock]", blocks)


def blocks_of_chunk(message: AIMessageChunk) -> list[types.ContentBlock]:
    """The blocks of one chunk, or of a sum of chunks."""
    if message.chunk_position == "last" and not _is_empty(message):
        return blocks_of(message)
    blocks = _text_blocks(message, indexed=True)
    for part in message.tool_call_chunks:
        blocks.append(
            {
                "type": "tool_call_chunk",
                "id": part.get("id"),
                "name": part.get("name"),
                "args": part.get("args"),
                "index": tool_call_index(part.get("index")),
            }
        )
    return cast("list[types.ContentBlock]", blocks)


def _is_empty(message: AIMessageChunk) -> bool:
    # The last chunk itself has no content; added to those before it, it gives the complete answer.
    return not message.content and not message.tool_call_chunks and not message.additional_kwargs


def _text_blocks(message: AIMessage, *, indexed: bool) -> list[dict[str, Any]]:
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
