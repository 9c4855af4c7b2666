"""The default engine: it quotes and extracts what the prompt holds. It is not a language model.

A question is answered with the sentences of the prompt that share its words; a schema, and a tool's arguments, are
filled with the labelled values, the table rows, the numbers and names of the prompt; the results of tools are
repeated. The same request always has the same answer. The engine adds nothing but a few fixed phrases, and where a
schema requires a value that the prompt does not hold, a plain placeholder. It does not reason, translate, calculate
or converse, and does not look at images. Sampling parameters are accepted and change nothing.

Recordings are transcribed by pocketsphinx; see `prem_core.enclave.engines.speech`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Any, Final

from referencing.exceptions import Unresolvable

from prem_core.enclave.engines.base import AudioReply, Chunk, Engine, EngineError, EngineRequest
from prem_core.enclave.engines.quoting.prompt import Prompt, read_prompt
from prem_core.enclave.engines.quoting.text import joined, quote, sentences
from prem_core.enclave.engines.quoting.tools import choose_calls
from prem_core.enclave.engines.quoting.values import Values
from prem_core.enclave.engines.stream import Choice, Limits, StreamedCall, prompt_tokens, stream
from prem_core.enclave.engines.transcriber import Transcriber

#: How many sentences are quoted at most, by `verbosity`.
_SENTENCES: Final = {"low": 1, "medium": 2, "high": 3}

_NO_MODEL: Final = "The embedded enclave has no language model: it quotes what the prompt holds."
_NOT_READ: Final = (
    "The embedded enclave reads text and PDFs. It does not look at images or listen to recordings."
)
_MAX_ECHO: Final = 300
_MAX_CHOICES: Final = 128

_SUMMARY = re.compile(r"\b(?:summar\w+|tl;?dr|overview|key points|main points?)\b", re.I)
_MEDIA = re.compile(r"\b(?:image|picture|photo|audio|sound|recording|hear|see|describe)\b", re.I)
_KEYS = re.compile(r"\b(?:keys?|fields?|properties)\b(?:[: ]*((?:\w+(?:,? and |, ))*\w+))?", re.I)


class QuotingEngine(Engine):
    """Answers with what the prompt holds: quoted sentences, extracted values, results of tools.

    It needs no model and gives the same answer every time, so it serves demonstrations and first attempts. For tests,
    a `ScriptedEngine` gives the answer that the test states.
    """

    def __init__(self) -> None:
        self._transcriber = Transcriber()

    async def chat(self, request: EngineRequest) -> AsyncGenerator[Chunk, None]:
        """See `Engine.chat`."""
        # In a thread: reading a long prompt takes a while.
        for chunk in await asyncio.to_thread(_answer, request):
            yield chunk

    async def audio(self, request: EngineRequest) -> AudioReply:
        """Transcribe English."""
        return await self._transcriber.transcribe(request)

    async def aclose(self) -> None:
        """See `Engine.aclose`."""
        self._transcriber.close()


def _answer(request: EngineRequest) -> Iterator[Chunk]:
    params = request.params
    _refuse(params)
    try:
        choice = _choice(request, read_prompt(request.messages))
    except (RecursionError, Unresolvable):
        raise EngineError("a schema is nested too deeply for this engine, or refers to another one") from None
    maxima = [params.get(name) for name in ("max_tokens", "max_completion_tokens")]
    stop = params.get("stop") or ()
    head = {
        "id": f"chatcmpl-{_digest(params)}",
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": request.model,
        "system_fingerprint": "quoting",
    }
    return stream(
        [choice] * (params.get("n") or 1),
        head,
        prompt_tokens=prompt_tokens(request),
        limits=Limits(min(filter(None, maxima), default=None), [stop] if isinstance(stop, str) else stop),
        top_logprobs=params.get("top_logprobs") or 0 if params.get("logprobs") else None,
    )


def _refuse(params: Mapping[str, Any]) -> None:
    """Reject parameters that this engine does not support; the error names the parameter."""
    for name in ("functions", "function_call", "audio", "web_search_options"):
        if params.get(name) is not None:
            raise EngineError(f"{name} is not supported by this engine", param=name)
    if (params.get("n") or 1) > _MAX_CHOICES:
        raise EngineError(f"n must be at most {_MAX_CHOICES}", param="n")


def _choice(request: EngineRequest, prompt: Prompt) -> Choice:
    params = request.params
    limit = _SENTENCES[params.get("verbosity") or "medium"]
    form = params.get("response_format") or {}
    content, tool_calls = "", []
    if calls := choose_calls(request, prompt):
        reason = f"Tool calls that the request asks for: {len(calls)}."
        ids = [f"call_{_digest([request.messages, position])}" for position in range(len(calls))]
        tool_calls = [
            StreamedCall(each, call.name, _compact(call.arguments))
            for each, call in zip(ids, calls, strict=True)
        ]
    elif form.get("type") in ("json_schema", "json_object"):
        schema = form.get("json_schema", {}).get("schema")
        found, value = _structured(schema, prompt) if schema else _json_object(prompt, limit)
        content, reason = _compact(value), f"Values found in the prompt: {found}."
    else:
        content, reason = _text(prompt, limit)
    reasoning = "" if params.get("reasoning_effort") == "none" else f"{reason} No model was asked."
    return Choice(content, reasoning, tool_calls=tool_calls)


def _text(prompt: Prompt, limit: int) -> tuple[str, str]:
    """An answer in words, and how it was found."""
    if prompt.results:
        return _results(prompt, limit), "The results of the tools answer the request."
    question, material = prompt.question, prompt.material
    if prompt.has_media and (not material or _MEDIA.search(question)):
        return _NOT_READ, "There is no text to quote."
    available = [sentence for text in material for sentence in sentences(text)]
    closed = [sentence for sentence in available if sentence[-1] in ".!?"] or available
    beginning = joined(closed[: min(limit, max(1, len(closed) // 2))])
    if quoted := [] if _SUMMARY.search(question) else quote(question, material, limit):
        return joined(quoted), f"Sentences that match the question: {len(quoted)}."
    if available and not question.endswith("?"):
        return beginning, "The text is quoted from its beginning."
    if quoted := quote(question, prompt.earlier, limit):
        return joined(quoted), f"Earlier sentences that match the question: {len(quoted)}."
    echo = " ".join(question.split())
    echo = echo if len(echo) <= _MAX_ECHO else f"{echo[:_MAX_ECHO]}…"
    if available:
        return f'Nothing in the given text answers: "{echo}"', "No sentence of the text matches the question."
    return f'You said: "{echo}" {_NO_MODEL}' if echo else _NO_MODEL, "There is nothing to quote."


def _results(prompt: Prompt, limit: int) -> str:
    """What the tools returned; of a long result, the sentences that match the question."""
    lines = []
    for name, arguments, text in prompt.results:
        if len(found := sentences(text)) > 3:
            text = joined(quote(prompt.question, [text], limit) or found[:limit])
        shown = (
            f"{key}: {value if isinstance(value, str) else _compact(value)}"
            for key, value in arguments.items()
        )
        lines.append(f"{name}({', '.join(shown)}): {text}" if len(prompt.results) > 1 else text or "nothing")
    return "\n".join(lines)


def _structured(schema: Mapping[str, Any], prompt: Prompt) -> tuple[int, Any]:
    """How many values of a schema the prompt holds, and an object that is valid under it."""
    values = Values(schema, prompt.everything)
    value = values.object()
    if not values.valid(value):
        message = "the quoting engine finds no values for this schema in the prompt"
        raise EngineError(message, param="response_format")
    return values.found, value


def _json_object(prompt: Prompt, limit: int) -> tuple[int, Any]:
    """An object with the keys that the prompt names; with the key "answer" where it names none."""
    # Instructions on how to answer contain no values.
    held = [each for each in sentences(prompt.everything) if not _KEYS.search(each) and "JSON" not in each]
    for text in (prompt.request, *reversed(prompt.earlier)):
        for sentence in sentences(text):
            if keys := _KEYS.search(sentence):
                quoted = re.findall(r"['\"`]([A-Za-z_]\w*)['\"`]", sentence)
                names = quoted or re.split(r",? and |, ", keys[1] or "answer")
                schema = {"properties": {name: {"type": "string"} for name in names}, "required": names}
                values = Values(schema, "\n".join(held))
                value = values.object()
                return values.found, value
    return 1, {"answer": _text(prompt, limit)[0]}


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:24]
