import asyncio
import contextlib
import gc
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from support.fake_gateway import DONE, HELLO, PARAMS, FakeEnclave, FakeGateway, stream_hello, text_of
from support.waiting import eventually

from prem_core import AsyncPremClient, ConfigurationError, Limits, PremClient, RateLimitError, Stats
from prem_core import _errors as errors

SOON = 3.0
PART = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]}
COMMENT = b": keep-alive\n\n"


def descriptors():
    return len(os.listdir("/proc/self/fd"))


needs_proc = pytest.mark.skipif(
    not os.path.isdir("/proc/self/fd"), reason="this system does not list descriptors"
)


class Counting:
    """Answers after a moment, and counts how many it answers at once."""

    def __init__(self, seconds=0.03, answer=stream_hello):
        self.seconds, self.answer = seconds, answer
        self.lock, self.now, self.most, self.all = threading.Lock(), 0, 0, 0

    def __call__(self, call):
        with self.lock:
            self.now, self.all = self.now + 1, self.all + 1
            self.most = max(self.most, self.now)
        time.sleep(self.seconds)
        with self.lock:
            # Before the last byte: whoever has it may send the next request.
            self.now -= 1
        self.answer(call)


class Holding:
    """Sends one chunk, and then what `then` does until the client leaves."""

    def __init__(self, then=lambda call: call.wait_for_disconnect()):
        self.then, self.left, self.begun = then, threading.Event(), threading.Event()

    def __call__(self, call):
        opened = call.opened()
        call.begin()
        call.piece(opened.events(PART))
        self.begun.set()
        self.then(call)
        if call.wait_for_disconnect(SOON):
            self.left.set()


def dripping(call):
    """Comments, as long as anybody listens."""
    while not call.wait_for_disconnect(0.05):
        call.piece(COMMENT)


def ask(client, **params):
    return client.chat.completions.create(**{**PARAMS, **params})


# --- how many at once


def test_threads_have_no_more_than_the_slots_in_flight():
    chat = Counting()
    with FakeGateway(chat) as gateway, PremClient(**gateway.settings(max_concurrency=3)) as client:
        with ThreadPoolExecutor(12) as pool:
            assert len(list(pool.map(lambda _: ask(client), range(36)))) == 36
    assert (chat.most, chat.all) == (3, 36)
    assert client.stats == Stats(requests=36)


async def test_tasks_have_no_more_than_the_slots_in_flight():
    chat = Counting()
    with FakeGateway(chat) as gateway:
        async with AsyncPremClient(**gateway.settings()) as client:
            answers = await asyncio.gather(*(ask(client) for _ in range(40)))
            streams = await asyncio.gather(*(read(client) for _ in range(20)))
    assert {answer.choices[0].message.content for answer in answers} == {"Hello"}
    assert set(streams) == {"Hello"}
    assert chat.most == 5
    assert client.stats == Stats(requests=60)


async def read(client):
    return text_of([chunk async for chunk in await ask(client, stream=True)])


def test_off_is_off():
    chat = Counting(0.3)
    options = {"max_concurrency": None}
    with (
        FakeGateway(chat) as gateway,
        PremClient(**gateway.settings(**options)) as client,
        ThreadPoolExecutor(12) as pool,
    ):
        list(pool.map(lambda _: ask(client), range(12)))
    assert chat.most > 5


def test_threads_tasks_and_models_share_what_is_given_to_them():
    chat = Counting()
    limits = Limits(2)
    with FakeGateway(chat) as gateway, ThreadPoolExecutor(8) as pool:
        clients = [PremClient(**gateway.settings(limits=limits)) for _ in range(2)]
        shared = AsyncPremClient(**gateway.settings(limits=limits))

        async def tasks():
            await asyncio.gather(*(ask(shared) for _ in range(6)))

        jobs = [pool.submit(ask, clients[n % 2]) for n in range(12)]
        jobs += [pool.submit(lambda: asyncio.run(tasks())) for _ in range(2)]
        for job in jobs:
            job.result(30)
        for client in clients:
            client.close()
    assert chat.most == 2
    assert limits.stats == clients[0].stats == shared.stats == Stats(requests=24)


def test_requests_of_one_rate_begin_no_faster():
    with FakeGateway() as gateway, PremClient(**gateway.settings(requests_per_second=10)) as client:
        ask(client)
        for _ in range(9):
            ask(client)
        start = time.monotonic()
        for _ in range(3):
            ask(client)
    assert time.monotonic() - start > 0.2


