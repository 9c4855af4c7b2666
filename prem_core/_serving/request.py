"""What every request to a local server is checked for: its Host header, the size of its body, and a disconnect.

`Overloaded` is the error for a request that the server has no room for.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Collection
from typing import Any, Final, Self

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope

#: Names that programs on this machine use for it.
LOOPBACK_NAMES: Final = ("127.0.0.1", "localhost", "[::1]")

#: Request bodies of the maximum size that a server holds at once.
MAX_BODIES: Final = 16

#: The state of a request on a connection that the server has no room for (`scope["state"]`).
OVERLOADED: Final = "prem.overloaded"


class AllowedHosts:
    """The values of the Host header that a server accepts: ``host in allowed``.

    Any other value may come from a web page whose owner pointed a DNS name at this machine.

    Args:
        port: The port the server listens on.
        names: Hosts to allow in addition to the loopback names; a name without a port stands for `port`.
        any_address: Also accept every IP address, for a server that listens on all interfaces.
    """

    def __init__(self, port: int, names: Collection[str] = (), *, any_address: bool = False) -> None:
        self._port = str(port)
        self._any_address = any_address
        self._hosts = {
            host for name in (*LOOPBACK_NAMES, *names) for host in _with_port(name.lower(), self._port)
        }

    def __contains__(self, host: str) -> bool:
        host = host.lower()
        return host in self._hosts or (self._any_address and self._is_address(host))

    def _is_address(self, host: str) -> bool:
        name, _, port = host.rpartition(":")
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return port == self._port


def _with_port(name: str, port: str) -> tuple[str, ...]:
    # An IPv6 address has colons of its own, and is written in brackets.
    if ":" in name.rpartition("]")[2]:
        return (name,)
    return (f"{name}:{port}", name) if port == "80" else (f"{name}:{port}",)


class BodyTooLarge(Exception):
    """A request body is longer than the server accepts.

    Attributes:
        limit: The limit, in bytes.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(f"the request body is longer than {limit:,} bytes")
        self.limit = limit


class Overloaded(Exception):
    """The server has no room for a request at the moment.

    Args:
        why: What there is no room for.
        headers: Further headers of the response.

    Attributes:
        headers: Headers of the response.
    """

    def __init__(self, why: str, **headers: str) -> None:
        super().__init__(f"{why}; send the request again in a moment")
        self.headers = {"retry-after": "1", **headers}


def check_connection(scope: Scope) -> None:
    """Check that the server has room for the connection of a request.

    Raises:
        Overloaded: It has not. The server closes the connection after the response.
    """
    if scope.get("state", {}).get(OVERLOADED):
        raise Overloaded("too many connections are open", connection="close")


class BodyMemory:
    """The memory of one server for request bodies.

    Args:
        limit: Bytes of all bodies that are held at once.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0


class RequestBody:
    """A request body, read up to a limit. Once it is complete, `disconnected` watches for the client's disconnect.

    Use it as a context manager: its bytes count as held in `memory` until the end of the block.

    Attributes:
        content_type: The Content-Type header; empty where there is none.
        size: Bytes read so far.
    """

    def __init__(self, scope: Scope, receive: Receive, limit: int, memory: BodyMemory) -> None:
        headers = Headers(scope=scope)
        declared = headers.get("content-length", "")
        self.content_type = headers.get("content-type", "")
        self.size = 0
        self._declared = int(declared) if declared.isdecimal() else 0
        self._receive = receive
        self._limit = limit
        self._memory = memory
        self._complete = asyncio.Event()
        #: Without either header there is no body (RFC 9112, 6.3).
        self._absent = not self._declared and "transfer-encoding" not in headers
        if self._absent:
            self._complete.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._memory.held -= self.size

    async def receive(self) -> Message:
        """The next ASGI message, for an application.

        Raises:
            BodyTooLarge: At once, if the declared length is over the limit.
            Overloaded: At once, if the server has no memory for the declared length.
        """
        self._check(self._declared, self._declared - self.size)
        if self._absent:
            # `disconnected` reads from the server already: the application gets its own message.
            self._absent = False
            return {"type": "http.request", "body": b"", "more_body": False}
        message = await self._receive()
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self.size += size
            self._memory.held += size
            self._check(self.size, 0)
            if not message.get("more_body", False):
                self._complete.set()
        return message

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives.

        Raises:
            BodyTooLarge: The body is over the limit.
            Overloaded: The server has no memory for it.
            ClientDisconnect: The client disconnected before the body was complete.
        """
        more = True
        while more:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            yield message.get("body", b"")
            more = message.get("more_body", False)

    async def read(self) -> bytes:
        """The whole body; see `chunks`."""
        return b"".join([chunk async for chunk in self.chunks()])

    async def disconnected(self) -> None:
        """Wait for the client's disconnect. While the body is incomplete, `receive` reports it instead."""
        await self._complete.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def _check(self, size: int, missing: int) -> None:
        if size > self._limit:
            raise BodyTooLarge(self._limit)
        if self._memory.held + missing > self._memory.limit:
            raise Overloaded("the requests that are being processed are too large to accept another one")


async def cancel_on_disconnect(work: asyncio.Task[Any], body: RequestBody) -> None:
    """Wait for `work`, and cancel it when the client disconnects or this call is cancelled."""
    watcher = asyncio.create_task(body.disconnected())
    try:
        await asyncio.wait((work, watcher), return_when=asyncio.FIRST_COMPLETED)
    finally:
        watcher.cancel()
        work.cancel()
        await asyncio.gather(work, watcher, return_exceptions=True)
