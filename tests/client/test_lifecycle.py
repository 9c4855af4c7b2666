"""Connections and clients: reused, closed, left open by the program."""

import asyncio
import gc
import subprocess
import sys

import pytest
from support.fake_gateway import PARAMS, FakeGateway, text_of
from support.paths import ROOT
from support.waiting import SOON, eventually

from prem_core import AsyncPremClient, PremClient
from prem_core import _errors as errors


def ports(gateway):
    return {call.connection for call in gateway.calls}


def test_several_requests_share_one_connection(api, make):
    with FakeGateway() as gateway:
        client = make(gateway)
        for _ in range(3):
            api.create(client)
            api.stream(client)
    assert len(ports(gateway)) == 1


def test_a_connection_survives_an_error_and_an_envelope(api, make):
    def chat(call):
        if len(gateway.chats()) == 1:
            call.reply(b'{"error": "no"}', 400)
        else:
            call.reply(call.opened().envelope())

    with FakeGateway(chat, other=lambda call: call.reply(b'{"data": []}')) as gateway:
        client = make(gateway)
        with pytest.raises(errors.BadRequestError):
            api.create(client)
        api.create(client)
        api.models(client)
    assert len(ports(gateway)) == 1


def test_a_connection_survives_a_retry(api, make):
    def chat(call):
        if len(gateway.chats()) == 1:
            call.reply(b"busy", 503)
        else:
            call.stream(call.opened().stream())

    with FakeGateway(chat) as gateway:
        api.create(make(gateway))
    assert len(ports(gateway)) == 1


def test_closing_a_client_closes_its_connections(api):
    with FakeGateway() as gateway:
        client = api.client_class(**gateway.settings())
        api.create(client)
        assert gateway.connections == 1
        api.close(client)
        assert eventually(lambda: gateway.connections == 0, SOON)
        api.close(client)
        with pytest.raises(errors.ConfigurationError, match="the client is closed"):
            api.create(client)


def test_a_with_block_closes_the_connections():
    with FakeGateway() as gateway:
        with PremClient(**gateway.settings()) as client:
            client.chat.completions.create(**PARAMS)
        assert eventually(lambda: gateway.connections == 0, SOON)


async def test_an_async_with_block_closes_the_connections():
    with FakeGateway() as gateway:
        async with AsyncPremClient(**gateway.settings()) as client:
            await client.chat.completions.create(**PARAMS)
        assert await asyncio.to_thread(eventually, lambda: gateway.connections == 0, SOON)


def test_the_callers_http_client_is_used_and_not_closed(api):
    with FakeGateway() as gateway:
        http = api.http_class(headers={"x-mine": "1"})
        client = api.client_class(**gateway.settings(http_client=http))
        api.create(client)
        api.close(client)
        assert {call.headers.get("x-mine") for call in gateway.calls} == {"1"}
        assert not http.is_closed
        assert gateway.connections == 1
        api.create(api.client_class(**gateway.settings(http_client=http)))
        api.close_http(http)


def test_a_closed_client_rejects_calls_even_with_the_callers_http_client(api):
    with FakeGateway() as gateway:
        http = api.http_class()
        client = api.client_class(**gateway.settings(http_client=http))
        api.create(client)
        api.close(client)
        with pytest.raises(errors.ConfigurationError, match="the client is closed"):
            api.create(client)
        api.close_http(http)
    assert len(gateway.chats()) == 1


def test_a_temporary_client_works():
    with FakeGateway() as gateway:
        answer = PremClient(**gateway.settings()).chat.completions.create(**PARAMS)
        assert answer.choices[0].message.content == "Hello"
        assert (
            text_of(PremClient(**gateway.settings()).chat.completions.create(**PARAMS, stream=True))
            == "Hello"
        )
        gateway.other = lambda call: call.reply(b'{"data": []}')
        assert PremClient(**gateway.settings()).models.list() == []
        completions = PremClient(**gateway.settings()).chat.completions
        assert completions.create(**PARAMS).choices
        del completions
        assert eventually(lambda: gateway.connections == 0, SOON)


async def test_a_temporary_async_client_works():
    with FakeGateway() as gateway:
        answer = await AsyncPremClient(**gateway.settings()).chat.completions.create(**PARAMS)
        assert answer.choices[0].message.content == "Hello"
        stream = await AsyncPremClient(**gateway.settings()).chat.completions.create(**PARAMS, stream=True)
        assert text_of([chunk async for chunk in stream]) == "Hello"
        del stream
        gc.collect()
        assert await asyncio.to_thread(eventually, lambda: gateway.connections == 0, SOON)


def test_an_unclosed_client_closes_its_sockets_when_it_is_freed():
    with FakeGateway() as gateway:
        client = PremClient(**gateway.settings())
        client.chat.completions.create(**PARAMS)
        list(client.chat.completions.create(**PARAMS, stream=True))
        gc.disable()
        try:
            del client
            assert eventually(lambda: gateway.connections == 0, SOON)
        finally:
            gc.enable()


async def test_an_unclosed_async_client_closes_its_sockets_when_it_is_freed():
    with FakeGateway() as gateway:
        client = AsyncPremClient(**gateway.settings())
        await client.chat.completions.create(**PARAMS)
        del client
        gc.collect()
        assert await asyncio.to_thread(eventually, lambda: gateway.connections == 0, SOON)


NOBODY_CLOSES = """
import asyncio, sys
from prem_core import AsyncPremClient, PremClient
settings = dict(api_key="k", gateway_url=sys.argv[1], enclave_url=sys.argv[1], nonce_reuse="allow")
params = dict(model="m", messages=[dict(role="user", content="hi")])
client = PremClient(**settings)
client.chat.completions.create(**params)
unread = client.chat.completions.create(**params, stream=True)
begun = client.chat.completions.create(**params, stream=True)
next(begun)
next(PremClient(**settings).chat.completions.create(**params, stream=True))
shared = AsyncPremClient(**settings)

async def main(client):
    await client.chat.completions.create(**params)
    unread = await client.chat.completions.create(**params, stream=True)
    async for chunk in await client.chat.completions.create(**params, stream=True):
        break
    kept.append(await client.chat.completions.create(**params, stream=True))
    await anext(kept[-1])

kept = []
for _ in range(5):
    asyncio.run(main(shared))
asyncio.run(main(AsyncPremClient(**settings)))
print("done")
"""


def test_a_program_that_closes_nothing_exits_without_a_warning():
    with FakeGateway() as gateway:
        run = subprocess.run(
            [sys.executable, "-W", "error", "-c", NOBODY_CLOSES, gateway.url],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert run.stderr == ""
    assert run.stdout == "done\n"
    assert run.returncode == 0
