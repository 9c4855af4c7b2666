"""Prem's answers as LangChain's messages."""

from __future__ import annotations

from typing import Any, Final

from langchain_core.messages import AIMessage, AIMessageChunk, InvalidToolCall, ToolCallChunk
from langchain_core.messages import ToolCall as LangChainToolCall
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from langchain_prem._content_blocks import PROVIDER
from prem_core import ChatCompletion, ChatCompletionChunk, Usage
from prem_core._adapters.stream_state import StreamState, ToolCall, ToolCallDelta
from prem_core._adapters.tools import raise_if_truncated, read_arguments

#: How many tool calls were left out, because `parallel_tool_calls` is False (in `response_metadata`).
LEFT_OUT_TOOL_CALLS: Final = "left_out_tool_calls"


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


# Prototypes of a chunk's message and of its generation. A chunk's values were validated when it was read; validating
# the message again, or `model_construct`, would cost more than decrypting it (4.8 and 168 µs; a copy takes 2.1).
_MESSAGE = AIMessageChunk(content="", additional_kwargs={}, response_metadata={})
_GENERATION = ChatGenerationChunk(message=_MESSAGE)


class ChunkConverter(StreamState):
    """Converts the chunks of one stream to LangChain's."""

    def convert(self, chunk: ChatCompletionChunk) -> ChatGenerationChunk | None:
        """`chunk` as LangChain's; None if it adds nothing to the message."""
        choice = self.read(chunk)
        if choice is None:
            return None
        delta = choice.delta
        content = delta.content or ""
        kwargs: dict[str, Any] = {}
        if delta.reasoning_content:
            kwargs["reasoning_content"] = delta.reasoning_content
        if delta.refusal:
            kwargs["refusal"] = delta.refusal
        if delta.tool_calls:
            # Validated, because core derives `tool_calls` from the parts.
            message = AIMessageChunk(
                content=content,
                additional_kwargs=kwargs,
                tool_call_chunks=[
                    made for part in delta.tool_calls if (made := self._tool_call_chunk(part)) is not None
                ],
                response_metadata={"model_provider": PROVIDER},
            )
        elif content or kwargs or choice.logprobs:
            message = _MESSAGE.__copy__()
            fields = message.__dict__
            fields["content"] = content
            fields["additional_kwargs"] = kwargs
            # Every other container anew: a copy shares the prototype's.
            fields["response_metadata"] = {"model_provider": PROVIDER}
            fields["tool_calls"] = []
            fields["invalid_tool_calls"] = []
            fields["tool_call_chunks"] = []
        else:
            return None
        generation = _GENERATION.__copy__()
        generation.__dict__["message"] = message
        generation.__dict__["text"] = content
        if choice.logprobs:
            generation.generation_info = {"logprobs": choice.logprobs}
        return generation

    def end(self) -> ChatGenerationChunk:
        """The chunk that ends a complete answer, with usage, finish reason and the model's name.

        These appear once, because LangChain adds chunks up: strings would be concatenated and counts summed.

        Raises:
            LengthFinishReasonError: The token limit truncated a tool call, or the JSON that was requested.
            APIResponseValidationError: The arguments of a tool call are truncated.
        """
        self.check_end()
        metadata: dict[str, Any] = {"model_provider": PROVIDER, "prem": self.prem}
        if self.final is not None:
            choice = self.final.choices[0]
            metadata |= _metadata(self.final, choice.finish_reason, choice.matched_stop)
        if self.left_out_calls:
            metadata[LEFT_OUT_TOOL_CALLS] = self.left_out_calls
        message = AIMessageChunk(
            content="",
            response_metadata=metadata,
            usage_metadata=None if self.usage is None else usage_metadata(self.usage),
            chunk_position="last",
        )
        return ChatGenerationChunk(message=message)

    def _tool_call_chunk(self, delta: ToolCallDelta) -> ToolCallChunk | None:
        """A part of a tool call; None for a call that is left out."""
        # The name is given once: LangChain would concatenate repeated ones.
        index, name = self.add_tool_call(delta)
        if not self.keeps(index):
            return None
        arguments = delta.function.arguments if delta.function else None
        return tool_call_chunk(name=name, args=arguments, id=delta.id or None, index=index)


def chat_result(
    completion: ChatCompletion, *, json_requested: bool, first_call_only: bool = False
) -> ChatResult:
    """A complete answer that was not streamed, with one generation for each of its choices.

    Args:
        completion: The answer.
        json_requested: Whether the request asks for JSON.
        first_call_only: Whether tool calls after the first one are left out.

    Raises:
        LengthFinishReasonError: The token limit truncated a tool call, or the JSON that was requested.
    """
    usage = completion.usage
    prem = completion.prem.as_dict() if completion.prem is not None else None
    generations = []
    for position, choice in enumerate(completion.choices):
        answer = choice.message
        wanted = (answer.tool_calls or [])[: 1 if first_call_only else None]
        if choice.finish_reason == "length":
            raise_if_truncated(
                [call.function.arguments for call in wanted],
                answer.content or "" if json_requested else None,
            )
        kwargs: dict[str, Any] = {}
        if answer.reasoning_content:
            kwargs["reasoning_content"] = answer.reasoning_content
        if answer.refusal:
            kwargs["refusal"] = answer.refusal
        calls, invalid = _tool_calls(wanted)
        metadata = _metadata(completion, choice.finish_reason, choice.matched_stop)
        if left_out := len(answer.tool_calls or ()) - len(wanted):
            metadata[LEFT_OUT_TOOL_CALLS] = left_out
        if choice.logprobs:
            metadata["logprobs"] = choice.logprobs
        message = AIMessage(
            content=answer.content or "",
            additional_kwargs=kwargs,
            tool_calls=calls,
            invalid_tool_calls=invalid,
            response_metadata={"model_provider": PROVIDER, "prem": prem, **metadata},
            # Tokens are counted for the request, not for each choice.
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


def _tool_calls(calls: list[ToolCall]) -> tuple[list[LangChainToolCall], list[InvalidToolCall]]:
    valid: list[LangChainToolCall] = []
    invalid: list[InvalidToolCall] = []
    for call in calls:
        name, text = call.function.name, call.function.arguments
        if name and (args := read_arguments(text)) is not None:
            valid.append({"type": "tool_call", "id": call.id, "name": name, "args": args})
        else:
            error = "the arguments are not a JSON object" if name else "the call names no function"
            invalid.append(
                {"type": "invalid_tool_call", "id": call.id, "name": name, "args": text, "error": error}
            )
    return valid, invalid
