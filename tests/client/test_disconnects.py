"""A stream that the caller abandons, closes or cancels disconnects at once."""

import asyncio
import contextlib
import gc
import threading
import time

import pytest
from support.client_api import CHUNK, StallingStream
from support.fake_gateway import PARAMS, FakeGateway, stream_hello, text_of
from support.waiting import SOON

from prem_core import AsyncPremClient, PremClient
from prem_core import _errors as errors


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
def test_abandoning_a_stream_disconnects_at_once(leave):
    held = StallingStream()
    gc.disable()  # at once, not at the next full collection
    try:
        with FakeGateway(held) as gateway, PremClient(**gateway.settings()) as client:
            kept = leave(client)
            assert held.disconnected.wait(SOON)
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
async def test_abandoning_an_async_stream_disconnects_at_once(leave):
    held = StallingStream()
    gc.disable()
    try:
        with FakeGateway(held) as gateway:
            async with AsyncPremClient(**gateway.settings()) as client:
                kept = await leave(client)
                assert await asyncio.to_thread(held.disconnected.wait, SOON)
                del kept
    finally:
        gc.enable()


def test_a_stream_closed_by_another_thread_ends_at_once():
    held = StallingStream()
    with FakeGateway(held) as gateway, PremClient(**gateway.settings()) as client:
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
        time.sleep(0.1)  # so that it most likely waits on the socket; the outcome is the same otherwise
        stream.close()
        reader.join(SOON)
        ended = not reader.is_alive()
        disconnected = held.disconnected.wait(SOON)
        reader.join()
    assert ended
    assert disconnected
    assert outcome == [[]] or isinstance(outcome[0], errors.StreamInterruptedError)


async def test_a_stream_closed_by_another_task_ends_at_once():
    held = StallingStream()
    with FakeGateway(held) as gateway:
        async with AsyncPremClient(**gateway.settings()) as client:
            stream = await client.chat.completions.create(**PARAMS, stream=True)
            await anext(stream)

            async def read():
                return [chunk async for chunk in stream]

            task = asyncio.create_task(read())
            await asyncio.sleep(0.05)
            await stream.close()
            (outcome,) = await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), SOON)
            assert await asyncio.to_thread(held.disconnected.wait, SOON)
    assert outcome == [] or isinstance(outcome, errors.StreamInterruptedError)


def test_closing_one_stream_does_not_affect_the_others():
    def chat(call):
        opened = call.opened()
        call.begin()
        call.piece(opened.events(CHUNK))
        if len(gateway.chats()) == 1:
            call.wait_for_disconnect()
        else:
            call.piece(opened.stream())
            call.end()

    with FakeGateway(chat) as gateway, PremClient(**gateway.settings()) as client:
        first = client.chat.completions.create(**PARAMS, stream=True)
        second = client.chat.completions.create(**PARAMS, stream=True)
        first.close()
        assert text_of(second) == "aHello"


@pytest.mark.parametrize("unread", [False, True])
async def test_a_cancelled_task_disconnects(unread):
    held = StallingStream(first=None if unread else CHUNK)
    with FakeGateway(held) as gateway:
        async with AsyncPremClient(**gateway.settings()) as client:
            received = asyncio.Event()

            async def read():
                async for _ in await client.chat.completions.create(**PARAMS, stream=True):
                    received.set()

            for run in (read, lambda: client.chat.completions.create(**PARAMS)):
                held.disconnected.clear()
                held.started.clear()
                task = asyncio.create_task(run())
                assert await asyncio.to_thread(held.started.wait, SOON)
                if run is read and not unread:
                    assert await asyncio.wait_for(received.wait(), SOON)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert await asyncio.to_thread(held.disconnected.wait, SOON)
            gateway.chat = stream_hello
            assert (await client.chat.completions.create(**PARAMS)).choices[0].message.content == "Hello"


async def test_the_callers_timeout_disconnects():
    held = StallingStream()
    with FakeGateway(held) as gateway:
        async with AsyncPremClient(**gateway.settings()) as client:

            async def expire(timeout):
                assert await asyncio.to_thread(held.started.wait, SOON)
                timeout.reschedule(asyncio.get_running_loop().time())

            with pytest.raises(TimeoutError):
                async with asyncio.timeout(None) as timeout, asyncio.TaskGroup() as tasks:
                    tasks.create_task(expire(timeout))
                    await client.chat.completions.create(**PARAMS)
            assert await asyncio.to_thread(held.disconnected.wait, SOON)
