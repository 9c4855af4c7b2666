"""One client, many threads, tasks and event loops."""

import asyncio
import gc
import sys
import threading
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor

import httpx
from support.client_api import HeldKey
from support.fake_gateway import DONE, PARAMS, FakeGateway, text_of
from support.waiting import SOON, eventually

from prem_core import AsyncPremClient, PremClient


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

    with (
        FakeGateway(chat) as gateway,
        PremClient(**gateway.settings()) as client,
        ThreadPoolExecutor(8) as pool,
    ):
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

    with FakeGateway(chat) as gateway:
        async with AsyncPremClient(**gateway.settings()) as client:
            assert await asyncio.gather(*map(ask, range(40))) == [f"word {number}" for number in range(40)]


def test_one_async_client_serves_the_event_loops_of_several_threads():
    with FakeGateway() as gateway, ThreadPoolExecutor(4) as pool:
        client = AsyncPremClient(**gateway.settings())

        async def ask():
            answers = await asyncio.gather(*(client.chat.completions.create(**PARAMS) for _ in range(5)))
            return [answer.choices[0].message.content for answer in answers]

        assert list(pool.map(lambda _: asyncio.run(ask()), range(8))) == [["Hello"] * 5] * 8
        assert eventually(lambda: gateway.connections == 0, SOON)


def test_one_async_client_serves_event_loops_that_start_and_end_concurrently():
    async def ask():
        return len(await client.models.list())

    interval = sys.getswitchinterval()
    with (
        FakeGateway(other=lambda call: call.reply(b'{"data": []}')) as gateway,
        ThreadPoolExecutor(8) as pool,
    ):
        client = AsyncPremClient(**gateway.settings())
        sys.setswitchinterval(1e-6)
        try:
            assert list(pool.map(lambda _: asyncio.run(ask()), range(160))) == [0] * 160
        finally:
            sys.setswitchinterval(interval)


def test_one_async_client_leaves_no_connection_of_an_ended_event_loop():
    with FakeGateway() as gateway, warnings.catch_warnings():
        warnings.simplefilter("error")
        client = AsyncPremClient(**gateway.settings())

        async def ask():
            stream = await client.chat.completions.create(**PARAMS, stream=True)
            await client.chat.completions.create(**PARAMS)
            return text_of([chunk async for chunk in stream])

        for _ in range(5):
            assert asyncio.run(ask()) == "Hello"
            assert eventually(lambda: gateway.connections == 0, SOON)
        gc.collect()
    assert gateway.paths().count("/publicKey") == 1


def test_an_ended_event_loop_is_not_referenced():
    loops = []
    with FakeGateway() as gateway:
        HeldKey(gateway)
        client = AsyncPremClient(**gateway.settings())

        async def ask():
            loops.append(weakref.ref(asyncio.get_running_loop()))
            # Several at once, so that they meet at the lock around the key.
            await asyncio.gather(*(client.chat.completions.create(**PARAMS) for _ in range(4)))

        for _ in range(3):
            asyncio.run(ask())
        gc.collect()
    assert [loop() for loop in loops] == [None] * 3


def test_an_event_loop_closed_without_finalising_its_generators_is_not_referenced():
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


class Watched(list):
    """Messages that record the threads that read them."""

    def __init__(self, *messages):
        super().__init__(messages)
        self.threads = []

    def __iter__(self):
        self.threads.append(threading.get_ident())
        return super().__iter__()


async def test_a_large_prompt_is_serialised_outside_the_event_loop():
    with FakeGateway() as gateway:
        async with AsyncPremClient(**gateway.settings()) as client:
            for size, in_loop in ((10, True), (1_000_000, False)):
                messages = Watched({"role": "user", "content": [{"type": "text", "text": "x" * size}]})
                await client.chat.completions.create(model="m", messages=messages)
                assert (messages.threads[-1] == threading.get_ident()) is in_loop
