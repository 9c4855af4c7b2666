"""The clients keep to their limits: concurrency, permits of streams, and Retry-After."""

import asyncio
import contextlib
import gc
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.client_api import CHUNK, AsyncApi, StallingStream, SyncApi
from support.fake_gateway import PARAMS, FakeEnclave, FakeGateway, event, stream_hello, text_of
from support.waiting import SOON, eventually

from prem_core import AsyncPremClient, ConfigurationError, Limits, PremClient, RateLimitError, Stats
from prem_core import _errors as errors


class HeldAnswers:
    """A chat handler that answers when the test releases it."""

    def __init__(self):
        self.release = threading.Event()

    def __call__(self, call):
        self.release.wait(SOON)
        stream_hello(call)


@pytest.fixture(params=["sync", "async"])
def api(request):
    if request.param == "sync":
        yield SyncApi()
    else:
        with asyncio.Runner() as runner:
            yield AsyncApi(runner)


def ask(client, **params):
    return client.chat.completions.create(**{**PARAMS, **params})


async def read(client):
    return text_of([chunk async for chunk in await ask(client, stream=True)])


# --- how many requests are open


async def test_tasks_have_no_more_than_max_concurrency_requests_open():
    held = HeldAnswers()
    with FakeGateway(held) as gateway:
        async with AsyncPremClient(**gateway.settings()) as client:
            tasks = [asyncio.ensure_future(ask(client)) for _ in range(10)]
            tasks += [asyncio.ensure_future(read(client)) for _ in range(10)]
            assert await asyncio.to_thread(eventually, lambda: client.stats.waiting == 15)
            assert await asyncio.to_thread(eventually, lambda: len(gateway.chats()) == 5)
            assert client.stats.in_flight == 5
            held.release.set()
            await asyncio.gather(*tasks)
    assert client.stats == Stats(requests=20)


def test_without_max_concurrency_any_number_of_requests_is_open():
    held = HeldAnswers()
    with FakeGateway(held) as gateway, ThreadPoolExecutor(12) as pool:
        with PremClient(**gateway.settings(max_concurrency=None)) as client:
            jobs = [pool.submit(ask, client) for _ in range(12)]
            assert eventually(lambda: len(gateway.chats()) == 12)
            held.release.set()
            for job in jobs:
                job.result(SOON)


def test_clients_threads_and_tasks_share_the_limits_passed_to_them():
    held, limits = HeldAnswers(), Limits(2)
    with FakeGateway(held) as gateway, ThreadPoolExecutor(8) as pool, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(PremClient(**gateway.settings(limits=limits))) for _ in range(2)]
        shared = AsyncPremClient(**gateway.settings(limits=limits))

        async def in_tasks():
            await asyncio.gather(*(ask(shared) for _ in range(3)))

        jobs = [pool.submit(ask, clients[n % 2]) for n in range(6)]
        jobs += [pool.submit(asyncio.run, in_tasks()) for _ in range(2)]
        assert eventually(lambda: limits.stats.waiting == 10)
        assert eventually(lambda: len(gateway.chats()) == 2)
        held.release.set()
        for job in jobs:
            job.result(SOON)
    assert limits.stats == clients[0].stats == shared.stats == Stats(requests=12)


# --- how long a permit is held


def test_a_stream_holds_its_permit_until_it_is_closed():
    with (
        FakeGateway(StallingStream()) as gateway,
        PremClient(**gateway.settings(max_concurrency=1)) as client,
    ):
        stream = ask(client, stream=True)
        with ThreadPoolExecutor(1) as pool:
            second = pool.submit(ask, client, stream=True)
            assert eventually(lambda: client.stats.waiting == 1)
            assert len(gateway.chats()) == 1
            stream.close()
            second.result(SOON).close()
            stream.close()
        assert client.stats == Stats(requests=2)


def test_a_stream_that_was_read_to_its_end_holds_no_permit():
    with FakeGateway() as gateway, PremClient(**gateway.settings(max_concurrency=1)) as client:
        stream = ask(client, stream=True)
        assert client.stats.in_flight == 1
        assert text_of(stream) == "Hello"
        assert client.stats.in_flight == 0
        assert text_of(ask(client, stream=True)) == "Hello"
        del stream


def abandon(client):
    ask(client, stream=True)


def abandon_after_a_chunk(client):
    next(ask(client, stream=True))


def abandon_in_a_cycle(client):
    holder = {"stream": ask(client, stream=True)}
    holder["holder"] = holder
    del holder
    gc.collect()


@pytest.mark.parametrize("leave", [abandon, abandon_after_a_chunk, abandon_in_a_cycle])
def test_a_stream_that_is_garbage_collected_disconnects_and_releases_its_permit(leave):
    stalling = StallingStream()
    with FakeGateway(stalling) as gateway, PremClient(**gateway.settings(max_concurrency=1)) as client:
        leave(client)
        gateway.chat = stream_hello
        assert ask(client).choices[0].message.content == "Hello"
        assert stalling.disconnected.wait(SOON)
        assert client.stats.in_flight == 0


