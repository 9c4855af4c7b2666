"""Transport security: TLS is always verified, redirects are not followed, proxies of the environment see ciphertext.

`tests/client/test_config.py` tests which URLs are accepted, `tests/transport/test_transport.py` what a request
contains.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import certifi
import pytest
from support.fake_gateway import FakeGateway, ReceivedRequest
from support.security import secret_values
from support.security.certificates import Authority
from support.security.encodings import SecretSearch
from support.security.forward_proxy import ForwardProxy
from support.security.secret_values import API_KEY, MESSAGES

import prem_core
from langchain_prem import ChatPremEncrypted, PremWhisperParser
from llama_index_prem import PremEncrypted, PremWhisperReader
from prem_core import AsyncPremClient, PremClient
from prem_core._transport.http import ssl_context

PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


# --- requests of every kind, by name


def _asynchronously(ask: Callable[[Any], Any]) -> Callable[..., Any]:
    def request(**options: Any) -> Any:
        async def run() -> Any:
            async with AsyncPremClient(**options) as client:
                return await ask(client)

        return asyncio.run(run())

    return request


def _synchronously(ask: Callable[[Any], Any]) -> Callable[..., Any]:
    def request(**options: Any) -> Any:
        with PremClient(**options) as client:
            return ask(client)

    return request


def _chat(client: Any) -> Any:
    return client.chat.completions.create(model="m", messages=MESSAGES)


def _stream(client: Any) -> Any:
    return client.chat.completions.create(model="m", messages=MESSAGES, stream=True)


def _transcribe(client: Any) -> Any:
    return client.audio.transcriptions.create(file=secret_values.FILE)


def _list(client: Any) -> Any:
    return client.models.list()


REQUESTS = {
    f"{how.__name__[1:]} {ask.__name__[1:]}": how(ask)
    for how in (_synchronously, _asynchronously)
    for ask in (_chat, _stream, _transcribe, _list)
}
SEALED_REQUESTS = [name for name in REQUESTS if not name.endswith("list")]


# --- TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), "trusted")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")


@pytest.fixture
def trusting(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The clients trust the authority."""
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(certifi, "where", lambda: str(authority.path))
    ssl_context.cache_clear()
    yield
    ssl_context.cache_clear()


@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize("name", SEALED_REQUESTS)
def test_a_service_with_a_trusted_certificate_gets_the_request(name: str, authority: Authority) -> None:
    with FakeGateway(tls=authority.server(), other=lambda call: call.reply(b"{}", 404)) as gateway:
        try:
            REQUESTS[name](**gateway.settings())
        except prem_core.NotFoundError:
            assert name.endswith("transcribe")
        assert {call.path for call in gateway.calls} >= {"/publicKey"}
        assert len(gateway.calls) == 2


BAD = {
    "of an untrusted authority": lambda good, bad: bad.server(),
    "for another host": lambda good, bad: good.server("127.0.0.2"),
    "expired": lambda good, bad: good.server(expired=True),
}


@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", REQUESTS)
def test_a_gateway_with_a_bad_certificate_gets_no_request(
    name: str, bad: str, authority: Authority, stranger: Authority
) -> None:
    with FakeGateway(tls=BAD[bad](authority, stranger)) as gateway, FakeGateway() as enclave:
        options = {**gateway.settings(), "enclave_url": enclave.url, "max_retries": 0, "allow_insecure": True}
        with pytest.raises(prem_core.APIConnectionError, match="gateway"):
            REQUESTS[name](**options)
        assert gateway.calls == []


@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", SEALED_REQUESTS)
def test_no_key_is_fetched_from_an_enclave_with_a_bad_certificate(
    name: str, bad: str, authority: Authority, stranger: Authority
) -> None:
    with FakeGateway() as gateway, FakeGateway(tls=BAD[bad](authority, stranger)) as enclave:
        options = {**gateway.settings(), "enclave_url": enclave.url, "max_retries": 0, "allow_insecure": True}
        with pytest.raises(prem_core.APIConnectionError, match="enclave"):
            REQUESTS[name](**options)
        assert enclave.calls == gateway.calls == []


def test_no_keys_are_generated_for_an_enclave_with_an_untrusted_certificate(stranger: Authority) -> None:
    with FakeGateway(tls=stranger.server()) as enclave:
        with pytest.raises(prem_core.APIConnectionError):
            prem_core.generate_encryption_keys(enclave_url=enclave.url, max_retries=0)
        with pytest.raises(prem_core.APIConnectionError):
            asyncio.run(prem_core.agenerate_encryption_keys(enclave_url=enclave.url, max_retries=0))
        assert enclave.calls == []


