"""Prem's answers as LlamaIndex's responses.

Streams are cumulative: each response has the whole message so far, and the new text as its `delta`. Agents keep only
the last one, so the last one has every block and the usage, whatever the service's own last chunk contains. It is
made once the answer is known to be complete.
"""

from __future__ import annotations

from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LogProb,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from prem_core import APIResponseValidationError, ChatCompletion, ChatCompletionChunk, Usage
from prem_core._adapters.stream_state import StreamState, ToolCall
from prem_core._adapters.tools import raise_if_truncated


class ChunkConverter(StreamState):
    """Converts the chunks of one stream to chat responses."""

    _reasoning = _refusal = ""

    def convert(self, chunk: ChatCompletionChunk) -> ChatResponse | None:
        """`chunk` as a response; None if it adds nothing to the message."""
        choice = self.read(chunk)
        if choice is None:
            return None
        delta = choice.delta
        reasoning = delta.reasoning_content
        if not (delta.content or reasoning or delta.refusal or delta.tool_calls or choice.logprobs):
            return None
        kwargs = {}
        if reasoning:
            self._reasoning += reasoning
            kwargs["thinking_delta"] = reasoning
        if delta.refusal:
            self._refusal += delta.refusal
        for part in delta.tool_calls or ():
            self.add_tool_call(part)
        return ChatResponse(
            message=_message(self._reasoning, None, self.text, self._refusal, self.tool_calls()),
            delta=delta.content or "",
            raw={**chunk.model_dump(), "prem": self.prem},
            logprobs=_logprobs(choice.logprobs) if choice.logprobs else None,
            additional_kwargs=kwargs,
        )

    def end(self) -> ChatResponse:
        """The response that ends a complete answer, with every block and the usage.

        Raises:
            LengthFinishReasonError: The token limit truncated a tool call, or the JSON that was requested.
            APIResponseValidationError: The arguments of a tool call are truncated.
        """
        self.check_end()
        raw = self.final.model_dump() if self.final is not None else {}
        raw["usage"] = usage = _counts(self.usage)
        raw["prem"] = self.prem
        tokens = _reasoning_tokens(self.usage)
        message = _message(self._reasoning, tokens, self.text, self._refusal, self.tool_calls())
        return ChatResponse(message=message, delta="", raw=raw, additional_kwargs=_totals(usage))


def chat_response(
    completion: ChatCompletion, *, json_requested: bool, first_call_only: bool = False
) -> ChatResponse:
    """A complete answer that was not streamed. Its message is the first choice; all choices are in `raw`.

    Args:
        completion: The answer.
        json_requested: Whether the request asks for JSON.
        first_call_only: Whether tool calls after the first one are ignored.

    Raises:
        LengthFinishReasonError: The token limit truncated a tool call, or the JSON that was requested.
        APIResponseValidationError: The answer has no choice.
    """
    if not completion.choices:
        raise APIResponseValidationError("the answer has no choice")
    choice = completion.choices[0]
    answer = choice.message
    calls = (answer.tool_calls or [])[: 1 if first_call_only else None]
    text = answer.content or ""
    if choice.finish_reason == "length":
        raise_if_truncated([call.function.arguments for call in calls], text if json_requested else None)
    raw = completion.model_dump()
    raw["usage"] = usage = _counts(completion.usage)
    raw["prem"] = completion.prem.as_dict() if completion.prem is not None else None
    tokens = _reasoning_tokens(completion.usage)
    return ChatResponse(
        message=_message(answer.reasoning_content or "", tokens, text, answer.refusal or "", calls),
        raw=raw,
        logprobs=_logprobs(choice.logprobs) if choice.logprobs else None,
        additional_kwargs=_totals(usage),
    )


def completion_response(response: ChatResponse) -> CompletionResponse:
    """A chat response as a completion response; what is not text is in `additional_kwargs`."""
    return CompletionResponse(
        text=response.message.content or "",
        delta=response.delta,
        raw=response.raw,
        logprobs=response.logprobs,
        additional_kwargs={**response.message.additional_kwargs, **response.additional_kwargs},
    )


def keep_first_call(response: ChatResponse) -> None:
    """Remove every tool call but the first from `response`."""
    message = response.message
    first = next((block for block in message.blocks if isinstance(block, ToolCallBlock)), None)
    message.blocks = [b for b in message.blocks if not isinstance(b, ToolCallBlock) or b is first]
    if calls := message.additional_kwargs.get("tool_calls"):
        message.additional_kwargs["tool_calls"] = calls[:1]


def _message(
    reasoning: str, reasoning_tokens: int | None, text: str, refusal: str, calls: list[ToolCall]
) -> ChatMessage:
    blocks: list[Any] = []
    kwargs: dict[str, Any] = {}
    if reasoning:
        blocks.append(ThinkingBlock(content=reasoning, num_tokens=reasoning_tokens))
    if text or not calls:
        blocks.append(TextBlock(text=text))
    if calls:
        # In both places: core's structured streaming reads `additional_kwargs` only.
        for call in calls:
            function = call.function
            blocks.append(
                ToolCallBlock(
                    tool_call_id=call.id, tool_name=function.name, tool_kwargs=function.arguments or {}
                )
            )
        kwargs["tool_calls"] = [call.model_dump() for call in calls]
    if refusal:
        kwargs["refusal"] = refusal
    return ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks, additional_kwargs=kwargs)


def _counts(usage: Usage | None) -> dict[str, Any] | None:
    if usage is None:
        return None
    counts = usage.model_dump(exclude_none=True)
    counts["total_tokens"] = usage.total_tokens or usage.prompt_tokens + usage.completion_tokens
    return counts


def _totals(counts: dict[str, Any] | None) -> dict[str, int]:
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    return {name: counts[name] for name in names} if counts else {}


def _reasoning_tokens(usage: Usage | None) -> int | None:
    details = (usage.completion_tokens_details if usage is not None else None) or {}
    return details.get("reasoning_tokens")


def _logprobs(logprobs: dict[str, Any]) -> list[list[LogProb]]:
    """For each token its alternatives, or the token itself where no alternatives were requested."""
    try:
        return [
            [
                LogProb(token=each["token"], logprob=each["logprob"], bytes=each.get("bytes") or [])
                for each in token.get("top_logprobs") or [token]
            ]
            for token in logprobs.get("content") or []
        ]
    except (AttributeError, KeyError, TypeError, ValueError):
        pass
    # Outside the handler: pydantic's error, which quotes the answer, would be kept as the context.
    raise APIResponseValidationError("the answer's log probabilities do not have the expected form")
