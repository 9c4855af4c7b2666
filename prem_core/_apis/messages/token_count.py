"""An estimate of the tokens of a request.

There is no tokenizer here: each model has its own, and Prem's API does not count before it answers. The estimate is one
token for `BYTES_PER_TOKEN` bytes of UTF-8 in texts, tool calls and tool definitions, some for each message, and a fixed
number for an image. It is meant to be somewhat high, because agents use it to shorten a conversation in time. The usage
of an answer has the service's own count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from prem_core._apis.base import to_json

#: English prose has about 4.3 bytes for each token of today's models, and source code about 3.3.
BYTES_PER_TOKEN: Final = 3.5

#: For the role and the ends of a message.
MESSAGE_TOKENS: Final = 5

#: A large image.
IMAGE_TOKENS: Final = 1_600

#: Bytes of base64 of a PDF document for each token. Documents differ by more than a factor of ten.
DOCUMENT_BYTES_PER_TOKEN: Final = 16


def estimate_tokens(params: Mapping[str, Any]) -> int:
    """About how many tokens the input of a chat has.

    Args:
        params: The parameters of the chat.
    """
    size, tokens = 0, 0.0
    for message in params["messages"]:
        tokens += MESSAGE_TOKENS
        content = message.get("content", "")
        parts: list[Any] = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for part in parts:
            if part["type"] == "text":
                size += _bytes(part["text"])
            elif part["type"] == "image_url":
                tokens += IMAGE_TOKENS
            else:
                tokens += len(part["file"]["file_data"]) / DOCUMENT_BYTES_PER_TOKEN
        size += _bytes(message.get("reasoning_content", ""))
        size += sum(len(to_json(call["function"])) for call in message.get("tool_calls", ()))
    size += sum(len(to_json(tool["function"])) for tool in params.get("tools", ()))
    return math.ceil(tokens + size / BYTES_PER_TOKEN)


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
