"""`nonce_reuse` in the proxy: whole answers for streaming callers, keep-alive comments, errors, and the log line."""

from __future__ import annotations

import json
import logging
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from support.fake_gateway import FakeGateway
from support.proxies import MODEL, StartProxy, chat, headers, proxy_for
from support.waiting import eventually
from support.wire_schemas import Opened

from prem_core import ConfigurationError
from prem_core._protocol import retry
from prem_core._protocol.masking import MIN_MASK
from prem_core._protocol.nonce_reuse import REPLY_FORMS, ProbeSubject
from prem_core.enclave import EngineError, LocalEnclave, ScriptedEngine, reply, tool_call
from prem_core.proxy import LocalProxy
from prem_core.proxy.wire import CapturingClient

CHAT = "/v1/chat/completions"
ZEBRA = "Context: The zebra is striped. Question: What is striped?"
USAGE = {"stream_options": {"include_usage": True}}


@pytest.fixture(autouse=True)
def no_outcome_known() -> Iterator[None]:
    """No test uses the outcome of another test's probe."""
    REPLY_FORMS.clear()
    yield
    REPLY_FORMS.clear()


@pytest.fixture
def whole_proxy(
    start_proxy: StartProxy, scripted_enclave: LocalEnclave, script: ScriptedEngine
) -> LocalProxy:
    """A proxy with nonce_reuse="error" that does not retry."""
    del script
    return start_proxy(scripted_enclave, nonce_reuse="error", max_retries=0)


@pytest.fixture
def whole_client(whole_proxy: LocalProxy, scripted_enclave: LocalEnclave) -> Iterator[openai.OpenAI]:
    """The official client of `whole_proxy`."""
    with openai.OpenAI(
        base_url=whole_proxy.base_url, api_key=scripted_enclave.api_key, max_retries=0
    ) as official:
        yield official


