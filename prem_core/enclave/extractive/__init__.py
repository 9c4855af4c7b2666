"""The enclave's built-in engine: chat completions without a model, for development and tests.

What it is: an extractive engine. It quotes the sentences of a prompt that match the question, takes tool
arguments and structured values from the prompt by their schema, and reports tool results. The same request
always gives the same reply, in about the time it takes to read the prompt, on any machine.

What it is not: a language model. It knows nothing, writes nothing of its own beyond a few fixed phrases, does not
reason (its reasoning deltas say what was matched), does not translate, calculate or converse, and reads nothing of
an image or a sound but its headers. Required values that the prompt does not hold become plain placeholders
(0, false, 1970-01-01, a quote), so that replies stay valid under their schema.

temperature, top_p, seed, penalties, logit_bias and prediction are accepted and change nothing: the engine is
deterministic already. So are store, metadata, service_tier, prompt_cache_key, prompt_cache_retention and
safety_identifier: it keeps nothing. What it cannot do it refuses with an EngineError that names the parameter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prem_core.enclave.engines.base import EngineError
from prem_core.enclave.extractive.answers import SENTENCES, answer
from prem_core.enclave.extractive.pieces import compact
from prem_core.enclave.extractive.prompt import Prompt, read_prompt
from prem_core.enclave.extractive.schemas import readable
from prem_core.enclave.extractive.stream import Limits, Reply, StreamedCall, stream
from prem_core.enclave.extractive.structured import object_reply, schema_reply
from prem_core.enclave.extractive.tools import Call, choose_calls

__all__ = ["complete"]

_FINGERPRINT = "extractive-1"
_MAX_CHOICES = 128
_MAX_NAMED = 5  # tools named in the reasoning, which is to be short


def complete(params: Mapping[str, Any], *, created: int) -> Iterator[dict[str, Any]]:
    """Answer schema-valid inference params with chat.completion.chunk objects, in order.

    Usage comes as a last chunk without choices, if stream_options.include_usage asks for it or the request is not
    streamed. Raises EngineError at once, before the first chunk, for what the engine refuses.
    """
    _refuse(params)
    try:
        prompt = read_prompt(params)
        replies = _replies(params, prompt)
    except RecursionError:
        raise EngineError("a schema or message is nested too deeply for this engine") from None
    head = {
        "id": f"chatcmpl-{_digest(params)[:24]}",
        "object": "chat.completion.chunk",
        "created": created,
        "model": params["model"],
        "system_fingerprint": _FINGERPRINT,
    }
    options = params.get("stream_options") or {}
    usage = bool(options.get("include_usage") or not params.get("stream"))
    return stream(replies, _limits(params), head, prompt.tokens, usage)


def _refuse(params: Mapping[str, Any]) -> None:
    for name, instead in (("functions", "tools"), ("function_call", "tool_choice")):
        if name in params:
            raise EngineError(f"{name} is deprecated and not supported: use {instead}", param=name)
    for name in ("audio", "web_search_options"):
        if params.get(name) is not None:
            raise EngineError(f"{name} is not supported by this engine", param=name)
    if "audio" in (params.get("modalities") or ()):
        raise EngineError("modalities may only be text", param="modalities")
    if params.get("top_logprobs") is not None and not params.get("logprobs"):
        raise EngineError("top_logprobs requires logprobs to be true", param="top_logprobs")
    if (params.get("n") or 1) > _MAX_CHOICES:
        raise EngineError(f"n must be at most {_MAX_CHOICES}", param="n")
    for name in ("max_tokens", "max_completion_tokens"):
        if (limit := params.get(name)) is not None and limit < 1:
            raise EngineError(f"{name} must be at least 1", param=name)


def _limits(params: Mapping[str, Any]) -> Limits:
    tokens = [
        params[name] for name in ("max_tokens", "max_completion_tokens") if params.get(name) is not None
    ]
    stop = params.get("stop") or ()
    return Limits(
        tokens=min(tokens, default=None),
        stop=tuple(text for text in ([stop] if isinstance(stop, str) else stop) if text),
        top_logprobs=params.get("top_logprobs") or 0 if params.get("logprobs") else None,
    )


def _replies(params: Mapping[str, Any], prompt: Prompt) -> list[Reply]:
    """One reply per choice. Only answers in words differ: choice i starts from the next-best sentence."""
    choices = range(params.get("n") or 1)
    if calls := choose_calls(params, prompt):
        names = ", ".join(dict.fromkeys(call.name for call in calls[:_MAX_NAMED]))
        why = f"The request asks for {names}: {len(calls)} {'call' if len(calls) == 1 else 'calls'}."
        return [Reply(_reasoning(params, why), "", _identified(params, calls, i)) for i in choices]
    limit = SENTENCES[params.get("verbosity") or "medium"]
    form = params.get("response_format") or {}
    if form.get("type") == "json_schema" and form["json_schema"].get("schema"):
        schema = form["json_schema"]["schema"]
        if not readable(schema):
            raise EngineError("response_format holds no JSON schema", param="response_format")
        found = schema_reply(schema, prompt)
    elif form.get("type") in ("json_schema", "json_object"):
        found = object_reply(prompt, limit)
    else:
        answers = [answer(prompt, limit, skip) for skip in choices]
        return [Reply(_reasoning(params, said.why), said.text) for said in answers]
    why = f"Values found in the prompt: {found.count}."
    why += "" if found.complete else " The rest are placeholders."
    return [Reply(_reasoning(params, why), compact(found.value))] * len(choices)


def _reasoning(params: Mapping[str, Any], why: str) -> str:
    match params.get("reasoning_effort") or "medium":
        case "none":
            return ""
        case "minimal" | "low":
            return why
    return f"{why} This is extraction, not reasoning."


def _identified(params: Mapping[str, Any], calls: Sequence[Call], choice: int) -> tuple[StreamedCall, ...]:
    return tuple(
        StreamedCall(
            id=f"call_{_digest([params['messages'], choice, position, call.name, call.arguments])[:24]}",
            name=call.name,
            arguments=compact(call.arguments),
        )
        for position, call in enumerate(calls)
    )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
