"""Streams through the proxy: complete or truncated, disconnects, and stop."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from support.proxies import StartProxy, chat, descriptors, headers, needs_proc, no_thread_left, proxy_for
from support.scripted_upstream import chunk, delta, finish, tool_call, usage
from support.waiting import eventually

from prem_core._apis.openai.chat import event, whole_body
from prem_core._protocol.response_types import ChatCompletion, ChatCompletionChunk, read_json
from prem_core._serving.coalesce import MAX_BUFFERED, coalesce
from prem_core.enclave import Engine, EngineError, EngineRequest, LocalEnclave, ScriptedEngine, reply
from prem_core.proxy import LocalProxy

CHAT = "/v1/chat/completions"


def events(body: str) -> list[Any]:
    """The data of server-sent events: JSON objects, and other data as it is."""
    assert body.endswith("\n\n")
    data = [line.removeprefix("data: ") for line in body.split("\n\n")[:-1]]
    return [json.loads(each) if each[0] == "{" else each for each in data]


# Complete


async def test_a_hundred_concurrent_streams_lose_and_mix_no_chunk(start_proxy: StartProxy) -> None:
    class Interleaving(Engine):
        """Sends the first chunk of every stream, and the others when a hundred streams are open."""

        def __init__(self) -> None:
            self.open = 0
            self.all_open = asyncio.Event()

        async def chat(self, request: EngineRequest) -> AsyncGenerator[dict[str, Any], None]:
            self.open += 1
            if self.open == 100:
                self.all_open.set()
            yield chunk(f"{request.text}:0 ")
            await self.all_open.wait()
            for number in range(1, 40):
                yield chunk(f"{request.text}:{number} ")
                await asyncio.sleep(0)
            yield finish()

    async def ask(client: openai.AsyncOpenAI, mark: str) -> str:
        stream = await client.chat.completions.create(**chat(mark), stream=True)
        return "".join([each.choices[0].delta.content or "" async for each in stream])

    with LocalEnclave(engine=Interleaving()) as prem:
        proxy = start_proxy(prem, max_concurrency=None)
        async with openai.AsyncOpenAI(
            base_url=proxy.base_url, api_key=prem.api_key, max_retries=0, timeout=60
        ) as client:
            marks = [f"m{number}" for number in range(100)]
            texts = await asyncio.gather(*(ask(client, mark) for mark in marks))
    assert texts == ["".join(f"{mark}:{number} " for number in range(40)) for mark in marks]
    assert {record.state for record in proxy.log.latest()} == {"done"}


async def test_streams_over_max_concurrency_wait_for_a_permit(
    start_proxy: StartProxy, enclave: LocalEnclave
) -> None:
    proxy = start_proxy(enclave, max_concurrency=2)
    async with openai.AsyncOpenAI(base_url=proxy.base_url, api_key=enclave.api_key, max_retries=0) as client:

        async def ask(number: int) -> str:
            stream = await client.chat.completions.create(
                **chat(f"The code is {number}. What is the code?"), stream=True
            )
            return "".join([each.choices[0].delta.content or "" async for each in stream])

        for number, text in enumerate(await asyncio.gather(*map(ask, range(1000, 1020))), 1000):
            assert str(number) in text


def test_every_field_of_a_chunk_reaches_the_client(
    scripted_client: openai.OpenAI, script: ScriptedEngine, http: httpx.Client
) -> None:
    logprobs = {
        "content": [{"token": "Hi", "logprob": -0.1, "bytes": None, "top_logprobs": []}],
        "refusal": None,
    }
    chunks_sent = [
        delta(role="assistant", reasoning_content="Let me think."),
        chunk(
            choices=[{"index": 1, "delta": {"content": "Hi"}, "finish_reason": None, "logprobs": logprobs}]
        ),
        delta(tool_calls=[tool_call(0, "c0", "f", '{"a":'), tool_call(1, "c1", "g", "{}")]),
        delta(tool_calls=[tool_call(0, arguments="1}")]),
        chunk(choices=[{"index": 0, "delta": [], "finish_reason": "tool_calls", "matched_stop": "x"}]),
        chunk(choices=[{"index": 1, "delta": {}, "finish_reason": "stop"}]),
        usage(6, 1, reasoning=1, cached=3),
    ]
    script.respond = lambda request: chunks_sent
    options = {"stream_options": {"include_usage": True}}
    chunks = list(scripted_client.chat.completions.create(**chat(), stream=True, **options))
    assert chunks[0].choices[0].delta.reasoning_content == "Let me think."  # type: ignore[attr-defined]
    assert chunks[1].choices[0].index == 1
    assert chunks[1].choices[0].logprobs is not None
    assert chunks[1].choices[0].logprobs.content[0].token == "Hi"  # type: ignore[index]
    assert [call.function.name for call in chunks[2].choices[0].delta.tool_calls] == ["f", "g"]  # type: ignore
    assert chunks[4].choices[0].finish_reason == "tool_calls"
    assert chunks[4].choices[0].delta.content is None
    assert chunks[4].choices[0].matched_stop == "x"  # type: ignore[attr-defined]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == 3  # type: ignore[union-attr]

    whole = scripted_client.chat.completions.create(**chat())
    assert [choice.finish_reason for choice in whole.choices] == ["tool_calls", "stop"]
    calls = whole.choices[0].message.tool_calls
    assert [call.function.arguments for call in calls] == ['{"a":1}', "{}"]  # type: ignore[union-attr]
    assert whole.choices[1].message.content == "Hi"
    assert whole.choices[1].logprobs.content[0].token == "Hi"  # type: ignore
    assert whole.choices[0].message.reasoning_content == "Let me think."  # type: ignore[attr-defined]


def test_a_stream_is_valid_server_sent_events(
    scripted_proxy: LocalProxy, scripted_enclave: LocalEnclave, script: ScriptedEngine
) -> None:
    script.respond = lambda request: [chunk("line\nbreak\r\n\u2028 Ω"), finish()]
    reply = httpx.post(
        scripted_proxy.url + CHAT,
        json=chat(stream=True),
        headers=headers(scripted_enclave),
        trust_env=False,
    )
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reply.headers["cache-control"] == "no-store"
    first, last, done = events(reply.text)
    assert first["choices"][0]["delta"]["content"] == "line\nbreak\r\n\u2028 Ω"
    assert first["object"] == "chat.completion.chunk"
    assert last["choices"][0]["finish_reason"] == "stop"
    assert done == "[DONE]"


def test_fields_that_openais_clients_require_are_added_where_the_service_omits_them() -> None:
    bare = read_json(ChatCompletionChunk, b'{"choices": [{"delta": null}], "new": {"kept": null}}')
    value = json.loads(event(bare).removeprefix(b"data: "))
    assert {"id", "object", "created", "model"} <= set(value)
    assert value["choices"] == [{"index": 0, "delta": {}, "finish_reason": None}]
    whole = json.loads(
        whole_body(read_json(ChatCompletion, b'{"id": "c", "new": 1, "choices": [{"message": {}}]}'))
    )
    assert whole["object"] == "chat.completion"
    assert whole["new"] == 1
    assert whole["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": None, "refusal": None},
            "finish_reason": None,
            "logprobs": None,
        }
    ]


async def test_coalesce_combines_available_items_and_raises_an_error_after_them() -> None:
    more = asyncio.Event()

    async def items() -> AsyncIterator[int]:
        yield 1
        yield 2
        await more.wait()
        yield 3
        raise ValueError("cut")

    batches = coalesce(items())
    assert await anext(batches) == [1, 2]
    more.set()
    assert await anext(batches) == [3]
    with pytest.raises(ValueError, match="cut"):
        await anext(batches)


async def test_coalesce_reads_a_bounded_number_of_items_ahead() -> None:
    made = []

    async def items() -> AsyncIterator[int]:
        for number in range(MAX_BUFFERED * 4):
            made.append(number)
            yield number

    batches = coalesce(items())
    got = await anext(batches)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(made) <= len(got) + MAX_BUFFERED + 1
    async for batch in batches:
        got += batch
    assert got == list(range(MAX_BUFFERED * 4))


# Truncated


def test_an_error_before_the_first_chunk_has_its_status(
    scripted_client: openai.OpenAI, script: ScriptedEngine
) -> None:
    script.respond = lambda request: EngineError("overloaded", status=503)
    with pytest.raises(openai.InternalServerError) as caught:
        scripted_client.chat.completions.create(**chat(), stream=True)
    assert caught.value.status_code == 503


#: The ways in which a stream can end early, after the chunk "Hel".
TRUNCATED: dict[str, Any] = {
    "error event": [chunk("Hel"), EngineError("overloaded", status=503, type="overloaded_error")],
    "no done event": reply("Hel", truncated=True),
    "no finish reason": [chunk("Hel")],
}


@pytest.mark.parametrize("truncated", TRUNCATED.values(), ids=TRUNCATED)
def test_a_truncated_stream_ends_with_an_error_event_without_done(
    scripted_client: openai.OpenAI,
    scripted_proxy: LocalProxy,
    scripted_enclave: LocalEnclave,
    script: ScriptedEngine,
    truncated: Any,
) -> None:
    script.respond = lambda request: truncated
    texts = []
    with pytest.raises(openai.APIError) as caught:
        for each in scripted_client.chat.completions.create(**chat(), stream=True):
            texts.append(each.choices[0].delta.content)
    assert texts == ["Hel"]
    assert caught.value.message
    assert scripted_proxy.log.latest()[0].state == "failed"
    assert scripted_proxy.log.latest()[0].status == 200

    # Vercel's AI SDK shows the error only if the body ends properly.
    body = httpx.post(
        scripted_proxy.url + CHAT, json=chat(stream=True), headers=headers(scripted_enclave), trust_env=False
    ).text
    *_, last = events(body)
    assert set(last) == {"error"}
    assert "[DONE]" not in body


def test_a_truncated_response_that_is_not_streamed_is_an_error(
    scripted_client: openai.OpenAI, script: ScriptedEngine
) -> None:
    script.respond = lambda request: reply("Hel", truncated=True)
    with pytest.raises(openai.InternalServerError):
        scripted_client.chat.completions.create(**chat())


def test_a_broken_connection_to_the_gateway_is_an_error_in_the_stream(start_proxy: StartProxy) -> None:
    prem = LocalEnclave(replies=[reply("Hel", stalled=True)]).start()
    with openai.OpenAI(base_url=start_proxy(prem).base_url, api_key=prem.api_key, max_retries=0) as client:
        stream = client.chat.completions.create(**chat(), stream=True)
        assert next(stream).choices[0].delta.content == "Hel"
        prem.stop()
        with pytest.raises(openai.APIError) as caught:
            next(stream)
    assert caught.value.code == "stream_interrupted"


def test_the_official_npm_client_raises_on_a_truncated_stream(
    npm_client: Path, scripted_proxy: LocalProxy, scripted_enclave: LocalEnclave, script: ScriptedEngine
) -> None:
    script.respond = lambda request: TRUNCATED["error event"]
    script = """
        import OpenAI, { APIError } from "openai";
        const [, , baseURL, apiKey] = process.argv;
        const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
        const messages = [{ role: "user", content: "Hello?" }];
        const stream = await client.chat.completions.create({ model: "m", messages, stream: true });
        const texts = [];
        try {
          for await (const chunk of stream) texts.push(chunk.choices[0].delta.content);
          texts.push("complete");
        } catch (error) {
          texts.push(error instanceof APIError ? error.error.type : String(error));
        }
        console.log(JSON.stringify(texts));
    """
    (npm_client / "truncated.mjs").write_text(script)
    ended = subprocess.run(
        ["node", "truncated.mjs", scripted_proxy.base_url, scripted_enclave.api_key],
        cwd=npm_client,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert json.loads(ended.stdout) == ["Hel", "overloaded_error"]


# Disconnects


def test_a_disconnect_during_a_stream_cancels_the_request(
    scripted_http: httpx.Client, scripted_proxy: LocalProxy, script: ScriptedEngine
) -> None:
    script.respond = lambda request: reply("Hel", stalled=True)
    with scripted_http.stream("POST", CHAT, json=chat(stream=True)) as response:
        chunks = response.iter_raw()  # kept: httpx disconnects when the iterator is garbage-collected
        assert next(chunks)
        assert not script.disconnected.is_set()
    assert script.disconnected.wait(5)
    assert eventually(lambda: scripted_proxy.log.latest()[0].state == "disconnected")


@pytest.mark.parametrize("streamed", [True, False])
def test_a_disconnect_before_the_first_chunk_cancels_the_request(
    scripted_http: httpx.Client, scripted_proxy: LocalProxy, script: ScriptedEngine, streamed: bool
) -> None:
    script.respond = lambda request: reply(delay=60)
    with pytest.raises(httpx.ReadTimeout):
        scripted_http.post(CHAT, json=chat(stream=streamed), timeout=0.4)
    assert script.disconnected.wait(5)
    assert eventually(lambda: scripted_proxy.log.latest()[0].state == "disconnected")
    assert scripted_proxy.log.latest()[0].status is None


def test_a_disconnect_while_waiting_for_a_permit_leaves_the_queue(
    start_proxy: StartProxy, scripted_enclave: LocalEnclave, script: ScriptedEngine
) -> None:
    script.respond = lambda request: reply("Hel", stalled=True)
    proxy = start_proxy(scripted_enclave, max_concurrency=1)
    with httpx.Client(
        base_url=proxy.url, headers=headers(scripted_enclave), trust_env=False, timeout=5
    ) as patient:
        with patient.stream("POST", CHAT, json=chat(stream=True)) as first:
            chunks = first.iter_raw()  # kept: httpx disconnects when the iterator is garbage-collected
            assert next(chunks)
            with pytest.raises(httpx.ReadTimeout):
                patient.post(CHAT, json=chat("waits"), timeout=0.3)
            assert eventually(lambda: proxy.log.latest()[0].state == "disconnected")
            script.respond = lambda request: "Hello"
        assert patient.post(CHAT, json=chat("next")).status_code == 200
    assert [request.text for request in script.requests] == ["Say hello.", "next"]


def test_a_disconnect_during_the_request_body_is_recorded(
    scripted_proxy: LocalProxy, scripted_enclave: LocalEnclave, script: ScriptedEngine
) -> None:
    def half() -> Iterator[bytes]:
        yield b'{"model": "m", '
        raise ConnectionError

    kind = {"content-type": "application/json"}
    with httpx.Client(trust_env=False) as client, pytest.raises(ConnectionError):
        client.post(scripted_proxy.url + CHAT, content=half(), headers=headers(scripted_enclave) | kind)
    assert eventually(lambda: scripted_proxy.log.latest()[0].state == "disconnected")
    assert script.requests == []


def test_a_disconnect_of_a_request_without_a_body_is_recorded(
    start_proxy: StartProxy, enclave: LocalEnclave
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # a gateway that never answers
        proxy = start_proxy(enclave, gateway_url=f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(httpx.ReadTimeout):
            httpx.get(f"{proxy.base_url}/models", headers=headers(enclave), trust_env=False, timeout=0.3)
        assert eventually(lambda: proxy.log.latest()[0].state == "disconnected")


# Start and stop


def test_stop_ends_open_streams_with_an_error(
    scripted_enclave: LocalEnclave, script: ScriptedEngine, start_proxy: StartProxy
) -> None:
    script.respond = lambda request: reply("Hel", stalled=True)
    proxy = start_proxy(scripted_enclave)
    with openai.OpenAI(base_url=proxy.base_url, api_key=scripted_enclave.api_key, max_retries=0) as client:
        stream = client.chat.completions.create(**chat(), stream=True)
        assert next(stream).choices[0].delta.content == "Hel"
        proxy.stop()
        with pytest.raises(openai.APIError, match="stopped"):
            next(stream)
    assert script.disconnected.wait(5)
    assert proxy.log.latest()[0].error == "proxy_stopped"


def test_stop_answers_waiting_requests_with_503(
    scripted_enclave: LocalEnclave, script: ScriptedEngine, start_proxy: StartProxy
) -> None:
    script.respond = lambda request: reply(delay=60)
    proxy = start_proxy(scripted_enclave)
    found: list[httpx.Response] = []

    def wait() -> None:
        found.append(
            httpx.post(
                proxy_url + CHAT, json=chat(), headers=headers(scripted_enclave), trust_env=False, timeout=60
            )
        )

    proxy_url = proxy.url
    waiting = threading.Thread(target=wait)
    waiting.start()
    assert eventually(lambda: bool(script.requests))
    proxy.stop()
    waiting.join(10)
    assert found[0].status_code == 503
    assert found[0].json()["error"]["message"] == "the proxy was stopped"
    assert found[0].headers["x-should-retry"] == "false"


def test_a_client_that_does_not_read_does_not_delay_stop(
    scripted_enclave: LocalEnclave, script: ScriptedEngine
) -> None:
    script.respond = lambda request: reply(["x" * 50_000] * 400)
    with no_thread_left(), httpx.Client(trust_env=False) as client:
        proxy = proxy_for(scripted_enclave).start()

        def blocked() -> bool:
            """Whether the proxy has sent what fits into the buffers, and no more."""
            sent = proxy.log.latest()[0].response_bytes
            time.sleep(0.1)
            return 0 < sent == proxy.log.latest()[0].response_bytes < 400 * 50_000

        with client.stream(
            "POST", proxy.url + CHAT, json=chat(stream=True), headers=headers(scripted_enclave)
        ):
            assert eventually(blocked)
            proxy.stop()


@needs_proc
def test_a_stopped_proxy_leaves_no_thread_no_descriptor_and_no_port() -> None:
    def live() -> str:
        # Its own enclave: another one may have open connections.
        with LocalEnclave() as prem, proxy_for(prem) as proxy:
            with openai.OpenAI(base_url=proxy.base_url, api_key=prem.api_key, max_retries=0) as client:
                assert client.chat.completions.create(**chat())
                assert list(client.chat.completions.create(**chat(), stream=True))
                stream = client.chat.completions.create(**chat("Hello there. " * 2000), stream=True)
                next(stream)
                url = proxy.url
                proxy.stop()
                stream.close()
        return url

    live()  # opens what a process opens only once
    threads, open_files = set(threading.enumerate()), descriptors()
    url = live()
    assert eventually(lambda: set(threading.enumerate()) <= threads)
    assert eventually(lambda: descriptors() <= open_files)
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, trust_env=False)


async def test_it_can_be_started_again_on_the_same_port_and_is_an_async_context_manager(
    enclave: LocalEnclave,
) -> None:
    with LocalProxy(gateway_url=enclave.gateway_url, enclave_url=enclave.enclave_url) as first:
        port = httpx.URL(first.url).port
        with pytest.raises(RuntimeError, match="already"):
            first.start()
    assert repr(first) == "LocalProxy(stopped)"
    with pytest.raises(RuntimeError, match="not running"):
        _ = first.url
    assert port is not None
    again = LocalProxy(port=port, gateway_url=enclave.gateway_url, enclave_url=enclave.enclave_url)
    for _ in range(2):
        async with again:
            async with openai.AsyncOpenAI(base_url=again.base_url, api_key=enclave.api_key) as client:
                assert (await client.chat.completions.create(**chat())).choices
    assert re.fullmatch(r"LocalProxy\(stopped\)", repr(again))
    again.stop()
