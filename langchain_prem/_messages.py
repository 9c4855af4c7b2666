"""LangChain messages as the published schema's messages.

Whatever a message holds is sent or refused by name; nothing is dropped in silence. The caller's
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
)
from prem_core._adapters.content import refused as refused_at

_ROLES = {"user": HumanMessage, "human": HumanMessage, "assistant": AIMessage, "ai": AIMessage}

#: Blocks that repeat what `AIMessage.tool_calls` says, or that only a streaming message holds.
_TOOL_BLOCKS = frozenset({"tool_call", "tool_call_chunk", "invalid_tool_call", "function_call"})

#: Blocks that other providers' answers hold and that have no meaning outside the provider.
_THOUGHT_BLOCKS = frozenset({"redacted_thinking"})


def wire_messages(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """The request's ``messages``.

    Reasoning goes back in the tool loop it belongs to, as reasoning models expect: with the assistant
    messages after the last human one. Earlier reasoning is left out, as their makers ask.

    Raises:
        InvalidParameterError: A message or block that the schema has no place for; names its position.
    """
    turn = max((i for i, m in enumerate(messages) if _is_human(m)), default=-1)
    made = []
    for i, message in enumerate(messages):
        try:
            made.append(_message(message, position=i, in_loop=i > turn))
        except (AttributeError, KeyError, TypeError) as error:
            # Blocks are dictionaries that anybody makes, and the framework does not look into them.
            raise refused_at(i, None, "a value in it has a type that its place does not take") from error
    return made


def _is_human(message: BaseMessage) -> bool:
    return isinstance(message, HumanMessage) or (
        isinstance(message, ChatMessage) and _ROLES.get(message.role) is HumanMessage
    )


def _message(message: BaseMessage, *, position: int, in_loop: bool) -> dict[str, Any]:
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
        wire = {"role": "system", "content": _content(message, _text_only, position)}
    elif isinstance(message, ToolMessage):
        return {
            "role": "tool",
            "content": _content(message, _text_only, position),
            "tool_call_id": message.tool_call_id,
        }
    elif isinstance(message, FunctionMessage):
        wire = {"role": "function", "content": message.text}
    else:
        raise refused_at(position, None, f"a {type(message).__name__} has no place in the published schema")
    if message.name is not None:
        wire["name"] = message.name
    return wire


def _content(
    message: BaseMessage,
    part: Callable[[Mapping[str, Any], Callable[[str], InvalidParameterError]], Part],
    position: int,
) -> str | list[Part]:
    if isinstance(message.content, str):
        return message.content
    parts: list[Part] = []
    for i, block in enumerate(message.content):
        if isinstance(block, str):
            parts.append(text_part(block))
            continue

        def refused(why: str, at: int = i) -> InvalidParameterError:
            return refused_at(position, f"content.{at}", why)

        try:
            parts.append(part(block, refused))
        except InvalidParameterError as error:
            raise (error if error.param != "messages" else refused(str(error))) from None
    return parts


def _text_only(block: Mapping[str, Any], refused: Callable[[str], InvalidParameterError]) -> Part:
    if block.get("type") == "text" and isinstance(block.get("text"), str):
        return text_part(block["text"])
    if block.get("type") == "text-plain" and isinstance(block.get("text"), str):
        return text_part(block["text"])
    raise refused(f"system and tool messages hold text only, not {_kind(block)}: put it into a human message")


def _user_part(block: Mapping[str, Any], refused: Callable[[str], InvalidParameterError]) -> Part:
    kind = block.get("type")
    if kind == "text" and isinstance(block.get("text"), str):
        return text_part(block["text"])
    if kind == "image_url":  # OpenAI's form; LangChain users also write the URL alone
        image = block.get("image_url")
        if isinstance(image, str):
            return image_part(url=image)
        if isinstance(image, Mapping) and isinstance(image.get("url"), str):
            return image_part(url=image["url"], detail=image.get("detail"))
    elif kind == "input_audio" and isinstance(block.get("input_audio"), Mapping):
        audio = block["input_audio"]
        if isinstance(audio.get("data"), str):
            return audio_part(audio["data"], audio.get("format"))
    elif kind == "file" and isinstance(block.get("file"), Mapping):
        file = block["file"]
        return file_part(
            data=file.get("file_data"),
            media_type="application/octet-stream",  # file_data is a data URL as a rule, and names its own
            file_id=file.get("file_id"),
            filename=file.get("filename"),
        )
    elif kind in ("image", "audio", "file", "text-plain"):
        return _standard_part(block, refused)
    elif kind == "document":
        return _standard_part({**block, "type": "file"}, refused)
    elif kind == "tool_result":
        raise refused("a tool's result goes into a ToolMessage")
    raise refused(f"{_kind(block)} has no place in the published schema")


def _standard_part(block: Mapping[str, Any], refused: Callable[[str], InvalidParameterError]) -> Part:
    """LangChain's standard blocks (v1, and v0's `source_type`), and Anthropic's `source`."""
    kind = "file" if block["type"] == "text-plain" else block["type"]
    extras = block.get("extras") or block.get("metadata") or {}
    source = block.get("source")
    if isinstance(source, Mapping):
        form = source.get("type")
        if form == "text" and isinstance(source.get("data"), str):  # the text itself, not base64 of it
            return text_part(source["data"])
        if form not in ("base64", "url", "file"):
            raise refused(f"{_kind(block)} with a source of this type has no place in the published schema")
        named = {
            "file_id": source.get("file_id"),
            "mime_type": source.get("media_type"),
            "base64": source.get("data"),
            "url": source.get("url"),
        }
        block = {**block, **named}
    data = block.get("base64") or block.get("data")
    url = block.get("url")
    file_id = block.get("file_id") or (block.get("id") if block.get("source_type") == "id" else None)
    text = block.get("text")
    given = [value for value in (data, url, file_id) if value is not None]
    if not all(isinstance(value, str | bytes) for value in given):
        raise refused(f"{_kind(block)} holds its data, URL or file id as text")
    if kind == "file" and isinstance(text, str) and not given:
        return text_part(text)
    if kind == "image":
        if file_id is not None:
            raise refused("an image by file id has no place in the published schema: pass a URL or base64")
        return image_part(
            url=url,
            data=data,
            media_type=block.get("mime_type"),
            detail=block.get("detail") or extras.get("detail"),
        )
    if url is not None and not url.startswith("data:"):
        raise refused(f"{_kind(block)} by URL has no place in the published schema: read it and pass base64")
    data = data or url
    if kind == "audio":
        if data is None:
            raise refused("audio needs base64 data")
        return audio_part(data, block.get("mime_type") or media_type_of(data))
    filename = block.get("filename") or extras.get("filename") or block.get("title") or extras.get("name")
    return file_part(data=data, media_type=block.get("mime_type"), file_id=file_id, filename=filename)


