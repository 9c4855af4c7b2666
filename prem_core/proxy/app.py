"""The proxy's routes: the APIs in front, `AsyncPremClient` behind.

A response is complete, or an error that no client can take for complete. Before the first chunk an error has its HTTP
status. After it, the error is the last event of the stream, and the event that ends a complete answer does not come.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Final
from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from prem_core import _config
from prem_core._apis.base import JSON, ApiError, ApiRequest, to_json
from prem_core._apis.errors import api_error
from prem_core._apis.handlers import KEY_HEADERS, Exchange, api_key_of
from prem_core._apis.json_body import check_content_type, parse_object
from prem_core._apis.openai.forms import FormReader
from prem_core._apis.routing import Apis, Match
from prem_core._client.client import AsyncPremClient
from prem_core._errors import ConfigurationError, PremError
from prem_core._protocol.flow import OFFLOAD_BYTES
from prem_core._protocol.nonce_reuse import NonceReuse
from prem_core._protocol.response_types import ChatCompletion
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
from prem_core.proxy.call import Call
from prem_core.proxy.client_cache import ClientCache
from prem_core.proxy.dashboard import PAGE_PATH, Dashboard
from prem_core.proxy.request_log import RequestLog, RequestRecord
from prem_core.proxy.wire import PLACEHOLDER_KEY, RequestContext, request_context

HEALTH: Final = "/health"

#: Logged once, in place of the client's `NonceReuseWarning`.
NONCE_REUSE_WARNING: Final = (
    "a response is sealed under its request's nonce, as every stream is: the gateway can read and replace it and, by "
    "sending the request again, read the request. nonce_reuse='error' (prem proxy --nonce-reuse error, "
    "PREM_NONCE_REUSE=error) refuses such responses, 'allow' hides this warning"
)

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
        apis: The APIs to serve.
        clients: The clients by API key.
        log: Receives a record of each request.
        api_key: Used for every caller instead of the caller's own key; None for the caller's own.
        body_limit: Bytes of one request body.
        strict: Refuse every parameter that Prem's API does not have.
        audio_timeout: Seconds to wait for a transcription.
        retries: Whether the clients retry. The responses then ask callers not to retry.
        nonce_reuse: See `ClientOptions`. The warning is a log line.
        page_token: The token in the URL of the web page; None for no page.
    """

    def __init__(
        self,
        *,
        apis: Apis,
        clients: ClientCache,
        log: RequestLog,
        api_key: str | None,
        body_limit: int,
        strict: bool,
        audio_timeout: float,
        retries: bool,
        nonce_reuse: NonceReuse,
        page_token: str | None,
    ) -> None:
        self._apis = apis
        self._clients = clients
        self._log = log
        self._api_key = api_key
        self._body_limit = body_limit
        self._body_memory = BodyMemory(MAX_BODIES * body_limit)
        self._strict = strict
        self._audio_timeout = audio_timeout
        self._retries = retries
        self._keep_alive = nonce_reuse == "error"  # other streams start with the gateway's
        self._warn = nonce_reuse == "warn"
        self._running: set[asyncio.Task[ApiError | None]] = set()
        self._stopping = False
        self._router = Router(
            [
                Route(HEALTH, _Endpoint(self._health), methods=["GET"]),
                *self._page_routes(page_token),
            ],
            redirect_slashes=False,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key, headers = _take_key(scope)
        match: Match | ApiError
        try:
            match = self._apis.find(scope["method"], scope["path"], headers)
        except ApiError as error:
            match = error
        # Only requests of an API are logged.
        route = match.path if isinstance(match, Match) else ""
        record, log = RequestRecord(route), self._log if route else RequestLog(0)
        log.add(record)
        with RequestBody(scope, receive, self._body_limit, self._body_memory) as body:
            await self._process(Call(scope, key, body, record, log, send, headers, match))

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
            error = ApiError(503, "the proxy was stopped", type="server_error", code="proxy_stopped")
        else:
            call.end("disconnected")
            return
        if error is not None:
            match = call.match
            form = (
                match.api.error_body(error)
                if isinstance(match, Match)
                else self._apis.error_body(error, scope["path"], call.headers)
            )
            await call.fail(error, form)

    def stop(self) -> None:
        """End every running request with an error, and accept no further ones."""
        self._stopping = True
        for work in list(self._running):
            work.cancel()

    async def _respond(self, call: Call) -> ApiError | None:
        """Process a call. A returned error has not been sent yet."""
        try:
            check_connection(call.scope)
            if isinstance(call.match, Match):
                await self._answer(call, call.match)
            else:
                await self._serve_page(call, call.match)
        except ApiError as error:
            return error
        except BodyTooLarge as error:
            return ApiError(413, f"{error}, the limit of prem proxy --body-limit", code="request_too_large")
        except Overloaded as error:
            return ApiError(
                503,
                str(error),
                type="server_error",
                code="proxy_overloaded",
                headers=error.headers,
                retryable=True,
            )
        except PremError as error:
            return api_error(error, retried=self._retries)
        except ClientDisconnect:
            raise asyncio.CancelledError from None
        except Exception as error:
            # The text of the error may hold request content; its type does not.
            _log.error("a request failed: %s", type(error).__name__)
            return ApiError(
                500, "the proxy failed to process the request", type="server_error", name=type(error).__name__
            )
        return None

    # Routes

    def _page_routes(self, token: str | None) -> list[Route]:
        if token is None:
            return []
        serve = _Endpoint(Dashboard(self._log, token).serve)
        return [Route(path, serve, methods=["GET"]) for path in ("/", PAGE_PATH + "/{path:path}")]

    async def _serve_page(self, call: Call, otherwise: ApiError) -> None:
        """Answer a request that is for none of the APIs.

        Raises:
            ApiError: `otherwise`, if it is not for the page or `HEALTH` either.
        """
        try:
            await self._router(call.scope, call.body.receive, call.send)
        except HTTPException:
            raise otherwise from None

    async def _health(self, call: Call) -> None:
        # Proof that the proxy runs. It tells nothing about the service.
        await call.respond(JSON, to_json({"status": "ok", "version": __version__}))

    async def _answer(self, call: Call, match: Match) -> None:
        record, key = call.record, self._key(call)
        exchange = call.exchange = Exchange(match.api, await self._read(call, match, key))
        record.set_request(exchange.model, streamed=exchange.streamed)
        if (reply := exchange.local()) is not None:
            await call.reply(reply)
            return
        timeout = self._audio_timeout if match.route.kind == "audio" else None
        async with self._client(call, key) as client:
            sent = exchange.send(client, timeout)
            answer = await (call.keep_alive(sent) if exchange.streamed and self._keep_alive else sent)
            reply = exchange.receive(answer)
            if match.route.kind != "models":
                self._received(call, exchange)
            if reply is not None:
                if isinstance(answer, ChatCompletion):
                    record.set_usage(answer.usage)
                await call.reply(reply)
                return
            async with answer:
                await call.start_stream(answer.prem)
                async with aclosing(coalesce(answer)) as batches:
                    async for chunks in batches:
                        for chunk in chunks:
                            record.set_usage(chunk.usage)
                        await call.write(b"".join(map(exchange.encode, chunks)), more=True)
            await call.write(exchange.end(), more=False)

    async def _read(self, call: Call, match: Match, key: str) -> ApiRequest:
        """The request, parsed.

        Raises:
            ApiError: The body is not what the route takes.
        """
        body, form = {}, None
        if match.route.kind == "audio":
            reader = FormReader(call.body.content_type)
            async for chunk in call.body.chunks():
                reader.feed(chunk)
            form = reader.finish()
        elif match.route.method == "POST":
            check_content_type(call.body.content_type)
            data = await call.body.read()
            large = len(data) >= OFFLOAD_BYTES
            body = await asyncio.to_thread(parse_object, data) if large else parse_object(data)
        return ApiRequest(
            route=match.route,
            body=body,
            form=form,
            headers=call.headers,
            query=dict(parse_qsl(call.scope["query_string"].decode("latin-1"))),
            path_params=match.path_params,
            caller=self._clients.name_of(key),
            strict=self._strict,
        )

    def _received(self, call: Call, exchange: Exchange) -> None:
        """Record that an answer has arrived, or its first chunk, and how it was protected."""
        protection = exchange.protection
        call.record.set_protection(protection)
        call.log.first_token(call.record)
        if self._warn and protection is not None and protection.reply_nonce != "own":
            self._warn = False
            _log.warning(NONCE_REUSE_WARNING)

    # API keys and clients

    def _key(self, call: Call) -> str:
        """The API key for the gateway, removed from the call.

        Raises:
            ApiError: 401, the caller sent no key, or one that cannot be valid.
        """
        key, call.key = call.key, None
        if self._api_key is not None:
            return self._api_key
        headers = {"www-authenticate": "Bearer"}
        if key is None:
            why = (
                "no API key: send your Prem API key as Authorization: Bearer … or x-api-key (api_key in the clients of "
                "OpenAI and Anthropic)"
            )
            raise ApiError(401, why, code="invalid_api_key", headers=headers)
        try:
            return _config.resolve_api_key(key)
        except ConfigurationError as error:
            why = str(error)
        raise ApiError(401, why, code="invalid_api_key", headers=headers)

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


def _take_key(scope: Scope) -> tuple[str | None, dict[str, str]]:
    """The caller's key, and the other headers. The key is removed from the request: a server keeps the last request of
    an open connection."""
    raw: list[tuple[bytes, bytes]] = scope["headers"]
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in raw}
    key = api_key_of(headers)
    raw[:] = [(name, value) for name, value in raw if name.decode("latin-1") not in KEY_HEADERS]
    return key, {name: value for name, value in headers.items() if name not in KEY_HEADERS}
