"""Messages and their content parts in the published schema's forms, for both adapters.

Content that the schema cannot express is an error that explains what to do instead; nothing is dropped silently.
"""

from __future__ import annotations

import base64
import json
from typing import Any, Final

from prem_core._errors import InvalidParameterError

#: Media types of the two audio formats the schema names.
AUDIO_FORMATS: Final = {
    "audio/wav": "wav",
    "audio/wave": "wav",
    "audio/x-wav": "wav",
    "audio/vnd.wave": "wav",
    "audio/mpeg": "mp3",
    "audio/mp3": "mp3",
    "wav": "wav",
    "mp3": "mp3",
}

Part = dict[str, Any]


def text_part(text: str) -> Part:
    """A text part."""
    return {"type": "text", "text": text}


def image_part(
    *,
    url: str | None = None,
    data: str | bytes | None = None,
    media_type: str | None = None,
    detail: str | None = None,
) -> Part:
    """An image, by URL or by its bytes.

    Args:
        url: An http(s) or ``data:`` URL. The enclave decides whether it fetches the former.
        data: The image: bytes, or a string of base64.
        media_type: For example ``image/png``; required with `data`.
        detail: low, high or auto.

    Raises:
        InvalidParameterError: Neither or both of `url` and `data`, or no media type.
    """
    if (url is None) == (data is None):
        raise InvalidParameterError("an image needs either a URL or base64 data", param="messages")
    if data is not None:
        url = data_url(data, media_type, what="an image")
    image: dict[str, Any] = {"url": url}
    if detail is not None:
        image["detail"] = detail
    return {"type": "image_url", "image_url": image}


def audio_part(data: str | bytes, media_type: str | None) -> Part:
    """An audio part; the schema has wav and mp3.

    Raises:
        InvalidParameterError: It is in another format, or `media_type` names none.
    """
    name = AUDIO_FORMATS.get((media_type or "").partition(";")[0].strip().lower())
    if name is None:
        raise InvalidParameterError(
            "audio must be wav or mp3, with media type audio/wav or audio/mpeg", param="messages"
        )
    return {"type": "input_audio", "input_audio": {"data": _base64(data), "format": name}}


def file_part(
    *,
    data: str | bytes | None = None,
    media_type: str | None = None,
    file_id: str | None = None,
    filename: str | None = None,
) -> Part:
    """A document part, by its bytes or by the id of an uploaded file.

    Raises:
        InvalidParameterError: Neither or both of `data` and `file_id`, or `data` without a media type.
    """
    if (data is None) == (file_id is None):
        raise InvalidParameterError(
            "a document needs either base64 data or the id of an uploaded file", param="messages"
        )
    file: dict[str, Any] = {}
    if data is not None:
        file["file_data"] = data_url(data, media_type, what="a document")
    if file_id is not None:
        file["file_id"] = file_id
    if filename is not None:
        file["filename"] = filename
    return {"type": "file", "file": file}


def data_url(data: str | bytes, media_type: str | None, *, what: str) -> str:
    """`data` as a ``data:`` URL; a string that is one already is returned unchanged.

    Raises:
        InvalidParameterError: `media_type` is missing.
    """
    if isinstance(data, str) and data.startswith("data:"):
        return data
    if not media_type:
        raise InvalidParameterError(f"{what} given as data needs a media type", param="messages")
    return f"data:{media_type};base64,{_base64(data)}"


def media_type_of(url: str) -> str | None:
    """The media type in a ``data:`` URL; None for any other text."""
    return url[5:].partition(";")[0] if url.startswith("data:") else None


def _base64(data: str | bytes) -> str:
    # Bytes are never base64 already: guessing would damage a file whose content looks like base64.
    if isinstance(data, bytes):
        return base64.b64encode(data).decode("ascii")
    return data.partition("base64,")[2] if data.startswith("data:") else data


def tool_call_part(call_id: str | None, name: str, arguments: dict[str, Any] | str) -> Part:
    """One tool call of an assistant message; `arguments` as a mapping, or as the JSON that the model wrote.

    Raises:
        InvalidParameterError: The arguments cannot be written as JSON.
    """
    if not isinstance(arguments, str):
        try:
            arguments = json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))
        except (TypeError, ValueError, RecursionError):
            raise InvalidParameterError(
                "the arguments of a tool call must be JSON", param="messages"
            ) from None
    return {"id": call_id or "", "type": "function", "function": {"name": name, "arguments": arguments}}


def assistant_message(
    text: str, calls: list[Part], *, reasoning: str = "", refusal: str | None = None
) -> dict[str, Any]:
    """An earlier answer of the model, as a message of the request.

    Args:
        text: Its text.
        calls: Its tool calls, as `tool_call_part` makes them.
        reasoning: Its reasoning, if that is sent back.
        refusal: Its refusal, if any.
    """
    wire: dict[str, Any] = {"role": "assistant"}
    # The schema has no null content: it is left out next to tool calls.
    if text or not calls:
        wire["content"] = text
    if reasoning:
        wire["reasoning_content"] = reasoning
    if refusal:
        wire["refusal"] = refusal
    if calls:
        wire["tool_calls"] = calls
    return wire


def unsupported(position: int, at: str | None, why: str) -> InvalidParameterError:
    """The error for a message, or for the part `at` of it, that cannot be sent."""
    path = f"messages.{position}" if at is None else f"messages.{position}.{at}"
    return InvalidParameterError(f"{path}: {why}", param=path)
