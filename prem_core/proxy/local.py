"""The proxy as an HTTP server on this machine, in one background thread.

The rule of this file: reachable from this machine only, unless that was asked for by name; and nothing is left when it
has stopped.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import logging
import os
import socket
import threading
from collections.abc import Callable, Collection
from types import TracebackType
from typing import Final, Self

import httpx
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from prem_core import _config
from prem_core._client.client import AsyncPremClient
from prem_core._crypto.keys import EncryptionKeys
from prem_core._crypto.redaction import without_traceback
from prem_core._crypto.xwing import PublicKey
from prem_core._errors import ConfigurationError
from prem_core.proxy.app import Proxy
from prem_core.proxy.client_cache import Clients
from prem_core.proxy.guard import LOOPBACK_NAMES, Guard
from prem_core.proxy.request_log import Exchanges
from prem_core.proxy.wire import NO_KEY

HOST: Final = "127.0.0.1"

#: Bytes of one request body: a recording of 25 MB in its form, and images in a prompt.
DEFAULT_BODY_LIMIT: Final = 32 * 1024 * 1024

#: API keys whose clients are kept.
DEFAULT_MAX_CLIENTS: Final = 64

#: Seconds that calls have to end in when the proxy is stopped, before their connections are broken off.
_ENDING: Final = 0.5

#: Seconds `stop` waits for the thread. It ends in a fraction of that.
_STOP_TIMEOUT: Final = 5.0

_ALL_ADDRESSES: Final = ("0.0.0.0", "::")  # noqa: S104 - compared with, not listened on

# uvicorn's own lines say when an answer stays unfinished, which is how a cut one is meant to end.
_silent = logging.Logger("prem_core.proxy.silent", logging.CRITICAL + 1)


class LocalProxy:
    """An OpenAI-compatible server on this machine, in front of Prem's encrypted API.

    ::

        with LocalProxy(port=3000) as proxy:
            client = openai.OpenAI(base_url=proxy.base_url, api_key="sk_live_…")

    Also an async context manager, and usable through `start` and `stop`. It can be started again after it was
    stopped. Every API key has a client of its own (`AsyncPremClient`), with limits of its own, kept for as long as
    the proxy runs and others have not displaced it; the key itself is not kept.

    Args:
        host: The address to listen on; any but a loopback one needs `allow_remote`.
        port: The port; 0 for a free one.
        api_key: Used for every caller; by default each uses the key that it sends.
        gateway_url: The gateway. Environment: PREM_GATEWAY_URL, PROXY_URL.
        enclave_url: The enclave, asked for its public key. Environment: PREM_ENCLAVE_URL, ENCLAVE_URL.
        enclave_public_key: The enclave's key, pinned; see `PremClient`.
        encryption_keys: One KEM result for all requests of all callers, instead of a fresh one each.
        timeout: Seconds to wait for a connection, for the answer to begin, and between its pieces.
        audio_timeout: Seconds for the answer to a recording.
        max_retries: Tries after the first. Callers are told not to try again by themselves unless it is 0: tries of
            tries multiply.
        max_concurrency: Requests of one API key on their way at once; the others wait. None for any number.
        max_clients: API keys whose clients are kept. One in use is not closed.
        max_buffer_size: Bytes of one event, or one body, of the service's.
        body_limit: Bytes of one request body; a longer one is answered with 413.
        drop_unsupported: Leave out parameters that Prem's published schema does not have, and list them in the header
            ``x-prem-dropped``, rather than refuse them.
        allow_remote: Allow a `host` that other machines reach. Callers' prompts and keys then travel in the clear.
        allow_hosts: Further names in the Host header, with a port or without.
        allow_insecure: Allow plain http to a gateway on another machine.
        exchanges: Where exchanges are remembered.

    Raises:
        ConfigurationError: A value cannot work.
        EnclaveKeyError: `enclave_public_key` is not an X-Wing key.
    """

    @without_traceback
    def __init__(
        self,
        *,
        host: str = HOST,
        port: int = 0,
        api_key: str | None = None,
        gateway_url: str | None = None,
        enclave_url: str | None = None,
        enclave_public_key: PublicKey | bytes | str | None = None,
        encryption_keys: EncryptionKeys | None = None,
        timeout: float | httpx.Timeout = _config.DEFAULT_TIMEOUT,
        audio_timeout: float = _config.AUDIO_TIMEOUT,
        max_retries: int = _config.DEFAULT_MAX_RETRIES,
        max_concurrency: int | None = _config.DEFAULT_MAX_CONCURRENCY,
        max_clients: int = DEFAULT_MAX_CLIENTS,
        max_buffer_size: int = _config.DEFAULT_MAX_BUFFER_SIZE,
        body_limit: int = DEFAULT_BODY_LIMIT,
        drop_unsupported: bool = False,
        allow_remote: bool = False,
        allow_hosts: Collection[str] = (),
        allow_insecure: bool = False,
        exchanges: Exchanges | None = None,
    ) -> None:
        if not allow_remote and not _config.is_loopback(host):
            raise ConfigurationError(
                "host is not this machine's own: others could reach the proxy, and callers' prompts and API keys "
                "travel to it unencrypted; allow_remote (--allow-remote) if you mean it"
            )
        for name, number in (("max_clients", max_clients), ("body_limit", body_limit)):
            _config.positive(name, _config.not_negative(name, number))
        self._address = (host, port)
        self._api_key = None if api_key is None else _config.resolve_api_key(api_key)
        self._max_clients = max_clients
        self._body_limit = body_limit
        self._drop_unsupported = drop_unsupported
        self._audio_timeout = _config.positive("audio_timeout", audio_timeout)
        self._allow_hosts = tuple(allow_hosts)
        #: What is remembered of each exchange.
        self.exchanges = Exchanges() if exchanges is None else exchanges
        self._make = functools.partial(
            AsyncPremClient,
            api_key=NO_KEY,
            gateway_url=gateway_url,
            enclave_url=enclave_url,
            enclave_public_key=enclave_public_key,
            encryption_keys=encryption_keys,
            timeout=timeout,
            max_retries=max_retries,
            max_concurrency=max_concurrency,
            max_buffer_size=max_buffer_size,
            allow_insecure=allow_insecure,
        )
        self._make()  # says now what is wrong with any of these
        self._tries_again = max_retries > 0
        self._server: _Server | None = None

    def __repr__(self) -> str:
        return f"LocalProxy({'stopped' if self._server is None else self.url})"

    @property
    def url(self) -> str:
        """Where it listens. Raises RuntimeError while it does not."""
        if self._server is None:
            raise RuntimeError("this LocalProxy is not running: use a with statement, or call start()")
        return _url(*self._server.address)

    @property
    def base_url(self) -> str:
        """What an OpenAI client wants as ``base_url``."""
        return self.url + "/v1"

    def start(self) -> Self:
        """Listen. Returns when connections are accepted.

        Raises:
            OSError: The address cannot be listened on.
            RuntimeError: It is running already.
        """
        if self._server is not None:
            raise RuntimeError("this LocalProxy is running already")
        sock = _listening_socket(*self._address)
        clients = Clients(lambda wire: self._make(http_client=wire), self._max_clients)
        proxy = Proxy(
            clients=clients,
            exchanges=self.exchanges,
            api_key=self._api_key,
            body_limit=self._body_limit,
            drop_unsupported=self._drop_unsupported,
            audio_timeout=self._audio_timeout,
            tries_again=self._tries_again,
        )
        self._server = _Server(proxy, clients, sock, self._guard(proxy, sock))
        return self

    def stop(self) -> None:
        """Stop listening. What is going on ends with an error. Does nothing when it is not running."""
        server, self._server = self._server, None
        if server is not None:
            server.stop()

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

    def _guard(self, proxy: Proxy, sock: socket.socket) -> Guard:
        host, port = self._address[0], sock.getsockname()[1]
        names = (*self._allow_hosts, *(() if host in _ALL_ADDRESSES else (_in_url(host),)))
        return Guard(proxy, port, names, any_address=host in _ALL_ADDRESSES)


class _Server:
    """The application behind uvicorn, in a thread with an event loop.

    Args:
        proxy: What is told to stop.
        clients: Closed in the end.
        sock: Bound; closed in the end.
        app: What is served.
    """

    def __init__(self, proxy: Proxy, clients: Clients, sock: socket.socket, app: Guard) -> None:
        self.address: tuple[str, int] = sock.getsockname()[:2]
        self._proxy = proxy
        self._clients = clients
        self._sock = sock
        self._app = app
        self._ready: concurrent.futures.Future[Callable[[], object]] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._run, name="prem-proxy", daemon=True)
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
        finally:
            self._sock.close()

    async def _serve(self) -> None:
        server = uvicorn.Server(_Config(self._app))
        serving = asyncio.create_task(server.serve([self._sock]))
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        # The socket listens already: whoever connects before the server is up waits in its backlog.
        self._ready.set_result(functools.partial(loop.call_soon_threadsafe, stopping.set))
        try:
            await stopping.wait()
            server.should_exit = True
            self._proxy.stop()
            if server.server_state.tasks:
                await asyncio.wait(server.server_state.tasks, timeout=_ENDING)
            for connection in list(server.server_state.connections):
                connection.transport.abort()
            await serving
        finally:
            await self._clients.aclose()


class _Config(uvicorn.Config):
    """uvicorn for one application; the process's own logging is left as it is."""

    def __init__(self, app: Guard) -> None:
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
    """HTTP without a log."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.access_log = False
        self.logger = _silent
        super().connection_made(transport)


def _listening_socket(host: str, port: int) -> socket.socket:
    host = HOST if host == "localhost" else host
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise OSError(f"{host} is no address to listen on") from None
    # With the protocol named, or asyncio does not set TCP_NODELAY, and every answer waits 40 ms for an ACK.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            # A port that was just let go of can be taken again at once. On Windows the option would
            # mean to share a port that is in use.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen()
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"port {port} on {host} cannot be used: {error.strerror}") from None
    return sock


def _url(host: str, port: int) -> str:
    if host in _ALL_ADDRESSES:
        host = LOOPBACK_NAMES[0]
    return f"http://{_in_url(host)}:{port}"


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
