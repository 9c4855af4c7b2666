"""Errors in the form of Anthropic's API: ``{"type": "error", "error": {"type", "message", "details"}}``."""

from __future__ import annotations

from typing import Final

from prem_core._apis.base import ApiError, to_json

#: The type of an error, by its HTTP status.
TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def error_body(error: ApiError) -> bytes:
    """The JSON of an error, for a response and for an event."""
    kind = TYPES.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
    details = None if error.code is None else {"error_code": error.code}
    return to_json({"type": "error", "error": {"type": kind, "message": error.message, "details": details}})
