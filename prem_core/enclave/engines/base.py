"""What an engine is: the part of the embedded enclave that answers the opened requests."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

AudioTask = Literal["transcribe", "translate"]
Chunk = dict[str, Any]

#: The error type of each status, for errors without one.
_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable",
}


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One opened request. Its repr shows no content.

    Attributes:
        task: ``chat``, ``transcribe`` or ``translate``.
        params: The parameters as the client sealed them; they satisfy the published schema of the task.
        file_name: The recording's file name; empty for a chat.
        audio: The recording; empty for a chat.
    """

    task: Literal["chat", "transcribe", "translate"]
    params: Mapping[str, Any] = field(repr=False)
    file_name: str = field(default="", repr=False)
    audio: bytes = field(default=b"", repr=False)

    @property
    def model(self) -> str:
        """The model's name."""
        return str(self.params["model"])

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages of a chat."""
        return list(self.params.get("messages") or ())

    @property
    def tools(self) -> list[dict[str, Any]]:
        """The tools a chat may call."""
        return list(self.params.get("tools") or ())

    @property
    def text(self) -> str:
        """The text of the last user message, without its files and images."""
        for message in reversed(self.messages):
            if message["role"] == "user":
                return "\n".join(texts_of(message))
        return ""


def texts_of(message: Mapping[str, Any]) -> Iterator[str]:
    """The text parts of one message."""
    content = message.get("content")
    if isinstance(content, str):
        yield content
    else:
        yield from (part["text"] for part in content or () if part.get("type") == "text")


class EngineError(Exception):
    """The engine rejects a request, or fails.

    Raised before the first chunk, it becomes an HTTP error, which leaves the enclave unsealed: `message`
    must not repeat the request. Raised later, it becomes a sealed ``error`` event.

    Attributes:
        message: What is wrong.
        status: The HTTP status.
        type: The error type of OpenAI's error object; by default that of `status`.
        code: The error code, if there is one.
        param: The request parameter at fault, if there is one.
        validator: Findings by parameter, if there are several.
        retry_after: Seconds for the Retry-After header, or the header's text.
        detail: A text for the sealed ``error`` event in place of `message`. It may repeat the request.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        type: str | None = None,  # noqa: A002 - the name in OpenAI's error object
        code: str | None = None,
        param: str | None = None,
        validator: Any = None,
        retry_after: float | str | None = None,
        detail: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.type = type or _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        self.code = code
        self.param = param
        self.validator = validator
        self.retry_after = retry_after
        self.detail = detail


class TruncatedStreamError(Exception):
    """An engine raises this to end a stream without its finish reason and without its ``done`` event."""


@dataclass(frozen=True, slots=True)
class AudioReply:
    """The answer to a recording. Its repr shows nothing of it.

    Attributes:
        content: The JSON object that ``response_format`` asks for, or a text for ``text``.
        seconds: How long the recording is, for the rate limit on audio.
    """

    content: dict[str, Any] | str = field(repr=False)
    seconds: float


class Engine(Protocol):
    """What answers the requests of a `LocalEnclave`. Subclass it; only `chat` must be written.

    ::

        class Echo(Engine):
            async def chat(self, request):
                head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": request.model}
                choice = {"index": 0, "delta": {"content": request.text}, "logprobs": None, "finish_reason": "stop"}
                yield {**head, "choices": [choice]}

    All methods run in the event loop of the enclave's own thread: work that takes long belongs in
    `asyncio.to_thread`. One engine may answer several requests at once.
    """

    @abstractmethod
    def chat(self, request: EngineRequest) -> AsyncGenerator[Chunk, None]:
        """Yield the answer as ``chat.completion.chunk`` objects, whether or not a stream was asked for.

        The enclave seals each chunk as it comes. End with a chunk of ``usage``: the enclave leaves it out
        where it was not asked for. When the client disconnects, the generator is closed.

        Raises:
            EngineError: See there.
        """
        ...

    async def audio(self, request: EngineRequest) -> AudioReply:
        """Transcribe or translate a recording. By default this is an error.

        Raises:
            EngineError: The request is rejected, or it failed.
        """
        raise EngineError("this engine does not support audio")

    async def models(self) -> Sequence[str] | None:
        """The names that ``GET /models`` lists; None, the default, for the names the `LocalEnclave` has.

        Raises:
            EngineError: The list cannot be had.
        """
        return None

    async def aclose(self) -> None:
        """Release connections and threads. Called by `LocalEnclave.stop`; the engine may be used again."""
        return
