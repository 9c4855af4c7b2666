"""The HTTP status, type and code of each of this package's errors."""

from __future__ import annotations

from typing import Final

from prem_core import _errors as errors
from prem_core._apis.base import ApiError

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


def api_error(error: errors.PremError, *, retried: bool) -> ApiError:
    """What a caller gets for `error`.

    Args:
        error: Any error of this package.
        retried: Whether it has been retried already: the caller should not multiply the attempts.
    """
    status, kind, code = next(row[1:] for row in TABLE if isinstance(error, row[0]))
    if status is None:
        status = getattr(error, "status_code", 0)
        if not 400 <= status < 600:  # a redirect, which the client does not follow
            status = 502
    return ApiError(
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
