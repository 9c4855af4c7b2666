"""Serve ASGI applications over HTTP from one background thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import errno
import functools
import logging
import os
import socket
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Final, Self, TypeAlias, cast

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from prem_core._serving.request import OVERLOADED

LOOPBACK: Final = "127.0.0.1"
LOOPBACK_IPV6: Final = "::1"

#: Addresses that listen on every interface of the machine.
ALL_INTERFACES: Final = ("0.0.0.0", "::")  # noqa: S104 - compared with, not listened on

#: One or more listening sockets.
Sockets: TypeAlias = tuple[socket.socket, *tuple[socket.socket, ...]]

#: Seconds that open requests have to end on their own, before and after their connections are closed.
_GRACE: Final = 0.5

#: Seconds `Server.stop` waits for its thread. A thread in uninterruptible work outlives it; the ports are free by then.
_STOP_TIMEOUT: Final = 5.0

#: Connections that a server keeps open. OpenAI's clients open up to 1,000.
MAX_CONNECTIONS: Final = 1000

#: Connections above the maximum on which a request is answered with 503. Further ones are closed at once.
_OVERLOADED_CONNECTIONS: Final = 32

#: Seconds in which a request must arrive, and in which some of a long one must. A long one gets a second more for every
#: `MIN_RATE` bytes: a slow upload of a recording is accepted.
REQUEST_TIMEOUT: Final = 20.0
MIN_RATE: Final = 1000.0

#: Attempts to find a port that is free on both loopback addresses.
_PORT_ATTEMPTS: Final = 10

_silent = logging.Logger("prem_core.silent", logging.CRITICAL + 1)


class Service(ABC):
    """A thing to start and stop, which is also a context manager and an async context manager."""

    @abstractmethod
    def start(self) -> Self:
        """Start it."""

    @abstractmethod
    def stop(self) -> None:
        """Stop it."""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.start)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)


class Server(Service):
    """HTTP servers in one background thread with one event loop. Each object is started once.

    Args:
        apps: Applications, each with its listening sockets, which the server closes. `stop` closes their connections in
            this order: list an application before those that it calls.
        name: The name of the thread.
        on_stop: Called on the event loop when `stop` is called. Open requests may then end on their own for a moment,
            before their connections are closed.
        closers: Awaited on the event loop after the servers have stopped, the last one first.
        logger: Receives uvicorn's warnings. None drops them.
        max_connections: Connections that each application keeps open. A request on a further one has the state
            `OVERLOADED`, and its connection is closed after the response.
        request_timeout: Seconds in which a request must arrive; a long one at `MIN_RATE`.
    """

    def __init__(
        self,
        *apps: tuple[ASGIApp, *Sockets],
        name: str = "prem-server",
        on_stop: Callable[[], None] | None = None,
        closers: Collection[Callable[[], Awaitable[None]]] = (),
        logger: logging.Logger | None = None,
        max_connections: int | None = None,
        request_timeout: float = REQUEST_TIMEOUT,
    ) -> None:
        #: The URL of each application.
        self.urls = [url_of(sock) for _, sock, *_ in apps]
        self._apps = apps
        self._on_stop = on_stop
        self._closers = closers
        self._logger = logger or _silent
        self._max_connections = max_connections or default_max_connections()
        self._request_timeout = request_timeout
        self._ready: concurrent.futures.Future[Callable[[], object]] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> Self:
        """Start the thread. Connections are accepted when this returns."""
        self._thread.start()
        self._request_stop = self._ready.result()
        return self

    def stop(self) -> None:
        """End open requests, close all connections and ports, and wait for the thread."""
        self._request_stop()
        self._thread.join(_STOP_TIMEOUT)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)
        finally:
            for _, *socks in self._apps:
                for sock in socks:
                    sock.close()

    async def _serve(self) -> None:
        async with AsyncExitStack() as stack:
            for close in self._closers:
                stack.push_async_callback(close)
            limits = (self._max_connections, self._request_timeout)
            servers = [uvicorn.Server(_Config(app, self._logger, *limits)) for app, *_ in self._apps]
            group = await stack.enter_async_context(asyncio.TaskGroup())
            for server, (_, *socks) in zip(servers, self._apps, strict=True):
                group.create_task(server.serve(socks))
            stopping = asyncio.Event()
            loop = asyncio.get_running_loop()
            # The sockets listen already: connections made before uvicorn is ready wait in the backlog.
            self._ready.set_result(functools.partial(loop.call_soon_threadsafe, stopping.set))
            await stopping.wait()
            for server in servers:
                server.should_exit = True
            if self._on_stop is not None:
                self._on_stop()
                for server in servers:
                    await _settle(server)
            for server in servers:
                for connection in list(server.server_state.connections):
                    connection.transport.abort()
                # Before the next server's connections are aborted, the requests here close their own to it.
                await _settle(server)


async def _settle(server: uvicorn.Server) -> None:
    if server.server_state.tasks:
        await asyncio.wait(server.server_state.tasks, timeout=_GRACE)


class _Config(uvicorn.Config):
    """uvicorn's configuration for one application, which leaves the logging of the process alone."""

    def __init__(
        self, app: ASGIApp, logger: logging.Logger, max_connections: int, request_timeout: float
    ) -> None:
        self.protocol_logger = logger
        self.max_connections = max_connections
        self.request_timeout = request_timeout
        super().__init__(
            app,
            http=_Protocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=1,
        )

    def configure_logging(self) -> None:
        """Do nothing: uvicorn would set the levels of loggers that the process may use for its own servers."""


