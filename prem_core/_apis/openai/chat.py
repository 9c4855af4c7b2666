"""``POST /chat/completions``: requests are passed on almost unchanged, and answers too.

All fields that the service sends are passed on. Fields that OpenAI's clients require are added where the service omits
them.
"""

from __future__ import annotations

from typing import Final

from prem_core._apis.base import Adjusted, ApiError, ApiRequest, Encoder, Route, to_json
from prem_core._apis.openai.form import DONE, OpenAIApi, error_event
from prem_core._apis.openai.parameters import adjust
from prem_core._protocol.request_schema import PARAM_NAMES
from prem_core._protocol.response_types import ChatCompletion, ChatCompletionChunk
from prem_core._protocol.tool_media import move_tool_media

_CHUNK: Final = ("id", "object", "created", "model", "choices")
_CHOICE: Final = ("index", "delta", "finish_reason")


class ChatCompletions(OpenAIApi):
    """OpenAI's Chat Completions."""

    routes = (Route("POST", "/chat/completions"),)

    def chat_params(self, request: ApiRequest) -> Adjusted:
        """See `Api.chat_params`."""
        adjusted = adjust(request.body, PARAM_NAMES, strict=request.strict)
        messages = adjusted.params.get("messages")
        if isinstance(messages, list):
            moved = move_tool_media(messages)
            if moved is not messages:
                adjusted.params["messages"] = moved
                adjusted.adjusted.append("messages")
        return adjusted

    def whole(self, completion: ChatCompletion, adjusted: Adjusted) -> bytes:
        """See `whole_body`."""
        return whole_body(completion)

    def stream(self, adjusted: Adjusted) -> Encoder:
        """See `ChunkEncoder`."""
        return ChunkEncoder()


class ChunkEncoder(Encoder):
    """Chunks as server-sent events."""

    def chunk(self, chunk: ChatCompletionChunk) -> bytes:
        """A chunk as an event."""
        return event(chunk)

    def end(self) -> bytes:
        """``[DONE]``."""
        return DONE

    def error(self, error: ApiError) -> bytes:
        """An event that OpenAI's clients raise."""
        return error_event(error)


def event(chunk: ChatCompletionChunk) -> bytes:
    """A chunk as a server-sent event."""
    chunk.model_fields_set.update(_CHUNK)
    for choice in chunk.choices:
        choice.model_fields_set.update(_CHOICE)
    # What `model_dump_json` calls, without its overhead for every chunk. A warning would quote the response.
    data = ChatCompletionChunk.__pydantic_serializer__.to_json(chunk, exclude_unset=True, warnings=False)
    return b"data: %b\n\n" % data


def whole_body(completion: ChatCompletion) -> bytes:
    """A whole answer. Null values are omitted, except those that OpenAI's API always sends."""
    value = completion.model_dump(exclude_none=True, warnings=False)
    for choice, given in zip(value.get("choices", ()), completion.choices, strict=False):
        choice.setdefault("finish_reason", None)
        choice["logprobs"] = given.logprobs
        for name in ("content", "refusal"):
            choice["message"].setdefault(name, None)
    return to_json(value)
