"""API keys: clients are cached by a hash of the key, and no key remains in memory after its call."""

from __future__ import annotations

import asyncio
import secrets
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import openai
import pytest
from support.proxies import MODEL, StartProxy, chat, proxy_for
from support.proxy_process import ProxyProcess
from support.security.forward_proxy import ForwardProxy
from support.waiting import eventually

from prem_core import AsyncPremClient, ConfigurationError, EncryptionKeys
from prem_core.enclave import LocalEnclave, ScriptedEngine, reply
from prem_core.proxy import LocalProxy
from prem_core.proxy.client_cache import ClientCache
from prem_core.proxy.wire import PLACEHOLDER_KEY, CapturingClient


def test_no_object_in_the_process_holds_an_api_key_after_the_call() -> None:
    mark = secrets.token_hex(8)
    with (
        LocalEnclave(api_key=f"sk_test_{mark}") as prem,
        ProxyProcess(gateway_url=prem.gateway_url, enclave_url=prem.enclave_url) as proxy,
        # Its connection to the proxy stays open, and so does the proxy's to the gateway.
        openai.OpenAI(base_url=proxy.base_url, api_key=prem.api_key, max_retries=0) as official,
    ):
        assert official.chat.completions.create(**chat("The word is zebra. What is the word?"))
        assert list(official.chat.completions.create(**chat("The word is zebra."), stream=True))
        with pytest.raises(openai.BadRequestError):
            official.chat.completions.create(**chat(temperature=9))
        with pytest.raises(openai.AuthenticationError):
            official.with_options(api_key=f"sk_test_other_{mark}").models.list()
        assert eventually(lambda: proxy.holders(mark) == [])
        assert eventually(lambda: proxy.holders("zebra") == [])
        assert proxy.holders(PLACEHOLDER_KEY) != [], "the search works"
    (warning,) = proxy.errors.splitlines()
    assert warning.startswith("a response is sealed under its request's nonce")


def test_every_caller_uses_its_own_api_key(start_proxy: StartProxy) -> None:
    with LocalEnclave() as first, LocalEnclave(port=0) as other:
        proxy = start_proxy(first)
        for key, right in ((first.api_key, True), (other.api_key, False), (first.api_key, True)):
            with openai.OpenAI(base_url=proxy.base_url, api_key=key, max_retries=0) as official:
                if right:
                    assert official.models.list().data
                else:
                    with pytest.raises(openai.AuthenticationError):
                        official.models.list()


