"""Every error this package raises, in one tree.

::

    PremError
    ├── ConfigurationError            a setting of the client cannot work
    ├── InvalidParameterError         a request parameter is not allowed; nothing was sent
    ├── EnclaveKeyError               the enclave's public key cannot be fetched, read or used
    ├── AttestationError              the attestation evidence is not accepted (kinds: prem_core.attestation)
    ├── DecryptionError               bytes that do not open with the request's secret
    ├── NonceReuseError               the service seals replies under their request's nonce; see `nonce_reuse`
    ├── LengthFinishReasonError       the token limit truncated structured output or a tool call
    ├── RefusalError                  the model refused to answer in the requested form
    └── APIError                      the service, or the network
        ├── APIConnectionError        it could not be reached, or the connection broke
        │   ├── APITimeoutError       it took too long
        │   └── StreamInterruptedError  an answer that ended before it was complete
        ├── APIResponseValidationError  a response that the protocol does not allow
        │   └── ResponseTooLargeError   a response larger than the buffer
        └── APIStatusError            an error the service reported
            ├── BadRequestError (400, 422)
            │   └── ContextLengthExceededError
            ├── AuthenticationError (401)
            ├── PermissionDeniedError (403)
            ├── NotFoundError (404)
            ├── RequestTooLargeError (413)
            ├── RateLimitError (429)
            └── InternalServerError (5xx)

An error carries values (a status, a support id), never a request, a response, a key or a payload. So it can be logged,
traced and pickled safely. Names are the OpenAI SDK's where it has one.
"""

from __future__ import annotations

from typing import Any, ClassVar


class PremError(Exception):
    """Base of every error of this package."""

    #: Whether sending the same request again may succeed.
    is_retryable: bool = False

    @property
    def message(self) -> str:
        """The error's text, as `str(error)` gives it."""
        return str(self)


class ConfigurationError(PremError, ValueError):
    """A setting that cannot work or is not safe: a missing key, a plain http URL."""


class InvalidParameterError(PremError, ValueError):
    """The published schema does not allow a request parameter; nothing was sent.

    Attributes:
        param: The parameter's path, for example ``messages.0.content`` or ``temperature``.
    """

    def __init__(self, message: str, *, param: str | None = None) -> None:
        # Parameter names come from the caller and may contain lone surrogates; escape them, so that the message can
        # always be encoded.
        super().__init__(_writable(message))
        self.param = param if param is None else _writable(param)


def _writable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


class EnclaveKeyError(PremError):
    """The enclave's public key could not be fetched or read, or the enclave no longer has the private key for it."""


class AttestationError(PremError):
    """The attestation evidence is missing, not genuine, not fresh, or shows what the policy does not accept.

    Each kind of refusal is a class of its own in `prem_core.attestation`.

    Attributes:
        check: The check that failed, for example ``nonce`` or ``revocation``.
        checks: Every check up to this one, in order, as `prem_core.attestation.Check`; the last one failed.
    """

    #: The check where none is given.
    DEFAULT_CHECK: ClassVar[str] = "attestation"

    def __init__(self, message: str, *, check: str | None = None) -> None:
        super().__init__(message)
        self.check = self.DEFAULT_CHECK if check is None else check
        self.checks: tuple[Any, ...] = ()


class DecryptionError(PremError):
    """A sealed item did not open.

    There is one message for every cause, and it says nothing about the bytes: distinguishing a wrong key from a
    changed byte would only help an attacker.
    """

    MESSAGE: ClassVar[str] = "the sealed bytes could not be opened with this request's secret"

    def __init__(self, message: str = MESSAGE) -> None:
        super().__init__(message)


class NonceReuseError(PremError):
    """The service seals a reply under its request's nonce, and the client's `nonce_reuse` is "error".

    The gateway can read such a reply, put another one in its place and, by sending the request again, read the request.
    A probe with a random word finds this out before the first prompt is sent to a model.
    """

    MESSAGE: ClassVar[str] = (
        "the service seals replies of this model under the nonce of their request, so the gateway could read and "
        "replace them; nonce_reuse='error' refuses this"
    )

    def __init__(self, message: str = MESSAGE) -> None:
        super().__init__(message)


class LengthFinishReasonError(PremError):
    """The answer reached its token limit in the middle of a tool call's arguments or of the requested JSON.

    The rest of it is missing. Completing it would make up values that the model did not give.
    """

    MESSAGE: ClassVar[str] = (
        "the answer reached its token limit in the middle of a tool call or of the requested JSON: "
        "raise max_tokens, or ask for less"
    )

    def __init__(self, message: str = MESSAGE) -> None:
        super().__init__(message)


class RefusalError(PremError):
    """The model refused to answer in the requested form.

    The text of the refusal is part of the response, and so is not in this error. Both adapters keep it in the message's
    ``additional_kwargs["refusal"]``.
    """

    MESSAGE: ClassVar[str] = "the model refused to answer in the requested form"

    def __init__(self, message: str = MESSAGE) -> None:
        super().__init__(message)


