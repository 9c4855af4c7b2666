"""Multipart forms: a recording and the fields beside it, read in memory.

The rule of this file: nothing touches the disk. Starlette's own reader, and python-multipart's, keep a file of more
than a megabyte in a temporary one, in the clear.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from prem_core._audio.upload import AudioFile
from prem_core.proxy.errors import Refusal
from prem_core.proxy.requests import MAX_NAME

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

#: Parts of one form. The audio routes know eight names.
MAX_PARTS: Final = 64

#: Fields that may be given more than once, with OpenAI's brackets behind the name or without.
_LISTS: Final = ("timestamp_granularities", "include")

#: How browsers' forms, and clients that follow them, write what a file's name may not hold (WHATWG HTML, 4.10.21.8).
_ESCAPED: Final = (("%0D", "\r"), ("%0A", "\n"), ("%22", '"'))

# The parser's own warnings show bytes of what it reads.
_silent = logging.Logger("prem_core.proxy.silent", logging.CRITICAL + 1)


@dataclass(slots=True)
class Form:
    """What a form held.

    Attributes:
        fields: Text fields: their values, in order, by name.
        files: Name of the field, name of the file, content.
    """

    fields: dict[str, list[str]] = field(default_factory=dict, repr=False)
    files: list[tuple[str, str, bytes]] = field(default_factory=list, repr=False)


class FormReader:
    """Read a form as it comes: `feed` its bytes, then `finish`.

    Args:
        content_type: The request's, with the boundary.

    Raises:
        Refusal: 415, this is no form.
    """

    def __init__(self, content_type: str) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise Refusal(415, "the request's content type must be multipart/form-data with a boundary")
        self._form = Form()
        self._headers: dict[bytes, bytes] = {}
        self._header: list[bytes] = []
        self._value: list[bytes] = []
        self._content: list[bytes] = []
        self._parts = 0
        self._ended = False
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._begin,
            "on_header_field": _into(self._header),
            "on_header_value": _into(self._value),
            "on_header_end": self._end_header,
            "on_part_data": _into(self._content),
            "on_part_end": self._end,
            "on_end": self._end_all,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except FormParserError:
            raise _unreadable() from None
        self._parser.logger = _silent

    def feed(self, piece: bytes) -> None:
        """Take the next bytes.

        Raises:
            Refusal: 400, they are not a form's.
        """
        try:
            self._parser.write(piece)
        except FormParserError:
            # Its text shows bytes of the form.
            refused = _unreadable()
        else:
            return
        raise refused

    def finish(self) -> Form:
        """The whole form.

        Raises:
            Refusal: 400, it was cut.
        """
        if not self._ended:
            raise Refusal(400, "the form ends before its last boundary: it is cut")
        return self._form

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise Refusal(400, f"the form has more than {MAX_PARTS} parts")
        self._headers.clear()
        self._content.clear()

    def _end_header(self) -> None:
        self._headers[b"".join(self._header).lower()] = b"".join(self._value)
        self._header.clear()
        self._value.clear()

    def _end(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = _text(options.get(b"name", b""))
        # The one copy: the pieces go before anything is sealed.
        content = b"".join(self._content)
        self._content.clear()
        if b"filename" in options:
            file_name = _text(options[b"filename"])
            for escaped, meant in _ESCAPED:
                file_name = file_name.replace(escaped, meant)
            self._form.files.append((name, file_name, content))
        else:
            self._form.fields.setdefault(name, []).append(_text(content))

    def _end_all(self) -> None:
        self._ended = True


def recording_of(form: Form) -> tuple[AudioFile, dict[str, Any]]:
    """The recording with its name, and the parameters beside it. An empty field counts as not given.

    Raises:
        Refusal: 400, there is not one recording, or a field cannot be read.
    """
    if [field_name for field_name, _, _ in form.files] != ["file"]:
        raise Refusal(400, "file: the form must hold one file, the recording, with its name", param="file")
    params: dict[str, Any] = {}
    for name, values in form.fields.items():
        given = [value for value in values if value]
        plain = name.removesuffix("[]")
        if plain in _LISTS:
            params[plain] = [*(params.get(plain) or ()), *given] or None
        elif len(given) > 1:
            raise Refusal(400, f"{plain[:MAX_NAME]}: given more than once", param=plain[:MAX_NAME])
        elif given:
            params[plain] = given[0]
    if str(params.pop("stream", False)).lower() not in ("false", "0"):
        # Not even dropped: the caller would read the answer as events.
        raise Refusal(400, "stream: answers to recordings are not streamed", param="stream")
    if "temperature" in params:
        params["temperature"] = _number("temperature", params["temperature"])
    _, name, data = form.files[0]
    return (name, data) if name else data, params


def _number(name: str, text: str) -> float:
    with contextlib.suppress(ValueError):
        return float(text)
    raise Refusal(400, f"{name}: must be a number", param=name)


def _into(pieces: list[bytes]) -> Callable[[bytes, int, int], Any]:
    return lambda data, start, end: pieces.append(data[start:end])


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _unreadable() -> Refusal:
    return Refusal(400, "the request's body is not a multipart form")
