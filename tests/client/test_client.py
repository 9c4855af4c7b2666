import asyncio
import contextlib
import datetime
import gc
import ipaddress
import json
import pickle
import ssl
import subprocess
import sys
import threading
import time
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from support.fake_gateway import (
    COMPLETION,
    DONE,
    EVENT_STREAM,
    HELLO,
    JSON,
    PARAMS,
    Enclave,
    Gateway,
    said,
    say_hello,
    text_of,
    until,
)
from support.paths import ROOT

import prem_core
from prem_core import (
    AsyncPremClient,
    EncryptionKeys,
    PremClient,
    agenerate_encryption_keys,
    discover_endpoints,
    generate_encryption_keys,
)
from prem_core import _errors as errors

PART = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]}
MODELS = [{"id": "m1", "model": "openai/gpt-oss-120b", "type": "CHAT"}]
# A connection that is dropped is seen at once; this is how long a busy machine may take to see it.
SOON = 3.0


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for name in (
        "PREM_API_KEY",
        "PREM_GATEWAY_URL",
        "PREM_PROXY_URL",
        "PROXY_URL",
        "PREM_ENCLAVE_URL",
        "ENCLAVE_URL",
    ):
        monkeypatch.delenv(name, raising=False)


class Sync:
    """The synchronous client, as the tests of both clients use it."""

    client_class = PremClient
    http_class = httpx.Client
    generate = staticmethod(generate_encryption_keys)

    @staticmethod
    def create(client, **params):
        return client.chat.completions.create(**{**PARAMS, **params})

    @staticmethod
    def stream(client, **params):
        return list(client.chat.completions.create(**{**PARAMS, **params}, stream=True))

    @staticmethod
    def models(client, *kind):
        return client.models.list(*kind)

    @staticmethod
    def close(client):
        client.close()


class Async:
    """The asynchronous one, on one loop that lasts as long as the test."""

    client_class = AsyncPremClient
    http_class = httpx.AsyncClient

    def __init__(self, runner):
        self._run = runner.run

    def generate(self, **values):
        return self._run(agenerate_encryption_keys(**values))

    def create(self, client, **params):
        return self._run(client.chat.completions.create(**{**PARAMS, **params}))

    def stream(self, client, **params):
        async def collect():
            stream = await client.chat.completions.create(**{**PARAMS, **params}, stream=True)
            return [chunk async for chunk in stream]

        return self._run(collect())

    def models(self, client, *kind):
        return self._run(client.models.list(*kind))

    def close(self, client):
        self._run(client.aclose())


@pytest.fixture(params=["sync", "async"])
def api(request):
    if request.param == "sync":
        yield Sync()
    else:
        with asyncio.Runner() as runner:
            yield Async(runner)


@pytest.fixture
def make(api):
    """Make clients that are closed at the end of the test."""
    with contextlib.ExitStack() as stack:

        def make_client(gateway, **values):
            client = api.client_class(**gateway.settings(**values))
            stack.callback(api.close, client)
            return client

        yield make_client


class Held:
    """A chat handler that sends one chunk and then nothing; `left` is set when the client drops the connection."""

    def __init__(self, first=PART, wait=SOON):
        self.first, self.wait = first, wait
        self.left = threading.Event()
        self.begun = threading.Event()

    def __call__(self, call):
        opened = call.opened()
        call.begin()
        if self.first is not None:
            call.piece(opened.events(self.first))
        self.begun.set()
        if call.left(self.wait):
            self.left.set()
        else:
            call.drop()


# --- answers


def test_an_answer_in_events_comes_whole(api, make):
    with Gateway() as gateway:
        answer = api.create(make(gateway))
    assert answer.choices[0].message.content == "Hello"
    assert answer.usage.total_tokens == 5


def test_an_answer_in_an_envelope_comes_whole(api, make):
    with Gateway(lambda call: call.reply(call.opened().envelope())) as gateway:
        answer = api.create(make(gateway))
    assert (answer.id, answer.choices[0].message.content) == (COMPLETION["id"], "Hello")


def test_a_stream_gives_its_chunks(api, make):
    with Gateway() as gateway:
        chunks = api.stream(make(gateway))
    assert len(chunks) == len(HELLO)
    assert text_of(chunks) == "Hello"


def test_a_stream_in_pieces_of_one_byte_gives_its_chunks(api, make):
    def chat(call):
        stream = call.opened().stream()
        call.stream(*(stream[i : i + 1] for i in range(len(stream))))

    with Gateway(chat) as gateway:
        assert text_of(api.stream(make(gateway))) == "Hello"


def test_the_parameters_arrive_sealed_and_nothing_else(api, make):
    with Gateway() as gateway:
        api.create(make(gateway), temperature=0.5, stop=None, extra_body={"new": 1})
        api.stream(make(gateway))
    first, second = gateway.chats()
    assert first.opened().params == {**PARAMS, "temperature": 0.5, "new": 1}
    assert second.opened().params == {**PARAMS, "stream": True}
    for call in (first, second):
        assert call.headers["authorization"] == "Bearer sk_test_key"
        assert b"Hello" not in call.body


def test_a_chunk_is_given_when_it_comes_and_not_at_the_end():
    go_on = threading.Event()

    def chat(call):
        opened = call.opened()
        call.begin()
        call.piece(opened.events(PART))
        assert go_on.wait(SOON)
        call.piece(opened.stream())
        call.end()

    with Gateway(chat) as gateway, PremClient(**gateway.settings()) as client:
        stream = client.chat.completions.create(**PARAMS, stream=True)
        assert next(stream).choices[0].delta.content == "a"
        go_on.set()
        assert text_of(stream) == "Hello"