async def test_an_async_stream_that_is_garbage_collected_releases_its_permit():
    with FakeGateway(StallingStream()) as gateway:
        async with AsyncPremClient(**gateway.settings(max_concurrency=1)) as client:
            await ask(client, stream=True)
            gateway.chat = stream_hello
            answer = await asyncio.wait_for(ask(client), SOON)
            assert answer.choices[0].message.content == "Hello"
            assert client.stats.in_flight == 0


def test_a_stream_of_a_closed_event_loop_releases_its_permit():
    with FakeGateway(StallingStream()) as gateway:
        client = AsyncPremClient(**gateway.settings(max_concurrency=1))

        async def start():
            return await ask(client, stream=True)

        stream = asyncio.run(start())
        del stream
        gc.collect()
        assert eventually(lambda: client.stats.in_flight == 0)
        gateway.chat = stream_hello
        assert asyncio.run(read(client)) == "Hello"


@pytest.mark.parametrize("status", [400, 401, 500])
def test_an_error_releases_the_permit(api, status):
    with FakeGateway(lambda call: call.reply(b"{}", status)) as gateway:
        client = api.client_class(**gateway.settings(max_concurrency=1, max_retries=0))
        for _ in range(3):
            with pytest.raises(errors.APIStatusError):
                api.create(client)
            with pytest.raises(errors.APIStatusError):
                api.stream(client)
            with pytest.raises(errors.InvalidParameterError):
                api.create(client, temperature=3)
        api.close(client)
    assert client.stats == Stats(requests=6)


def test_a_truncated_answer_releases_the_permit(api):
    def truncated(call):
        call.begin()
        call.piece(call.opened().events(CHUNK))
        call.disconnect()

    with FakeGateway(truncated) as gateway:
        client = api.client_class(**gateway.settings(max_concurrency=1))
        for way in (api.create, api.stream):
            with pytest.raises(errors.StreamInterruptedError):
                way(client)
        api.close(client)
    assert client.stats.in_flight == 0


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="this system does not list descriptors")
async def test_a_cancelled_task_releases_its_permit_and_its_socket():
    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    async def soon(condition):
        assert await asyncio.to_thread(eventually, condition)

    with FakeGateway() as gateway:
        async with AsyncPremClient(**gateway.settings(max_concurrency=2)) as client:
            await ask(client)
            gateway.chat = StallingStream()
            before = descriptors()
            for _ in range(5):
                tasks = [asyncio.create_task(read(client)) for _ in range(3)]
                # Each connection is two descriptors here: this process is the gateway too.
                await soon(lambda: client.stats.in_flight == 2 and gateway.connections == 2)
                for task in reversed(tasks):
                    task.cancel()
                await asyncio.wait(tasks)
                assert (client.stats.in_flight, client.stats.waiting) == (0, 0)
                await soon(lambda: gateway.connections == 0)
            await soon(lambda: descriptors() <= before)
            gateway.chat = stream_hello
            await asyncio.wait_for(ask(client), SOON)


def test_a_call_that_waits_while_the_client_is_closed_is_an_error():
    with FakeGateway(StallingStream()) as gateway, ThreadPoolExecutor(1) as pool:
        client = PremClient(**gateway.settings(max_concurrency=1))
        stream = ask(client, stream=True)
        waiting = pool.submit(ask, client)
        assert eventually(lambda: client.stats.waiting == 1)
        client.close()
        stream.close()
        with pytest.raises(ConfigurationError, match="closed"):
            waiting.result(SOON)


# --- what needs no permit


def test_a_key_rotation_costs_one_request_however_many_callers_wait():
    held = threading.Event()

    def chat(call):
        held.wait(SOON)
        try:
            call.stream(gateway.enclave.open(call.body).stream())
        except errors.DecryptionError:
            call.reply(b'{"error": "session expired"}', 400)

    with FakeGateway(chat) as gateway, PremClient(**gateway.settings(max_concurrency=1)) as client:
        held.set()
        ask(client)
        gateway.enclave = FakeEnclave(2)
        held.clear()
        with ThreadPoolExecutor(4) as pool:
            jobs = [pool.submit(ask, client) for _ in range(4)]
            assert eventually(lambda: client.stats.waiting == 3)
            held.set()
            for job in jobs:
                job.result(SOON)
    assert len(gateway.chats()) == 1 + 1 + 4
    assert gateway.paths().count("/publicKey") == 2  # the fetch needs no permit


def test_the_models_list_needs_no_permit():
    with FakeGateway(StallingStream(), other=lambda call: call.reply(b'{"data": []}')) as gateway:
        with PremClient(**gateway.settings(max_concurrency=1)) as client, ask(client, stream=True):
            assert client.models.list() == []


# --- Retry-After


