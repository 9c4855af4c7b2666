"""httpx transports with which the clients of OpenAI and Anthropic use Prem's encrypted API, without a server.

::

    import httpx, openai
    from prem_core.transport import PremTransport

    client = openai.OpenAI(
        api_key="sk_live_…",
        base_url="https://prem.invalid/v1",
        http_client=httpx.Client(transport=PremTransport()),
    )

No request leaves for the host in `base_url`: only its path counts. Requests are encrypted and answers decrypted in this
process. Both transports serve the routes of ``prem proxy``, with the same headers in their responses.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
import secrets
import sys
import threading
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Final, Generic, NoReturn, TypeVar, Unpack

import httpx

from prem_core import _config
from prem_core._apis.base import EVENT_STREAM, ApiError, ApiRequest, Reply
from prem_core._apis.errors import api_error
from prem_core._apis.handlers import KEY_HEADERS, Exchange, api_key_of
from prem_core._apis.json_body import check_content_type, parse_object
from prem_core._apis.routing import Apis, Compat, Match, all_apis
from prem_core._client.chat import AsyncChatCompletionStream, ChatCompletionStream
from prem_core._client.client import AsyncPremClient, PremClient
from prem_core._client.options import ClientOptions, with_defaults
from prem_core._crypto.redaction import without_traceback
from prem_core._errors import ConfigurationError, PremError
from prem_core._protocol.flow import OFFLOAD_BYTES

__all__ = ["AsyncPremTransport", "PremTransport"]

ClientT = TypeVar("ClientT", PremClient, AsyncPremClient)

#: API keys whose clients a transport keeps.
MAX_CLIENTS: Final = 16

#: The key with which the options are checked.
_PLACEHOLDER_KEY: Final = "the-requests-own"

_log = logging.getLogger("prem_core.transport")


class _Transport(Generic[ClientT]):
    """What both transports share: the APIs, and one client for each API key."""

    _client_class: type[ClientT]

    def __init__(self, strict: bool, compat: Compat, store_responses: bool, given: Mapping[str, Any]) -> None:
        name = type(self).__name__
        options = with_defaults(name, given)
        if options.pop("http_client") is not None:
            raise ConfigurationError(f"{name} makes its own HTTP clients: do not pass http_client")
        api_key = options.pop("api_key")
        if options["encryption_keys"] is not None and api_key is None:
            raise ConfigurationError(
                "encryption_keys need an api_key: with the same encryption keys for every caller, the gateway and one "
                "caller together can read the responses to other callers"
            )
        self._api_key = None if api_key is None else _config.resolve_api_key(api_key)
        self._options = options
        self._make(_PLACEHOLDER_KEY)  # raises now if an option is not valid
        self._strict = strict
        self._apis = Apis(compat, all_apis(store_responses=store_responses))
        self._secret = secrets.token_bytes(32)
        self._clients: OrderedDict[str, ClientT] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} holds connections and cannot be pickled; make one per process"
        )

    def _make(self, api_key: str) -> ClientT:
        return self._client_class(api_key=api_key, **self._options)

    def _name_of(self, api_key: str) -> str:
        """A name that stands for `api_key` without revealing it."""
        return hashlib.blake2b(api_key.encode(), key=self._secret, digest_size=32).hexdigest()

    def _client(self, api_key: str) -> ClientT:
        name = self._name_of(api_key)
        with self._lock:
            if self._closed:
                raise ConfigurationError("the transport is closed")
            client = self._clients.get(name)
            if client is None:
                client = self._clients[name] = self._make(api_key)
            self._clients.move_to_end(name)
            if len(self._clients) > MAX_CLIENTS:
                # Not closed: it may have open streams. Its connections close when it is garbage-collected.
                self._clients.popitem(last=False)
        return client

    def _take_clients(self) -> list[ClientT]:
        """All clients, to close them. There will be no others."""
        with self._lock:
            self._closed = True
            clients = list(self._clients.values())
            self._clients.clear()
        return clients

    def _exchange(self, call: _Call, data: bytes) -> tuple[Exchange, str]:
        """What the request asks for, and the API key.

        Raises:
            ApiError: The request is not valid, or has no API key.
        """
        call.match = match = self._apis.find(call.method, call.path, call.headers)
        key = self._api_key or call.valid_key()
        content_type = call.headers.get("content-type", "")
        body, form = {}, None
        if match.route.kind == "audio":
            form = _form(content_type, data)
        elif match.route.method == "POST":
            check_content_type(content_type)
            body = parse_object(data)
        call.exchange = Exchange(
            match.api,
            ApiRequest(
                route=match.route,
                body=body,
                form=form,
                headers=call.headers,
                query=call.query,
                path_params=match.path_params,
                caller=self._name_of(key),
                strict=self._strict,
            ),
        )
        return call.exchange, key

    def _timeout(self, exchange: Exchange, request: httpx.Request) -> httpx.Timeout | None:
        """The request's timeout, unless the transport has one of its own."""
        given = request.extensions.get("timeout")
        # The list of models takes none.
        if exchange.model is None or self._options["timeout"] is not None or not given:
            return None
        return httpx.Timeout(**given)

    def _error(self, error: Exception) -> ApiError:
        if isinstance(error, ApiError):
            return error
        if isinstance(error, PremError):
            return api_error(error, retried=self._options["max_retries"] > 0)
        # The text of the error may hold request content; its type does not.
        _log.error("a request failed: %s", type(error).__name__)
        return ApiError(500, "the transport failed to process the request", type="server_error")

    def _failure(self, call: _Call, error: Exception) -> httpx.Response:
        """The response for an error before the first chunk."""
        made = self._error(error)
        if call.match is None:
            body = self._apis.error_body(made, call.path, call.headers)
        else:
            body = call.match.api.error_body(made)
        return call.response(Reply(body=body, status=made.status, headers=tuple(made.headers.items())))