def test_a_message_of_an_answer_can_be_put_back(api, make):
    with Gateway() as gateway:
        client = make(gateway)
        answer = api.create(client).choices[0].message
        api.create(client, messages=[*PARAMS["messages"], answer, {"role": "user", "content": "And?"}])
    assert gateway.chats()[1].opened().params["messages"][1] == {"role": "assistant", "content": "Hello"}


def test_a_parameter_that_is_refused_is_not_sent(api, make):
    with Gateway() as gateway:
        client = make(gateway)
        for params in ({"temperature": 3}, {"top_k": 1}, {"messages": []}):
            with pytest.raises(errors.InvalidParameterError):
                api.create(client, **params)
            with pytest.raises(errors.InvalidParameterError):
                api.stream(client, **params)
    assert gateway.calls == []


def test_the_models_are_listed(api, make):
    body = json.dumps({"status": 200, "data": MODELS, "message": None, "env": "production"}).encode()
    with Gateway(other=lambda call: call.reply(body)) as gateway:
        client = make(gateway)
        assert [model.request_name for model in api.models(client)] == ["openai/gpt-oss-120b"]
        api.models(client, "CHAT")
    assert [(call.method, call.path, call.query) for call in gateway.calls] == [
        ("GET", "/models", ""),
        ("GET", "/models", "type=CHAT"),
    ]
    assert gateway.calls[0].headers["authorization"] == "Bearer sk_test_key"


def test_a_type_of_models_that_does_not_exist_is_refused(api, make):
    with Gateway() as gateway, pytest.raises(errors.InvalidParameterError, match="AUDIO_SPEECH") as caught:
        api.models(make(gateway), "chat")
    assert caught.value.param == "type"
    assert gateway.calls == []


# --- the enclave's key


def test_the_key_is_fetched_once_and_without_the_api_key(api, make):
    with Gateway() as gateway:
        client = make(gateway)
        for _ in range(3):
            api.create(client)
        api.stream(client)
    assert gateway.paths().count("/publicKey") == 1
    assert gateway.calls[0].path == "/publicKey"
    assert "authorization" not in gateway.calls[0].headers


def test_every_request_has_its_own_secret_and_nonce(api, make):
    with Gateway() as gateway:
        client = make(gateway)
        for _ in range(3):
            api.create(client)
    bodies = [json.loads(call.body) for call in gateway.chats()]
    assert len({body["cipherText"] for body in bodies}) == 3
    assert len({body["nonce"] for body in bodies}) == 3


@pytest.mark.parametrize("form", [lambda key: key, bytes, lambda key: bytes(key).hex()])
def test_a_pinned_key_is_used_and_never_fetched(api, make, form):
    with Gateway() as gateway:
        api.create(make(gateway, enclave_public_key=form(gateway.enclave.public)))
    assert "/publicKey" not in gateway.paths()


def test_a_turned_key_is_fetched_again_and_remembered(api, make):
    old, new = Enclave(1), Enclave(2)
    with Gateway(enclave=old) as gateway:

        def chat(call):
            try:
                call.stream(call.opened().stream())
            except errors.DecryptionError:
                call.reply(b'{"status": 400, "error": "failed to decrypt"}', 400)

        gateway.chat = chat
        client = make(gateway)
        api.create(client)
        gateway.enclave = new
        assert api.create(client).choices[0].message.content == "Hello"
        api.create(client)
    assert gateway.paths().count("/publicKey") == 2
    assert len(gateway.chats()) == 4


def test_a_key_that_cannot_be_had_is_an_enclave_key_error(api, make):
    with Gateway(key=lambda call: call.reply(b"<html>", 404)) as gateway:
        with pytest.raises(errors.EnclaveKeyError, match="404"):
            api.create(make(gateway))
    assert gateway.chats() == []


def test_a_key_that_could_not_be_had_is_asked_for_again_by_the_next_request(api, make):
    with Gateway(key=lambda call: call.reply(b"", 404)) as gateway:
        client = make(gateway)
        with pytest.raises(errors.EnclaveKeyError):
            api.create(client)
        gateway.key = gateway.give_key
        assert api.create(client).choices[0].message.content == "Hello"


def slow_key(gateway):
    answer = gateway.key

    def key(call):
        time.sleep(0.15)
        answer(call)

    gateway.key = key


def test_threads_share_one_fetch_of_the_key():
    with Gateway() as gateway, PremClient(**gateway.settings()) as client, ThreadPoolExecutor(16) as pool:
        slow_key(gateway)
        barrier = threading.Barrier(16)

        def ask(_):
            barrier.wait()
            return client.chat.completions.create(**PARAMS).choices[0].message.content

        assert list(pool.map(ask, range(16))) == ["Hello"] * 16
    assert gateway.paths().count("/publicKey") == 1


async def test_tasks_share_one_fetch_of_the_key():
    with Gateway() as gateway:
        slow_key(gateway)
        async with AsyncPremClient(**gateway.settings()) as client:
            answers = await asyncio.gather(*(client.chat.completions.create(**PARAMS) for _ in range(16)))
    assert [answer.choices[0].message.content for answer in answers] == ["Hello"] * 16
    assert gateway.paths().count("/publicKey") == 1