@pytest.fixture
def comments_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy sends a comment every 20 milliseconds."""
    monkeypatch.setattr("prem_core.proxy.call.KEEP_ALIVE_SECONDS", 0.02)


def after_comments(proxy: LocalProxy, answer: Any) -> Callable[[Any], Any]:
    """Answer after the proxy has sent a few comments."""

    def respond(request: Any) -> Any:
        assert eventually(lambda: proxy.log.latest()[0].response_bytes > 50)
        return answer

    return respond


def requested(exchange: Any) -> dict[str, Any]:
    return Opened.request(exchange.request_body).params


# Whole answers


def test_a_streaming_caller_gets_a_whole_answer_and_the_gateway_is_not_asked_for_a_stream(
    start_proxy: StartProxy, enclave: LocalEnclave, seen: Any
) -> None:
    proxy = start_proxy(enclave, nonce_reuse="error")
    with openai.OpenAI(base_url=proxy.base_url, api_key=enclave.api_key, max_retries=0) as official:
        chunks = list(official.chat.completions.create(**chat(ZEBRA), stream=True, **USAGE))
    assert "zebra" in "".join(each.choices[0].delta.content or "" for each in chunks if each.choices)
    assert chunks[-1].usage is not None
    probe, prompt = seen.chats
    assert "zebra" not in json.dumps(requested(probe))
    assert "zebra" in json.dumps(requested(prompt))
    for each in (probe, prompt):
        assert requested(each).keys().isdisjoint({"stream", "stream_options"})
        assert each.request_headers["accept"] == "application/json"
    record = proxy.log.latest()[0]
    assert record.attempts == 2
    # The prompt's bytes, not those of the probe before it.
    assert record.gateway_request.size == len(prompt.request_body)
    assert prompt.request_body.startswith(record.gateway_request.head)
    assert record.gateway_response.size == len(prompt.response_body)


async def test_tool_calls_and_reasoning_of_a_whole_answer_reach_an_async_client(
    whole_proxy: LocalProxy, scripted_enclave: LocalEnclave, script: ScriptedEngine
) -> None:
    script.respond = lambda request: reply(
        "One.", reasoning="Two.", tool_calls=[tool_call("look", a=1), tool_call("look", a=2)]
    )
    async with openai.AsyncOpenAI(
        base_url=whole_proxy.base_url, api_key=scripted_enclave.api_key, max_retries=0
    ) as official:
        stream = await official.chat.completions.create(**chat(), stream=True)
        chunks = [each async for each in stream]
    first = chunks[0].choices[0].delta
    assert (first.content, first.reasoning_content) == ("One.", "Two.")
    assert [call.function.arguments for call in first.tool_calls] == ['{"a": 1}', '{"a": 2}']
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("nonce_reuse", ["warn", "error", "allow"])
@pytest.mark.parametrize("stream", [{}, {"stream": False}, {"stream": None}])
def test_a_caller_that_asks_for_no_stream_causes_none(
    start_proxy: StartProxy, enclave: LocalEnclave, seen: Any, nonce_reuse: str, stream: dict[str, Any]
) -> None:
    proxy = start_proxy(enclave, nonce_reuse=nonce_reuse)
    response = httpx.post(
        proxy.url + CHAT, json=chat(ZEBRA, **stream), headers=headers(enclave), trust_env=False
    )
    assert response.json()["object"] == "chat.completion"
    for each in seen.chats:
        assert not requested(each).get("stream")
        assert each.request_headers["accept"].startswith("application/json")


def test_a_whole_answer_may_take_as_long_as_in_the_client(
    proxy: LocalProxy, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    timeouts: list[dict[str, float]] = []
    send = httpx.AsyncClient.send

    async def recording(self: Any, request: httpx.Request, **options: Any) -> httpx.Response:
        if isinstance(self, CapturingClient) and request.method == "POST":
            timeouts.append(dict(request.extensions["timeout"]))
        return await send(self, request, **options)

    monkeypatch.setattr(httpx.AsyncClient, "send", recording)
    client.chat.completions.create(**chat())
    assert timeouts == [{"connect": 30, "read": 600, "write": 30, "pool": 30}]


# Comments while a caller waits


@pytest.mark.usefixtures("comments_soon")
def test_comments_keep_the_connection_open_until_the_answer_is_whole(
    whole_proxy: LocalProxy, scripted_enclave: LocalEnclave, script: ScriptedEngine
) -> None:
    script.respond = after_comments(whole_proxy, "Hello")
    with httpx.stream(
        "POST",
        whole_proxy.url + CHAT,
        json=chat(stream=True),
        headers=headers(scripted_enclave),
        trust_env=False,
    ) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["x-prem-protection"] == "nonce=own"
        events = response.read().decode().split("\n\n")
    alive = events.count(": keep-alive")
    assert alive >= 2
    assert events[:alive] == [": keep-alive"] * alive
    protection, text, end, done, rest = events[alive:]
    fingerprint = scripted_enclave.public_key.fingerprint()
    assert protection.startswith(
        f": x-prem-protection: key={fingerprint}; source=fetched; attested=no; nonce=own"
    )
    assert json.loads(text.removeprefix("data: "))["choices"][0]["delta"]["content"] == "Hello"
    assert json.loads(end.removeprefix("data: "))["choices"][0]["finish_reason"] == "stop"
    assert (done, rest) == ("data: [DONE]", "")


@pytest.mark.usefixtures("comments_soon")
async def test_the_official_python_clients_read_a_stream_with_comments(
    whole_proxy: LocalProxy, scripted_enclave: LocalEnclave, script: ScriptedEngine
) -> None:
    options = {"base_url": whole_proxy.base_url, "api_key": scripted_enclave.api_key, "max_retries": 0}
    script.respond = after_comments(whole_proxy, "Hello")
    async with openai.AsyncOpenAI(**options) as official:
        chunks = [each async for each in await official.chat.completions.create(**chat(), stream=True)]
    assert chunks[0].choices[0].delta.content == "Hello"
    with openai.OpenAI(**options) as other:
        with other.chat.completions.stream(**chat()) as stream:
            assert stream.get_final_completion().choices[0].message.content == "Hello"


@pytest.mark.usefixtures("comments_soon")
def test_the_official_npm_client_reads_a_stream_with_comments_and_raises_the_error_after_them(
    npm_client: Path, whole_proxy: LocalProxy, scripted_enclave: LocalEnclave, script: ScriptedEngine
) -> None:
    script.respond = lambda request: after_comments(
        whole_proxy, EngineError("overloaded", status=503) if request.text == "fail" else "Hello"
    )(request)
    (npm_client / "comments.mjs").write_text("""
        import OpenAI, { APIError } from "openai";
        const [, , baseURL, apiKey] = process.argv;
        const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
        const texts = [];
        for (const content of ["hello", "fail"]) {
          const messages = [{ role: "user", content }];
          const stream = await client.chat.completions.create({ model: "m", messages, stream: true });
          try {
            for await (const chunk of stream) texts.push(chunk.choices[0].delta.content ?? "");
            texts.push("complete");
          } catch (error) {
            texts.push(error instanceof APIError ? error.error.type : String(error));
          }
        }
        console.log(JSON.stringify(texts));
    """)
    ended = subprocess.run(
        ["node", "comments.mjs", whole_proxy.base_url, scripted_enclave.api_key],
        cwd=npm_client,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert json.loads(ended.stdout) == ["Hello", "", "complete", "server_error"]


@pytest.mark.usefixtures("comments_soon")
def test_an_error_after_the_first_comment_is_an_event_without_done(
    whole_client: openai.OpenAI,
    whole_proxy: LocalProxy,
    scripted_enclave: LocalEnclave,
    script: ScriptedEngine,
) -> None:
    script.respond = after_comments(whole_proxy, EngineError("overloaded", status=503))
    with pytest.raises(openai.APIError, match="overloaded") as caught:
        list(whole_client.chat.completions.create(**chat(), stream=True))
    assert not isinstance(caught.value, openai.APIStatusError)
    body = httpx.post(
        whole_proxy.url + CHAT, json=chat(stream=True), headers=headers(scripted_enclave), trust_env=False
    ).text
    assert "[DONE]" not in body
    assert body.startswith(": keep-alive\n\n")
    assert set(json.loads(body.rpartition("data: ")[2])) == {"error"}
    assert (whole_proxy.log.latest()[0].state, whole_proxy.log.latest()[0].status) == ("failed", 200)


@pytest.mark.usefixtures("comments_soon")
def test_a_reply_under_its_requests_nonce_after_the_first_comment_ends_the_stream_with_an_error(
    start_proxy: StartProxy,
) -> None:
    with LocalEnclave(respond=lambda request: answer(request), whole_replies="stream") as enclave:
        # As if the probe had been answered with an envelope.
        subject = ProbeSubject("chat", MODEL)
        REPLY_FORMS.record(enclave.gateway_url, enclave.public_key, subject, own=True)
        proxy = start_proxy(enclave, nonce_reuse="error")
        answer = after_comments(proxy, "zebra")
        body = httpx.post(
            proxy.url + CHAT, json=chat(stream=True), headers=headers(enclave), trust_env=False
        ).text
    assert json.loads(body.rpartition("data: ")[2])["error"]["code"] == "nonce_reuse"
    assert "zebra" not in body


@pytest.mark.usefixtures("comments_soon")
def test_a_disconnect_between_comments_cancels_the_request(
    whole_proxy: LocalProxy, scripted_enclave: LocalEnclave, script: ScriptedEngine
) -> None:
    script.respond = lambda request: reply(delay=60)
    with httpx.Client(trust_env=False) as official:
        with official.stream(
            "POST", whole_proxy.url + CHAT, json=chat(stream=True), headers=headers(scripted_enclave)
        ) as response:
            parts = response.iter_raw()  # kept: httpx disconnects when the iterator is garbage-collected
            assert next(parts)
            # The first comments may come while the probe is on its way.
            assert eventually(lambda: script.requests)
    assert script.disconnected.wait(5)
    assert eventually(lambda: whole_proxy.log.latest()[0].state == "disconnected")


# Errors


def test_an_error_before_the_first_comment_has_its_status(
    whole_client: openai.OpenAI, script: ScriptedEngine
) -> None:
    create = whole_client.chat.completions.create
    with pytest.raises(openai.BadRequestError):
        create(**chat(temperature=9), stream=True)
    with pytest.raises(openai.AuthenticationError):
        whole_client.with_options(api_key="sk_test_wrong").chat.completions.create(**chat(), stream=True)
    script.respond = lambda request: EngineError("slow down", status=429, retry_after=7)
    with pytest.raises(openai.RateLimitError) as caught:
        create(**chat(), stream=True)
    assert caught.value.response.headers["retry-after"] == "7"


@pytest.mark.parametrize("streamed", [False, True])
def test_a_service_that_streams_gets_no_prompt_and_the_caller_a_502(
    start_proxy: StartProxy, streamed: bool
) -> None:
    engine = ScriptedEngine(respond=lambda request: "Hello")
    with LocalEnclave(engine=engine, whole_replies="stream") as enclave:
        proxy = start_proxy(enclave, nonce_reuse="error")
        response = httpx.post(
            proxy.url + CHAT, json=chat(stream=streamed), headers=headers(enclave), trust_env=False
        )
    assert response.status_code == 502
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("server_error", "nonce_reuse")
    assert "under the nonce of their request" in error["message"]
    assert response.headers["x-should-retry"] == "false"
    assert engine.requests == []
    assert proxy.log.latest()[0].error == "NonceReuseError"


# Settings


def test_the_environment_variable_applies_to_the_proxy(
    enclave: LocalEnclave, seen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREM_NONCE_REUSE", "error")
    with proxy_for(enclave) as proxy:
        monkeypatch.delenv("PREM_NONCE_REUSE")
        reply = httpx.post(
            proxy.url + CHAT, json=chat(stream=True), headers=headers(enclave), trust_env=False
        )
    assert reply.text.endswith("data: [DONE]\n\n")
    assert not any(requested(each).get("stream") for each in seen.chats)


def test_a_wrong_nonce_reuse_is_refused_when_the_proxy_is_made() -> None:
    with pytest.raises(ConfigurationError, match="nonce_reuse must be"):
        LocalProxy(nonce_reuse="never")  # type: ignore[arg-type]


@pytest.mark.parametrize("masking", [True, False])
def test_requests_are_masked_unless_the_proxy_was_made_without(
    start_proxy: StartProxy, enclave: LocalEnclave, seen: Any, masking: bool
) -> None:
    proxy = start_proxy(enclave, request_masking=masking)
    httpx.post(proxy.url + CHAT, json=chat(), headers=headers(enclave), trust_env=False)
    (saw,) = seen.chats
    assert (len(saw.request_body) > 2 * MIN_MASK) is masking  # in hex
    assert saw.request_body.startswith(proxy.log.latest()[0].gateway_request.head)


@pytest.mark.parametrize(("retry_after_send", "requests"), [(False, 1), (True, 3)])
def test_a_request_that_the_service_may_have_accepted_is_sent_again_only_with_retry_after_send(
    monkeypatch: pytest.MonkeyPatch, retry_after_send: bool, requests: int
) -> None:
    monkeypatch.setattr(retry, "FIRST_DELAY", 0.001)
    with FakeGateway(lambda call: call.disconnect()) as gateway:
        urls = {"gateway_url": gateway.url, "enclave_url": gateway.url}
        with LocalProxy(**urls, retry_after_send=retry_after_send) as proxy:
            key = {"authorization": "Bearer sk_test_1"}
            response = httpx.post(proxy.url + CHAT, json=chat(), headers=key, trust_env=False)
    assert (response.status_code, len(gateway.chats())) == (502, requests)
    assert response.headers["x-should-retry"] == "false"


# The log line


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.name == "prem_core.proxy"]


def test_the_first_reply_under_its_requests_nonce_is_logged_on_one_line(
    start_proxy: StartProxy, enclave: LocalEnclave, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    proxy = start_proxy(enclave)
    with openai.OpenAI(base_url=proxy.base_url, api_key=enclave.api_key, max_retries=0) as official:
        official.chat.completions.create(**chat(ZEBRA))
        assert lines(caplog) == []
        for _ in range(2):
            list(official.chat.completions.create(**chat(ZEBRA), stream=True))
    (line,) = lines(caplog)
    assert "\n" not in line
    assert "the gateway can read and replace it" in line
    assert "--nonce-reuse error" in line
    assert "zebra" not in line


def test_allow_logs_nothing(
    start_proxy: StartProxy, enclave: LocalEnclave, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = start_proxy(enclave, nonce_reuse="allow")
    with openai.OpenAI(base_url=proxy.base_url, api_key=enclave.api_key, max_retries=0) as official:
        list(official.chat.completions.create(**chat(ZEBRA), stream=True))
    assert lines(caplog) == []
