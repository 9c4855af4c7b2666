"""The record of a request: times, sizes, counts, and its first bytes as the gateway saw them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest
from support.proxies import MODEL, WHISPER, StartProxy, chat
from support.wire_schemas import Opened

from prem_core._serving.request import BodyMemory, RequestBody
from prem_core.enclave import LocalEnclave, ScriptedEngine
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
    raw = client.chat.completions.with_raw_response.create(**chat(ZEBRA), **options)
    response = raw.parse()
    counts = [each.usage for each in response][-1] if streamed else response.usage
    record = latest(proxy)
    assert raw.headers["x-request-id"] == record.id
    assert (record.route, record.model, record.streamed) == ("/v1/chat/completions", MODEL, streamed)
    assert (record.state, record.status, record.error, record.attempts) == ("done", 200, None, 1)
    assert record.duration is not None
    assert record.time_to_first_token is not None
    assert 0 < record.time_to_first_token <= record.duration
    assert (record.prompt_tokens, record.completion_tokens) == (
        counts.prompt_tokens,
        counts.completion_tokens,
    )
    assert record.request_bytes == int(raw.http_request.headers["content-length"])
    if not streamed:
        assert record.response_bytes == int(raw.headers["content-length"])

    # The bytes that the gateway received and sent.
    (saw,) = seen.chats
    assert record.gateway_request.size == len(saw.request_body)
    assert record.gateway_request.head == saw.request_body[:CAPTURE_BYTES]
    assert record.gateway_response.size == len(saw.response_body)
    assert record.gateway_response.head == saw.response_body[:CAPTURE_BYTES]


def test_a_transcription_request_is_recorded_with_its_figures_and_what_the_gateway_saw(
    proxy: LocalProxy, client: openai.OpenAI, seen: Any
) -> None:
    with pytest.raises(openai.BadRequestError):
        client.audio.transcriptions.create(
            file=("zebra.wav", b"zebra" * 100_000), model=WHISPER, prompt="zebra"
        )
    (saw,) = seen.exchanges
    record = latest(proxy)
    assert (record.state, record.status, record.error) == ("failed", 400, "BadRequestError")
    assert record.support_id is not None
    assert record.gateway_request.size == len(saw.request_body) > 1_000_000
    assert record.gateway_request.head == saw.request_body[:CAPTURE_BYTES]
    # An error is not sealed: only its size is recorded.
    assert (record.gateway_response.size, record.gateway_response.head) == (len(saw.response_body), b"")


def test_a_record_contains_no_prompt_and_no_response(
    scripted_client: openai.OpenAI, scripted_proxy: LocalProxy, script: ScriptedEngine
) -> None:
    script.respond = lambda request: "zebra"
    for streamed in (False, True):
        answer = scripted_client.chat.completions.create(**chat("zebra"), stream=streamed)
        if streamed:
            assert list(answer)
        record = latest(scripted_proxy)
        shown = json.dumps(record.as_dict()) + repr(record) + str(scripted_proxy.log.__dict__)
        assert "zebra" not in shown
        assert "hello" not in shown.lower()
        hexadecimal = record.as_dict()["gateway_request"]["head"].removeprefix('{"encryptedInference":"')
        assert len(bytes.fromhex(hexadecimal[: len(hexadecimal) // 2 * 2])) > 30


def test_the_captured_bytes_of_a_chat_end_before_its_text(
    client: openai.OpenAI, proxy: LocalProxy, seen: Any
) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "zebra"}])
    opened = json.dumps(Opened.request(seen.chats[0].request_body).params, separators=(",", ":"))
    captured = (len(latest(proxy).gateway_request.head) - len('{"encryptedInference":"')) // 2
    assert 30 < captured < opened.index("zebra")


def test_a_long_model_name_is_shortened_in_the_record(
    scripted_client: openai.OpenAI, scripted_proxy: LocalProxy
) -> None:
    scripted_client.chat.completions.create(**{**chat(), "model": "m" * 5000})
    assert latest(scripted_proxy).model == "m" * 100


def test_requests_that_are_not_for_the_gateway_are_not_recorded(
    start_proxy: StartProxy, enclave: LocalEnclave
) -> None:
    proxy = start_proxy(enclave)
    httpx.get(f"{proxy.url}/health", trust_env=False)
    httpx.get(f"{proxy.url}/nowhere", trust_env=False)
    httpx.get(f"{proxy.base_url}/models", headers={"host": "evil.example"}, trust_env=False)
    assert proxy.log.latest() == []
    httpx.get(f"{proxy.base_url}/models", trust_env=False)
    assert (latest(proxy).status, latest(proxy).error, latest(proxy).attempts) == (401, "invalid_api_key", 0)


def test_the_log_keeps_the_latest_records_the_newest_first() -> None:
    log = RequestLog(3)
    for number in range(5):
        log.add(RequestRecord(str(number)))
    assert [record.route for record in log.latest()] == ["4", "3", "2"]


async def test_a_subscription_yields_a_record_at_its_start_first_token_and_end() -> None:
    log = RequestLog()
    with log.subscribe() as changes:
        record = RequestRecord("/v1/models")
        states = []
        for step in (
            lambda: log.add(record),
            lambda: log.first_token(record),
            lambda: log.end(record, "done"),
        ):
            step()
            changed = await asyncio.wait_for(anext(changes), 1)
            states.append((changed.state, changed.time_to_first_token is not None))
        assert states == [("running", False), ("running", True), ("done", True)]
        log.end(record, "disconnected")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(changes), 0.05)
        assert record.state == "done", "it ends once"
    log.add(RequestRecord("/v1/models"))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(changes), 0.05)


async def test_a_subscription_that_is_not_read_is_bounded() -> None:
    log = RequestLog(5)
    with log.subscribe() as changes:
        for _ in range(1000):
            log.add(RequestRecord("/v1/models"))
        assert len(changes._pending) <= 200
        first = await anext(changes)
        assert isinstance(first, RequestRecord)


async def test_the_repr_of_a_call_shows_neither_its_api_key_nor_its_body() -> None:
    async def receive() -> Any:
        return {"type": "http.request", "body": b"zebra"}

    async def send(message: Any) -> None:
        del message

    scope = {"type": "http", "headers": [(b"transfer-encoding", b"chunked"), (b"cookie", b"zebra")]}
    body = RequestBody(scope, receive, 10, BodyMemory(10))
    assert await body.read() == b"zebra"
    call = Call(scope, "sk_test_zebra", body, RequestRecord("/v1/models"), RequestLog(), send, ["zebra"])
    assert "zebra" not in repr(call) + repr(RequestContext(call.record, "sk_test_zebra"))