class _Call:
    """One request to a transport, and its response."""

    def __init__(self, request: httpx.Request) -> None:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.method = request.method
        self.path = request.url.path
        self.query = dict(request.url.params)
        self.headers = {name: value for name, value in headers.items() if name not in KEY_HEADERS}
        self.match: Match | None = None
        self.exchange: Exchange | None = None
        self._key = api_key_of(headers)
        self._library = _library_of(request)

    def valid_key(self) -> str:
        """The API key in the request.

        Raises:
            ApiError: 401, there is none, or one that cannot be valid.
        """
        why = "no API key: pass your Prem API key as api_key, to the client or to the transport"
        if self._key is not None:
            try:
                return _config.resolve_api_key(self._key)
            except ConfigurationError as error:
                why = str(error)
        raise ApiError(401, why, code="invalid_api_key", headers={"www-authenticate": "Bearer"})

    def response(self, reply: Reply) -> httpx.Response:
        """A complete response."""
        headers = self._headers(reply.content_type) | dict(reply.headers)
        return self._respond(reply.status, headers=headers, content=reply.body)

    def stream(
        self, interface: str, answer: Any, as_api_error: Callable[[Exception], ApiError]
    ) -> httpx.Response:
        """A streamed response, whose body has this interface of httpx's."""
        body = _body_type(self._library, interface)(self.exchange, answer, as_api_error)
        return self._respond(200, headers=self._headers(EVENT_STREAM), stream=body)

    def _respond(self, status: int, **parts: Any) -> httpx.Response:
        response: httpx.Response = self._library.Response(status, **parts)
        return response

    def _headers(self, content_type: str) -> dict[str, str]:
        known = {} if self.exchange is None else dict(self.exchange.headers())
        return {"content-type": content_type, "x-request-id": f"req_{uuid.uuid4().hex}", **known}


def _form(content_type: str, data: bytes) -> Any:
    """The form in a request's body."""
    try:
        from prem_core._apis.openai.forms import FormReader
    except ModuleNotFoundError as missing:
        if missing.name != "python_multipart":
            raise
        why = 'transcriptions need python-multipart: pip install "prem-encrypted[proxy]"'
    else:
        reader = FormReader(content_type)
        reader.feed(data)
        return reader.finish()
    raise ApiError(501, why, code="missing_dependency")


