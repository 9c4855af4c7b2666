"""Anthropic's Python client, through the proxy or with PremTransport."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from typing import Any

import anthropic
from pydantic import BaseModel
from report import SETTINGS, run

URL, KEY, MODEL = SETTINGS["scripted_url"], SETTINGS["api_key"], SETTINGS["model"]
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
TOOLS = [
    {"name": name, "description": name, "input_schema": {"type": "object", "properties": {}}}
    for name in ("screenshot", "read_file", "look")
]

HTTP: dict[str, Any] = {"http_client": None}
ASYNC_HTTP: dict[str, Any] = {"http_client": None}
if SETTINGS["variant"] == "_transport":
    import httpx2

    from prem_core.transport import AsyncPremTransport, PremTransport

    URL = "https://prem.invalid"
    options: Any = {
        "gateway_url": SETTINGS["scripted_gateway_url"],
        "enclave_url": SETTINGS["scripted_enclave_url"],
        "max_retries": 0,
        "nonce_reuse": "allow",
    }
    HTTP["http_client"] = httpx2.Client(transport=PremTransport(**options))
    ASYNC_HTTP["http_client"] = httpx2.AsyncClient(transport=AsyncPremTransport(**options))

client = anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0, timeout=30, **HTTP)
asynchronous = anthropic.AsyncAnthropic(base_url=URL, api_key=KEY, max_retries=0, timeout=30, **ASYNC_HTTP)


def ask(content: Any, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "max_tokens": 100, "messages": [{"role": "user", "content": content}], **more}


def text() -> None:
    message = client.messages.create(**ask("hello"))
    assert message.content[0].text == "Hello, world."
    assert message.stop_reason == "end_turn"
    assert (message.usage.input_tokens, message.usage.output_tokens) == (12, 5)


def stream_helper() -> None:
    with client.messages.stream(**ask("hello")) as stream:
        assert "".join(stream.text_stream) == "Hello, world."
        message = stream.get_final_message()
    assert message.stop_reason == "end_turn"
    assert (message.usage.input_tokens, message.usage.output_tokens) == (12, 5)


def raw_stream() -> None:
    kinds = [event.type for event in client.messages.create(**ask("hello"), stream=True)]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def thinking() -> None:
    with client.messages.stream(
        **ask("hello", thinking={"type": "enabled", "budget_tokens": 1024})
    ) as stream:
        kinds = {event.type for event in stream}
        message = stream.get_final_message()
    assert {"thinking", "signature", "text"} <= kinds
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert message.content[0].thinking == "A greeting."


def agent_loop() -> None:
    """A tool_use and its result, a screenshot, then text; with the history that the client built itself."""
    history: list[Any] = [{"role": "user", "content": "Take a screenshot"}]
    options: dict[str, Any] = {"model": MODEL, "max_tokens": 100, "tools": TOOLS}
    options["system"] = [
        {"type": "text", "text": "You are an agent.", "cache_control": {"type": "ephemeral"}}
    ]
    with client.messages.stream(messages=history, **options) as stream:
        partial = "".join(event.partial_json for event in stream if event.type == "input_json")
        message = stream.get_final_message()
    assert partial == '{"region": "left"}{"path": "a.txt"}', partial
    assert message.stop_reason == "tool_use"
    assert [block.type for block in message.content] == ["text", "tool_use", "tool_use"]
    calls = message.content[1:]
    assert [call.input for call in calls] == [{"region": "left"}, {"path": "a.txt"}]
    results = [
        {
            "type": "tool_result",
            "tool_use_id": calls[0].id,
            "content": [{"type": "text", "text": "ok"}, IMAGE],
        },
        {"type": "tool_result", "tool_use_id": calls[1].id, "content": "a file"},
    ]
    history += [{"role": "assistant", "content": message.content}, {"role": "user", "content": results}]
    answer = client.messages.create(messages=history, **options)
    assert answer.content[0].text == "The page has 1 image; the file says a file"
    assert answer.stop_reason == "end_turn"


def tool_runner() -> None:
    """The SDK's own loop, which uses the beta route."""

    @anthropic.beta_tool
    def screenshot(region: str) -> Any:
        """A screenshot.

        Args:
            region: Where.
        """
        assert region == "left"
        return [{"type": "text", "text": "ok"}, IMAGE]

    @anthropic.beta_tool
    def read_file(path: str) -> str:
        """A file.

        Args:
            path: Which.
        """
        assert path == "a.txt"
        return "a file"

    asked = ask("Take a screenshot", tools=[screenshot, read_file])
    for stream in (False, True):
        answer = client.beta.messages.tool_runner(**asked, stream=stream).until_done()
        assert answer.content[0].text == "The page has 1 image; the file says a file"