def test_an_http_proxy_of_the_environment_does_not_get_an_api_key_for_a_gateway_on_this_machine(
    start_proxy: StartProxy, enclave: LocalEnclave, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ForwardProxy() as other:
        monkeypatch.setenv("HTTP_PROXY", other.url)
        url = f"{start_proxy(enclave).base_url}/chat/completions"
        response = httpx.post(
            url, json=chat("Hello"), headers={"authorization": f"Bearer {enclave.api_key}"}, trust_env=False
        )
    assert response.status_code == 200
    assert bytes(other.bytes_seen) == b""


def test_an_api_key_of_the_proxy_is_used_for_every_caller(
    start_proxy: StartProxy, enclave: LocalEnclave
) -> None:
    proxy = start_proxy(enclave, api_key=enclave.api_key)
    assert enclave.api_key not in repr(proxy) + repr(vars(proxy)["log"])
    assert httpx.get(f"{proxy.base_url}/models", trust_env=False).status_code == 200
    headers = {"authorization": "Bearer sk_test_wrong"}
    assert httpx.get(f"{proxy.base_url}/models", headers=headers, trust_env=False).status_code == 200


def test_encryption_keys_that_different_callers_would_share_are_an_error(enclave: LocalEnclave) -> None:
    keys = EncryptionKeys.encapsulate(enclave.public_key)
    with pytest.raises(ConfigurationError, match="--api-key-from-env"):
        proxy_for(enclave, encryption_keys=keys)


def test_encryption_keys_are_accepted_with_one_api_key_for_all_callers(
    start_proxy: StartProxy, enclave: LocalEnclave
) -> None:
    keys = EncryptionKeys.encapsulate(enclave.public_key)
    proxy = start_proxy(enclave, encryption_keys=keys, api_key=enclave.api_key)
    response = httpx.post(f"{proxy.base_url}/chat/completions", json=chat(), trust_env=False)
    assert response.status_code == 200


def test_the_public_key_is_fetched_without_an_api_key(start_proxy: StartProxy) -> None:
    received: list[dict[str, str]] = []

    class Keyless(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            received.append({name.lower(): value for name, value in self.headers.items()})
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with LocalEnclave() as prem, HTTPServer(("127.0.0.1", 0), Keyless) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        proxy = start_proxy(prem, enclave_url=f"http://127.0.0.1:{server.server_port}", max_retries=0)
        with openai.OpenAI(base_url=proxy.base_url, api_key=prem.api_key, max_retries=0) as official:
            with pytest.raises(openai.InternalServerError) as caught:
                official.chat.completions.create(**chat())
        server.shutdown()
    assert caught.value.code == "enclave_key_error"
    assert received
    assert all("authorization" not in headers for headers in received)


def test_no_log_line_contains_an_api_key_or_a_prompt(
    proxy: LocalProxy, enclave: LocalEnclave, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(1)
    headers = {"authorization": f"Bearer {enclave.api_key}"}
    form = {"files": {"file": ("zebra.wav", b"zebra")}, "data": {"prompt": "zebra"}}
    broken = {**headers, "content-type": "multipart/form-data; boundary=b"}
    with httpx.Client(base_url=proxy.url, trust_env=False) as http:
        statuses = [
            http.post("/v1/chat/completions", json=chat("zebra"), headers=headers).status_code,
            http.post("/v1/chat/completions", json=chat("zebra", temperature=9), headers=headers).status_code,
            http.post("/v1/chat/completions", content=b"zebra", headers=headers).status_code,
            http.post("/v1/audio/transcriptions", **form, headers=headers).status_code,  # type: ignore[arg-type]
            http.post("/v1/audio/transcriptions", content=b"--b\r\nzebra\r\n", headers=broken).status_code,
        ]
    assert statuses == [200, 400, 415, 400, 400]
    assert caplog.text
    assert enclave.api_key not in caplog.text
    assert "zebra" not in caplog.text


# The client cache


async def run_tasks() -> None:
    """Let the tasks of the event loop run."""
    for _ in range(20):
        await asyncio.sleep(0)


def clients(max_clients: int) -> tuple[ClientCache, list[CapturingClient]]:
    made: list[CapturingClient] = []

    def make(http_client: CapturingClient) -> AsyncPremClient:
        made.append(http_client)
        return AsyncPremClient(api_key=PLACEHOLDER_KEY, http_client=http_client)

    return ClientCache(make, max_clients), made


async def test_each_api_key_has_its_own_client() -> None:
    cache, made = clients(2)
    async with (
        cache.client_for("sk_a") as first,
        cache.client_for("sk_a") as again,
        cache.client_for("sk_b") as other,
    ):
        assert first is again
        assert first is not other
    assert len(made) == 2
    await cache.aclose()
    assert all(each.is_closed for each in made)


async def test_the_least_recently_used_client_is_closed_when_there_are_too_many() -> None:
    cache, made = clients(2)
    for key in ("sk_a", "sk_b", "sk_a", "sk_c"):
        async with cache.client_for(key):
            pass
    await run_tasks()
    assert [each.is_closed for each in made] == [False, True, False]
    assert len(cache) == 2
    await cache.aclose()


async def test_a_client_in_use_is_not_closed() -> None:
    cache, made = clients(1)
    async with cache.client_for("sk_a"):
        for key in ("sk_b", "sk_c", "sk_d"):
            async with cache.client_for(key):
                pass
        assert not made[0].is_closed
    async with cache.client_for("sk_e"):
        await run_tasks()
        assert [each.is_closed for each in made] == [True] * 4 + [False]
    await cache.aclose()


def test_a_stream_continues_when_its_client_is_evicted(
    start_proxy: StartProxy, scripted_enclave: LocalEnclave, script: ScriptedEngine
) -> None:
    script.respond = lambda request: reply([str(number) for number in range(50)])
    proxy = start_proxy(scripted_enclave, max_clients=1)
    with openai.OpenAI(base_url=proxy.base_url, api_key=scripted_enclave.api_key, max_retries=0) as official:
        stream = official.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Count."}], stream=True
        )
        texts = [next(stream).choices[0].delta.content]
        for number in range(3):
            with pytest.raises(openai.AuthenticationError):
                official.with_options(api_key=f"sk_test_{number}").models.list()
        texts += [each.choices[0].delta.content for each in stream]
    assert texts[:50] == [str(number) for number in range(50)]


@pytest.mark.parametrize("prefix", ["/v1", "/openai/v1"])
def test_a_key_in_x_api_key_is_accepted_and_a_wrong_one_refused(
    proxy: LocalProxy, enclave: LocalEnclave, prefix: str
) -> None:
    for key, status in ((enclave.api_key, 200), ("sk_test_wrong", 401)):
        headers = {"x-api-key": key}
        reply = httpx.get(f"{proxy.url}{prefix}/models", headers=headers, trust_env=False)
        assert reply.status_code == status
