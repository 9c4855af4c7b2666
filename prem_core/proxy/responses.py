"""Responses in the form of OpenAI's API, as bytes.

All fields that the service sends are passed on. Fields that OpenAI's clients require are added where the service omits
them.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from prem_core._audio.subtitles import srt, vtt
from prem_core._audio.transcripts import ChunkTranscript, TranscriptionRequest, segments
from prem_core._protocol.protection import Protection
from prem_core._protocol.response_types import ChatCompletion, ChatCompletionChunk, Model, Transcription
from prem_core.proxy.errors import ErrorResponse

#: The end of a complete stream. A stream without it is truncated.
DONE: Final = b"data: [DONE]\n\n"

#: A comment, which clients of event streams skip.
KEEP_ALIVE: Final = b": keep-alive\n\n"

EVENT_STREAM: Final = "text/event-stream; charset=utf-8"
JSON: Final = "application/json"
TEXT: Final = "text/plain; charset=utf-8"

#: Characters of a support id in a header. The service's have 44.
MAX_SUPPORT_ID: Final = 100

_CHUNK: Final = ("id", "object", "created", "model", "choices")
_CHOICE: Final = ("index", "delta", "finish_reason")

#: Transcription formats made here, from the service's verbose_json.
SUBTITLES: Final = {"srt": srt, "vtt": vtt}


def event(chunk: ChatCompletionChunk) -> bytes:
    """A chunk as a server-sent event."""
    chunk.model_fields_set.update(_CHUNK)
    for choice in chunk.choices:
        choice.model_fields_set.update(_CHOICE)
    # What `model_dump_json` calls, without its overhead for every chunk. A warning would quote the response.
    data = ChatCompletionChunk.__pydantic_serializer__.to_json(chunk, exclude_unset=True, warnings=False)
    return b"data: %b\n\n" % data


def error_event(error: ErrorResponse) -> bytes:
    """The last event of a stream that fails. OpenAI's clients raise it."""
    return b"data: %b\n\n" % error.body


def protection_text(protection: Protection) -> str:
    """How an answer was protected, for a header. What is not known is left out."""
    support_id = protection.support_id
    values = {
        "key": protection.key_fingerprint,
        "source": protection.key_source,
        "attested": "yes" if protection.attested else "no",
        "key-bound": "yes" if protection.key_bound else "no" if protection.attested else None,
        "nonce": protection.reply_nonce,
        # It comes from the network, and must not look like another value.
        "support-id": support_id and re.sub(r"[^\w.:-]", "?", support_id, flags=re.ASCII)[:MAX_SUPPORT_ID],
    }
    return "; ".join(f"{name}={value}" for name, value in values.items() if value)


def health(version: str) -> bytes:
    """Proof that the proxy runs. It tells nothing about the service."""
    return _json({"status": "ok", "version": version})


def completion(answer: ChatCompletion) -> bytes:
    """A complete response. Null values are omitted, except those that OpenAI's API always sends."""
    value = answer.model_dump(exclude_none=True, warnings=False)
    for choice, given in zip(value.get("choices", ()), answer.choices, strict=False):
        choice.setdefault("finish_reason", None)
        choice["logprobs"] = given.logprobs
        for name in ("content", "refusal"):
            choice["message"].setdefault(name, None)
    return _json(value)


def models(listed: list[Model]) -> bytes:
    """The list of enabled models."""
    return _json({"object": "list", "data": [_model(each) for each in listed if each.enabled is not False]})


def model(listed: list[Model], name: str) -> bytes:
    """The model called `name`.

    Raises:
        ErrorResponse: 404, there is none.
    """
    for each in listed:
        if name == each.request_name and each.enabled is not False:
            return _json(_model(each))
    raise ErrorResponse(
        404, "there is no such model; GET /v1/models lists the names", code="model_not_found", param="model"
    )


def transcription(answer: Transcription, form: str | None) -> tuple[str, bytes]:
    """A transcription: content type and body.

    Args:
        answer: The service's response.
        form: The requested format: json, text, verbose_json, srt or vtt; None for json.

    Raises:
        APIResponseValidationError: There are no times for subtitles.
    """
    if form == "text":
        return TEXT, answer.text.encode()
    if form in SUBTITLES:
        request = TranscriptionRequest(mode="segments")
        return TEXT, SUBTITLES[form](segments("", [ChunkTranscript(answer)], request)).encode()
    return JSON, _json(answer.model_dump(exclude_unset=True, exclude_none=True, warnings=False))


def _model(entry: Model) -> dict[str, Any]:
    name = entry.request_name
    # OpenAI's clients require both fields; the service has neither.
    made = {"id": name, "object": "model", "created": 0, "owned_by": name.partition("/")[0] or "prem"}
    return {**entry.model_dump(exclude_unset=True, exclude={"id", "model"}, warnings=False), **made}


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
