"""The edge: exchanges driven over httpx, synchronously and asynchronously.

The rule of this file: no decisions. A driver does what a step says and gives back what came, or
throws one of this package's errors into the exchange. An httpx error never leaves this file, not even
as a cause: it holds the request, and with it the API key.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import ssl
import threading
import time
import weakref
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
)
from dataclasses import dataclass, field
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Final, TypeVar

import certifi
import httpx

from prem_core import _errors as errors
from prem_core._envelope import SealedBody
from prem_core._exchange import Acquire, FetchKey, Head, Read, ReadWithin, Release, Send, Sleep, Steps, Work
from prem_core._kem import PublicKey
from prem_core._limits import Limits, Turn
from prem_core._retry import OUT_OF_TIME
from prem_core._version import __version__

R = TypeVar("R")

#: Streams hold their connection for as long as they run; httpx's own 100 would make the 101st wait.
LIMITS: Final = httpx.Limits(max_connections=1000, max_keepalive_connections=100)

#: What each of httpx's failures is to our callers. The texts are ours: httpx's can quote a header.
TRANSLATIONS: Final[tuple[tuple[type[Exception], type[errors.APIConnectionError], str], ...]] = (
    (httpx.ConnectTimeout, errors.APITimeoutError, "connecting timed out"),
    (httpx.PoolTimeout, errors.APITimeoutError, "no free connection within the timeout"),
    (httpx.WriteTimeout, errors.APITimeoutError, "sending the request timed out"),
    (httpx.ReadTimeout, errors.APITimeoutError, "waiting for the service timed out"),
    (httpx.TimeoutException, errors.APITimeoutError, "the request timed out"),
    (httpx.ConnectError, errors.APIConnectionError, "the connection could not be made"),
    (httpx.ProxyError, errors.APIConnectionError, "the HTTP proxy on the way refused the connection"),
    (httpx.HTTPError, errors.APIConnectionError, "the connection broke"),
    (httpx.InvalidURL, errors.APIConnectionError, "the URL could not be used"),
    (httpx.StreamError, errors.APIConnectionError, "the stream was closed"),
)


def translate(error: Exception, party: str, *, reading: bool) -> errors.APIConnectionError:
    """The error of ours that an httpx failure stands for.

    Args:
        error: Anything in `TRANSLATIONS`.
        party: Who was being talked to: "gateway" or "enclave".
        reading: Whether the reply had begun: a connection that breaks then has cut the answer.
    """
    kind, text = next((kind, text) for foreign, kind, text in TRANSLATIONS if isinstance(error, foreign))
    if reading and kind is errors.APIConnectionError:
        return errors.StreamInterruptedError(f"{party}: the connection broke in the middle of the answer")
    return kind(f"{party}: {text}")


_FOREIGN: Final = tuple(foreign for foreign, _, _ in TRANSLATIONS)


@functools.lru_cache(maxsize=64)
def _url(text: str) -> httpx.URL:
    # The same few URLs for every request; parsing one costs as much as sealing a prompt.
    return httpx.URL(text)


@functools.cache
def ssl_context() -> ssl.SSLContext:
    """One TLS context for every client: reading the certificates takes some 10 to 40 ms.

    SSL_CERT_FILE, or else SSL_CERT_DIR, stands in for certifi's certificates, as it does for httpx.

    Raises:
        ConfigurationError: There are no certificates in the file that SSL_CERT_FILE names.
    """
    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    if not file:
        return ssl.create_default_context(capath=folder, cafile=None if folder else certifi.where())
    try:
        return ssl.create_default_context(cafile=file)
    except OSError as error:
        raise errors.ConfigurationError(f"SSL_CERT_FILE: no certificates can be read: {error}") from None


def no_cookies() -> CookieJar:
    """A jar that stays empty: httpx would keep what the gateway sets, and a cookie tells one request's sender from
    another's where keys do not."""
    return CookieJar(DefaultCookiePolicy(allowed_domains=[]))


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where each party is, how to authenticate, and how long to wait (seconds)."""

    proxy_url: str
    enclave_url: str
    timeout: float | httpx.Timeout
    api_key: str | None = field(default=None, repr=False)

    def request(
        self,
        client: httpx.Client | httpx.AsyncClient,
        step: Send,
        timeout: float | httpx.Timeout | None = None,
    ) -> httpx.Request:
        """The HTTP request that a `Send` describes; `timeout` in place of the client's own."""
        url = _url((self.proxy_url if step.party == "gateway" else self.enclave_url) + step.path)
        headers = {
            "accept": "text/event-stream, application/json",
            # Sealed bytes do not compress, and a reply that is not unpacked cannot be a bomb.
            "accept-encoding": "identity",
            "user-agent": f"prem-encrypted/{__version__}",
        }
        if step.body is not None:
            headers["content-type"] = "application/json"
        if step.party == "gateway" and self.api_key:
            headers["authorization"] = f"Bearer {self.api_key}"
        large = step.body if isinstance(step.body, SealedBody) else None
        request = client.build_request(
            step.method,
            url,
            content=None if isinstance(step.body, SealedBody) else step.body,
            headers=headers,
            params=step.query or None,
            timeout=self.timeout if timeout is None else timeout,
        )
        if large is not None:
            # httpx has no form for a body that either kind of client can send, and whose length is known.
            request.stream = _Pieces(large)
            request.headers["content-length"] = str(large.length)
        return request


