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
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
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

from prem_core._config import VARIABLES
from prem_core._crypto.redaction import without_traceback
from prem_core._crypto.xwing import SEED_BYTES, PrivateKey, PublicKey
from prem_core._errors import ConfigurationError
from prem_core.enclave.enclave import Enclave, ReplyForm, refusal
from prem_core.enclave.engines.base import Engine, EngineError, EngineRequest
from prem_core.enclave.engines.quoting import QuotingEngine
from prem_core.enclave.engines.scripted import ReplyLike, Respond, ScriptedEngine
from prem_core.enclave.engines.upstream import UpstreamEngine
from prem_core.enclave.gateway import Exchange, Gateway, Observed
from prem_core.enclave.quota import Tier
from prem_core.enclave.schema_check import Refused

TierName = Literal["base", "off"]

HOST: Final = "127.0.0.1"

#: Names under which a client on this machine may ask. Any other one in the Host header means that a
#: browser was led here by somebody else's DNS name.
LOOPBACK_NAMES: Final = ("127.0.0.1", "localhost", "[::1]")

DEFAULT_MODELS: Final = ("openai/gpt-oss-120b", "openai/whisper-large-v3", "prem-local/quoting")

#: Bytes of one request body: 25 MB of audio, sealed and written as hex, with room to spare.
DEFAULT_BODY_LIMIT: Final = 64 * 1024 * 1024

#: Seconds `stop` waits for the servers' thread. It ends in a fraction of that, unless the default engine is
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
        replies: What is answered, one reply for each request, in order; see `ScriptedEngine`.
        respond: A function that returns the reply to each request; see `ScriptedEngine`.
        upstream: Base URL of an OpenAI-compatible server that answers, with or without ``/v1``.
        upstream_api_key: Sent to it as a bearer token.
        engine: What answers, in place of `replies`, `respond` and `upstream`. With none of the four, a
            `QuotingEngine` answers: it quotes and extracts what the prompt holds, and transcribes English.
        tier: ``base`` limits requests, tokens, seconds of audio and concurrency as the BASE tier does; a `Tier` has
            limits of its own, which a restart does not fill up again.
        models: The names ``GET /models`` lists and requests may ask for. By default the names of the live
            service's two models, and one of the default engine; any other engine is asked for any model, and
            with `upstream` the list is the server's own.
        scopes: What the API key may do; None for everything.
        reply_form: How a request without ``stream: true`` is answered: as the documented event
            ``stream``, or as the JSON ``envelope`` that the audio routes use.
        body_limit: Bytes of one request body; a longer one is answered with 413.
        on_exchange: Called with what the gateway saw of each exchange, sealed, in the servers' thread.
            By default nothing is kept.

    Raises:
        ConfigurationError: A value cannot work, or several of `engine`, `replies`, `respond` and `upstream`
            are given.
    """

    @without_traceback
    def __init__(
        self,
        *,
        api_key: str | None = None,
        port: int = 0,
        enclave_port: int = 0,
        private_key: PrivateKey | None = None,
        replies: Iterable[ReplyLike] | None = None,
        respond: Respond | None = None,
        upstream: str | None = None,
        upstream_api_key: str | None = None,
        engine: Engine | None = None,
        tier: TierName | Tier = "off",
        models: Sequence[str] | None = None,
        scopes: Collection[str] | None = None,
        reply_form: ReplyForm = "stream",
        body_limit: int = DEFAULT_BODY_LIMIT,
        on_exchange: Callable[[Exchange], None] | None = None,
    ) -> None:
        if api_key is None:
            api_key = f"sk_test_local_{secrets.token_urlsafe(24)}"
        if not re.fullmatch(r"[!-~]+", api_key):
            raise ConfigurationError("api_key must be printable ASCII without spaces")
        given = {"engine": engine, "replies": replies, "respond": respond, "upstream": upstream}
        if len(names := [name for name, value in given.items() if value is not None]) > 1:
            raise ConfigurationError(
                f"{' and '.join(names)} are given: pass only one of engine, replies, respond and upstream"
            )
        if not isinstance(tier, Tier) and tier not in get_args(TierName):
            raise ConfigurationError('tier must be "base" or "off"')
        if reply_form not in get_args(ReplyForm):
            raise ConfigurationError('reply_form must be "stream" or "envelope"')
        self._api_key = api_key
        self._ports = (port, enclave_port)
        self._private_key = private_key or _new_private_key()
        if engine is not None:
            self._engine = engine
        elif upstream is not None:
            self._engine = UpstreamEngine(upstream, upstream_api_key)
        elif replies is not None or respond is not None:
            self._engine = ScriptedEngine(replies or (), respond=respond)
        else:
            self._engine = QuotingEngine()
        self._tier = tier
        self._models = None if models is None else tuple(models)
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

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that lead a client here without arguments."""
        variables = {VARIABLES[setting][0]: value for setting, value in self.client_options.items()}
        # A proxy from the environment cannot reach loopback. The lower-case name wins where both are set.
        present = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
        direct = f"{present},{HOST}" if present else HOST
        return {**variables, "no_proxy": direct, "NO_PROXY": direct}

    @property
    def engine(self) -> Engine:
        """What answers the requests."""
        return self._engine

    @property
    def requests(self) -> list[EngineRequest]:
        """Every request so far, opened. Only a `ScriptedEngine` keeps them: a RuntimeError with another engine."""
        return self._scripted.requests

    @property
    def replies(self) -> list[ReplyLike]:
        """The replies that are left, of a `ScriptedEngine`. Assign a list to set what comes next."""
        return self._scripted.replies

    @replies.setter
    def replies(self, replies: Iterable[ReplyLike]) -> None:
        self._scripted.replies = list(replies)

    @property
    def respond(self) -> Respond | None:
        """The function that returns the replies of a `ScriptedEngine`. It is used when no `replies` are left."""
        return self._scripted.respond

    @respond.setter
    def respond(self, respond: Respond | None) -> None:
        self._scripted.respond = respond

    def reply(self, *replies: ReplyLike) -> None:
        """Add replies to those of a `ScriptedEngine`."""
        self._scripted.replies.extend(replies)

    @property
    def _scripted(self) -> ScriptedEngine:
        if not isinstance(self._engine, ScriptedEngine):
            raise RuntimeError(
                f"only a ScriptedEngine has replies and requests, and this is a {type(self._engine).__name__}: "
                "pass replies= or respond= to LocalEnclave"
            )
        return self._engine

    async def _model_names(self) -> Sequence[str]:
        if self._models is not None:
            return self._models
        try:
            names = await self._engine.models()
        except EngineError as error:
            raise refusal(error) from None
        return DEFAULT_MODELS if names is None else names

    @property
    def _accepted_models(self) -> Sequence[str] | None:
        """The models a request may ask for; None for any."""
        if isinstance(self._engine, QuotingEngine):
            return self._models or DEFAULT_MODELS
        return None if isinstance(self._engine, UpstreamEngine) else self._models

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
            tier = self._tier if isinstance(self._tier, Tier) else Tier() if self._tier == "base" else None
            gateway: ASGIApp = Gateway(
                api_key=self._api_key,
                scopes=self._scopes,
                models=self._model_names,
                tier=tier,
                enclave=hop,
                hop_secret=hop_secret,
            )
            enclave = Enclave(
                private_key=self._private_key,
                engine=self._engine,
                models=self._accepted_models,
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
            self._servers = _Servers(served, closers=[hop.aclose, self._engine.aclose])
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
