"""What every engine behind the enclave shares: the error it raises when it refuses a request."""

from __future__ import annotations


class EngineError(Exception):
    """A refusal, in the shape of an OpenAI error object.

    `status` is an HTTP status; `param` names the request parameter at fault, if one is. The message names
    parameters only and never quotes the prompt: it leaves the enclave in logs and in clear-text errors.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",  # noqa: A002 - as the OpenAI error object names it
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
