"""The proxy as an HTTP server on this machine, in one background thread."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Collection
from typing import Final, Self, Unpack

from prem_core import _config
from prem_core._apis.routing import Apis, Compat, all_apis
from prem_core._client.client import AsyncPremClient
from prem_core._client.options import ClientOptions, with_defaults
from prem_core._crypto.redaction import without_traceback
from prem_core._errors import ConfigurationError
from prem_core._protocol.nonce_reuse import resolve_nonce_reuse
from prem_core._serving.request import AllowedHosts
from prem_core._serving.server import (
    ALL_INTERFACES,
    LOOPBACK,
    Server,
    Service,
    Sockets,
    listen,
    listen_on_loopback,
    url_host,
)
from prem_core.proxy.app import Proxy
from prem_core.proxy.client_cache import ClientCache
from prem_core.proxy.dashboard import PAGE_PATH
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
        host: The address to listen on. The default is 127.0.0.1 together with ::1, so that `localhost` reaches no other
            program. An address that other machines reach needs `allow_remote`.
        port: The port; 0 for a free one.
        audio_timeout: Seconds to wait for a transcription.
        max_clients: How many API keys' clients are kept. A client in use is not closed.
        body_limit: Bytes of one request body. A longer one is answered with 413.
        strict: Refuse every parameter that Prem's API does not have. By default those that change nothing in an answer
            are dropped, and listed in the header ``x-prem-dropped``; `parallel_tool_calls` and `user` are replaced, and
            listed in ``x-prem-adjusted``.
        compat: Which APIs to serve: "openai", "anthropic" or "both".
        store_responses: Keep the responses of OpenAI's Responses API in memory, with their conversations, for
            ``previous_response_id``: at most 256 for each API key, in 64 MiB, until the proxy is stopped.
        allow_remote: Allow a `host` that other machines reach. Prompts and API keys then travel to it unencrypted.
        allow_hosts: Further values of the Host header to accept, with a port or without.
        page: Whether to serve the web page; see `page_url`.
        log: Receives a record of each request. By default a log of the last 200.
        **client_options: See `ClientOptions`. They apply to the client of each API key. `api_key` is used for every
            caller; by default each caller's own key is used. Unless `max_retries` is 0, responses ask callers not to
            retry: attempts would multiply. With `nonce_reuse` "warn" the warning is one log line (logger
            ``prem_core.proxy``); with "error" streams are sent in one piece, with comments while a caller waits.

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
        audio_timeout: float = _config.AUDIO_TIMEOUT,
        max_clients: int = DEFAULT_MAX_CLIENTS,
        body_limit: int = DEFAULT_BODY_LIMIT,
        strict: bool = False,
        compat: Compat = "both",
        store_responses: bool = False,
        allow_remote: bool = False,
        allow_hosts: Collection[str] = (),
        page: bool = True,
        log: RequestLog | None = None,
        **client_options: Unpack[ClientOptions],
    ) -> None:
        if not allow_remote and not _config.is_loopback(host):
            raise ConfigurationError(
                f"host {host} can be reached by other machines, and prompts and API keys would travel to it "
                "unencrypted: use 127.0.0.1, or pass allow_remote=True (--allow-remote)"
            )
        for name, number in (("max_clients", max_clients), ("body_limit", body_limit)):
            _config.positive(name, _config.not_negative(name, number))
        self._address = (host, port)
        self._max_clients = max_clients
        self._body_limit = body_limit
        self._strict = strict
        Apis(compat)  # raises now if it is not valid
        self._compat: Compat = compat
        self._store_responses = store_responses
        self._audio_timeout = _config.positive("audio_timeout", audio_timeout)
        self._allow_hosts = tuple(allow_hosts)
        #: A record of each request.
        self.log = RequestLog() if log is None else log
        options = with_defaults(type(self).__name__, client_options)
        if options.pop("http_client") is not None:
            raise ConfigurationError(
                "LocalProxy makes an HTTP client for each API key: do not pass http_client"
            )
        api_key = options.pop("api_key")
        if options["encryption_keys"] is not None and api_key is None:
            raise ConfigurationError(
                "encryption_keys need an api_key (--keys needs --api-key-from-env): with the same encryption keys for "
                "every caller, the gateway and one caller together can read the responses to other callers"
            )
        self._api_key = None if api_key is None else _config.resolve_api_key(api_key)
        self._nonce_reuse = resolve_nonce_reuse(options["nonce_reuse"])
        options["nonce_reuse"] = "allow" if self._nonce_reuse == "warn" else self._nonce_reuse
        self._make_client = functools.partial(AsyncPremClient, api_key=PLACEHOLDER_KEY, **options)
        self._make_client()  # raises now if an option is not valid
        self._urls = [
            _config.resolve_url(name, options[name], allow_insecure=options["allow_insecure"])
            for name in _config.DEFAULT_URLS
        ]
        self._retries = options["max_retries"] > 0
        self._page_token = secrets.token_urlsafe(24) if page else None
        self._server: Server | None = None

    def __repr__(self) -> str:
        return f"LocalProxy({'stopped' if self._server is None else self.url})"

    @property
    def url(self) -> str:
        """The URL of the proxy. Raises RuntimeError while the proxy is not running."""
        if self._server is None:
            raise RuntimeError("this LocalProxy is not running: use a with statement, or call start()")
        return self._server.urls[0]

    @property
    def gateway_url(self) -> str:
        """The URL of the gateway that requests go to."""
        return self._urls[0]

    @property
    def base_url(self) -> str:
        """The ``base_url`` for OpenAI clients."""
        return self.url + "/v1"

    @property
    def page_url(self) -> str:
        """The URL of the web page that shows the requests live. It contains a secret token.

        Raises RuntimeError while the proxy is not running, or if it was made without the page.
        """
        if self._page_token is None:
            raise RuntimeError("this LocalProxy has no web page: it was made with page=False")
        return f"{self.url}{PAGE_PATH}/{self._page_token}/"

    def start(self) -> Self:
        """Start listening. Connections are accepted when this returns.

        Raises:
            OSError: The address cannot be used.
            RuntimeError: The proxy is running already.
        """
        if self._server is not None:
            raise RuntimeError("this LocalProxy is running already")
        host, port = self._address
        socks: Sockets = (
            listen_on_loopback(port) if host in (LOOPBACK, "localhost") else (listen(host, port),)
        )
        clients = ClientCache(
            lambda http_client: self._make_client(http_client=http_client), self._max_clients, self._urls
        )
        proxy = Proxy(
            clients=clients,
            log=self.log,
            api_key=self._api_key,
            body_limit=self._body_limit,
            strict=self._strict,
            apis=Apis(self._compat, all_apis(store_responses=self._store_responses)),
            audio_timeout=self._audio_timeout,
            retries=self._retries,
            nonce_reuse=self._nonce_reuse,
            page_token=self._page_token,
        )
        any_address = host in ALL_INTERFACES
        names = self._allow_hosts if any_address else (*self._allow_hosts, url_host(host))
        hosts = AllowedHosts(socks[0].getsockname()[1], names, any_address=any_address)
        # Without uvicorn's log: it reports the unfinished responses that end a failed stream.
        self._server = Server(
            (HostOriginGuard(proxy, hosts), *socks),
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
