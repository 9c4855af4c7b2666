"""Conversations of any kind in the messages of each framework, and what the model must receive of them.

Messages are compared as `PlainMessage`: media as bytes and arguments as values, independent of their encoding.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from llama_index.core.base.llms.types import (
    AudioBlock,
    ChatMessage,
    DocumentBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

#: JSON has no form for a lone surrogate; everything else is text.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
names = st.from_regex(r"[a-zA-Z0-9_-]{1,12}", fullmatch=True)
values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@dataclass(frozen=True)
class ToolCall:
    """A tool call."""

    id: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class PlainMessage:
    """A message.

    Attributes:
        parts: Text, or media: ("image", url or bytes), ("audio", bytes, format), ("file", bytes, name).
    """

    role: str
    parts: list[tuple[Any, ...]]
    calls: list[ToolCall] = field(default_factory=list)
    reasoning: str = ""
    refusal: str = ""
    answers: str = ""


_calls = st.lists(
    st.builds(ToolCall, st.uuids().map(str), names, st.dictionaries(texts, values, max_size=3)),
    max_size=3,
    unique_by=lambda call: call.id,
)
_media = (
    st.tuples(st.just("image"), st.binary(min_size=1, max_size=40))
    | st.tuples(st.just("image"), names.map("https://example.com/{}.png".format))
    | st.tuples(st.just("audio"), st.binary(min_size=1, max_size=40), st.sampled_from(["wav", "mp3"]))
    | st.tuples(st.just("file"), st.binary(min_size=1, max_size=40), names.map("{}.txt".format))
)
_text = st.tuples(st.just("text"), texts)
_users = st.builds(PlainMessage, st.just("user"), st.lists(_text | _media, min_size=1, max_size=4))
_systems = st.builds(PlainMessage, st.just("system"), st.lists(_text, min_size=1, max_size=1))

#: Messages of a model: text, tool calls or both, or a refusal; with reasoning.
model_replies = st.builds(
    PlainMessage, st.just("assistant"), st.lists(_text, min_size=1, max_size=1), _calls, texts
) | st.builds(
    PlainMessage,
    st.just("assistant"),
    st.just([("text", "")]),
    st.just([]),
    texts,
    texts.filter(bool),
)


@st.composite
def conversations(draw: st.DrawFn) -> list[PlainMessage]:
    """An optional system message, and turns: a user, an assistant, and the results of its tool calls."""
    messages = draw(st.lists(_systems, max_size=1))
    for _ in range(draw(st.integers(1, 3))):
        messages.append(draw(_users))
        if draw(st.booleans()):
            reply = draw(model_replies)
            messages.append(reply)
            for call in reply.calls:
                messages.append(PlainMessage("tool", [draw(_text)], answers=call.id))
    return messages


# --- in the messages of each framework


def langchain(messages: Sequence[PlainMessage]) -> list[BaseMessage]:
    """The conversation in LangChain's messages."""
    return [_langchain(each) for each in messages]


def _langchain(message: PlainMessage) -> BaseMessage:
    text = "".join(part[1] for part in message.parts if part[0] == "text")
    if message.role == "system":
        return SystemMessage(text)
    if message.role == "tool":
        return ToolMessage(text, tool_call_id=message.answers)
    if message.role == "assistant":
        kwargs = {"reasoning_content": message.reasoning, "refusal": message.refusal}
        return AIMessage(
            text,
            tool_calls=[{"id": call.id, "name": call.name, "args": call.arguments} for call in message.calls],
            additional_kwargs={name: value for name, value in kwargs.items() if value},
        )
    if len(message.parts) == 1 and message.parts[0][0] == "text":
        return HumanMessage(text)
    return HumanMessage([_block(*part) for part in message.parts])


def _block(kind: str, data: Any, more: str = "") -> dict[str, Any]:
    if kind == "text":
        return {"type": "text", "text": data}
    if isinstance(data, str):
        return {"type": kind, "url": data}
    types = {"image": "image/png", "audio": f"audio/{more}", "file": "text/plain"}
    block = {"type": kind, "base64": base64.b64encode(data).decode(), "mime_type": types[kind]}
    return {**block, "filename": more} if kind == "file" else block


def llama_index(messages: Sequence[PlainMessage]) -> list[ChatMessage]:
    """The conversation in LlamaIndex's messages."""
    return [_llama_index(each) for each in messages]


def _llama_index(message: PlainMessage) -> ChatMessage:
    blocks: list[Any] = [ThinkingBlock(content=message.reasoning)] if message.reasoning else []
    blocks += [_li_block(*part) for part in message.parts]
    blocks += [
        ToolCallBlock(tool_call_id=call.id, tool_name=call.name, tool_kwargs=call.arguments)
        for call in message.calls
    ]
    kwargs = {"tool_call_id": message.answers, "refusal": message.refusal}
    return ChatMessage(
        role=message.role,
        blocks=blocks,
        additional_kwargs={name: value for name, value in kwargs.items() if value},
    )


def _li_block(kind: str, data: Any, more: str = "") -> Any:
    if kind == "text":
        return TextBlock(text=data)
    if kind == "image":
        return (
            ImageBlock(url=data)
            if isinstance(data, str)
            else ImageBlock(image=_base64(data), image_mimetype="image/png")
        )
    if kind == "audio":
        return AudioBlock(audio=_base64(data), format=more)
    return DocumentBlock(data=_base64(data), document_mimetype="text/plain", title=more)


def _base64(data: bytes) -> bytes:
    # These blocks guess whether raw bytes are base64; encoded ones are unambiguous.
    return base64.b64encode(data)


# --- as the model receives them


def expected(messages: Sequence[PlainMessage]) -> list[PlainMessage]:
    """What the model must receive: everything except for reasoning before the last user message."""
    last = max((i for i, each in enumerate(messages) if each.role == "user"), default=-1)
    return [
        PlainMessage(
            each.role, each.parts, each.calls, each.reasoning if i > last else "", each.refusal, each.answers
        )
        for i, each in enumerate(messages)
    ]


def received(messages: Sequence[dict[str, Any]]) -> list[PlainMessage]:
    """Messages of the published schema as `PlainMessage`."""
    return [_received_message(message) for message in messages]


def _received_message(message: dict[str, Any]) -> PlainMessage:
    content = message.get("content", "")
    parts = [("text", content)] if isinstance(content, str) else [_part(part) for part in content]
    calls = [
        ToolCall(call["id"], call["function"]["name"], json.loads(call["function"]["arguments"] or "{}"))
        for call in message.get("tool_calls", ())
    ]
    return PlainMessage(
        message["role"],
        parts,
        calls,
        message.get("reasoning_content", ""),
        message.get("refusal", ""),
        message.get("tool_call_id", ""),
    )


def _part(part: dict[str, Any]) -> tuple[Any, ...]:
    kind = part["type"]
    if kind == "text":
        return "text", part["text"]
    if kind == "image_url":
        url = part["image_url"]["url"]
        return "image", _of_data_url(url) if url.startswith("data:") else url
    if kind == "input_audio":
        return (
            "audio",
            base64.b64decode(part["input_audio"]["data"], validate=True),
            part["input_audio"]["format"],
        )
    return "file", _of_data_url(part["file"]["file_data"]), part["file"]["filename"]


def _of_data_url(url: str) -> bytes:
    return base64.b64decode(url.partition(";base64,")[2], validate=True)
