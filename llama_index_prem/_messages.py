"""LlamaIndex's messages as the published schema's messages.

Content that the schema cannot express is an error that names its place; nothing is dropped silently. Cache points
have no content and are skipped: the service does not support them. The caller's messages are not changed.
"""

from __future__ import annotations

import mimetypes
from collections.abc import Callable, Sequence
from io import IOBase
from pathlib import Path
from typing import Any, cast

import filetype  # type: ignore[import-untyped]
from llama_index.core.base.llms.types import (
    AudioBlock,
    BaseContentBlock,
    CachePoint,
    ChatMessage,
    DocumentBlock,
    ImageBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
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

_ASSISTANT = frozenset({MessageRole.ASSISTANT, MessageRole.CHATBOT, MessageRole.MODEL})
_SYSTEM = frozenset({MessageRole.SYSTEM, MessageRole.DEVELOPER})

#: The title core gives to every document that has none.
_UNTITLED = "input_document"


def wire_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """The request's ``messages``.

    Thinking is sent back in the tool loop it belongs to, with the assistant messages after the last user message, as
    reasoning models expect. Earlier thinking is left out, as their makers ask.

    These of a message's ``additional_kwargs`` are sent: ``name``, ``tool_call_id``, ``tool_calls``, ``refusal`` and
    ``reasoning_content``. Others are ignored: applications keep their own notes there.

    Raises:
        InvalidParameterError: The schema cannot express a message or a block; the error names its position.
    """
    loop = len(messages)
    while loop and messages[loop - 1].role != MessageRole.USER:
        loop -= 1
    return [_message(message, i, in_loop=i >= loop) for i, message in enumerate(messages)]


def _message(message: ChatMessage, position: int, *, in_loop: bool) -> dict[str, Any]:
    role, kwargs = message.role, message.additional_kwargs
    if role == MessageRole.USER:
        wire: dict[str, Any] = {"role": "user", "content": _content(message, position)}
    elif role in _ASSISTANT:
        wire = _assistant(message, position, in_loop=in_loop)
    elif role in _SYSTEM:
        wire = {"role": "system", "content": _text(message, position, "system")}
    elif role == MessageRole.TOOL:
        call_id = kwargs.get("tool_call_id")
        if not isinstance(call_id, str):
            why = 'a tool message needs the id of its tool call in additional_kwargs["tool_call_id"]'
            raise unsupported(position, "tool_call_id", why)
        media = any(not isinstance(block, TextBlock | CachePoint) for block in message.blocks)
        # Images and files are moved to a user message when the request is made.
        content = _content(message, position) if media else _text(message, position, "tool")
        return {"role": "tool", "content": content, "tool_call_id": call_id}
    else:
        wire = {"role": "function", "content": _text(message, position, "function")}
    if isinstance(name := kwargs.get("name"), str):
        wire["name"] = name
    return wire


def _text(message: ChatMessage, position: int, role: str) -> str:
    texts = []
    for i, block in enumerate(message.blocks):
        if isinstance(block, TextBlock):
            texts.append(block.text)
        elif not isinstance(block, CachePoint):
            why = f"{role} messages contain text only, not {_kind(block)}: use a user message"
            raise unsupported(position, f"blocks.{i}", why)
    return "\n".join(texts)  # as `ChatMessage.content` joins them


def _content(message: ChatMessage, position: int) -> str | list[Part]:
    parts = []
    for i, block in enumerate(message.blocks):
        if isinstance(block, CachePoint):
            continue
        try:
            parts.append(_part(block))
        except InvalidParameterError as error:
            raise unsupported(position, f"blocks.{i}", str(error)) from None
    if not parts:
        return ""
    return cast("str", parts[0]["text"]) if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _part(block: BaseContentBlock) -> Part:
    if isinstance(block, TextBlock):
        return text_part(block.text)
    if isinstance(block, ImageBlock):
        if block.image is None and block.path is None and block.url is not None:
            return image_part(url=str(block.url), detail=block.detail)
        data = _bytes(block.image, block.resolve_image)
        return image_part(data=data, media_type=block.image_mimetype or _guess(data), detail=block.detail)
    if isinstance(block, AudioBlock):
        if block.audio is None and block.path is None and (url := _data_url(block.url, "audio")):
            return audio_part(url, block.format or media_type_of(url))
        data = _bytes(block.audio, block.resolve_audio)
        return audio_part(data, block.format or _guess(data))
    if isinstance(block, DocumentBlock):
        return _document(block)
    if isinstance(block, ToolCallBlock | ThinkingBlock):
        raise InvalidParameterError(f"{_kind(block)} belongs in an assistant message")
    raise InvalidParameterError(f"{_kind(block)} is not supported by the published schema")


def _document(block: DocumentBlock) -> Part:
    name = block.title or _UNTITLED
    if name == _UNTITLED and block.path is not None:
        name = Path(block.path).name
    if block.data is None and block.path is None and (url := _data_url(block.url, "a document")):
        return file_part(data=url, filename=name)
    data = _bytes(block.data, block.resolve_document)
    kind = block.document_mimetype or mimetypes.guess_type(name)[0] or _guess(data)
    return file_part(data=data, media_type=kind, filename=name)


def _bytes(value: bytes | IOBase | None, resolve: Callable[[], IOBase]) -> bytes:
    """The bytes of a block; core keeps them as base64, unchanged, or in a file."""
    position = value.tell() if isinstance(value, IOBase) else 0
    try:
        return cast("bytes", cast("Any", resolve()).read())
    except (OSError, ValueError) as error:
        # Core's messages say what is missing. Those of the operating system contain a path.
        why = error.strerror if isinstance(error, OSError) else error
        raise InvalidParameterError(f"the block's data cannot be read: {why}") from None
    finally:
        if isinstance(value, IOBase):
            value.seek(position)


def _data_url(url: Any, what: str) -> str | None:
    if url is None:
        return None
    if media_type_of(text := str(url)) is None:
        raise InvalidParameterError(f"{what} by URL is not supported by the published schema: pass its bytes")
    return text


def _guess(data: bytes) -> str | None:
    return cast("str | None", filetype.guess_mime(data))


def _assistant(message: ChatMessage, position: int, *, in_loop: bool) -> dict[str, Any]:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[Part] = []
    for i, block in enumerate(message.blocks):
        if isinstance(block, TextBlock):
            texts.append(block.text)
        elif isinstance(block, ThinkingBlock):
            thoughts.append(block.content or "")
        elif isinstance(block, ToolCallBlock):
            try:
                calls.append(tool_call_part(block.tool_call_id, block.tool_name, block.tool_kwargs))
            except InvalidParameterError as error:
                raise unsupported(position, f"blocks.{i}", str(error)) from None
        elif not isinstance(block, CachePoint):
            why = f"assistant messages contain text, thinking and tool calls only, not {_kind(block)}"
            raise unsupported(position, f"blocks.{i}", why)
    kwargs = message.additional_kwargs
    known = {call["id"] for call in calls}
    for call_id, name, arguments in calls_in_kwargs(message):
        if call_id not in known:
            calls.append(tool_call_part(call_id, name, arguments))
    if not thoughts and isinstance(kwargs.get("reasoning_content"), str):
        thoughts.append(kwargs["reasoning_content"])
    thought = "".join(thoughts) if in_loop else ""
    return assistant_message("\n".join(texts), calls, reasoning=thought, refusal=kwargs.get("refusal"))


def calls_in_kwargs(message: ChatMessage) -> list[tuple[str, str, str]]:
    """Id, name and arguments of each tool call in ``additional_kwargs["tool_calls"]``.

    This package writes them there as dicts; others also as objects with the same attributes.
    """
    calls = []
    for call in message.additional_kwargs.get("tool_calls") or ():
        function = _get(call, "function")
        calls.append(
            (_get(call, "id") or "", _get(function, "name") or "", _get(function, "arguments") or "")
        )
    return calls


def _get(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else getattr(value, name, None)


def _kind(block: BaseContentBlock) -> str:
    return f"a block of type {getattr(block, 'block_type', type(block).__name__)!r}"
