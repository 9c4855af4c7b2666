"""One httpx client for each event loop."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass

import httpx

from prem_core._transport.http import httpx_options


@dataclass(slots=True)
class LoopClient:
    """The state of an async client for one event loop."""

    http: httpx.AsyncClient
    key_lock: asyncio.Lock
    prepare_lock: asyncio.Lock
    lifetime: AsyncGenerator[None, None] | None
    #: Set when `http` is closed. A loop that shuts down waits for it if closing has started.
    closed: asyncio.Event


_LoopMap = dict[asyncio.AbstractEventLoop, LoopClient]


class LoopClients:
    """One httpx client and one lock for each event loop that an async client is used on.

    Both can be used only on the loop that they were created on, and each `asyncio.run` creates a loop. A client is
    closed when its loop shuts down: `asyncio.run` then finalizes the asynchronous generator `_lifetime`. If the owner
    is garbage-collected first, a finalizer schedules the closing on the loop.

    Args:
        http_client: Used on every loop in place of own clients.
        urls: What the clients connect to; see `httpx_options`.
    """

    def __init__(self, http_client: httpx.AsyncClient | None, urls: Iterable[str]) -> None:
        self._given = http_client
        self._urls = list(urls)
        self._clients: _LoopMap = {}
        # The finalizer refers to the clients. Otherwise they would be collected together with the owner, and nothing
        # could close their sockets.
        weakref.finalize(self, _close_all, self._clients).atexit = False

    async def current(self) -> LoopClient:
        """The running loop's state."""
        loop = asyncio.get_running_loop()
        state = self._clients.get(loop)
        if state is None:
            # Copied first, because another thread may add its own loop meanwhile.
            for other in list(self._clients):
                if other.is_closed():
                    self._clients.pop(other, None)
            if self._given is not None:
                state = LoopClient(self._given, asyncio.Lock(), asyncio.Lock(), None, asyncio.Event())
            else:
                http = httpx.AsyncClient(**httpx_options(self._urls))
                closed = asyncio.Event()
                lifetime = _lifetime(http, closed, self._clients, loop)
                state = LoopClient(http, asyncio.Lock(), asyncio.Lock(), lifetime, closed)
            # Stored before the await below, so that a second task finds it.
            self._clients[loop] = state
            if state.lifetime is not None:
                await anext(state.lifetime)
        return state

    async def close(self) -> None:
        """Close the running loop's client. The clients of other loops close when those loops shut down."""
        state = self._clients.pop(asyncio.get_running_loop(), None)
        if state is not None and state.lifetime is not None:
            await state.lifetime.aclose()


async def _lifetime(
    http: httpx.AsyncClient, closed: asyncio.Event, clients: _LoopMap, loop: asyncio.AbstractEventLoop
) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        clients.pop(loop, None)
        if http.is_closed:
            await closed.wait()
        else:
            await _aclose(http, closed)


async def _aclose(http: httpx.AsyncClient, closed: asyncio.Event) -> None:
    try:
        await http.aclose()
    finally:
        closed.set()


def _close_all(clients: _LoopMap) -> None:
    for loop, state in list(clients.items()):
        if state.lifetime is not None and not loop.is_closed():
            # Thread-safe, because the garbage collector may run on any thread.
            loop.call_soon_threadsafe(_close_soon, loop, state, state.lifetime)


def _close_soon(
    loop: asyncio.AbstractEventLoop, state: LoopClient, lifetime: AsyncGenerator[None, None]
) -> None:
    task = loop.create_task(_close(state, lifetime))
    # A loop refers to its tasks only weakly. This callback keeps a reference until the task is done.
    task.add_done_callback(lambda _, held=task: None)  # type: ignore[misc]


async def _close(state: LoopClient, lifetime: AsyncGenerator[None, None]) -> None:
    if not state.http.is_closed:
        await _aclose(state.http, state.closed)
    # RuntimeError: the loop is shutting down and already finalizes this generator.
    with contextlib.suppress(RuntimeError):
        await lifetime.aclose()