# --- how long a slot is held


def test_a_stream_holds_its_slot_until_it_is_closed():
    holding = Holding()
    with FakeGateway(holding) as gateway, PremClient(**gateway.settings(max_concurrency=1)) as client:
        stream = ask(client, stream=True)
        with ThreadPoolExecutor(1) as pool:
            second = pool.submit(ask, client, stream=True)
            assert eventually(lambda: client.stats.waiting == 1)
            time.sleep(0.05)
            assert len(gateway.chats()) == 1
            stream.close()
            second.result(SOON).close()
            stream.close()
        assert client.stats == Stats(requests=2)


def test_a_stream_that_was_read_to_its_end_holds_no_slot():
    with FakeGateway() as gateway, PremClient(**gateway.settings(max_concurrency=1)) as client:
        stream = ask(client, stream=True)
        assert client.stats.in_flight == 1
        assert text_of(stream) == "Hello"
        assert client.stats.in_flight == 0
        assert text_of(ask(client, stream=True)) == "Hello"
        del stream
    assert client.stats == Stats(requests=2)


def forget(client):
    ask(client, stream=True)


def forget_begun(client):
    next(ask(client, stream=True))


def forget_in_a_cycle(client):
    holder = {"stream": ask(client, stream=True)}
    holder["holder"] = holder


@pytest.mark.parametrize("leave", [forget, forget_begun, forget_in_a_cycle])
def test_a_forgotten_stream_frees_its_slot_when_its_connection_is_gone(leave):
    holding = Holding()
    with FakeGateway(holding) as gateway, PremClient(**gateway.settings(max_concurrency=1)) as client:
        leave(client)
        gateway.chat = stream_hello
        assert ask(client).choices[0].message.content == "Hello"
        assert eventually(lambda: client.stats.in_flight == 0)
        assert holding.left.wait(SOON)


async def test_a_forgotten_async_stream_frees_its_slot():
    holding = Holding()
    with FakeGateway(holding) as gateway:
        async with AsyncPremClient(**gateway.settings(max_concurrency=1)) as client:
            await ask(client, stream=True)
            gateway.chat = stream_hello
            answer = await asyncio.wait_for(ask(client), SOON)
            assert answer.choices[0].message.content == "Hello"
            assert client.stats.in_flight == 0


def test_a_stream_of_a_loop_that_is_gone_frees_its_slot():
    with FakeGateway(Holding()) as gateway:
        client = AsyncPremClient(**gateway.settings(max_concurrency=1))

        async def begin():
            return await ask(client, stream=True)

        stream = asyncio.run(begin())
        del stream
        gc.collect()
        assert eventually(lambda: client.stats.in_flight == 0)
        gateway.chat = stream_hello
        asyncio.run(asyncio.wait_for(ask_async(client), SOON))


async def ask_async(client):
    return await ask(client)


@pytest.mark.parametrize("status", [400, 401, 500])
def test_an_error_frees_its_slot(status):
    with (
        FakeGateway(lambda call: call.reply(b"{}", status)) as gateway,
        PremClient(**gateway.settings(max_concurrency=1, max_retries=0)) as client,
    ):
        for _ in range(3):
            with pytest.raises(errors.APIStatusError):
                ask(client)
            with pytest.raises(errors.APIStatusError):
                ask(client, stream=True)
        with pytest.raises(errors.InvalidParameterError):
            ask(client, temperature=3)
    assert client.stats == Stats(requests=6)


def test_an_answer_that_is_cut_frees_its_slot():
    def cut(call):
        call.begin()
        call.piece(call.opened().events(PART))
        call.disconnect()

    with FakeGateway(cut) as gateway, PremClient(**gateway.settings(max_concurrency=1)) as client:
        for way in (lambda: ask(client), lambda: list(ask(client, stream=True))):
            with pytest.raises(errors.StreamInterruptedError):
                way()
    assert client.stats.in_flight == 0


