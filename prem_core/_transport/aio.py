"""Perform a flow's steps with httpx, asynchronously."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
)
from typing import Any

import httpx

from prem_core import _errors as errors
from prem_core._crypto.xwing import PublicKey
from prem_core._protocol.flow import (
    Acquire,
    FetchKey,
    Head,
    Read,
    ReadWithin,
    Release,
    Send,
    Sleep,
    Steps,
    Work,
)
from prem_core._protocol.retry import TOTAL_TIMEOUT_MESSAGE
from prem_core._rate_limit.limits import Limits, Turn
from prem_core._transport.http import (
    _FOREIGN,
    LINGER,
    MAX_DRAINED,
    Endpoints,
    R,
    _head,
    _is_coded,
    _let_go,
    _read_within,
    translate,
)


class _Connected:
    """The connection that a request opened, if it opened one.

    httpcore keeps one whose opener is cancelled before he has sent anything: open, and never used again.
    """

    __slots__ = ("_stream",)

    def __init__(self) -> None:
        self._stream: Any = None

    async def __call__(self, event: str, info: dict[str, Any]) -> None:
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._stream = info["return_value"]

    async def close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            with contextlib.suppress(Exception):
                await stream.aclose()


class AsyncDriver:
    """`SyncDriver`'s twin on an event loop."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        endpoints: Endpoints,
        fetch_key: Callable[[PublicKey | None], Awaitable[PublicKey]],
        timeout: float | httpx.Timeout | None = None,
        *,
        limits: Limits | None = None,
        deadline: float | None = None,
    ) -> None:
        self._timeout = timeout
        self._turn = Turn(limits) if limits is not None else None
        self._deadline = deadline
        self._client = client
        self._endpoints = endpoints
        self._fetch_key = fetch_key
        self._response: httpx.Response | None = None
        self._pieces: AsyncIterator[bytes] = _nothing()
        self._party = "gateway"

    async def run(self, steps: Steps[R]) -> R:
        """Do what `steps` say until they return. A reply they leave open stays open, for `read`."""
        if self._deadline is None:
            return await self._run(steps)
        return await self._in_time(self._run(steps), self._deadline)

    @staticmethod
    async def _in_time(work: Coroutine[Any, Any, R], deadline: float) -> R:
        timeout = asyncio.timeout(deadline - time.monotonic())
        try:
            async with timeout:
                return await work
        except TimeoutError:
            if not timeout.expired():  # somebody else's, and not ours to name
                raise
        raise errors.APITimeoutError(TOTAL_TIMEOUT_MESSAGE)

    async def _run(self, steps: Steps[R]) -> R:
        try:
            step = next(steps)
            while True:
                try:
                    outcome = await self._perform(step)
                except errors.PremError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(outcome)
        except StopIteration as stop:
            result: R = stop.value
            return result
        except BaseException:
            await self.close()
            raise

    async def _perform(self, step: Any) -> Any:
        match step:
            case Read():
                return await self._read()
            case Send():
                return await self._send(step)
            case FetchKey(stale):
                return await self._fetch_key(stale)
            case Acquire() if self._turn is not None:
                return await self._turn.atake()
            case Release(hold, spacing) if self._turn is not None:
                await self._drop()
                return self._turn.give_back() if hold is None else self._turn.pause(hold, spacing)
            case ReadWithin(seconds):
                return _read_within(self._response, seconds)
            case Work(call):
                return await asyncio.to_thread(call)
            case Sleep(seconds):
                await self._drop()
                await asyncio.sleep(seconds)
                return None
        raise AssertionError(
            step
        )  # pragma: no cover - Step has these members, and who has no limits no turns

    async def _send(self, step: Send) -> Head:
        await self._drop()
        self._party = step.party
        if self._client.is_closed:  # while this call waited
            raise errors.ConfigurationError("the client is closed")
        try:
            request = self._endpoints.request(self._client, step, self._timeout)
            connected = request.extensions["trace"] = _Connected()
            try:
                response = await self._client.send(request, stream=True, follow_redirects=False)
            except asyncio.CancelledError:
                await connected.close()
                raise
            finally:
                _let_go(request)
        except _FOREIGN as error:
            failure = translate(error, step.party, reading=False)
        else:
            self._response = response
            self._pieces = response.aiter_bytes() if _is_coded(response) else response.aiter_raw()
            return _head(response)
        try:
            raise failure
        finally:
            del failure  # its traceback has this frame: a circle, which would keep the connections

    async def read(self) -> bytes:
        """The open reply's next bytes; ``b""`` at its end.

        Raises:
            APIConnectionError: The connection broke, or nothing came within the timeout.
        """
        if self._deadline is None:
            return await self._read()
        return await self._in_time(self._read(), self._deadline)

    async def _read(self) -> bytes:
        try:
            return await anext(self._pieces, b"")
        except _FOREIGN as error:
            failure = translate(error, self._party, reading=True)
        try:
            raise failure
        finally:
            del failure  # its traceback has this frame: a circle, which would keep the connections

    async def drain(self) -> None:
        """Read a whole answer's reply to its end, so that its connection can serve the next request."""
        try:
            async with asyncio.timeout(LINGER):
                for _ in range(MAX_DRAINED):
                    if not await self.read():
                        break
        except (errors.APIConnectionError, TimeoutError):
            pass

    async def close(self) -> None:
        """Drop the open reply, if there is one, and its connection unless it was read to its end; and the turn."""
        try:
            await self._drop()
        finally:
            if self._turn is not None:
                self._turn.give_back()

    async def _drop(self) -> None:
        response, self._response = self._response, None
        self._pieces = _nothing()
        if response is not None:
            await response.aclose()


async def _nothing() -> AsyncGenerator[bytes, None]:
    return
    yield b""
