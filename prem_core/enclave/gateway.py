"""The gateway: it authenticates, limits and forwards requests, and has no key to them.

Nothing that could open a sealed field is imported here. Bodies are forwarded byte for byte in both directions, and only
their JSON structure is checked.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import secrets
import uuid
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prem_core._protocol.assumptions import ROUTE_SCOPES, encode_binary
from prem_core._protocol.routes import AUDIO_ROUTES, CHAT_ROUTE, MAX_AUDIO_BYTES, MODEL_TYPES, MODELS_ROUTE
from prem_core.enclave.envelope import EnvelopeError, envelope
from prem_core.enclave.quota import LimitReached, Metered, Tier
from prem_core.enclave.schema_check import parse_body

#: A sealed file is this much longer, and each byte is this many characters: the gateway sees only the length of a file.
_TAG_BYTES: Final = 16
_CHARS_PER_BYTE: Final = len(encode_binary(b"\0"))

#: The header that proves to the enclave that a request came through the gateway. It is not documented how the real
#: gateway authenticates to the real enclave.
FORWARDING_HEADER: Final = "x-prem-forwarding"

#: Headers of the enclave's response that are forwarded.
_FORWARDED_HEADERS: Final = (b"content-type", b"retry-after")

_log = logging.getLogger("prem_core.enclave")


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and its response, as the gateway saw them: sealed.

    Attributes:
        method: The HTTP method.
        path: The path, without the query.
        request_body: The bytes of the request that were read.
        status: The HTTP status of the response; 0 if the client disconnected before it.
        response_body: The bytes of the response that were sent.
        request_headers: With lower-case names, and without Authorization.
    """

    method: str
    path: str
    request_body: bytes = field(repr=False)
    status: int
    response_body: bytes = field(repr=False)
    request_headers: Mapping[str, str] = field(repr=False)


def model_type(name: str) -> str:
    """The documented type of the model called `name`: one of `MODEL_TYPES`."""
    return "AUDIO_TRANSCRIPTION" if "whisper" in name.lower() else "CHAT"


class Gateway:
    """The gateway's routes, as an ASGI application.

    It raises errors as `EnvelopeError`; the middleware around it sends them.

    Args:
        api_key: The one key that is accepted.
        scopes: The scopes of the key; None for all.
        models: Returns the names ``GET /models`` lists.
        tier: The organisation's limits; None for none.
        enclave: A client whose base URL is the enclave's.
        forwarding_secret: The value of `FORWARDING_HEADER`.
    """

    def __init__(
        self,
        *,
        api_key: str,
        scopes: Collection[str] | None,
        models: Callable[[], Awaitable[Sequence[str]]],
        tier: Tier | None,
        enclave: httpx.AsyncClient,
        forwarding_secret: str,
    ) -> None:
        self._api_key = api_key.encode()
        self._scopes = scopes
        self._models = models
        self._tier = tier
        self._enclave = enclave
        self._forwarding_secret = forwarding_secret
        self._router = Router(
            [
                Route(CHAT_ROUTE, self._chat, methods=["POST"]),
                *(Route(path, self._audio, methods=["POST"]) for path in AUDIO_ROUTES.values()),
                Route(MODELS_ROUTE, self._list_models, methods=["GET"]),
                Route("/attestation/{module}", self._attest, methods=["GET"]),
            ],
            redirect_slashes=False,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._router(scope, receive, send)

    async def _chat(self, request: Request) -> ASGIApp:
        body = await self._checked_body(request, functools.partial(parse_body, "chat-request"))
        return functools.partial(self._forward, body, "tokens")

    async def _audio(self, request: Request) -> ASGIApp:
        return functools.partial(self._forward, await self._checked_body(request, _check_audio), "audio")

    async def _list_models(self, request: Request) -> Response:
        self._authenticate(request)
        wanted = request.query_params.get("type")
        if wanted is not None and wanted not in MODEL_TYPES:
            rule = f"must be one of {', '.join(MODEL_TYPES)}"
            raise EnvelopeError.invalid("type", rule)
        entries = [_model_entry(name) for name in await self._models()]
        listed = [entry for entry in entries if wanted in (None, entry["type"])]
        return JSONResponse(envelope(200, data=listed))

    async def _attest(self, request: Request) -> ASGIApp:
        self._authenticate(request)
        return functools.partial(self._forward, b"", None)

    def _authenticate(self, request: Request) -> None:
        header = request.headers.get("authorization", "")
        scheme, _, key = header.partition(" ")
        if scheme.lower() != "bearer":
            key = header  # the published document also allows the bare key (`ApiKeyAuth`)
        if not secrets.compare_digest(key.strip().encode(), self._api_key):
            raise EnvelopeError(
                401, "Access token is missing or invalid", headers={"WWW-Authenticate": "Bearer"}
            )

    async def _checked_body(self, request: Request, check: Callable[[bytes], object]) -> bytes:
        """The body of a request that has a valid key with the right scope, and passes `check`."""
        self._authenticate(request)
        scope = ROUTE_SCOPES[request.url.path]
        if self._scopes is not None and scope not in self._scopes:
            denied = "You do not have the required permissions to access this resource"
            raise EnvelopeError(403, f"{denied}: missing scope {scope}")
        body = await request.body()
        # In a thread: a large body must not block the streams on the event loop.
        await asyncio.to_thread(check, body)
        return body

    async def _forward(
        self, body: bytes, metered: Metered | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Forward `body` to the same path of the enclave, and the response to the client.

        Without `metered` the request counts against no limit.
        """
        headers = {FORWARDING_HEADER: self._forwarding_secret, "content-type": "application/json"}
        url = httpx.URL(scope["path"], query=scope["query_string"])
        forwarded = self._enclave.stream(scope["method"], url, content=body, headers=headers)
        started = False
        try:
            with nullcontext() if self._tier is None or metered is None else self._tier.request(metered):
                async with forwarded as response:
                    kept = [(k, v) for k, v in response.headers.raw if k.lower() in _FORWARDED_HEADERS]
                    await send(
                        {"type": "http.response.start", "status": response.status_code, "headers": kept}
                    )
                    started = True
                    async for chunk in response.aiter_raw():
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except LimitReached as limit:
            raise EnvelopeError(429, str(limit), headers={"Retry-After": str(limit.retry_after)}) from None
        except httpx.TransportError:
            if started:
                raise  # the response is truncated where the enclave's was
            raise EnvelopeError(
                503, "The inference service is unavailable. Please try again later."
            ) from None
        # After the request stops counting as open: a client that has the whole response can send the next request.
        await send({"type": "http.response.body"})


class ExchangeRecorder:
    """ASGI middleware that calls `on_exchange` with each exchange when it ends.

    The call comes before the end of the response is sent: a client with the whole response finds the exchange recorded.
    An exception of `on_exchange` is logged and does not affect the response.
    """

    def __init__(self, app: ASGIApp, on_exchange: Callable[[Exchange], None]) -> None:
        self._app = app
        self._on_exchange = on_exchange

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, response, status, recorded = bytearray(), bytearray(), 0, False

        def record() -> None:
            nonlocal recorded
            if recorded:
                return
            recorded = True
            headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
            headers.pop("authorization", None)
            exchange = Exchange(
                scope["method"], scope["path"], bytes(request), status, bytes(response), headers
            )
            try:
                self._on_exchange(exchange)
            except Exception:
                _log.exception("the on_exchange callback failed")

        async def watched_receive() -> Message:
            message = await receive()
            request.extend(message.get("body", b""))
            return message

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                response.extend(message.get("body", b""))
                if not message.get("more_body", False):
                    record()
            await send(message)

        try:
            await self._app(scope, watched_receive, watched_send)
        finally:
            record()


def _check_audio(body: bytes) -> None:
    sealed = len(parse_body("audio-request", body)["encryptedFile"])
    if sealed // _CHARS_PER_BYTE - _TAG_BYTES > MAX_AUDIO_BYTES:
        raise EnvelopeError(413, "Audio file size exceeds the maximum allowed limit of 25MB.")


def _model_entry(name: str) -> dict[str, Any]:
    kind = model_type(name)
    return {
        # Deliberately not the name: a request needs `model`.
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"prem-local:{name}")),
        "model": name,
        "name": name.rpartition("/")[2],
        "description": "Served by the embedded enclave",
        "type": kind,
        "enabled": True,
        "input_modalities": ["text"] if kind == "CHAT" else ["audio"],
        "price_config": {},
    }
