"""Run flows with a client's options: the core of a client, which its `chat`, `audio` and `models` resources share.

It holds the settings, the connections, the limits and the enclave's key.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import weakref
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any, Final

import httpx

from prem_core import _config
from prem_core._client.enclave_key import EnclaveKey
from prem_core._crypto.keys import EncryptionKeys
from prem_core._crypto.xwing import PublicKey
from prem_core._errors import ConfigurationError
from prem_core._protocol.flow import Flow, FlowSettings, Send, fetch_public_key
from prem_core._protocol.request_body import SealedBody
from prem_core._protocol.response_body import parse_public_key
from prem_core._protocol.retry import RetryPolicy
from prem_core._rate_limit.permits import resolve_limits
from prem_core._transport.aio import AsyncDriver
from prem_core._transport.http import POOL_LIMITS, BodyStream, no_cookies, ssl_context
from prem_core._transport.loops import LoopClient, LoopClients
from prem_core._transport.sync import SyncDriver
from prem_core._version import __version__

Timeout = float | httpx.Timeout | None

_HEADERS: Final = {
    "accept": "text/event-stream, application/json",
    # Sealed bytes do not compress, and a response that is not decompressed cannot be a decompression bomb.
    "accept-encoding": "identity",
    "user-agent": f"prem-encrypted/{__version__}",
}


class _Requester:
    """What both requesters share: the checked options (see `ClientOptions`), and the HTTP request for a step."""

    def __init__(self, options: dict[str, Any]) -> None:
        for name in ("total_timeout", "stream_chunk_timeout"):
            if options[name] is not None:
                _config.positive(name, options[name])
        timeout = _checked(options["timeout"])
        if timeout is None:
            raise ConfigurationError("timeout must be a number of seconds above 0, or an httpx.Timeout")
        keys = options["encryption_keys"]
        if keys is not None and not isinstance(keys, EncryptionKeys):
            raise ConfigurationError("encryption_keys must come from generate_encryption_keys()")
        insecure = options["allow_insecure"]
        self.gateway_url = _config.resolve_url("gateway_url", options["gateway_url"], allow_insecure=insecure)
        self._urls = {
            "gateway": self.gateway_url,
            "enclave": _config.resolve_url("enclave_url", options["enclave_url"], allow_insecure=insecure),
        }
        self._parsed_urls: dict[str, httpx.URL] = {}
        # httpx.Headers does not show the key in its repr.
        self._headers = {
            "gateway": httpx.Headers(
                {**_HEADERS, "authorization": f"Bearer {_config.resolve_api_key(options['api_key'])}"}
            ),
            "enclave": httpx.Headers(_HEADERS),
        }
        self._timeout = timeout
        pinned = options["enclave_public_key"]
        self.key = EnclaveKey(None if pinned is None else parse_public_key(pinned))
        max_buffer_size = options["max_buffer_size"]
        _config.positive("max_buffer_size", _config.not_negative("max_buffer_size", max_buffer_size))
        self._own_chunk_timeout = options["stream_chunk_timeout"] is not None
        self._total_timeout = options["total_timeout"]
        self._settings = FlowSettings(
            retry=RetryPolicy(_config.not_negative("max_retries", options["max_retries"])),
            max_buffer_size=max_buffer_size,
            keys=keys,
            pinned=pinned is not None,
            chunk_timeout=options["stream_chunk_timeout"]
            if self._own_chunk_timeout
            else _read_timeout(timeout),
        )
        self.limits = resolve_limits(
            options["limits"], options["max_concurrency"], options["requests_per_second"]
        )

    def call_settings(self, timeout: Timeout = None) -> FlowSettings:
        """The settings of a call that starts now."""
        settings = self._settings
        if timeout is not None:
            _checked(timeout)
            if not self._own_chunk_timeout:
                settings = dataclasses.replace(settings, chunk_timeout=_read_timeout(timeout))
        if self._total_timeout is not None:
            settings = dataclasses.replace(settings, deadline=settings.clock() + self._total_timeout)
        return settings

    def build_request(
        self, client: httpx.Client | httpx.AsyncClient, step: Send, timeout: Timeout = None
    ) -> httpx.Request:
        """The HTTP request for a step, with `timeout` in place of the client's own."""
        address = self._urls[step.party] + step.path
        url = self._parsed_urls.get(address)
        if url is None:  # cached: parsing a URL is as slow as sealing a prompt
            url = self._parsed_urls[address] = httpx.URL(address)
        body = step.body
        large = isinstance(body, SealedBody)
        request = client.build_request(
            step.method,
            url,
            content=None if large else body,
            headers=self._headers[step.party],
            params=step.query or None,
            timeout=self._timeout if timeout is None else timeout,
        )
        if body is not None:
            request.headers["content-type"] = "application/json"
        if isinstance(body, SealedBody):
            request.stream = BodyStream(body)
            request.headers["content-length"] = str(body.length)
        return request


