"""``POST /completions``, OpenAI's older API for text: the prompt becomes a user message of a chat."""

from __future__ import annotations

from typing import Any, Final

from prem_core._apis.base import Adjusted, ApiError, ApiRequest, Encoder, Route, to_json
from prem_core._apis.openai.form import DONE, OpenAIApi, error_event
from prem_core._apis.openai.parameters import DROPPED, adjust
from prem_core._protocol.response_types import ChatCompletion, ChatCompletionChunk, Usage

#: The parameters that both APIs have, with the same meaning.
_SHARED: Final = frozenset(
    {"model", "max_tokens", "temperature", "top_p", "n", "stop", "stream", "stream_options", "seed"}
    | {"presence_penalty", "frequency_penalty", "logit_bias", "safety_identifier"}
)

#: Values with which a parameter asks for nothing.
_NEUTRAL: Final[dict[str, tuple[Any, ...]]] = {"echo": (False,), "suffix": ("",), "best_of": (1,)}


class Completions(OpenAIApi):
    """OpenAI's Completions. The model answers the prompt; it does not continue it."""

    routes = (Route("POST", "/completions"),)

    def chat_params(self, request: ApiRequest) -> Adjusted:
        """See `Api.chat_params`."""
        given = dict(request.body)
        prompt = given.pop("prompt", None)
        if isinstance(prompt, list) and len(prompt) == 1:
            prompt = prompt[0]
        if not isinstance(prompt, str):
            raise ApiError(
                400, "prompt: must be one text; lists of texts and tokens are not supported", param="prompt"
            )
        neutral = {name for name, values in _NEUTRAL.items() if given.get(name) in values}
        adjusted = adjust(given, _SHARED, strict=request.strict, droppable=DROPPED | neutral)
        adjusted.params["messages"] = [{"role": "user", "content": prompt}]
        return adjusted

    def whole(self, completion: ChatCompletion, adjusted: Adjusted) -> bytes:
        """See `Api.whole`."""
        choices = [
            _choice(choice.index, choice.message.content or "", choice.finish_reason)
            for choice in completion.choices
        ]
        return to_json(_completion(completion, choices, completion.usage))

    def stream(self, adjusted: Adjusted) -> Encoder:
        """See `Api.stream`."""
        return _TextEncoder()


class _TextEncoder(Encoder):
    def chunk(self, chunk: ChatCompletionChunk) -> bytes:
        choices = [
            _choice(choice.index, choice.delta.content or "", choice.finish_reason)
            for choice in chunk.choices
            if choice.delta.content or choice.finish_reason
        ]
        if not choices and chunk.usage is None:
            return b""
        return b"data: %b\n\n" % to_json(_completion(chunk, choices, chunk.usage))

    def end(self) -> bytes:
        return DONE

    def error(self, error: ApiError) -> bytes:
        return error_event(error)


def _completion(
    answer: ChatCompletion | ChatCompletionChunk, choices: list[dict[str, Any]], usage: Usage | None
) -> dict[str, Any]:
    value: dict[str, Any] = {
        "id": answer.id,
        "object": "text_completion",
        "created": answer.created,
        "model": answer.model,
        "choices": choices,
    }
    if usage is not None:
        value["usage"] = usage.model_dump(exclude_none=True, warnings=False)
    return value


def _choice(index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}
