"""The published schemas of request parameters as types, and the check of parameters before anything is sent.

The types follow Prem's published OpenAPI documents (`rvencInferenceParams` and
`rvencAudioTranslationInferenceParams`). Tests compare them with those schemas, chat's in both directions. There is no
schema for transcriptions. According to the documents they accept the parameters of translations, `language` and
`timestamp_granularities`.

Forms that OpenAI users write (None, a ``developer`` message, a message object from an earlier response) are first
converted to the schema's forms. An error names the parameter and what is allowed, never the value.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Literal, NotRequired, Required, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    with_config,
)

# Before Python 3.12 pydantic reads only this TypedDict.
from typing_extensions import TypedDict

from prem_core._errors import InvalidParameterError
from prem_core._protocol.masking import ChatRequest
from prem_core._protocol.request_json import to_json, with_extra_body
from prem_core._protocol.tool_media import move_tool_media

_OPEN = ConfigDict(extra="allow", strict=True)

_T = TypeVar("_T")

#: A list that is checked up to its first invalid item. pydantic would keep about a kilobyte for every invalid item.
Items = Annotated[list[_T], Field(fail_fast=True)]


def _entry_by_entry(value: Any, check_all: ValidatorFunctionWrapHandler) -> Any:
    if isinstance(value, dict):
        for name, item in value.items():
            check_all({name: item})
    return check_all(value)


#: The same for a dict, for which older versions of pydantic have no fail_fast.
Entries = Annotated[dict[str, _T], WrapValidator(_entry_by_entry)]


@with_config(_OPEN)
class TextPart(TypedDict):
    """Text."""

    type: Literal["text"]
    text: str


@with_config(_OPEN)
class ImageUrl(TypedDict):
    """`url`: an http(s) or a base64 ``data:`` URL."""

    url: str
    detail: NotRequired[Literal["low", "high", "auto"]]


@with_config(_OPEN)
class ImagePart(TypedDict):
    """An image."""

    type: Literal["image_url"]
    image_url: ImageUrl


@with_config(_OPEN)
class InputAudio(TypedDict):
    """`data`: base64."""

    data: str
    format: Literal["wav", "mp3"]


@with_config(_OPEN)
class AudioPart(TypedDict):
    """A recording."""

    type: Literal["input_audio"]
    input_audio: InputAudio


@with_config(_OPEN)
class File(TypedDict, total=False):
    """`file_data`: base64, usually as a ``data:`` URL."""

    file_data: str
    file_id: str
    filename: str


@with_config(_OPEN)
class FilePart(TypedDict):
    """A document."""

    type: Literal["file"]
    file: File


ContentPart = Annotated[TextPart | ImagePart | AudioPart | FilePart, Field(discriminator="type")]


@with_config(_OPEN)
class SystemMessage(TypedDict):
    """Instructions. Text only."""

    role: Literal["system"]
    content: str | Items[TextPart]
    name: NotRequired[str]


@with_config(_OPEN)
class UserMessage(TypedDict):
    """The user's message: text, images, recordings, documents."""

    role: Literal["user"]
    content: str | Items[ContentPart]
    name: NotRequired[str]


@with_config(_OPEN)
class FunctionCall(TypedDict):
    """`arguments`: JSON text."""

    name: str
    arguments: str


@with_config(_OPEN)
class ToolCallParam(TypedDict):
    """A call that the model requested earlier."""

    id: str
    type: str
    function: FunctionCall


@with_config(_OPEN)
class AudioReference(TypedDict):
    """A reference to an earlier audio response."""

    id: str


@with_config(_OPEN)
class AssistantMessage(TypedDict, total=False):
    """An earlier message of the model. `reasoning_content` is sent back in tool loops."""

    role: Required[Literal["assistant"]]
    content: str | Items[TextPart]
    reasoning_content: str
    name: str
    refusal: str
    tool_calls: Items[ToolCallParam]
    function_call: FunctionCall
    audio: AudioReference


@with_config(_OPEN)
class ToolMessage(TypedDict):
    """A tool's result. Text only."""

    role: Literal["tool"]
    content: str | Items[TextPart]
    tool_call_id: str


