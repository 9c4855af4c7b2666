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
from prem_core._client.shared_fetch import SharedFetch
from prem_core._crypto.keys import EncryptionKeys
from prem_core._crypto.xwing import PublicKey
from prem_core._errors import ConfigurationError
from prem_core._protocol.attestation.settings import VERDICTS, Attestation, Verdict, check_extra
from prem_core._protocol.flow import fetch_public_key, probe
from prem_core._protocol.nonce_reuse import REPLY_FORMS, resolve_nonce_reuse
from prem_core._protocol.request_body import SealedBody
from prem_core._protocol.response_body import parse_public_key
from prem_core._protocol.retry import RetryPolicy
from prem_core._protocol.steps import Attest, Flow, FlowSettings, Probe, Send
from prem_core._rate_limit.permits import resolve_limits
from prem_core._transport.aio import AsyncDriver
from prem_core._transport.http import BodyStream, httpx_options
from prem_core._transport.loops import LoopClient, LoopClients
from prem_core._transport.sync import SyncDriver
from prem_core._version import __version__

Timeout = float | httpx.Timeout | None

_DEFAULT_TIMEOUT: Final = httpx.Timeout(_config.DEFAULT_TIMEOUT)
_DEFAULT_WHOLE_TIMEOUT: Final = httpx.Timeout(_config.DEFAULT_TIMEOUT, read=_config.WHOLE_REPLY_TIMEOUT)

#: What a request accepts. Without a stream, nothing on the way should prefer one: it comes under the request's nonce.
_ACCEPT_STREAM: Final = "text/event-stream, application/json"
_ACCEPT_WHOLE: Final = "application/json, text/event-stream;q=0.1"
_ACCEPT_OWN_NONCE: Final = "application/json"

#: How many models' attestations and probes may be shared. Names of models can come from a caller of the proxy.
_MAX_PREPARATIONS: Final = 1000

