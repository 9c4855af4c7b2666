"""The proxy as an HTTP server on this machine, in one background thread."""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Final, Self

import httpx

from prem_core import _config
from prem_core._client.client import AsyncPremClient
from prem_core._crypto.keys import EncryptionKeys
from prem_core._crypto.redaction import without_traceback
from prem_core._crypto.xwing import PublicKey
from prem_core._errors import ConfigurationError
from prem_core._serving.request import AllowedHosts
from prem_core._serving.server import ALL_INTERFACES, LOOPBACK, Server, Service, listen, url_host
from prem_core.proxy.app import Proxy
from prem_core.proxy.client_cache import ClientCache
from prem_core.proxy.guard import HostOriginGuard
from prem_core.proxy.request_log import RequestLog
from prem_core.proxy.wire import PLACEHOLDER_KEY

#: Bytes of one request body: a recording of 25 MB in its form, or images in a prompt.
DEFAULT_BODY_LIMIT: Final = 32 * 1024 * 1024

#: API keys whose clients are kept.
DEFAULT_MAX_CLIENTS: Final = 64


class LocalProxy(Service):
    """An OpenAI-compatible server on this machine, in front of Prem's encrypted API.

    ::

        with LocalProxy(port=3000) as proxy:
            client = openai.OpenAI(base_url=proxy.base_url, api_key="sk_live_…")

    It is also an async context manager, and has `start` and `stop`. It can be started again after it was stopped. Each
    API key has its own client (`AsyncPremClient`) with its own rate limits. The proxy does not keep the key itself.

    Args:
        host: The address to listen on. An address that other machines reach needs `allow_remote`.
        port: The port; 0 for a free one.
        api_key: Used for every caller. By default each caller's own key is used.
        gateway_url: The gateway. Environment: PREM_GATEWAY_URL, PROXY_URL.
        enclave_url: The enclave, from which the public key is fetched. Environment: PREM_ENCLAVE_URL, ENCLAVE_URL.
        enclave_public_key: The enclave's key, pinned; see `PremClient`.
        encryption_keys: One KEM result for all requests of all callers, instead of a fresh one each.
        timeout: Seconds to wait for a connection, for the start of a response, and between its parts.
        audio_timeout: Seconds to wait for a transcription.
        max_retries: Retries after the first attempt. Unless it is 0, callers are told not to retry: attempts multiply.
        max_concurrency: Concurrent requests per API key; further requests wait. None for no limit.
        max_clients: How many API keys' clients are kept. A client in use is not closed.
        max_buffer_size: Bytes of one event or one body from the service.
        body_limit: Bytes of one request body. A longer one is answered with 413.
        drop_unsupported: Drop parameters that Prem's API does not have and list them in the header ``x-prem-dropped``,
            instead of rejecting them.
        allow_remote: Allow a `host` that other machines reach. Prompts and API keys then travel to it unencrypted.
        allow_hosts: Further values of the Host header to accept, with a port or without.
        allow_insecure: Allow plain http to a gateway on another machine.
        log: Receives a record of each request. By default a log of the last 200.

    Raises:
        ConfigurationError: A value is not valid.
        EnclaveKeyError: `enclave_public_key` is not an X-Wing key.
    """

    @without_traceback
    def __init__(
        self,
        *,
        host: str = LOOPBACK,
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
        log: RequestLog | None = None,
    ) -> None:
        if not allow_remote and not _config.is_loopback(host):
            raise ConfigurationError(
                f"host {host} can be reached by other machines, and prompts and API keys would travel to it "
                "unencrypted: use 127.0.0.1, or pass allow_remote=True (--allow-remote)"
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
        #: A record of each request.
        self.log = RequestLog() if log is None else log
        self._make = functools.partial(
            AsyncPremClient,
            api_key=PLACEHOLDER_KEY,
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
        self._make()  # raises now if any of these is not valid
        self._retries = max_retries > 0
        self._server: Server | None = None

    def __repr__(self) -> str:
        return f"LocalProxy({'stopped' if self._server is None else self.url})"

    @property
    def url(self) -> str:
        """The URL of the proxy and its web page. Raises RuntimeError while the proxy is not running."""
        if self._server is None:
            raise RuntimeError("this LocalProxy is not running: use a with statement, or call start()")
        return self._server.urls[0]

    @property
    def base_url(self) -> str:
        """The ``base_url`` for OpenAI clients."""
        return self.url + "/v1"

    def start(self) -> Self:
        """Start listening. Connections are accepted when this returns.

        Raises:
            OSError: The address cannot be used.
            RuntimeError: The proxy is running already.
        """
        if self._server is not None:
            raise RuntimeError("this LocalProxy is running already")
        host, port = self._address
        sock = listen(host, port)
        clients = ClientCache(lambda http_client: self._make(http_client=http_client), self._max_clients)
        proxy = Proxy(
            clients=clients,
            log=self.log,
            api_key=self._api_key,
            body_limit=self._body_limit,
            drop_unsupported=self._drop_unsupported,
            audio_timeout=self._audio_timeout,
            retries=self._retries,
        )
        any_address = host in ALL_INTERFACES
        names = self._allow_hosts if any_address else (*self._allow_hosts, url_host(host))
        hosts = AllowedHosts(sock.getsockname()[1], names, any_address=any_address)
        # Without uvicorn's log: it reports the unfinished responses that end a failed stream.
        self._server = Server(
            (HostOriginGuard(proxy, hosts), sock),
            name="prem-proxy",
            on_stop=proxy.stop,
            closers=[clients.aclose],
        ).start()
        return self

    def stop(self) -> None:
        """Stop listening. Running requests end with an error. Does nothing when the proxy is not running."""
        server, self._server = self._server, None
        if server is not None:
            server.stop()
