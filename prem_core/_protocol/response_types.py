"""The service's responses as typed values.

Parsing is lenient, because real responses differ from the published schema: a delta may be ``[]``, fields may be
null or new. Unknown fields are kept, and can be reached by name.

A repr shows the shape of a response, never its text. Print `.content` or `.model_dump()` to see the text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError, model_validator
from pydantic_core import from_json

from prem_core._errors import APIResponseValidationError
from prem_core._protocol.protection import Protection

#: Fields that describe a response without being part of the answer.
_SHOWN = frozenset(
    {"created", "finish_reason", "id", "index", "model", "object", "role", "type", "usage", "enabled"}
    | {"prompt_tokens", "completion_tokens", "total_tokens", "system_fingerprint", "input_modalities"}
)


class _Reply(BaseModel):
    # Deferred: building validators that a program never uses would cost import time.
    model_config = ConfigDict(
        extra="allow",
        protected_namespaces=(),
        defer_build=True,
        # By default, pydantic keeps short strings for as long as the process runs, and most deltas are short.
        cache_strings="keys",
    )

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            shown = value[:1] if isinstance(value, list) else [value]
            if value is None or name in _SHOWN or any(isinstance(item, BaseModel) for item in shown):
                yield name, value
            elif isinstance(value, str | list | dict):
                yield name, _Masked(len(value))
            else:
                yield name, _Masked(None)

    __str__ = BaseModel.__repr__


class _Masked:
    def __init__(self, length: int | None) -> None:
        self._length = length

    def __repr__(self) -> str:
        return "…" if self._length is None else f"…({self._length})"


class _WholeReply(_Reply):
    _prem: Protection | None = PrivateAttr(default=None)

    @property
    def prem(self) -> Protection | None:
        """How the answer was protected on its way; None for an object that the client did not make."""
        return self._prem

    def with_protection(self, protection: Protection) -> Self:
        """This answer, with `protection` as its `prem`."""
        self._prem = protection
        return self


class FunctionDelta(_Reply):
    """Part of a function call: its name once, the JSON of its arguments in parts."""

    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(_Reply):
    """Part of a tool call; parts with the same `index` belong together."""

    index: int | None = None
    id: str | None = None
    type: str | None = None
    function: FunctionDelta | None = None


class Delta(_Reply):
    """What one chunk adds to one choice."""

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(_Reply):
    """One choice's part of a chunk."""

    index: int = 0
    delta: Delta = Delta.model_construct()
    logprobs: dict[str, Any] | None = None
    finish_reason: str | None = None
    matched_stop: Any = None


class Usage(_Reply):
    """Token counts of the service."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: dict[str, Any] | None = None
    completion_tokens_details: dict[str, Any] | None = None


class ChatCompletionChunk(_Reply):
    """One decrypted event of a stream. `choices` is empty in the chunk that carries only usage."""

    id: str = ""
    object: str = "chat.completion.chunk"
    created: int = 0
    model: str = ""
    choices: list[ChunkChoice] = []
    usage: Usage | None = None
    system_fingerprint: str | None = None
    error: dict[str, Any] | str | None = None


class Function(_Reply):
    """A function call; `arguments` is JSON text as the model wrote it."""

    name: str = ""
    arguments: str = ""


class ToolCall(_Reply):
    """One call that the model requests."""

    id: str = ""
    type: str = "function"
    function: Function = Function.model_construct()


class ChatCompletionMessage(_Reply):
    """The model's message. It can be appended to `messages` as it is."""

    role: str = "assistant"
    content: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None


class Choice(_Reply):
    """One of the `n` completions."""

    index: int = 0
    message: ChatCompletionMessage = ChatCompletionMessage.model_construct()
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = None
    matched_stop: Any = None


class ChatCompletion(_WholeReply):
    """A whole chat completion."""

    id: str = ""
    object: str = "chat.completion"
    created: int = 0
    model: str = ""
    choices: list[Choice] = []
    usage: Usage | None = None
    system_fingerprint: str | None = None


class Model(_Reply):
    """An entry of the models list. `id` is the name to use as a request's `model`."""

    id: str = ""
    model: str | None = None
    name: str | None = None
    description: str | None = None
    type: str | None = None
    enabled: bool | None = None
    input_modalities: list[str] | None = None
    price_config: Any = None

    @model_validator(mode="after")
    def _request_by_id(self) -> Self:
        # The service's own id of an entry is not a name to request by, if the entry has a `model`.
        if self.model:
            self.id = self.model
        return self


class TranscriptionWord(_Reply):
    """One word; `start` and `end` in seconds from the start of the recording."""

    word: str = ""
    start: float = 0.0
    end: float = 0.0


class TranscriptionSegment(_Reply):
    """One segment of speech; `start` and `end` in seconds."""

    id: int = 0
    start: float = 0.0
    end: float = 0.0
    text: str = ""
    avg_logprob: float | None = None
    compression_ratio: float | None = None
    no_speech_prob: float | None = None
    temperature: float | None = None


class Transcription(_WholeReply):
    """The text of a recording. All other fields come only with ``response_format="verbose_json"``.

    `duration` is in seconds, `language` as the service names it (``english``, or a code). `words` comes only if word
    timestamps were requested.
    """

    text: str = ""
    task: str | None = None
    language: str | None = None
    duration: float | None = None
    segments: list[TranscriptionSegment] | None = None
    words: list[TranscriptionWord] | None = None


T = TypeVar("T", bound=_Reply)


def read_json(kind: type[T], plaintext: bytes) -> T:
    """`plaintext` as a `kind`.

    Raises:
        APIResponseValidationError: It is not JSON, or not a `kind` even when parsed leniently. The message names the
            field, never its value.
    """
    try:
        return kind.model_validate_json(plaintext)
    except ValidationError:
        pass
    try:
        return read_value(kind, from_json(plaintext, cache_strings="keys"))
    except (ValueError, RecursionError):
        why = "not JSON"
    raise APIResponseValidationError(f"the response is not a {kind.__name__}: {why}")


def read_value(kind: type[T], value: Any) -> T:
    """A decoded JSON value as a `kind`; see `read_json`."""
    try:
        return kind.model_validate(_lenient(value))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except RecursionError:
        why = "nested too deeply"
    # Raised outside the handlers: as its context, pydantic's error would hold the response's text.
    raise APIResponseValidationError(f"the response is not a {kind.__name__}: {why}")


def _lenient(value: Any) -> Any:
    """Drop nulls, so that defaults apply, and read the ``[]`` that some streams send for ``{}``."""
    if isinstance(value, dict):
        fixed = {name: _lenient(item) for name, item in value.items() if item is not None}
        for name in ("delta", "message", "function"):
            if fixed.get(name) == []:
                fixed[name] = {}
        return fixed
    if isinstance(value, list):
        return [_lenient(item) for item in value]
    return value
