"""The way to the gateway: the caller's key is put on here, and what passes is seen here, sealed.

The rule of this file: a key is nobody's but the call's. The cached clients know none; it leaves with each request and
is gone when the call is over.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from prem_core._transport.http import POOL_LIMITS, no_cookies, ssl_context
from prem_core.proxy.request_log import Exchange, Wire

#: What a client is made with in place of a key. A request that left with it would be refused.
NO_KEY: Final = "the-callers-own"


@dataclass(slots=True)
class Line:
    """What one call needs of the wire. Connections outlive the call that opened them, and with them its context: so
    the key is taken out of here when the call is over.
    """

    exchange: Exchange
    key: str = field(default=NO_KEY, repr=False)


#: The line of the call that runs.
line: ContextVar[Line | None] = ContextVar("line", default=None)


class WireClient(httpx.AsyncClient):
    """The client of `AsyncPremClient`'s own making, with an eye on what passes.

    `send` and not a transport of its own: httpx reads HTTPS_PROXY only for transports that it makes itself.
    """

    def __init__(self) -> None:
        super().__init__(verify=ssl_context(), limits=POOL_LIMITS, cookies=no_cookies())

    async def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        """`httpx.AsyncClient.send`, for the call that runs."""
        now = line.get()
        # The enclave is asked for its public key without a key of anybody's.
        if now is None or "authorization" not in request.headers:
            return await super().send(request, **options)
        exchange = now.exchange
        exchange.attempts += 1
        exchange.gateway_request, exchange.gateway_reply = Wire(), Wire()
        sealed = request.method == "POST"
        body = request.stream
        request.stream = _Watched(body, exchange.gateway_request, sealed=sealed)
        request.headers["authorization"] = f"Bearer {now.key}"
        try:
            response = await super().send(request, **options)
        finally:
            # The response keeps its request.
            request.stream = body
            del request.headers["authorization"]
        response.stream = _Watched(
            response.stream, exchange.gateway_reply, sealed=sealed and response.is_success
        )
        return response


class _Watched(httpx.AsyncByteStream):
    """A body that `wire` sees."""

    def __init__(self, body: Any, wire: Wire, *, sealed: bool) -> None:
        self._body = body
        self._wire = wire
        self._sealed = sealed

    def __aiter__(self) -> AsyncIterator[bytes]:
        self._pieces = aiter(self._body)
        return self

    async def __anext__(self) -> bytes:
        piece: bytes = await anext(self._pieces)
        self._wire.see(piece, sealed=self._sealed)
        return piece

    async def aclose(self) -> None:
        await self._body.aclose()
