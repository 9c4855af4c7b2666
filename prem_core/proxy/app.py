"""The proxy's routes: OpenAI's API in front, `AsyncPremClient` behind.

The rule of this file: an answer is whole, or an error that no client can take for whole. Before the first chunk an
error has its HTTP status; after it, it is an ``error`` in the stream, with no ``[DONE]`` behind it and the connection
broken off.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs

from starlette.exceptions import HTTPException
from starlette.routing import Route, Router
from starlette.types import Message, Receive, Scope, Send

from prem_core import _config
from prem_core._client.client import AsyncPremClient
from prem_core._errors import ConfigurationError, PremError
from prem_core._protocol.request_schema import PARAM_NAMES, TranscriptionParams, TranslationParams
from prem_core._protocol.response_types import ChatCompletion, Model
from prem_core._version import __version__
from prem_core.proxy import dashboard
from prem_core.proxy import responses as replies
from prem_core.proxy.client_cache import Clients
from prem_core.proxy.coalesce import together
from prem_core.proxy.errors import Refusal, refusal
from prem_core.proxy.forms import FormReader, recording_of
from prem_core.proxy.guard import send_refusal
from prem_core.proxy.request_log import Exchange, Exchanges, State
from prem_core.proxy.requests import Left, RequestBody, listed, read_json, supported
from prem_core.proxy.wire import NO_KEY, Line, line

CHAT: Final = "/v1/chat/completions"
TRANSCRIPTIONS: Final = "/v1/audio/transcriptions"
TRANSLATIONS: Final = "/v1/audio/translations"
MODELS: Final = "/v1/models"
HEALTH: Final = "/health"

#: parallel_tool_calls=True says what the service does anyway; the client does not send it, and refuses False.
_CHAT_NAMES: Final = PARAM_NAMES | {"parallel_tool_calls"}
_TRANSCRIPTION_NAMES: Final = TranscriptionParams.__required_keys__ | TranscriptionParams.__optional_keys__
_TRANSLATION_NAMES: Final = TranslationParams.__required_keys__ | TranslationParams.__optional_keys__

_log = logging.getLogger("prem_core.proxy")


@dataclass(slots=True)
class Call:
    """One caller's request on its way through, and the way back.

    Attributes:
        scope: The request's, without its key.
        key: The API key that the caller sent.
        body: What the caller sends.
        exchange: What is remembered of it.
        dropped: Names of parameters that were left out.
        began: Whether the answer has begun.
        streaming: Whether it is an event stream.
    """

    scope: Scope = field(repr=False)
    key: str | None = field(repr=False)
    body: RequestBody
    exchange: Exchange
    exchanges: Exchanges = field(repr=False)
    asgi_send: Send = field(repr=False)
    dropped: list[str] = field(default_factory=list, repr=False)
    began: bool = False
    streaming: bool = False

    def headers(self) -> list[tuple[str, str]]:
        """What every answer to it has."""
        given = [("x-request-id", self.exchange.id)]
        return [*given, ("x-prem-dropped", listed(self.dropped))] if self.dropped else given

    async def begin(self, content_type: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        """Send the head of an answer."""
        self.streaming = content_type == replies.EVENT_STREAM
        pairs = [("content-type", content_type), *headers, *self.headers()]
        raw = [(name.encode(), value.encode()) for name, value in pairs]
        await self.send({"type": "http.response.start", "status": 200, "headers": raw})

    async def write(self, body: bytes, *, more: bool) -> None:
        """Send the next part of its body, or the last one."""
        await self.send({"type": "http.response.body", "body": body, "more_body": more})

    async def answer(self, content_type: str, body: bytes) -> None:
        """Send a whole answer."""
        await self.begin(content_type, [("content-length", str(len(body)))])
        await self.write(body, more=False)

    async def send(self, message: Message) -> None:
        """Pass a message of the answer on, and take note of it."""
        exchange = self.exchange
        if message["type"] == "http.response.start":
            self.began = True
            exchange.status = message["status"]
        else:
            exchange.sent += len(message.get("body", b""))
            if not message.get("more_body", False):
                # Whoever has the whole answer finds the exchange ended.
                self.end("done")
        await self.asgi_send(message)

    def end(self, state: State, refused: Refusal | None = None) -> None:
        """The exchange is over, unless it was before."""
        self.exchange.received = self.body.size
        name, support_id = (refused.name, refused.support_id) if refused is not None else (None, None)
        self.exchanges.end(self.exchange, state, name, support_id)


class _Endpoint:
    """A handler of calls, as an ASGI application."""

    def __init__(self, handle: Callable[[Call], Awaitable[None]]) -> None:
        self._handle = handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call: Call = scope["prem.call"]
        call.scope = scope  # the router's, with the path's parameters
        await self._handle(call)


class Proxy:
    """The routes, as an ASGI application for one event loop.

    Args:
        clients: Whom to ask, by API key.
        exchanges: Where exchanges are remembered.
        api_key: Used for every caller, whatever key he sends; None for his own.
        body_limit: Bytes of one request's body.
        drop_unsupported: Leave parameters out that the published schema does not have, rather than refuse them.
        audio_timeout: Seconds to wait for the answer to a recording.
        tries_again: Whether `clients` do; callers are told not to, then.
    """

    def __init__(
        self,
        *,
        clients: Clients,
        exchanges: Exchanges,
        api_key: str | None,
        body_limit: int,
        drop_unsupported: bool,
        audio_timeout: float,
        tries_again: bool,
    ) -> None:
        self._clients = clients
        self._exchanges = exchanges
        self._api_key = api_key
        self._body_limit = body_limit
        self._drop = drop_unsupported
        self._audio_timeout = audio_timeout
        self._tries_again = tries_again
        self._works: set[asyncio.Task[Refusal | None]] = set()
        self._stopping = False
        self._router = Router(
            [
                Route(HEALTH, _Endpoint(self._health), methods=["GET"]),
                Route(CHAT, _Endpoint(self._chat), methods=["POST"]),
                Route(TRANSCRIPTIONS, _Endpoint(self._transcribe), methods=["POST"]),
                Route(TRANSLATIONS, _Endpoint(self._translate), methods=["POST"]),
                Route(MODELS, _Endpoint(self._list_models), methods=["GET"]),
                Route(MODELS + "/{name:path}", _Endpoint(self._show_model), methods=["GET"]),
                *(
                    Route(path, _Endpoint(dashboard.sent(name, kind)), methods=["GET"])
                    for path, name, kind in dashboard.FILES
                ),
                Route(dashboard.FOLLOW, _Endpoint(self._follow), methods=["GET"]),
            ],
            redirect_slashes=False,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(_route(scope["path"]))
        # What asks nobody is not remembered.
        exchanges = self._exchanges if exchange.route else Exchanges(0)
        exchanges.add(exchange)
        body = RequestBody(scope, receive, self._body_limit)
        call = Call(scope, _take_key(scope), body, exchange, exchanges, send)
        scope["prem.call"] = call
        scope["app"] = self  # with an app in the scope, the router raises its 404 and 405
        work = asyncio.create_task(self._work(call, receive))
        left = asyncio.create_task(body.left())
        self._works.add(work)
        if self._stopping:
            work.cancel()
        try:
            await asyncio.wait((work, left), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._works.discard(work)
            left.cancel()
            work.cancel()  # a caller who hangs up is worked for no longer; nor is anybody when the server is cancelled
            await asyncio.gather(work, left, return_exceptions=True)
        if not work.cancelled():
            refused = work.result()
        elif self._stopping:
            refused = Refusal(503, "the proxy was stopped", type="server_error", name="Stopped")
        else:
            call.end("left")
            return
        if refused is not None:
            await self._refuse(call, refused)

    def stop(self) -> None:
        """Break off what is going on, each with an error, and take nothing new."""
        self._stopping = True
        for work in list(self._works):
            work.cancel()

    async def _work(self, call: Call, receive: Receive) -> Refusal | None:
        """Answer a call. What it returns is still to be sent."""
        try:
            await self._router(call.scope, receive, call.send)
        except Refusal as refused:
            return refused
        except HTTPException as error:
            routes = f"{CHAT}, {TRANSCRIPTIONS}, {TRANSLATIONS}, {MODELS}"
            why = "no such route" if error.status_code == 404 else error.detail
            return Refusal(error.status_code, f"{why}; there are {routes}", headers=dict(error.headers or {}))
        except PremError as error:
            return refusal(error, tried=self._tries_again)
        except Left:
            raise asyncio.CancelledError from None
        except Exception as error:
            # Its text may hold anything; its type says where to look.
            _log.error("a request failed: %s", type(error).__name__)
            return Refusal(500, "the proxy failed", type="server_error", name=type(error).__name__)
        return None

    async def _refuse(self, call: Call, refused: Refusal) -> None:
        call.end("failed", refused)
        if not call.began:
            await send_refusal(refused, call.send, call.headers())
        elif call.streaming:
            await call.write(replies.error_event(refused), more=True)
        # An answer that has begun stays unfinished, and the server closes the connection.

    # Routes

    async def _health(self, call: Call) -> None:
        await call.answer(replies.JSON, replies.health(__version__))

    async def _follow(self, call: Call) -> None:
        await dashboard.follow(call, self._exchanges)

    async def _chat(self, call: Call) -> None:
        exchange, key = call.exchange, self._key(call)
        given = await read_json(call.body)
        # "Drop" is what makes a False acceptable.
        names = PARAM_NAMES if self._drop and given.get("parallel_tool_calls") is False else _CHAT_NAMES
        params, call.dropped = supported(given, names, drop=self._drop)
        del given
        exchange.ask(params.get("model"), streamed=params.get("stream") is True)
        async with self._client(call, key) as client:
            create: Callable[..., Awaitable[Any]] = client.chat.completions.create
            answer = await create(**{"messages": None, "model": None, **params})
            call.exchanges.first_token(exchange)
            if isinstance(answer, ChatCompletion):
                exchange.count(answer.usage)
                await call.answer(replies.JSON, replies.completion(answer))
                return
            async with answer:
                await call.begin(replies.EVENT_STREAM, [("cache-control", "no-store")])
                async with aclosing(together(answer)) as batches:
                    async for chunks in batches:
                        for chunk in chunks:
                            exchange.count(chunk.usage)
                        await call.write(b"".join(map(replies.event, chunks)), more=True)
            await call.write(replies.DONE, more=False)

    async def _transcribe(self, call: Call) -> None:
        await self._hear(call, _TRANSCRIPTION_NAMES, lambda client: client.audio.transcriptions.create)

    async def _translate(self, call: Call) -> None:
        await self._hear(call, _TRANSLATION_NAMES, lambda client: client.audio.translations.create)

    async def _hear(
        self,
        call: Call,
        names: frozenset[str],
        route: Callable[[AsyncPremClient], Callable[..., Awaitable[Any]]],
    ) -> None:
        key = self._key(call)
        reader = FormReader(call.body.content_type)
        async for piece in call.body.pieces():
            reader.feed(piece)
        file, given = recording_of(reader.finish())
        params, call.dropped = supported(given, names, drop=self._drop)
        form = params.get("response_format")
        if form in replies.SUBTITLES:
            params["response_format"] = "verbose_json"
        call.exchange.ask(params.get("model"), streamed=False)
        async with self._client(call, key) as client:
            answer = await route(client)(file=file, timeout=self._audio_timeout, **params)
        call.exchanges.first_token(call.exchange)
        await call.answer(*replies.transcription(answer, form))

    async def _list_models(self, call: Call) -> None:
        kind = parse_qs(call.scope["query_string"].decode("latin-1")).get("type", [None])[-1]
        await call.answer(replies.JSON, replies.models(await self._models(call, kind)))

    async def _show_model(self, call: Call) -> None:
        name = call.scope["path_params"]["name"]
        await call.answer(replies.JSON, replies.model(await self._models(call, None), name))

    async def _models(self, call: Call, kind: str | None) -> list[Model]:
        async with self._client(call, self._key(call)) as client:
            return await client.models.list(kind)

    # Whom to ask

    def _key(self, call: Call) -> str:
        """The API key to ask with.

        Raises:
            Refusal: 401, the caller sent none, or none that can be one.
        """
        key, call.key = call.key, None
        if self._api_key is not None:
            return self._api_key
        headers = {"www-authenticate": "Bearer"}
        if key is None:
            why = "no API key: send yours as Authorization: Bearer … (the api_key of an OpenAI client)"
            raise Refusal(401, why, code="invalid_api_key", headers=headers)
        try:
            return _config.resolve_api_key(key)
        except ConfigurationError as error:
            why = str(error)
        raise Refusal(401, why, code="invalid_api_key", headers=headers)

    @asynccontextmanager
    async def _client(self, call: Call, key: str) -> AsyncIterator[AsyncPremClient]:
        """The client to ask with, for as long as the block."""
        held = Line(call.exchange, key)
        line.set(held)
        try:
            async with self._clients.of(key) as client:
                yield client
        finally:
            held.key = NO_KEY


def _route(path: str) -> str:
    """The route as it is remembered; empty where it is none that asks the gateway."""
    if path in (CHAT, TRANSCRIPTIONS, TRANSLATIONS, MODELS):
        return path
    return MODELS + "/{id}" if path.startswith(MODELS + "/") else ""


def _take_key(scope: Scope) -> str | None:
    """The caller's key, out of the request: a server keeps its last request for as long as the connection."""
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    given = next((value for name, value in headers if name == b"authorization"), b"")
    headers[:] = [pair for pair in headers if pair[0] != b"authorization"]
    scheme, _, key = given.decode("latin-1").partition(" ")
    return key.strip() or None if scheme.lower() == "bearer" else None