def test_threads_share_one_fetch_of_a_turned_key():
    options = {"max_concurrency": None}  # the barrier below wants all eight at once
    with (
        Gateway() as gateway,
        PremClient(**gateway.settings(**options)) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        client.chat.completions.create(**PARAMS)
        barrier = threading.Barrier(8)
        new = gateway.enclave = Enclave(2)

        def chat(call):
            try:
                opened = new.open(call.body)
            except errors.DecryptionError:
                barrier.wait(SOON)
                call.reply(b'{"error": "session expired"}', 400)
            else:
                call.stream(opened.stream())

        gateway.chat = chat
        slow_key(gateway)
        answers = list(pool.map(lambda _: client.chat.completions.create(**PARAMS), range(8)))
    assert len(answers) == 8
    assert gateway.paths().count("/publicKey") == 2


async def test_a_task_cancelled_while_it_fetches_the_key_does_not_stop_the_others():
    with Gateway() as gateway:
        slow_key(gateway)
        async with AsyncPremClient(**gateway.settings()) as client:
            tasks = [asyncio.create_task(client.chat.completions.create(**PARAMS)) for _ in range(4)]
            await asyncio.sleep(0.05)
            tasks[0].cancel()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert [answer.choices[0].message.content for answer in answers[1:]] == ["Hello"] * 3


# --- keys made beforehand


def test_keys_are_generated_from_the_enclaves_key(api):
    with Gateway() as gateway:
        keys = api.generate(enclave_url=gateway.url)
    assert isinstance(keys, EncryptionKeys)
    assert gateway.enclave.private.decapsulate(keys.cipher_text) == keys.shared_secret
    assert gateway.paths() == ["/publicKey"]
    assert "authorization" not in gateway.calls[0].headers


def test_keys_are_generated_for_a_key_that_is_known(api):
    enclave = Enclave()
    keys = api.generate(enclave_public_key=enclave.public)
    assert enclave.private.decapsulate(keys.cipher_text) == keys.shared_secret


def test_generated_keys_are_used_for_every_request(api, make):
    with Gateway() as gateway:
        client = make(gateway, encryption_keys=api.generate(enclave_url=gateway.url))
        api.create(client)
        api.stream(client)
    first, second = (json.loads(call.body) for call in gateway.chats())
    assert first["cipherText"] == second["cipherText"]
    assert first["nonce"] != second["nonce"]
    assert gateway.paths().count("/publicKey") == 1


def test_keys_cannot_be_generated_for_an_enclave_that_refuses(api):
    with Gateway(key=lambda call: call.reply(b"", 403)) as gateway, pytest.raises(errors.EnclaveKeyError):
        api.generate(enclave_url=gateway.url)


def test_keys_can_be_generated_while_the_gateways_variable_holds_something_else(api, monkeypatch):
    # Other software uses PROXY_URL for an HTTP proxy; no gateway is asked here.
    monkeypatch.setenv("PROXY_URL", "http://proxy.example:3128")
    with Gateway() as gateway:
        assert api.generate(enclave_url=gateway.url)


# --- connections


def ports(gateway):
    return {call.connection for call in gateway.calls}


def test_several_requests_share_one_connection(api, make):
    with Gateway() as gateway:
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

    with Gateway(chat, other=lambda call: call.reply(b'{"data": []}')) as gateway:
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

    with Gateway(chat) as gateway:
        api.create(make(gateway))
    assert len(ports(gateway)) == 1


def test_closing_a_client_closes_its_connections(api):
    with Gateway() as gateway:
        client = api.client_class(**gateway.settings())
        api.create(client)
        assert gateway.connections == 1
        api.close(client)
        assert until(lambda: gateway.connections == 0, SOON)
        api.close(client)
        with pytest.raises(errors.ConfigurationError, match="the client is closed"):
            api.create(client)


def test_the_end_of_a_with_block_closes_the_connections():
    with Gateway() as gateway:
        with PremClient(**gateway.settings()) as client:
            client.chat.completions.create(**PARAMS)
        assert until(lambda: gateway.connections == 0, SOON)


async def test_the_end_of_an_async_with_block_closes_the_connections():
    with Gateway() as gateway:
        async with AsyncPremClient(**gateway.settings()) as client:
            await client.chat.completions.create(**PARAMS)
        assert await asyncio.to_thread(until, lambda: gateway.connections == 0, SOON)


def test_an_http_client_of_the_callers_is_used_and_not_closed(api):
    with Gateway() as gateway:
        http = api.http_class(headers={"x-mine": "1"})
        client = api.client_class(**gateway.settings(http_client=http))
        api.create(client)
        api.close(client)
        assert {call.headers.get("x-mine") for call in gateway.calls} == {"1"}
        assert not http.is_closed
        assert gateway.connections == 1
        api.create(api.client_class(**gateway.settings(http_client=http)))
        http.close() if isinstance(http, httpx.Client) else api._run(http.aclose())


def test_a_redirect_is_not_followed(api, make):
    with Gateway() as other:
        redirect = {"location": f"{other.url}/rvenc/chat/completions"}
        with Gateway(lambda call: call.reply(b"", 307, redirect)) as gateway:
            for ask in (api.create, api.stream):
                with pytest.raises(errors.APIStatusError) as caught:
                    ask(make(gateway))
                assert caught.value.status_code == 307
    assert other.calls == []


def test_a_redirect_of_the_key_is_not_followed(api, make):
    with Gateway(enclave=Enclave(2)) as other:
        redirect = {"location": f"{other.url}/publicKey"}
        with Gateway(key=lambda call: call.reply(b"", 302, redirect)) as gateway:
            with pytest.raises(errors.EnclaveKeyError):
                api.create(make(gateway))
    assert other.calls == []


def test_a_redirect_is_not_followed_even_where_the_callers_http_client_would(api):
    # Whoever can redirect the key request chooses the key the prompt is sealed to.
    with Gateway(enclave=Enclave(2)) as other:
        redirect = {"location": f"{other.url}/publicKey"}
        with Gateway(key=lambda call: call.reply(b"", 302, redirect)) as gateway:
            http = api.http_class(follow_redirects=True)
            client = api.client_class(**gateway.settings(http_client=http))
            with pytest.raises(errors.EnclaveKeyError):
                api.create(client)
            http.close() if isinstance(http, httpx.Client) else api._run(http.aclose())
    assert other.calls == []


# --- leaving a stream


def leave_by_close(client):
    stream = client.chat.completions.create(**PARAMS, stream=True)
    next(stream)
    stream.close()
    assert list(stream) == []
    return stream


def leave_by_close_unread(client):
    stream = client.chat.completions.create(**PARAMS, stream=True)
    stream.close()
    return stream


def leave_by_with(client):
    with client.chat.completions.create(**PARAMS, stream=True) as stream:
        next(stream)
    return stream


def leave_by_break(client):
    stream = client.chat.completions.create(**PARAMS, stream=True)
    for _ in stream:
        break
    return stream


def leave_by_break_of_a_temporary(client):
    for _ in client.chat.completions.create(**PARAMS, stream=True):
        break


def leave_by_exception(client):
    with contextlib.suppress(KeyError):
        for _ in client.chat.completions.create(**PARAMS, stream=True):
            raise KeyError


def leave_by_forgetting(client):
    next(client.chat.completions.create(**PARAMS, stream=True))


def leave_by_forgetting_unread(client):
    client.chat.completions.create(**PARAMS, stream=True)


LEAVE = [value for name, value in list(globals().items()) if name.startswith("leave_by")]


@pytest.mark.parametrize("leave", LEAVE)
def test_leaving_a_stream_drops_its_connection_at_once(leave):
    held = Held()
    gc.disable()  # at once, not at the next full collection
    try:
        with Gateway(held) as gateway, PremClient(**gateway.settings()) as client:
            kept = leave(client)
            assert held.left.wait(SOON + 1)
            del kept
    finally:
        gc.enable()


async def aleave_by_close(client):
    stream = await client.chat.completions.create(**PARAMS, stream=True)
    await anext(stream)
    await stream.close()
    assert [chunk async for chunk in stream] == []
    return stream


async def aleave_by_close_unread(client):
    stream = await client.chat.completions.create(**PARAMS, stream=True)
    await stream.aclose()
    return stream


async def aleave_by_with(client):
    async with await client.chat.completions.create(**PARAMS, stream=True) as stream:
        await anext(stream)
    return stream


async def aleave_by_break(client):
    stream = await client.chat.completions.create(**PARAMS, stream=True)
    async for _ in stream:
        break
    return stream


async def aleave_by_break_of_a_temporary(client):
    async for _ in await client.chat.completions.create(**PARAMS, stream=True):
        break


async def aleave_by_exception(client):
    with contextlib.suppress(KeyError):
        async for _ in await client.chat.completions.create(**PARAMS, stream=True):
            raise KeyError


async def aleave_by_forgetting(client):
    await anext(await client.chat.completions.create(**PARAMS, stream=True))


async def aleave_by_forgetting_unread(client):
    await client.chat.completions.create(**PARAMS, stream=True)


ALEAVE = [value for name, value in list(globals().items()) if name.startswith("aleave_by")]


@pytest.mark.parametrize("leave", ALEAVE)
async def test_leaving_an_async_stream_drops_its_connection_at_once(leave):
    held = Held()
    gc.disable()
    try:
        with Gateway(held) as gateway:
            async with AsyncPremClient(**gateway.settings()) as client:
                kept = await leave(client)
                assert await asyncio.to_thread(held.left.wait, SOON + 1)
                del kept
    finally:
        gc.enable()


def test_a_stream_closed_by_another_thread_ends_at_once():
    held = Held()
    with Gateway(held) as gateway, PremClient(**gateway.settings()) as client:
        stream = client.chat.completions.create(**PARAMS, stream=True)
        next(stream)
        outcome = []

        def read():
            try:
                outcome.append(list(stream))
            except BaseException as error:
                outcome.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        time.sleep(0.1)  # until it waits on the socket
        stream.close()
        reader.join(SOON - 1)
        ended = not reader.is_alive()
        left = held.left.wait(SOON)
        reader.join()
    assert ended
    assert left
    assert outcome == [[]] or isinstance(outcome[0], errors.StreamInterruptedError)


async def test_a_stream_closed_by_another_task_ends_at_once():
    held = Held()
    with Gateway(held) as gateway:
        async with AsyncPremClient(**gateway.settings()) as client:
            stream = await client.chat.completions.create(**PARAMS, stream=True)
            await anext(stream)

            async def read():
                return [chunk async for chunk in stream]

            task = asyncio.create_task(read())
            await asyncio.sleep(0.05)
            await stream.close()
            (outcome,) = await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), SOON - 1)
            assert await asyncio.to_thread(held.left.wait, SOON)
    assert outcome == [] or isinstance(outcome, errors.StreamInterruptedError)


