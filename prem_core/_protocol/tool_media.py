"""Images and files in the results of tools, moved to where the published schema allows them.

A tool message has text only. Tools that return screenshots are common, and a request with one would be refused in the
middle of an agent's work.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

#: The parts that a user message may have and a tool message may not.
_MEDIA: Final = {"image_url": "image", "input_audio": "recording", "file": "file"}


def move_tool_media(messages: list[Any]) -> list[Any]:
    """`messages`, with the media of tool messages in a user message after the last tool message of their group.

    The tool messages keep their order and their ids. A text in place of each part, and before each part that was moved,
    says which result it belongs to. The caller's objects are not changed; without media the same list is returned.
    """
    if not any(map(_has_media, messages)):
        return messages
    moved: list[Any] = []
    pending: list[Any] = []
    for message in messages:
        if pending and not (isinstance(message, Mapping) and message.get("role") == "tool"):
            moved.append({"role": "user", "content": pending})
            pending = []
        if _has_media(message):
            message, parts = _split(message)
            pending += parts
        moved.append(message)
    if pending:
        moved.append({"role": "user", "content": pending})
    return moved


def _has_media(message: Any) -> bool:
    return (
        isinstance(message, Mapping)
        and message.get("role") == "tool"
        and isinstance(content := message.get("content"), list)
        and any(isinstance(part, Mapping) and part.get("type") in _MEDIA for part in content)
    )


def _split(message: Mapping[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """A tool message without its media, and the parts for the user message."""
    kept, parts = [], []
    count = 0
    for part in message["content"]:
        if not (isinstance(part, Mapping) and part.get("type") in _MEDIA):
            kept.append(part)
            continue
        count += 1
        name = f"{_MEDIA[part['type']]} {count}"
        kept.append({"type": "text", "text": f"[{name} of this result is in the next user message]"})
        call = message.get("tool_call_id")
        of = f" {call}" if isinstance(call, str) else ""
        parts += [{"type": "text", "text": f"[{name} of the result of tool call{of}]"}, part]
    return {**message, "content": kept}, parts
