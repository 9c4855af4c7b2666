"""Chunks of a reply as OpenAI streams them: deltas, limits, stop sequences, log probabilities, usage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prem_core.enclave.extractive import pieces


@dataclass(frozen=True)
class StreamedCall:
    """A tool call with its id; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Reply:
    """What one choice says, whole: nothing of it is cut yet."""

    reasoning: str = ""
    content: str = ""
    calls: tuple[StreamedCall, ...] = ()


@dataclass(frozen=True)
class Limits:
    """max_tokens (None: no limit) and stop, by which every choice is cut; top_logprobs (None: none wanted)."""

    tokens: int | None
    stop: tuple[str, ...]
    top_logprobs: int | None


def stream(
    replies: Sequence[Reply], limits: Limits, head: Mapping[str, Any], prompt_tokens: int, usage: bool
) -> Iterator[dict[str, Any]]:
    """The chunks of all replies, choice by choice, then one with the usage if asked for.

    `head` holds the members every chunk shares: id, object, created, model, system_fingerprint.
    """
    reasoned = completed = 0
    for index, reply in enumerate(replies):
        for part in _parts(reply, limits):
            reasoned += part.tokens if part.reasoning else 0
            completed += part.tokens
            choice = {
                "index": index,
                "delta": part.delta,
                "logprobs": part.logprobs,
                "finish_reason": part.finish_reason,
                "matched_stop": part.matched_stop,
            }
            yield {**head, "choices": [choice], "usage": None}
    if usage:
        counts = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completed,
            "total_tokens": prompt_tokens + completed,
            "completion_tokens_details": {"reasoning_tokens": reasoned},
        }
        yield {**head, "choices": [], "usage": counts}


@dataclass
class _Part:
    """One delta, or the end, of a choice; `tokens` is what it costs."""

    delta: dict[str, Any]
    tokens: int = 0
    reasoning: bool = False
    logprobs: dict[str, Any] | None = None
    finish_reason: str | None = None
    matched_stop: str | None = None


def _parts(reply: Reply, limits: Limits) -> Iterator[_Part]:
    content, matched = _stopped(reply.content, limits.stop)
    role: str | None = "assistant"
    left = limits.tokens
    for part in _deltas(reply, content, limits.top_logprobs):
        if left is not None and part.tokens > left:
            yield _Part({}, finish_reason="length")
            return
        if left is not None:
            left -= part.tokens
        part.delta["role"], role = role, None
        yield part
    if role:  # nothing was said: the role still has to be
        yield _Part(_delta(role="assistant", content=""))
    yield _Part({}, finish_reason="tool_calls" if reply.calls else "stop", matched_stop=matched)


def _deltas(reply: Reply, content: str, top_logprobs: int | None) -> Iterator[_Part]:
    for piece in pieces.pieces(reply.reasoning):
        yield _Part(_delta(reasoning_content=piece), 1, reasoning=True)
    for piece in pieces.pieces(content):
        logprobs = None if top_logprobs is None else _logprobs(piece, top_logprobs)
        yield _Part(_delta(content=piece), 1, logprobs=logprobs)
    for index, call in enumerate(reply.calls):
        function = {"name": call.name, "arguments": ""}
        # The call's head costs no token of its own, but is not begun when none is left for its arguments.
        head = {"index": index, "id": call.id, "type": "function", "function": function}
        yield _Part(_delta(tool_calls=[head]))
        for piece in pieces.pieces(call.arguments):
            argument = {"index": index, "function": {"arguments": piece}}
            yield _Part(_delta(tool_calls=[argument]), 1)


def _delta(**said: Any) -> dict[str, Any]:
    return {"role": None, "content": None, "reasoning_content": None, "tool_calls": None, **said}


def _stopped(content: str, stop: Sequence[str]) -> tuple[str, str | None]:
    """`content` before the first stop sequence in it, and that sequence."""
    places = [(content.find(sequence), -len(sequence), sequence) for sequence in stop if sequence in content]
    if not places:
        return content, None
    at, _, sequence = min(places)
    return content[:at], sequence


def _logprobs(piece: str, top: int) -> dict[str, Any]:
    # The engine is certain of what it quotes: probability 1 for the token, none for any other.
    token = {"token": piece, "logprob": 0.0, "bytes": list(piece.encode())}
    return {"content": [{**token, "top_logprobs": [token] if top else []}]}
