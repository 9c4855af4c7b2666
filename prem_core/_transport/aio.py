"""Perform a flow's steps with httpx, asynchronously."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar, cast

import httpx

from prem_core import _errors as errors
from prem_core._crypto.xwing import PublicKey
from prem_core._protocol.retry import TOTAL_TIMEOUT_MESSAGE
from prem_core._protocol.steps import (
    READ,
    Acquire,
    Attest,
    FetchKey,
    Flow,
    Probe,
    Release,
    ResponseHead,
    RunInThread,
    Send,
    Sleep,
    Step,
)
from prem_core._rate_limit.permits import Limits, Permit
from prem_core._transport.http import (
    DRAIN_MAX_READS,
    DRAIN_TIMEOUT,
    HTTPX_ERRORS,
    BodyStream,
    BuildRequest,
    KnownKey,
    auth_of,
    is_coded,
    response_head,
    translate,
)

R = TypeVar("R")


class _ConnectionTracker:
    """Closes the connection that a cancelled request opened.

    If a request is cancelled before it was sent, httpcore leaves its connection open and never uses it again.
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
    """Performs one flow on the running event loop; see `SyncDriver`."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        build_request: BuildRequest,
        keys: KnownKey,
        fetch_key: Callable[[PublicKey | None], Awaitable[PublicKey]],
        prepare: Callable[[Attest | Probe], Awaitable[Any]],
        limits: Limits | None = None,
        deadline: float | None = None,
    ) -> None:
        self._client = client
        self._build_request = build_request
        self._keys = keys
        self._fetch_key = fetch_key
        self._prepare = prepare
        self._permit = Permit(limits) if limits is not None else None
        self._deadline = deadline
        self._response: httpx.Response | None = None
        self._data: AsyncIterator[bytes] = _empty()
        self._party = "gateway"
        self._reading = False  # whether the latest request got a response

    async def run(self, flow: Flow) -> Any:
        """Perform the steps of `flow` and return its last result."""
        result = None
        async for result in self.stream(flow):  # noqa: B007
            pass
        return result

    async def stream(self, flow: Flow) -> AsyncGenerator[Any, None]:
        """Perform the steps of `flow` and yield each result."""
        outcome: Any = None
        try:
            step = next(flow)
            while True:
                failure: errors.PremError | None = None
                if not isinstance(step, Step):
                    yield step
                    outcome = None
                else:
                    try:
                        if self._deadline is not None:
                            outcome = await _before(self._deadline, self._perform(step))
                        elif step is READ:
                            outcome = await self._read()
                        else:
                            outcome = await self._perform(step)
                    except errors.PremError as error:
                        failure = error
                    except HTTPX_ERRORS as error:
                        failure = translate(error, self._party, reading=self._reading)
                if failure is None:
                    step = flow.send(outcome)
                    continue
                # Thrown outside the except blocks, so that the httpx error does not become its context.
                try:
                    step = flow.throw(failure)
                finally:
                    del (
                        failure
                    )  # its traceback refers to this frame: this cycle would keep the connection open
        except StopIteration:
            await self._drain()
        finally:
            await self.close()

    async def _perform(self, step: Step) -> Any:
        match step:
            case Send():
                return await self._send(step)
            case Acquire(with_key, charge):
                if with_key and self._keys.public_key is None:
                    await self._fetch_key(None)
                if self._permit is not None:
                    await self._permit.acquire_async(charge)
                return self._keys.public_key if with_key else None
            case FetchKey(stale):
                return await self._fetch_key(stale)
            case Release():
                await self._close_response()
                if self._permit is not None:
                    self._permit.release(step)
                return None
            case Attest() | Probe():
                return await self._prepare(step)
            case RunInThread(call):
                return await asyncio.to_thread(call)
            case Sleep(seconds):
                await self._close_response()
                await asyncio.sleep(seconds)
                return None
        return await self._read()

    async def _send(self, step: Send) -> ResponseHead:
        await self._close_response()
        self._party, self._reading = step.party, False
        if self._client.is_closed:  # it may have been closed while this call waited
            raise errors.ConfigurationError("the client is closed")
        request = self._build_request(self._client, step)
        connection = request.extensions["trace"] = _ConnectionTracker()
        try:
            response = await self._client.send(
                request, stream=True, auth=auth_of(step), follow_redirects=False
            )
        except asyncio.CancelledError:
            await connection.close()
            raise
        finally:
            if isinstance(request.stream, BodyStream):
                request.stream.release()
        self._response, self._reading = response, True
        self._data = _raw_data(response)
        return response_head(response, step.read_timeout)

    async def _read(self) -> bytes:
        data = await anext(self._data, b"")
        if not data:
            await self._close_response()
        return data

    async def _drain(self) -> None:
        """Read the response to its end, so that its connection can serve the next request."""
        if self._response is None:
            return
        # The answer is complete. If this fails, only the connection is lost.
        with contextlib.suppress(*HTTPX_ERRORS, TimeoutError):
            async with asyncio.timeout(DRAIN_TIMEOUT):
                for _ in range(DRAIN_MAX_READS):
                    if not await self._read():
                        break

    async def close(self) -> None:
        """Close the open response and release the permit.

        The connection is closed, too, unless the response was read to its end.
        """
        try:
            await self._close_response()
        finally:
            if self._permit is not None:
                self._permit.release()

    async def _close_response(self) -> None:
        response, self._response = self._response, None
        self._data = _empty()
        if response is not None:
            await response.aclose()


async def _before(deadline: float, work: Awaitable[R]) -> R:
    timeout = asyncio.timeout(deadline - time.monotonic())
    try:
        async with timeout:
            return await work
    except TimeoutError:
        if not timeout.expired():  # the timeout belongs to the caller
            raise
    raise errors.APITimeoutError(TOTAL_TIMEOUT_MESSAGE)


def _raw_data(response: httpx.Response) -> AsyncIterator[bytes]:
    if is_coded(response):
        return _empty()
    if response.is_stream_consumed:  # a transport already read the whole body
        return response.aiter_bytes()
    return aiter(cast("httpx.AsyncByteStream", response.stream))


async def _empty() -> AsyncGenerator[bytes, None]:
    return
    yield b""
