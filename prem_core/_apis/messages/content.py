"""The messages of a request and their content blocks, as the messages of a chat.

Text, images and PDF documents have a form in both APIs. What a chat cannot carry is an error that names the block,
except for hints such as ``cache_control``, which are noted as dropped.
"""

from __future__ import annotations

from typing import Any, Final

from prem_core._adapters.content import (
    Part,
    assistant_message,
    file_part,
    image_part,
    text_part,
    tool_call_part,
)
from prem_core._apis.messages.reading import (
    Block,
    Notes,
    blocks_at,
    invalid,
    kind_of,
    object_at,
    text_at,
    unsupported,
)
from prem_core._protocol.tool_media import move_tool_media

#: The first line of a failed tool call's result: a chat has no ``is_error``.
ERROR_LINE: Final = "Error:"

#: Blocks that only Anthropic can read.
_OPAQUE: Final = ("redacted_thinking",)


def system_message(system: Any, path: str, notes: Notes) -> dict[str, Any]:
    """Instructions as a system message. Several blocks become paragraphs of one text, which every model accepts."""
    texts = []
    for position, block in enumerate(blocks_at(system, path)):
        at = f"{path}.{position}"
        if block.get("type") != "text":
            raise unsupported(at, f"instructions are text, not {kind_of(block)}")
        notes.drop(block, "cache_control", "citations")
        texts.append(text_at(block, "text", at))
    return {"role": "system", "content": "\n\n".join(texts)}


def chat_messages(messages: Any, notes: Notes) -> list[dict[str, Any]]:
    """The messages of a chat.

    Thinking is sent back in the tool loop it belongs to, with the assistant messages after the last user message that
    is not only tool results. Anthropic's API removes earlier thinking too.

    Raises:
        ApiError: A message is not valid, or a chat cannot carry it.
    """
    if not isinstance(messages, list) or not messages:
        raise invalid("messages", "must be a list with at least one message")
    loop = 0
    for position, message in enumerate(messages):
        if not isinstance(message, dict):
            raise invalid(f"messages.{position}", "must be a JSON object")
        if message.get("role") == "user" and not _has_tool_results(message):
            loop = position
    chat: list[dict[str, Any]] = []
    for position, message in enumerate(messages):
        path = f"messages.{position}"
        role, content = message.get("role"), message.get("content")
        if role == "user":
            chat += _user_messages(blocks_at(content, f"{path}.content"), path, notes)
        elif role == "assistant":
            blocks = blocks_at(content, f"{path}.content")
            chat.append(_assistant_message(blocks, path, notes, in_loop=position > loop))
        elif role == "system":
            chat.append(system_message(content, f"{path}.content", notes))
        else:
            raise invalid(f"{path}.role", "must be user, assistant or system")
    if messages[-1].get("role") == "assistant":
        raise unsupported(
            f"messages.{len(messages) - 1}",
            "the model cannot continue a message of its own (prefill): end with a user message",
        )
    return chat


def _has_tool_results(message: Block) -> bool:
    content = message.get("content")
    blocks = content if isinstance(content, list) else []
    return any(isinstance(block, dict) and block.get("type") == "tool_result" for block in blocks)


def _user_messages(blocks: list[dict[str, Any]], path: str, notes: Notes) -> list[dict[str, Any]]:
    """Tool messages for the results, directly after the calls as a chat has them, then a message with the rest."""
    results: list[dict[str, Any]] = []
    parts: list[Part] = []
    for position, block in enumerate(blocks):
        at = f"{path}.content.{position}"
        if block.get("type") == "tool_result":
            results.append(_tool_result(block, at, notes))
        else:
            parts += _user_parts(block, at, notes)
    chat: list[dict[str, Any]] = move_tool_media(results)
    if chat is not results:
        notes.adjust("tool_result.content")
        parts = chat.pop()["content"] + parts
    for message in chat:
        message["content"] = "\n".join(part["text"] for part in message["content"])
    if parts or not chat:
        chat.append({"role": "user", "content": _shortest(parts)})
    return chat