@with_config(_OPEN)
class FunctionMessage(TypedDict):
    """Deprecated by the service; use a tool message."""

    role: Literal["function"]
    content: str
    name: str


Message = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage | FunctionMessage,
    Field(discriminator="role"),
]


@with_config(_OPEN)
class FunctionDefinition(TypedDict):
    """`parameters`: a JSON Schema object."""

    name: str
    description: NotRequired[str]
    parameters: NotRequired[dict[str, Any]]


@with_config(_OPEN)
class FunctionTool(TypedDict):
    """A function the model may call."""

    type: Literal["function"]
    function: FunctionDefinition


@with_config(_OPEN)
class CustomDefinition(TypedDict):
    """A tool that takes free text."""

    name: str
    description: NotRequired[str]
    format: NotRequired[dict[str, Any]]


@with_config(_OPEN)
class CustomTool(TypedDict):
    """A tool that takes free text."""

    type: Literal["custom"]
    custom: CustomDefinition


Tool = Annotated[FunctionTool | CustomTool, Field(discriminator="type")]


@with_config(_OPEN)
class Named(TypedDict):
    """A name."""

    name: str


@with_config(_OPEN)
class FunctionChoice(TypedDict):
    """Call this function."""

    type: Literal["function"]
    function: Named


@with_config(_OPEN)
class CustomChoice(TypedDict):
    """Call this custom tool."""

    type: Literal["custom"]
    custom: Named


ToolChoice = (
    Literal["none", "auto", "required"]
    | Annotated[FunctionChoice | CustomChoice, Field(discriminator="type")]
)


@with_config(_OPEN)
class TextFormat(TypedDict):
    """Free text, the default."""

    type: Literal["text"]


@with_config(_OPEN)
class JsonObjectFormat(TypedDict):
    """Any JSON object."""

    type: Literal["json_object"]


@with_config(_OPEN)
class JsonSchema(TypedDict):
    """A schema, by name."""

    name: str
    description: NotRequired[str]
    schema: NotRequired[dict[str, Any]]
    strict: NotRequired[bool]


@with_config(_OPEN)
class JsonSchemaFormat(TypedDict):
    """JSON that satisfies a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonSchemaFormat | JsonObjectFormat, Field(discriminator="type")]


@with_config(_OPEN)
class AudioOutput(TypedDict):
    """Format and voice of an audio response."""

    format: Literal["wav", "mp3", "flac", "opus", "pcm16"]
    voice: Literal["alloy", "ash", "ballad", "coral", "echo", "fable", "nova", "onyx", "sage", "shimmer"]


@with_config(_OPEN)
class Prediction(TypedDict):
    """Text that most of the answer is expected to repeat."""

    type: Literal["content"]
    content: str | Items[TextPart]


@with_config(_OPEN)
class StreamOptions(TypedDict, total=False):
    """`include_usage`: send the token counts in a last chunk."""

    include_usage: bool
    include_obfuscation: bool


@with_config(_OPEN)
class ApproximateLocation(TypedDict, total=False):
    """Where the user is, roughly."""

    city: str
    country: str
    region: str
    timezone: str


@with_config(_OPEN)
class UserLocation(TypedDict):
    """Where the user is, roughly."""

    type: Literal["approximate"]
    approximate: ApproximateLocation


@with_config(_OPEN)
class WebSearchOptions(TypedDict, total=False):
    """How much web content to use, and for which location."""

    search_context_size: Literal["low", "medium", "high"]
    user_location: UserLocation | None


Penalty = Annotated[float, Field(ge=-2, le=2)]
Bias = Annotated[float, Field(ge=-100, le=100)]


@with_config(ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))
class ChatOptions(TypedDict, total=False):
    """Every parameter of the published schema, except the three that `create` has in its signature."""

    temperature: Annotated[float, Field(ge=0, le=2)]
    top_p: Annotated[float, Field(ge=0, le=1)]
    max_tokens: int
    max_completion_tokens: int
    stream_options: StreamOptions
    tools: Items[Tool]
    tool_choice: ToolChoice
    response_format: ResponseFormat
    audio: AudioOutput
    frequency_penalty: Penalty
    presence_penalty: Penalty
    function_call: Literal["none", "auto"] | Named
    functions: Items[FunctionDefinition]
    logit_bias: Entries[Bias]
    logprobs: bool
    top_logprobs: Annotated[int, Field(ge=0, le=20)]
    metadata: Annotated[
        Entries[Annotated[str, Field(max_length=512)]],
        Field(max_length=16),
    ]
    modalities: Items[Literal["text", "audio"]]
    n: Annotated[int, Field(ge=1)]
    prediction: Prediction
    prompt_cache_key: str
    prompt_cache_retention: str
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high"]
    safety_identifier: str
    seed: int
    service_tier: Literal["auto", "default", "flex", "priority"]
    stop: str | Annotated[Items[str], Field(max_length=4)]
    store: bool
    verbosity: Literal["low", "medium", "high"]
    web_search_options: WebSearchOptions


@with_config(ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))
class ChatParams(ChatOptions):
    """Every parameter of a chat completion, under the published schema's names."""

    messages: Annotated[Items[Message], Field(min_length=1)]
    model: str
    stream: NotRequired[bool]