@needs_proc
async def test_a_task_that_is_cancelled_frees_its_slot_and_its_socket_at_once():
    with FakeGateway(Holding()) as gateway:
        async with AsyncPremClient(**gateway.settings(max_concurrency=2)) as client:
            gateway.chat, chat = stream_hello, gateway.chat
            await ask(client)
            gateway.chat = chat
            before = descriptors()
            for _ in range(5):
                tasks = [asyncio.create_task(read(client)) for _ in range(2)]
                waiting = asyncio.create_task(read(client))
                # Each is two descriptors here: this process is the gateway too.
                assert await asyncio.to_thread(eventually, lambda: client.stats.in_flight == 2)
                assert await asyncio.to_thread(eventually, lambda: gateway.connections == 2)
                for task in (*tasks, waiting):
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await task
                assert (client.stats.in_flight, client.stats.waiting) == (0, 0)
                assert await asyncio.to_thread(eventually, lambda: gateway.connections == 0)
            assert await asyncio.to_thread(eventually, lambda: descriptors() <= before)
            gateway.chat = stream_hello
            await asyncio.wait_for(ask(client), SOON)


@needs_proc
def test_streams_that_are_closed_leave_no_socket():
    with FakeGateway(Holding()) as gateway, PremClient(**gateway.settings()) as client:
        ask(client, stream=True).close()
        assert eventually(lambda: gateway.connections == 0)
        before = descriptors()
        for _ in range(20):
            ask(client, stream=True).close()
        assert eventually(lambda: gateway.connections == 0)
        assert eventually(lambda: descriptors() <= before)


def test_who_waits_when_the_client_is_closed_is_told_so():
    with FakeGateway(Holding()) as gateway, ThreadPoolExecutor(1) as pool:
        client = PremClient(**gateway.settings(max_concurrency=1))
        stream = ask(client, stream=True)
        waiting = pool.submit(ask, client)
        assert eventually(lambda: client.stats.waiting == 1)
        client.close()
        stream.close()
        with pytest.raises(ConfigurationError, match="closed"):
            waiting.result(SOON)


# --- what takes no slot


def test_the_keys_fetch_takes_no_slot():
    enclave = FakeEnclave(2)

    def turned(call):
        call.reply(b'{"error": "session expired"}', 400) if gateway.enclave is not enclave else stream_hello(
            call
        )
        gateway.enclave = enclave

    with FakeGateway(turned) as gateway, PremClient(**gateway.settings(max_concurrency=1)) as client:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: ask(client).choices[0].message.content, range(4)))
    assert answers == ["Hello"] * 4
    assert gateway.paths().count("/publicKey") == 2


def test_a_thread_that_waits_for_its_own_streams_is_told_so(caplog):
    options = {"max_concurrency": 1, "total_timeout": 1.5}
    with FakeGateway(Holding()) as gateway, PremClient(**gateway.settings(**options)) as client:
        with ask(client, stream=True), pytest.raises(errors.APITimeoutError):
            ask(client)
    assert caplog.text.count("a thread or task holds as many streams as max_concurrency allows") == 1


async def test_a_task_that_waits_for_its_own_streams_is_told_so(caplog):
    options = {"max_concurrency": 1, "total_timeout": 1.5}
    with FakeGateway(Holding()) as gateway:
        async with AsyncPremClient(**gateway.settings(**options)) as client:
            async with await client.chat.completions.create(**PARAMS, stream=True):
                with pytest.raises(errors.APITimeoutError):
                    await client.chat.completions.create(**PARAMS)
    assert caplog.text.count("a thread or task holds as many streams as max_concurrency allows") == 1


def test_nobody_waits_and_no_alarm_is_left():
    options = {"max_concurrency": 1, "total_timeout": 0.2}
    others = set(threading.enumerate())
    with FakeGateway(Holding()) as gateway, PremClient(**gateway.settings(**options)) as client:
        with ask(client, stream=True), ThreadPoolExecutor(1) as pool:
            with pytest.raises(errors.APITimeoutError):
                pool.submit(ask, client).result(10)
            timers = {each for each in threading.enumerate() if type(each) is threading.Timer} - others
            assert eventually(lambda: not any(each.is_alive() and each.interval > 0.2 for each in timers))


def test_who_waits_for_others_is_told_nothing(caplog):
    options = {"max_concurrency": 1, "total_timeout": 1.5}
    with FakeGateway(Holding()) as gateway, PremClient(**gateway.settings(**options)) as client:
        with ThreadPoolExecutor(1) as pool, ask(client, stream=True):
            with pytest.raises(errors.APITimeoutError):
                pool.submit(ask, client).result(10)
    assert "holds as many streams" not in caplog.text


def test_the_models_list_takes_no_slot():
    with FakeGateway(Holding(), other=lambda call: call.reply(b'{"data": []}')) as gateway:
        with PremClient(**gateway.settings(max_concurrency=1)) as client:
            with ask(client, stream=True):
                assert client.models.list() == []


