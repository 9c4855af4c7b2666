"""Conversations of any kind, as each framework's users write them, and what of them must arrive.

What a message says is compared in a form of its own: its role, its parts with media as bytes, and its calls with
arguments as values, whichever way a framework or the wire spells them.
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
class Call:
    """A tool call."""

    id: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Said:
    """What one message says.

    Attributes:
        parts: Text, or media: ("image", url or bytes), ("audio", bytes, format), ("file", bytes, name).
    """

    role: str
    parts: list[tuple[Any, ...]]
    calls: list[Call] = field(default_factory=list)
    reasoning: str = ""
    refusal: str = ""
    answers: str = ""


_calls = st.lists(
    st.builds(Call, st.uuids().map(str), names, st.dictionaries(texts, values, max_size=3)),
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
_users = st.builds(Said, st.just("user"), st.lists(_text | _media, min_size=1, max_size=4))
_systems = st.builds(Said, st.just("system"), st.lists(_text, min_size=1, max_size=1))

#: What a model says: text, calls or both, or a refusal; with its reasoning.
replies = st.builds(
    Said, st.just("assistant"), st.lists(_text, min_size=1, max_size=1), _calls, texts
) | st.builds(
    Said,
    st.just("assistant"),
    st.just([("text", "")]),
    st.just([]),
    texts,
    texts.filter(bool),
)


@st.composite
def conversations(draw: st.DrawFn) -> list[Said]:
    """A system message or none, and turns: a user, an assistant, and the results of its calls."""
    said = draw(st.lists(_systems, max_size=1))
    for _ in range(draw(st.integers(1, 3))):
        said.append(draw(_users))
        if draw(st.booleans()):
            reply = draw(replies)
            said.append(reply)
            for call in reply.calls:
                said.append(Said("tool", [draw(_text)], answers=call.id))
    return said


# --- as users of each framework write them


def langchain(said: Sequence[Said]) -> list[BaseMessage]:
    """The conversation in LangChain's messages."""
    return [_langchain(each) for each in said]


def _langchain(said: Said) -> BaseMessage:
    text = "".join(part[1] for part in said.parts if part[0] == "text")
    if said.role == "system":
        return SystemMessage(text)
    if said.role == "tool":
        return ToolMessage(text, tool_call_id=said.answers)
    if said.role == "assistant":
        kwargs = {"reasoning_content": said.reasoning, "refusal": said.refusal}
        return AIMessage(
            text,
            tool_calls=[{"id": call.id, "name": call.name, "args": call.arguments} for call in said.calls],
            additional_kwargs={name: value for name, value in kwargs.items() if value},
        )
    if len(said.parts) == 1 and said.parts[0][0] == "text":
        return HumanMessage(text)
    return HumanMessage([_block(*part) for part in said.parts])


def _block(kind: str, data: Any, more: str = "") -> dict[str, Any]:
    if kind == "text":
        return {"type": "text", "text": data}
    if isinstance(data, str):
        return {"type": kind, "url": data}
    types = {"image": "image/png", "audio": f"audio/{more}", "file": "text/plain"}
    block = {"type": kind, "base64": base64.b64encode(data).decode(), "mime_type": types[kind]}
    return {**block, "filename": more} if kind == "file" else block


def llama_index(said: Sequence[Said]) -> list[ChatMessage]:
    """The conversation in LlamaIndex's messages."""
    return [_llama_index(each) for each in said]


def _llama_index(said: Said) -> ChatMessage:
    blocks: list[Any] = [ThinkingBlock(content=said.reasoning)] if said.reasoning else []
    blocks += [_li_block(*part) for part in said.parts]
    blocks += [
        ToolCallBlock(tool_call_id=call.id, tool_name=call.name, tool_kwargs=call.arguments)
        for call in said.calls
    ]
    kwargs = {"tool_call_id": said.answers, "refusal": said.refusal}
    return ChatMessage(
        role=said.role,
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
            else ImageBlock(image=_coded(data), image_mimetype="image/png")
        )
    if kind == "audio":
        return AudioBlock(audio=_coded(data), format=more)
    return DocumentBlock(data=_coded(data), document_mimetype="text/plain", title=more)


def _coded(data: bytes) -> bytes:
    # The form in which these blocks hold their data; raw bytes they guess about.
    return base64.b64encode(data)


# --- as they arrive


def expected(said: Sequence[Said]) -> list[Said]:
    """What must arrive: all of it, but for reasoning from before the last user's message."""
    last = max((i for i, each in enumerate(said) if each.role == "user"), default=-1)
    return [
        Said(
            each.role, each.parts, each.calls, each.reasoning if i > last else "", each.refusal, each.answers
        )
        for i, each in enumerate(said)
    ]


def arrived(messages: Sequence[dict[str, Any]]) -> list[Said]:
    """What messages of the published schema say."""
    return [_arrived(message) for message in messages]


def _arrived(message: dict[str, Any]) -> Said:
    content = message.get("content", "")
    parts = [("text", content)] if isinstance(content, str) else [_part(part) for part in content]
    calls = [
        Call(call["id"], call["function"]["name"], json.loads(call["function"]["arguments"] or "{}"))
        for call in message.get("tool_calls", ())
    ]
    return Said(
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
