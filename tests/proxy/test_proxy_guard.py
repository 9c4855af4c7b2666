"""Access to the proxy: Host, Origin, CORS preflights, addresses, and the body limit."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from support.proxies import StartProxy, chat, headers

from prem_core import ConfigurationError
from prem_core._version import __version__
from prem_core.enclave import LocalEnclave, ScriptedEngine
from prem_core.proxy import LocalProxy

CHAT = "/v1/chat/completions"


def refused(reply: httpx.Response, status: int) -> dict[str, Any]:
    """OpenAI's error object."""
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json"
    value = reply.json()
    assert set(value) == {"error"}
    error: dict[str, Any] = value["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


# Hosts


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]"])
def test_every_loopback_host_name_is_accepted(http: httpx.Client, name: str) -> None:
    host = f"{name}:{http.base_url.port}"
    assert http.get("/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example:{port}", ""],
)
def test_a_foreign_host_is_rejected_on_every_route(http: httpx.Client, host: str) -> None:
    # A browser sends this where a foreign DNS name points to 127.0.0.1.
    headers = {"host": host.format(port=http.base_url.port)}
    for method, path in (("GET", "/health"), ("GET", "/v1/models"), ("POST", CHAT), ("GET", "/nowhere")):
        refused(http.request(method, path, headers=headers), 403)


def test_allow_hosts_accepts_further_host_names(start_proxy: StartProxy, enclave: LocalEnclave) -> None:
    proxy = start_proxy(enclave, allow_hosts=["host.docker.internal", "forwarded.example:8080"])
    port = httpx.URL(proxy.url).port
    with httpx.Client(base_url=proxy.url, trust_env=False) as http:
        for host in (f"host.docker.internal:{port}", "forwarded.example:8080", f"127.0.0.1:{port}"):
            assert http.get("/health", headers={"host": host}).status_code == 200
        for host in ("host.docker.internal:1", f"forwarded.example:{port}", "host.docker.internal"):
            refused(http.get("/health", headers={"host": host}), 403)


# Web pages


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:9", "http://127.0.0.1"])
def test_a_request_with_a_foreign_origin_is_rejected(http: httpx.Client, origin: str, seen: Any) -> None:
    for content_type in ("application/json", "text/plain"):
        headers = {"origin": origin, "content-type": content_type}
        reply = http.post(CHAT, content=b"{}", headers=headers)
        assert "pages" in refused(reply, 403)["message"]
        assert not [name for name in reply.headers if name.startswith("access-control")]
    assert seen.exchanges == []


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_cross_site_request_without_an_origin_is_rejected(http: httpx.Client, site: str) -> None:
    # An image, for example, has no Origin.
    for path in ("/v1/models", "/openai/v1/models", "/anthropic/v1/models"):
        refused(http.get(path, headers={"sec-fetch-site": site}), 403)
    assert http.get("/v1/models", headers={"sec-fetch-site": "none"}).status_code == 200


def test_the_proxys_own_page_is_accepted(http: httpx.Client) -> None:
    host = f"localhost:{http.base_url.port}"
    headers = {"host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin"}
    assert http.get("/v1/models", headers=headers).status_code == 200


def test_a_cors_preflight_is_rejected(http: httpx.Client) -> None:
    asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    assert http.options(CHAT, headers=asked).status_code == 403
    reply = http.options(CHAT)
    assert reply.status_code == 405
    assert reply.headers["allow"] == "POST"


# Addresses


def test_an_address_that_other_machines_reach_needs_allow_remote() -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        with pytest.raises(ConfigurationError, match="unencrypted"):
            LocalProxy(host=host)


def test_on_all_interfaces_an_ip_address_is_an_accepted_host_and_a_dns_name_is_not(
    start_proxy: StartProxy, enclave: LocalEnclave
) -> None:
    proxy = start_proxy(enclave, host="0.0.0.0", allow_remote=True)
    port = httpx.URL(proxy.url).port
    with httpx.Client(base_url=proxy.url, trust_env=False) as http:
        for host in (f"192.0.2.7:{port}", f"[2001:db8::7]:{port}", f"localhost:{port}"):
            assert http.get("/health", headers={"host": host}).status_code == 200
        for host in (f"evil.example:{port}", "192.0.2.7", "192.0.2.7:1"):
            refused(http.get("/health", headers={"host": host}), 403)


