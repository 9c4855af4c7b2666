"""One httpx client for each event loop."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import (
    AsyncGenerator,
)
from dataclasses import dataclass

import httpx

from prem_core._transport.http import POOL_LIMITS, no_cookies, ssl_context


@dataclass(slots=True)
class LoopClient:
    """What an async client keeps for one event loop."""

    http: httpx.AsyncClient
    key_lock: asyncio.Lock
    lifetime: AsyncGenerator[None, None] | None
    #: Set when `http` is closed for good: a loop that shuts down waits for a closing that has started.
    closed: asyncio.Event


_States = dict[asyncio.AbstractEventLoop, LoopClient]


class LoopClients:
    """One httpx client and one lock for each event loop that an async client is used on.

    Both belong to the loop they were made on: an object used over several `asyncio.run` calls needs one for each. A
    loop closes its client when it shuts down, by finalizing an asynchronous generator, which `asyncio.run` awaits.
    If the owner is garbage-collected first, it schedules the closing on the loop.
    """

    def __init__(self, http_client: httpx.AsyncClient | None) -> None:
        self._given = http_client
        self._states: _States = {}
        # The finaliser holds the states from outside: were they part of the owner's garbage, a collection
        # would find their open sockets at the same time as the owner, and nobody could close them any more.
        weakref.finalize(self, _close_all, self._states).atexit = False

    async def current(self) -> LoopClient:
        """The running loop's state."""
        loop = asyncio.get_running_loop()
        state = self._states.get(loop)
        if state is None:
            # Copied first: another thread may be adding its own loop.
            for other in list(self._states):
                if other.is_closed():
                    self._states.pop(other, None)
            if self._given is not None:
                state = LoopClient(self._given, asyncio.Lock(), None, asyncio.Event())
            else:
                http = httpx.AsyncClient(verify=ssl_context(), limits=POOL_LIMITS, cookies=no_cookies())
                closed = asyncio.Event()
                state = LoopClient(http, asyncio.Lock(), _lifetime(http, closed, self._states, loop), closed)
            # Kept before the await below: a second task must find it.
            self._states[loop] = state
            if state.lifetime is not None:
                await anext(state.lifetime)
        return state

    async def close(self) -> None:
        """Close the running loop's client; those of other loops close with them."""
        state = self._states.pop(asyncio.get_running_loop(), None)
        if state is not None and state.lifetime is not None:
            await state.lifetime.aclose()


async def _lifetime(
    http: httpx.AsyncClient, closed: asyncio.Event, states: _States, loop: asyncio.AbstractEventLoop
) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        states.pop(loop, None)
        if http.is_closed:
            await closed.wait()
        else:
            await _aclose(http, closed)


async def _aclose(http: httpx.AsyncClient, closed: asyncio.Event) -> None:
    try:
        await http.aclose()
    finally:
        closed.set()


def _close_all(states: _States) -> None:
    for loop, state in list(states.items()):
        if state.lifetime is not None and not loop.is_closed():
            # From whichever thread the collector runs on.
            loop.call_soon_threadsafe(_close_soon, loop, state, state.lifetime)


def _close_soon(
    loop: asyncio.AbstractEventLoop, state: LoopClient, lifetime: AsyncGenerator[None, None]
) -> None:
    task = loop.create_task(_close(state, lifetime))
    # A loop holds its tasks weakly; this one holds itself until it is done.
    task.add_done_callback(lambda _, held=task: None)  # type: ignore[misc]


async def _close(state: LoopClient, lifetime: AsyncGenerator[None, None]) -> None:
    if not state.http.is_closed:
        await _aclose(state.http, state.closed)
    # A RuntimeError: the loop is shutting down, and has been waiting in it for the line above.
    with contextlib.suppress(RuntimeError):
        await lifetime.aclose()
