"""Multipart forms with a recording and its parameters, read in memory.

The form parsers of Starlette and python-multipart write a file of more than a megabyte to the disk, as plaintext. This
one does not use the disk.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from prem_core._apis.base import MAX_NAME_LENGTH, ApiError
from prem_core._audio.upload import AudioFile

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

#: Parts of one form. The audio routes have eight parameters.
MAX_PARTS: Final = 64

#: Fields that may be repeated, with OpenAI's brackets after the name or without.
_LIST_FIELDS: Final = ("timestamp_granularities", "include")

#: How HTML forms escape characters that a file name may not contain (WHATWG HTML, 4.10.21.8).
_ESCAPES: Final = (("%0D", "\r"), ("%0A", "\n"), ("%22", '"'))

# The parser's warnings contain bytes of the form.
_silent = logging.Logger("prem_core.silent", logging.CRITICAL + 1)


@dataclass(slots=True)
class Form:
    """The fields and files of a form.

    Attributes:
        fields: The values of each text field, in order, by name.
        files: For each file the name of the field, the name of the file, and the content.
    """

    fields: dict[str, list[str]] = field(default_factory=dict, repr=False)
    files: list[tuple[str, str, bytes]] = field(default_factory=list, repr=False)


class FormReader:
    """Parse a form as it arrives: `feed` its bytes, then `finish`.

    Args:
        content_type: The Content-Type header, with the boundary.

    Raises:
        ApiError: 415, it is not a form.
    """

    def __init__(self, content_type: str) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise ApiError(
                415, "the request needs the header Content-Type: multipart/form-data with a boundary"
            )
        self._form = Form()
        self._headers: dict[bytes, bytes] = {}
        self._header: list[bytes] = []
        self._value: list[bytes] = []
        self._content: list[bytes] = []
        self._parts = 0
        self._ended = False
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._begin,
            "on_header_field": _append_to(self._header),
            "on_header_value": _append_to(self._value),
            "on_header_end": self._end_header,
            "on_part_data": _append_to(self._content),
            "on_part_end": self._end,
            "on_end": self._end_all,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except FormParserError:
            raise _unreadable() from None
        self._parser.logger = _silent

    def feed(self, chunk: bytes) -> None:
        """Parse the next bytes.

        Raises:
            ApiError: 400, they are not part of a valid form.
        """
        try:
            self._parser.write(chunk)
        except FormParserError:
            # Its text contains bytes of the form.
            unreadable = _unreadable()
        else:
            return
        raise unreadable

    def finish(self) -> Form:
        """The whole form.

        Raises:
            ApiError: 400, it is truncated.
        """
        if not self._ended:
            raise ApiError(400, "the form is truncated: its last boundary is missing")
        return self._form

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise ApiError(400, f"the form has more than {MAX_PARTS} parts")
        self._headers.clear()
        self._content.clear()

    def _end_header(self) -> None:
        self._headers[b"".join(self._header).lower()] = b"".join(self._value)
        self._header.clear()
        self._value.clear()

    def _end(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = _text(options.get(b"name", b""))
        # The only copy: the chunks are released before anything is sealed.
        content = b"".join(self._content)
        self._content.clear()
        if b"filename" in options:
            file_name = _text(options[b"filename"])
            for escaped, char in _ESCAPES:
                file_name = file_name.replace(escaped, char)
            self._form.files.append((name, file_name, content))
        else:
            self._form.fields.setdefault(name, []).append(_text(content))

    def _end_all(self) -> None:
        self._ended = True


def parse_audio_form(form: Form) -> tuple[AudioFile, dict[str, Any]]:
    """The recording with its name, and the parameters. An empty field counts as not given.

    Raises:
        ApiError: 400, there is not exactly one recording, or a field is not valid.
    """
    if [field_name for field_name, _, _ in form.files] != ["file"]:
        raise ApiError(
            400, "file: the form must contain one file, the recording, with a file name", param="file"
        )
    params: dict[str, Any] = {}
    for name, values in form.fields.items():
        given = [value for value in values if value]
        plain = name.removesuffix("[]")
        if plain in _LIST_FIELDS:
            params[plain] = [*(params.get(plain) or ()), *given] or None
        elif len(given) > 1:
            raise ApiError(
                400, f"{plain[:MAX_NAME_LENGTH]}: must be given once", param=plain[:MAX_NAME_LENGTH]
            )
        elif given:
            params[plain] = given[0]
    if str(params.pop("stream", False)).lower() not in ("false", "0"):
        # Not even dropped: the caller would read the response as events.
        raise ApiError(400, "stream: transcriptions cannot be streamed; remove the parameter", param="stream")
    if "temperature" in params:
        params["temperature"] = _number("temperature", params["temperature"])
    _, name, data = form.files[0]
    return (name, data) if name else data, params


def _number(name: str, text: str) -> float:
    with contextlib.suppress(ValueError):
        return float(text)
    raise ApiError(400, f"{name}: must be a number", param=name)


def _append_to(chunks: list[bytes]) -> Callable[[bytes, int, int], Any]:
    return lambda data, start, end: chunks.append(data[start:end])


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _unreadable() -> ApiError:
    return ApiError(400, "the request body is not a valid multipart form")