ADAPTERS: dict[str, Callable[..., Any]] = {
    "LangChain": lambda **options: ChatPremEncrypted(model="m", **options).invoke("Hello"),
    "LangChain async": lambda **options: asyncio.run(
        ChatPremEncrypted(model="m", **options).ainvoke("Hello")
    ),
    "LlamaIndex": lambda **options: PremEncrypted(model="m", **options).complete("Hello"),
    "LlamaIndex async": lambda **options: asyncio.run(PremEncrypted(model="m", **options).acomplete("Hello")),
    "LangChain parser": lambda **options: list(PremWhisperParser(**options).lazy_parse(_blob())),
    "LlamaIndex reader": lambda **options: PremWhisperReader(**options).load_data(secret_values.FILE),
}


def _blob() -> Any:
    from langchain_core.documents.base import Blob

    return Blob.from_data(secret_values.FILE, mime_type="audio/wav")


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_adapters_verify_certificates(name: str, stranger: Authority) -> None:
    with FakeGateway() as enclave, FakeGateway(tls=stranger.server()) as gateway:
        options = {**gateway.settings(), "enclave_url": enclave.url, "max_retries": 0, "allow_insecure": True}
        with pytest.raises(prem_core.APIConnectionError, match="gateway"):
            ADAPTERS[name](**options)
        assert gateway.calls == []


@pytest.mark.parametrize("name", SEALED_REQUESTS[:1])
def test_ssl_cert_file_sets_the_trusted_authorities(
    name: str, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))
    ssl_context.cache_clear()
    try:
        with FakeGateway(tls=authority.server()) as gateway:
            REQUESTS[name](**gateway.settings(max_retries=0))
    finally:
        ssl_context.cache_clear()


# --- redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("name", REQUESTS)
def test_a_redirect_is_an_error_and_not_followed(name: str, status: int) -> None:
    with FakeGateway() as other:

        def to_another_host(call: ReceivedRequest) -> None:
            call.reply(b"", status, {"location": f"{other.url}{call.path}"})

        def to_another_path(call: ReceivedRequest) -> None:
            call.reply(b"", status, {"location": f"{call.path}/again"})

        for redirect in (to_another_host, to_another_path):
            with FakeGateway(redirect, other=redirect) as gateway:
                with pytest.raises(prem_core.APIStatusError) as caught:
                    REQUESTS[name](**gateway.settings())
                assert caught.value.status_code == status
                assert len([path for path in gateway.paths() if path != "/publicKey"]) == 1
        assert other.calls == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("name", SEALED_REQUESTS)
def test_a_redirect_of_the_key_request_is_an_enclave_key_error(name: str, status: int) -> None:
    with FakeGateway() as other:
        away = {"location": f"{other.url}/publicKey"}
        with FakeGateway(key=lambda call: call.reply(b"", status, away)) as gateway:
            with pytest.raises(prem_core.EnclaveKeyError):
                REQUESTS[name](**gateway.settings())
            assert gateway.paths() == ["/publicKey"]
        assert other.calls == []


# --- proxies


HOST = "service.example"


def elsewhere(gateway: FakeGateway) -> str:
    """The gateway's URL under a name that only `ForwardProxy` leads to."""
    return gateway.url.replace("127.0.0.1", HOST)


TEXT_SEARCH = SecretSearch(**secret_values.SECRET_TEXTS)
KEY_SEARCH = SecretSearch(**secret_values.SECRET_KEYS)