class _Protocol(H11Protocol):
    """HTTP/1.1 without an access log, with a limit on connections and on the time that a request takes to arrive."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        config = cast(_Config, self.config)
        self.access_log = False
        self.logger = config.protocol_logger
        self._timeout = config.request_timeout
        self._timer: asyncio.TimerHandle | None = None
        self._received, self._received_at = 0, 0.0
        super().connection_made(transport)
        excess = len(self.connections) - config.max_connections
        if excess > _OVERLOADED_CONNECTIONS:
            transport.abort()
        elif excess > 0:
            self.app_state = {OVERLOADED: True}
        self._watch_arrival()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_timer()

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        self._received_at = self.loop.time()
        super().data_received(data)
        self._watch_arrival()

    def on_response_complete(self) -> None:
        # An open connection must not keep the last request: the headers have its API key, the scope its content.
        self.headers = []
        self.scope = self.cycle.scope = {}  # type: ignore[typeddict-item]
        super().on_response_complete()
        if OVERLOADED in self.app_state:
            self.transport.close()
        self._watch_arrival()

    def _watch_arrival(self) -> None:
        """Start the timer when a request begins to arrive, and stop it when the request is complete."""
        state = self.conn.their_state
        # Between two requests, the timer of uvicorn's keep-alive runs.
        arriving = state is h11.SEND_BODY or (state is h11.IDLE and self.timeout_keep_alive_task is None)
        if not arriving or self.transport.is_closing():
            self._stop_timer()
        elif self._timer is None:
            start = self._received_at = self.loop.time()
            self._received = 0
            self._timer = self.loop.call_later(self._timeout, self._check_arrival, start)

    def _check_arrival(self, start: float) -> None:
        last = min(self._received_at, start + self._received / MIN_RATE)
        left = last + self._timeout - self.loop.time()
        if left > 0:
            self._timer = self.loop.call_later(left, self._check_arrival, start)
        else:
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def default_max_connections() -> int:
    """`MAX_CONNECTIONS`, or three quarters of the file descriptors of this process if they are fewer."""
    if sys.platform == "win32":
        return MAX_CONNECTIONS
    import resource

    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_CONNECTIONS if files == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, files * 3 // 4)


def listen(host: str = LOOPBACK, port: int = 0) -> socket.socket:
    """A listening TCP socket; port 0 picks a free port.

    Raises:
        OSError: The address cannot be used. The message names it.
    """
    try:
        family, *_, address = socket.getaddrinfo(
            LOOPBACK if host == "localhost" else host, port, type=socket.SOCK_STREAM
        )[0]
    except (OSError, UnicodeError):
        raise OSError(f"cannot listen on {host}: this machine has no such address") from None
    # With the protocol named: otherwise asyncio does not set TCP_NODELAY, and every response waits 40 ms for an ACK.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            # Reuse a port right after it was closed. On Windows the option would share a port that is in use.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen()
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"cannot listen on port {port} on {host}: {error.strerror}") from None
    return sock


def listen_on_loopback(port: int = 0) -> Sockets:
    """Listening TCP sockets on 127.0.0.1 and, if this machine has it, on ::1; port 0 picks a free port.

    Where `localhost` means ::1 first, another user's program could otherwise listen there for the requests to it.

    Raises:
        OSError: The port cannot be used on one of the two. The message names it.
    """
    for _ in range(_PORT_ATTEMPTS):
        first = listen(port=port)
        try:
            return first, listen(LOOPBACK_IPV6, first.getsockname()[1])
        except OSError as error:
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                return (first,)
            first.close()
            failure = error
        if port:
            break
    raise OSError(
        failure.errno,
        f"{failure.strerror}. Requests to localhost could reach another program there: use another port",
    )


def url_of(sock: socket.socket) -> str:
    """The URL of a listening socket. For a socket on every interface, the URL on this machine."""
    host, port = sock.getsockname()[:2]
    return f"http://{url_host(LOOPBACK if host in ALL_INTERFACES else host)}:{port}"


def url_host(host: str) -> str:
    """`host` as it is written in a URL: an IPv6 address has brackets."""
    return f"[{host}]" if ":" in host else host
