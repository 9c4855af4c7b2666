"""A call that ends early (timeout, close, cancellation) closes its connection, so that the service can stop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.faults.columns import COLUMNS, PARAMS, QUESTION, TEXT, WORDS, Column
from support.faults.fault_proxy import Fault, FaultProxy, ProxiedRequest
from support.faults.kinds import EVERYWHERE, FIRST, HALF, MIDDLE, Injection, at, stall
from support.waiting import SOON, eventually

from prem_core import APITimeoutError, PremClient, PremError
from prem_core.enclave import LocalEnclave

CHATS = [column for column in COLUMNS if column.kind == "chat"]
sync_streams = pytest.mark.parametrize(
    "column", [each for each in CHATS if each.form == "stream" and each.way == "sync"], ids=str
)
async_streams = pytest.mark.parametrize(
    "column", [each for each in CHATS if each.form == "stream" and each.way == "async"], ids=str
)
async_chats = pytest.mark.parametrize("column", [each for each in CHATS if each.way == "async"], ids=str)

#: Seconds between two events of a slow service.
SLOW = 0.2


def stalled(proxy: FaultProxy, injection: Injection) -> None:
    proxy.inject(Fault("stall", events=injection))


async def slow(exchange: ProxiedRequest, event: bytes) -> AsyncIterator[bytes]:
    await asyncio.sleep(SLOW)
    yield event


async def endless(exchange: ProxiedRequest, event: bytes) -> AsyncIterator[bytes]:
    while True:
        yield event
        await asyncio.sleep(SLOW)


def client_disconnected(proxy: FaultProxy) -> bool:
    """Whether the client closes the connection before the end of the response."""
    (exchange,) = proxy.requests_to("gateway")
    return exchange.disconnected.wait(SOON)


def in_every_chat(enclave: LocalEnclave, test: Callable[[Column, FaultProxy], None], subtests: Any) -> None:
    """Run a test that mostly waits for all kinds of chat at once, each on its own proxy."""

    def run(column: Column) -> None:
        with FaultProxy(enclave) as proxy:
            test(column, proxy)
        assert proxy.failures == []

    with ThreadPoolExecutor(len(CHATS)) as pool:
        futures = {column: pool.submit(run, column) for column in CHATS}
        for column, future in futures.items():
            with subtests.test(str(column)):
                future.result()


def test_total_timeout_ends_a_call_whose_chunks_never_stop(
    enclave: LocalEnclave, subtests: pytest.Subtests
) -> None:
    def test(column: Column, proxy: FaultProxy) -> None:
        proxy.inject(Fault("endless", events=at(MIDDLE, endless)))
        with column.calls({**proxy.client_options, "total_timeout": 2.0}) as call:
            start = time.monotonic()
            result = call()
            assert time.monotonic() - start >= 2.0
            assert isinstance(result.error, APITimeoutError)
            assert "total_timeout" in str(result.error)
            if column.form == "stream":
                assert result.text.startswith("".join(WORDS[: HALF + 1]))
            assert client_disconnected(proxy)

    in_every_chat(enclave, test, subtests)


def test_stream_chunk_timeout_ends_a_stall_between_chunks_and_timeout_does_not(
    enclave: LocalEnclave, subtests: pytest.Subtests
) -> None:
    def test(column: Column, proxy: FaultProxy) -> None:
        stalled(proxy, at(MIDDLE, stall))
        with column.calls({**proxy.client_options, "timeout": 60.0, "stream_chunk_timeout": 1.0}) as call:
            start = time.monotonic()
            result = call()
            assert 1.0 <= time.monotonic() - start < 60.0
            assert isinstance(result.error, APITimeoutError)
            assert result.text == ("".join(WORDS[:HALF]) if column.form == "stream" else "")
            assert client_disconnected(proxy)

    in_every_chat(enclave, test, subtests)


def test_a_response_that_takes_longer_than_its_timeouts_is_complete_if_each_chunk_is_in_time(
    enclave: LocalEnclave, subtests: pytest.Subtests
) -> None:
    def test(column: Column, proxy: FaultProxy) -> None:
        proxy.inject(Fault("slow", events=at(EVERYWHERE, slow)))
        with column.calls({**proxy.client_options, "timeout": 1.5, "stream_chunk_timeout": 1.5}) as call:
            start = time.monotonic()
            result = call()
            assert time.monotonic() - start > 1.5
        assert result.error is None
        assert result.text == TEXT

    in_every_chat(enclave, test, subtests)


def test_closing_a_stream_from_another_thread_ends_its_iteration_and_disconnects(proxy: FaultProxy) -> None:
    stalled(proxy, at(MIDDLE, stall))
    ended: list[Any] = []
    with PremClient(**proxy.client_options) as client:
        messages = [{"role": "user", "content": QUESTION}]
        stream = client.chat.completions.create(messages=messages, stream=True, **PARAMS)
        words: list[str] = []

        def read() -> None:
            try:
                for chunk in stream:
                    words.append(chunk.choices[0].delta.content or "")
                ended.append("as if it were complete")
            except PremError as error:
                ended.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        assert eventually(lambda: len(words) == HALF)
        stream.close()
        assert client_disconnected(proxy)
        reader.join(SOON)
        assert not reader.is_alive()
    assert len(ended) == 1
    assert isinstance(ended[0], PremError)


@contextlib.contextmanager
def model_of(column: Column, proxy: FaultProxy) -> Iterator[Any]:
    make = column.layer.client if column.way == "sync" else column.layer.aclient
    yield make(dict(proxy.client_options), [])


@sync_streams
def test_closing_a_stream_early_disconnects(column: Column, proxy: FaultProxy) -> None:
    stalled(proxy, at(MIDDLE, stall))
    with model_of(column, proxy) as model:
        stream = column.layer.ask(model, "stream")
        assert column.layer.text(next(stream)) == WORDS[0]
        stream.close()
        assert client_disconnected(proxy)


@async_streams
async def test_closing_an_async_stream_early_disconnects(column: Column, proxy: FaultProxy) -> None:
    stalled(proxy, at(MIDDLE, stall))
    with model_of(column, proxy) as model:
        stream = column.layer.aask(model, "stream")
        assert column.layer.text(await anext(stream)) == WORDS[0]
        await stream.aclose()
        assert await asyncio.to_thread(client_disconnected, proxy)


@pytest.mark.parametrize("place", [FIRST, MIDDLE], ids=lambda place: place.name)
@async_chats
async def test_cancelling_a_task_disconnects(column: Column, place: Any, proxy: FaultProxy) -> None:
    stalled(proxy, at(place, stall))
    words: list[str] = []

    async def read(model: Any) -> None:
        async for item in column.layer.aask(model, column.form):
            words.append(column.layer.text(item))

    with model_of(column, proxy) as model:
        task = asyncio.create_task(read(model))
        expected = HALF if place is MIDDLE and column.form == "stream" else 0
        assert await asyncio.to_thread(
            eventually, lambda: len(words) == expected and bool(proxy.requests_to("gateway"))
        )
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(client_disconnected, proxy)
    assert words == list(WORDS[:expected])
