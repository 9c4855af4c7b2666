"""Requests of Anthropic's Messages API, and the events of its streams."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from prem_core._apis.base import Adjusted, ApiRequest, Route
from prem_core._apis.messages import MessagesApi
from prem_core._protocol.request_schema import chat_request
from prem_core._protocol.response_types import ChatCompletion, ChatCompletionChunk, read_value

MODEL = "openai/gpt-oss-120b"
MESSAGES = Route("POST", "/messages")
API = MessagesApi()


def body(content: Any = "Say hello.", **more: Any) -> dict[str, Any]:
    """A request with one user message."""
    return {"model": MODEL, "max_tokens": 100, "messages": [{"role": "user", "content": content}], **more}


def translate(request: dict[str, Any], *, strict: bool = False) -> Adjusted:
    """The chat of a request; it satisfies the published schema."""
    adjusted = API.chat_params(ApiRequest(route=MESSAGES, body=request, strict=strict))
    chat_request(adjusted.params)
    return adjusted


def messages(request: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages of that chat."""
    translated: list[dict[str, Any]] = translate(request).params["messages"]
    return translated


def whole(choice: dict[str, Any], request: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """The message for a whole answer with one choice."""
    value = {"id": "abc", "model": MODEL, "choices": [{"index": 0, **choice}], **more}
    answer: dict[str, Any] = json.loads(
        API.whole(read_value(ChatCompletion, value), translate(request or body()))
    )
    return answer


def stream(chunks: Iterable[dict[str, Any]], request: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """The events for a stream of these chunks."""
    encoder = API.stream(translate(request or body(stream=True)))
    sent = [encoder.chunk(read_value(ChatCompletionChunk, chunk)) for chunk in chunks]
    return events(b"".join([*sent, encoder.end()]))


def events(sent: bytes) -> list[dict[str, Any]]:
    """The data of events, whose names are their types."""
    assert sent == b"" or sent.endswith(b"\n\n")
    found = []
    for event in sent.decode().split("\n\n")[:-1]:
        name, data = event.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def accumulate(sent: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that a client builds from events. It checks their order."""
    kinds = [event["type"] for event in sent]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    assert "message_start" not in kinds[1:]
    message: dict[str, Any] = sent[0]["message"]
    is_open = False
    inputs: dict[int, str] = {}
    for event in sent[1:-2]:
        if event["type"] == "ping":
            continue
        content = message["content"]
        if event["type"] == "content_block_start":
            assert not is_open
            assert event["index"] == len(content)
            content.append(event["content_block"])
            is_open = True
            continue
        assert is_open
        assert event["index"] == len(content) - 1
        if event["type"] == "content_block_stop":
            is_open = False
            continue
        delta = event["delta"]
        if delta["type"] == "input_json_delta":
            inputs[event["index"]] = inputs.get(event["index"], "") + delta["partial_json"]
        elif delta["type"] == "signature_delta":
            content[-1]["signature"] = delta["signature"]
        else:
            name = delta["type"].removesuffix("_delta")
            content[-1][name] += delta[name]
    assert not is_open
    for index, text in inputs.items():
        message["content"][index]["input"] = json.loads(text)
    return {**message, **sent[-2]["delta"], "usage": message["usage"] | sent[-2]["usage"]}
