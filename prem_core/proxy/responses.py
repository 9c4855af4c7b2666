"""Answers as OpenAI's API has them, as bytes.

The rule of this file: what the service sends goes on, fields of its own included; what OpenAI's clients count on is
there even where the service left it out.
"""

from __future__ import annotations

import json
from typing import Any, Final

from prem_core._audio.subtitles import srt, vtt
from prem_core._audio.transcripts import ChunkTranscript, TranscriptionRequest, segments
from prem_core._protocol.response_types import ChatCompletion, ChatCompletionChunk, Model, Transcription
from prem_core.proxy.errors import Refusal

#: What ends a stream that is whole; after anything else it is cut.
DONE: Final = b"data: [DONE]\n\n"

EVENT_STREAM: Final = "text/event-stream; charset=utf-8"
JSON: Final = "application/json"
TEXT: Final = "text/plain; charset=utf-8"

_CHUNK: Final = ("id", "object", "created", "model", "choices")
_CHOICE: Final = ("index", "delta", "finish_reason")

#: Forms of a transcription that are made here, from the service's verbose one.
SUBTITLES: Final = {"srt": srt, "vtt": vtt}


def event(chunk: ChatCompletionChunk) -> bytes:
    """A chunk as a server-sent event."""
    chunk.model_fields_set.update(_CHUNK)
    for choice in chunk.choices:
        choice.model_fields_set.update(_CHOICE)
    # What `model_dump_json` calls, without its bookkeeping: once for every chunk. A warning would quote the answer.
    data = ChatCompletionChunk.__pydantic_serializer__.to_json(chunk, exclude_unset=True, warnings=False)
    return b"data: %b\n\n" % data


def error_event(refused: Refusal) -> bytes:
    """What a stream breaks off with. OpenAI's clients raise it."""
    return b"data: %b\n\n" % refused.body


def health(version: str) -> bytes:
    """That the proxy runs; nothing is said of the service behind it."""
    return _json({"status": "ok", "version": version})


def completion(answer: ChatCompletion) -> bytes:
    """A whole answer. What is null in it is left out, but for the fields that OpenAI's always have."""
    value = answer.model_dump(exclude_none=True, warnings=False)
    for choice, given in zip(value.get("choices", ()), answer.choices, strict=False):
        choice.setdefault("finish_reason", None)
        choice["logprobs"] = given.logprobs
        for name in ("content", "refusal"):
            choice["message"].setdefault(name, None)
    return _json(value)


def models(listed: list[Model]) -> bytes:
    """The models that may be asked for."""
    return _json({"object": "list", "data": [_model(each) for each in listed if each.enabled is not False]})


def model(listed: list[Model], name: str) -> bytes:
    """The model called `name`.

    Raises:
        Refusal: 404, there is none.
    """
    for each in listed:
        if name == each.request_name and each.enabled is not False:
            return _json(_model(each))
    raise Refusal(404, "there is no model of that name", code="model_not_found", param="model")


def transcription(answer: Transcription | str, form: str | None) -> tuple[str, bytes]:
    """What was said: content type and body.

    Args:
        answer: The service's.
        form: What the caller asked for: json, text, verbose_json, srt or vtt; None for json.

    Raises:
        APIResponseValidationError: There are no times to make subtitles of.
    """
    if isinstance(answer, str):
        return TEXT, answer.encode()
    if form in SUBTITLES:
        request = TranscriptionRequest(mode="segments")
        return TEXT, SUBTITLES[form](segments("", [ChunkTranscript(answer)], request)).encode()
    return JSON, _json(answer.model_dump(exclude_unset=True, exclude_none=True, warnings=False))


def _model(entry: Model) -> dict[str, Any]:
    name = entry.request_name
    # The service says nothing of when or by whom; OpenAI's clients want to see both.
    made = {"id": name, "object": "model", "created": 0, "owned_by": name.partition("/")[0] or "prem"}
    return {**entry.model_dump(exclude_unset=True, exclude={"id", "model"}, warnings=False), **made}


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