def test_other_streams_go_on_when_one_is_left():
    def chat(call):
        opened = call.opened()
        call.begin()
        call.piece(opened.events(PART))
        if len(gateway.chats()) == 1:
            call.left()
        else:
            call.piece(opened.stream())
            call.end()

    with Gateway(chat) as gateway, PremClient(**gateway.settings()) as client:
        first = client.chat.completions.create(**PARAMS, stream=True)
        second = client.chat.completions.create(**PARAMS, stream=True)
        first.close()
        assert text_of(second) == "aHello"


@pytest.mark.parametrize("unread", [False, True])
async def test_a_cancelled_task_frees_its_connection(unread):
    held = Held(first=None if unread else PART)
    with Gateway(held) as gateway:
        async with AsyncPremClient(**gateway.settings()) as client:

            async def read():
                stream = await client.chat.completions.create(**PARAMS, stream=True)
                return [chunk async for chunk in stream]

            for run in (read, lambda: client.chat.completions.create(**PARAMS)):
                held.left.clear()
                held.begun.clear()
                task = asyncio.create_task(run())
                assert await asyncio.to_thread(held.begun.wait, SOON)
                await asyncio.sleep(0.05)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert await asyncio.to_thread(held.left.wait, SOON)
            gateway.chat = say_hello
            assert (await client.chat.completions.create(**PARAMS)).choices[0].message.content == "Hello"


