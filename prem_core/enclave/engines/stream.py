"""A whole answer as the chunks of a stream: words, finish reasons, usage."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from prem_core.enclave.engines.base import Chunk, EngineRequest, texts_of

#: A token: a word or a run of punctuation, with the white space before it. Runs are bounded, so that text
#: without spaces also comes in several chunks.
_TOKEN = re.compile(r"\s*(?:\w{1,16}|[^\w\s]{1,4})|\s+")


def tokens(text: str) -> list[str]:
    """`text` cut into tokens; joined, they are exactly `text`."""
    return _TOKEN.findall(text)


def count_tokens(text: str) -> int:
    """The number of tokens in `text`."""
    return sum(1 for _ in _TOKEN.finditer(text))


def prompt_tokens(request: EngineRequest) -> int:
    """The number of tokens in a chat's messages."""
    return sum(count_tokens(text) for message in request.messages for text in texts_of(message))


class StreamedCall(NamedTuple):
    """A tool call; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Choice:
    """One choice, whole. A text is streamed by token; a list of texts, in exactly these pieces.

    `finish_reason` is by default ``tool_calls`` or ``stop``.
    """

    content: str | Sequence[str] = ""
    reasoning: str | Sequence[str] = ""
    refusal: str = ""
    tool_calls: Sequence[StreamedCall] = ()
    finish_reason: str | None = None


@dataclass(frozen=True)
class Limits:
    """Where each choice is cut: after `max_tokens` tokens, or before a `stop` sequence."""

    max_tokens: int | None = None
    stop: Sequence[str] = ()


def stream(
    choices: Sequence[Choice],
    head: Mapping[str, Any],
    *,
    prompt_tokens: int,
    limits: Limits = Limits(),
    top_logprobs: int | None = None,
    usage: Mapping[str, Any] | None = None,
    finished: bool = True,
) -> Iterator[Chunk]:
    """The chunks of all choices, one choice after the other, and the usage.

    Args:
        choices: The answer.
        head: What every chunk has: id, object, created, model.
        prompt_tokens: The number of tokens in the prompt, for the usage.
        limits: Where the choices are cut.
        top_logprobs: How many alternatives each token's log probabilities list; None for no log probabilities.
        usage: The usage to report in place of the counted one.
        finished: False leaves out the finish reasons and the usage.
    """
    reasoning_tokens = completion_tokens = 0
    for index, choice in enumerate(choices):
        content, matched_stop = _before_stop(choice.content, limits.stop)
        parts = list(
            islice(_parts(choice, content), None if limits.max_tokens is None else limits.max_tokens + 1)
        )
        cut = limits.max_tokens is not None and len(parts) > limits.max_tokens
        parts = parts[: limits.max_tokens]
        completion_tokens += len(parts)
        for position, part in enumerate(parts or [{"content": ""}]):
            reasoning_tokens += "reasoning_content" in part
            delta = {"role": None if position else "assistant", **_EMPTY, **part}
            logprobs = None if top_logprobs is None else _logprobs(part.get("content"), top_logprobs)
            yield _chunk(head, index, delta, logprobs=logprobs)
        if finished:
            reason = (
                "length" if cut else choice.finish_reason or ("tool_calls" if choice.tool_calls else "stop")
            )
            yield _chunk(head, index, {}, finish_reason=reason, matched_stop=None if cut else matched_stop)
    if finished:
        counted = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "completion_tokens_details": {"reasoning_tokens": reasoning_tokens},
        }
        yield {**head, "choices": [], "usage": dict(usage or counted)}


_EMPTY: Mapping[str, Any] = {"content": None, "reasoning_content": None, "tool_calls": None}


def _chunk(head: Mapping[str, Any], index: int, delta: Mapping[str, Any], **more: Any) -> Chunk:
    choice = {
        "index": index,
        "delta": dict(delta),
        "logprobs": None,
        "finish_reason": None,
        "matched_stop": None,
    }
    return {**head, "choices": [{**choice, **more}], "usage": None}


def _parts(choice: Choice, content: str | Sequence[str]) -> Iterator[dict[str, Any]]:
    """The deltas of a choice; each counts as one token."""
    for name, text in (
        ("reasoning_content", choice.reasoning),
        ("content", content),
        ("refusal", choice.refusal),
    ):
        for piece in tokens(text) if isinstance(text, str) else text:
            yield {name: piece}
    for index, call in enumerate(choice.tool_calls):
        first, *rest = tokens(call.arguments) or [""]
        function = {"name": call.name, "arguments": first}
        yield {"tool_calls": [{"index": index, "id": call.id, "type": "function", "function": function}]}
        for piece in rest:
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}


def _before_stop(content: str | Sequence[str], stop: Sequence[str]) -> tuple[str | Sequence[str], str | None]:
    """`content` up to the first stop sequence in it, and that sequence."""
    found = [
        (content.find(each), each) for each in stop if isinstance(content, str) and each and each in content
    ]
    if not found or not isinstance(content, str):
        return content, None
    at, sequence = min(found)
    return content[:at], sequence


def _logprobs(token: str | None, top: int) -> dict[str, Any] | None:
    """Log probabilities of a token that was certain."""
    if token is None:
        return None
    certain = {"token": token, "logprob": 0.0, "bytes": list(token.encode("utf-8", "replace"))}
    return {"content": [{**certain, "top_logprobs": [certain] if top else []}]}