def _needs_ipv6() -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")


def test_it_listens_on_ipv6(start_proxy: StartProxy, enclave: LocalEnclave) -> None:
    _needs_ipv6()
    proxy = start_proxy(enclave, host="::1")
    assert proxy.url.startswith("http://[::1]:")
    assert httpx.get(f"{proxy.url}/health", trust_env=False).json()["status"] == "ok"


def test_the_default_address_is_both_loopback_addresses(proxy: LocalProxy) -> None:
    _needs_ipv6()
    port = httpx.URL(proxy.url).port
    for host in ("127.0.0.1", "[::1]"):
        response = httpx.get(f"http://{host}:{port}/health", trust_env=False)
        assert response.json()["status"] == "ok"


def test_a_port_that_another_program_has_on_ipv6_is_an_oserror_that_names_it() -> None:
    _needs_ipv6()
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} on ::1"):
            LocalProxy(port=port).start()


def test_a_port_in_use_is_an_oserror_that_names_it(enclave: LocalEnclave) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} on 127.0.0.1"):
            LocalProxy(port=port).start()


# Health and unknown routes


def test_health_needs_no_api_key_and_does_not_call_the_gateway(proxy: LocalProxy, seen: Any) -> None:
    reply = httpx.get(f"{proxy.url}/health", trust_env=False)
    assert reply.json() == {"status": "ok", "version": __version__}
    assert httpx.head(f"{proxy.url}/health", trust_env=False).status_code == 200
    assert seen.exchanges == []


def test_an_unknown_route_is_404_with_the_list_of_routes(http: httpx.Client) -> None:
    for path in ("/v1/embeddings", "/chat/completions", "/v1", "/v1/chat/completions/"):
        assert CHAT in refused(http.post(path, json={}), 404)["message"]
    refused(http.get(CHAT), 405)


# Body limit and settings


@pytest.fixture
def small(
    start_proxy: StartProxy, scripted_enclave: LocalEnclave, script: ScriptedEngine
) -> Iterator[httpx.Client]:
    """A plain HTTP client of a proxy with a small body limit."""
    del script
    proxy = start_proxy(scripted_enclave, body_limit=50_000)
    with httpx.Client(
        base_url=proxy.url, headers=headers(scripted_enclave), trust_env=False, timeout=60
    ) as client:
        yield client


@pytest.mark.parametrize("path", [CHAT, "/v1/audio/transcriptions"])
@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
def test_a_body_over_the_limit_is_413(small: httpx.Client, path: str, chunked: bool) -> None:
    piece = b"x" * 10_000
    kind = "application/json" if path == CHAT else "multipart/form-data; boundary=x"
    content: Any = iter([b"--x\r\nA: b\r\n\r\n", *[piece] * 6]) if chunked else piece * 6
    reply = small.post(path, content=content, headers={"content-type": kind})
    assert ("content-length" in reply.request.headers) is not chunked
    assert "50,000" in refused(reply, 413)["message"]
    # The connection is still good.
    assert small.post(CHAT, json=chat("a" * 40_000)).status_code == 200


def test_a_declared_length_over_the_limit_is_413_before_the_body_is_sent(small: httpx.Client) -> None:
    with socket.create_connection((small.base_url.host, small.base_url.port or 0), timeout=5) as sock:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1:{small.base_url.port}\r\n"
        head += f"Authorization: {small.headers['authorization']}\r\nContent-Type: application/json\r\n"
        sock.sendall(f"{head}Content-Length: 50001\r\n\r\n".encode())
        assert sock.recv(100).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "values", [{"body_limit": 0}, {"max_clients": 0}, {"audio_timeout": 0}, {"timeout": -1}]
)
def test_an_invalid_setting_is_an_error_in_the_constructor(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(values))):
        LocalProxy(**values)


def test_every_client_option_except_http_client_is_accepted() -> None:
    proxy = LocalProxy(total_timeout=60, requests_per_second=1, proxy_url="http://127.0.0.1:1")
    assert repr(proxy) == "LocalProxy(stopped)"
    with pytest.raises(ConfigurationError, match="http_client"):
        LocalProxy(http_client=httpx.AsyncClient())  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"LocalProxy.*top_k"):
        LocalProxy(top_k=1)  # type: ignore[call-arg]
