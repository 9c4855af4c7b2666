"""`stream_chunk_timeout` and `total_timeout`, with both clients and over real sockets.

Every other timeout is long, so that the error's message shows which one expired.
"""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from support.client_api import CHUNK, StallingStream
from support.fake_gateway import DONE, HELLO, PARAMS, FakeGateway, stream_hello, text_of
from support.waiting import SOON, eventually

from prem_core import AsyncPremClient, ConfigurationError, Limits, PremClient, Stats
from prem_core import _errors as errors

KEEP_ALIVE = b": keep-alive\n\n"
LONG = {"timeout": SOON, "stream_chunk_timeout": SOON}

ways = pytest.mark.parametrize("way", ["create", "stream"])


def no_response(call):
    call.wait_for_disconnect()


def keep_alives(call):
    call.begin()
    while not call.wait_for_disconnect(0.05):
        call.piece(KEEP_ALIVE)


def keep_alives_after_a_chunk(call):
    opened = call.opened()
    call.begin()
    call.piece(opened.events(CHUNK))
    while not call.wait_for_disconnect(0.05):
        call.piece(KEEP_ALIVE)


def busy(call):
    call.reply(b"{}", 503)


def rate_limited(call):
    call.reply(b"{}", 429, {"retry-after": "2"})


def assert_timeout(api, client, way, gateway, match):
    """The call times out, releases its permit and disconnects."""
    with pytest.raises(errors.APITimeoutError, match=match):
        getattr(api, way)(client)
    assert client.stats.in_flight == 0
    assert eventually(lambda: gateway.connections <= 1)  # that of the key


# --- between chunks


@ways
@pytest.mark.parametrize("chat", [keep_alives, keep_alives_after_a_chunk])
def test_keep_alive_comments_do_not_extend_the_chunk_timeout(api, make, way, chat):
    with FakeGateway(chat) as gateway:
        client = make(gateway, timeout=SOON, stream_chunk_timeout=0.3, max_retries=0)
        assert_timeout(api, client, way, gateway, "next chunk")


@ways
def test_a_stream_that_stalls_is_a_timeout(api, make, way):
    with FakeGateway(StallingStream()) as gateway:
        client = make(gateway, timeout=SOON, stream_chunk_timeout=0.3)
        assert_timeout(api, client, way, gateway, "timed out")


@ways
def test_the_chunk_timeout_is_the_read_timeout_by_default(api, make, way):
    with FakeGateway(keep_alives_after_a_chunk) as gateway:
        client = make(gateway, timeout=httpx.Timeout(SOON, read=0.5))
        assert_timeout(api, client, way, gateway, "next chunk")


@ways
def test_an_answer_may_take_longer_to_start_than_the_chunk_timeout(api, make, way):
    def late(call):
        call.wait_for_disconnect(0.6)
        stream_hello(call)

    with FakeGateway(late) as gateway:
        assert getattr(api, way)(make(gateway, stream_chunk_timeout=0.5))


def test_a_slow_consumer_does_not_use_up_the_chunk_timeout():
    def chat(call):
        opened = call.opened()
        call.begin()
        for piece in (opened.events(CHUNK), *[KEEP_ALIVE] * 10, opened.stream(*HELLO)):
            call.piece(piece)
        call.end()

    with FakeGateway(chat) as gateway, PremClient(**gateway.settings(stream_chunk_timeout=0.5)) as client:
        stream = client.chat.completions.create(**PARAMS, stream=True)
        assert next(stream).choices[0].delta.content == "a"
        time.sleep(0.6)
        assert text_of(stream) == "Hello"


def test_a_whole_answer_ends_at_its_done_event():
    def chat(call):
        opened = call.opened()
        call.begin()
        call.piece(opened.events(*HELLO) + DONE)
        call.wait_for_disconnect()

    with FakeGateway(chat) as gateway, PremClient(**gateway.settings(stream_chunk_timeout=SOON)) as client:
        answer = client.chat.completions.create(**PARAMS)
        assert answer.choices[0].message.content == "Hello"


