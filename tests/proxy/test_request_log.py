"""What is remembered of an exchange: that it was, how large and how long, and its first bytes as they left, sealed."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest
from support.proxies import MODEL, WHISPER, Run, chat
from support.scripted_upstream import Upstream, chunk, finish, usage
from support.wire_schemas import Opened

from prem_core._serving.request import RequestBody
from prem_core.enclave import LocalEnclave
from prem_core.proxy import LocalProxy, RequestLog, RequestRecord
from prem_core.proxy.call import Call
from prem_core.proxy.request_log import CAPTURE_BYTES
from prem_core.proxy.wire import RequestContext

ZEBRA = "Context: The zebra is striped. Question: What is striped?"


def latest(proxy: LocalProxy) -> RequestRecord:
    return proxy.log.latest()[0]


@pytest.mark.parametrize("streamed", [False, True])
def test_a_chat_is_recorded_with_its_figures_and_what_the_gateway_saw(
    proxy: LocalProxy, client: openai.OpenAI, seen: Any, streamed: bool
) -> None:
    options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}} if streamed else {}
    reply = client.chat.completions.with_raw_response.create(**chat(ZEBRA), **options)
    said = reply.parse()
    counts = [each.usage for each in said][-1] if streamed else said.usage
    exchange = latest(proxy)
    assert reply.headers["x-request-id"] == exchange.id
    assert (exchange.route, exchange.model, exchange.streamed) == ("/v1/chat/completions", MODEL, streamed)
    assert (exchange.state, exchange.status, exchange.error, exchange.attempts) == ("done", 200, None, 1)
    assert exchange.duration is not None
    assert exchange.time_to_first_token is not None
    assert 0 < exchange.time_to_first_token <= exchange.duration
    assert (exchange.prompt_tokens, exchange.completion_tokens) == (
        counts.prompt_tokens,
        counts.completion_tokens,
    )
    assert exchange.request_bytes == int(reply.http_request.headers["content-length"])
    if not streamed:
        assert exchange.response_bytes == int(reply.headers["content-length"])

    # Byte for byte what came to the gateway and what it sent.
    (saw,) = seen.chats
    assert exchange.gateway_request.size == len(saw.request_body)
    assert exchange.gateway_request.head == saw.request_body[:CAPTURE_BYTES]
    assert exchange.gateway_response.size == len(saw.response_body)
    assert exchange.gateway_response.head == saw.response_body[:CAPTURE_BYTES]


def test_a_transcription_request_is_recorded_with_its_figures_and_what_the_gateway_saw(
    proxy: LocalProxy, client: openai.OpenAI, seen: Any
) -> None:
    with pytest.raises(openai.BadRequestError):
        client.audio.transcriptions.create(
            file=("zebra.wav", b"zebra" * 100_000), model=WHISPER, prompt="zebra"
        )
    (saw,) = seen.exchanges
    exchange = latest(proxy)
    assert (exchange.state, exchange.status, exchange.error) == ("failed", 400, "BadRequestError")
    assert exchange.support_id is not None
    assert exchange.gateway_request.size == len(saw.request_body) > 1_000_000
    assert exchange.gateway_request.head == saw.request_body[:CAPTURE_BYTES]
    # An error is not sealed: its size is all that is kept.
    assert (exchange.gateway_response.size, exchange.gateway_response.head) == (len(saw.response_body), b"")


def test_a_record_contains_no_prompt_and_no_response(
    upstream_client: openai.OpenAI, upstream_proxy: LocalProxy, upstream: Upstream
) -> None:
    upstream.says(chunk("zebra"), finish(), usage(3, 4))
    for streamed in (False, True):
        answer = upstream_client.chat.completions.create(**chat("zebra"), stream=streamed)
        if streamed:
            assert list(answer)
        exchange = latest(upstream_proxy)
        shown = json.dumps(exchange.as_dict()) + repr(exchange) + str(upstream_proxy.log.__dict__)
        assert "zebra" not in shown
        assert "hello" not in shown.lower()
        hexadecimal = exchange.as_dict()["gateway_request"]["head"].removeprefix('{"encryptedInference":"')
        assert len(bytes.fromhex(hexadecimal[: len(hexadecimal) // 2 * 2])) > 30


def test_the_captured_bytes_of_a_chat_end_before_its_text(
    client: openai.OpenAI, proxy: LocalProxy, seen: Any
) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "zebra"}])
    opened = json.dumps(Opened.request(seen.chats[0].request_body).params, separators=(",", ":"))
    kept = (len(latest(proxy).gateway_request.head) - len('{"encryptedInference":"')) // 2
    assert 30 < kept < opened.index("zebra")


def test_a_long_model_name_is_shortened_in_the_record(
    upstream_client: openai.OpenAI, upstream_proxy: LocalProxy
) -> None:
    upstream_client.chat.completions.create(**{**chat(), "model": "m" * 5000})
    assert latest(upstream_proxy).model == "m" * 100


def test_requests_that_are_not_for_the_gateway_are_not_recorded(run: Run, enclave: LocalEnclave) -> None:
    proxy = run(enclave)
    httpx.get(f"{proxy.url}/health", trust_env=False)
    httpx.get(f"{proxy.url}/nowhere", trust_env=False)
    httpx.get(f"{proxy.base_url}/models", headers={"host": "evil.example"}, trust_env=False)
    assert proxy.log.latest() == []
    httpx.get(f"{proxy.base_url}/models", trust_env=False)
    assert (latest(proxy).status, latest(proxy).error, latest(proxy).attempts) == (401, "invalid_api_key", 0)


def test_the_log_keeps_the_latest_records_the_newest_first() -> None:
    exchanges = RequestLog(3)
    for number in range(5):
        exchanges.add(RequestRecord(str(number)))
    assert [exchange.route for exchange in exchanges.latest()] == ["4", "3", "2"]


async def test_a_subscription_yields_a_record_at_its_start_first_token_and_end() -> None:
    exchanges = RequestLog()
    with exchanges.subscribe() as changes:
        exchange = RequestRecord("/v1/models")
        states = []
        for step in (
            lambda: exchanges.add(exchange),
            lambda: exchanges.first_token(exchange),
            lambda: exchanges.end(exchange, "done"),
        ):
            step()
            seen = await asyncio.wait_for(anext(changes), 1)
            states.append((seen.state, seen.time_to_first_token is not None))
        assert states == [("running", False), ("running", True), ("done", True)]
        exchanges.end(exchange, "disconnected")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(changes), 0.05)
        assert exchange.state == "done", "it ends once"
    exchanges.add(RequestRecord("/v1/models"))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(changes), 0.05)


async def test_a_subscription_that_is_not_read_is_bounded() -> None:
    exchanges = RequestLog(5)
    with exchanges.subscribe() as changes:
        for _ in range(1000):
            exchanges.add(RequestRecord("/v1/models"))
        assert len(changes._pending) <= 200
        first = await anext(changes)
        assert isinstance(first, RequestRecord)


async def test_the_repr_of_a_call_shows_neither_its_api_key_nor_its_body() -> None:
    async def receive() -> Any:
        return {"type": "http.request", "body": b"zebra"}

    async def send(message: Any) -> None:
        del message

    scope = {"type": "http", "headers": [(b"transfer-encoding", b"chunked"), (b"cookie", b"zebra")]}
    body = RequestBody(scope, receive, 10)
    assert await body.read() == b"zebra"
    call = Call(scope, "sk_test_zebra", body, RequestRecord("/v1/models"), RequestLog(), send, ["zebra"])
    assert "zebra" not in repr(call) + repr(RequestContext(call.record, "sk_test_zebra"))
