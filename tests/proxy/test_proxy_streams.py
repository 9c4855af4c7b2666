"""Streams: nothing lost or mixed, nothing cut that looks whole, and nobody worked for who has left."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from starlette.responses import StreamingResponse
from support.proxies import Run, chat, descriptors, eventually, in_front_of, needs_proc
from support.scripted_upstream import Upstream, chunk, delta, finish, tool_call, usage

from prem_core._protocol.response_types import ChatCompletion, ChatCompletionChunk, read_json
from prem_core.enclave import LocalEnclave
from prem_core.proxy import LocalProxy, responses
from prem_core.proxy.coalesce import MAX_BUFFERED, coalesce

CHAT = "/v1/chat/completions"


def events(body: str) -> list[Any]:
    """The data of server-sent events; the last one as it stands."""
    assert body.endswith("\n\n")
    data = [line.removeprefix("data: ") for line in body.split("\n\n")[:-1]]
    return [json.loads(each) if each[0] == "{" else each for each in data]


def headers(prem: LocalEnclave) -> dict[str, str]:
    return {"authorization": f"Bearer {prem.api_key}"}


# Whole


async def test_a_hundred_concurrent_streams_lose_and_mix_no_chunk(
    run: Run, upstream_enclave: LocalEnclave, upstream: Upstream
) -> None:
    arrived: list[str] = []
    everybody: list[asyncio.Event] = []

    def answer(body: dict[str, Any]) -> StreamingResponse:
        everybody.append(everybody[0] if everybody else asyncio.Event())
        mark = body["messages"][0]["content"]
        arrived.append(mark)
        if len(arrived) == 100:
            everybody[0].set()

        async def say() -> AsyncIterator[str]:
            yield f"data: {json.dumps(chunk(f'{mark}:0 '))}\n\n"
            await everybody[0].wait()  # all are open now
            for number in range(1, 40):
                yield f"data: {json.dumps(chunk(f'{mark}:{number} '))}\n\n"
                await asyncio.sleep(0)
            yield f"data: {json.dumps(finish())}\n\n"
            yield f"data: {json.dumps(usage(1, 2))}\n\ndata: [DONE]\n\n"

        return StreamingResponse(say(), media_type="text/event-stream")

    upstream.answer = answer
    proxy = run(upstream_enclave, max_concurrency=None)

    async def ask(client: openai.AsyncOpenAI, mark: str) -> str:
        stream = await client.chat.completions.create(**chat(mark), stream=True)
        return "".join([each.choices[0].delta.content or "" async for each in stream if each.choices])

    async with openai.AsyncOpenAI(
        base_url=proxy.base_url, api_key=upstream_enclave.api_key, max_retries=0, timeout=60
    ) as client:
        marks = [f"m{number}" for number in range(100)]
        said = await asyncio.gather(*(ask(client, mark) for mark in marks))
    assert said == ["".join(f"{mark}:{number} " for number in range(40)) for mark in marks]
    assert {exchange.state for exchange in proxy.log.latest()} == {"done"}


async def test_streams_over_max_concurrency_wait_for_a_permit(run: Run, enclave: LocalEnclave) -> None:
    proxy = run(enclave, max_concurrency=2)
    async with openai.AsyncOpenAI(base_url=proxy.base_url, api_key=enclave.api_key, max_retries=0) as client:

        async def ask(number: int) -> str:
            stream = await client.chat.completions.create(
                **chat(f"The code is {number}. What is the code?"), stream=True
            )
            return "".join([each.choices[0].delta.content or "" async for each in stream])

        for number, text in enumerate(await asyncio.gather(*map(ask, range(1000, 1020))), 1000):
            assert str(number) in text


def test_every_field_of_a_chunk_reaches_the_client(
    upstream_client: openai.OpenAI, upstream: Upstream, http: httpx.Client
) -> None:
    logprobs = {
        "content": [{"token": "Hi", "logprob": -0.1, "bytes": None, "top_logprobs": []}],
        "refusal": None,
    }
    upstream.says(
        delta(role="assistant", reasoning_content="Let me think."),
        chunk(
            choices=[{"index": 1, "delta": {"content": "Hi"}, "finish_reason": None, "logprobs": logprobs}]
        ),
        delta(tool_calls=[tool_call(0, "c0", "f", '{"a":'), tool_call(1, "c1", "g", "{}")]),
        delta(tool_calls=[tool_call(0, arguments="1}")]),
        chunk(choices=[{"index": 0, "delta": [], "finish_reason": "tool_calls", "matched_stop": "x"}]),
        chunk(choices=[{"index": 1, "delta": {}, "finish_reason": "stop"}]),
        usage(6, 1, reasoning=1, cached=3),
    )
    options = {"stream_options": {"include_usage": True}}
    chunks = list(upstream_client.chat.completions.create(**chat(), stream=True, **options))
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

    whole = upstream_client.chat.completions.create(**chat())
    assert [choice.finish_reason for choice in whole.choices] == ["tool_calls", "stop"]
    calls = whole.choices[0].message.tool_calls
    assert [call.function.arguments for call in calls] == ['{"a":1}', "{}"]  # type: ignore[union-attr]
    assert whole.choices[1].message.content == "Hi"
    assert whole.choices[1].logprobs.content[0].token == "Hi"  # type: ignore
    assert whole.choices[0].message.reasoning_content == "Let me think."  # type: ignore[attr-defined]


def test_a_stream_is_valid_server_sent_events(
    upstream_proxy: LocalProxy, upstream_enclave: LocalEnclave, upstream: Upstream
) -> None:
    upstream.says(chunk("line\nbreak\r\n\u2028 Ω"), finish())
    reply = httpx.post(
        upstream_proxy.url + CHAT,
        json=chat(stream=True),
        headers=headers(upstream_enclave),
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
    value = json.loads(responses.event(bare).removeprefix(b"data: "))
    assert {"id", "object", "created", "model"} <= set(value)
    assert value["choices"] == [{"index": 0, "delta": {}, "finish_reason": None}]
    whole = json.loads(
        responses.completion(
            read_json(ChatCompletion, b'{"id": "c", "new": 1, "choices": [{"message": {}}]}')
        )
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
    await asyncio.sleep(0.01)
    assert len(made) <= len(got) + MAX_BUFFERED + 1
    async for batch in batches:
        got += batch
    assert got == list(range(MAX_BUFFERED * 4))


# Cut


def test_an_error_before_the_first_chunk_has_its_status(
    upstream_client: openai.OpenAI, upstream: Upstream
) -> None:
    upstream.refuses(503, {})
    with pytest.raises(openai.InternalServerError) as caught:
        upstream_client.chat.completions.create(**chat(), stream=True)
    assert caught.value.status_code == 503


Cut = Callable[[Upstream], None]


def reported(upstream: Upstream) -> None:
    upstream.says(chunk("Hel"), {"error": {"message": "overloaded", "type": "overloaded_error"}})


def ended(upstream: Upstream) -> None:
    upstream.says(chunk("Hel"), done=False)


def unfinished(upstream: Upstream) -> None:
    upstream.says(chunk("Hel"))


@pytest.mark.parametrize("cut", [reported, ended, unfinished])
def test_a_truncated_stream_is_an_error_in_the_official_client_and_unfinished_for_any_other(
    upstream_client: openai.OpenAI,
    upstream_proxy: LocalProxy,
    upstream_enclave: LocalEnclave,
    upstream: Upstream,
    cut: Cut,
) -> None:
    cut(upstream)
    said = []
    with pytest.raises(openai.APIError) as caught:
        for each in upstream_client.chat.completions.create(**chat(), stream=True):
            said.append(each.choices[0].delta.content)
    assert said == ["Hel"]
    assert caught.value.message
    assert upstream_proxy.log.latest()[0].state == "failed"
    assert upstream_proxy.log.latest()[0].status == 200

    # Whoever does not know the error finds that the body has no end.
    body = ""
    with httpx.Client(trust_env=False) as plain:
        with plain.stream(
            "POST", upstream_proxy.url + CHAT, json=chat(stream=True), headers=headers(upstream_enclave)
        ) as reply:
            with pytest.raises(httpx.RemoteProtocolError):
                for piece in reply.iter_text():
                    body += piece
    *_, last = events(body)
    assert set(last) == {"error"}
    assert "[DONE]" not in body


def test_a_truncated_response_that_is_not_streamed_is_an_error(
    upstream_client: openai.OpenAI, upstream: Upstream
) -> None:
    upstream.says(chunk("Hel"), done=False)
    with pytest.raises(openai.InternalServerError):
        upstream_client.chat.completions.create(**chat())


def test_a_broken_connection_to_the_gateway_is_an_error_in_the_stream(run: Run, upstream: Upstream) -> None:
    upstream.stalls(chunk("Hel"))
    prem = LocalEnclave(upstream=upstream.url).start()
    with openai.OpenAI(base_url=run(prem).base_url, api_key=prem.api_key, max_retries=0) as client:
        stream = client.chat.completions.create(**chat(), stream=True)
        assert next(stream).choices[0].delta.content == "Hel"
        prem.stop()
        with pytest.raises(openai.APIError) as caught:
            next(stream)
    assert caught.value.code == "stream_interrupted"


def test_the_official_npm_client_raises_on_a_truncated_stream(
    npm_client: Path, upstream_proxy: LocalProxy, upstream_enclave: LocalEnclave, upstream: Upstream
) -> None:
    reported(upstream)
    script = """
        import OpenAI, { APIError } from "openai";
        const [, , baseURL, apiKey] = process.argv;
        const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
        const messages = [{ role: "user", content: "Hello?" }];
        const stream = await client.chat.completions.create({ model: "m", messages, stream: true });
        const said = [];
        try {
          for await (const chunk of stream) said.push(chunk.choices[0].delta.content);
          said.push("whole");
        } catch (error) {
          said.push(error instanceof APIError ? error.error.type : String(error));
        }
        console.log(JSON.stringify(said));
    """
    (npm_client / "cut.mjs").write_text(script)
    held = subprocess.run(
        ["node", "cut.mjs", upstream_proxy.base_url, upstream_enclave.api_key],
        cwd=npm_client,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert json.loads(held.stdout) == ["Hel", "overloaded_error"]


# Left


@pytest.fixture
def direct(upstream_proxy: LocalProxy, upstream_enclave: LocalEnclave) -> Iterator[httpx.Client]:
    options: dict[str, Any] = {"base_url": upstream_proxy.url, "trust_env": False}
    with httpx.Client(headers=headers(upstream_enclave), timeout=0.4, **options) as client:
        yield client


def test_a_disconnect_during_a_stream_cancels_the_request(
    direct: httpx.Client, upstream_proxy: LocalProxy, upstream: Upstream
) -> None:
    upstream.stalls(chunk("Hel"))
    with direct.stream("POST", CHAT, json=chat(stream=True)) as reply:
        pieces = reply.iter_raw()  # kept: httpx hangs up when it is forgotten
        assert next(pieces)
        assert not upstream.left.wait(0.2)
    assert upstream.left.wait(2)
    assert eventually(lambda: upstream_proxy.log.latest()[0].state == "disconnected")


@pytest.mark.parametrize("streamed", [True, False])
def test_a_disconnect_before_the_first_chunk_cancels_the_request(
    direct: httpx.Client, upstream_proxy: LocalProxy, upstream: Upstream, streamed: bool
) -> None:
    upstream.stalls()
    with pytest.raises(httpx.ReadTimeout):
        direct.post(CHAT, json=chat(stream=streamed))
    assert upstream.left.wait(2)
    assert eventually(lambda: upstream_proxy.log.latest()[0].state == "disconnected")
    assert upstream_proxy.log.latest()[0].status is None


def test_a_disconnect_while_waiting_for_a_permit_leaves_the_queue(
    run: Run, upstream_enclave: LocalEnclave, upstream: Upstream
) -> None:
    upstream.stalls(chunk("Hel"))
    proxy = run(upstream_enclave, max_concurrency=1)
    with httpx.Client(
        base_url=proxy.url, headers=headers(upstream_enclave), trust_env=False, timeout=5
    ) as patient:
        with patient.stream("POST", CHAT, json=chat(stream=True)) as first:
            pieces = first.iter_raw()  # kept: httpx hangs up when it is forgotten
            assert next(pieces)
            with pytest.raises(httpx.ReadTimeout):
                patient.post(CHAT, json=chat("waits"), timeout=0.3)
            assert eventually(lambda: proxy.log.latest()[0].state == "disconnected")
            upstream.says(chunk("Hello"), finish())
        assert patient.post(CHAT, json=chat("next")).status_code == 200
    asked = [body["messages"][0]["content"] for _, body in upstream.requests]
    assert asked == ["Say hello.", "next"]


def test_a_disconnect_during_the_request_body_is_recorded(
    upstream_proxy: LocalProxy, upstream_enclave: LocalEnclave, upstream: Upstream
) -> None:
    def half() -> Iterator[bytes]:
        yield b'{"model": "m", '
        raise ConnectionError

    kind = {"content-type": "application/json"}
    with httpx.Client(trust_env=False) as client, pytest.raises(ConnectionError):
        client.post(upstream_proxy.url + CHAT, content=half(), headers=headers(upstream_enclave) | kind)
    assert eventually(lambda: upstream_proxy.log.latest()[0].state == "disconnected")
    assert upstream.requests == []


def test_a_disconnect_of_a_request_without_a_body_is_recorded(run: Run, enclave: LocalEnclave) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # a gateway that never answers
        proxy = run(enclave, gateway_url=f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(httpx.ReadTimeout):
            httpx.get(f"{proxy.base_url}/models", headers=headers(enclave), trust_env=False, timeout=0.3)
        assert eventually(lambda: proxy.log.latest()[0].state == "disconnected")


# Stopped


def test_stop_ends_open_streams_with_an_error(
    upstream_enclave: LocalEnclave, upstream: Upstream, run: Run
) -> None:
    upstream.stalls(chunk("Hel"))
    proxy = run(upstream_enclave)
    with openai.OpenAI(base_url=proxy.base_url, api_key=upstream_enclave.api_key, max_retries=0) as client:
        stream = client.chat.completions.create(**chat(), stream=True)
        assert next(stream).choices[0].delta.content == "Hel"
        began = time.monotonic()
        proxy.stop()
        assert time.monotonic() - began < 3
        with pytest.raises(openai.APIError, match="stopped"):
            next(stream)
    assert upstream.left.wait(2)
    assert proxy.log.latest()[0].error == "proxy_stopped"


def test_stop_answers_waiting_requests_with_503(
    upstream_enclave: LocalEnclave, upstream: Upstream, run: Run
) -> None:
    upstream.stalls()
    proxy = run(upstream_enclave)
    found: list[httpx.Response] = []

    def wait() -> None:
        found.append(
            httpx.post(
                proxy_url + CHAT, json=chat(), headers=headers(upstream_enclave), trust_env=False, timeout=10
            )
        )

    proxy_url = proxy.url
    waiting = threading.Thread(target=wait)
    waiting.start()
    assert eventually(lambda: bool(upstream.requests))
    proxy.stop()
    waiting.join(10)
    assert found[0].status_code == 503
    assert found[0].json()["error"]["message"] == "the proxy was stopped"
    assert found[0].headers["x-should-retry"] == "false"


def test_a_client_that_does_not_read_does_not_delay_stop(
    upstream_enclave: LocalEnclave, upstream: Upstream, run: Run
) -> None:
    upstream.says(*[chunk("x" * 50_000)] * 400, finish())
    proxy = run(upstream_enclave)
    with httpx.Client(trust_env=False) as client:
        with client.stream(
            "POST", proxy.url + CHAT, json=chat(stream=True), headers=headers(upstream_enclave)
        ):
            time.sleep(0.5)
            began = time.monotonic()
            proxy.stop()
            assert time.monotonic() - began < 4


@needs_proc
def test_a_stopped_proxy_leaves_no_thread_no_descriptor_and_no_port() -> None:
    def live() -> str:
        # An enclave of its own: what another one keeps open for later would be counted here.
        with LocalEnclave() as prem, in_front_of(prem) as proxy:
            with openai.OpenAI(base_url=proxy.base_url, api_key=prem.api_key, max_retries=0) as client:
                assert client.chat.completions.create(**chat())
                assert list(client.chat.completions.create(**chat(), stream=True))
                stream = client.chat.completions.create(**chat("Hello there. " * 2000), stream=True)
                next(stream)
                url = proxy.url
                proxy.stop()
                stream.close()
        return url

    live()  # what is opened once in a process is open now
    threads, open_files = set(threading.enumerate()), descriptors()
    url = live()
    assert eventually(lambda: set(threading.enumerate()) <= threads)
    assert eventually(lambda: descriptors() <= open_files)
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, trust_env=False)


async def test_it_can_be_started_again_on_the_same_port_and_is_an_async_context_manager(
    enclave: LocalEnclave, run: Run
) -> None:
    del run
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