class APIError(PremError):
    """The service answered with an error, or did not answer.

    Attributes:
        type: The service's own name for the error, if it gave one.
        code: The service's error code, if it gave one.
        support_id: ``support_{uuidv7}``; the service keeps it for 7 days. Quote it when you contact Prem's support.
    """

    def __init__(
        self,
        message: str,
        *,
        type: str | None = None,  # noqa: A002 - the OpenAI SDK's name
        code: str | None = None,
        support_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.type = type
        self.code = code
        self.support_id = support_id

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text} ({self.support_id})" if self.support_id else text


class APIConnectionError(APIError):
    """The service could not be reached, or the connection broke.

    Attributes:
        request_sent: Whether the whole request may have arrived. The client then does not send it again by itself,
            unless `retry_after_send` is set: the service may have accepted it, and would charge for it twice.
    """

    is_retryable = True
    request_sent: bool = True


class APITimeoutError(APIConnectionError):
    """Connecting, the response, or its next bytes took longer than the timeout."""


class StreamInterruptedError(APIConnectionError):
    """The answer was truncated: the stream ended without a ``done`` event, or without a finish reason before it.

    A truncated answer is never returned as a complete one. There is no retry after the first chunk was delivered.
    """


class APIResponseValidationError(APIError):
    """The response is not what the protocol allows: HTML for JSON, a wrong content type, not a chunk."""


class ResponseTooLargeError(APIResponseValidationError):
    """One event, or one body, is larger than ``max_buffer_size`` bytes."""


class APIStatusError(APIError):
    """The service reported an error.

    Tests may make one by hand: ``RateLimitError(retry_after=1)``. Each subclass has its status as the default.

    Attributes:
        status_code: The HTTP status; for an error event inside a stream, the status its type stands for.
        param: The parameter that the service names, if it does.
        validator: The service's findings by field, if it sent them.
        retry_after: Seconds to wait before the next attempt, as the service asks; None if it does not.
    """

    #: The status where none is given.
    DEFAULT_STATUS: ClassVar[int] = 0
    #: The text where none is given.
    DEFAULT_MESSAGE: ClassVar[str] = "the service reported an error"

    def __init__(
        self,
        message: str | None = None,
        *,
        status_code: int | None = None,
        param: str | None = None,
        validator: Any = None,
        retry_after: float | None = None,
        type: str | None = None,  # noqa: A002
        code: str | None = None,
        support_id: str | None = None,
    ) -> None:
        super().__init__(
            self.DEFAULT_MESSAGE if message is None else message, type=type, code=code, support_id=support_id
        )
        self.status_code = self.DEFAULT_STATUS if status_code is None else status_code
        # As in the OpenAI SDK.
        if self.status_code in (408, 409, 429) or self.status_code >= 500:
            self.is_retryable = True
        self.param = param
        self.validator = validator
        self.retry_after = retry_after


class BadRequestError(APIStatusError):
    """400 or 422: the service does not accept the request."""

    DEFAULT_STATUS = 400
    DEFAULT_MESSAGE = "the service refuses the request"


class ContextLengthExceededError(BadRequestError):
    """400: the prompt is longer than the model's context window."""

    DEFAULT_MESSAGE = "the prompt is longer than the model's context window"


class AuthenticationError(APIStatusError):
    """401: the API key is missing, wrong or revoked."""

    DEFAULT_STATUS = 401
    DEFAULT_MESSAGE = "the API key is missing, wrong or revoked"


class PermissionDeniedError(APIStatusError):
    """403: the API key may not do this.

    Attributes:
        scope: The scope that the key lacks, for example ``chats.completion``; None for any other reason, such as an IP
            address that is not allowed for the key.
    """

    DEFAULT_STATUS = 403
    DEFAULT_MESSAGE = "the API key may not do this"

    def __init__(self, message: str | None = None, *, scope: str | None = None, **values: Any) -> None:
        super().__init__(message, **values)
        self.scope = scope


class NotFoundError(APIStatusError):
    """404: no such model or route."""

    DEFAULT_STATUS = 404
    DEFAULT_MESSAGE = "there is no such model or route"


class RequestTooLargeError(APIStatusError):
    """413: the request is larger than the service takes."""

    DEFAULT_STATUS = 413
    DEFAULT_MESSAGE = "the request is larger than the service takes"


class RateLimitError(APIStatusError):
    """429: a limit of the organisation (requests, tokens, audio, concurrent streams) is reached.

    `retry_after` says how many seconds the service asks to wait.
    """

    DEFAULT_STATUS = 429
    DEFAULT_MESSAGE = "a rate limit is reached"

    is_retryable = True


class InternalServerError(APIStatusError):
    """5xx: the gateway or the enclave failed, or is unavailable."""

    DEFAULT_STATUS = 500
    DEFAULT_MESSAGE = "the service failed"

    is_retryable = True
