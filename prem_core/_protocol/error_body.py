"""Turn an HTTP error, or an error inside a stream, into one typed exception.

The body may contain anything: JSON, HTML, nothing. Reading it never raises another error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from prem_core import _errors as errors
from prem_core._protocol.assumptions import (
    KEY_ROTATED_PATTERN,
    KEY_ROTATED_STATUSES,
    ROUTE_SCOPES,
    STREAM_ERROR_STATUS,
    STREAM_REFUSED_PATTERN,
)
from prem_core._protocol.retry import parse_retry_after

#: Maximum bytes to read of an error's body.
MAX_ERROR_BODY: Final = 64 * 1024

#: Maximum characters of an error's text, which is untrusted input.
MAX_MESSAGE: Final = 500

_CONTEXT = re.compile(
    r"context[ _](?:length|window)|maximum context|prompt is too long|too many tokens",
    re.IGNORECASE,
)
_SCOPE = re.compile(r"\b(?:[a-z_]+\.)+(?:completion|transcription|translation|read|create|delete|execute)\b")


def status_error(
    status: int,
    body: bytes,
    *,
    route: str = "",
    headers: Mapping[str, str] | None = None,
    now: float = 0.0,
) -> errors.APIStatusError:
    """The error for an HTTP error response.

    Args:
        status: The HTTP status, 400 or more (or a redirect, which is not followed).
        body: The response's body: the envelope, OpenAI's error object, HTML or nothing.
        route: The request's path. It determines the scope if a 403 does not name one.
        headers: The response's headers, for Retry-After.
        now: When the response arrived, in seconds since the epoch.
    """
    try:
        value = load_json(body)
    except ValueError:
        value = None
    fields = value if isinstance(value, dict) else {}
    inner = fields.get("error")
    detail = inner if isinstance(inner, dict) else {}
    texts = (inner, detail.get("message"), fields.get("message"))
    text = next((text for text in texts if isinstance(text, str) and text.strip()), "")
    message = _one_line(text) or f"the service answered {status}"
    validator = fields.get("validator")
    if validator and isinstance(validator, dict):
        message = _one_line(f"{message} [{', '.join(map(str, validator))}]")
    headers = headers or {}
    return _typed(
        status,
        message,
        route,
        type=short_text(detail.get("type")),
        code=short_text(detail.get("code")),
        param=short_text(detail.get("param")),
        support_id=short_text(fields.get("support_id")),
        validator=validator,
        retry_after=parse_retry_after(headers.get("retry-after"), now),
    )


def stream_error(error: Any) -> errors.APIError:
    """The error for an ``error`` event, or for an ``error`` object inside a chunk."""
    if isinstance(error, dict) and isinstance(error.get("error"), dict | str):
        support_id = short_text(error.get("support_id"))
        error = error["error"]
    else:
        support_id = None
    detail = error if isinstance(error, dict) else {"message": error}
    kind = short_text(detail.get("type"))
    code = detail.get("code")
    support_id = short_text(detail.get("support_id")) or support_id
    message = _one_line(
        short_text(detail.get("message")) or "the service reported an error inside the stream"
    )
    status = next((s for s in (detail.get("status"), code) if isinstance(s, int) and 400 <= s < 600), None)
    if status is None:
        status = STREAM_ERROR_STATUS.get(kind or "") or STREAM_ERROR_STATUS.get(short_text(code) or "")
    if status is None:
        return errors.APIError(message, type=kind, code=short_text(code), support_id=support_id)
    return _typed(status, message, "", type=kind, code=short_text(code), support_id=support_id)


def is_key_rotation_error(error: errors.APIError) -> bool:
    """Whether `error` means that the enclave no longer has the key that the request was sealed to."""
    if isinstance(error, errors.APIStatusError) and error.status_code not in KEY_ROTATED_STATUSES:
        return False
    return bool(KEY_ROTATED_PATTERN.search(error.args[0]))


def is_stream_refusal(error: errors.APIError) -> bool:
    """Whether `error` is the 429 for a stream while another stream of the same API key is open."""
    return (
        isinstance(error, errors.APIStatusError)
        and error.status_code == 429
        and bool(STREAM_REFUSED_PATTERN.search(error.args[0]))
    )


def _typed(status: int, message: str, route: str, **values: Any) -> errors.APIStatusError:
    values["status_code"] = status
    if status in (400, 422):
        if values.get("code") == "context_length_exceeded" or _CONTEXT.search(message):
            return errors.ContextLengthExceededError(message, **values)
        return errors.BadRequestError(message, **values)
    if status == 403:
        named = _SCOPE.search(message)
        scope = named[0] if named else ROUTE_SCOPES.get(route) if "scope" in message.lower() else None
        if scope and scope not in message:
            message += f" (needs the scope {scope})"
        return errors.PermissionDeniedError(message, scope=scope, **values)
    kinds: dict[int, type[errors.APIStatusError]] = {
        401: errors.AuthenticationError,
        404: errors.NotFoundError,
        413: errors.RequestTooLargeError,
        429: errors.RateLimitError,
    }
    kind = errors.InternalServerError if status >= 500 else kinds.get(status, errors.APIStatusError)
    return kind(message, **values)


def _one_line(text: str) -> str:
    # JSON can contain a lone surrogate, which no log or terminal can print.
    text = " ".join(text.split()).encode("utf-8", "replace").decode()
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…"


def short_text(value: Any) -> str | None:
    """A string or number of the service's as one line of bounded length; None for anything else."""
    return _one_line(str(value)) or None if isinstance(value, str | int) else None


def load_json(body: bytes) -> Any:
    """`body` as JSON; ValueError if it is not JSON, or is nested too deeply."""
    try:
        return json.loads(body)
    except RecursionError:
        raise ValueError("nested too deeply") from None