@pytest.mark.parametrize("name", ["synchronously chat", "asynchronously chat", "synchronously transcribe"])
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_an_http_proxy_of_the_environment_is_used_and_sees_ciphertext_only(
    name: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeGateway() as gateway, ForwardProxy() as proxy:
        monkeypatch.setenv(variable, proxy.url)
        url = elsewhere(gateway)
        try:
            REQUESTS[name](**gateway.settings(gateway_url=url, enclave_url=url, allow_insecure=True))
        except prem_core.NotFoundError:
            assert name.endswith("transcribe")
    route = "audio/transcriptions" if name.endswith("transcribe") else "chat/completions"
    assert proxy.request_lines == [
        f"GET {url}/publicKey HTTP/1.1",
        f"POST {url}/rvenc/{route} HTTP/1.1",
    ]
    assert b'"encryptedInference"' in proxy.bytes_seen
    assert TEXT_SEARCH(bytes(proxy.bytes_seen)) == set()


@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize("name", ["synchronously chat", "asynchronously stream"])
@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_an_https_proxy_sees_a_tunnel_without_the_api_key(
    name: str, variable: str, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeGateway(tls=authority.server(HOST)) as gateway, ForwardProxy() as proxy:
        monkeypatch.setenv(variable, proxy.url)
        url = elsewhere(gateway)
        REQUESTS[name](**gateway.settings(api_key=API_KEY, gateway_url=url, enclave_url=url))
        host = url.removeprefix("https://")
        assert {call.headers.get("authorization") for call in gateway.chats()} == {f"Bearer {API_KEY}"}
    assert set(proxy.request_lines) == {f"CONNECT {host} HTTP/1.1"}
    assert TEXT_SEARCH(bytes(proxy.bytes_seen)) | KEY_SEARCH(bytes(proxy.bytes_seen)) == set()
    assert b"rvenc" not in proxy.bytes_seen


@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize("name", SEALED_REQUESTS[:1])
def test_a_proxy_that_impersonates_the_service_gets_no_request(
    name: str, authority: Authority, stranger: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeGateway(tls=authority.server(HOST)) as gateway, ForwardProxy(stranger.server(HOST)) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        url = elsewhere(gateway)
        with pytest.raises(prem_core.APIConnectionError):
            REQUESTS[name](**gateway.settings(gateway_url=url, enclave_url=url, max_retries=0))
        assert gateway.calls == []
    assert b"HTTP/1.1\r\n" in proxy.bytes_seen  # the CONNECT line, and nothing after it
    assert b"publicKey" not in proxy.bytes_seen


@pytest.mark.parametrize("name", SEALED_REQUESTS[:2])
def test_hosts_in_no_proxy_are_connected_directly(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeGateway() as gateway, ForwardProxy() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", "0.0.0.0")
        url = gateway.url.replace("127.0.0.1", "0.0.0.0")  # this machine, but not a loopback address
        REQUESTS[name](**gateway.settings(gateway_url=url, enclave_url=url, allow_insecure=True))
    assert proxy.request_lines == []


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_an_http_proxy_of_the_environment_is_not_used_for_this_machine(
    name: str, variable: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = b'{"data": []}'
    with FakeGateway(other=lambda call: call.reply(models)) as gateway, ForwardProxy() as proxy:
        monkeypatch.setenv(variable, proxy.url)
        url = gateway.url.replace("127.0.0.1", host)
        try:
            REQUESTS[name](**gateway.settings(gateway_url=url, enclave_url=url, api_key=API_KEY))
        except prem_core.APIResponseValidationError:
            assert name.endswith("transcribe")
        assert gateway.calls[-1].headers["authorization"] == f"Bearer {API_KEY}"
    assert bytes(proxy.bytes_seen) == b""


@pytest.mark.parametrize("name", SEALED_REQUESTS[:1] + SEALED_REQUESTS[3:4])
@pytest.mark.parametrize("host", ["127.9.8.7", "[::1]", "LOCALHOST"])
def test_an_http_proxy_is_not_used_for_any_loopback_address(
    name: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeGateway() as closed:
        url = closed.url.replace("127.0.0.1", host)
    with ForwardProxy() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        with pytest.raises(prem_core.APIConnectionError):
            REQUESTS[name](api_key=API_KEY, gateway_url=url, enclave_url=url, max_retries=0, timeout=5)
    assert bytes(proxy.bytes_seen) == b""


@pytest.mark.parametrize("name", SEALED_REQUESTS[:1] + SEALED_REQUESTS[3:4])
def test_a_gateway_on_this_machine_does_not_change_the_route_to_the_enclave(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeGateway() as gateway, ForwardProxy() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        REQUESTS[name](**gateway.settings(enclave_url=elsewhere(gateway), allow_insecure=True))
        assert len(gateway.chats()) == 1
    assert proxy.request_lines == [f"GET {elsewhere(gateway)}/publicKey HTTP/1.1"]


# --- credentials


@pytest.mark.parametrize("name", REQUESTS)
def test_a_netrc_file_does_not_replace_the_api_key(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1\nlogin somebody\npassword else\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(netrc))
    with FakeGateway(other=lambda call: call.reply(b"{}", 404)) as gateway:
        try:
            REQUESTS[name](**gateway.settings())
        except prem_core.NotFoundError:
            assert name.endswith(("transcribe", "list"))
        sent = {call.path: call.headers.get("authorization") for call in gateway.calls}
    assert sent.pop("/publicKey", None) is None
    assert set(sent.values()) == {"Bearer sk_test_key"}


@pytest.mark.parametrize("client_class", [PremClient, AsyncPremClient])
def test_a_cookie_of_the_service_is_not_sent_back(client_class: type) -> None:
    cookie = {"content-type": "application/json", "set-cookie": "visitor=4711; Path=/"}

    def chat(call: ReceivedRequest) -> None:
        call.reply(call.opened().envelope(), headers=cookie)

    with FakeGateway(chat, other=lambda call: call.reply(b'{"data": []}', headers=cookie)) as gateway:
        if client_class is PremClient:
            with PremClient(**gateway.settings()) as client:
                for ask in (_list, _chat, _chat, _list):
                    ask(client)
        else:

            async def request() -> None:
                async with AsyncPremClient(**gateway.settings()) as client:
                    for ask in (_list, _chat, _chat, _list):
                        await ask(client)

            asyncio.run(request())
        assert len(gateway.calls) == 5
        assert [call.path for call in gateway.calls if "cookie" in call.headers] == []
