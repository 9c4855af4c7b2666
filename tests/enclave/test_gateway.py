"""The gateway over real sockets: authentication, error envelopes, rate limits, and that it sees only sealed bytes."""

from __future__ import annotations

import ast
import json
import re
import socket
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.clock import Clock
from support.raw_client import CHAT, RawClient, eventually, params, validator
from support.scripted_upstream import Upstream, chunk, usage_chunk

import prem_core
from prem_core._serving import server
from prem_core._serving.json_values import MAX_JSON_VALUES
from prem_core._serving.server import Server, listen, url_of
from prem_core.enclave import Exchange
from prem_core.enclave.envelope import _uuid7
from prem_core.enclave.gateway import FORWARDING_HEADER, Gateway
from prem_core.enclave.middleware import ErrorAndHostMiddleware
from prem_core.enclave.quota import BASE, CONCURRENCY_MESSAGE, RATE_MESSAGE, Tier

PACKAGE = Path(prem_core.__file__).parent
AUDIO = "/rvenc/audio/transcriptions"
Run = Callable[..., RawClient]


def error_envelope(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error envelope, checked against the published schema where it covers the status."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    envelope: dict[str, Any] = response.json()
    schema = validator("error-envelope")
    if status in (400, 401, 403, 404):
        schema.validate(envelope)
    else:
        schema.validate({**envelope, "status": 400})
    assert envelope["status"] == status
    assert envelope["error"]
    assert re.fullmatch(r"support_[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", envelope["support_id"])
    return envelope


# Access


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer sk_test_wrong", "sk_test_wrong", "Basic eDp5"]
)
def test_a_missing_or_wrong_api_key_is_401(shared: RawClient, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    for method, path in (("POST", CHAT), ("POST", AUDIO), ("GET", "/models")):
        envelope = error_envelope(
            shared.http.request(method, shared.prem.gateway_url + path, headers=headers), 401
        )
        assert envelope["error"] == "Access token is missing or invalid"


def test_a_bare_api_key_without_bearer_is_accepted(shared: RawClient) -> None:
    response = shared.http.get(
        f"{shared.prem.gateway_url}/models", headers={"Authorization": shared.prem.api_key}
    )
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        (CHAT, "chats.completion"),
        (AUDIO, "audio.transcription"),
        ("/rvenc/audio/translations", "audio.translation"),
    ],
)
def test_a_missing_scope_is_403_and_named(run: Run, path: str, scope: str) -> None:
    wire = run(scopes={"files.encrypted.read"})
    assert scope in error_envelope(wire.post({}, path), 403)["error"]


def test_an_api_key_with_the_scope_is_accepted(run: Run) -> None:
    wire = run(scopes={"chats.completion"})
    sealed, response = wire.chat(params())
    assert sealed.chunks(response)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1", "localhost:1", ""])
@pytest.mark.parametrize("url", ["gateway_url", "enclave_url"])
def test_a_foreign_host_is_rejected_by_both_servers(shared: RawClient, host: str, url: str) -> None:
    target = getattr(shared.prem, url)
    path = "/models" if url == "gateway_url" else "/publicKey"
    headers = {**shared.headers, "Host": host.format(port=httpx.URL(target).port)}
    error_envelope(shared.http.get(target + path, headers=headers), 403)


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]"])
def test_every_loopback_host_name_is_accepted(shared: RawClient, name: str) -> None:
    headers = {**shared.headers, "Host": f"{name}:{httpx.URL(shared.prem.gateway_url).port}"}
    assert shared.http.get(f"{shared.prem.gateway_url}/models", headers=headers).status_code == 200


def test_both_servers_listen_on_loopback_only(shared: RawClient) -> None:
    assert shared.prem.gateway_url.startswith("http://127.0.0.1:")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; tells this machine's outer address
        except OSError:
            pytest.skip("this machine has no other address")
        outer = probe.getsockname()[0]
    if outer.startswith("127."):
        pytest.skip("this machine has no other address")
    for url in (shared.prem.gateway_url, shared.prem.enclave_url):
        with socket.socket() as sock:
            sock.settimeout(1)
            assert sock.connect_ex((outer, httpx.URL(url).port)) != 0