@with_config(ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))
class TranslationOptions(TypedDict, total=False):
    """Every parameter of a translation into English, except the two that `create` has in its signature."""

    prompt: str
    temperature: Annotated[float, Field(ge=0, le=1)]


@with_config(ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))
class TranscriptionOptions(TranslationOptions, total=False):
    """Every parameter of a transcription."""

    language: Annotated[str, Field(pattern="^[a-z]{2}$")]
    timestamp_granularities: Annotated[
        Items[Literal["word", "segment"]],
        Field(min_length=1, max_length=2),
    ]


SpeechFormat = Literal["json", "text", "verbose_json"]


@with_config(ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))
class TranslationParams(TranslationOptions):
    """Every parameter of a translation, under the published schema's names."""

    model: str
    response_format: NotRequired[SpeechFormat]


@with_config(ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))
class TranscriptionParams(TranscriptionOptions):
    """Every parameter of a transcription."""

    model: str
    response_format: NotRequired[SpeechFormat]


#: Every top-level name of the published schema.
PARAM_NAMES: Final = ChatParams.__required_keys__ | ChatParams.__optional_keys__

_NOT_IN_SCHEMA: Final = {
    "parallel_tool_calls": (
        "the published schema does not have it: the service decides whether to make parallel calls. "
        "True, its default, is accepted and not sent; False cannot be guaranteed. "
        "Use the first tool call of the answer instead"
    ),
    "user": "the published schema has safety_identifier and prompt_cache_key instead",
    "top_k": "the published schema has no top_k; use top_p",
    "max_output_tokens": "the published schema calls it max_completion_tokens",
}


def chat_request(
    params: Mapping[str, Any], extra_body: Mapping[str, Any] | None = None, *, whole: bool = False
) -> ChatRequest:
    """The checked parameters of a chat, ready to be sealed as ``encryptedInference``.

    Args:
        params: Parameters as the caller wrote them. A None means "not given".
        extra_body: Further top-level parameters, merged over `params` without a check. For parameters that the service
            supports but its published schema does not list.
        whole: Leave out what asks for a stream.

    Raises:
        InvalidParameterError: The published schema does not allow a parameter.
    """
    checked = normalise(params)
    check(_adapter(), checked)
    return ChatRequest.of(with_extra_body(checked, extra_body), whole=whole)


def chat_plaintext(params: Mapping[str, Any], extra_body: Mapping[str, Any] | None = None) -> bytes:
    """The UTF-8 JSON of `chat_request`, without a mask."""
    return chat_request(params, extra_body).plaintext()


@functools.cache
def _audio_adapter(task: Literal["transcribe", "translate"]) -> TypeAdapter[Any]:
    return TypeAdapter(TranscriptionParams if task == "transcribe" else TranslationParams)


def audio_plaintext(
    task: Literal["transcribe", "translate"],
    params: Mapping[str, Any],
    extra_body: Mapping[str, Any] | None = None,
) -> bytes:
    """The UTF-8 JSON that is sealed as ``encryptedInference`` with a recording.

    Raises:
        InvalidParameterError: The service does not accept a parameter.
    """
    given = {name: value for name, value in params.items() if value is not None}
    if isinstance(given.get("timestamp_granularities"), tuple):
        given["timestamp_granularities"] = list(given["timestamp_granularities"])
    check(_audio_adapter(task), given)
    if "timestamp_granularities" in given and given.get("response_format") != "verbose_json":
        raise InvalidParameterError(
            "timestamp_granularities: timestamps require response_format='verbose_json'",
            param="timestamp_granularities",
        )
    return to_json(with_extra_body(given, extra_body))


