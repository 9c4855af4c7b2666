"""Limits of the proxy: what one request, or many at once, can take from it."""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack

import httpx
import pytest
from support.proxies import StartProxy, chat, headers
from support.proxy_process import ProxyProcess
from support.waiting import SOON, eventually

from prem_core._serving import server
from prem_core._serving.json_values import MAX_JSON_VALUES
from prem_core._serving.request import MAX_BODIES
from prem_core.enclave import LocalEnclave, ScriptedEngine

CHAT = "/v1/chat/completions"

JSON = {"content-type": "application/json"}


def repeated(item: bytes, size: int) -> bytes:
    """A chat with as many messages as fit into about `size` bytes."""
    return b'{"model": "m", "messages": [%s]}' % b",".join([item] * (size // (len(item) + 1)))


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (repeated(b"{}", 700_000), 400),
        (repeated(b'{"role":"user","content":[{},{}]}', 1_500_000), 400),
        (repeated(b"{}", 24_000_000), 413),
        (repeated(b'""', 24_000_000), 413),
    ],
    ids=["messages", "parts", "24 MB of messages", "24 MB of strings"],
)
def test_a_request_of_invalid_items_is_rejected_within_little_memory(
    enclave: LocalEnclave, body: bytes, status: int
) -> None:
    with ProxyProcess(gateway_url=enclave.gateway_url, enclave_url=enclave.enclave_url) as proxy:
        with httpx.Client(base_url=proxy.base_url, trust_env=False, timeout=SOON) as http:
            nobodys = {"authorization": "Bearer nobodys", **JSON}
            assert http.post("chat/completions", json={}, headers=nobodys).status_code == 400
            before = proxy.peak()
            response = http.post("chat/completions", content=body, headers=nobodys)
            assert response.status_code == status, response.text
            assert proxy.peak() - before < 200_000_000
    assert proxy.errors == ""


def test_a_request_with_too_many_json_values_is_413_with_the_limit(http: httpx.Client) -> None:
    body = b'{"messages": [%s]}' % b",".join([b"1"] * MAX_JSON_VALUES)
    error = http.post(CHAT, content=body, headers=JSON)
    assert error.status_code == 413
    assert "500,000" in error.json()["error"]["message"]


def test_a_prompt_with_more_commas_than_that_is_accepted(
    scripted_http: httpx.Client, script: ScriptedEngine
) -> None:
    table = "1,2,3\n" * MAX_JSON_VALUES
    response = scripted_http.post(CHAT, json=chat(table))
    assert response.status_code == 200, response.text
    assert script.requests[-1].text == table


def test_a_connection_over_the_limit_is_503_and_may_be_retried(
    start_proxy: StartProxy, enclave: LocalEnclave, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 2)
    proxy = start_proxy(enclave)
    url = httpx.URL(proxy.url)
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(socket.create_connection((url.host, url.port or 0), timeout=SOON))
        response = httpx.get(f"{proxy.base_url}/models", headers=headers(enclave), trust_env=False)
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "proxy_overloaded"
    assert "too many connections" in response.json()["error"]["message"]
    assert response.headers["retry-after"] == "1"
    assert "x-should-retry" not in response.headers
    assert eventually(
        lambda: (
            httpx.get(f"{proxy.base_url}/models", headers=headers(enclave), trust_env=False).status_code
            == 200
        )
    )


def test_more_request_bodies_than_the_proxy_holds_at_once_are_503(
    start_proxy: StartProxy, scripted_enclave: LocalEnclave, script: ScriptedEngine
) -> None:
    del script
    limit = 1000
    proxy = start_proxy(scripted_enclave, body_limit=limit)
    url = httpx.URL(proxy.url)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {url.host}:{url.port}\r\nContent-Type: application/json\r\n"
    head += f"Authorization: Bearer nobodys\r\nContent-Length: {limit}\r\n\r\n"

    def status() -> int:
        return httpx.post(
            proxy.url + CHAT, json=chat(), headers=headers(scripted_enclave), trust_env=False
        ).status_code

    with ExitStack() as stack:
        for _ in range(MAX_BODIES):
            sock = stack.enter_context(socket.create_connection((url.host, url.port or 0), timeout=SOON))
            sock.sendall(head.encode() + b" " * (limit - 1))
        assert eventually(lambda: status() == 503)
        response = httpx.post(
            proxy.url + CHAT, json=chat(), headers=headers(scripted_enclave), trust_env=False
        )
        assert response.json()["error"]["code"] == "proxy_overloaded"
    assert eventually(lambda: status() == 200)


def test_a_half_sent_request_is_closed_and_recorded(
    start_proxy: StartProxy, enclave: LocalEnclave, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        server.Server.__init__,
        "__kwdefaults__",
        {**server.Server.__init__.__kwdefaults__, "request_timeout": 0.05},
    )
    proxy = start_proxy(enclave)
    url = httpx.URL(proxy.url)
    with socket.create_connection((url.host, url.port or 0), timeout=SOON) as sock:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: {url.host}:{url.port}\r\nContent-Type: application/json\r\n"
        head += f"Authorization: {headers(enclave)['authorization']}\r\nContent-Length: 100\r\n\r\n"
        sock.sendall(head.encode() + json.dumps(chat()).encode()[:20])
        assert sock.recv(1000) == b""
    assert eventually(lambda: proxy.log.latest()[0].state == "disconnected")
