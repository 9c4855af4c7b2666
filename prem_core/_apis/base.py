"""What an API is: a request becomes the parameters of one chat, and its answer becomes the API's bytes.

An API has no network and no clock of its own. The handlers call it, for the proxy and for the transports.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal
from urllib.parse import quote

from prem_core._audio.upload import AudioFile
from prem_core._protocol.response_types import ChatCompletion, ChatCompletionChunk, Model, Transcription

#: Whose clients an API is for. Its routes are below ``/v1`` and ``/{family}/v1``.
Family = Literal["openai", "anthropic"]

#: Who answers a route: the model, the models list, a transcription, or the API alone (`Api.local`).
Kind = Literal["chat", "models", "audio", "local"]

JSON: Final = "application/json"
TEXT: Final = "text/plain; charset=utf-8"
EVENT_STREAM: Final = "text/event-stream; charset=utf-8"

#: The headers with an id for the request: OpenAI's and Anthropic's.
REQUEST_ID_HEADERS: Final = ("x-request-id", "request-id")

#: Statuses that clients of OpenAI and Anthropic retry, in addition to every 5xx.
_RETRIED_BY_CLIENTS: Final = (408, 409, 429)

#: Names that one message lists, and characters of each.
MAX_NAMES: Final = 20
MAX_NAME_LENGTH: Final = 64


class ApiError(Exception):
    """An error to send to the caller. `Api.error_body` gives it the API's form.

    Args:
        status: The HTTP status.
        message: What is wrong and what to do. It never holds content of the request.
        type: OpenAI's kind of error. Other APIs derive theirs from the status.
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
        headers: Mapping[str, str] | None = None,
        retryable: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.type = type
        self.code = code
        self.param = param
        self.name = name or code or type
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["retry-after"] = str(math.ceil(retry_after))
        if support_id is not None:
            # It comes from the network, and a header can hold only these characters.
            support_id = "".join(
                char if char.isascii() and char.isprintable() else "?" for char in support_id
            )
            # The clients of OpenAI and Anthropic show one of the first two as the error's request_id.
            for header in (*REQUEST_ID_HEADERS, "x-prem-support-id"):
                self.headers[header] = support_id
        self.support_id = support_id
        if not retryable and (status >= 500 or status in _RETRIED_BY_CLIENTS):
            self.headers["x-should-retry"] = "false"


