"""The engine that asks an OpenAI-compatible server, against a real one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, Response, StreamingResponse
from support.raw_client import RawClient, params, validator
from support.scripted_upstream import Upstream, chunk, usage_chunk

from prem_core._errors import ConfigurationError
from prem_core.enclave.engines.upstream import completions_url

Run = Callable[..., RawClient]


@pytest.fixture
def wire(run: Run, upstream: Upstream) -> RawClient:
    return run(upstream=upstream.url)


def contents(chunks: list[dict[str, Any]], name: str = "content") -> list[str]:
    return [
        c["choices"][0]["delta"][name] for c in chunks if c["choices"] and c["choices"][0]["delta"].get(name)
    ]


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("http://localhost:11434", "http://localhost:11434/v1/chat/completions"),
        ("http://localhost:11434/", "http://localhost:11434/v1/chat/completions"),
        ("http://localhost:8000/v1", "http://localhost:8000/v1/chat/completions"),
        ("http://localhost:8000/v1/", "http://localhost:8000/v1/chat/completions"),
        ("http://localhost:8000/v1/chat/completions", "http://localhost:8000/v1/chat/completions"),
        ("https://host.example/openai", "https://host.example/openai/v1/chat/completions"),
        ("https://host.example/v1beta/openai/", "https://host.example/v1beta/openai/chat/completions"),
    ],
)
def test_the_base_url_is_taken_with_or_without_v1(base: str, url: str) -> None:
    assert str(completions_url(base)) == url


@pytest.mark.parametrize(
    "base", ["", "zebra:1", "file:///zebra", "http://", "http://zebra:port", "ftp://u:zebra@h"]
)
def test_what_is_no_http_url_is_refused_without_repeating_it(base: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        completions_url(base)
    assert "zebra" not in str(caught.value)


def test_an_answer_is_streamed_through_and_satisfies_the_published_schema(
    wire: RawClient, upstream: Upstream
) -> None:
    upstream.respond_with(
        chunk("Hel", service_tier="default", prompt_token_ids=[1]),
        chunk("lo"),
        {"choices": [{"delta": {}, "finish_reason": "stop"}]},
        usage_chunk(9),
    )
    sealed, response = wire.chat(params(stream_options={"include_usage": True}))
    chunks = sealed.chunks(response)
    for each in chunks:
        validator("chat-chunk").validate(each)
    assert contents(chunks) == ["Hel", "lo"]
    assert chunks[2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[3]["usage"]["total_tokens"] == 9


def test_chunks_arrive_before_the_answer_is_whole(wire: RawClient, upstream: Upstream) -> None:
    upstream.stalls(chunk("first"))
    with wire.stream(params()) as (sealed, response):
        event = next(response.iter_raw())
    assert contents([sealed.open_hex(event.split(b"data: ")[1].strip())]) == ["first"]


def test_the_server_is_asked_what_the_client_sealed(wire: RawClient, upstream: Upstream) -> None:
    asked = params("A lone surrogate \ud800, and 你好.", model="llama3.2:1b", temperature=0.5, tools=[])
    sealed, response = wire.chat(asked)
    sealed.chunks(response)
    ((headers, body),) = upstream.requests
    assert body == {**asked, "stream": True, "stream_options": {"include_usage": True}}
    assert "authorization" not in headers


def test_the_upstream_key_is_sent_as_a_bearer_token(run: Run, upstream: Upstream) -> None:
    wire = run(upstream=f"{upstream.url}/v1", upstream_api_key="sk-up")
    sealed, response = wire.chat(params())
    sealed.chunks(response)
    assert upstream.requests[0][0]["authorization"] == "Bearer sk-up"


def test_reasoning_is_renamed_to_the_documented_field(wire: RawClient, upstream: Upstream) -> None:
    def thought(**delta: Any) -> dict[str, Any]:
        return {**chunk(), "choices": [{"index": 0, "delta": delta}]}

    upstream.respond_with(
        thought(reasoning="hm"), thought(reasoning_content="so", reasoning="no"), chunk("A")
    )
    sealed, response = wire.chat(params())
    chunks = sealed.chunks(response)
    assert contents(chunks, "reasoning_content") == ["hm", "so"]
    assert not contents(chunks, "reasoning")


@pytest.mark.parametrize(
    ("status", "seen"),
    [
        *((400, 400), (401, 503), (403, 503), (404, 404), (413, 413), (418, 400), (422, 400), (429, 429)),
        *((302, 503), (500, 500), (502, 503), (503, 503)),
    ],
)
def test_an_http_error_keeps_its_class_and_loses_its_words(
    wire: RawClient, upstream: Upstream, status: int, seen: int
) -> None:
    upstream.refuses(status, {"error": {"message": "the zebra is bad", "param": "zebra", "code": "zebra"}})
    _, response = wire.chat(params())
    assert response.status_code == response.json()["status"] == seen
    assert "zebra" not in response.text
    assert "upstream" in response.json()["error"]


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_passed_on(wire: RawClient, upstream: Upstream, status: int) -> None:
    upstream.refuses(status, Retry_After="17")
    _, response = wire.chat(params())
    assert (response.status_code, response.headers["retry-after"]) == (status, "17")


def test_a_refused_parameter_is_named_when_the_schema_knows_it(wire: RawClient, upstream: Upstream) -> None:
    upstream.refuses(400, {"error": {"message": "zebra", "param": "max_tokens"}})
    _, response = wire.chat(params())
    assert list(response.json()["validator"]) == ["max_tokens"]


@pytest.mark.parametrize(
    "error",
    [
        {"code": "context_length_exceeded", "message": "zebra"},
        {"message": "This model's maximum context length is 8192 tokens: zebra"},
        {"message": "the request exceeds the available context size"},
    ],
)
def test_a_prompt_that_is_too_long_is_said_to_be(
    wire: RawClient, upstream: Upstream, error: dict[str, str]
) -> None:
    upstream.refuses(400, {"error": error})
    _, response = wire.chat(params())
    assert response.status_code == 400
    assert "context window" in response.json()["error"]
    assert response.json()["log"] == {"type": "context_length_exceeded"}
    assert "zebra" not in response.text


@pytest.mark.parametrize("body", [None, [], "text", {"error": "text"}, {"error": {"param": [1]}}])
def test_any_body_of_an_error_can_be_read(wire: RawClient, upstream: Upstream, body: Any) -> None:
    upstream.refuses(400, body)
    _, response = wire.chat(params())
    assert response.status_code == 400


def test_a_server_that_cannot_be_reached_is_503(run: Run) -> None:
    wire = run(upstream="http://127.0.0.1:9")
    _, response = wire.chat(params())
    assert response.status_code == response.json()["status"] == 503


def test_a_server_that_does_not_stream_is_503(wire: RawClient, upstream: Upstream) -> None:
    upstream.refuses(200, {"object": "chat.completion"}, content_type="application/json")
    _, response = wire.chat(params())
    assert response.status_code == 503


def test_a_stream_that_ends_without_done_is_an_error_and_never_done(
    wire: RawClient, upstream: Upstream
) -> None:
    upstream.respond_with(chunk("Hel"), chunk("lo", finish="stop"), done=False)
    sealed, response = wire.chat(params())
    names = [name for name, _ in sealed.events(response)]
    assert names == ["data", "data", "error"]


def test_a_stream_that_breaks_is_an_error_and_never_done(wire: RawClient, upstream: Upstream) -> None:
    async def events() -> AsyncIterator[str]:
        yield f"data: {json.dumps(chunk('Hel'))}\n\n"
        raise ConnectionError

    upstream.answer = lambda body: StreamingResponse(events(), media_type="text/event-stream")
    sealed, response = wire.chat(params())
    *_, (name, value) = sealed.events(response)
    assert (name, value["error"]["type"]) == ("error", "service_unavailable")


def test_a_reported_error_after_a_chunk_is_sealed_with_the_servers_own_words(
    wire: RawClient, upstream: Upstream
) -> None:
    upstream.respond_with(chunk("Hel"), {"error": {"message": "the zebra ran", "type": "overloaded_error"}})
    sealed, response = wire.chat(params())
    events = sealed.events(response)
    assert [name for name, _ in events] == ["data", "error"]
    assert events[-1][1] == {"error": {"message": "the zebra ran", "type": "overloaded_error"}}
    assert b"zebra" not in response.content


@pytest.mark.parametrize("error", [{"message": "zebra", "type": "zebra"}, "zebra", {"type": ["zebra"]}])
def test_a_reported_error_before_any_chunk_is_an_envelope_in_our_words(
    wire: RawClient, upstream: Upstream, error: Any
) -> None:
    upstream.respond_with({"error": error})
    _, response = wire.chat(params())
    assert response.status_code == 500
    assert response.json()["log"] == {"type": "server_error"}
    assert "zebra" not in response.text


@pytest.mark.parametrize(
    "event", ["zebra", "[]", '{"choices": 5}', '{"choices": [5]}', '{"usage": 5}', "[" * 10_000]
)
def test_an_event_that_is_no_chunk_is_503(wire: RawClient, upstream: Upstream, event: str) -> None:
    upstream.respond_with(event)
    _, response = wire.chat(params())
    assert response.status_code == 503
    assert "zebra" not in response.text


def test_an_event_without_end_is_503(
    wire: RawClient, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prem_core.enclave.engines.upstream.MAX_EVENT_BYTES", 1000)
    upstream.respond_with(chunk("x" * 2000))
    _, response = wire.chat(params())
    assert response.status_code == 503


def test_a_server_that_keeps_the_answer_open_after_done_is_not_waited_for(
    wire: RawClient, upstream: Upstream
) -> None:
    async def events() -> AsyncIterator[str]:
        try:
            yield f"data: {json.dumps(chunk('hi', finish='stop'))}\n\ndata: [DONE]\n\n"
            await asyncio.sleep(60)
        finally:
            upstream.left.set()

    upstream.answer = lambda body: StreamingResponse(events(), media_type="text/event-stream")
    sealed, response = wire.chat(params())
    assert contents(sealed.chunks(response)) == ["hi"]
    assert upstream.left.wait(2)


def test_an_empty_answer_is_a_whole_one(wire: RawClient, upstream: Upstream) -> None:
    upstream.respond_with()
    sealed, response = wire.chat(params())
    assert sealed.chunks(response) == []


def test_hanging_up_reaches_the_server(wire: RawClient, upstream: Upstream) -> None:
    upstream.stalls(chunk("hi"))
    with pytest.raises(httpx.ReadTimeout):
        wire.http.post(
            f"{wire.prem.gateway_url}/rvenc/chat/completions",
            json=wire.seal(params()).body,
            headers=wire.headers,
            timeout=0.3,
        )
    assert upstream.left.wait(2)


def listed(wire: RawClient) -> httpx.Response:
    return wire.http.get(f"{wire.prem.gateway_url}/models", headers=wire.headers)


def test_the_models_list_is_the_servers_own(wire: RawClient, upstream: Upstream) -> None:
    upstream.models = JSONResponse(
        {"object": "list", "data": [{"id": "llama3.2:1b"}, {"id": "whisper-tiny"}]}
    )
    entries = listed(wire).json()["data"]
    assert [(entry["model"], entry["type"]) for entry in entries] == [
        ("llama3.2:1b", "CHAT"),
        ("whisper-tiny", "AUDIO_TRANSCRIPTION"),
    ]


def test_a_server_without_a_models_list_lists_none(wire: RawClient, upstream: Upstream) -> None:
    upstream.models = Response(status_code=404)
    assert listed(wire).json()["data"] == []


def test_names_given_to_the_enclave_are_listed_in_place_of_the_servers(run: Run, upstream: Upstream) -> None:
    upstream.models = JSONResponse({"data": [{"id": "llama3.2:1b"}]})
    assert [
        entry["model"] for entry in listed(run(upstream=upstream.url, models=["mine"])).json()["data"]
    ] == ["mine"]


@pytest.mark.parametrize(
    ("response", "status"),
    [
        (Response(status_code=500), 500),
        (Response(status_code=401), 503),
        (JSONResponse({"data": "zebra"}), 503),
        (JSONResponse(["zebra"]), 503),
        (Response("<html>zebra"), 503),
    ],
)
def test_a_models_list_that_cannot_be_had_is_an_error(
    wire: RawClient, upstream: Upstream, response: Response, status: int
) -> None:
    upstream.models = response
    answer = listed(wire)
    assert answer.status_code == status
    assert "upstream server" in answer.json()["error"]
    assert "zebra" not in answer.text


def test_the_models_list_of_a_server_that_cannot_be_reached_is_503(run: Run) -> None:
    assert listed(run(upstream="http://127.0.0.1:9")).status_code == 503
