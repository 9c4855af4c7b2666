"""The documented response envelope, and the error that is answered with one."""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Self


def envelope(
    status: int,
    *,
    data: Any = None,
    error: str | Mapping[str, Any] | None = None,
    validator: Mapping[str, str] | None = None,
    log: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The documented envelope: `data` of a success, or `error` with a fresh support id."""
    return {
        "status": status,
        "data": data,
        "error": error,
        "message": None,
        "env": "development",
        "log": log,
        "validator": validator,
        "support_id": None if error is None else support_id(),
    }


class EnvelopeError(Exception):
    """A request is answered with an error envelope. Both roles raise it; the middleware sends it.

    Args:
        status: The HTTP status.
        error: The message of the envelope, or OpenAI's error object. It is sent as plaintext: it must not contain a
            value of the request.
        validator: What is wrong, by field.
        log: The ``log`` of the envelope.
        headers: Further response headers, such as Retry-After.
    """

    def __init__(
        self,
        status: int,
        error: str | Mapping[str, Any],
        *,
        validator: Mapping[str, str] | None = None,
        log: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.validator = validator
        self.log = log
        self.headers = dict(headers or {})

    @classmethod
    def invalid(cls, place: str, rule: str) -> Self:
        """A 400 for one field that breaks a rule."""
        return cls(400, f"Invalid request: {place} {rule}", validator={place: rule})

    def envelope(self) -> dict[str, Any]:
        """The response body."""
        return envelope(self.status, error=self.error, validator=self.validator, log=self.log)


def support_id() -> str:
    """A fresh ``support_{uuidv7}``."""
    return f"support_{_uuid7()}"


def _uuid7(clock: Callable[[], int] = time.time_ns) -> uuid.UUID:
    # RFC 9562, section 5.7: 48 bits of milliseconds, then random bits around the version and the variant.
    # Python has uuid.uuid7 only from 3.14.
    milliseconds = clock() // 1_000_000 & (1 << 48) - 1
    bits = milliseconds << 80 | secrets.randbits(80)
    bits = bits & ~(0xF << 76) | 0x7 << 76
    bits = bits & ~(0x3 << 62) | 0x2 << 62
    return uuid.UUID(int=bits)
