"""The lines of a batch: OpenAI's Batch JSONL, with requests as input, and answers and errors as output.

Output is ASCII: JSON's escapes can write every text that a model may return, lone surrogates included.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any, Final

from prem_core._errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    DecryptionError,
    InvalidParameterError,
    LengthFinishReasonError,
    PremError,
    RefusalError,
    StreamInterruptedError,
)

CHAT_URL: Final = "/v1/chat/completions"
AUDIO_URLS: Final = {"/v1/audio/transcriptions": "transcribe", "/v1/audio/translations": "translate"}
URLS: Final = (CHAT_URL, *AUDIO_URLS)

#: Bytes of one line of the input. Two of the largest images fit.
MAX_LINE_BYTES: Final = 64 * 1024 * 1024

_NAMES: Final = ("custom_id", "method", "url", "body")

#: The start of a line of ours, up to the end of an id without escapes.
_OWN_LINE: Final = re.compile(rb'\{(?:"id":"batch_req_[0-9a-f]{24}",)?"(?:custom_id|_source)":"([^"\\]*)"')

#: The start of most lines of an input. What stands behind it is read only if the id is not answered yet.
_INPUT_LINE: Final = re.compile(rb'\s*\{\s*"custom_id"\s*:\s*"([^"\\\x00-\x1f\x80-\xff]+)"\s*,')

#: The code of each error that the service did not report.
_CODES: Final[tuple[tuple[type[PremError], str], ...]] = (
    (InvalidParameterError, "invalid_request"),
    (APITimeoutError, "timeout"),
    (StreamInterruptedError, "truncated"),
    (APIConnectionError, "connection_error"),
    (DecryptionError, "decryption_error"),
    (LengthFinishReasonError, "length_finish_reason"),
    (RefusalError, "refusal"),
)


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """One request of the input. Its repr does not show the body.

    Attributes:
        number: The line's number, from 1.
        custom_id: The caller's id of the request.
        url: One of `URLS`.
        body: The request's parameters.
        size: Bytes of the line.
    """

    number: int
    custom_id: str
    url: str
    body: dict[str, Any] = field(repr=False)
    size: int


class InvalidLineError(PremError):
    """A line of the input is not a request.

    Attributes:
        line: Its number, from 1.
        code: ``invalid_line``, ``duplicate_id`` or ``invalid_request``.
        custom_id: Its id, if that could be read.
    """

    def __init__(
        self, line: int, message: str, *, custom_id: str | None = None, code: str = "invalid_line"
    ) -> None:
        super().__init__(f"line {line}: {message}")
        self.line = line
        self.code = code
        self.custom_id = custom_id


def read_raw_lines(file: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Each line with its number, from 1, without empty lines; None for one of more than `MAX_LINE_BYTES`."""
    number = 0
    while raw := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n"):
            while raw and not raw.endswith(b"\n"):
                raw = file.readline(1 << 20)
            yield number, None
        elif not raw.isspace():
            yield number, raw


def id_at_start(raw: bytes) -> bytes | None:
    """The id of a line that starts with it, if it can be read without parsing the line."""
    found = _INPUT_LINE.match(raw)
    return None if found is None else found[1]


def parse_request(number: int, raw: bytes | None) -> BatchRequest:
    """A line as a request.

    Raises:
        InvalidLineError: It is not one. The message never quotes the body.
    """
    if raw is None:
        raise InvalidLineError(number, f"it is longer than {MAX_LINE_BYTES // 1024**2} MB")
    try:
        value = json.loads(raw)
    except UnicodeDecodeError:
        raise InvalidLineError(number, "it is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise InvalidLineError(number, f"it is not JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError):
        raise InvalidLineError(number, "it is not JSON that can be read") from None
    if not isinstance(value, dict):
        raise InvalidLineError(number, "it must be a JSON object")
    custom_id = value.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        raise InvalidLineError(number, "custom_id must be a string that is not empty")

    def invalid(message: str) -> InvalidLineError:
        return InvalidLineError(number, message, custom_id=custom_id)

    if len(value) > len(_NAMES) or not value.keys() <= set(_NAMES):
        raise invalid(f"a request has {', '.join(_NAMES)} and nothing else")
    if value.get("method") != "POST":
        raise invalid('method must be "POST"')
    url, body = value.get("url"), value.get("body")
    if url not in URLS:
        raise invalid(f"url must be one of {', '.join(URLS)}")
    if not isinstance(body, dict):
        raise invalid("body must be a JSON object")
    return BatchRequest(number, custom_id, url, body, len(raw))


def answer_line(custom_id: str, body: Any, request_id: str | None) -> bytes:
    """The line of an answer."""
    response = {"status_code": 200, "request_id": request_id, "body": body}
    return _line(custom_id, response, None)


def error_line(custom_id: str | None, error: PremError) -> bytes:
    """The line of an error: the service's own as a response with its status, any other with a code."""
    if isinstance(error, APIStatusError):
        found = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
        response = {
            "status_code": error.status_code,
            "request_id": error.support_id,
            "body": {"error": found},
        }
        return _line(custom_id, response, None)
    if isinstance(error, InvalidLineError):
        return _line(custom_id, None, {"code": error.code, "message": error.message, "line": error.line})
    return _line(custom_id, None, {"code": error_code(error), "message": error.message})


def error_code(error: PremError) -> str:
    """A short name for an error that the service did not report."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), "error")


def is_final(line: bytes) -> bool:
    """Whether a line of the errors file is about a request that the service would refuse again."""
    try:
        value = json.loads(line)
        status = value["response"]["status_code"]
        message = value["response"]["body"]["error"]["message"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
    if (
        "internal server error" in str(message).lower()
    ):  # the service's text for, among others, an empty balance
        return False
    return isinstance(status, int) and 400 <= status < 500 and status not in (401, 402, 403, 408, 409, 429)


def id_of(line: bytes) -> bytes | str | None:
    """The id in a line of an output, or None if the line is not one."""
    found = _OWN_LINE.match(line)
    if found is not None and line.endswith(b"}"):
        return found[1]
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    name = value.get("custom_id", value.get("_source"))
    return name if isinstance(name, str) else None


def to_line(value: Any) -> bytes:
    """`value` as one line of ASCII JSON.

    Raises:
        ValueError: It holds a number that JSON does not have.
    """
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")


def _line(custom_id: str | None, response: Any, error: Any) -> bytes:
    name = f"batch_req_{secrets.token_hex(12)}"
    return to_line({"id": name, "custom_id": custom_id, "response": response, "error": error})