def test_a_key_that_was_turned_while_callers_waited_does_not_cost_each_a_request():
    old, new = FakeEnclave(1), FakeEnclave(2)

    def chat(call):
        try:
            opened = gateway.enclave.open(call.body)
        except errors.DecryptionError:
            call.reply(b'{"error": "session expired"}', 400)
        else:
            gate.wait(SOON)
            call.stream(opened.stream())

    gate = threading.Event()
    with (
        FakeGateway(chat, enclave=old) as gateway,
        PremClient(**gateway.settings(max_concurrency=1)) as client,
    ):
        gate.set()
        ask(client)
        gateway.enclave = new
        gate.clear()
        with ThreadPoolExecutor(4) as pool:
            jobs = [pool.submit(ask, client) for _ in range(4)]
            assert eventually(lambda: client.stats.waiting == 3)
            gate.set()
            for job in jobs:
                job.result(SOON)
    # One of the four was sealed to the old key, and sent again.
    assert len(gateway.chats()) == 1 + 1 + 4


# --- Retry-After


class Refusing:
    """Refuses the first `count` requests, and notes when each came."""

    def __init__(self, count, seconds="1", status=429):
        self.count, self.seconds, self.status = count, seconds, status
        self.lock, self.times = threading.Lock(), []

    def __call__(self, call):
        with self.lock:
            self.times.append(time.monotonic())
            refused = len(self.times) <= self.count
        if refused:
            call.reply(b"{}", self.status, {"retry-after": self.seconds})
        else:
            stream_hello(call)


@pytest.mark.parametrize("kind", ["threads", "tasks", "both"])
def test_one_429_holds_back_all(kind):
    chat = Refusing(1)
    limits = Limits(1)
    with FakeGateway(chat) as gateway, ThreadPoolExecutor(4) as pool:
        client = PremClient(**gateway.settings(limits=limits))
        other = AsyncPremClient(**gateway.settings(limits=limits))

        async def tasks():
            return await asyncio.gather(*(ask(other) for _ in range(2)))

        jobs = [pool.submit(ask, client) for _ in range(2)] if kind != "tasks" else []
        jobs += [pool.submit(lambda: asyncio.run(tasks()))] if kind != "threads" else []
        for job in jobs:
            job.result(30)
        client.close()
    refused, *answered = chat.times
    assert len(answered) == (4 if kind == "both" else 2)
    assert min(answered) - refused >= 1
    assert limits.stats == Stats(requests=len(chat.times), retries=1, rate_limited=1)


def test_a_503_with_a_retry_after_holds_back_all():
    chat = Refusing(1, status=503)
    with FakeGateway(chat) as gateway, PremClient(**gateway.settings(max_concurrency=1)) as client:
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda _: ask(client), range(3)))
    refused, *answered = chat.times
    assert min(answered) - refused >= 1
    assert max(answered) - min(answered) < 0.9  # and then nothing spaces them
    assert client.stats == Stats(requests=4, retries=1)


def test_the_one_who_was_refused_comes_first():
    order = []

    def chat(call):
        word = call.opened().params["messages"][0]["content"]
        order.append(word)
        if len(order) == 1:
            call.reply(b"{}", 429, {"retry-after": "0"})
        else:
            stream_hello(call)

    with FakeGateway(chat) as gateway, PremClient(**gateway.settings(max_concurrency=1)) as client:

        def one(word):
            return ask(client, messages=[{"role": "user", "content": word}])

        with ThreadPoolExecutor(4) as pool:
            jobs = []
            for n in range(4):
                jobs.append(pool.submit(one, str(n)))
                time.sleep(0.01)
            for job in jobs:
                job.result(SOON)
    assert order[:2] == ["0", "0"]


def test_a_pause_that_is_too_long_is_an_error_and_holds_nobody():
    chat = Refusing(1, seconds="3600")
    with FakeGateway(chat) as gateway, PremClient(**gateway.settings()) as client:
        with pytest.raises(RateLimitError) as caught:
            ask(client)
        assert caught.value.retry_after == 3600
        assert ask(client).choices[0].message.content == "Hello"


# --- timeouts


class Sync:
    def __init__(self, gateway, **values):
        self.client = PremClient(**gateway.settings(**values))

    def whole(self):
        return ask(self.client)

    def stream(self):
        return list(ask(self.client, stream=True))

    def close(self):
        self.client.close()


