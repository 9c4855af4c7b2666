"""What is there at once goes on at once: a burst of chunks costs one write, and a single one waits for no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final, TypeVar

T = TypeVar("T")

#: Items that may be here before their taker wants them: he decides the pace.
MOST: Final = 256


async def together(items: AsyncIterator[T]) -> AsyncGenerator[list[T], None]:
    """`items` in lists, each of all that came until then. An error comes after the items before it.

    Close it (``aclosing``) where it may not be exhausted.
    """
    held: list[T] = []
    some, room = asyncio.Event(), asyncio.Event()

    async def pull() -> None:
        try:
            # Runs on without a pause for as long as the next item is here already.
            while True:
                held.append(await anext(items))
                some.set()
                if len(held) >= MOST:
                    room.clear()
                    await room.wait()
        except StopAsyncIteration:
            pass
        finally:
            some.set()

    pulling = asyncio.create_task(pull())
    try:
        while held or not pulling.done():
            await some.wait()
            some.clear()
            if held:
                batch = held.copy()
                held.clear()
                room.set()
                yield batch
        await pulling
    finally:
        pulling.cancel()
        await asyncio.gather(pulling, return_exceptions=True)