# Requests


def test_a_body_that_is_not_json_is_400(shared: RawClient) -> None:
    for body in (b"", b"{", b"\xff\xfe", b"[" * 200_000):
        error_envelope(shared.post(body), 400)


def test_a_body_without_a_published_field_is_400_naming_the_field(shared: RawClient) -> None:
    sealed = shared.seal(params())
    for name in sealed.body:
        body = {**sealed.body}
        del body[name]
        assert error_envelope(shared.post(body), 400)["validator"] == {"body": f"must have {name}"}
        assert error_envelope(shared.post({**sealed.body, name: 5}), 400)["validator"] == {
            name: "must be of type string"
        }
    assert error_envelope(shared.post([]), 400)["validator"] == {"body": "must be of type object"}


def test_an_unknown_field_is_400_without_quoting_it(shared: RawClient) -> None:
    envelope = error_envelope(shared.post({**shared.seal(params()).body, "my secret": "zebra"}), 400)
    assert "secret" not in json.dumps(envelope)
    assert "zebra" not in json.dumps(envelope)


def test_an_audio_body_without_the_published_fields_is_400(shared: RawClient) -> None:
    envelope = error_envelope(shared.post(shared.seal({}).body, AUDIO), 400)
    assert "encryptedFile" in envelope["validator"]["body"]


def test_a_request_on_a_connection_over_the_limit_is_503(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 2)
    wire = run()
    url = httpx.URL(wire.prem.gateway_url)
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(socket.create_connection((url.host, url.port or 0)))
        response = wire.get("/models")
    assert "too many connections" in error_envelope(response, 503)["error"]
    assert eventually(lambda: wire.get("/models").status_code == 200)


@pytest.mark.parametrize("sealed", [False, True], ids=["body", "sealed parameters"])
def test_more_json_values_than_the_limit_are_413(shared: RawClient, sealed: bool) -> None:
    many = b'{"messages": [%s]}' % b",".join([b"1"] * MAX_JSON_VALUES)
    response = shared.post(shared.seal(many).body if sealed else many)
    assert "500,000" in error_envelope(response, 413)["error"]


def test_a_body_over_the_limit_is_413_whether_its_length_is_declared_or_not(run: Run) -> None:
    wire = run(body_limit=100_000)

    def pieces() -> Any:
        for _ in range(200):
            yield b"x" * 1000

    error_envelope(wire.post(b"x" * 100_001), 413)
    response = wire.http.post(wire.prem.gateway_url + CHAT, content=pieces(), headers=wire.headers)
    error_envelope(response, 413)
    sealed, response = wire.chat(params())
    assert sealed.chunks(response), "the connection is still good"


def test_an_unknown_route_is_404_and_a_wrong_method_405(shared: RawClient) -> None:
    error_envelope(shared.get("/v1/chat/completions"), 404)
    error_envelope(shared.get(f"{CHAT}/"), 404)
    assert shared.http.delete(shared.prem.gateway_url + CHAT).headers["allow"] == "POST"
    error_envelope(shared.get(CHAT), 405)


def test_the_models_list_is_the_documented_envelope(shared: RawClient) -> None:
    envelope = shared.get("/models").json()
    validator("response-envelope").validate(envelope)
    names = {"id", "model", "name", "description", "type", "enabled", "input_modalities", "price_config"}
    assert all(set(entry) == names for entry in envelope["data"])
    assert {entry["model"]: entry["type"] for entry in envelope["data"]} == {
        "openai/gpt-oss-120b": "CHAT",
        "openai/whisper-large-v3": "AUDIO_TRANSCRIPTION",
        "prem-local/quoting": "CHAT",
    }


def test_the_models_list_can_be_filtered_by_type(shared: RawClient) -> None:
    def listed(kind: str) -> list[str]:
        return [entry["model"] for entry in shared.get("/models", params={"type": kind}).json()["data"]]

    assert listed("CHAT") == ["openai/gpt-oss-120b", "prem-local/quoting"]
    assert listed("AUDIO_TRANSCRIPTION") == ["openai/whisper-large-v3"]
    assert listed("IMAGE") == []
    assert "type" in error_envelope(shared.get("/models", params={"type": "chat"}), 400)["validator"]