async def test_a_timeout_of_the_callers_frees_the_connection():
    held = Held()
    with Gateway(held) as gateway:
        async with AsyncPremClient(**gateway.settings()) as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await client.chat.completions.create(**PARAMS)
            assert await asyncio.to_thread(held.left.wait, SOON)


# --- an answer that is whole


class Lingering:
    """A chat handler that sends a whole answer and then, for as long as the client stays, nothing or comments."""

    def __init__(self, comments):
        self.comments = comments
        self.left = False
        self.wait = 1.0

    def __call__(self, call):
        call.begin()
        call.piece(call.opened().stream())
        for _ in range(10):
            if call.left(self.wait / 10):
                self.left = True
                return
            if self.comments:
                call.piece(b": keep-alive\n\n")
        call.end()


@pytest.mark.parametrize("comments", [False, True])
@pytest.mark.parametrize("way", ["create", "stream"])
def test_an_answer_that_is_whole_does_not_wait_for_the_connections_end(api, make, way, comments):
    lingering = Lingering(comments)
    with Gateway(lingering) as gateway:
        answer = getattr(api, way)(make(gateway, max_retries=0))
        until(lambda: lingering.left, lingering.wait + 1)
    assert text_of(answer) == "Hello" if way == "stream" else answer.choices[0].message.content == "Hello"
    assert lingering.left


@pytest.mark.parametrize("way", ["create", "stream"])
def test_an_answer_that_is_whole_is_not_lost_when_the_connection_breaks_behind_it(api, make, way):
    def chat(call):
        call.begin()
        call.piece(call.opened().stream())
        time.sleep(0.05)
        call.drop()

    with Gateway(chat) as gateway:
        answer = getattr(api, way)(make(gateway))
    assert text_of(answer) == "Hello" if way == "stream" else answer.choices[0].message.content == "Hello"
    assert len(gateway.chats()) == 1


# --- errors


@pytest.mark.parametrize("way", ["create", "stream"])
def test_an_answer_that_is_cut_is_an_error_and_not_asked_for_again(api, make, way):
    def chat(call):
        call.begin()
        call.piece(call.opened().events(*HELLO))
        call.end()

    with Gateway(chat) as gateway, pytest.raises(errors.StreamInterruptedError):
        getattr(api, way)(make(gateway))
    assert len(gateway.chats()) == 1


def test_the_chunks_before_a_cut_are_given():
    def chat(call):
        call.begin()
        call.piece(call.opened().events(PART, PART))
        call.drop()

    with Gateway(chat) as gateway, PremClient(**gateway.settings()) as client:
        stream = client.chat.completions.create(**PARAMS, stream=True)
        assert [next(stream).choices[0].delta.content for _ in range(2)] == ["a", "a"]
        with pytest.raises(errors.StreamInterruptedError):
            next(stream)
        assert list(stream) == []
        assert until(lambda: gateway.connections == 0, SOON)


def test_a_service_that_recovers_is_answered_from(api, make):
    def chat(call):
        if len(gateway.chats()) == 1:
            call.reply(b"", 429, {"retry-after": "0"})
        else:
            call.stream(call.opened().stream())

    with Gateway(chat) as gateway:
        assert api.create(make(gateway)).choices[0].message.content == "Hello"
    assert len(gateway.chats()) == 2


def test_without_retries_there_is_one_request(api, make):
    with Gateway(lambda call: call.reply(b"", 503)) as gateway, pytest.raises(errors.InternalServerError):
        api.create(make(gateway, max_retries=0))
    assert len(gateway.chats()) == 1


def test_a_service_that_does_not_answer_is_a_timeout(api, make):
    held = Held(first=None, wait=1)
    with Gateway(held) as gateway:
        gateway.chat = lambda call: call.left(1)
        for ask in (api.create, api.stream):
            with pytest.raises(errors.APITimeoutError):
                ask(make(gateway, timeout=0.1, max_retries=0))


def test_a_stream_that_stalls_is_a_timeout():
    with Gateway(Held()) as gateway, PremClient(**gateway.settings(timeout=0.1)) as client:
        stream = client.chat.completions.create(**PARAMS, stream=True)
        next(stream)
        with pytest.raises(errors.APITimeoutError):
            next(stream)


def test_an_httpx_timeout_is_taken(api, make):
    with Gateway() as gateway:
        gateway.chat = lambda call: call.left(1)
        timeout = httpx.Timeout(5, read=0.1)
        with pytest.raises(errors.APITimeoutError):
            api.create(make(gateway, timeout=timeout, max_retries=0))