class RejectsFirst:
    """A chat handler that answers the first request 429, and records when each came and what its prompt was."""

    def __init__(self, retry_after="1"):
        self.retry_after = retry_after
        self.lock, self.times, self.prompts = threading.Lock(), [], []
        self.release = threading.Event()
        self.release.set()

    def __call__(self, call):
        with self.lock:
            self.times.append(time.monotonic())
            self.prompts.append(call.opened().params["messages"][0]["content"])
            first = len(self.times) == 1
        self.release.wait(SOON)
        if first:
            call.reply(b"{}", 429, {"retry-after": self.retry_after})
        else:
            stream_hello(call)


def test_one_429_pauses_threads_and_tasks():
    chat, limits = RejectsFirst(), Limits(1)
    with FakeGateway(chat) as gateway, ThreadPoolExecutor(3) as pool:
        client = PremClient(**gateway.settings(limits=limits))
        other = AsyncPremClient(**gateway.settings(limits=limits))
        jobs = [pool.submit(ask, client), pool.submit(ask, client), pool.submit(asyncio.run, read(other))]
        for job in jobs:
            job.result(SOON)
        client.close()
    rejected, *answered = chat.times
    assert len(answered) == 3
    assert min(answered) - rejected >= 1
    assert limits.stats == Stats(requests=4, retries=1, rate_limited=1)


def test_the_call_that_was_answered_429_is_retried_first():
    chat = RejectsFirst(retry_after="0")
    chat.release.clear()
    with FakeGateway(chat) as gateway, PremClient(**gateway.settings(max_concurrency=1)) as client:
        with ThreadPoolExecutor(4) as pool:
            jobs = []
            for n in range(4):
                jobs.append(pool.submit(ask, client, messages=[{"role": "user", "content": str(n)}]))
                assert eventually(lambda n=n: client.stats.waiting == n and client.stats.in_flight == 1)
            chat.release.set()
            for job in jobs:
                job.result(SOON)
    assert chat.prompts == ["0", "0", "1", "2", "3"]


def test_a_retry_after_above_the_limit_is_an_error_that_is_counted_and_pauses_no_caller(api):
    with FakeGateway(RejectsFirst(retry_after="3600")) as gateway:
        client = api.client_class(**gateway.settings())
        with pytest.raises(RateLimitError) as caught:
            api.create(client)
        assert caught.value.retry_after == 3600
        assert api.create(client).choices[0].message.content == "Hello"
        api.close(client)
    assert client.stats == Stats(requests=2, rate_limited=1)


@pytest.mark.parametrize("way", ["create", "stream"])
def test_a_rate_limit_in_mid_stream_is_counted(api, way):
    def chat(call):
        error = event("error", '{"error": {"message": "slow down", "type": "rate_limit_error"}}')
        call.stream(call.opened().events(CHUNK), error)

    with FakeGateway(chat) as gateway:
        client = api.client_class(**gateway.settings())
        with pytest.raises(RateLimitError):
            getattr(api, way)(client)
        api.close(client)
    assert client.stats == Stats(requests=1, rate_limited=1)


# --- settings


@pytest.mark.parametrize("client_class", [PremClient, AsyncPremClient])
@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"max_concurrency": 0}, "max_concurrency"),
        ({"max_concurrency": "5"}, "max_concurrency"),
        ({"requests_per_second": -1}, "requests_per_second"),
        ({"limits": 5}, "limits"),
        ({"limits": Limits(), "max_concurrency": 3}, "max_concurrency"),
        ({"limits": Limits(), "requests_per_second": 3}, "requests_per_second"),
    ],
)
def test_an_invalid_setting_is_an_error_that_names_it(client_class, settings, name):
    with pytest.raises(ConfigurationError, match=name):
        client_class(api_key="k", **settings)


def test_a_client_exposes_its_limits():
    limits = Limits(7)
    with PremClient(api_key="k", limits=limits) as client:
        assert client.limits is limits
    with PremClient(api_key="k", max_concurrency=None, requests_per_second=2) as client:
        assert (client.limits.max_concurrency, client.limits.requests_per_second) == (None, 2)
        assert client.stats == Stats()


# --- streams


async def test_a_stream_refused_because_of_another_one_does_not_delay_other_requests():
    def chat(call):
        if call.opened().params.get("stream"):
            message = b'{"error": "You already have an active chat stream. Please wait for it to complete"}'
            call.reply(message, 429, {"retry-after": "50", "content-type": "application/json"})
        else:
            stream_hello(call)

    limits = Limits()
    with FakeGateway(chat) as gateway:
        async with AsyncPremClient(**gateway.settings(limits=limits)) as client:
            stream = asyncio.create_task(read(client))
            assert await asyncio.to_thread(eventually, lambda: limits.stats == WAITING_STREAM)
            for _ in range(3):
                await asyncio.wait_for(ask(client), SOON)
            assert not stream.done()
            stream.cancel()
            await asyncio.wait([stream])
    assert limits.stats == Stats(requests=4, rate_limited=1)


WAITING_STREAM = Stats(requests=1, rate_limited=1, waiting=1)
