"""Who has waited long enough leaves, and the service is told at once: the connection is closed."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from support.faults.columns import COLUMNS, PARAMS, QUESTION, TEXT, WORDS, Column
from support.faults.kinds import EVERYWHERE, FIRST, HALF, MIDDLE, Strike, at, stall
from support.faults.layer import Exchange, Fault, FaultLayer
from support.waiting import eventually

from prem_core import APITimeoutError, PremClient, PremError

CHATS = [column for column in COLUMNS if column.kind == "chat"]
every_chat = pytest.mark.parametrize("column", CHATS, ids=str)
sync_streams = pytest.mark.parametrize(
    "column", [each for each in CHATS if each.form == "stream" and each.way == "sync"], ids=str
)
async_streams = pytest.mark.parametrize(
    "column", [each for each in CHATS if each.form == "stream" and each.way == "async"], ids=str
)
async_chats = pytest.mark.parametrize("column", [each for each in CHATS if each.way == "async"], ids=str)

#: Seconds until the service sees that its client has left. It is a millisecond; a busy machine may take longer.
AT_ONCE = 1.0

#: Seconds between two events of a service that is slow.
SLOW = 0.05


def stalled(layer: FaultLayer, strike: Strike) -> None:
    layer.strike(Fault("stall", events=strike))


async def slow(exchange: Exchange, event: bytes) -> AsyncIterator[bytes]:
    await asyncio.sleep(SLOW)
    yield event


def was_left(layer: FaultLayer) -> bool:
    """Whether the client has closed the connection before the answer's end, by now or in a moment."""
    (exchange,) = layer.asked("gateway")
    return exchange.left.wait(AT_ONCE)


@every_chat
def test_a_call_ends_with_its_total_timeout_however_steadily_chunks_come(
    column: Column, layer: FaultLayer
) -> None:
    layer.strike(Fault("slow", events=at(EVERYWHERE, slow)))
    with column.asking({**layer.client_options, "total_timeout": 5 * SLOW}) as ask:
        begun = time.monotonic()
        told = ask()
        took = time.monotonic() - begun
        assert isinstance(told.error, APITimeoutError)
        assert "total_timeout" in str(told.error)
        assert 5 * SLOW <= took < 5 * SLOW + AT_ONCE
        assert told.text == "".join(WORDS[: len(told.words)]) != TEXT
        assert was_left(layer)


@every_chat
def test_a_stall_between_chunks_ends_with_stream_chunk_timeout_and_not_with_timeout(
    column: Column, layer: FaultLayer
) -> None:
    stalled(layer, at(MIDDLE, stall))
    with column.asking({**layer.client_options, "timeout": 30.0, "stream_chunk_timeout": 0.3}) as ask:
        begun = time.monotonic()
        told = ask()
        took = time.monotonic() - begun
        assert isinstance(told.error, APITimeoutError)
        assert told.text == ("".join(WORDS[:HALF]) if column.form == "stream" else "")
        assert 0.3 <= took < 0.3 + AT_ONCE
        assert was_left(layer)


@pytest.mark.parametrize("column", CHATS[:4], ids=str)
def test_chunks_that_come_slower_than_any_timeout_but_one_by_one_in_time_are_an_answer(
    column: Column, layer: FaultLayer
) -> None:
    layer.strike(Fault("slow", events=at(EVERYWHERE, slow)))
    with column.asking(
        {**layer.client_options, "timeout": 6 * SLOW, "stream_chunk_timeout": 6 * SLOW}
    ) as ask:
        told = ask()
    assert told.error is None
    assert told.text == TEXT


def test_closing_a_stream_from_another_thread_wakes_its_reader_and_tells_the_service(
    layer: FaultLayer,
) -> None:
    stalled(layer, at(MIDDLE, stall))
    ended: list[Any] = []
    with PremClient(**layer.client_options) as client:
        messages = [{"role": "user", "content": QUESTION}]
        stream = client.chat.completions.create(messages=messages, stream=True, **PARAMS)
        words: list[str] = []

        def read() -> None:
            try:
                for chunk in stream:
                    words.append(chunk.choices[0].delta.content or "")
                ended.append("as if it were whole")
            except PremError as error:
                ended.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        assert eventually(lambda: len(words) == HALF)
        begun = time.monotonic()
        stream.close()
        assert was_left(layer)
        reader.join(AT_ONCE)
        assert time.monotonic() - begun < AT_ONCE
        assert not reader.is_alive()
    assert len(ended) == 1
    assert isinstance(ended[0], PremError)


@contextlib.contextmanager
def model_of(column: Column, layer: FaultLayer) -> Iterator[Any]:
    made = column.layer.client if column.way == "sync" else column.layer.aclient
    yield made(dict(layer.client_options), [])


@sync_streams
def test_leaving_a_stream_early_tells_the_service(column: Column, layer: FaultLayer) -> None:
    stalled(layer, at(MIDDLE, stall))
    with model_of(column, layer) as model:
        answer = column.layer.ask(model, "stream")
        assert column.layer.text(next(answer)) == WORDS[0]
        answer.close()
        assert was_left(layer)


@async_streams
async def test_leaving_an_async_stream_early_tells_the_service(column: Column, layer: FaultLayer) -> None:
    stalled(layer, at(MIDDLE, stall))
    with model_of(column, layer) as model:
        answer = column.layer.aask(model, "stream")
        assert column.layer.text(await anext(answer)) == WORDS[0]
        await answer.aclose()
        assert await asyncio.to_thread(was_left, layer)


@pytest.mark.parametrize("place", [FIRST, MIDDLE], ids=lambda place: place.name)
@async_chats
async def test_cancelling_a_task_tells_the_service_at_once(
    column: Column, place: Any, layer: FaultLayer
) -> None:
    stalled(layer, at(place, stall))
    words: list[str] = []

    async def read(model: Any) -> None:
        async for item in column.layer.aask(model, column.form):
            words.append(column.layer.text(item))

    with model_of(column, layer) as model:
        task = asyncio.create_task(read(model))
        wanted = HALF if place is MIDDLE and column.form == "stream" else 0
        assert await asyncio.to_thread(eventually, lambda: len(words) == wanted and layer.asked("gateway"))
        await asyncio.sleep(0.05)
        begun = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(was_left, layer)
        assert time.monotonic() - begun < AT_ONCE
    assert words == list(WORDS[:wanted])
