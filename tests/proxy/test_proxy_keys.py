"""An API key is the call's alone: a client is kept by a hash of it, and the key goes when the call is over."""

from __future__ import annotations

import asyncio
import secrets
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import openai
import pytest
from support.proxies import MODEL, Run, chat
from support.proxy_process import Apart
from support.scripted_upstream import Upstream, chunk

from prem_core import AsyncPremClient
from prem_core.enclave import LocalEnclave
from prem_core.proxy import LocalProxy
from prem_core.proxy.client_cache import ClientCache
from prem_core.proxy.wire import PLACEHOLDER_KEY, CapturingClient


def test_no_object_in_the_process_holds_an_api_key_after_the_call() -> None:
    mark = secrets.token_hex(8)
    with (
        LocalEnclave(api_key=f"sk_test_{mark}") as prem,
        Apart(gateway_url=prem.gateway_url, enclave_url=prem.enclave_url) as proxy,
        # Its connection to the proxy stays open meanwhile, and so does the proxy's own to the gateway.
        openai.OpenAI(base_url=proxy.base_url, api_key=prem.api_key, max_retries=0) as official,
    ):
        assert official.chat.completions.create(**chat("The word is zebra. What is the word?"))
        assert list(official.chat.completions.create(**chat("The word is zebra."), stream=True))
        with pytest.raises(openai.BadRequestError):
            official.chat.completions.create(**chat(temperature=9))
        with pytest.raises(openai.AuthenticationError):
            official.with_options(api_key=f"sk_test_other_{mark}").models.list()
        assert proxy.ask(f"holds {mark[::-1]}") == []
        assert proxy.ask(f"holds {'zebra'[::-1]}") == []
        assert proxy.ask(f"holds {PLACEHOLDER_KEY[::-1]}") != [], "what is there is found"
    assert proxy.errors == ""


def test_every_caller_uses_its_own_api_key(run: Run) -> None:
    with LocalEnclave() as first, LocalEnclave(port=0) as other:
        proxy = run(first)
        for key, right in ((first.api_key, True), (other.api_key, False), (first.api_key, True)):
            with openai.OpenAI(base_url=proxy.base_url, api_key=key, max_retries=0) as official:
                if right:
                    assert official.models.list().data
                else:
                    with pytest.raises(openai.AuthenticationError):
                        official.models.list()


def test_an_api_key_of_the_proxy_is_used_for_every_caller(run: Run, enclave: LocalEnclave) -> None:
    proxy = run(enclave, api_key=enclave.api_key)
    assert enclave.api_key not in repr(proxy) + repr(vars(proxy)["log"])
    assert httpx.get(f"{proxy.base_url}/models", trust_env=False).status_code == 200
    headers = {"authorization": "Bearer sk_test_of_nobody"}
    assert httpx.get(f"{proxy.base_url}/models", headers=headers, trust_env=False).status_code == 200


def test_the_public_key_is_fetched_without_an_api_key(run: Run) -> None:
    asked: list[dict[str, str]] = []

    class Keyless(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append({name.lower(): value for name, value in self.headers.items()})
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with LocalEnclave() as prem, HTTPServer(("127.0.0.1", 0), Keyless) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        proxy = run(prem, enclave_url=f"http://127.0.0.1:{server.server_port}", max_retries=0)
        with openai.OpenAI(base_url=proxy.base_url, api_key=prem.api_key, max_retries=0) as official:
            with pytest.raises(openai.InternalServerError) as caught:
                official.chat.completions.create(**chat())
        server.shutdown()
    assert caught.value.code == "enclave_key_error"
    assert asked
    assert all("authorization" not in headers for headers in asked)


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


# The clients that are kept


def clients(kept: int) -> tuple[ClientCache, list[CapturingClient]]:
    made: list[CapturingClient] = []

    def make(wire: CapturingClient) -> AsyncPremClient:
        made.append(wire)
        return AsyncPremClient(api_key=PLACEHOLDER_KEY, http_client=wire)

    return ClientCache(make, kept), made


async def test_each_api_key_has_its_own_client() -> None:
    kept, made = clients(2)
    async with (
        kept.client_for("sk_a") as first,
        kept.client_for("sk_a") as again,
        kept.client_for("sk_b") as other,
    ):
        assert first is again
        assert first is not other
    assert len(made) == 2
    await kept.aclose()
    assert all(wire.is_closed for wire in made)


async def test_the_least_recently_used_client_is_closed_when_there_are_too_many() -> None:
    kept, made = clients(2)
    for key in ("sk_a", "sk_b", "sk_a", "sk_c"):
        async with kept.client_for(key):
            pass
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [wire.is_closed for wire in made] == [False, True, False]
    assert len(kept) == 2
    await kept.aclose()


async def test_a_client_in_use_is_not_closed() -> None:
    kept, made = clients(1)
    async with kept.client_for("sk_a"):
        for key in ("sk_b", "sk_c", "sk_d"):
            async with kept.client_for(key):
                pass
        assert not made[0].is_closed
    async with kept.client_for("sk_e"):
        await asyncio.sleep(0.01)
        assert [wire.is_closed for wire in made] == [True] * 4 + [False]
    await kept.aclose()


def test_a_stream_continues_when_its_client_is_evicted(
    run: Run, upstream_enclave: LocalEnclave, upstream: Upstream
) -> None:
    upstream.says(*[chunk(str(number)) for number in range(50)], chunk(finish="stop"))
    proxy = run(upstream_enclave, max_clients=1)
    with openai.OpenAI(base_url=proxy.base_url, api_key=upstream_enclave.api_key, max_retries=0) as official:
        stream = official.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Count."}], stream=True
        )
        said = [next(stream).choices[0].delta.content]
        for number in range(3):
            with pytest.raises(openai.AuthenticationError):
                official.with_options(api_key=f"sk_test_{number}").models.list()
        said += [each.choices[0].delta.content for each in stream]
    assert said[:50] == [str(number) for number in range(50)]