def _assistant(message: AIMessage, position: int, *, in_loop: bool) -> dict[str, Any]:
    texts: list[str] = []
    reasoning: list[str] = []
    refusal = message.additional_kwargs.get("refusal")
    calls = [tool_call_part(call["id"], call["name"], call["args"]) for call in message.tool_calls]
    # A call whose arguments were not JSON is still what the model said: its tool message refers to it.
    calls += [
        tool_call_part(bad["id"], bad["name"] or "", bad["args"] or "") for bad in message.invalid_tool_calls
    ]
    known = {call["id"] for call in calls}
    for i, block in enumerate(message.content if isinstance(message.content, list) else [message.content]):
        kind = block.get("type") if isinstance(block, dict) else None
        if isinstance(block, str):
            texts.append(block)
        elif kind == "text" and isinstance(block.get("text"), str):
            texts.append(block["text"])
        elif kind == "reasoning":
            reasoning.append(block.get("reasoning") or _summary(block))
        elif kind == "thinking":
            reasoning.append(block.get("thinking", ""))
        elif kind == "tool_use" and isinstance(block.get("name"), str):
            if block.get("id") not in known:
                calls.append(tool_call_part(block.get("id"), block["name"], block.get("input") or {}))
        elif kind == "refusal" and isinstance(block.get("refusal"), str):
            refusal = block["refusal"]
        elif (
            kind == "non_standard"
            and isinstance(value := block.get("value"), Mapping)
            and value.get("type") == "refusal"
            and isinstance(value.get("refusal"), str)
        ):
            refusal = value["refusal"]
        elif kind in _TOOL_BLOCKS and (block.get("call_id") or block.get("id") or "") in {*known, ""}:
            pass  # `tool_calls` says it; what has no id is a piece of a stream
        elif kind not in _THOUGHT_BLOCKS:
            raise refused_at(
                position,
                f"content.{i}",
                f"assistant messages hold text only, not {_kind(block)}",
            )
    if not reasoning and isinstance(message.additional_kwargs.get("reasoning_content"), str):
        reasoning.append(message.additional_kwargs["reasoning_content"])
    thought = "".join(reasoning) if in_loop else ""
    wire = assistant_message("".join(texts), calls, reasoning=thought, refusal=refusal)
    if (called := message.additional_kwargs.get("function_call")) is not None:  # OpenAI's older form
        wire["function_call"] = called
    audio = message.additional_kwargs.get("audio")
    if isinstance(audio, Mapping) and isinstance(audio.get("id"), str):  # a spoken answer is referred to
        wire["audio"] = {"id": audio["id"]}
    return wire


def _summary(block: Mapping[str, Any]) -> str:
    """The text of a reasoning block in the form OpenAI's Responses API gives it."""
    return "\n".join(part.get("text", "") for part in block.get("summary") or [] if isinstance(part, dict))


def _kind(block: Mapping[str, Any]) -> str:
    kind = block.get("type")
    return (
        f"a block of type {kind!r}" if isinstance(kind, str) and len(kind) < 40 else "a block without a type"
    )
