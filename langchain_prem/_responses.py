"""What the service answers, as LangChain's messages.

The hot path of streaming is `Chunks.of`: one `AIMessageChunk` for each chunk that says something.
Everything that must stand once in an answer (usage, finish reason, the model's name) is held back and
given in one last chunk, because LangChain adds chunks up: repeated strings would be joined and
repeated counts summed.
"""

from __future__ import annotations

import contextlib
from typing import Any, Generic, TypeVar

from langchain_core.messages import AIMessage, AIMessageChunk, InvalidToolCall, ToolCall, ToolCallChunk
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.utils.json import parse_partial_json
from pydantic import BaseModel

from langchain_prem._content_blocks import PROVIDER
from prem_core import APIResponseValidationError, ChatCompletion, ChatCompletionChunk, Usage
from prem_core._adapters.content import is_whole_json
from prem_core._adapters.tools import raise_if_truncated, read_arguments
from prem_core._protocol.accumulator import ToolCallMerger

M = TypeVar("M", bound=BaseModel)


def usage_metadata(usage: Usage) -> UsageMetadata:
    """Token counts under LangChain's names."""
    counts = UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens or usage.prompt_tokens + usage.completion_tokens,
    )
    read = usage.prompt_tokens_details or {}
    made = usage.completion_tokens_details or {}
    input_details: InputTokenDetails = {}
    output_details: OutputTokenDetails = {}
    if (cached := read.get("cached_tokens")) is not None:
        input_details["cache_read"] = cached
    if (audio := read.get("audio_tokens")) is not None:
        input_details["audio"] = audio
    if (reasoning := made.get("reasoning_tokens")) is not None:
        output_details["reasoning"] = reasoning
    if (audio := made.get("audio_tokens")) is not None:
        output_details["audio"] = audio
    if input_details:
        counts["input_token_details"] = input_details
    if output_details:
        counts["output_token_details"] = output_details
    return counts


class _Template(Generic[M]):
    """Makes instances of a pydantic class that differ from one validated instance in a few fields.

    Their values have been validated when the reply was read; validating each message again would cost more
    than opening it. What this makes equals what the class itself makes, and a test says so.
    """

    def __init__(self, instance: M) -> None:
        self._kind = type(instance)
        self._values = instance.__dict__
        self._mutable = [name for name, value in self._values.items() if isinstance(value, list | dict)]
        self._set = instance.model_fields_set
        self._extra = instance.__pydantic_extra__
        self._private = instance.__pydantic_private__

    def filled(self, values: dict[str, Any]) -> M:
        """An instance with these values."""
        fields = self._values.copy()
        for name in self._mutable:
            fields[name] = fields[name].copy()
        fields.update(values)
        made = self._kind.__new__(self._kind)
        # As pydantic's own `model_construct` and `__copy__` do.
        _set(made, "__dict__", fields)
        _set(made, "__pydantic_fields_set__", self._set | values.keys())
        _set(made, "__pydantic_extra__", None if self._extra is None else self._extra.copy())
        _set(made, "__pydantic_private__", self._private)
        return made


_set = object.__setattr__
_MESSAGE = _Template(AIMessageChunk(content="", response_metadata={"model_provider": PROVIDER}))
_GENERATION = _Template(ChatGenerationChunk(message=AIMessageChunk(content="")))


