"""The enclave over real sockets: it opens and checks requests, and seals every chunk."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

import httpx
import pytest
from support.raw_client import CHAT, RawClient, eventually, params, validator
from support.scripted_upstream import Upstream, chunk, usage_chunk

from prem_core._crypto.xwing import PrivateKey, PublicKey
from prem_core._errors import ConfigurationError
from prem_core._protocol.assumptions import KEY_ROTATED_PATTERN
from prem_core.enclave import Engine, EngineError, EngineRequest, LocalEnclave
from prem_core.enclave.enclave import _metered

Run = Callable[..., RawClient]
PROMPT = "The zebra is striped. What is striped?"


def error_envelope(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    envelope: dict[str, Any] = response.json()
    assert envelope["status"] == status
    assert envelope["support_id"]
    return envelope


# Keys


def test_the_enclave_publishes_its_public_key(shared: RawClient) -> None:
    published = shared.http.get(f"{shared.prem.enclave_url}/publicKey").json()
    assert published == {"publicKey": bytes(shared.prem.public_key).hex()}


def test_a_given_private_key_is_used(run: Run) -> None:
    key = PrivateKey(bytes(32))
    wire = run(private_key=key)
    assert wire.prem.public_key == key.public_key()
    sealed, response = wire.chat(params())
    assert sealed.chunks(response)


def test_every_enclave_has_its_own_key_and_api_key(run: Run) -> None:
    one, two = run(), run()
    assert one.prem.public_key != two.prem.public_key
    assert one.prem.api_key != two.prem.api_key
    for here, there in ((one, two), (two, one)):
        sealed, response = here.chat(params())
        assert sealed.chunks(response)
        error_envelope(there.post(sealed.body), 400)
        error_envelope(there.post(sealed.body, headers=here.headers), 401)


def test_after_key_rotation_a_request_sealed_to_the_old_key_does_not_open(run: Run) -> None:
    wire = run()
    old = wire.seal(params())
    assert wire.prem.rotate_key() == wire.prem.public_key
    envelope = error_envelope(wire.post(old.body), 400)
    assert envelope["error"] == "failed to decrypt: the enclave key has expired"
    assert KEY_ROTATED_PATTERN.search(envelope["error"])
    published = wire.http.get(f"{wire.prem.enclave_url}/publicKey").json()["publicKey"]
    assert published == bytes(wire.prem.public_key).hex()
    sealed, response = wire.chat(params())
    assert sealed.chunks(response)


def test_an_open_stream_continues_after_key_rotation(run: Run, upstream: Upstream) -> None:
    wire = run(upstream=upstream.url)
    upstream.stalls(chunk("one"))
    with wire.stream(params()) as (sealed, response):
        piece = next(response.iter_raw())
        wire.prem.rotate_key()
        assert sealed.open_hex(piece.split(b"data: ")[1].strip())["choices"][0]["delta"]["content"] == "one"


# Requests that do not open


@pytest.mark.parametrize("field", ["encryptedInference", "cipherText", "nonce"])
@pytest.mark.parametrize("value", ["", "0", "zz", "é", "00" * 15, "00" * 5000])
def test_a_field_that_is_not_hex_of_the_right_length_is_400(
    shared: RawClient, field: str, value: str
) -> None:
    body = {**shared.seal(params()).body, field: value}
    envelope = error_envelope(shared.post(body), 400)
    if (field, value) != ("encryptedInference", "00" * 5000):
        assert list(envelope["validator"]) == [field]
        assert not KEY_ROTATED_PATTERN.search(envelope["error"])


@pytest.mark.parametrize("field", ["encryptedInference", "cipherText", "nonce"])
@pytest.mark.parametrize("position", [0, -1])
def test_a_changed_byte_in_any_field_is_the_same_400(shared: RawClient, field: str, position: int) -> None:
    sealed = shared.seal(params())
    raw = bytearray.fromhex(sealed.body[field])
    raw[position] ^= 1
    envelope = error_envelope(shared.post({**sealed.body, field: raw.hex()}), 400)
    assert envelope["error"] == "failed to decrypt: the enclave key has expired"
    assert envelope["validator"] is None


def test_upper_case_hex_is_accepted(shared: RawClient) -> None:
    sealed = shared.seal(params())
    body = {name: value.upper() for name, value in sealed.body.items()}
    assert sealed.chunks(shared.post(body))


# Invalid requests


@pytest.mark.parametrize(
    "plaintext", [b"", b"{", b"\xff", b'{"model": NaN}', b"[" * 100_000, b'"text"', b"null"]
)
def test_a_plaintext_that_is_not_a_json_object_is_400(shared: RawClient, plaintext: bytes) -> None:
    sealed = shared.seal(plaintext)
    envelope = error_envelope(shared.post(sealed.body), 400)
    assert "encryptedInference" in envelope["error"]
    assert not KEY_ROTATED_PATTERN.search(envelope["error"])


REFUSED: list[tuple[Mapping[str, Any], str, str]] = [
    ({"temperature": 3}, "temperature", "must be at most 2"),
    ({"temperature": None}, "temperature", "must be of type number"),
    ({"n": 0}, "n", "must be at least 1"),
    ({"messages": []}, "messages", "must have at least 1 items"),
    ({"model": 1}, "model", "must be of type string"),
    ({"top_logprobs": 1.5}, "top_logprobs", "must be of type integer"),
    ({"stop": ["a"] * 5}, "stop", "must have at most 4 items"),
    ({"stop": 5}, "stop", "must be of type string or array or null"),
    ({"parallel_tool_calls": True}, "encryptedInference", "must not have parallel_tool_calls"),
    ({"zebra": 1}, "encryptedInference", "must not have a name that the schema does not define"),
    ({"metadata": {"zebra": "z" * 513}}, "metadata.*", "must be at most 512 characters long"),
    ({"logit_bias": {"zebra": "z"}}, "logit_bias.*", "must be of type number"),
    ({"tool_choice": "zebra"}, "tool_choice", 'must be one of "none", "auto", "required"'),
    ({"tool_choice": {"type": "zebra"}}, "tool_choice.type", 'must be one of "function", "custom"'),
    ({"tool_choice": {"type": "function"}}, "tool_choice", "must have function"),
    ({"tools": [{"type": "function", "function": {}}]}, "tools.0.function", "must have name"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "must have json_schema"),
    (
        {"reasoning_effort": "zebra"},
        "reasoning_effort",
        'must be one of "none", "minimal", "low", "medium", "high"',
    ),
]


@pytest.mark.parametrize(("changed", "path", "rule"), REFUSED, ids=lambda value: str(value)[:40])
def test_an_invalid_parameter_is_400_with_its_path_and_rule(
    shared: RawClient, changed: Mapping[str, Any], path: str, rule: str
) -> None:
    _, response = shared.chat({**params(), **changed})
    envelope = error_envelope(response, 400)
    assert envelope["validator"] == {path: rule}
    assert envelope["error"] == f"Invalid request: {path} {rule}"
    assert "zebra" not in response.text


MESSAGES: list[tuple[Any, str, str]] = [
    ("zebra", "messages.0", "must be of type object"),
    ({"content": "zebra"}, "messages.0", "must have role"),
    (
        {"role": "developer", "content": "zebra"},
        "messages.0.role",
        'must be one of "system", "user", "assistant", "tool", "function"',
    ),
    ({"role": "user"}, "messages.0", "must have content"),
    ({"role": "tool", "content": "zebra"}, "messages.0", "must have tool_call_id"),
    ({"role": "assistant", "content": None}, "messages.0.content", "must be of type string or array"),
    ({"role": "user", "content": [{"type": "text"}]}, "messages.0.content.0", "must have text"),
    (
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "zebra", "detail": "zebra"}}],
        },
        "messages.0.content.0.image_url.detail",
        'must be one of "low", "high", "auto"',
    ),
    (
        {"role": "system", "content": [{"type": "image_url", "image_url": {"url": "zebra"}}]},
        "messages.0.content.0.type",
        'must be one of "text"',
    ),
    (
        {
            "role": "assistant",
            "tool_calls": [{"id": "zebra", "type": "function", "function": {"name": "zebra"}}],
        },
        "messages.0.tool_calls.0.function",
        "must have arguments",
    ),
]


@pytest.mark.parametrize(("message", "path", "rule"), MESSAGES, ids=[rule for *_, rule in MESSAGES])
def test_an_invalid_message_is_explained_by_the_closest_alternative_of_the_schema(
    shared: RawClient, message: Any, path: str, rule: str
) -> None:
    _, response = shared.chat({**params(), "messages": [message]})
    assert error_envelope(response, 400)["validator"].get(path) == rule, response.text
    assert "zebra" not in response.text


@pytest.mark.parametrize("model", ["zebra", "openai/whisper-large-v3"])
def test_an_unknown_chat_model_is_404_without_naming_it(shared: RawClient, model: str) -> None:
    _, response = shared.chat({**params(), "model": model})
    error_envelope(response, 404)
    assert model not in response.text


def test_an_engine_error_before_the_first_chunk_is_an_error_envelope(shared: RawClient) -> None:
    _, response = shared.chat(params(function_call={"name": "zebra"}, functions=[{"name": "zebra"}]))
    envelope = error_envelope(response, 400)
    validator("error-envelope").validate(envelope)
    assert envelope["log"] == {"type": "invalid_request_error"}
    assert "zebra" not in response.text


# Responses


def test_chunks_are_sealed_under_the_requests_secret_and_nonce_and_match_the_schema(
    shared: RawClient,
) -> None:
    sealed, response = shared.chat(params(PROMPT, stream_options={"include_usage": True}))
    chunks = sealed.chunks(response)
    schema = validator("chat-chunk")
    for each in chunks:
        schema.validate(each)
    text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
    assert "zebra" in text
    assert chunks[-1]["usage"]["total_tokens"] > 0
    assert b"zebra" not in response.content


def test_usage_is_sent_where_requested_and_in_every_response_without_stream(
    run: Run, upstream: Upstream
) -> None:
    wire = run(upstream=upstream.url, whole_replies="stream")
    upstream.respond_with(chunk("hi", usage=usage_chunk(3)["usage"]), chunk(finish="stop"), usage_chunk(7))

    def totals(**more: Any) -> list[int]:
        sealed, response = wire.chat(params(**more))
        return [c["usage"]["total_tokens"] for c in sealed.chunks(response) if c.get("usage")]

    assert totals() == []
    assert totals(stream_options={"include_usage": False}) == []
    assert totals(stream_options={"include_usage": True}) == [3, 7]
    assert totals(stream=False) == [3, 7]


@pytest.mark.parametrize(
    ("chunks", "tokens"),
    [
        ([], 0),
        ([chunk("a"), chunk("b")], 2),
        ([chunk("a"), usage_chunk(7)], 7),
        ([chunk("a", usage=None)], 1),
    ],
)
async def test_the_meter_is_called_with_the_usage_or_else_the_number_of_chunks(
    chunks: list[dict[str, Any]], tokens: int
) -> None:
    async def answer() -> AsyncGenerator[dict[str, Any], None]:
        for each in chunks:
            yield each

    charged: list[int] = []
    async for _ in _metered(answer(), charged.append, show_usage=False):
        assert not charged
    assert charged == [tokens]


async def test_the_meter_is_called_for_a_stream_that_is_closed_early() -> None:
    async def answer() -> AsyncGenerator[dict[str, Any], None]:
        while True:
            yield chunk("a")

    charged: list[int] = []
    async with aclosing(_metered(answer(), charged.append, show_usage=False)) as metered:
        await anext(metered)
        await anext(metered)
    assert charged == [2]


def test_without_stream_the_response_can_be_an_event_stream(run: Run) -> None:
    sealed, response = run(whole_replies="stream").chat(params(PROMPT, stream=False))
    assert sealed.chunks(response)


def test_without_stream_the_response_is_an_envelope_sealed_under_a_fresh_nonce(shared: RawClient) -> None:
    sealed, response = shared.chat(params(PROMPT, stream=False))
    envelope = response.json()
    validator("response-envelope").validate(envelope)
    data = envelope["data"]
    assert set(data) == {"encryptedResponse", "nonce"}
    assert data["nonce"] != sealed.nonce.hex()
    plaintext = sealed.keys.open(bytes.fromhex(data["encryptedResponse"]), bytes.fromhex(data["nonce"]))
    completion = json.loads(plaintext)
    assert completion["object"] == "chat.completion"
    assert "zebra" in completion["choices"][0]["message"]["content"]
    assert completion["choices"][0]["finish_reason"] == "stop"
    assert completion["usage"]["total_tokens"] > 0

    sealed, response = shared.chat(params(PROMPT))
    assert sealed.chunks(response), "with stream the events stay"


def test_a_truncated_response_is_never_a_complete_envelope(run: Run, upstream: Upstream) -> None:
    wire = run(whole_replies="envelope", upstream=upstream.url)
    upstream.respond_with(chunk("zebra"), {"error": {"message": "zebra", "type": "overloaded_error"}})
    _, response = wire.chat(params(stream=False))
    assert error_envelope(response, 503)["data"] is None
    assert "zebra" not in response.text


def test_the_envelope_has_complete_tool_calls(run: Run, upstream: Upstream) -> None:
    def piece(index: int, arguments: str, **more: Any) -> dict[str, Any]:
        call = {
            "index": index,
            "function": {"arguments": arguments, **more},
            **({"id": f"c{index}"} if more else {}),
        }
        return {**chunk(), "choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}

    wire = run(whole_replies="envelope", upstream=upstream.url)
    upstream.respond_with(
        piece(0, '{"a"', name="f"),
        piece(1, "{", name="g"),
        piece(0, ":1}"),
        piece(1, "}"),
        chunk(finish="tool_calls"),
    )
    sealed, response = wire.chat(params(stream=False))
    data = response.json()["data"]
    opened = sealed.keys.open(bytes.fromhex(data["encryptedResponse"]), bytes.fromhex(data["nonce"]))
    calls = json.loads(opened)["choices"][0]["message"]["tool_calls"]
    assert [(c["id"], c["function"]["name"], c["function"]["arguments"]) for c in calls] == [
        ("c0", "f", '{"a":1}'),
        ("c1", "g", "{}"),
    ]


def test_an_engine_error_in_mid_stream_is_a_sealed_error_event(run: Run) -> None:
    error = EngineError("the zebra is gone", status=503, type="overloaded_error")
    sealed, response = run(replies=[[chunk("one"), error]]).chat(params())
    names = sealed.events(response)
    assert [name for name, _ in names] == ["data", "error"]
    assert names[-1][1] == {"error": {"message": "the zebra is gone", "type": "overloaded_error"}}
    assert b"zebra" not in response.content


@pytest.mark.parametrize("chunks", [0, 1])
def test_an_internal_error_of_the_engine_does_not_quote_the_prompt(
    run: Run, caplog: pytest.LogCaptureFixture, chunks: int
) -> None:
    class Breaking(Engine):
        async def chat(self, request: EngineRequest) -> AsyncGenerator[dict[str, Any], None]:
            for _ in range(chunks):
                yield chunk("one")
            raise KeyError(request.text)

    caplog.set_level(logging.DEBUG)
    sealed, response = run(engine=Breaking()).chat(params("zebra"))
    if chunks:
        assert sealed.events(response)[-1] == (
            "error",
            {"error": {"message": "the engine failed", "type": "server_error"}},
        )
    else:
        assert error_envelope(response, 500)["error"] == "Internal server error"
    assert "KeyError" in caplog.text
    assert "zebra" not in caplog.text + response.text


def test_a_slow_response_does_not_block_other_requests(run: Run) -> None:
    other_answered = threading.Event()
    wire = run(respond=lambda request: str(other_answered.wait(10)))
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(wire.chat, params())
        assert eventually(lambda: bool(wire.prem.requests))
        assert httpx.get(f"{wire.prem.enclave_url}/publicKey", trust_env=False).status_code == 200
        other_answered.set()
        sealed, response = slow.result()
        assert sealed.chunks(response)[0]["choices"][0]["delta"]["content"] == "True"


def test_concurrent_requests_get_their_own_responses(shared: RawClient) -> None:
    def ask(number: int) -> str:
        sealed, response = shared.chat(params(f"The code is {number}. What is the code?"))
        return "".join(
            c["choices"][0]["delta"].get("content") or "" for c in sealed.chunks(response) if c["choices"]
        )

    with ThreadPoolExecutor(16) as pool:
        for number, text in enumerate(pool.map(ask, range(1000, 1064)), 1000):
            assert str(number) in text


def test_nothing_of_a_prompt_is_logged(shared: RawClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(1)
    sealed, response = shared.chat(params(PROMPT))
    sealed.chunks(response)
    shared.chat(params(PROMPT, temperature=9))
    assert "zebra" not in caplog.text
    assert shared.prem.api_key not in caplog.text


# Start and stop


def test_stop_ends_open_streams(upstream: Upstream) -> None:
    upstream.stalls(chunk("hi"))
    before = set(threading.enumerate())
    prem = LocalEnclave(upstream=upstream.url).start()
    with httpx.Client(trust_env=False) as http:
        wire = RawClient(prem, http)
        with wire.stream(params()) as (_, response):
            pieces = response.iter_raw()
            assert next(pieces)
            prem.stop()
            started = set(threading.enumerate()) - before
            assert "prem-local-enclave" not in {thread.name for thread in started}
            with pytest.raises(httpx.TransportError):
                list(pieces)
    assert upstream.left.wait(1)


def test_a_stopped_enclave_leaves_no_thread_and_no_port(http: httpx.Client) -> None:
    before = set(threading.enumerate())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with LocalEnclave() as prem:
            url = prem.gateway_url
            sealed, response = RawClient(prem, http).chat(params())
            sealed.chunks(response)
    assert eventually(lambda: set(threading.enumerate()) <= before)
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, trust_env=False)


def test_it_can_be_started_again_on_the_same_port(http: httpx.Client) -> None:
    prem = LocalEnclave()
    with prem:
        port = httpx.URL(prem.gateway_url).port
    assert port is not None
    prem = LocalEnclave(port=port)
    for _ in range(2):
        with prem:
            assert httpx.URL(prem.gateway_url).port == port
            sealed, response = RawClient(prem, http).chat(params())
            assert sealed.chunks(response)
    prem.stop()


def test_a_port_in_use_is_an_oserror_that_names_it() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} on 127.0.0.1"):
            LocalEnclave(port=port).start()
        with pytest.raises(OSError, match=f"port {port} on 127.0.0.1"):
            LocalEnclave(enclave_port=port).start()


def test_starting_twice_and_using_a_stopped_enclave_are_clear_errors(run: Run) -> None:
    with pytest.raises(RuntimeError, match="running already"):
        run().prem.start()
    for name in ("gateway_url", "enclave_url", "client_options"):
        with pytest.raises(RuntimeError, match="not running"):
            getattr(LocalEnclave(), name)


@pytest.mark.parametrize(
    "options",
    [
        {"api_key": "a b"},
        {"api_key": ""},
        {"api_key": "é"},
        {"tier": "PRO"},
        {"whole_replies": "xml"},
        {"upstream": "localhost:11434"},
        {"upstream": "ftp://localhost"},
        {"upstream": "http://localhost:port"},
    ],
)
def test_an_invalid_option_is_an_error_in_the_constructor(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        LocalEnclave(**options)


def test_the_repr_shows_no_secret(run: Run) -> None:
    prem = run(api_key="sk_test_zebra", upstream="http://localhost:1", upstream_api_key="lion").prem
    for text in (repr(prem), str(prem), repr(LocalEnclave())):
        assert "zebra" not in text
        assert "lion" not in text
    with pytest.raises(TypeError):
        pickle.dumps(prem)


def test_client_options_are_the_options_of_a_client(shared: RawClient) -> None:
    prem = shared.prem
    assert prem.client_options == {
        "api_key": prem.api_key,
        "gateway_url": prem.gateway_url,
        "enclave_url": prem.enclave_url,
    }
    assert prem.api_key.startswith("sk_test_local_")


async def test_it_is_an_async_context_manager() -> None:
    async with LocalEnclave() as prem, httpx.AsyncClient(trust_env=False) as http:
        with httpx.Client() as unused:
            sealed = RawClient(prem, unused).seal(params())
        headers = {"Authorization": f"Bearer {prem.api_key}"}
        replies = await asyncio.gather(
            *(http.post(prem.gateway_url + CHAT, json=sealed.body, headers=headers) for _ in range(8))
        )
        assert all(sealed.chunks(reply) for reply in replies)


def test_a_proxy_from_the_environment_is_not_used_for_loopback(
    run: Run, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    wire = run(upstream=upstream.url)
    sealed, response = wire.chat(params())
    assert sealed.chunks(response)


def test_importing_it_without_the_extra_names_the_install_command() -> None:
    program = (
        "import sys; sys.modules['starlette'] = None\n"
        "try: from prem_core.enclave import LocalEnclave\n"
        "except ImportError as error: print(error)"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert 'pip install "prem-encrypted[enclave]"' in shown
    assert "starlette" in shown


def test_the_public_key_can_be_copied_through_its_bytes(shared: RawClient) -> None:
    assert PublicKey(bytes(shared.prem.public_key)) == shared.prem.public_key
