"""Errors in the form of OpenAI's API: ``{"error": {"message", "type", "param", "code"}}`` and an HTTP status."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from typing import Final
from urllib.parse import quote

from starlette.types import Send

from prem_core import _errors as errors

#: The status, type and code of each error. The first row that matches counts. None stands for the status that the
#: service sent. A type and code from the service win over those here.
TABLE: Final[tuple[tuple[type[errors.PremError], int | None, str, str | None], ...]] = (
    (errors.InvalidParameterError, 400, "invalid_request_error", None),
    (errors.ContextLengthExceededError, None, "invalid_request_error", "context_length_exceeded"),
    (errors.BadRequestError, None, "invalid_request_error", None),
    (errors.AuthenticationError, None, "invalid_request_error", "invalid_api_key"),
    (errors.PermissionDeniedError, None, "permission_error", "permission_denied"),
    (errors.NotFoundError, None, "invalid_request_error", "not_found"),
    (errors.RequestTooLargeError, None, "invalid_request_error", "request_too_large"),
    (errors.RateLimitError, None, "rate_limit_error", "rate_limit_exceeded"),
    (errors.InternalServerError, None, "server_error", None),
    (errors.APIStatusError, None, "api_error", None),
    # From here on the proxy is a gateway whose upstream failed.
    (errors.APITimeoutError, 504, "server_error", "upstream_timeout"),
    (errors.StreamInterruptedError, 502, "server_error", "stream_interrupted"),
    (errors.APIConnectionError, 502, "server_error", "upstream_unreachable"),
    (errors.ResponseTooLargeError, 502, "server_error", "response_too_large"),
    (errors.APIResponseValidationError, 502, "server_error", "invalid_response"),
    (errors.APIError, 502, "server_error", None),
    (errors.EnclaveKeyError, 502, "server_error", "enclave_key_error"),
    (errors.AttestationError, 502, "server_error", "attestation_failed"),
    (errors.NonceReuseError, 502, "server_error", "nonce_reuse"),
    (errors.DecryptionError, 502, "server_error", "decryption_failed"),
    (errors.LengthFinishReasonError, 502, "server_error", "length"),
    (errors.RefusalError, 502, "server_error", "refusal"),
    (errors.ConfigurationError, 500, "server_error", "proxy_misconfigured"),
    (errors.PremError, 500, "server_error", None),
)

#: Statuses that OpenAI's clients retry, in addition to every 5xx.
_RETRIED_BY_CLIENTS: Final = (408, 409, 429)

#: Names that one message lists, and characters of each.
MAX_NAMES: Final = 20
MAX_NAME_LENGTH: Final = 64


class ErrorResponse(Exception):
    """An error to send to the caller.

    Args:
        status: The HTTP status.
        message: What is wrong and what to do.
        type: OpenAI's kind of error.
        code: A name for programs.
        param: The parameter at fault.
        retry_after: Seconds the service asks to wait.
        support_id: The service's, for Prem's support.
        headers: Further headers.
        retryable: Whether the caller should retry.
        name: The error's name in the request log; by default `code`, or else `type`.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",  # noqa: A002 - OpenAI's name
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        support_id: str | None = None,
        headers: dict[str, str] | None = None,
        retryable: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.name = name or code or type
        self.body = json.dumps(
            {"error": {"message": message, "type": type, "param": param, "code": code}}, ensure_ascii=False
        ).encode("utf-8", "replace")
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["retry-after"] = str(math.ceil(retry_after))
        if support_id is not None:
            # It comes from the network, and a header can hold only these characters.
            support_id = "".join(
                char if char.isascii() and char.isprintable() else "?" for char in support_id
            )
            # OpenAI's clients show this header as the error's request_id.
            self.headers["x-request-id"] = self.headers["x-prem-support-id"] = support_id
        self.support_id = support_id
        if not retryable and (status >= 500 or status in _RETRIED_BY_CLIENTS):
            self.headers["x-should-retry"] = "false"

    async def send(self, send: Send, headers: Collection[tuple[str, str]] = ()) -> None:
        """Send it as a complete response. Its own headers win over `headers`."""
        pairs = {
            "content-type": "application/json",
            "content-length": str(len(self.body)),
            **dict(headers),
            **self.headers,
        }
        raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in pairs.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": raw})
        await send({"type": "http.response.body", "body": self.body})


def error_response(error: errors.PremError, *, retried: bool) -> ErrorResponse:
    """The response that an OpenAI client gets for `error`.

    Args:
        error: Any error of this package.
        retried: Whether the proxy has retried it already: the caller should not multiply the attempts.
    """
    status, kind, code = next(row[1:] for row in TABLE if isinstance(error, row[0]))
    if status is None:
        status = getattr(error, "status_code", 0)
        if not 400 <= status < 600:  # a redirect, which the client does not follow
            status = 502
    return ErrorResponse(
        status,
        str(error),
        type=getattr(error, "type", None) or kind,
        code=getattr(error, "code", None) or code,
        param=getattr(error, "param", None),
        retry_after=getattr(error, "retry_after", None),
        support_id=getattr(error, "support_id", None),
        retryable=error.is_retryable and not retried,
        name=type(error).__name__,
    )


def quote_names(names: Collection[str]) -> str:
    """Names from a request for a message or a header: the first `MAX_NAMES`, shortened, in printable ASCII."""
    shown = [quote(name[:MAX_NAME_LENGTH], safe="[]:", errors="replace") for name in list(names)[:MAX_NAMES]]
    return ", ".join([*shown, "..."] if len(names) > MAX_NAMES else shown)
