"""The embedded enclave: gateway and enclave as two HTTP servers on loopback, in one background thread.

The rule of this file: reachable from this machine only, bounded in what it takes, keeping nothing. What both
listeners owe every request, whatever the role behind them, is done here.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import logging
import os
import re
import secrets
import socket
import threading
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack, ExitStack, closing
from types import TracebackType
from typing import Final, Literal, Self, get_args

import anyio
import httpx
import uvicorn
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from prem_core._crypto.redaction import without_traceback
from prem_core._crypto.xwing import SEED_BYTES, PrivateKey, PublicKey
from prem_core._errors import ConfigurationError
from prem_core.enclave._upstream import UpstreamEngine, completions_url
from prem_core.enclave.enclave import BuiltInEngine, Enclave, Engine, ReplyForm
from prem_core.enclave.gateway import Exchange, Gateway, Observed
from prem_core.enclave.quota import Tier
from prem_core.enclave.schema_check import Refused

TierName = Literal["base", "off"]

HOST: Final = "127.0.0.1"

#: Names under which a client on this machine may ask. Any other one in the Host header means that a
#: browser was led here by somebody else's DNS name.
LOOPBACK_NAMES: Final = ("127.0.0.1", "localhost", "[::1]")

DEFAULT_MODELS: Final = ("openai/gpt-oss-120b", "openai/whisper-large-v3", "prem-local/extractive")

#: Bytes of one request body: 25 MB of audio, sealed and written as hex, with room to spare.
DEFAULT_BODY_LIMIT: Final = 64 * 1024 * 1024

#: Seconds `stop` waits for the servers' thread. It ends in a fraction of that, unless the built-in engine is
#: reading a huge prompt, which nothing can interrupt; the ports are free by then all the same.
_STOP_TIMEOUT: Final = 5.0

_log = logging.getLogger("prem_core.enclave")


class LocalEnclave:
    """A gateway and an enclave on 127.0.0.1, with a real private key, for development and tests.

    ::

        with LocalEnclave() as prem:
            prem.gateway_url, prem.enclave_url, prem.api_key

    Also an async context manager, and usable through `start` and `stop`. It can be started again after
    it was stopped; the API key and the enclave's key stay, the ports stay only if they were given.

    Args:
        api_key: The one key the gateway accepts; by default a fresh ``sk_test_local_…``.
        port: The gateway's port; 0 for a free one.
        enclave_port: The enclave's port; 0 for a free one.
        private_key: The enclave's key; by default a fresh one.
        upstream: Base URL of an OpenAI-compatible server that answers, with or without ``/v1``. By
            default the built-in engine answers: it quotes and extracts, and transcribes English.
        upstream_api_key: Sent to it as a bearer token.
        tier: ``base`` limits requests, tokens, seconds of audio and concurrency as the BASE tier does; a `Tier` has
            limits of its own, which a restart does not fill up again.
        models: The names ``GET /models`` lists and requests may ask for. With `upstream` any name may be
            asked for.
        scopes: What the API key may do; None for everything.
        reply_form: How a request without ``stream: true`` is answered: as the documented event
            ``stream``, or as the JSON ``envelope`` that the audio routes use.
        body_limit: Bytes of one request body; a longer one is answered with 413.
        on_exchange: Called with what the gateway saw of each exchange, sealed, in the servers' thread.
            By default nothing is kept.

    Raises:
        ConfigurationError: A value cannot work.
    """

    @without_traceback
    def __init__(
        self,
        *,
        api_key: str | None = None,
        port: int = 0,
        enclave_port: int = 0,
        private_key: PrivateKey | None = None,
        upstream: str | None = None,
        upstream_api_key: str | None = None,
        tier: TierName | Tier = "off",
        models: Sequence[str] = DEFAULT_MODELS,
        scopes: Collection[str] | None = None,
        reply_form: ReplyForm = "stream",
        body_limit: int = DEFAULT_BODY_LIMIT,
        on_exchange: Callable[[Exchange], None] | None = None,
    ) -> None:
        if api_key is None:
            api_key = f"sk_test_local_{secrets.token_urlsafe(24)}"
        if not re.fullmatch(r"[!-~]+", api_key):
            raise ConfigurationError("api_key must be printable ASCII without spaces")
        if upstream is not None:
            completions_url(upstream)
        if not isinstance(tier, Tier) and tier not in get_args(TierName):
            raise ConfigurationError('tier must be "base" or "off"')
        if reply_form not in get_args(ReplyForm):
            raise ConfigurationError('reply_form must be "stream" or "envelope"')
        self._api_key = api_key
        self._ports = (port, enclave_port)
        self._private_key = private_key or _new_private_key()
        self._upstream = upstream
        self._upstream_api_key = upstream_api_key
        self._tier = tier
        self._models = tuple(models)
        self._scopes = None if scopes is None else frozenset(scopes)
        self._reply_form: ReplyForm = reply_form
        self._body_limit = body_limit
        self._on_exchange = on_exchange
        self._enclave: Enclave | None = None
        self._servers: _Servers | None = None

    def __repr__(self) -> str:
        if self._servers is None:
            return "LocalEnclave(stopped)"
        return f"LocalEnclave(gateway_url={self.gateway_url!r}, enclave_url={self.enclave_url!r})"

    @property
    def api_key(self) -> str:
        """The key the gateway accepts."""
        return self._api_key

    @property
    def public_key(self) -> PublicKey:
        """The enclave's present public key, as it publishes it."""
        return self._private_key.public_key()

    @property
    def gateway_url(self) -> str:
        """The gateway's URL. Raises RuntimeError while it is not running."""
        return self._url(0)

    @property
    def enclave_url(self) -> str:
        """The enclave's URL. Raises RuntimeError while it is not running."""
        return self._url(1)

    @property
    def client_options(self) -> dict[str, str]:
        """What a client needs: `api_key`, `gateway_url`, `enclave_url`."""
        return {"api_key": self.api_key, "gateway_url": self.gateway_url, "enclave_url": self.enclave_url}

    def rotate_key(self, private_key: PrivateKey | None = None) -> PublicKey:
        """Turn the enclave's key, and give the new public one.

        Cipher texts made for the old key no longer open; answers that are being streamed go on.
        """
        self._private_key = private_key or _new_private_key()
        if self._enclave is not None:
            self._enclave.private_key = self._private_key
        return self.public_key

    def start(self) -> Self:
        """Listen. Returns when both servers accept connections.

        Raises:
            OSError: A port is taken.
            RuntimeError: It is running already.
        """
        if self._servers is not None:
            raise RuntimeError("this LocalEnclave is running already")
        with ExitStack() as on_failure:
            gateway_socket, enclave_socket = (
                on_failure.enter_context(closing(_listening_socket(port))) for port in self._ports
            )
            hop_secret = secrets.token_urlsafe(32)
            hop = httpx.AsyncClient(
                base_url=_url(enclave_socket),
                timeout=httpx.Timeout(None, connect=5),
                limits=httpx.Limits(max_connections=None),
                trust_env=False,  # loopback is never reached through a proxy
            )
            engine: Engine = BuiltInEngine()
            if self._upstream is not None:
                engine = UpstreamEngine(self._upstream, self._upstream_api_key)
            tier = self._tier if isinstance(self._tier, Tier) else Tier() if self._tier == "base" else None
            gateway: ASGIApp = Gateway(
                api_key=self._api_key,
                scopes=self._scopes,
                models=self._models,
                tier=tier,
                enclave=hop,
                hop_secret=hop_secret,
            )
            enclave = Enclave(
                private_key=self._private_key,
                engine=engine,
                models=None if self._upstream is not None else self._models,
                reply_form=self._reply_form,
                hop_secret=hop_secret,
                meter=tier.spend_tokens if tier is not None else lambda tokens: None,
                audio_meter=tier.spend_audio if tier is not None else lambda seconds: None,
            )
            gateway = Listener(gateway, _port(gateway_socket), self._body_limit)
            if self._on_exchange is not None:
                gateway = Observed(gateway, self._on_exchange)
            served = [
                (gateway, gateway_socket),
                (Listener(enclave, _port(enclave_socket), self._body_limit), enclave_socket),
            ]
            self._servers = _Servers(served, closers=[hop.aclose, engine.aclose])
            self._enclave = enclave
            on_failure.pop_all()  # the sockets are the servers' now
        return self

    def stop(self) -> None:
        """Close both servers, open streams included. Does nothing when it is not running."""
        servers, self._servers, self._enclave = self._servers, None, None
        if servers is not None:
            servers.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.start)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)

    def _url(self, position: int) -> str:
        if self._servers is None:
            raise RuntimeError("this LocalEnclave is not running: use a with statement, or call start()")
        return self._servers.urls[position]