def test_no_error_shows_the_api_key(api, make):
    replies = [
        lambda call: call.reply(b'{"error": "no"}', 401),
        lambda call: call.reply(b"", 503),
        lambda call: call.reply(b"<html>", 200),
        lambda call: call.raw(b"rubbish\r\n\r\n") or call.drop(),
        lambda call: call.drop(),
        lambda call: call.left(0.5),
    ]
    for reply in replies:
        with Gateway(reply) as gateway:
            client = make(gateway, api_key="sk_test_SECRET", timeout=0.2, max_retries=0)
            for ask in (api.create, api.stream):
                with pytest.raises(errors.APIError) as caught:
                    ask(client)
                assert "SECRET" not in said(caught.value)
                assert caught.value.__cause__ is None


def test_a_gateway_that_cannot_be_reached_is_a_connection_error(api, make):
    with Gateway() as closed:
        pass
    with Gateway() as gateway:
        client = make(gateway, gateway_url=closed.url, max_retries=0)
        with pytest.raises(errors.APIConnectionError, match="gateway"):
            api.create(client)


def test_an_enclave_that_cannot_be_reached_is_a_connection_error(api, make):
    with Gateway() as closed:
        pass
    with Gateway() as gateway, pytest.raises(errors.APIConnectionError, match="enclave"):
        api.create(make(gateway, enclave_url=closed.url, max_retries=0))
    assert gateway.calls == []


def test_the_error_of_a_stream_is_raised_by_create_when_it_comes_first(api, make):
    with Gateway(
        lambda call: call.stream(b'event: error\ndata: {"error": {"message": "no", "type": "x"}}\n\n')
    ) as gateway:
        with pytest.raises(errors.APIError, match="no"):
            api.create(make(gateway))


def test_an_answer_larger_than_the_buffer_is_an_error(api, make):
    def chat(call):
        call.head(200, EVENT_STREAM)
        call.raw(b"data: " + b"0" * 300_000)
        call.left()

    with Gateway(chat) as gateway:
        for ask in (api.create, api.stream):
            with pytest.raises(errors.ResponseTooLargeError):
                ask(make(gateway, max_buffer_size=100_000))


# --- many callers


def test_one_client_serves_many_threads():
    def chat(call):
        opened = call.opened()
        word = opened.params["messages"][0]["content"]
        call.stream(
            *(opened.events({"choices": [{"index": 0, "delta": {"content": c}}]}) for c in word),
            end_of(opened),
        )

    def ask(number):
        message = [{"role": "user", "content": f"word {number}"}]
        if number % 2:
            return text_of(client.chat.completions.create(**{**PARAMS, "messages": message}, stream=True))
        answer = client.chat.completions.create(**{**PARAMS, "messages": message})
        return answer.choices[0].message.content

    with Gateway(chat) as gateway, PremClient(**gateway.settings()) as client, ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(80))) == [f"word {number}" for number in range(80)]
    assert gateway.paths().count("/publicKey") == 1


def end_of(opened):
    return opened.events({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}) + DONE


async def test_one_client_serves_many_tasks():
    def chat(call):
        opened = call.opened()
        word = opened.params["messages"][0]["content"]
        call.stream(opened.events({"choices": [{"index": 0, "delta": {"content": word}}]}) + end_of(opened))

    async def ask(number):
        message = [{"role": "user", "content": f"word {number}"}]
        stream = await client.chat.completions.create(**{**PARAMS, "messages": message}, stream=True)
        return text_of([chunk async for chunk in stream])

    with Gateway(chat) as gateway:
        async with AsyncPremClient(**gateway.settings()) as client:
            assert await asyncio.gather(*map(ask, range(40))) == [f"word {number}" for number in range(40)]


def test_one_async_client_serves_the_loops_of_several_threads():
    with Gateway() as gateway, ThreadPoolExecutor(4) as pool:
        client = AsyncPremClient(**gateway.settings())

        async def ask():
            answers = await asyncio.gather(*(client.chat.completions.create(**PARAMS) for _ in range(5)))
            return [answer.choices[0].message.content for answer in answers]

        assert list(pool.map(lambda _: asyncio.run(ask()), range(8))) == [["Hello"] * 5] * 8
        assert until(lambda: gateway.connections == 0, SOON)


def test_one_async_client_serves_loops_that_begin_and_end_at_once():
    async def ask():
        return len(await client.models.list())

    interval = sys.getswitchinterval()
    with (
        Gateway(other=lambda call: call.reply(b'{"data": []}')) as gateway,
        ThreadPoolExecutor(8) as pool,
    ):
        client = AsyncPremClient(**gateway.settings())
        sys.setswitchinterval(1e-6)
        try:
            assert list(pool.map(lambda _: asyncio.run(ask()), range(160))) == [0] * 160
        finally:
            sys.setswitchinterval(interval)


def test_one_async_client_serves_five_loops_and_leaves_nothing_behind():
    with Gateway() as gateway, warnings.catch_warnings():
        warnings.simplefilter("error")
        client = AsyncPremClient(**gateway.settings())

        async def ask():
            stream = await client.chat.completions.create(**PARAMS, stream=True)
            await client.chat.completions.create(**PARAMS)
            return text_of([chunk async for chunk in stream])

        for _ in range(5):
            assert asyncio.run(ask()) == "Hello"
            assert until(lambda: gateway.connections == 0, SOON)
        gc.collect()
    assert gateway.paths().count("/publicKey") == 1


def test_a_loop_that_has_ended_is_not_kept():
    loops = []
    with Gateway() as gateway:
        slow_key(gateway)
        client = AsyncPremClient(**gateway.settings())

        async def ask():
            loops.append(weakref.ref(asyncio.get_running_loop()))
            # Several at once, so that they meet at the lock around the key.
            await asyncio.gather(*(client.chat.completions.create(**PARAMS) for _ in range(4)))

        for _ in range(3):
            asyncio.run(ask())
        gc.collect()
    assert [loop() for loop in loops] == [None] * 3


