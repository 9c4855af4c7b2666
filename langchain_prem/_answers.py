"""What the service answers, as LangChain's messages.

The hot path of streaming is `Chunks.of`: one `AIMessageChunk` for each chunk that says something.
Everything that must stand once in an answer (usage, finish reason, the model's name) is held back and
given in one last chunk, because LangChain adds chunks up: repeated strings would be joined and
repeated counts summed.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

from langchain_core.messages import AIMessage, AIMessageChunk, InvalidToolCall, ToolCall, ToolCallChunk
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import BaseModel

from langchain_prem._blocks import PROVIDER
from prem_core import ChatCompletion, ChatCompletionChunk, LengthFinishReasonError, Usage
from prem_core._merge import ToolCallMerger
from prem_core._parts import is_whole_json

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
        values: dict[str, Any] = {"content": content, "response_metadata": {"model_provider": PROVIDER}}
        if kwargs:
            values["additional_kwargs"] = kwargs
        if delta.tool_calls:
            values["tool_call_chunks"] = self._tool_call_chunks(delta.tool_calls)
        elif not (content or kwargs or info):
            return None
        made: dict[str, Any] = {"message": _made(AIMessageChunk, values)}
        if info:
            made["generation_info"] = info
        return _made(ChatGenerationChunk, made)

    def last(self) -> ChatGenerationChunk:
        """The chunk that ends the answer: usage, finish reason and the like, once.

        Raises:
            LengthFinishReasonError: The token limit cut a tool call, or the JSON that was asked for.
        """
        if self._last.get("finish_reason") == "length":
            calls = self._tools.calls() if self._tools else []
            _check_whole(
                [call.function.arguments for call in calls],
                None if self._text is None else "".join(self._text),
            )
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


def _made(kind: type[M], values: dict[str, Any]) -> M:
    """`kind(**values)`, twice as fast: what pydantic's own ``__init__`` does, without the chain of
    ``__init__`` methods before it, which for the two classes made per chunk only pass their arguments on.
    """
    made = kind.__new__(kind)
    kind.__pydantic_validator__.validate_python(values, self_instance=made)
    return made


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
            _check_whole(
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
        try:
            # An empty string is how some models write "no arguments".
            args = json.loads(text, strict=False) if text.strip() else {}
        except ValueError:
            args = None
        if isinstance(args, dict):
            good.append({"type": "tool_call", "id": call.id, "name": name, "args": args})
        else:
            error = "the arguments are not a JSON object"
            bad.append(
                {"type": "invalid_tool_call", "id": call.id, "name": name, "args": text, "error": error}
            )
    return good, bad


def _check_whole(arguments: list[str], text: str | None) -> None:
    if not all(map(is_whole_json, arguments)) or (
        text is not None and not arguments and not is_whole_json(text)
    ):
        raise LengthFinishReasonError
