"""The HTTP client to the gateway: it adds the caller's API key and captures what the gateway sees, sealed.

Clients are cached without an API key. The caller's key is added per request and dropped when the call ends.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from prem_core._transport.http import httpx_options
from prem_core.proxy.request_log import RequestRecord, WireCapture

#: The API key that cached clients are made with. The gateway rejects it.
PLACEHOLDER_KEY: Final = "the-callers-own"


@dataclass(slots=True)
class RequestContext:
    """The record and the API key of one call.

    The key is replaced when the call ends: connections outlive the call that opened them, and keep its context.
    """

    record: RequestRecord
    key: str = field(default=PLACEHOLDER_KEY, repr=False)


#: The context of the call that the current task works on.
request_context: ContextVar[RequestContext | None] = ContextVar("request_context", default=None)


class CapturingClient(httpx.AsyncClient):
    """The HTTP client that `AsyncPremClient` would make, with the caller's key added and both bodies captured.

    It overrides `send`, not the transport: httpx reads HTTPS_PROXY only for transports that it makes itself.
    """

    def __init__(self, urls: Iterable[str]) -> None:
        super().__init__(**httpx_options(urls))

    async def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        """`httpx.AsyncClient.send`, for the current call."""
        context = request_context.get()
        # The enclave's public key is fetched without an API key.
        if context is None or "authorization" not in request.headers:
            return await super().send(request, **options)
        record = context.record
        if not request.url.path.startswith("/attestation/"):  # that is not an attempt of the call
            record.attempts += 1
        record.gateway_request, record.gateway_response = WireCapture(), WireCapture()
        sealed = request.method == "POST"
        body = request.stream
        request.stream = _CapturedBody(body, record.gateway_request, sealed=sealed)
        request.headers["authorization"] = f"Bearer {context.key}"
        try:
            response = await super().send(request, **options)
        finally:
            # The response keeps its request.
            request.stream = body
            del request.headers["authorization"]
        response.stream = _CapturedBody(
            response.stream, record.gateway_response, sealed=sealed and response.is_success
        )
        return response


class _CapturedBody(httpx.AsyncByteStream):
    """A body that adds each chunk to `capture` as it passes."""

    def __init__(self, body: Any, capture: WireCapture, *, sealed: bool) -> None:
        self._body = body
        self._capture = capture
        self._sealed = sealed

    def __aiter__(self) -> AsyncIterator[bytes]:
        self._chunks = aiter(self._body)
        return self

    async def __anext__(self) -> bytes:
        chunk: bytes = await anext(self._chunks)
        self._capture.add(chunk, sealed=self._sealed)
        return chunk

    async def aclose(self) -> None:
        await self._body.aclose()