def test_a_loop_that_was_closed_without_a_farewell_is_not_kept():
    # A loop that is only closed does not finalise its generators; with a client of the caller's none is needed.
    def answer(request):
        return httpx.Response(200, json={"data": []})

    client = AsyncPremClient(
        api_key="k", http_client=httpx.AsyncClient(transport=httpx.MockTransport(answer))
    )
    loops = []
    for _ in range(3):
        loop = asyncio.new_event_loop()
        assert loop.run_until_complete(client.models.list()) == []
        loop.close()
        loops.append(weakref.ref(loop))
        del loop
    gc.collect()
    assert [loop() for loop in loops[:2]] == [None] * 2


# --- clients nobody closes


def test_a_temporary_client_answers():
    with Gateway() as gateway:
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
        assert until(lambda: gateway.connections == 0, SOON)


async def test_a_temporary_async_client_answers():
    with Gateway() as gateway:
        answer = await AsyncPremClient(**gateway.settings()).chat.completions.create(**PARAMS)
        assert answer.choices[0].message.content == "Hello"
        stream = await AsyncPremClient(**gateway.settings()).chat.completions.create(**PARAMS, stream=True)
        assert text_of([chunk async for chunk in stream]) == "Hello"
        del stream
        gc.collect()
        await asyncio.sleep(0.05)
        assert await asyncio.to_thread(until, lambda: gateway.connections == 0, SOON)


def test_a_client_nobody_closed_gives_its_sockets_back_when_it_is_forgotten():
    with Gateway() as gateway:
        client = PremClient(**gateway.settings())
        client.chat.completions.create(**PARAMS)
        list(client.chat.completions.create(**PARAMS, stream=True))
        gc.disable()
        try:
            del client
            assert until(lambda: gateway.connections == 0, SOON)
        finally:
            gc.enable()


async def test_an_async_client_nobody_closed_gives_its_sockets_back_when_it_is_forgotten():
    with Gateway() as gateway:
        client = AsyncPremClient(**gateway.settings())
        await client.chat.completions.create(**PARAMS)
        del client
        gc.collect()
        await asyncio.sleep(0.05)
        assert await asyncio.to_thread(until, lambda: gateway.connections == 0, SOON)


