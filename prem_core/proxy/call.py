"""One request to the proxy while it is processed, and the response to it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from starlette.types import Message, Scope, Send

from prem_core._apis.base import EVENT_STREAM, JSON, REQUEST_ID_HEADERS, ApiError, Reply
from prem_core._apis.handlers import PROTECTION_HEADER, Exchange, protection_text
from prem_core._apis.routing import Match
from prem_core._protocol.protection import Protection
from prem_core._serving.request import RequestBody
from prem_core.proxy.request_log import RequestLog, RequestRecord, State

T = TypeVar("T")

#: Seconds without an event until a comment is sent. An error that comes earlier has its HTTP status. Many clients and
#: load balancers close a connection that is idle for a minute, some of them sooner.
KEEP_ALIVE_SECONDS: Final = 10.0

#: A comment, which clients of event streams skip.
KEEP_ALIVE: Final = b": keep-alive\n\n"

_NOT_CACHED: Final = ("cache-control", "no-store")


@dataclass(slots=True)
class Call:
    """One request, its response, and its record in the log.

    Attributes:
        scope: The ASGI scope, without the API key.
        key: The API key that the caller sent; None once it has been taken.
        body: The request body.
        record: The entry in the log.
        headers: The request's headers by lower-case name, without the API key.
        match: The API and the route; an error if there are none.
        exchange: What the API makes of the request; None before the request was read.
        started: Whether the response has started.
        streaming: Whether the response is an event stream.
    """

    scope: Scope = field(repr=False)
    key: str | None = field(repr=False)
    body: RequestBody
    record: RequestRecord
    log: RequestLog = field(repr=False)
    asgi_send: Send = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    match: Match | ApiError = field(default_factory=lambda: ApiError(404, "no such route"), repr=False)
    exchange: Exchange | None = field(default=None, repr=False)
    started: bool = False
    streaming: bool = False

    def response_headers(self) -> list[tuple[str, str]]:
        """The headers of every response to this request."""
        pairs = [(header, self.record.id) for header in REQUEST_ID_HEADERS]
        return pairs if self.exchange is None else pairs + self.exchange.headers()

    async def start(
        self, content_type: str, headers: Sequence[tuple[str, str]] = (), status: int = 200
    ) -> None:
        """Send the status and the headers of a response."""
        self.streaming = content_type == EVENT_STREAM
        pairs = [("content-type", content_type), *headers, *self.response_headers()]
        raw = [(name.encode(), value.encode()) for name, value in pairs]
        await self.send({"type": "http.response.start", "status": status, "headers": raw})

    async def start_stream(self, protection: Protection) -> None:
        """Send the status and the headers of a stream, unless `keep_alive` has sent them: then a comment takes the
        place of the header."""
        if self.started:
            await self.write(f": {PROTECTION_HEADER}: {protection_text(protection)}\n\n".encode(), more=True)
        else:
            await self.start(EVENT_STREAM, [_NOT_CACHED])

    async def keep_alive(self, value: Awaitable[T]) -> T:
        """Wait for `value`. While it takes long, send comments in an event stream, which starts with the first one."""
        waiting = asyncio.ensure_future(value)
        try:
            while not (await asyncio.wait((waiting,), timeout=KEEP_ALIVE_SECONDS))[0]:
                if not self.started:
                    # Without a stream from the gateway, an answer has a nonce of its own or is an error.
                    await self.start(EVENT_STREAM, [_NOT_CACHED, (PROTECTION_HEADER, "nonce=own")])
                waiting_text = KEEP_ALIVE if self.exchange is None else self.exchange.keep_alive()
                await self.write(waiting_text, more=True)
            return waiting.result()
        finally:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

    async def write(self, body: bytes, *, more: bool) -> None:
        """Send the next part of the response body; `more` is False for the last part."""
        await self.send({"type": "http.response.body", "body": body, "more_body": more})

    async def respond(
        self, content_type: str, body: bytes, headers: Sequence[tuple[str, str]] = (), status: int = 200
    ) -> None:
        """Send a complete response."""
        await self.start(content_type, [*headers, ("content-length", str(len(body)))], status)
        await self.write(body, more=False)

    async def reply(self, reply: Reply) -> None:
        """Send a complete response of an API."""
        await self.respond(reply.content_type, reply.body, reply.headers, reply.status)

    async def fail(self, error: ApiError, body: bytes) -> None:
        """Send an error: as a complete response, or as the last event of a stream that has started."""
        self.end("failed", error)
        if not self.started:
            await send_error(self.send, error, body, self.response_headers())
        elif self.streaming:
            # Ended properly: some clients lose the event if the connection breaks right after it.
            await self.write(b"" if self.exchange is None else self.exchange.fail(error), more=False)
        # Any other response that has started stays incomplete, and the server closes the connection.

    async def send(self, message: Message) -> None:
        """Send an ASGI message of the response, and update the record."""
        if message["type"] == "http.response.start":
            self.started = True
            self.record.status = message["status"]
        else:
            self.record.response_bytes += len(message.get("body", b""))
            if not message.get("more_body", False):
                # Before the message is sent: a caller with the whole response finds the record complete.
                self.end("done")
        await self.asgi_send(message)

    def end(self, state: State, error: ApiError | None = None) -> None:
        """Complete the record, unless it is complete."""
        self.record.request_bytes = self.body.size
        name, support_id = (error.name, error.support_id) if error is not None else (None, None)
        self.log.end(self.record, state, name, support_id)


async def send_error(
    send: Send, error: ApiError, body: bytes, headers: Sequence[tuple[str, str]] = ()
) -> None:
    """Send an error as a complete response. Its own headers win over `headers`."""
    pairs = {"content-type": JSON, "content-length": str(len(body)), **dict(headers), **error.headers}
    raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in pairs.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
