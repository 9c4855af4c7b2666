"""The gateway: authenticates, meters and forwards, and cannot read what it forwards.

The rule of this file: blind. Nothing that could open a sealed item is imported here, the body goes to the
enclave byte for byte and the answer comes back byte for byte; only JSON shape is looked at.
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
from typing import Any, Final, Literal, get_args

import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prem_core._protocol.assumptions import ROUTE_SCOPES, encode_binary
from prem_core._protocol.routes import MAX_AUDIO_BYTES
from prem_core.enclave.quota import LimitReached, Metered, Tier
from prem_core.enclave.schema_check import Refused, envelope, read_body

CHAT_PATH: Final = "/rvenc/chat/completions"
AUDIO_PATHS: Final = ("/rvenc/audio/transcriptions", "/rvenc/audio/translations")
MODELS_PATH: Final = "/models"

#: How much longer a sealed file is, and how many characters a byte takes on the wire: the gateway sees
#: lengths, and nothing else of the file.
_TAG_BYTES: Final = 16
_DIGITS: Final = len(encode_binary(b"\0"))

#: The header that proves to the enclave that a request came through the gateway. Not part of the
#: published protocol: how the real two know each other is not documented.
HOP_HEADER: Final = "x-prem-hop"

#: The documented values of ``GET /models?type=``.
ModelType = Literal["CHAT", "AUDIO_TRANSCRIPTION", "AUDIO_SPEECH", "IMAGE"]
MODEL_TYPES: Final = get_args(ModelType)

#: What of the enclave's answer is passed on, besides the status and the body.
_PASSED_HEADERS: Final = (b"content-type", b"retry-after")

_log = logging.getLogger("prem_core.enclave")


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and its answer, as the gateway saw them: sealed.

    Attributes:
        method: The HTTP method.
        path: The path, without the query.
        request_body: The request's bytes, as far as they were read.
        status: The answer's HTTP status; 0 if the client left before there was one.
        response_body: The answer's bytes, as far as they were sent.
        request_headers: Lower-case names; without Authorization.
    """

    method: str
    path: str
    request_body: bytes = field(repr=False)
    status: int
    response_body: bytes = field(repr=False)
    request_headers: Mapping[str, str] = field(repr=False)


def model_type(name: str) -> ModelType:
    """The documented type of the model called `name`."""
    return "AUDIO_TRANSCRIPTION" if "whisper" in name.lower() else "CHAT"