def normalise(params: Mapping[str, Any]) -> dict[str, Any]:
    """Convert `params` to the published schema's forms. The caller's objects are not changed."""
    fixed = {name: value for name, value in params.items() if value is not None}
    if fixed.get("parallel_tool_calls") is True:
        # True is the service's default, and the schema does not have this parameter.
        del fixed["parallel_tool_calls"]
    messages = fixed.get("messages")
    if isinstance(messages, Iterable) and not isinstance(messages, str | bytes | Mapping):
        fixed["messages"] = move_tool_media([_message(message) for message in messages])
    for name in ("tools", "stop", "modalities"):
        if isinstance(fixed.get(name), tuple):
            fixed[name] = list(fixed[name])
    return fixed


def _message(message: Any) -> Any:
    if isinstance(message, BaseModel):
        message = message.model_dump(exclude_none=True)
    elif isinstance(message, Mapping):
        message = {name: value for name, value in message.items() if value is not None}
    else:
        return message
    if message.get("role") == "developer":
        message["role"] = "system"
    return message


#: What is allowed, by pydantic's type of error. The placeholders are the error's own context.
_ALLOWED: Final = {
    "missing": "is required",
    "less_than_equal": "must be at most {le:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "finite_number": "must be a finite number",
    "too_short": "must have {min_length} or more items",
    "too_long": "must have at most {max_length} items",
    "string_too_long": "must be at most {max_length} characters long",
    "string_pattern_mismatch": "must match {pattern}",
    "literal_error": "must be {expected}",
    "string_type": "must be a string",
    "int_type": "must be an integer",
    "float_type": "must be a number",
    "bool_type": "must be a boolean",
    "list_type": "must be a list",
    "dict_type": "must be a JSON object",
    "model_attributes_type": "must be a JSON object",
}


@functools.cache
def _adapter() -> TypeAdapter[ChatParams]:
    # Built at first use, because it takes about 10 ms.
    return TypeAdapter(ChatParams)


def check(adapter: TypeAdapter[Any], params: dict[str, Any]) -> None:
    """Validate `params` against a schema.

    Raises:
        InvalidParameterError: A parameter is not allowed. The message has its path and what is allowed there.
    """
    try:
        adapter.validate_python(params)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
    else:
        return
    # Of a union's errors, the deepest explains the problem best. At equal depth, an error about the value is better
    # than one about its type.
    first = max(found, key=lambda e: (len(e["loc"]), not e["type"].endswith("_type"), "tag" in e["type"]))
    unknown = next((e for e in found if e["type"] == "extra_forbidden"), None)
    if unknown is not None:
        name = str(unknown["loc"][-1])
        why = _NOT_IN_SCHEMA.get(
            name, "the published schema has no such parameter (pass it in extra_body to send it anyway)"
        )
        raise InvalidParameterError(f"{name}: {why}", param=name)
    path = _path(params, first["loc"], missing=first["type"] == "missing")
    if first["type"] in ("union_tag_invalid", "union_tag_not_found"):
        discriminator = first["ctx"]["discriminator"].strip("'")
        path = f"{path}.{discriminator}"
        allowed = first["ctx"].get("expected_tags") or "the documented types"
        raise InvalidParameterError(f"{path}: must be one of {allowed}", param=path)
    allowed = _ALLOWED.get(first["type"], "{}").format(first["msg"], **first.get("ctx", {}))
    raise InvalidParameterError(f"{path}: {allowed}", param=path)


def _path(value: Any, loc: tuple[int | str, ...], *, missing: bool) -> str:
    # pydantic's locations also contain the names of union members. They are skipped, because they are not in the value.
    steps: list[str] = []
    for position, step in enumerate(loc):
        last = position == len(loc) - 1
        if isinstance(value, dict) and (step in value or (last and missing)):
            steps.append(str(step))
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            steps.append(str(step))
            value = value[step]
    return ".".join(steps)
