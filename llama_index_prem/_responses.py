"""What the service answers, as LlamaIndex's responses.

A stream is cumulative: each response holds the whole message so far, and what is new as its `delta`. Agents
keep only the last one, so the last one, made when the answer is known to be whole, holds every block and
the usage, whatever the service's own last chunk held.
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
from prem_core._adapters.tools import raise_if_truncated
from prem_core._protocol.accumulator import ToolCallMerger
from prem_core._protocol.response_types import ToolCall


class ChatStream:
    """One stream's chunks, as chat responses.

    Args:
        json_wanted: Whether the request asks for JSON, so that an answer cut short by its token limit is
            of no use even without tool calls.
        first_call_only: Whether only the first tool call of the answer is wanted.
    """

    def __init__(self, *, json_wanted: bool, first_call_only: bool) -> None:
        self._json_wanted = json_wanted
        self._first_call_only = first_call_only
        self._text = ""
        self._thought = ""
        self._refusal = ""
        self._tools: ToolCallMerger | None = None
        self._usage: Usage | None = None
        self._finish: ChatCompletionChunk | None = None

    def of(self, chunk: ChatCompletionChunk) -> ChatResponse | None:
        """`chunk` as a response, or None where it adds nothing to the message."""
        if chunk.usage is not None:
            self._usage = chunk.usage
        if not chunk.choices:
            return None
        choice = chunk.choices[0]
        delta = choice.delta
        if choice.finish_reason is not None:
            self._finish = chunk
        content, thought = delta.content or "", delta.reasoning_content
        if not (content or thought or delta.refusal or delta.tool_calls or choice.logprobs):
            return None
        self._text += content
        self._refusal += delta.refusal or ""
        more = {}
        if thought:
            self._thought += thought
            more["thinking_delta"] = thought
        if delta.tool_calls:
            if self._tools is None:
                self._tools = ToolCallMerger()
            for piece in delta.tool_calls:
                self._tools.add(piece)
        return ChatResponse(
            message=self._message(),
            delta=content,
            raw=chunk.model_dump(),
            logprobs=_logprobs(choice.logprobs) if choice.logprobs else None,
            additional_kwargs=more,
        )

    def last(self) -> ChatResponse:
        """The response that ends the answer: every block, and the usage.

        Raises:
            LengthFinishReasonError: The token limit cut a tool call, or the JSON that was asked for.
        """
        raw = self._finish.model_dump() if self._finish is not None else {}
        if self._finish is not None and self._finish.choices[0].finish_reason == "length":
            calls = [call.function.arguments for call in self._calls()]
            raise_if_truncated(calls, self._text if self._json_wanted else None)
        raw["usage"] = usage = _counts(self._usage)
        message = self._message(_thinking_tokens(self._usage))
        return ChatResponse(message=message, delta="", raw=raw, additional_kwargs=_totals(usage))

    def _calls(self) -> list[ToolCall]:
        if self._tools is None:
            return []
        return self._tools.calls()[: 1 if self._first_call_only else None]

    def _message(self, thinking_tokens: int | None = None) -> ChatMessage:
        return _message(self._thought, thinking_tokens, self._text, self._refusal, self._calls())


def chat_response(
    completion: ChatCompletion, *, json_wanted: bool, first_call_only: bool = False
) -> ChatResponse:
    """A whole answer. Of several, the first; all of them are in `raw`.

    Args:
        completion: The answer.
        json_wanted: Whether the request asks for JSON.
        first_call_only: Whether only the first tool call is wanted.

    Raises:
        LengthFinishReasonError: The token limit cut a tool call, or the JSON that was asked for.
        APIResponseValidationError: There is no answer in it.
    """
    if not completion.choices:
        raise APIResponseValidationError("the answer holds no choice")
    choice = completion.choices[0]
    said = choice.message
    calls = (said.tool_calls or [])[: 1 if first_call_only else None]
    text = said.content or ""
    if choice.finish_reason == "length":
        raise_if_truncated([call.function.arguments for call in calls], text if json_wanted else None)
    raw = completion.model_dump()
    raw["usage"] = usage = _counts(completion.usage)
    tokens = _thinking_tokens(completion.usage)
    return ChatResponse(
        message=_message(said.reasoning_content or "", tokens, text, said.refusal or "", calls),
        raw=raw,
        logprobs=_logprobs(choice.logprobs) if choice.logprobs else None,
        additional_kwargs=_totals(usage),
    )


def completion_response(response: ChatResponse) -> CompletionResponse:
    """A chat's answer as a completion's: its text, and all that is not text beside it."""
    return CompletionResponse(
        text=response.message.content or "",
        delta=response.delta,
        raw=response.raw,
        logprobs=response.logprobs,
        additional_kwargs={**response.message.additional_kwargs, **response.additional_kwargs},
    )


def keep_first_call(response: ChatResponse) -> None:
    """Take every tool call but the first out of `response`."""
    message = response.message
    first = next((block for block in message.blocks if isinstance(block, ToolCallBlock)), None)
    message.blocks = [b for b in message.blocks if not isinstance(b, ToolCallBlock) or b is first]
    if calls := message.additional_kwargs.get("tool_calls"):
        message.additional_kwargs["tool_calls"] = calls[:1]


def _message(
    thought: str, thinking_tokens: int | None, text: str, refusal: str, calls: list[ToolCall]
) -> ChatMessage:
    blocks: list[Any] = []
    kwargs: dict[str, Any] = {}
    if thought:
        blocks.append(ThinkingBlock(content=thought, num_tokens=thinking_tokens))
    if text or not calls:
        blocks.append(TextBlock(text=text))
    if calls:
        # In both forms: core's structured streaming looks at the second one only.
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


def _thinking_tokens(usage: Usage | None) -> int | None:
    details = (usage.completion_tokens_details if usage is not None else None) or {}
    return details.get("reasoning_tokens")


def _logprobs(given: dict[str, Any]) -> list[list[LogProb]]:
    """For each token its alternatives, where these were asked for, else the token itself."""
    try:
        return [
            [
                LogProb(token=each["token"], logprob=each["logprob"], bytes=each.get("bytes") or [])
                for each in token.get("top_logprobs") or [token]
            ]
            for token in given.get("content") or []
        ]
    except (AttributeError, KeyError, TypeError, ValueError):
        pass
    # Outside the handler: Pydantic's error would bring the answer's words along.
    raise APIResponseValidationError("the answer's log probabilities have a form that they should not")