NOBODY_CLOSES = """
import asyncio, sys
from prem_core import AsyncPremClient, PremClient
settings = dict(api_key="k", gateway_url=sys.argv[1], enclave_url=sys.argv[1])
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


def test_a_program_that_closes_nothing_ends_without_a_warning():
    with Gateway() as gateway:
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


# --- settings


@pytest.mark.parametrize("client_class", [PremClient, AsyncPremClient])
@pytest.mark.parametrize(
    ("settings", "kind", "name"),
    [
        ({"api_key": None}, errors.ConfigurationError, "PREM_API_KEY"),
        ({"api_key": "sk SECRET"}, errors.ConfigurationError, "API key"),
        ({"gateway_url": "http://gateway.prem.io"}, errors.ConfigurationError, "gateway_url"),
        ({"enclave_url": "http://conf-engine.prem.io"}, errors.ConfigurationError, "enclave_url"),
        ({"gateway_url": "gateway.prem.io"}, errors.ConfigurationError, "gateway_url"),
        ({"timeout": 0}, errors.ConfigurationError, "timeout"),
        ({"timeout": None}, errors.ConfigurationError, "timeout"),
        ({"max_retries": -1}, errors.ConfigurationError, "max_retries"),
        ({"max_retries": 1.5}, errors.ConfigurationError, "max_retries"),
        ({"max_buffer_size": 0}, errors.ConfigurationError, "max_buffer_size"),
        ({"max_buffer_size": 0.5}, errors.ConfigurationError, "max_buffer_size"),
        ({"encryption_keys": "00"}, errors.ConfigurationError, "encryption_keys"),
        ({"http_client": object()}, errors.ConfigurationError, "http_client"),
        ({"enclave_public_key": "00"}, errors.EnclaveKeyError, "1216 bytes"),
        ({"enclave_public_key": b""}, errors.EnclaveKeyError, "1216 bytes"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name(client_class, settings, kind, name):
    with pytest.raises(kind, match=name) as caught:
        client_class(**{"api_key": "sk_test_key", **settings})
    assert "SECRET" not in said(caught.value)


def test_the_other_clients_http_client_is_refused():
    with pytest.raises(errors.ConfigurationError, match="http_client"):
        PremClient(api_key="k", http_client=httpx.AsyncClient())
    with httpx.Client() as http, pytest.raises(errors.ConfigurationError, match="http_client"):
        AsyncPremClient(api_key="k", http_client=http)


def test_plain_http_to_another_machine_is_allowed_where_it_is_meant():
    with PremClient(api_key="k", gateway_url="http://gateway.internal", allow_insecure=True) as client:
        assert "http://gateway.internal" in repr(client)


def test_settings_come_from_the_environment(api, monkeypatch):
    with Gateway() as gateway:
        monkeypatch.setenv("PREM_API_KEY", "sk_live_env")
        monkeypatch.setenv("PREM_GATEWAY_URL", gateway.url)
        monkeypatch.setenv("ENCLAVE_URL", gateway.url)
        client = api.client_class()
        api.create(client)
        api.close(client)
    assert gateway.chats()[0].headers["authorization"] == "Bearer sk_live_env"


@pytest.mark.parametrize("client_class", [PremClient, AsyncPremClient])
def test_a_client_shows_neither_its_key_nor_its_keys(client_class):
    keys = EncryptionKeys.encapsulate(Enclave().public)
    client = client_class(api_key="sk_test_SECRET", encryption_keys=keys)
    for shown in (repr(client), str(client), repr(vars(client))):
        assert "SECRET" not in shown
        assert keys.shared_secret.hex() not in shown
        assert repr(keys.shared_secret)[2:-1] not in shown


@pytest.mark.parametrize("client_class", [PremClient, AsyncPremClient])
def test_a_client_is_not_pickled(client_class):
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(client_class(api_key="sk_test_SECRET"))


def test_both_clients_take_the_same_arguments():
    import inspect

    def parameters(function):
        return {
            name: (parameter.kind, parameter.default)
            for name, parameter in inspect.signature(function).parameters.items()
        }

    assert parameters(PremClient) == parameters(AsyncPremClient)
    assert parameters(generate_encryption_keys) == parameters(agenerate_encryption_keys)
    sync, asynchronous = (client(api_key="k") for client in (PremClient, AsyncPremClient))
    assert parameters(sync.chat.completions.create) == parameters(asynchronous.chat.completions.create)
    assert parameters(sync.models.list) == parameters(asynchronous.models.list)


# --- https and the published endpoints


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for this machine, and the context of a server that has it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    encoding = serialization.Encoding.PEM
    path.write_bytes(
        signed.public_bytes(encoding)
        + key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(path)
    return server, ssl.create_default_context(cafile=str(path))


def test_https_is_spoken(api, certificate):
    server, trusting = certificate
    with Gateway(tls=server) as gateway:
        http = api.http_class(verify=trusting)
        client = api.client_class(**gateway.settings(http_client=http))
        assert api.create(client).choices[0].message.content == "Hello"
        http.close() if isinstance(http, httpx.Client) else api._run(http.aclose())


def test_a_certificate_nobody_vouches_for_is_refused(api, make, certificate):
    with Gateway(tls=certificate[0]) as gateway, pytest.raises(errors.APIConnectionError):
        api.create(make(gateway, max_retries=0))
    assert gateway.calls == []


BUILT_IN = {"gateway_url": "https://gateway.prem.io", "enclave_url": "https://conf-engine.prem.io"}


@pytest.fixture
def page(certificate, monkeypatch):
    """An https page whose body the test sets."""
    server, trusting = certificate
    monkeypatch.setattr("prem_core._client.endpoints.ssl_context", lambda: trusting)
    with Gateway(tls=server) as gateway:
        yield gateway


def test_the_published_endpoints_are_read(page):
    body = {"proxy": "https://new-gateway.prem.io/", "enclave": "https://new-enclave.prem.io"}
    page.other = lambda call: call.reply(json.dumps(body).encode())
    found = discover_endpoints(f"{page.url}/endpoints.json")
    assert found == {
        "gateway_url": "https://new-gateway.prem.io",
        "enclave_url": "https://new-enclave.prem.io",
    }
    assert page.paths() == ["/endpoints.json"]
    assert "authorization" not in page.calls[0].headers
    with PremClient(api_key="k", **found) as client:
        assert "new-gateway" in repr(client)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, b"{}"),
        (503, b""),
        (302, b""),
        (200, b""),
        (200, b"<html>"),
        (200, b"\xff"),
        (200, b"[]"),
        (200, b"null"),
        (200, b"{}"),
        (200, b'{"proxy": "https://a"}'),
        (200, b'{"proxy": null, "enclave": null}'),
        (200, b'{"proxy": "", "enclave": ""}'),
        (200, b'{"proxy": 1, "enclave": 2}'),
        (200, b'{"proxy": ["https://a"], "enclave": {}}'),
        (200, b'{"proxy": "http://gateway.prem.io", "enclave": "https://b"}'),
        (200, b'{"proxy": "https://a", "enclave": "ftp://b"}'),
    ],
)
def test_a_page_that_cannot_be_used_leaves_the_built_in_endpoints_and_a_warning(
    page, status, body, monkeypatch
):
    # The page is asked, not the environment: a page without a name must not fall back on that.
    monkeypatch.setenv("PREM_GATEWAY_URL", "https://environment")
    monkeypatch.setenv("PREM_ENCLAVE_URL", "https://environment")
    page.other = lambda call: call.reply(body, status, JSON)
    with pytest.warns(UserWarning, match="built-in"):
        assert discover_endpoints(page.url) == BUILT_IN


def test_a_page_whose_certificate_nobody_vouches_for_is_not_believed(certificate):
    with Gateway(tls=certificate[0]) as gateway, pytest.warns(UserWarning, match="built-in"):
        assert discover_endpoints(gateway.url) == BUILT_IN
    assert gateway.calls == []


def test_a_page_that_cannot_be_reached_leaves_the_built_in_endpoints_and_a_warning():
    with Gateway() as closed:
        url = closed.url.replace("http:", "https:")
    with pytest.warns(UserWarning, match="ConnectError"):
        assert discover_endpoints(url) == BUILT_IN


@pytest.mark.parametrize(
    "url", ["http://dashboard.prem.io/endpoints.json", "file:///etc/passwd", "dashboard.prem.io", ""]
)
def test_endpoints_are_read_over_https_only(url):
    with pytest.raises(errors.ConfigurationError, match="https"):
        discover_endpoints(url)


def test_the_version_is_a_version():
    assert prem_core.__version__.count(".") == 2