class Chunks:
    """One stream's chunks, as LangChain's.

    Args:
        json_wanted: Whether the request asks for JSON, so that an answer cut short by its token limit is
            of no use even without tool calls.
    """

    def __init__(self, *, json_wanted: bool) -> None:
        self._last: dict[str, Any] = {"model_provider": PROVIDER}
        self._usage: Usage | None = None
        self._tools: ToolCallMerger | None = None
        self._named: set[int] = set()
        self._text: list[str] | None = [] if json_wanted else None

    def of(self, chunk: ChatCompletionChunk) -> ChatGenerationChunk | None:
        """`chunk` as LangChain's, or None where it says nothing by itself."""
        if chunk.usage is not None:
            self._usage = chunk.usage
        if not chunk.choices:
            return None
        choice = chunk.choices[0]
        delta = choice.delta
        if choice.finish_reason is not None:
            self._finish(chunk)
        content = delta.content or ""
        kwargs: dict[str, Any] = {}
        if delta.reasoning_content:
            kwargs["reasoning_content"] = delta.reasoning_content
        if delta.refusal:
            kwargs["refusal"] = delta.refusal
        info = {"logprobs": choice.logprobs} if choice.logprobs else None
        if self._text is not None and content:
            self._text.append(content)
        values: dict[str, Any] = {"content": content}
        if kwargs:
            values["additional_kwargs"] = kwargs
        if delta.tool_calls:
            # Validated, because core reads the calls out of the pieces as it does.
            message = AIMessageChunk(
                **values,
                tool_call_chunks=self._tool_call_chunks(delta.tool_calls),
                response_metadata={"model_provider": PROVIDER},
            )
        elif content or kwargs or info:
            message = _MESSAGE.filled(values)
        else:
            return None
        made: dict[str, Any] = {"message": message, "text": content}
        if info:
            made["generation_info"] = info
        return _GENERATION.filled(made)

    def last(self) -> ChatGenerationChunk:
        """The chunk that ends the answer: usage, finish reason and the like, once.

        Raises:
            LengthFinishReasonError: The token limit cut a tool call, or the JSON that was asked for.
            APIResponseValidationError: The arguments of a tool call are only the beginning of JSON.
        """
        if self._last.get("finish_reason") == "length":
            calls = self._tools.calls() if self._tools else []
            raise_if_truncated(
                [call.function.arguments for call in calls],
                None if self._text is None else "".join(self._text),
            )
        elif self._tools:
            _check_unrepaired([call.function.arguments for call in self._tools.calls()])
        message = AIMessageChunk(
            content="",
            response_metadata=self._last,
            usage_metadata=None if self._usage is None else usage_metadata(self._usage),
            chunk_position="last",
        )
        return ChatGenerationChunk(message=message)

    def _finish(self, chunk: ChatCompletionChunk) -> None:
        choice = chunk.choices[0]
        self._last.update(_metadata(chunk, choice.finish_reason, choice.matched_stop))

    def _tool_call_chunks(self, pieces: list[Any]) -> list[ToolCallChunk]:
        if self._tools is None:
            self._tools = ToolCallMerger()
        chunks = []
        for piece in pieces:
            index = self._tools.add(piece)
            function = piece.function
            name = function.name or None if function and index not in self._named else None
            if name:
                self._named.add(index)
            chunks.append(
                tool_call_chunk(
                    name=name,
                    args=function.arguments if function else None,
                    id=piece.id or None,
                    index=index,
                )
            )
        return chunks


def _check_unrepaired(arguments: list[str]) -> None:
    """Core completes arguments that break off, and gives them out as good ones; the caller would act on them.

    Arguments that core cannot complete become an invalid call, as in an answer that is not streamed.
    """
    for text in arguments:
        if text.strip() and not is_whole_json(text):
            with contextlib.suppress(ValueError, RecursionError):
                if isinstance(parse_partial_json(text), dict):
                    raise APIResponseValidationError("the arguments of a tool call break off")


def chat_result(completion: ChatCompletion, *, json_wanted: bool) -> ChatResult:
    """A whole answer, one generation for each of its choices.

    Raises:
        LengthFinishReasonError: The token limit cut a tool call, or the JSON that was asked for.
    """
    usage = completion.usage
    generations = []
    for position, choice in enumerate(completion.choices):
        said = choice.message
        if choice.finish_reason == "length":
            raise_if_truncated(
                [call.function.arguments for call in said.tool_calls or ()],
                said.content or "" if json_wanted else None,
            )
        kwargs: dict[str, Any] = {}
        if said.reasoning_content:
            kwargs["reasoning_content"] = said.reasoning_content
        if said.refusal:
            kwargs["refusal"] = said.refusal
        calls, invalid = _tool_calls(said.tool_calls or [])
        metadata = _metadata(completion, choice.finish_reason, choice.matched_stop)
        if choice.logprobs:
            metadata["logprobs"] = choice.logprobs
        message = AIMessage(
            content=said.content or "",
            additional_kwargs=kwargs,
            tool_calls=calls,
            invalid_tool_calls=invalid,
            response_metadata={"model_provider": PROVIDER, **metadata},
            # The tokens are counted for the request, not for each choice.
            usage_metadata=usage_metadata(usage) if usage is not None and position == 0 else None,
        )
        generations.append(
            ChatGeneration(message=message, generation_info={"finish_reason": choice.finish_reason})
        )
    output: dict[str, Any] = {"model_name": completion.model, "model_provider": PROVIDER}
    if usage is not None:
        output["token_usage"] = usage.model_dump(exclude_none=True)
    return ChatResult(generations=generations, llm_output=output)


def _metadata(
    answer: ChatCompletion | ChatCompletionChunk, finish_reason: str | None, stop: Any
) -> dict[str, Any]:
    metadata: dict[str, Any] = {"finish_reason": finish_reason, "model_name": answer.model}
    if answer.id:
        metadata["id"] = answer.id
    if answer.system_fingerprint:
        metadata["system_fingerprint"] = answer.system_fingerprint
    if stop is not None:
        metadata["matched_stop"] = stop
    return metadata


def _tool_calls(calls: list[Any]) -> tuple[list[ToolCall], list[InvalidToolCall]]:
    good: list[ToolCall] = []
    bad: list[InvalidToolCall] = []
    for call in calls:
        name, text = call.function.name, call.function.arguments
        if name and (args := read_arguments(text)) is not None:
            good.append({"type": "tool_call", "id": call.id, "name": name, "args": args})
        else:
            error = "the arguments are not a JSON object" if name else "the call names no function"
            bad.append(
                {"type": "invalid_tool_call", "id": call.id, "name": name, "args": text, "error": error}
            )
    return good, bad
