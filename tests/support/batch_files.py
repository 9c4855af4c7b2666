"""Inputs and outputs of batches."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx


def chat_line(custom_id: str, text: str = "Hello", **body: Any) -> str:
    """One line of an input: a chat."""
    message = {"role": "user", "content": text}
    return json.dumps(
        {
            "custom_id": custom_id,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "m", "messages": [message], **body},
        }
    )


def write_input(path: Path, count: int, *more: str) -> Path:
    """An input with chats r0, r1 and so on, whose text is their id, and `more` lines."""
    lines = [*(chat_line(f"r{number}", f"r{number}") for number in range(count)), *more]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def objects(path: Path) -> list[dict[str, Any]]:
    """The lines of a file; none if it does not exist."""
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def ids(path: Path) -> list[str]:
    """The ids of a file's lines, in order."""
    return [each["custom_id"] for each in objects(path)]


def text_of(line: dict[str, Any]) -> str:
    """The text of an answer's line."""
    return str(line["response"]["body"]["choices"][0]["message"]["content"])


class PricedModels(httpx.AsyncHTTPTransport):
    """Puts prices into the models list of an enclave. Everything else passes unchanged.

    Args:
        prices: For each model, the prices of a thousand tokens of a prompt and of an answer.
        status: The status of the models list.
    """

    def __init__(self, prices: Iterable[tuple[str, Any, Any]], status: int = 200) -> None:
        super().__init__()
        self._status = status
        self._entries = [
            {
                "id": model,
                "model": model,
                "price_config": {
                    "confidential": {
                        "default": {"prompt_price_per_k": prompt, "completion_price_per_k": completion}
                    }
                },
            }
            for model, prompt, completion in prices
        ]

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """See `httpx.AsyncHTTPTransport`."""
        if request.url.path == "/models":
            return httpx.Response(self._status, json={"data": self._entries})
        return await super().handle_async_request(request)