class Async:
    def __init__(self, gateway, **values):
        self.client = AsyncPremClient(**gateway.settings(**values))
        self.runner = asyncio.Runner()

    def whole(self):
        return self.runner.run(ask_async(self.client))

    def stream(self):
        return self.runner.run(read(self.client))

    def close(self):
        self.runner.run(self.client.close())
        self.runner.close()


both = pytest.mark.parametrize("kind", [Sync, Async])
ways = pytest.mark.parametrize("way", ["whole", "stream"])


def timed_out(kind, way, gateway, match, **values):
    """Seconds until the call timed out, its connection gone with it."""
    side = kind(gateway, **values)
    start = time.monotonic()
    try:
        with pytest.raises(errors.APITimeoutError, match=match):
            getattr(side, way)()
        took = time.monotonic() - start
        assert side.client.stats.in_flight == 0
        assert eventually(lambda: gateway.connections <= 1)  # the key's
    finally:
        side.close()
    return took


@both
@ways
def test_comments_do_not_keep_a_stalled_stream_alive(kind, way):
    with FakeGateway(Holding(dripping)) as gateway:
        took = timed_out(kind, way, gateway, "next chunk", stream_chunk_timeout=0.4)
    assert 0.4 <= took < 1.5


@both
@ways
def test_a_stream_that_falls_silent_is_a_timeout(kind, way):
    with FakeGateway(Holding()) as gateway:
        took = timed_out(kind, way, gateway, "timed out", stream_chunk_timeout=0.4, timeout=20)
    assert 0.4 <= took < 1.5


@both
@ways
def test_a_stream_that_never_begins_to_speak_is_a_timeout(kind, way):
    def chat(call):
        call.begin()
        dripping(call)

    with FakeGateway(chat) as gateway:
        took = timed_out(kind, way, gateway, "next chunk", stream_chunk_timeout=0.3, max_retries=0)
    assert 0.3 <= took < 1.5


@both
@ways
def test_the_time_between_chunks_is_the_read_timeout_where_nothing_is_said(kind, way):
    with FakeGateway(Holding(dripping)) as gateway:
        took = timed_out(kind, way, gateway, "next chunk", timeout=httpx.Timeout(20, read=0.4))
    assert 0.4 <= took < 1.5


@both
@ways
def test_an_answer_may_take_longer_to_begin_than_between_its_chunks(kind, way):
    def chat(call):
        time.sleep(0.5)
        stream_hello(call)

    with FakeGateway(chat) as gateway:
        side = kind(gateway, stream_chunk_timeout=0.2)
        assert getattr(side, way)()
        side.close()


@both
@ways
def test_chunks_in_time_are_no_stall(kind, way):
    def chat(call):
        opened = call.opened()
        call.begin()
        for _ in range(8):
            call.piece(opened.events(PART))
            time.sleep(0.1)
        call.piece(opened.stream())
        call.end()

    with FakeGateway(chat) as gateway:
        side = kind(gateway, stream_chunk_timeout=0.5)
        assert getattr(side, way)()
        side.close()


def test_a_slow_taker_is_no_stall():
    def chat(call):
        opened = call.opened()
        call.begin()
        call.piece(opened.events(PART))
        for _ in range(10):
            call.piece(COMMENT)
            time.sleep(0.05)
        call.piece(opened.stream(*HELLO))
        call.end()

    with FakeGateway(chat) as gateway, PremClient(**gateway.settings(stream_chunk_timeout=0.3)) as client:
        stream = ask(client, stream=True)
        assert next(stream).choices[0].delta.content == "a"
        time.sleep(0.7)
        assert text_of(stream) == "Hello"


@both
@ways
@pytest.mark.parametrize(
    "stall",
    [
        pytest.param(lambda call: call.wait_for_disconnect(), id="silent"),
        pytest.param(Holding(dripping), id="comments"),
        pytest.param(Holding(), id="silent after a chunk"),
        pytest.param(lambda call: call.reply(b"{}", 503), id="busy"),
        pytest.param(lambda call: call.reply(b"{}", 429, {"retry-after": "2"}), id="limited"),
    ],
)
def test_a_call_takes_no_longer_than_in_total(kind, way, stall):
    with FakeGateway(stall) as gateway:
        values = {"total_timeout": 0.6, "timeout": 20, "max_retries": 9, "stream_chunk_timeout": 20}
        took = timed_out(kind, way, gateway, "total_timeout", **values)
    assert took < 1.5


