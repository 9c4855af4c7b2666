"""Every error this package raises, in one tree.

::

    PremError
    ├── ConfigurationError            you: the client is set up wrongly
    ├── InvalidParameterError         you: a request parameter, refused before anything is sent
    ├── EnclaveKeyError               the enclave's public key cannot be had, read or used
    ├── DecryptionError               bytes that do not open under this exchange's secret
    ├── LengthFinishReasonError       the token limit cut structured output or a tool call short
    ├── RefusalError                  the model refused to answer in the form asked for
    └── APIError                      the service, or the way to it
        ├── APIConnectionError        it could not be reached, or the connection broke
        │   ├── APITimeoutError       ... because it took too long
        │   └── StreamInterruptedError  an answer that ended before it was whole
        ├── APIResponseValidationError  an answer that is not what the protocol says
        │   └── ResponseTooLargeError   ... and larger than the buffer allows
        └── APIStatusError            an error the service reported
            ├── BadRequestError (400, 422)
            │   └── ContextLengthExceededError
            ├── AuthenticationError (401)
            ├── PermissionDeniedError (403)
            ├── NotFoundError (404)
            ├── RequestTooLargeError (413)
            ├── RateLimitError (429)
            └── InternalServerError (5xx)

The rule of this file: an error carries values (a status, a support id), never a request, a
response, a key or a payload, so that it can be logged, traced and pickled without letting
anything out. Names are the OpenAI SDK's where it has one.
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
    """The client is set up in a way that cannot work, or must not (a missing key, a plain http URL)."""


class InvalidParameterError(PremError, ValueError):
    """A request parameter that the published schema forbids; nothing was sent.

    Attributes:
        param: The parameter's path, for example ``messages.0.content`` or ``temperature``.
    """

    def __init__(self, message: str, *, param: str | None = None) -> None:
        # Names may be the caller's, and of half a character: an error that cannot be written to a log is none.
        super().__init__(_writable(message))
        self.param = param if param is None else _writable(param)


def _writable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


class EnclaveKeyError(PremError):
    """The enclave's public key could not be fetched or read, or the enclave no longer holds its match."""


class DecryptionError(PremError):
    """A sealed item did not open.

    There is one message for every cause, and it says nothing of the bytes: telling a wrong key
    from a changed byte would help only somebody who tries both.
    """

    MESSAGE: ClassVar[str] = "the sealed bytes could not be opened with this exchange's secret"

    def __init__(self, message: str = MESSAGE) -> None:
        super().__init__(message)


class LengthFinishReasonError(PremError):
    """The answer reached its token limit in the middle of a tool call's arguments or of the JSON asked for.

    What there is of it cannot be used: completing it would make up what the model did not say.
    """

    MESSAGE: ClassVar[str] = (
        "the answer reached its token limit in the middle of a tool call or of the JSON asked for; "
        "raise max_tokens or ask for less"
    )

    def __init__(self, message: str = MESSAGE) -> None:
        super().__init__(message)


class RefusalError(PremError):
    """The model refused to answer, where an answer in a given form was asked for.

    The refusal's own words are part of the reply, and so not in this error. Both adapters keep them in the
    message's ``additional_kwargs["refusal"]``.
    """

    MESSAGE: ClassVar[str] = "the model refused to answer in the form asked for"

    def __init__(self, message: str = MESSAGE) -> None:
        super().__init__(message)


class APIError(PremError):
    """The service answered with an error, or no answer could be had from it.

    Attributes:
        type: The service's own name for the error, where it gave one.
        code: The service's error code, where it gave one.
        support_id: ``support_{uuidv7}``; the service keeps it for 7 days. Give it to Prem's support.
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
    """The service could not be reached, or the connection broke."""

    is_retryable = True


class APITimeoutError(APIConnectionError):
    """The service took longer than the timeout to connect, to answer, or to send the next bytes."""


class StreamInterruptedError(APIConnectionError):
    """The answer ended before it was whole: no ``done`` event, or no finish reason before it.

    What had arrived is not a short answer. It is never returned as one, and never asked for again
    once a chunk was delivered.
    """


class APIResponseValidationError(APIError):
    """The answer is not what the protocol describes (HTML for JSON, a wrong content type, no chunk)."""


class ResponseTooLargeError(APIResponseValidationError):
    """One event, or one body, is larger than ``max_buffer_size`` bytes."""


class APIStatusError(APIError):
    """The service reported an error.

    Attributes:
        status_code: The HTTP status; for an error event inside a stream, the status its type stands for.
        param: The parameter the service names, where it names one.
        validator: The service's findings by field, where it sent them.
        retry_after: Seconds the service asks to wait before the next try; None where it does not say.
    """

    def __init__(
        self,
        message: str,
        *,
        status_code: int = 0,
        param: str | None = None,
        validator: Any = None,
        retry_after: float | None = None,
        type: str | None = None,  # noqa: A002
        code: str | None = None,
        support_id: str | None = None,
    ) -> None:
        super().__init__(message, type=type, code=code, support_id=support_id)
        self.status_code = status_code
        # As in the OpenAI SDK.
        if status_code in (408, 409, 429) or status_code >= 500:
            self.is_retryable = True
        self.param = param
        self.validator = validator
        self.retry_after = retry_after


class BadRequestError(APIStatusError):
    """400 or 422: the service refuses the request as it stands."""


class ContextLengthExceededError(BadRequestError):
    """400: the prompt is longer than the model's context window."""


class AuthenticationError(APIStatusError):
    """401: the API key is missing, wrong or revoked."""


class PermissionDeniedError(APIStatusError):
    """403: the API key may not do this.

    Attributes:
        scope: The scope the key lacks, for example ``chats.completion``; None when the reason is
            another one, such as an address that is not on the key's list.
    """

    def __init__(self, message: str, *, scope: str | None = None, **values: Any) -> None:
        super().__init__(message, **values)
        self.scope = scope


class NotFoundError(APIStatusError):
    """404: no such model or route."""


class RequestTooLargeError(APIStatusError):
    """413: the request is larger than the service takes."""


class RateLimitError(APIStatusError):
    """429: a limit of the organisation (requests, tokens, audio, concurrent streams) is reached.

    `retry_after` says how many seconds the service asks to wait.
    """

    is_retryable = True


class InternalServerError(APIStatusError):
    """5xx: the gateway or the enclave failed, or is unavailable."""

    is_retryable = True