class _Pieces(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A large body, written piece by piece."""

    def __init__(self, body: SealedBody) -> None:
        self._body: Iterable[bytes] = body

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._body:
            yield piece


def _let_go(request: httpx.Request) -> None:
    # httpx's response refers to itself and to the request: a recording would stay until a full collection.
    if isinstance(request.stream, _Pieces):
        request.stream._body = ()


def _head(response: httpx.Response) -> Head:
    return Head(response.status_code, {k.lower(): v for k, v in response.headers.items()}, time.time())


def _is_coded(response: httpx.Response) -> bool:
    # We ask for no content coding; a gateway may apply one all the same. Without one, the raw bytes are
    # the body, and taking them saves a round of decoding for every piece. A body that a transport gave
    # whole has been consumed already, and only the other iterator gives it again.
    return "content-encoding" in response.headers or response.is_stream_consumed


#: How long an answer that is whole waits for its connection's end, in seconds, and for how many pieces.
LINGER: Final = 0.25
MAX_DRAINED: Final = 16


def _shut_down(response: httpx.Response) -> None:
    if response.is_closed:  # its connection may serve another request by now
        return
    # HTTP/2 has other answers on the same socket.
    stream = response.extensions.get("network_stream")
    sock = stream.get_extra_info("socket") if stream and response.http_version.startswith("HTTP/1") else None
    if sock is not None:
        with contextlib.suppress(OSError):
            # Not SSLSocket's own, which would make a thread inside it read in the clear.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _end(response: httpx.Response, pieces: Iterator[bytes] | None = None, turn: Turn | None = None) -> None:
    del pieces
    try:
        # Closing a socket does not wake a thread that waits on it, nor tell the service; this does both.
        _shut_down(response)
        response.close()
    finally:
        if turn is not None:
            turn.give_back()


def _read_within(response: httpx.Response | None, seconds: float) -> None:
    # httpcore looks it up when a body's first bytes are asked for, which they have not been yet.
    timeout = response.request.extensions.get("timeout") if response is not None else None
    if isinstance(timeout, dict):
        read = timeout.get("read")
        timeout["read"] = seconds if read is None else min(read, seconds)


def _end_by(request: httpx.Request, deadline: float) -> None:
    """Let no step of `request` (connecting, writing, waiting for the answer) go on beyond `deadline`."""
    # httpcore has the same object, and looks each step's timeout up when that step begins.
    timeout: dict[str, float | None] = request.extensions["timeout"]

    def shorten(*_: object) -> None:
        left = max(deadline - time.monotonic(), 0.001)  # 0 would mean: do not block
        for name, each in timeout.items():
            timeout[name] = left if each is None else min(each, left)

    shorten()
    request.extensions["trace"] = shorten


class _Watchdog:
    """Breaks a reply's connection off when its call has taken too long: a read that blocks is not woken otherwise.

    Args:
        deadline: On the clock of `time.monotonic`.
    """

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._timer: threading.Timer | None = None

    @property
    def barks(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() >= self._deadline

    def watch(self, response: httpx.Response) -> None:
        self._timer = threading.Timer(self._deadline - time.monotonic(), _shut_down, (response,))
        self._timer.daemon = True
        self._timer.start()

    def leave(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


class SyncDriver:
    """Drive one exchange on this thread.

    Args:
        client: Where requests go out.
        endpoints: Whom to ask.
        fetch_key: Gives the enclave's key, and not the stale one named.
        timeout: In place of the endpoints' own.
        limits: Whose turns the exchange waits for.
        deadline: When it has taken too long, on the clock of `time.monotonic`.
    """

    def __init__(
        self,
        client: httpx.Client,
        endpoints: Endpoints,
        fetch_key: Callable[[PublicKey | None], PublicKey],
        timeout: float | httpx.Timeout | None = None,
        *,
        limits: Limits | None = None,
        deadline: float | None = None,
    ) -> None:
        self._timeout = timeout
        self._turn = Turn(limits) if limits is not None else None
        self._deadline = deadline
        self._watchdog = _Watchdog(deadline) if deadline is not None else None
        self._client = client
        self._endpoints = endpoints
        self._fetch_key = fetch_key
        self._response: httpx.Response | None = None
        self._pieces: Iterator[bytes] = iter(())
        self._party = "gateway"

    def run(self, steps: Steps[R]) -> R:
        """Do what `steps` say until they return. A reply they leave open stays open, for `read`."""
        try:
            step = next(steps)
            while True:
                try:
                    outcome = self._perform(step)
                except errors.PremError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(outcome)
        except StopIteration as stop:
            result: R = stop.value
            return result
        except BaseException:
            self.close()
            raise

    def _perform(self, step: Any) -> Any:
        match step:
            case Read():
                return self.read()
            case Send():
                return self._send(step)
            case FetchKey(stale):
                return self._fetch_key(stale)
            case Acquire() if self._turn is not None:
                return self._turn.take(self._deadline)
            case Release(hold, spacing) if self._turn is not None:
                self._drop()
                return self._turn.give_back() if hold is None else self._turn.pause(hold, spacing)
            case ReadWithin(seconds):
                return _read_within(self._response, seconds)
            case Work(call):
                return call()
            case Sleep(seconds):
                self._drop()
                time.sleep(seconds)
                return None
        raise AssertionError(
            step
        )  # pragma: no cover - Step has these members, and who has no limits no turns

    def _send(self, step: Send) -> Head:
        self._drop()
        self._party = step.party
        if self._client.is_closed:  # while this call waited
            raise errors.ConfigurationError("the client is closed")
        try:
            request = self._endpoints.request(self._client, step, self._timeout)
            if self._deadline is not None:
                _end_by(request, self._deadline)
            try:
                response = self._client.send(request, stream=True, follow_redirects=False)
            finally:
                _let_go(request)
        except _FOREIGN as error:
            failure = translate(error, step.party, reading=False)
        else:
            self._response = response
            self._pieces = response.iter_bytes() if _is_coded(response) else response.iter_raw()
            if self._watchdog is not None:
                self._watchdog.watch(response)
            return _head(response)
        # Raised outside the handler, so that httpx's error is not kept as its context.
        if self._watchdog and self._watchdog.barks:
            failure = errors.APITimeoutError(OUT_OF_TIME)
        try:
            raise failure
        finally:
            del failure  # its traceback has this frame: a circle, which would keep the connections

    def read(self) -> bytes:
        """The open reply's next bytes; ``b""`` at its end.

        Raises:
            APIConnectionError: The connection broke, or nothing came within the timeout.
        """
        try:
            piece = next(self._pieces, b"")
            # Bytes that come too late cannot be told from an end that the watchdog made.
            if self._watchdog is None or not self._watchdog.barks:
                return piece
            failure: errors.APIConnectionError = errors.APITimeoutError(OUT_OF_TIME)
        except _FOREIGN as error:
            failure = translate(error, self._party, reading=True)
        if self._watchdog and self._watchdog.barks:
            failure = errors.APITimeoutError(OUT_OF_TIME)
        try:
            raise failure
        finally:
            del failure  # its traceback has this frame: a circle, which would keep the connections

    def drain(self) -> None:
        """Read a whole answer's reply to its end, so that its connection can serve the next request."""
        response = self._response
        if response is None or response.is_closed:  # closed by httpx, when its end was read
            return
        # The end is mostly here already, but a gateway that lingers would hold the caller for the whole
        # timeout, or with comments for ever. A blocked read is woken by shutting its socket down.
        watchdog = threading.Timer(LINGER, _shut_down, (response,))
        watchdog.daemon = True
        watchdog.start()
        try:
            for _ in range(MAX_DRAINED):
                if not self.read():
                    break
        except errors.APIConnectionError:
            # The answer is whole; only the connection is not worth keeping.
            pass
        finally:
            watchdog.cancel()

    def close(self) -> None:
        """Drop the open reply, if there is one, and its connection unless it was read to its end; and the turn."""
        try:
            self._drop()
        finally:
            if self._turn is not None:
                self._turn.give_back()

    def _drop(self) -> None:
        response, self._response = self._response, None
        self._pieces = iter(())
        if self._watchdog is not None:
            self._watchdog.leave()
        if response is not None:
            _end(response)

    def abandon(self) -> None:
        """`close`, for a finaliser.

        A collection can run inside httpcore, on a thread that holds the pool's lock; ending a reply there
        would wait for that lock for ever.
        """
        response, self._response = self._response, None
        # Handed over as well: freeing the iterator ends the reply too, and the turn lasts until that has ended.
        pieces, self._pieces = self._pieces, iter(())
        turn, self._turn = self._turn, None
        if turn is not None:
            turn.forget()
        if self._watchdog is not None:
            self._watchdog.leave()
        if response is not None:
            threading.Thread(target=_end, args=(response, pieces, turn), daemon=True).start()


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
        raise errors.APITimeoutError(OUT_OF_TIME)

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


@dataclass(slots=True)
class LoopState:
    """What an async client keeps for one event loop."""

    http: httpx.AsyncClient
    key_lock: asyncio.Lock
    lifetime: AsyncGenerator[None, None] | None
    #: Set when `http` is closed for good: a loop that shuts down waits for a closing that has begun.
    closed: asyncio.Event


_States = dict[asyncio.AbstractEventLoop, LoopState]


class LoopStates:
    """One httpx client and one lock for each event loop that an async client is used on.

    Both belong to the loop they were made on: an object used over several `asyncio.run` calls needs one
    for each. A loop closes its client when it shuts down, through the finalisation of an asynchronous
    generator, which `asyncio.run` awaits. When the owner is collected first, the loop is asked to.
    """

    def __init__(self, http_client: httpx.AsyncClient | None) -> None:
        self._given = http_client
        self._states: _States = {}
        # The finaliser holds the states from outside: were they part of the owner's garbage, a collection
        # would find their open sockets at the same time as the owner, and nobody could close them any more.
        weakref.finalize(self, _close_all, self._states).atexit = False

    async def current(self) -> LoopState:
        """The running loop's state."""
        loop = asyncio.get_running_loop()
        state = self._states.get(loop)
        if state is None:
            # Copied first: another thread may be adding its own loop.
            for other in list(self._states):
                if other.is_closed():
                    self._states.pop(other, None)
            if self._given is not None:
                state = LoopState(self._given, asyncio.Lock(), None, asyncio.Event())
            else:
                http = httpx.AsyncClient(verify=ssl_context(), limits=LIMITS, cookies=no_cookies())
                closed = asyncio.Event()
                state = LoopState(http, asyncio.Lock(), _lifetime(http, closed, self._states, loop), closed)
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
    loop: asyncio.AbstractEventLoop, state: LoopState, lifetime: AsyncGenerator[None, None]
) -> None:
    task = loop.create_task(_close(state, lifetime))
    # A loop holds its tasks weakly; this one holds itself until it is done.
    task.add_done_callback(lambda _, held=task: None)  # type: ignore[misc]


async def _close(state: LoopState, lifetime: AsyncGenerator[None, None]) -> None:
    if not state.http.is_closed:
        await _aclose(state.http, state.closed)
    # A RuntimeError: the loop is shutting down, and has been waiting in it for the line above.
    with contextlib.suppress(RuntimeError):
        await lifetime.aclose()
