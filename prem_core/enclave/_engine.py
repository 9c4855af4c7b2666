"""What every engine behind the enclave shares: the error it raises, and the form of an answer to a recording."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

AudioTask = Literal["transcribe", "translate"]


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


@dataclass(frozen=True, slots=True)
class AudioAnswer:
    """What an engine says of a recording. Its repr shows nothing of it.

    Attributes:
        content: The JSON object that ``response_format`` asks for, or the text itself for ``text``.
        seconds: How long the recording is, for the meter.
    """

    content: dict[str, Any] | str = field(repr=False)
    seconds: float
