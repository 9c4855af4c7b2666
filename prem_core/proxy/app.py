"""The proxy's routes: OpenAI's API in front, `AsyncPremClient` behind.

A response is complete, or an error that no client can take for complete. Before the first chunk an error has its HTTP
status. After it, the error is an event in the stream, without ``[DONE]``, and the connection is closed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final
from urllib.parse import parse_qs

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from prem_core import _config
from prem_core._client.client import AsyncPremClient
from prem_core._errors import ConfigurationError, PremError
from prem_core._protocol.nonce_reuse import NonceReuse
from prem_core._protocol.protection import Protection
from prem_core._protocol.request_schema import PARAM_NAMES, TranscriptionParams, TranslationParams
from prem_core._protocol.response_types import ChatCompletion, Model
from prem_core._serving.coalesce import coalesce
from prem_core._serving.request import (
    MAX_BODIES,
    BodyMemory,
    BodyTooLarge,
    Overloaded,
    RequestBody,
    cancel_on_disconnect,
    check_connection,
)
from prem_core._version import __version__
from prem_core.proxy import responses
from prem_core.proxy.call import Call
from prem_core.proxy.client_cache import ClientCache
from prem_core.proxy.dashboard import PAGE_PATH, Dashboard
from prem_core.proxy.errors import ErrorResponse, error_response
from prem_core.proxy.forms import FormReader, parse_audio_form
from prem_core.proxy.parameters import read_json, split_parameters
from prem_core.proxy.request_log import RequestLog, RequestRecord
from prem_core.proxy.wire import PLACEHOLDER_KEY, RequestContext, request_context

CHAT: Final = "/v1/chat/completions"
TRANSCRIPTIONS: Final = "/v1/audio/transcriptions"
TRANSLATIONS: Final = "/v1/audio/translations"
MODELS: Final = "/v1/models"
HEALTH: Final = "/health"

#: Logged once, in place of the client's `NonceReuseWarning`.
NONCE_REUSE_WARNING: Final = (
    "a response is sealed under its request's nonce, as every stream is: the gateway can read and replace it and, by "
    "sending the request again, read the request. nonce_reuse='error' (prem proxy --nonce-reuse error, "
    "PREM_NONCE_REUSE=error) refuses such responses, 'allow' hides this warning"
)

#: parallel_tool_calls=True is the service's default: the client accepts it without sending it, and rejects False.
_CHAT_NAMES: Final = PARAM_NAMES | {"parallel_tool_calls"}
_TRANSCRIPTION_NAMES: Final = TranscriptionParams.__required_keys__ | TranscriptionParams.__optional_keys__
_TRANSLATION_NAMES: Final = TranslationParams.__required_keys__ | TranslationParams.__optional_keys__

_log = logging.getLogger("prem_core.proxy")


class _Endpoint:
    """A handler of calls as an ASGI application. Starlette would pass a `Request` to a function."""

    def __init__(self, handle: Callable[[Call], Awaitable[None]]) -> None:
        self._handle = handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call: Call = scope["prem.call"]
        call.scope = scope  # the router's copy, with the path parameters
        await self._handle(call)


class Proxy:
    """The routes, as an ASGI application for one event loop.

    Args:
        clients: The clients by API key.
        log: Receives a record of each request.
        api_key: Used for every caller instead of the caller's own key; None for the caller's own.
        body_limit: Bytes of one request body.
        drop_unsupported: Drop parameters that Prem's API does not have, instead of rejecting them.
        audio_timeout: Seconds to wait for a transcription.
        retries: Whether the clients retry. The responses then ask callers not to retry.
        nonce_reuse: See `ClientOptions`. The warning is a log line.
        page_token: The token in the URL of the web page; None for no page.
    """

    def __init__(
        self,
        *,
        clients: ClientCache,
        log: RequestLog,
        api_key: str | None,
        body_limit: int,
        drop_unsupported: bool,
        audio_timeout: float,
        retries: bool,
        nonce_reuse: NonceReuse,
        page_token: str | None,
    ) -> None:
        self._clients = clients
        self._log = log
        self._api_key = api_key
        self._body_limit = body_limit
        self._body_memory = BodyMemory(MAX_BODIES * body_limit)
        self._drop = drop_unsupported
        self._audio_timeout = audio_timeout
        self._retries = retries
        self._keep_alive = nonce_reuse == "error"  # other streams start with the gateway's
        self._warn = nonce_reuse == "warn"
        self._running: set[asyncio.Task[ErrorResponse | None]] = set()
        self._stopping = False
        self._router = Router(
            [
                Route(HEALTH, _Endpoint(self._health), methods=["GET"]),
                Route(CHAT, _Endpoint(self._chat), methods=["POST"]),
                Route(TRANSCRIPTIONS, _Endpoint(self._transcribe), methods=["POST"]),
                Route(TRANSLATIONS, _Endpoint(self._translate), methods=["POST"]),
                Route(MODELS, _Endpoint(self._list_models), methods=["GET"]),
                Route(MODELS + "/{name:path}", _Endpoint(self._show_model), methods=["GET"]),
                *self._page_routes(page_token),
            ],
            redirect_slashes=False,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = RequestRecord(_logged_route(scope["path"]))
        # Only requests for the gateway are logged.
        log = self._log if record.route else RequestLog(0)
        log.add(record)
        with RequestBody(scope, receive, self._body_limit, self._body_memory) as body:
            await self._process(Call(scope, _take_key(scope), body, record, log, send))

    async def _process(self, call: Call) -> None:
        scope = call.scope
        scope["prem.call"] = call
        scope["app"] = self  # with an app in the scope, the router raises its 404 and 405
        work = asyncio.create_task(self._respond(call))
        self._running.add(work)
        if self._stopping:
            work.cancel()
        try:
            await cancel_on_disconnect(work, call.body)
        finally:
            self._running.discard(work)
        if not work.cancelled():
            error = work.result()
        elif self._stopping:
            error = ErrorResponse(503, "the proxy was stopped", type="server_error", code="proxy_stopped")
        else:
            call.end("disconnected")
            return
        if error is not None:
            await self._send_error(call, error)

    def stop(self) -> None:
        """End every running request with an error, and accept no further ones."""
        self._stopping = True
        for work in list(self._running):
            work.cancel()

    async def _respond(self, call: Call) -> ErrorResponse | None:
        """Process a call. A returned error has not been sent yet."""
        try:
            check_connection(call.scope)
            await self._router(call.scope, call.body.receive, call.send)
        except ErrorResponse as error:
            return error
        except BodyTooLarge as error:
            return ErrorResponse(
                413, f"{error}, the limit of prem proxy --body-limit", code="request_too_large"
            )
        except Overloaded as error:
            return ErrorResponse(
                503,
                str(error),
                type="server_error",
                code="proxy_overloaded",
                headers=error.headers,
                retryable=True,
            )
        except HTTPException as error:
            routes = f"{CHAT}, {TRANSCRIPTIONS}, {TRANSLATIONS}, {MODELS}"
            why = "no such route" if error.status_code == 404 else "the route does not accept this method"
            return ErrorResponse(
                error.status_code, f"{why}; the proxy serves {routes}", headers=dict(error.headers or {})
            )
        except PremError as error:
            return error_response(error, retried=self._retries)
        except ClientDisconnect:
            raise asyncio.CancelledError from None
        except Exception as error:
            # The text of the error may hold request content; its type does not.
            _log.error("a request failed: %s", type(error).__name__)
            return ErrorResponse(
                500, "the proxy failed to process the request", type="server_error", name=type(error).__name__
            )
        return None

    async def _send_error(self, call: Call, error: ErrorResponse) -> None:
        call.end("failed", error)
        if not call.started:
            await error.send(call.send, call.headers())
        elif call.streaming:
            await call.write(responses.error_event(error), more=True)
        # A response that has started stays incomplete, and the server closes the connection.

    # Routes

    def _page_routes(self, token: str | None) -> list[Route]:
        if token is None:
            return []
        serve = _Endpoint(Dashboard(self._log, token).serve)
        return [Route(path, serve, methods=["GET"]) for path in ("/", PAGE_PATH + "/{path:path}")]

    async def _health(self, call: Call) -> None:
        await call.respond(responses.JSON, responses.health(__version__))

    async def _chat(self, call: Call) -> None:
        record, key = call.record, self._key(call)
        given = await read_json(call.body)
        # parallel_tool_calls=False can be dropped like an unknown parameter.
        names = PARAM_NAMES if self._drop and given.get("parallel_tool_calls") is False else _CHAT_NAMES
        params, call.dropped = split_parameters(given, names, drop=self._drop)
        del given
        record.set_request(params.get("model"), streamed=params.get("stream") is True)
        async with self._client(call, key) as client:
            create: Callable[..., Awaitable[Any]] = client.chat.completions.create
            created = create(**{"messages": None, "model": None, **params})
            answer = await (call.keep_alive(created) if record.streamed and self._keep_alive else created)
            self._received(call, answer.prem)
            if isinstance(answer, ChatCompletion):
                record.set_usage(answer.usage)
                await call.respond(responses.JSON, responses.completion(answer))
                return
            async with answer:
                await call.start_stream(answer.prem)
                async with aclosing(coalesce(answer)) as batches:
                    async for chunks in batches:
                        for chunk in chunks:
                            record.set_usage(chunk.usage)
                        await call.write(b"".join(map(responses.event, chunks)), more=True)
            await call.write(responses.DONE, more=False)

    async def _transcribe(self, call: Call) -> None:
        await self._audio(call, _TRANSCRIPTION_NAMES, lambda client: client.audio.transcriptions.create)

    async def _translate(self, call: Call) -> None:
        await self._audio(call, _TRANSLATION_NAMES, lambda client: client.audio.translations.create)

    async def _audio(
        self,
        call: Call,
        names: frozenset[str],
        method: Callable[[AsyncPremClient], Callable[..., Awaitable[Any]]],
    ) -> None:
        key = self._key(call)
        reader = FormReader(call.body.content_type)
        async for chunk in call.body.chunks():
            reader.feed(chunk)
        file, given = parse_audio_form(reader.finish())
        params, call.dropped = split_parameters(given, names, drop=self._drop)
        form = params.get("response_format")
        if form in responses.SUBTITLES:
            params["response_format"] = "verbose_json"
        elif form == "text":
            params["response_format"] = "json"  # the same text, in an answer that states how it was protected
        call.record.set_request(params.get("model"), streamed=False)
        async with self._client(call, key) as client:
            answer = await method(client)(file=file, timeout=self._audio_timeout, **params)
        self._received(call, answer.prem)
        await call.respond(*responses.transcription(answer, form))

    def _received(self, call: Call, protection: Protection | None) -> None:
        """Record that an answer has arrived, or its first chunk, and how it was protected."""
        call.record.set_protection(protection)
        call.log.first_token(call.record)
        if self._warn and protection is not None and protection.reply_nonce != "own":
            self._warn = False
            _log.warning(NONCE_REUSE_WARNING)

    async def _list_models(self, call: Call) -> None:
        kind = parse_qs(call.scope["query_string"].decode("latin-1")).get("type", [None])[-1]
        await call.respond(responses.JSON, responses.models(await self._models(call, kind)))

    async def _show_model(self, call: Call) -> None:
        name = call.scope["path_params"]["name"]
        await call.respond(responses.JSON, responses.model(await self._models(call, None), name))

    async def _models(self, call: Call, kind: str | None) -> list[Model]:
        async with self._client(call, self._key(call)) as client:
            return await client.models.list(kind)

    # API keys and clients

    def _key(self, call: Call) -> str:
        """The API key for the gateway, removed from the call.

        Raises:
            ErrorResponse: 401, the caller sent no key, or one that cannot be valid.
        """
        key, call.key = call.key, None
        if self._api_key is not None:
            return self._api_key
        headers = {"www-authenticate": "Bearer"}
        if key is None:
            why = (
                "no API key: send your Prem API key as Authorization: Bearer … (api_key in OpenAI's clients)"
            )
            raise ErrorResponse(401, why, code="invalid_api_key", headers=headers)
        try:
            return _config.resolve_api_key(key)
        except ConfigurationError as error:
            why = str(error)
        raise ErrorResponse(401, why, code="invalid_api_key", headers=headers)

    @asynccontextmanager
    async def _client(self, call: Call, key: str) -> AsyncIterator[AsyncPremClient]:
        """The client for `key`. Inside the block, its requests are recorded for the call and carry the key."""
        context = RequestContext(call.record, key)
        request_context.set(context)
        try:
            async with self._clients.client_for(key) as client:
                yield client
        finally:
            context.key = PLACEHOLDER_KEY


def _logged_route(path: str) -> str:
    """The route as it is logged; empty for a route that does not call the gateway."""
    if path in (CHAT, TRANSCRIPTIONS, TRANSLATIONS, MODELS):
        return path
    return MODELS + "/{id}" if path.startswith(MODELS + "/") else ""


def _take_key(scope: Scope) -> str | None:
    """The caller's key, removed from the request: a server keeps the last request of an open connection."""
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    given = next((value for name, value in headers if name == b"authorization"), b"")
    headers[:] = [pair for pair in headers if pair[0] != b"authorization"]
    scheme, _, key = given.decode("latin-1").partition(" ")
    return key.strip() or None if scheme.lower() == "bearer" else None