def _tool_result(block: Block, path: str, notes: Notes) -> dict[str, Any]:
    """A tool message, still with its images and documents."""
    notes.drop(block, "cache_control")
    content = block.get("content")
    parts = [text_part(ERROR_LINE)] if block.get("is_error") is True else []
    for position, item in enumerate([] if content is None else blocks_at(content, f"{path}.content")):
        parts += _user_parts(item, f"{path}.content.{position}", notes)
    return {"role": "tool", "tool_call_id": text_at(block, "tool_use_id", path), "content": parts}


def _user_parts(block: dict[str, Any], path: str, notes: Notes) -> list[Part]:
    notes.drop(block, "cache_control")
    kind = block.get("type")
    if kind == "text":
        notes.drop(block, "citations")
        return [text_part(text_at(block, "text", path))]
    if kind == "image":
        notes.drop(block, "transformations", prefix="image.")
        return [_image(object_at(block, "source", path), f"{path}.source")]
    if kind == "document":
        return _document(block, path, notes)
    if kind == "search_result":
        notes.drop(block, "citations")
        heading = f"{text_at(block, 'title', path)}\n{text_at(block, 'source', path)}"
        return [text_part("\n\n".join([heading, *_texts(block.get("content"), f"{path}.content", notes)]))]
    raise unsupported(path, f"Prem's API has no content block of {kind_of(block)} here")


def _texts(content: Any, path: str, notes: Notes) -> list[str]:
    texts = []
    for position, block in enumerate(blocks_at(content, path)):
        notes.drop(block, "cache_control", "citations")
        texts.append(text_at(block, "text", f"{path}.{position}"))
    return texts


def _image(source: Block, path: str) -> Part:
    form = source.get("type")
    if form == "base64":
        return image_part(data=text_at(source, "data", path), media_type=text_at(source, "media_type", path))
    if form == "url":
        return image_part(url=text_at(source, "url", path))
    raise unsupported(path, f"an image is given by base64 or url, not by {kind_of(source)}")


def _document(block: dict[str, Any], path: str, notes: Notes) -> list[Part]:
    notes.drop(block, "citations")
    source, at = object_at(block, "source", path), f"{path}.source"
    title, context = block.get("title"), block.get("context")
    heading = [part for part in (title, context) if isinstance(part, str) and part]
    form = source.get("type")
    if form == "text":
        return [text_part("\n\n".join([*heading, text_at(source, "data", at)]))]
    if form == "content":
        parts = [text_part("\n\n".join(heading))] if heading else []
        for position, item in enumerate(blocks_at(source.get("content"), f"{at}.content")):
            if item.get("type") not in ("text", "image"):
                raise unsupported(f"{at}.content.{position}", f"must be text or image, not {kind_of(item)}")
            parts += _user_parts(item, f"{at}.content.{position}", notes)
        return parts
    if form == "base64":
        name = title if isinstance(title, str) and title else "document.pdf"
        file = file_part(
            data=text_at(source, "data", at), media_type=text_at(source, "media_type", at), filename=name
        )
        return [text_part(context), file] if isinstance(context, str) and context else [file]
    raise unsupported(at, f"a document is given by base64, text or content, not by {kind_of(source)}")


def _assistant_message(
    blocks: list[dict[str, Any]], path: str, notes: Notes, *, in_loop: bool
) -> dict[str, Any]:
    texts: list[str] = []
    reasoning: list[str] = []
    calls: list[Part] = []
    for position, block in enumerate(blocks):
        at = f"{path}.content.{position}"
        notes.drop(block, "cache_control", "citations")
        kind = block.get("type")
        if kind == "text":
            texts.append(text_at(block, "text", at))
        elif kind == "thinking":
            reasoning.append(text_at(block, "thinking", at))
        elif kind == "tool_use":
            call, name = text_at(block, "id", at), text_at(block, "name", at)
            calls.append(tool_call_part(call, name, object_at(block, "input", at)))
        elif kind in _OPAQUE:
            notes.drop({kind: True}, kind)
        else:
            raise unsupported(
                at, f"Prem's API has no content block of {kind_of(block)} in assistant messages"
            )
    return assistant_message("".join(texts), calls, reasoning="".join(reasoning) if in_loop else "")


def _shortest(parts: list[Part]) -> str | list[Part]:
    """One text as a string, which every model accepts."""
    if not parts:
        return ""
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts
