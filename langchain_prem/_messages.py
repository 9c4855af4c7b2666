"""LangChain's messages as the published schema's messages.

Content that the schema cannot express is an error that names its place; nothing is dropped silently. The caller's
messages are not changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from prem_core import InvalidParameterError
from prem_core._adapters.content import (
    Part,
    assistant_message,
    audio_part,
    file_part,
    image_part,
    media_type_of,
    text_part,
    tool_call_part,
    unsupported,
)

Block = Mapping[str, Any]

_ROLES = {"user": HumanMessage, "human": HumanMessage, "assistant": AIMessage, "ai": AIMessage}

#: Blocks that repeat `AIMessage.tool_calls`, or that only streamed messages have.
_TOOL_BLOCKS = frozenset({"tool_call", "tool_call_chunk", "invalid_tool_call", "function_call"})

#: Blocks of other providers' answers that have no meaning outside the provider.
_PROVIDER_BLOCKS = frozenset({"redacted_thinking"})


def wire_messages(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """The request's ``messages``.

    Reasoning is sent back in the tool loop it belongs to, with the assistant messages after the last human one, as
    reasoning models expect. Earlier reasoning is left out, as their makers ask.

    Raises:
        InvalidParameterError: The schema cannot express a message or a block; the error names its position.
    """
    loop = len(messages)
    while loop and not _is_human(messages[loop - 1]):
        loop -= 1
    return [_message(message, i, in_loop=i >= loop) for i, message in enumerate(messages)]


def _is_human(message: BaseMessage) -> bool:
    return isinstance(message, HumanMessage) or (
        isinstance(message, ChatMessage) and _ROLES.get(message.role) is HumanMessage
    )


def _message(message: BaseMessage, position: int, *, in_loop: bool) -> dict[str, Any]:
    if isinstance(message, ChatMessage):
        kind = _ROLES.get(message.role)
        if kind is not None:
            message = kind(content=message.content, name=message.name)
        elif message.role in ("system", "developer"):
            message = SystemMessage(content=message.content, name=message.name)
    if isinstance(message, HumanMessage):
        wire = {"role": "user", "content": _content(message, _user_part, position)}
    elif isinstance(message, AIMessage):
        wire = _assistant(message, position, in_loop=in_loop)
    elif isinstance(message, SystemMessage):
        wire = {"role": "system", "content": _content(message, _text_only_part, position)}
    elif isinstance(message, ToolMessage):
        return {
            "role": "tool",
            # Images and files are moved to a user message when the request is made.
            "content": _content(message, _user_part, position),
            "tool_call_id": message.tool_call_id,
        }
    elif isinstance(message, FunctionMessage):
        wire = {"role": "function", "content": message.text}
    else:
        raise unsupported(
            position, None, f"a {type(message).__name__} is not supported by the published schema"
        )
    if message.name is not None:
        wire["name"] = message.name
    return wire


def _content(message: BaseMessage, part: Callable[[Block], Part], position: int) -> str | list[Part]:
    if isinstance(message.content, str):
        return message.content
    parts: list[Part] = []
    for i, block in enumerate(message.content):
        try:
            parts.append(text_part(block) if isinstance(block, str) else part(block))
        except InvalidParameterError as error:
            raise unsupported(position, f"content.{i}", str(error)) from None
    return parts


def _text_only_part(block: Block) -> Part:
    if block.get("type") in ("text", "text-plain") and isinstance(block.get("text"), str):
        return text_part(block["text"])
    raise _invalid(f"system messages contain text only, not {_kind(block)}: use a human message")


def _user_part(block: Block) -> Part:
    kind = block.get("type")
    if kind == "text" and isinstance(block.get("text"), str):
        return text_part(block["text"])
    if kind == "image_url":  # OpenAI's form; LangChain users also write the URL alone
        image = block.get("image_url")
        if isinstance(image, str):
            return image_part(url=image)
        if isinstance(image, Mapping) and (url := _string(image, "url")) is not None:
            return image_part(url=url, detail=_string(image, "detail"))
    elif kind == "input_audio" and isinstance(audio := block.get("input_audio"), Mapping):
        if (data := _string(audio, "data")) is not None:
            return audio_part(data, _string(audio, "format"))
    elif kind == "file" and isinstance(file := block.get("file"), Mapping):
        return file_part(
            data=_string(file, "file_data"),
            media_type="application/octet-stream",  # file_data is usually a data URL, which names its own
            file_id=_string(file, "file_id"),
            filename=_string(file, "filename"),
        )
    elif kind in ("image", "audio", "file", "text-plain"):
        return _standard_part(block, kind)
    elif kind == "document":
        return _standard_part(block, "file")
    elif kind == "tool_result":
        raise _invalid("the result of a tool belongs in a ToolMessage")
    raise _invalid(f"{_kind(block)} is not supported by the published schema")


def _standard_part(block: Block, kind: str) -> Part:
    """LangChain's standard blocks (v1, and v0 with `source_type`), and Anthropic's with `source`."""
    source = block.get("source")
    if isinstance(source, Mapping):
        form = source.get("type")
        if form == "text" and isinstance(source.get("data"), str):  # the text itself, not base64 of it
            return text_part(source["data"])
        if form not in ("base64", "url", "file"):
            raise _invalid(
                f"{_kind(block)} with a source of this type is not supported by the published schema"
            )
        named = {
            "file_id": source.get("file_id"),
            "mime_type": source.get("media_type"),
            "base64": source.get("data"),
            "url": source.get("url"),
        }
        block = {**block, **named}
    data = _string(block, "base64", or_bytes=True) or _string(block, "data", or_bytes=True)
    url = _string(block, "url")
    file_id = _string(block, "file_id")
    if file_id is None and block.get("source_type") == "id":
        file_id = _string(block, "id")
    mime_type = _string(block, "mime_type")
    extras = block.get("extras") or block.get("metadata")
    if not isinstance(extras, Mapping):
        extras = {}
    if kind in ("file", "text-plain") and data is url is file_id is None and "text" in block:
        return text_part(_string(block, "text") or "")
    if kind == "image":
        if file_id is not None:
            raise _invalid(
                "an image by file id is not supported by the published schema: use a URL or base64"
            )
        detail = _string(block, "detail") or _string(extras, "detail")
        return image_part(url=url, data=data, media_type=mime_type, detail=detail)
    if url is not None and not url.startswith("data:"):
        raise _invalid(
            f"{_kind(block)} by URL is not supported by the published schema: pass its base64 data"
        )
    data = data or url
    if kind == "audio":
        if data is None:
            raise _invalid("audio needs base64 data")
        return audio_part(data, mime_type or (media_type_of(data) if isinstance(data, str) else None))
    filename = (
        _string(block, "filename")
        or _string(extras, "filename")
        or _string(block, "title")
        or _string(extras, "name")
    )
    return file_part(data=data, media_type=mime_type, file_id=file_id, filename=filename)


def _assistant(message: AIMessage, position: int, *, in_loop: bool) -> dict[str, Any]:
    texts: list[str] = []
    reasoning: list[str] = []
    kwargs = message.additional_kwargs
    refusal = kwargs.get("refusal")
    try:
        calls = [tool_call_part(call["id"], call["name"], call["args"]) for call in message.tool_calls]
    except InvalidParameterError as error:
        raise unsupported(position, "tool_calls", str(error)) from None
    # A call whose arguments are not JSON is sent too: a tool message refers to it.
    calls += [
        tool_call_part(call["id"], call["name"] or "", call["args"] or "")
        for call in message.invalid_tool_calls
    ]
    for i, block in enumerate(message.content if isinstance(message.content, list) else [message.content]):
        if isinstance(block, str):
            texts.append(block)
            continue
        try:
            kind = _string(block, "type")
            if kind == "text" and isinstance(block.get("text"), str):
                texts.append(block["text"])
            elif kind == "reasoning":
                reasoning.append(_string(block, "reasoning") or _summary(block))
            elif kind == "thinking":
                reasoning.append(_string(block, "thinking") or "")
            elif kind == "tool_use" and (name := _string(block, "name")) is not None:
                if (call_id := _string(block, "id")) not in {call["id"] for call in calls}:
                    calls.append(tool_call_part(call_id, name, block.get("input") or {}))
            elif (text := _refusal(block)) is not None:
                refusal = text
            elif kind in _TOOL_BLOCKS and (_string(block, "call_id") or _string(block, "id") or "") in {
                "",  # part of a stream
                *(call["id"] for call in calls),  # `tool_calls` has it
            }:
                pass
            elif kind not in _PROVIDER_BLOCKS:
                raise _invalid(f"assistant messages contain text only, not {_kind(block)}")
        except InvalidParameterError as error:
            raise unsupported(position, f"content.{i}", str(error)) from None
    if not reasoning and isinstance(kwargs.get("reasoning_content"), str):
        reasoning.append(kwargs["reasoning_content"])
    wire = assistant_message(
        "".join(texts), calls, reasoning="".join(reasoning) if in_loop else "", refusal=refusal
    )
    if (called := kwargs.get("function_call")) is not None:  # OpenAI's older form
        wire["function_call"] = called
    audio = kwargs.get("audio")
    if isinstance(audio, Mapping) and isinstance(audio.get("id"), str):  # an audio answer is referred to
        wire["audio"] = {"id": audio["id"]}
    return wire


def _refusal(block: Block) -> str | None:
    """The text of a refusal block, OpenAI's or the one in `content_blocks`; None for other blocks."""
    if block.get("type") == "non_standard" and isinstance(block.get("value"), Mapping):
        block = block["value"]
    text = block.get("refusal") if block.get("type") == "refusal" else None
    return text if isinstance(text, str) else None


def _summary(block: Block) -> str:
    """The text of a reasoning block of OpenAI's Responses API."""
    summary = block.get("summary")
    parts = summary if isinstance(summary, list) else []
    return "\n".join(_string(part, "text") or "" for part in parts if isinstance(part, Mapping))


def _string(block: Block, name: str, *, or_bytes: bool = False) -> Any:
    """The text in a block; None where it has none. Blocks are plain dictionaries, so it may be anything.

    Raises:
        InvalidParameterError: The value is not text.
    """
    value = block.get(name)
    if value is None or isinstance(value, str) or (or_bytes and isinstance(value, bytes)):
        return value
    raise _invalid(f"{_kind(block)}: its {name} must be text, not {type(value).__name__}")


def _invalid(why: str) -> InvalidParameterError:
    return InvalidParameterError(why, param="messages")


def _kind(block: Block) -> str:
    kind = block.get("type")
    return (
        f"a block of type {kind!r}" if isinstance(kind, str) and len(kind) < 40 else "a block without a type"
    )