@dataclass(frozen=True, slots=True)
class Route:
    """A method and a path below the version, such as ``/responses/{id}``. A name in braces matches one or more
    characters, with slashes for the last one."""

    method: str
    path: str
    kind: Kind = "chat"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiRequest:
    """One request, read and parsed.

    Attributes:
        route: The route that it matches.
        body: The JSON object in the body; empty without a body.
        headers: The headers by lower-case name, without the API key.
        query: The query's parameters.
        path_params: The values of the names in the route's braces.
        form: The form in the body of an ``audio`` route.
        caller: Stands for the caller's API key without revealing it. Equal for equal keys.
        strict: Refuse every parameter that Prem's API does not have, instead of dropping those without meaning.
    """

    route: Route
    body: dict[str, Any] = field(default_factory=dict, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    query: Mapping[str, str] = field(default_factory=dict, repr=False)
    path_params: Mapping[str, str] = field(default_factory=dict, repr=False)
    form: Any = field(default=None, repr=False)
    caller: str = field(default="", repr=False)
    strict: bool = False


@dataclass(slots=True, kw_only=True)
class Adjusted:
    """A request as arguments of ``client.chat.completions.create``.

    Attributes:
        params: The arguments: `messages`, `model`, `stream` and so on. The client checks them.
        dropped: Names of parameters that were left out (header ``x-prem-dropped``).
        adjusted: What has another form than the caller gave it (header ``x-prem-adjusted``): names of parameters.
        first_call_only: Whether to pass on only the first tool call of an answer. The handlers do it.
        context: What the API needs to encode the answer.
    """

    params: dict[str, Any] = field(repr=False)
    dropped: list[str] = field(default_factory=list)
    adjusted: list[str] = field(default_factory=list)
    first_call_only: bool = False
    context: Any = field(default=None, repr=False)

    @property
    def streamed(self) -> bool:
        """Whether the caller asks for a stream."""
        return self.params.get("stream") is True


@dataclass(slots=True, kw_only=True)
class Recording:
    """A recording to transcribe, as arguments of ``client.audio.transcriptions.create`` or of the translations'.

    Attributes:
        task: Which of the two.
        file: The recording.
        params: The other arguments.
        form: The format that the caller asked for; None for the default.
        dropped: See `Adjusted`.
    """

    task: Literal["transcriptions", "translations"]
    file: AudioFile = field(repr=False)
    params: dict[str, Any] = field(repr=False)
    form: str | None = None
    dropped: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A complete response."""

    body: bytes = field(repr=False)
    status: int = 200
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()


class Encoder(ABC):
    """Encodes one streamed answer. It is called for each chunk, and then once for the end or for an error."""

    @abstractmethod
    def chunk(self, chunk: ChatCompletionChunk) -> bytes:
        """The events of one chunk; may be empty."""

    @abstractmethod
    def end(self) -> bytes:
        """The last events of a complete answer."""

    @abstractmethod
    def error(self, error: ApiError) -> bytes:
        """The last event of an answer that fails, also before its first chunk. Nothing follows that could be taken for
        a complete answer's end."""

    def keep_alive(self) -> bytes:
        """What is sent while the caller waits, also before the first chunk. Clients skip it."""
        return b": keep-alive\n\n"


class Api(ABC):
    """One API. An object serves all callers of one proxy or transport, in several threads."""

    family: ClassVar[Family]
    routes: ClassVar[tuple[Route, ...]]

    def chat_params(self, request: ApiRequest) -> Adjusted:
        """The chat that a request of a ``chat`` route asks for.

        Raises:
            ApiError: The request is not valid, or asks for something that Prem's API does not have.
        """
        raise NotImplementedError

    def whole(self, completion: ChatCompletion, adjusted: Adjusted) -> bytes:
        """The body of the response to a request that was not streamed."""
        raise NotImplementedError

    def stream(self, adjusted: Adjusted) -> Encoder:
        """The encoder of a streamed answer."""
        raise NotImplementedError

    def models(self, request: ApiRequest, listed: list[Model]) -> Reply:
        """The response of a ``models`` route. `listed` has the enabled models.

        Raises:
            ApiError: There is no such model.
        """
        raise NotImplementedError

    def recording(self, request: ApiRequest) -> Recording:
        """The recording in the form of an ``audio`` route.

        Raises:
            ApiError: The form is not valid, or asks for something that Prem's API does not have.
        """
        raise NotImplementedError

    def transcript(self, answer: Transcription, recording: Recording) -> Reply:
        """The response of an ``audio`` route.

        Raises:
            APIResponseValidationError: The answer does not have what the caller's format needs.
        """
        raise NotImplementedError

    def local(self, request: ApiRequest) -> Reply:
        """The response of a ``local`` route, without the service.

        Raises:
            ApiError: The request is not valid, or there is no such object.
        """
        raise NotImplementedError

    @abstractmethod
    def error_body(self, error: ApiError) -> bytes:
        """The JSON body of an error response."""


def to_json(value: Any) -> bytes:
    """`value` as compact UTF-8 JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def quote_names(names: Collection[str]) -> str:
    """Names from a request for a message or a header: the first `MAX_NAMES`, shortened, in printable ASCII."""
    shown = [quote(name[:MAX_NAME_LENGTH], safe="[]:", errors="replace") for name in list(names)[:MAX_NAMES]]
    return ", ".join([*shown, "..."] if len(names) > MAX_NAMES else shown)