# --- the whole call


@ways
@pytest.mark.parametrize(
    "chat", [no_response, keep_alives, keep_alives_after_a_chunk, StallingStream(), busy, rate_limited]
)
def test_total_timeout_ends_a_call_whatever_it_waits_for(api, make, way, chat):
    with FakeGateway(chat) as gateway:
        client = make(gateway, **LONG, total_timeout=0.4, max_retries=9)
        assert_timeout(api, client, way, gateway, "total_timeout")


@ways
def test_total_timeout_includes_waiting_for_a_permit(api, make, way):
    limits = Limits(1)
    with FakeGateway(StallingStream()) as gateway, PremClient(**gateway.settings(limits=limits)) as client:
        with client.chat.completions.create(**PARAMS, stream=True):
            with pytest.raises(errors.APITimeoutError, match="total_timeout"):
                getattr(api, way)(make(gateway, limits=limits, total_timeout=0.2))
            assert limits.stats == Stats(requests=1, in_flight=1)
        assert len(gateway.chats()) == 1


def test_total_timeout_includes_fetching_the_key(api, make):
    with FakeGateway(key=no_response) as gateway:
        client = make(gateway, **LONG, total_timeout=0.3)
        assert_timeout(api, client, "create", gateway, "total_timeout")


def test_a_call_that_times_out_while_fetching_the_key_does_not_affect_the_others():
    requested, release = threading.Event(), threading.Event()

    def held_key(call):
        requested.set()
        release.wait(SOON)
        gateway.send_key(call)

    with FakeGateway(key=held_key) as gateway, ThreadPoolExecutor(2) as pool:
        with PremClient(**gateway.settings(total_timeout=0.3)) as client:
            timed_out = pool.submit(client.chat.completions.create, **PARAMS)
            assert requested.wait(SOON)
            client._requester._total_timeout = SOON  # for the second call
            patient = pool.submit(client.chat.completions.create, **PARAMS)
            with pytest.raises(errors.APITimeoutError, match="total_timeout"):
                timed_out.result(SOON)
            release.set()
            assert patient.result(SOON).choices[0].message.content == "Hello"


@ways
def test_a_call_in_time_keeps_its_connection_and_leaves_no_timer(api, make, way):
    others = set(threading.enumerate())
    with FakeGateway() as gateway:
        client = make(gateway, total_timeout=SOON)
        for _ in range(5):
            assert getattr(api, way)(client)
        assert len({call.connection for call in gateway.calls}) == 1
        timers = {each for each in threading.enumerate() if type(each) is threading.Timer} - others
        assert eventually(lambda: not any(each.is_alive() for each in timers))


def test_a_stream_that_is_read_too_slowly_ends_at_total_timeout():
    with FakeGateway(StallingStream()) as gateway:
        with PremClient(**gateway.settings(**LONG, total_timeout=1.0)) as client:
            stream = client.chat.completions.create(**PARAMS, stream=True)
            next(stream)
            time.sleep(1.1)
            with pytest.raises(errors.APITimeoutError, match="total_timeout"):
                next(stream)
            assert client.stats.in_flight == 0


async def test_the_callers_own_timeout_is_not_reported_as_total_timeout():
    with FakeGateway(StallingStream()) as gateway:
        async with AsyncPremClient(**gateway.settings(total_timeout=SOON)) as client:
            with pytest.raises(TimeoutError) as caught:
                async with asyncio.timeout(0.2):
                    await client.chat.completions.create(**PARAMS)
            assert not isinstance(caught.value, errors.PremError)
            assert client.stats.in_flight == 0


@pytest.mark.parametrize("client_class", [PremClient, AsyncPremClient])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("total_timeout", 0),
        ("total_timeout", float("inf")),
        ("stream_chunk_timeout", -1),
        ("stream_chunk_timeout", "1"),
    ],
)
def test_an_invalid_timeout_is_an_error_that_names_it(client_class, name, value):
    with pytest.raises(ConfigurationError, match=f"^{name}"):
        client_class(api_key="k", **{name: value})
