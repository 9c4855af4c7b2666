"""A real OpenAI-compatible server whose answers each test writes down, and the chunks it says."""

from __future__ import annotations

from typing import Any

from raw_wire import Upstream


def _chunk(choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "scripted"}
    return {**head, "choices": choices, **more}


def delta(**said: Any) -> dict[str, Any]:
    """A chunk that adds `said` to the first choice."""
    return _chunk([{"index": 0, "delta": said, "logprobs": None, "finish_reason": None}])


def finish(reason: str = "stop") -> dict[str, Any]:
    """The chunk that ends the first choice."""
    return _chunk([{"index": 0, "delta": {}, "logprobs": None, "finish_reason": reason}])


def usage(prompt: int, completion: int, *, reasoning: int | None = None, cached: int | None = None) -> dict[str, Any]:
    """The chunk that counts tokens."""
    counts: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    if reasoning is not None:
        counts["completion_tokens_details"] = {"reasoning_tokens": reasoning}
    if cached is not None:
        counts["prompt_tokens_details"] = {"cached_tokens": cached}
    return _chunk([], usage=counts)


def tool_call(index: int, call_id: str | None = None, name: str | None = None, arguments: str = "") -> dict[str, Any]:
    """A piece of a call."""
    piece: dict[str, Any] = {"index": index, "function": {"arguments": arguments}}
    if call_id is not None:
        piece.update(id=call_id, type="function")
    if name is not None:
        piece["function"]["name"] = name
    return piece
