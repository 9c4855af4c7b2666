"""Errors as OpenAI's API has them: ``{"error": {"message", "type", "param", "code"}}`` and an HTTP status.

The rule of this file: whatever goes wrong becomes a `Refusal`, and its text is this package's or the service's own.
"""

from __future__ import annotations

import json
import math
from typing import Final

from prem_core import _errors as errors

#: What each error is to an OpenAI client: status, type, code. The status None: the one the service gave. The first row
#: that fits counts; the service's own type and code go before these.
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
    # From here on the proxy is a gateway whose other side failed.
    (errors.APITimeoutError, 504, "server_error", "upstream_timeout"),
    (errors.StreamInterruptedError, 502, "server_error", "stream_interrupted"),
    (errors.APIConnectionError, 502, "server_error", "upstream_unreachable"),
    (errors.ResponseTooLargeError, 502, "server_error", "response_too_large"),
    (errors.APIResponseValidationError, 502, "server_error", "invalid_response"),
    (errors.APIError, 502, "server_error", None),
    (errors.EnclaveKeyError, 502, "server_error", "enclave_key_error"),
    (errors.DecryptionError, 502, "server_error", "decryption_failed"),
    (errors.LengthFinishReasonError, 502, "server_error", "length"),
    (errors.RefusalError, 502, "server_error", "refusal"),
    (errors.ConfigurationError, 500, "server_error", "proxy_misconfigured"),
    (errors.PremError, 500, "server_error", None),
)

#: Statuses after which OpenAI's clients try again by themselves, beside every 5xx.
_TRIED_AGAIN: Final = (408, 409, 429)


class Refusal(Exception):
    """An answer that is an error.

    Args:
        status: The HTTP status.
        message: For the caller's eyes.
        type: OpenAI's kind of error.
        code: A name for programs.
        param: The parameter it is about.
        retry_after: Seconds the service asks to wait.
        support_id: The service's, for Prem's support.
        headers: Further headers.
        again: Whether the caller should send the request again by itself.
        name: What the exchange is remembered to have ended with.
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
        again: bool = False,
        name: str = "Refusal",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.name = name
        self.body = json.dumps(
            {"error": {"message": message, "type": type, "param": param, "code": code}}, ensure_ascii=False
        ).encode("utf-8", "replace")
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["retry-after"] = str(math.ceil(retry_after))
        if support_id is not None:
            # It comes from the network, and a header holds no more than this.
            support_id = "".join(
                char if char.isascii() and char.isprintable() else "?" for char in support_id
            )
            # OpenAI's clients show this one as the error's request_id.
            self.headers["x-request-id"] = self.headers["x-prem-support-id"] = support_id
        self.support_id = support_id
        if not again and (status >= 500 or status in _TRIED_AGAIN):
            self.headers["x-should-retry"] = "false"


def refusal(error: errors.PremError, *, tried: bool) -> Refusal:
    """What `error` is to an OpenAI client.

    Args:
        error: Any error of this package.
        tried: Whether what can be tried again has been: three tries of three tries are nine.
    """
    status, kind, code = next(row[1:] for row in TABLE if isinstance(error, row[0]))
    if status is None:
        status = getattr(error, "status_code", 0)
        if not 400 <= status < 600:  # a redirect, which is not followed
            status = 502
    return Refusal(
        status,
        str(error),
        type=getattr(error, "type", None) or kind,
        code=getattr(error, "code", None) or code,
        param=getattr(error, "param", None),
        retry_after=getattr(error, "retry_after", None),
        support_id=getattr(error, "support_id", None),
        again=error.is_retryable and not tried,
        name=type(error).__name__,
    )