class Listener:
    """What both roles owe every request: a loopback Host, a bounded body, an envelope for every error,
    and an end to the work when the client hangs up.

    A foreign Host is answered with 403 (421 would say it better, but the published error envelope does
    not have it).
    """

    def __init__(self, app: ASGIApp, port: int, body_limit: int) -> None:
        self._app = app
        self._body_limit = body_limit
        self._hosts = {f"{name}:{port}" for name in LOOPBACK_NAMES}
        if port == 80:
            self._hosts.update(LOOPBACK_NAMES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self  # with an app in the scope, the router raises its 404 and 405
        body = _RequestBody(scope, receive, self._body_limit)
        async with anyio.create_task_group() as group:
            group.start_soon(body.cancel_on_hang_up, group.cancel_scope)
            await self._answer(scope, body.receive, send)
            group.cancel_scope.cancel()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            if Headers(scope=scope).get("host", "").lower() not in self._hosts:
                raise Refused(403, "The Host header does not name this machine")
            await self._app(scope, receive, watched_send)
            return
        except ClientDisconnect:
            return
        except Refused as error:
            refused = error
        except HTTPException as error:
            refused = Refused(error.status_code, error.detail, headers=error.headers)
        except Exception as error:
            # Its text may hold anything; its type says where to look.
            _log.error("a request failed: %s", type(error).__name__)
            refused = Refused(500, "Internal server error")
        if not started:
            response = JSONResponse(refused.envelope(), refused.status, refused.headers)
            await response(scope, receive, send)
        # Otherwise the answer stays unfinished, and the server closes the connection.


class _RequestBody:
    """A request's body: counted while it is read, and then watched for the client's leaving."""

    def __init__(self, scope: Scope, receive: Receive, limit: int) -> None:
        declared = Headers(scope=scope).get("content-length", "")
        self._declared = int(declared) if declared.isdecimal() else 0
        self._counted = 0
        self._receive = receive
        self._limit = limit
        self._complete = asyncio.Event()

    async def receive(self) -> Message:
        self._refuse_if_over(self._declared)
        message = await self._receive()
        if message["type"] == "http.request":
            self._counted += len(message.get("body", b""))
            self._refuse_if_over(self._counted)
            if not message.get("more_body", False):
                self._complete.set()
        return message

    def _refuse_if_over(self, size: int) -> None:
        if size > self._limit:
            raise Refused(413, f"The request body exceeds the maximum allowed size of {self._limit} bytes")

    async def cancel_on_hang_up(self, work: anyio.CancelScope) -> None:
        """Cancel `work` when the client leaves. Until the body is read, its reader is told instead."""
        await self._complete.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        work.cancel()


class _Servers:
    """Applications behind uvicorn, each on its own socket, in one thread with one event loop.

    Args:
        served: Applications and bound sockets, which are closed in the end. The first ones are stopped first:
            put whoever calls before whom it calls.
        closers: Run in the loop when the servers have stopped.
    """

    def __init__(
        self,
        served: Sequence[tuple[ASGIApp, socket.socket]],
        closers: Sequence[Callable[[], Awaitable[None]]],
    ) -> None:
        self.urls = [_url(sock) for _, sock in served]
        self._served = served
        self._closers = closers
        self._ready: concurrent.futures.Future[Callable[[], object]] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._run, name="prem-local-enclave", daemon=True)
        self._thread.start()
        self._request_stop = self._ready.result()

    def stop(self) -> None:
        self._request_stop()
        self._thread.join(_STOP_TIMEOUT)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)

    async def _serve(self) -> None:
        async with AsyncExitStack() as stack:
            for close in self._closers:
                stack.push_async_callback(close)
            servers = [uvicorn.Server(_Config(app)) for app, _ in self._served]
            group = await stack.enter_async_context(asyncio.TaskGroup())
            for server, (_, sock) in zip(servers, self._served, strict=True):
                group.create_task(server.serve([sock]))
            stopping = asyncio.Event()
            loop = asyncio.get_running_loop()
            # The sockets listen already: whoever connects before the servers are up waits in their backlog.
            self._ready.set_result(functools.partial(loop.call_soon_threadsafe, stopping.set))
            await stopping.wait()
            for server in servers:
                server.should_exit = True
                for connection in list(server.server_state.connections):
                    connection.transport.abort()
                if server.server_state.tasks:
                    # Let the gateway hang up on the enclave before the enclave hangs up on it.
                    await asyncio.wait(server.server_state.tasks, timeout=0.5)


class _Config(uvicorn.Config):
    """uvicorn for one application; the process's own logging is left as it is."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(
            app,
            http=_Protocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=1,
        )

    def configure_logging(self) -> None:
        """uvicorn would set levels of loggers that the process may use for a server of its own."""


class _Protocol(H11Protocol):
    """HTTP without an access log, its few warnings on this package's logger."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.access_log = False
        self.logger = _log
        super().connection_made(transport)


def _listening_socket(port: int) -> socket.socket:
    # With the protocol named, or asyncio does not set TCP_NODELAY, and every answer waits 40 ms for an ACK.
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            # A port that was just let go of can be taken again at once. On Windows the option would
            # mean to share a port that is in use.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((HOST, port))
        sock.listen()
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"port {port} on {HOST} cannot be used: {error.strerror}") from None
    return sock


def _port(sock: socket.socket) -> int:
    port: int = sock.getsockname()[1]
    return port


def _url(sock: socket.socket) -> str:
    return f"http://{HOST}:{_port(sock)}"


def _new_private_key() -> PrivateKey:
    return PrivateKey(secrets.token_bytes(SEED_BYTES))
