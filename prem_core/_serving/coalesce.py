"""Combine the items that are available at the same time into one batch, without delaying a single item."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final, TypeVar

T = TypeVar("T")

#: Items that are read ahead of a slow consumer.
MAX_BUFFERED: Final = 256


async def coalesce(items: AsyncIterator[T]) -> AsyncGenerator[list[T], None]:
    """Yield `items` in lists, each with all that have arrived since the last one. An error follows the items before it.

    Close it (``aclosing``) where it may not be exhausted.
    """
    buffer: list[T] = []
    available, space = asyncio.Event(), asyncio.Event()

    async def read() -> None:
        try:
            # Does not yield to the event loop while further items are available.
            while True:
                buffer.append(await anext(items))
                available.set()
                if len(buffer) >= MAX_BUFFERED:
                    space.clear()
                    await space.wait()
        except StopAsyncIteration:
            pass
        finally:
            available.set()

    reader = asyncio.create_task(read())
    try:
        while buffer or not reader.done():
            await available.wait()
            available.clear()
            if buffer:
                batch = buffer.copy()
                buffer.clear()
                space.set()
                yield batch
        await reader
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