@both
@ways
def test_waiting_for_a_turn_is_a_part_of_the_call(kind, way):
    limits = Limits(1)
    with FakeGateway(Holding()) as gateway, PremClient(**gateway.settings(limits=limits)) as client:
        with ask(client, stream=True):
            side = kind(gateway, limits=limits, total_timeout=0.3)
            start = time.monotonic()
            with pytest.raises(errors.APITimeoutError, match="total_timeout"):
                getattr(side, way)()
            assert 0.3 <= time.monotonic() - start < 1.5
            side.close()
            assert limits.stats == Stats(requests=1, in_flight=1)
        assert len(gateway.chats()) == 1


@both
def test_fetching_the_key_is_a_part_of_the_call(kind):
    with FakeGateway(key=lambda call: call.wait_for_disconnect()) as gateway:
        took = timed_out(kind, "whole", gateway, "total_timeout", total_timeout=0.3, timeout=20)
    assert took < 1.5


def test_a_call_that_gave_up_on_the_key_does_not_give_up_for_others():
    def slow(call):
        time.sleep(0.5)
        gateway.send_key(call)

    with (
        FakeGateway(key=slow) as gateway,
        PremClient(**gateway.settings()) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        hasty = PremClient(**gateway.settings(total_timeout=0.2))
        hasty._requester._key_lock = client._requester._key_lock
        gave_up = pool.submit(ask, hasty)
        time.sleep(0.05)
        patient = pool.submit(ask, client)
        with pytest.raises(errors.APITimeoutError, match="total_timeout"):
            gave_up.result(SOON)
        assert patient.result(SOON).choices[0].message.content == "Hello"
        hasty.close()


@both
@ways
def test_a_call_in_time_is_answered_and_leaves_nothing_behind(kind, way):
    others = set(threading.enumerate())
    with FakeGateway() as gateway:
        side = kind(gateway, total_timeout=5.0)
        for _ in range(5):
            assert getattr(side, way)()
        side.close()
        assert len({call.connection for call in gateway.calls}) == 1
        timers = {each for each in threading.enumerate() if type(each) is threading.Timer} - others
        assert eventually(lambda: not any(each.is_alive() for each in timers))


def test_a_stream_that_is_taken_too_slowly_ends_in_total():
    with FakeGateway(Holding()) as gateway, PremClient(**gateway.settings(total_timeout=0.3)) as client:
        stream = ask(client, stream=True)
        next(stream)
        time.sleep(0.4)
        with pytest.raises(errors.APITimeoutError, match="total_timeout"):
            next(stream)
        assert client.stats.in_flight == 0


async def test_a_timeout_of_somebody_elses_is_not_named_ours():
    with FakeGateway(Holding()) as gateway:
        async with AsyncPremClient(**gateway.settings(total_timeout=20)) as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await ask(client)
            assert client.stats.in_flight == 0


# --- settings


@pytest.mark.parametrize("client_class", [PremClient, AsyncPremClient])
@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"max_concurrency": 0}, "max_concurrency"),
        ({"max_concurrency": "5"}, "max_concurrency"),
        ({"requests_per_second": -1}, "requests_per_second"),
        ({"total_timeout": 0}, "total_timeout"),
        ({"total_timeout": float("inf")}, "total_timeout"),
        ({"stream_chunk_timeout": -1}, "stream_chunk_timeout"),
        ({"stream_chunk_timeout": "1"}, "stream_chunk_timeout"),
        ({"limits": 5}, "limits"),
        ({"limits": Limits(), "max_concurrency": 3}, "max_concurrency"),
        ({"limits": Limits(), "requests_per_second": 3}, "requests_per_second"),
    ],
)
def test_a_setting_that_cannot_work_is_named(client_class, settings, name):
    with pytest.raises(ConfigurationError, match=f"^{name}"):
        client_class(api_key="k", **settings)


def test_a_client_gives_its_limits():
    limits = Limits(7)
    with PremClient(api_key="k", limits=limits) as client:
        assert client.limits is limits
    with PremClient(api_key="k", max_concurrency=None, requests_per_second=2) as client:
        assert (client.limits.max_concurrency, client.limits.requests_per_second) == (None, 2)
        assert client.stats == Stats()


def test_a_whole_answer_behind_its_done_event_is_not_waited_for():
    def chat(call):
        opened = call.opened()
        call.begin()
        call.piece(opened.events(*HELLO) + DONE)
        dripping(call)

    with FakeGateway(chat) as gateway, PremClient(**gateway.settings(stream_chunk_timeout=0.2)) as client:
        assert ask(client).choices[0].message.content == "Hello"
