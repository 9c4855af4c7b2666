"""Serve ASGI applications over HTTP from one background thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import logging
import os
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Final, Self, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

LOOPBACK: Final = "127.0.0.1"

#: Addresses that listen on every interface of the machine.
ALL_INTERFACES: Final = ("0.0.0.0", "::")  # noqa: S104 - compared with, not listened on

#: Seconds that open requests have to end on their own, before and after their connections are closed.
_GRACE: Final = 0.5

#: Seconds `Server.stop` waits for its thread. A thread in uninterruptible work outlives it; the ports are free by then.
_STOP_TIMEOUT: Final = 5.0

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
        apps: Applications, each with a listening socket, which the server closes. `stop` closes their connections in
            this order: list an application before those that it calls.
        name: The name of the thread.
        on_stop: Called on the event loop when `stop` is called. Open requests may then end on their own for a moment,
            before their connections are closed.
        closers: Awaited on the event loop after the servers have stopped, the last one first.
        logger: Receives uvicorn's warnings. None drops them.
    """

    def __init__(
        self,
        *apps: tuple[ASGIApp, socket.socket],
        name: str = "prem-server",
        on_stop: Callable[[], None] | None = None,
        closers: Collection[Callable[[], Awaitable[None]]] = (),
        logger: logging.Logger | None = None,
    ) -> None:
        #: The URL of each application.
        self.urls = [url_of(sock) for _, sock in apps]
        self._apps = apps
        self._on_stop = on_stop
        self._closers = closers
        self._logger = logger or _silent
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
            for _, sock in self._apps:
                sock.close()

    async def _serve(self) -> None:
        async with AsyncExitStack() as stack:
            for close in self._closers:
                stack.push_async_callback(close)
            servers = [uvicorn.Server(_Config(app, self._logger)) for app, _ in self._apps]
            group = await stack.enter_async_context(asyncio.TaskGroup())
            for server, (_, sock) in zip(servers, self._apps, strict=True):
                group.create_task(server.serve([sock]))
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

    def __init__(self, app: ASGIApp, logger: logging.Logger) -> None:
        self.protocol_logger = logger
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
    """HTTP/1.1 without an access log."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.access_log = False
        self.logger = cast(_Config, self.config).protocol_logger
        super().connection_made(transport)


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


def url_of(sock: socket.socket) -> str:
    """The URL of a listening socket. For a socket on every interface, the URL on this machine."""
    host, port = sock.getsockname()[:2]
    return f"http://{url_host(LOOPBACK if host in ALL_INTERFACES else host)}:{port}"


def url_host(host: str) -> str:
    """`host` as it is written in a URL: an IPv6 address has brackets."""
    return f"[{host}]" if ":" in host else host