_HEADERS: Final = {
    # Sealed bytes do not compress. A compressed response is an error: it could be a decompression bomb.
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
        for name in ("request_masking", "retry_after_send"):
            if not isinstance(options[name], bool):
                raise ConfigurationError(f"{name} must be True or False, not {options[name]!r}")
        nonce_reuse = resolve_nonce_reuse(options["nonce_reuse"])
        keys = options["encryption_keys"]
        if keys is not None and not isinstance(keys, EncryptionKeys):
            raise ConfigurationError("encryption_keys must come from generate_encryption_keys()")
        if keys is not None and nonce_reuse == "error":
            raise ConfigurationError(
                "encryption_keys cannot be combined with nonce_reuse='error': with one secret for all requests, the "
                "gateway can pass off the reply to one request as the reply to another"
            )
        insecure = options["allow_insecure"]
        self.gateway_url = _config.resolve_url("gateway_url", options["gateway_url"], allow_insecure=insecure)
        self._urls = {
            "gateway": self.gateway_url,
            "enclave": _config.resolve_url("enclave_url", options["enclave_url"], allow_insecure=insecure),
        }
        self._parsed_urls: dict[str, httpx.URL] = {}
        # httpx.Headers does not show the key in its repr.
        authorization = {"authorization": f"Bearer {_config.resolve_api_key(options['api_key'])}"}
        accept_whole = _ACCEPT_OWN_NONCE if nonce_reuse == "error" else _ACCEPT_WHOLE
        self._headers = {
            (party, whole): httpx.Headers(
                {**_HEADERS, **own, "accept": accept_whole if whole else _ACCEPT_STREAM}
            )
            for party, own in (("gateway", authorization), ("enclave", {}))
            for whole in (False, True)
        }
        self._timeout, self._whole_timeout = (
            (_DEFAULT_TIMEOUT, _DEFAULT_WHOLE_TIMEOUT) if timeout is None else (timeout, timeout)
        )
        self._preparations: dict[Attest | Probe, SharedFetch[Verdict | bool]] = {}
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
            gateway_url=self.gateway_url,
            nonce_reuse=nonce_reuse,
            request_masking=options["request_masking"],
            retry_after_send=options["retry_after_send"],
            attestation=Attestation.from_options(options),
            chunk_timeout=options["stream_chunk_timeout"]
            if self._own_chunk_timeout
            else _read_timeout(self._timeout),
        )
        self.limits = resolve_limits(
            options["limits"], options["max_concurrency"], options["requests_per_second"]
        )

    @property
    def requires_attestation(self) -> bool:
        """Whether nothing is sent without a proof."""
        return self._settings.attestation.mode == "require"

    @property
    def _all_urls(self) -> tuple[str, ...]:
        """What the client connects to, where it may be this machine."""
        roots = self._settings.attestation.roots
        return (*self._urls.values(), *(roots.sources.urls if roots is not None else ()))

    @property
    def asks_for_streams(self) -> bool:
        """Whether a stream is asked for as a stream; see `nonce_reuse`."""
        return self._settings.asks_for_streams

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

    def _shared(self, step: Attest | Probe) -> SharedFetch[Verdict | bool]:
        if len(self._preparations) > _MAX_PREPARATIONS:
            self._preparations.clear()  # who waits for one keeps it
        return self._preparations.setdefault(step, SharedFetch())

    def _outcome(self, step: Attest | Probe) -> Verdict | bool | None:
        """The outcome of an attestation or a probe, if it is known for the enclave's present key."""
        key, settings = self.key.public_key, self._settings
        if isinstance(step, Attest):
            return VERDICTS.find(
                self.gateway_url,
                settings.fingerprint(key),
                step.model,
                settings.attestation,
                settings.wall_clock(),
            )
        known = key is not None and REPLY_FORMS.own_nonce(self.gateway_url, key, step.subject) is not None
        return True if known else None

    def _preparation(self, step: Attest | Probe, settings: FlowSettings) -> Flow:
        """The flow that finds the outcome."""
        if isinstance(step, Probe):
            return probe(step.subject, settings)
        # Imported here: it reads certificates, and doubles the import time of a client that does not attest.
        from prem_core._protocol.attestation.flow import attest

        return attest(step.model, self.key.public_key, settings)

    def _attestation(self, model: str, *, verify: bool) -> Callable[[FlowSettings], Flow]:
        check_extra()
        from prem_core._protocol.attestation import flow

        return functools.partial(flow.verified if verify else flow.collected, model, self.key.public_key)

    @property
    def _needs_key(self) -> bool:
        """Whether requests are sealed to the enclave's public key."""
        return self._settings.keys is None

    def build_request(
        self, client: httpx.Client | httpx.AsyncClient, step: Send, timeout: Timeout = None
    ) -> httpx.Request:
        """The HTTP request for a step, with `timeout` in place of the client's own."""
        chosen = timeout if timeout is not None else self._whole_timeout if step.whole else self._timeout
        if step.party == "collateral":
            # Not through `client.build_request`, which adds the headers and cookies of a caller's own client.
            return httpx.Request(
                step.method,
                step.path,
                params=step.query or None,
                headers=_HEADERS,
                extensions={"timeout": httpx.Timeout(chosen).as_dict()},
            )
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
            headers=self._headers[step.party, step.whole],
            params=step.query or None,
            timeout=chosen,
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
        self._http = httpx.Client(**httpx_options(self._all_urls))
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
            self._preparations = {}
            if self._close_http is not None:
                self._connect()
        return SyncDriver(
            self._http,
            self.build_request if timeout is None else functools.partial(self.build_request, timeout=timeout),
            self.key,
            self.fetch_key if deadline is None else functools.partial(self.fetch_key, deadline=deadline),
            functools.partial(self._prepare, timeout=timeout, deadline=deadline),
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

    def _prepare(self, step: Attest | Probe, timeout: Timeout, deadline: float | None) -> Verdict | bool:
        def run() -> Verdict | bool:
            settings = dataclasses.replace(self._settings, deadline=deadline)
            outcome: Verdict | None = self._driver(timeout, deadline).run(self._preparation(step, settings))
            return outcome or True

        if self._needs_key:
            self.fetch_key(deadline=deadline)
        if (outcome := self._outcome(step)) is not None:
            return outcome
        return self._shared(step).get(functools.partial(self._outcome, step), run, deadline)

    def attest(self, model: str, *, verify: bool = True) -> Any:
        """The `AttestationReport` of a model's enclave; without `verify` its `Evidence`."""
        if self._needs_key:
            self.fetch_key()
        return self.run(self._attestation(model, verify=verify))


class AsyncRequester(_Requester):
    """Runs flows asynchronously, with connections for each event loop."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        http_client = options["http_client"]
        if http_client is not None and not isinstance(http_client, httpx.AsyncClient):
            raise ConfigurationError("http_client must be an httpx.AsyncClient (PremClient takes a Client)")
        self._loops = LoopClients(http_client, self._all_urls)
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
            functools.partial(self._prepare, loop, timeout),
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

    async def _prepare(self, loop: LoopClient, timeout: Timeout, step: Attest | Probe) -> Verdict | bool:
        async def run() -> Verdict | bool:
            driver = await self._driver(timeout, None)
            outcome: Verdict | None = await driver.run(self._preparation(step, self._settings))
            return outcome or True

        if self._needs_key:
            await self._fetch_key(loop, None)
        if (outcome := self._outcome(step)) is not None:
            return outcome
        return await self._shared(step).get_async(
            functools.partial(self._outcome, step), run, loop.prepare_lock
        )

    async def attest(self, model: str) -> Any:
        """The `AttestationReport` of a model's enclave."""
        if self._needs_key:
            await self.fetch_key()
        return await self.run(self._attestation(model, verify=True))


def _checked(timeout: Timeout) -> Timeout:
    if timeout is not None and not isinstance(timeout, httpx.Timeout):
        _config.positive("timeout", timeout)
    return timeout


def _read_timeout(timeout: float | httpx.Timeout | None) -> float | None:
    return timeout.read if isinstance(timeout, httpx.Timeout) else timeout