class Requester(_Requester):
    """Runs flows synchronously. Safe to share between threads and across a fork."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        http_client = options["http_client"]
        if http_client is not None and not isinstance(http_client, httpx.Client):
            raise ConfigurationError(
                "http_client must be an httpx.Client (AsyncPremClient takes an AsyncClient)"
            )
        self._closed = False
        self._close_http: weakref.finalize[..., Any] | None = None
        if http_client is None:
            self._connect()
        else:
            self._http = http_client
        self._process = os.getpid()

    def _connect(self) -> None:
        self._http = httpx.Client(verify=ssl_context(), limits=POOL_LIMITS, cookies=no_cookies())
        # Closes the sockets of a client that was never closed, when it is garbage-collected.
        self._close_http = weakref.finalize(self, self._http.close)

    def close(self) -> None:
        """Reject further calls. Close the connections, except those of an http_client that was passed in."""
        self._closed = True
        if self._close_http is not None:
            self._close_http()

    def run(self, flow: Callable[[FlowSettings], Flow], timeout: Timeout = None) -> Any:
        """The result of the flow made from the call's settings."""
        settings = self.call_settings(timeout)
        return self._driver(timeout, settings.deadline).run(flow(settings))

    def stream(
        self, flow: Callable[[FlowSettings], Flow], timeout: Timeout = None
    ) -> tuple[SyncDriver, Iterator[Any]]:
        """The flow's results as an iterator, and the driver that produces them."""
        settings = self.call_settings(timeout)
        driver = self._driver(timeout, settings.deadline)
        return driver, driver.stream(flow(settings))

    def _driver(self, timeout: Timeout, deadline: float | None) -> SyncDriver:
        if self._closed or self._http.is_closed:
            raise ConfigurationError("the client is closed")
        if self._process != os.getpid():
            # After a fork. Two processes on one connection would mix their requests and share TLS keys. If you
            # passed an http_client, replace it yourself after a fork.
            self._process = os.getpid()
            self.key.renew_lock()
            if self._close_http is not None:
                self._connect()
        return SyncDriver(
            self._http,
            self.build_request if timeout is None else functools.partial(self.build_request, timeout=timeout),
            self.key,
            self.fetch_key if deadline is None else functools.partial(self.fetch_key, deadline=deadline),
            self.limits,
            deadline,
        )

    def fetch_key(self, stale: PublicKey | None = None, deadline: float | None = None) -> PublicKey:
        """The enclave's public key, fetched if it is not known or still `stale`."""

        def fetch() -> PublicKey:
            settings = dataclasses.replace(self._settings, deadline=deadline)
            key: PublicKey = self._driver(None, deadline).run(fetch_public_key(settings))
            return key

        return self.key.get(fetch, stale, deadline)


class AsyncRequester(_Requester):
    """Runs flows asynchronously, with connections for each event loop."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        http_client = options["http_client"]
        if http_client is not None and not isinstance(http_client, httpx.AsyncClient):
            raise ConfigurationError("http_client must be an httpx.AsyncClient (PremClient takes a Client)")
        self._loops = LoopClients(http_client)
        self._closed = False

    async def close(self) -> None:
        """Reject further calls. Close the running loop's connections; those of other loops close when these loops
        close."""
        self._closed = True
        await self._loops.close()

    async def run(self, flow: Callable[[FlowSettings], Flow], timeout: Timeout = None) -> Any:
        """The result of the flow made from the call's settings."""
        settings = self.call_settings(timeout)
        return await (await self._driver(timeout, settings.deadline)).run(flow(settings))

    async def stream(
        self, flow: Callable[[FlowSettings], Flow], timeout: Timeout = None
    ) -> tuple[AsyncDriver, AsyncGenerator[Any, None]]:
        """The flow's results as an iterator, and the driver that produces them."""
        settings = self.call_settings(timeout)
        driver = await self._driver(timeout, settings.deadline)
        return driver, driver.stream(flow(settings))

    async def _driver(self, timeout: Timeout, deadline: float | None) -> AsyncDriver:
        if self._closed:
            raise ConfigurationError("the client is closed")
        loop = await self._loops.current()
        return AsyncDriver(
            loop.http,
            self.build_request if timeout is None else functools.partial(self.build_request, timeout=timeout),
            self.key,
            functools.partial(self._fetch_key, loop),
            self.limits,
            deadline,
        )

    async def fetch_key(self) -> PublicKey:
        """The enclave's public key, fetched if it is not known."""
        return await self._fetch_key(await self._loops.current(), None)

    async def _fetch_key(self, loop: LoopClient, stale: PublicKey | None) -> PublicKey:
        async def fetch() -> PublicKey:
            key: PublicKey = await (await self._driver(None, None)).run(fetch_public_key(self._settings))
            return key

        return await self.key.get_async(fetch, loop.key_lock, stale)


def _checked(timeout: Timeout) -> Timeout:
    if timeout is not None and not isinstance(timeout, httpx.Timeout):
        _config.positive("timeout", timeout)
    return timeout


def _read_timeout(timeout: float | httpx.Timeout | None) -> float | None:
    return timeout.read if isinstance(timeout, httpx.Timeout) else timeout
