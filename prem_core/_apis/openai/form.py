"""What all of OpenAI's APIs share: the form of an error, and of an event."""

from __future__ import annotations

from typing import ClassVar, Final

from prem_core._apis.base import Api, ApiError, Family, to_json

#: The end of a complete stream. A stream without it is truncated.
DONE: Final = b"data: [DONE]\n\n"


def error_body(error: ApiError) -> bytes:
    """``{"error": {"message", "type", "param", "code"}}``."""
    value = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return to_json({"error": value})


def error_event(error: ApiError) -> bytes:
    """The last event of a stream that fails. OpenAI's clients raise it."""
    return b"data: %b\n\n" % error_body(error)


class OpenAIApi(Api):
    """An API for OpenAI's clients."""

    family: ClassVar[Family] = "openai"

    def error_body(self, error: ApiError) -> bytes:
        """See `error_body`."""
        return error_body(error)