class Gateway:
    """The gateway's routes, as an ASGI application.

    Refusals are raised (`Refused`); the listener around it writes them.

    Args:
        api_key: The one key that is accepted.
        scopes: What the key may do; None means everything.
        models: Returns the names ``GET /models`` lists.
        tier: The organisation's limits; None for none.
        enclave: A client whose base URL is the enclave's.
        hop_secret: What `HOP_HEADER` has to say.
    """

    def __init__(
        self,
        *,
        api_key: str,
        scopes: Collection[str] | None,
        models: Callable[[], Awaitable[Sequence[str]]],
        tier: Tier | None,
        enclave: httpx.AsyncClient,
        hop_secret: str,
    ) -> None:
        self._api_key = api_key.encode()
        self._scopes = scopes
        self._models = models
        self._tier = tier
        self._enclave = enclave
        self._hop_secret = hop_secret
        self._router = Router(
            [
                Route(CHAT_PATH, self._chat, methods=["POST"]),
                *(Route(path, self._audio, methods=["POST"]) for path in AUDIO_PATHS),
                Route(MODELS_PATH, self._list_models, methods=["GET"]),
            ],
            redirect_slashes=False,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._router(scope, receive, send)

    async def _chat(self, request: Request) -> ASGIApp:
        body = await self._checked_body(request, functools.partial(read_body, "chat-request"))
        return functools.partial(self._forward, body, "tokens")

    async def _audio(self, request: Request) -> ASGIApp:
        return functools.partial(self._forward, await self._checked_body(request, _check_audio), "audio")

    async def _list_models(self, request: Request) -> Response:
        self._authenticate(request)
        wanted = request.query_params.get("type")
        if wanted is not None and wanted not in MODEL_TYPES:
            rule = f"must be one of {', '.join(MODEL_TYPES)}"
            raise Refused(400, f"Invalid request: type {rule}", validator={"type": rule})
        entries = [_model_entry(name) for name in await self._models()]
        listed = [entry for entry in entries if wanted in (None, entry["type"])]
        return JSONResponse(envelope(200, data=listed))

    def _authenticate(self, request: Request) -> None:
        header = request.headers.get("authorization", "")
        scheme, _, key = header.partition(" ")
        if scheme.lower() != "bearer":
            key = header  # the published document also describes the bare key (`ApiKeyAuth`)
        if not secrets.compare_digest(key.strip().encode(), self._api_key):
            raise Refused(401, "Access token is missing or invalid", headers={"WWW-Authenticate": "Bearer"})

    async def _checked_body(self, request: Request, check: Callable[[bytes], object]) -> bytes:
        """The body of an authenticated, permitted request that `check` does not refuse."""
        self._authenticate(request)
        scope = ROUTE_SCOPES[request.url.path]
        if self._scopes is not None and scope not in self._scopes:
            denied = "You do not have the required permissions to access this resource"
            raise Refused(403, f"{denied}: missing scope {scope}")
        body = await request.body()
        # In a thread: a body may be large, and the loop has streams to pass on.
        await asyncio.to_thread(check, body)
        return body

    async def _forward(
        self, body: bytes, metered: Metered, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer with what the enclave answers to `body` on the route of the same path."""
        headers = {HOP_HEADER: self._hop_secret, "content-type": "application/json"}
        forwarded = self._enclave.stream("POST", scope["path"], content=body, headers=headers)
        started = False
        try:
            with nullcontext() if self._tier is None else self._tier.request(metered):
                async with forwarded as reply:
                    kept = [(k, v) for k, v in reply.headers.raw if k.lower() in _PASSED_HEADERS]
                    await send({"type": "http.response.start", "status": reply.status_code, "headers": kept})
                    started = True
                    async for piece in reply.aiter_raw():
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
        except LimitReached as limit:
            raise Refused(429, str(limit), headers={"Retry-After": str(limit.retry_after)}) from None
        except httpx.TransportError:
            if started:
                raise  # the answer is cut where the enclave cut it
            raise Refused(503, "The inference service is unavailable. Please try again later.") from None
        # Only now, with the place given back, does the client learn that the answer is whole.
        await send({"type": "http.response.body"})


class Observed:
    """An ASGI application whose exchanges are shown to `on_exchange`, each when it has finished.

    The observer runs before the client can see the end of its answer, so that whoever waits for the
    answer finds the exchange observed. What it raises is logged and goes no further.
    """

    def __init__(self, app: ASGIApp, on_exchange: Callable[[Exchange], None]) -> None:
        self._app = app
        self._on_exchange = on_exchange

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, response, status, told = bytearray(), bytearray(), 0, False

        def tell() -> None:
            nonlocal told
            if told:
                return
            told = True
            headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
            headers.pop("authorization", None)
            exchange = Exchange(
                scope["method"], scope["path"], bytes(request), status, bytes(response), headers
            )
            try:
                self._on_exchange(exchange)
            except Exception:
                _log.exception("the on_exchange observer failed")

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
                    tell()
            await send(message)

        try:
            await self._app(scope, watched_receive, watched_send)
        finally:
            tell()


def _check_audio(body: bytes) -> None:
    sealed = len(read_body("audio-request", body)["encryptedFile"])
    if sealed // _DIGITS - _TAG_BYTES > MAX_AUDIO_BYTES:
        raise Refused(413, "Audio file size exceeds the maximum allowed limit of 25MB.")


def _model_entry(name: str) -> dict[str, Any]:
    kind = model_type(name)
    return {
        # Not the name on purpose: `model` is what a request has to say.
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"prem-local:{name}")),
        "model": name,
        "name": name.rpartition("/")[2],
        "description": "Served by the embedded enclave",
        "type": kind,
        "enabled": True,
        "input_modalities": ["text"] if kind == "CHAT" else ["audio"],
        "price_config": {},
    }