class PremTransport(_Transport[PremClient], httpx.BaseTransport):
    """Lets a client of OpenAI or Anthropic use Prem's encrypted API: ``httpx.Client(transport=PremTransport())``.

    It can be shared between threads and clients. An ``httpx.Client`` closes it when it is closed. It serves
    ``httpx2.Client`` too, which newer versions of these clients use.

    Args:
        strict: Refuse every parameter that Prem's API does not have. By default those that change nothing in an answer
            are dropped and listed in the header ``x-prem-dropped``.
        compat: Which APIs to serve: "openai", "anthropic" or "both".
        store_responses: Keep the responses of OpenAI's Responses API in memory, with their conversations, for
            ``previous_response_id``: at most 256 for each API key, in 64 MiB, as long as the transport exists.
        **client_options: See `ClientOptions`. `api_key` is used for all requests; without it each request's own key is
            used (``Authorization: Bearer …`` or ``x-api-key``). Without `timeout`, the timeout of each request applies.
            Unless `max_retries` is 0, error responses ask the caller not to retry: attempts would multiply.

    Raises:
        ConfigurationError: An option cannot work; the message names it.
        EnclaveKeyError: `enclave_public_key` is not an X-Wing key.
    """

    _client_class = PremClient

    @without_traceback
    def __init__(
        self,
        *,
        strict: bool = False,
        compat: Compat = "both",
        store_responses: bool = False,
        **client_options: Unpack[ClientOptions],
    ) -> None:
        super().__init__(strict, compat, store_responses, client_options)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Answer `request`. An error is a response in the form of the API that the caller uses."""
        call = _Call(request)
        try:
            exchange, key = self._exchange(call, request.read())
            reply = exchange.local()
            if reply is None:
                answer = exchange.send(self._client(key), self._timeout(exchange, request))
                reply = exchange.receive(answer)
                if reply is None:
                    return call.stream("SyncByteStream", answer, self._error)
            return call.response(reply)
        except Exception as error:
            return self._failure(call, error)

    def close(self) -> None:
        """Close the connections. Later requests fail."""
        for client in self._take_clients():
            client.close()


class AsyncPremTransport(_Transport[AsyncPremClient], httpx.AsyncBaseTransport):
    """`PremTransport` for asyncio, with the same options: ``httpx.AsyncClient(transport=AsyncPremTransport())``."""

    _client_class = AsyncPremClient

    @without_traceback
    def __init__(
        self,
        *,
        strict: bool = False,
        compat: Compat = "both",
        store_responses: bool = False,
        **client_options: Unpack[ClientOptions],
    ) -> None:
        super().__init__(strict, compat, store_responses, client_options)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """See `PremTransport.handle_request`."""
        call = _Call(request)
        try:
            data = await request.aread()
            large = len(data) >= OFFLOAD_BYTES
            exchange, key = (
                await asyncio.to_thread(self._exchange, call, data) if large else self._exchange(call, data)
            )
            reply = exchange.local()
            if reply is None:
                answer = await exchange.send(self._client(key), self._timeout(exchange, request))
                reply = exchange.receive(answer)
                if reply is None:
                    return call.stream("AsyncByteStream", answer, self._error)
            return call.response(reply)
        except Exception as error:
            return self._failure(call, error)

    async def aclose(self) -> None:
        """Close the running loop's connections. Later requests fail."""
        for client in self._take_clients():
            await client.close()


class _Body:
    """A streamed answer. Closing it closes the connection to the gateway."""

    def __init__(
        self,
        exchange: Exchange,
        answer: ChatCompletionStream | AsyncChatCompletionStream,
        as_api_error: Callable[[Exception], ApiError],
    ) -> None:
        self._exchange = exchange
        self._answer: Any = answer
        self._as_api_error = as_api_error

    def __iter__(self) -> Iterator[bytes]:
        try:
            for chunk in self._answer:
                yield self._exchange.encode(chunk)
            yield self._exchange.end()
        except Exception as error:
            yield self._exchange.fail(self._as_api_error(error))

    def close(self) -> None:
        self._answer.close()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._answer:
                yield self._exchange.encode(chunk)
            yield self._exchange.end()
        except Exception as error:
            yield self._exchange.fail(self._as_api_error(error))

    async def aclose(self) -> None:
        await self._answer.close()


def _library_of(request: httpx.Request) -> Any:
    """The library that made a request: httpx, or httpx2, which newer clients use. Each takes only its own responses."""
    roots = (kind.__module__.partition(".")[0] for kind in type(request).__mro__)
    return sys.modules[next((root for root in roots if root in ("httpx", "httpx2")), "httpx")]


@functools.cache
def _body_type(library: Any, interface: str) -> Any:
    """`_Body` as one of the library's streams. Not as both: the library asks which of the two it is."""
    return type("Body", (_Body, getattr(library, interface)), {})