# Forwarding


def serve_gateway(enclave_url: str, *apps: tuple[Any, socket.socket], tier: Tier | None = None) -> Server:
    """A gateway with the key ``k`` in front of `enclave_url`, and further applications behind it."""
    enclave = httpx.AsyncClient(base_url=enclave_url, trust_env=False)
    gateway = Gateway(api_key="k", scopes=None, models=(), tier=tier, enclave=enclave, forwarding_secret="h")
    sock = listen()
    app = ErrorAndHostMiddleware(gateway, sock.getsockname()[1], 1000)
    return Server((app, sock), *apps, closers=[enclave.aclose])


SEALED = {"encryptedInference": "", "cipherText": "", "nonce": ""}


def test_an_unreachable_enclave_is_503(http: httpx.Client) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with serve_gateway(url_of(unused), tier=Tier()) as server:
            for _ in range(5):
                response = http.post(server.urls[0] + CHAT, json=SEALED, headers={"Authorization": "k"})
                error_envelope(response, 503)


def test_a_response_truncated_by_the_enclave_is_truncated_for_the_client(http: httpx.Client) -> None:
    async def breaks(scope: Any, receive: Any, send: Any) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", b"text/event-stream")],
            }
        )
        await send({"type": "http.response.body", "body": b"event: data\n", "more_body": True})

    sock = listen()
    with serve_gateway(url_of(sock), (breaks, sock)) as server:
        with pytest.raises(httpx.RemoteProtocolError):
            http.post(server.urls[0] + CHAT, json=SEALED, headers={"Authorization": "k"})


def test_a_disconnect_during_the_request_body_is_recorded_and_not_logged(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Exchange] = []
    wire = run(on_exchange=seen.append)
    url = httpx.URL(wire.prem.gateway_url)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1:{url.port}\r\nAuthorization: {wire.prem.api_key}\r\n"
    with socket.create_connection(("127.0.0.1", url.port or 0)) as sock:
        sock.sendall(f"{head}Expect: 100-continue\r\nContent-Length: 1000\r\n\r\n".encode())
        assert sock.recv(1000).startswith(b"HTTP/1.1 100 "), "the gateway reads the body"
        sock.sendall(b"{")
    assert eventually(lambda: len(seen) == 1)
    assert (seen[0].status, seen[0].request_body) == (0, b"{")
    assert wire.get("/models").status_code == 200
    assert not caplog.records


def test_the_enclave_rejects_requests_that_bypass_the_gateway(shared: RawClient) -> None:
    body = shared.seal(params()).body
    for headers in ({}, shared.headers, {FORWARDING_HEADER: "guess"}):
        error_envelope(shared.http.post(shared.prem.enclave_url + CHAT, json=body, headers=headers), 403)