def one_call_only() -> None:
    options = ask("parallel", tools=TOOLS, tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    message = client.messages.create(**options)
    assert [block.input for block in message.content] == [{"at": "a"}]
    with client.messages.stream(**options) as stream:
        assert [block.input for block in stream.get_final_message().content] == [{"at": "a"}]


def images_and_documents() -> None:
    document = {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}
    content = [{"type": "text", "text": "media"}, IMAGE, {"type": "document", "source": document}]
    assert client.messages.create(**ask(content)).content[0].text == "text, image_url, file"


def structured_output() -> None:
    class Person(BaseModel):
        name: str
        age: int

    message = client.messages.parse(**ask("structured"), output_format=Person)
    assert message.parsed_output == Person(name="Ada", age=36)


def max_tokens() -> None:
    assert client.messages.create(**ask("long")).stop_reason == "max_tokens"


def count_tokens() -> None:
    count = client.messages.count_tokens(model=MODEL, messages=[{"role": "user", "content": "x" * 3500}])
    assert 1000 <= count.input_tokens <= 1100


def models() -> None:
    listed = list(client.models.list())
    assert listed
    assert client.models.retrieve(listed[0].id).id == listed[0].id


def errors() -> None:
    raises(anthropic.AuthenticationError, lambda: bearer("wrong").messages.create(**ask("hello")))
    raises(anthropic.NotFoundError, lambda: client.models.retrieve("no-such-model"))
    prefilled = ask("hello")
    prefilled["messages"].append({"role": "assistant", "content": "{"})
    error = raises(anthropic.BadRequestError, lambda: client.messages.create(**prefilled))
    assert error.body["error"]["type"] == "invalid_request_error"
    error = raises(anthropic.RateLimitError, lambda: client.messages.create(**ask("limited")))
    assert error.body["error"]["type"] == "rate_limit_error"
    assert error.response.headers["retry-after"] == "1"
    assert error.request_id


def retries() -> None:
    retrying = client.with_options(max_retries=2)
    assert retrying.messages.create(**ask("flaky")).content[0].text == "Recovered"


def broken_stream() -> None:
    seen: list[str] = []

    def read() -> None:
        with client.messages.stream(**ask("broken")) as stream:
            seen.extend(event.type for event in stream)

    raises(anthropic.APIStatusError, read)
    assert "text" in seen
    assert "message_stop" not in seen
    assert "content_block_stop" not in seen


def bearer(key: str = KEY, path: str = "") -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=URL + path, auth_token=key, api_key=None, max_retries=0, **HTTP)


def bearer_token() -> None:
    assert bearer().messages.create(**ask("hello")).content[0].text == "Hello, world."


def anthropic_path() -> None:
    assert bearer(path="/anthropic").messages.create(**ask("hello")).content[0].text == "Hello, world."


def raises(kind: type[Any], call: Callable[[], Any]) -> Any:
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


async def asynchronous_client() -> None:
    async with asynchronous.messages.stream(**ask("hello")) as stream:
        assert "".join([text async for text in stream.text_stream]) == "Hello, world."
    message = await asynchronous.messages.create(**ask("hello"))
    assert message.content[0].text == "Hello, world."


def awaitable(check: Callable[[], Any]) -> Callable[[], Awaitable[Any]]:
    return lambda: asyncio.to_thread(check)


asyncio.run(
    run(
        text=awaitable(text),
        stream=awaitable(stream_helper),
        tools=awaitable(agent_loop),
        structured=awaitable(structured_output),
        reasoning=awaitable(thinking),
        error=awaitable(errors),
        raw_stream=awaitable(raw_stream),
        broken_stream=awaitable(broken_stream),
        tool_runner=awaitable(tool_runner),
        one_call_only=awaitable(one_call_only),
        images_and_documents=awaitable(images_and_documents),
        max_tokens=awaitable(max_tokens),
        count_tokens=awaitable(count_tokens),
        models=awaitable(models),
        retries=awaitable(retries),
        bearer_token=awaitable(bearer_token),
        anthropic_path=awaitable(anthropic_path),
        asynchronous_client=asynchronous_client,
    )
)