def imports(module: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_the_gateway_imports_no_cryptography() -> None:
    reached: set[str] = set()
    waiting = ["prem_core.enclave.gateway"]
    while waiting:
        name = waiting.pop()
        path = PACKAGE.parent.joinpath(*name.split(".")).with_suffix(".py")
        if name in reached or not path.is_file():
            continue
        reached.add(name)
        for found in imports(path):
            assert found.partition(".")[0] not in ("nacl", "cryptography"), f"{name} imports {found}"
            waiting.append(found)
    assert "prem_core.enclave.schema_check" in reached
    assert not reached & {"prem_core._crypto.xwing", "prem_core._crypto.keys", "prem_core.enclave.enclave"}


def test_the_gateway_sees_only_sealed_bytes(run: Run) -> None:
    seen: list[Exchange] = []
    wire = run(on_exchange=seen.append)
    sealed, response = wire.chat(params("The zebra is striped. What is striped?"))
    assert "zebra" in json.dumps(sealed.chunks(response))
    (exchange,) = seen
    assert (exchange.method, exchange.path, exchange.status) == ("POST", CHAT, 200)
    assert json.loads(exchange.request_body) == sealed.body
    assert exchange.response_body == response.content
    assert "authorization" not in exchange.request_headers
    for part in (exchange.request_body, exchange.response_body, repr(exchange).encode()):
        assert b"zebra" not in part
        assert wire.prem.api_key.encode() not in part


def test_rejected_requests_are_recorded(run: Run) -> None:
    seen: list[Exchange] = []
    wire = run(on_exchange=seen.append)
    response = wire.get("/nowhere")
    assert [(e.path, e.status, e.response_body) for e in seen] == [("/nowhere", 404, response.content)]


def test_an_on_exchange_callback_that_raises_does_not_affect_responses(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(exchange: Exchange) -> None:
        raise ZeroDivisionError

    wire = run(on_exchange=fail)
    assert wire.get("/models").status_code == 200
    assert "on_exchange" in caplog.text


# Limits


def test_the_base_tier_answers_429_with_retry_after_and_then_recovers(run: Run, clock: Clock) -> None:
    wire = run(tier=Tier(BASE, clock))
    for _ in range(5):
        sealed, response = wire.chat(params())
        sealed.chunks(response)
    _, response = wire.chat(params())
    assert error_envelope(response, 429)["error"] == RATE_MESSAGE
    assert response.headers["retry-after"] == "1"
    clock.now += 1
    sealed, response = wire.chat(params())
    assert sealed.chunks(response)


def test_tokens_used_are_charged_to_the_tier(run: Run, clock: Clock, upstream: Upstream) -> None:
    wire = run(tier=Tier(BASE, clock), upstream=upstream.url)
    upstream.respond_with(chunk("hi", finish="stop"), usage_chunk(76_000))
    sealed, response = wire.chat(params())
    sealed.chunks(response)
    _, response = wire.chat(params())
    assert error_envelope(response, 429)["error"] == RATE_MESSAGE
    assert response.headers["retry-after"] == "61"


def test_a_sixth_open_stream_is_rejected_until_a_disconnect_frees_its_slot(
    run: Run, clock: Clock, upstream: Upstream
) -> None:
    wire = run(tier=Tier(BASE, clock), upstream=upstream.url)
    upstream.stalls(chunk("hi"))
    with ThreadPoolExecutor(5) as pool:
        streams = [wire.stream(params()) for _ in range(5)]
        # Kept: an iterator that is garbage-collected closes its response.
        pieces = [r.iter_raw() for _, r in pool.map(lambda stream: stream.__enter__(), streams)]
        assert all(next(piece) for piece in pieces)
        _, sixth = wire.chat(params())
        assert error_envelope(sixth, 429)["error"] == CONCURRENCY_MESSAGE
        assert int(sixth.headers["retry-after"]) >= 1
        for stream in streams:
            stream.__exit__(None, None, None)
    assert upstream.left.wait(5), "the disconnect reaches the engine"
    upstream.respond_with(chunk("hi", finish="stop"))
    clock.now += 5
    sealed, response = wire.chat(params())
    assert sealed.chunks(response)


def test_a_disconnect_before_the_first_chunk_cancels_the_request(run: Run, upstream: Upstream) -> None:
    seen: list[Exchange] = []
    wire = run(upstream=upstream.url, on_exchange=seen.append)
    upstream.stalls()
    with pytest.raises(httpx.ReadTimeout):
        wire.http.post(
            wire.prem.gateway_url + CHAT, json=wire.seal(params()).body, headers=wire.headers, timeout=0.3
        )
    assert upstream.left.wait(2)
    assert eventually(lambda: len(seen) == 1)
    assert seen[0].status == 0


# The parts


def test_support_ids_are_version_7_uuids_ordered_by_time() -> None:
    times = [0, 1, 1_700_000_000_000, (1 << 48) - 1]
    clock = iter(ms * 1_000_000 for ms in times)
    ids = [_uuid7(clock.__next__) for _ in times]
    assert ids == sorted(ids)
    for made, ms in zip(ids, times, strict=True):
        assert (made.version, made.variant, made.int >> 80) == (7, uuid.RFC_4122, ms)
    assert _uuid7() != _uuid7()
