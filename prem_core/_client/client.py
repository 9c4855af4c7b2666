"""The two clients.

They differ in `await` alone: the exchange decides, a driver performs.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import os
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any, NoReturn, Self

import httpx

from prem_core import _config
from prem_core._client.audio import AsyncAudio, Audio
from prem_core._client.chat import AsyncChat, Chat
from prem_core._client.models import AsyncModels, Models
from prem_core._crypto.keys import EncryptionKeys
from prem_core._crypto.redaction import without_traceback
from prem_core._crypto.xwing import PublicKey
from prem_core._errors import APITimeoutError, ConfigurationError, PremError
from prem_core._protocol import flow
from prem_core._protocol.response_body import parse_public_key
from prem_core._protocol.retry import TOTAL_TIMEOUT_MESSAGE, RetryPolicy
from prem_core._rate_limit.limiter import Stats
from prem_core._rate_limit.limits import Limits, limits_of
from prem_core._transport.aio import AsyncDriver
from prem_core._transport.http import LIMITS, Endpoints, no_cookies, ssl_context
from prem_core._transport.loops import LoopClient, LoopClients
from prem_core._transport.sync import SyncDriver


class _ClientBase:
    """What both clients are made from; see `PremClient` for the arguments."""

    def __init__(
        self,
        *,
        api_key: str | None,
        gateway_url: str | None,
        enclave_url: str | None,
        enclave_public_key: PublicKey | bytes | str | None,
        encryption_keys: EncryptionKeys | None,
        timeout: float | httpx.Timeout,
        max_buffer_size: int,
        max_retries: int,
        total_timeout: float | None,
        stream_chunk_timeout: float | None,
        max_concurrency: int | None,
        requests_per_second: float | None,
        limits: Limits | None,
        allow_insecure: bool,
    ) -> None:
        for name, seconds in (
            ("total_timeout", total_timeout),
            ("stream_chunk_timeout", stream_chunk_timeout),
        ):
            if seconds is not None:
                _config.positive(name, seconds)
        if _checked(timeout) is None:
            raise ConfigurationError("timeout must be a number of seconds above 0, or an httpx.Timeout")
        if encryption_keys is not None and not isinstance(encryption_keys, EncryptionKeys):
            raise ConfigurationError("encryption_keys must be what generate_encryption_keys() gives")
        self._endpoints = Endpoints(
            gateway_url=_config.resolve_url(
                "gateway_url", gateway_url, _config.DEFAULT_GATEWAY_URL, allow_insecure=allow_insecure
            ),
            enclave_url=_config.resolve_url(
                "enclave_url", enclave_url, _config.DEFAULT_ENCLAVE_URL, allow_insecure=allow_insecure
            ),
            timeout=timeout,
            api_key=_config.resolve_api_key(api_key),
        )
        pinned = None if enclave_public_key is None else parse_public_key(enclave_public_key)
        self._settings = flow.Settings(
            retry=RetryPolicy(max_retries=_config.not_negative("max_retries", max_retries)),
            max_buffer_size=int(
                _config.positive("max_buffer_size", _config.not_negative("max_buffer_size", max_buffer_size))
            ),
            keys=encryption_keys,
            pinned=pinned is not None,
            limited=True,
            chunk_timeout=_read_timeout(timeout) if stream_chunk_timeout is None else stream_chunk_timeout,
        )
        self._own_chunk_timeout = stream_chunk_timeout is not None
        self._total_timeout = total_timeout
        self._limits = limits_of(limits, max_concurrency, requests_per_second)
        #: The enclave's key once known, shared by every caller of this client.
        self._key = pinned
        #: How many fetches of it have failed, and how the last one did.
        self._failures = 0
        self._failure: PremError | None = None

    @property
    def limits(self) -> Limits:
        """What may be on its way at once. Give it to another client or model to share it."""
        return self._limits

    @property
    def stats(self) -> Stats:
        """Counts of requests, retries and refusals, over every client that shares these `limits`."""
        return self._limits.stats

    def _call_settings(self, timeout: float | httpx.Timeout | None = None) -> flow.Settings:
        """The settings of a call that begins now, with a timeout of its own where given."""
        settings = self._settings
        if _checked(timeout) is not None and not self._own_chunk_timeout:
            settings = dataclasses.replace(settings, chunk_timeout=_read_timeout(timeout))
        if self._total_timeout is not None:
            settings = dataclasses.replace(settings, deadline=settings.clock() + self._total_timeout)
        return settings

    def _known_key(self, stale: PublicKey | None) -> PublicKey | None:
        # Somebody else may have refetched the key since the caller's was refused.
        return self._key if self._key is not None and self._key != stale else None

    @contextlib.contextmanager
    def _sharing_failure(self, deadline: float | None = None) -> Iterator[None]:
        try:
            yield
        except PremError as error:
            if deadline is not None and time.monotonic() >= deadline:
                raise  # that was this call's own time
            # A copy has no traceback, and with it no frames of a call that is over.
            self._failure = copy.copy(error)
            self._failures += 1
            raise

    def _raise_shared(self, failures: int) -> None:
        # A fetch that failed while this caller waited failed for it too: asking again, each in turn, would
        # keep the last of them waiting for the sum of all timeouts.
        if self._failures != failures and self._failure is not None:
            raise copy.copy(self._failure)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(gateway_url={self._endpoints.gateway_url!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} holds connections and is not pickled; make one per process")


class PremClient(_ClientBase):
    """Prem's encrypted API, synchronously. Safe to share between threads.

    Every request is sealed on this machine, to the enclave's key, under a secret of its own; the gateway
    that authenticates and meters it sees ciphertext. Settings come from the argument, else the environment,
    else the default.

    Args:
        api_key: Begins with ``sk_live`` or ``sk_test``. Environment: PREM_API_KEY.
        gateway_url: The gateway. Environment: PREM_GATEWAY_URL, PROXY_URL.
        enclave_url: The enclave, asked for its public key. Environment: PREM_ENCLAVE_URL, ENCLAVE_URL.
        enclave_public_key: The enclave's X-Wing key (1216 bytes: raw, hex or base64), pinned: it is used
            instead of a fetched one, and a service that no longer holds its match is an error.
        encryption_keys: One KEM result for all requests (see `EncryptionKeys`) instead of a fresh one each.
        timeout: Seconds to wait for a connection, for the answer to begin, and between its pieces; or
            an ``httpx.Timeout``.
        total_timeout: Seconds for a whole call, until its answer is whole: waiting for its turn, every try, and
            whatever the taker of a stream does meanwhile. None for no such limit.
        stream_chunk_timeout: Seconds between the chunks of a stream, and from its beginning to its first one;
            a gateway's comments do not count. It is seen when bytes come, or when none have come for as long (at
            most for `timeout`). None for `timeout`.
        max_buffer_size: Bytes of one event, or one body, that may be held before it is an error.
        max_retries: Tries after the first; 3 means at most 4 requests. Nothing is tried again once
            the first chunk of an answer has come.
        max_concurrency: Requests on their way at once, streams until they are whole, closed or forgotten; the
            others wait, in the order they came. None for any number.
        requests_per_second: Requests that begin, in the long run; None for as many as the service takes.
        limits: A `Limits` to share with other clients and models, in place of these two.
        http_client: An ``httpx.Client`` of your own (a proxy, client certificates). It is not closed here.
        allow_insecure: Allow plain http to another machine, where the API key can be read on the way.

    Raises:
        ConfigurationError: A setting cannot work; the message names it.
        EnclaveKeyError: `enclave_public_key` is not an X-Wing key.

    Example:
        >>> with PremClient() as client:  # doctest: +SKIP
        ...     answer = client.chat.completions.create(
        ...         model="openai/gpt-oss-120b", messages=[{"role": "user", "content": "Hello!"}]
        ...     )
        ...     print(answer.choices[0].message.content)
    """

    @without_traceback
    def __init__(
        self,
        *,
        api_key: str | None = None,
        gateway_url: str | None = None,
        enclave_url: str | None = None,
        enclave_public_key: PublicKey | bytes | str | None = None,
        encryption_keys: EncryptionKeys | None = None,
        timeout: float | httpx.Timeout = _config.DEFAULT_TIMEOUT,
        max_buffer_size: int = _config.DEFAULT_MAX_BUFFER_SIZE,
        max_retries: int = _config.DEFAULT_MAX_RETRIES,
        total_timeout: float | None = None,
        stream_chunk_timeout: float | None = None,
        max_concurrency: int | None = _config.DEFAULT_MAX_CONCURRENCY,
        requests_per_second: float | None = None,
        limits: Limits | None = None,
        http_client: httpx.Client | None = None,
        allow_insecure: bool = False,
    ) -> None:
        super().__init__(
            api_key=api_key,
            gateway_url=gateway_url,
            enclave_url=enclave_url,
            enclave_public_key=enclave_public_key,
            encryption_keys=encryption_keys,
            timeout=timeout,
            max_buffer_size=max_buffer_size,
            max_retries=max_retries,
            total_timeout=total_timeout,
            stream_chunk_timeout=stream_chunk_timeout,
            max_concurrency=max_concurrency,
            requests_per_second=requests_per_second,
            limits=limits,
            allow_insecure=allow_insecure,
        )
        if http_client is not None and not isinstance(http_client, httpx.Client):
            raise ConfigurationError("http_client must be an httpx.Client (AsyncPremClient takes the other)")
        self._closer: weakref.finalize[..., Any] | None = None
        if http_client is None:
            self._connect()
        else:
            self._http = http_client
        self._key_lock = threading.Lock()

    def _connect(self) -> None:
        self._http = httpx.Client(verify=ssl_context(), limits=LIMITS, cookies=no_cookies())
        # A client that nobody closed gives its sockets back when it is collected.
        self._closer = weakref.finalize(self, self._http.close)
        self._process = os.getpid()

    # Made when asked for: a client that held them would be in a cycle, and only a full collection would
    # give the sockets of one that nobody closed back.
    @property
    def chat(self) -> Chat:
        """``client.chat.completions.create(…)``."""
        return Chat(self)

    @property
    def audio(self) -> Audio:
        """``client.audio.transcriptions.create(…)`` and ``client.audio.translations.create(…)``."""
        return Audio(self)

    @property
    def models(self) -> Models:
        """``client.models.list()``."""
        return Models(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. The client cannot be used after that."""
        if self._closer is not None:
            self._closer()

    def _driver(
        self, timeout: float | httpx.Timeout | None = None, deadline: float | None = None
    ) -> SyncDriver:
        if self._http.is_closed:
            raise ConfigurationError("the client is closed")
        if self._closer is not None and self._process != os.getpid():
            # After a fork: two processes on one connection would mix their requests and share TLS's keys.
            self._connect()
            self._key_lock = threading.Lock()
        fetch_key = self._fetch_key
        if deadline is not None:
            fetch_key = functools.partial(fetch_key, deadline=deadline)
        timeout = _checked(timeout)
        return SyncDriver(
            self._http, self._endpoints, fetch_key, timeout, limits=self._limits, deadline=deadline
        )

    def _fetch_key(self, stale: PublicKey | None, deadline: float | None = None) -> PublicKey:
        if (known := self._known_key(stale)) is not None:
            return known
        failures = self._failures
        left = -1.0 if deadline is None else max(0.0, deadline - time.monotonic())
        lock = self._key_lock
        if not lock.acquire(timeout=min(left, threading.TIMEOUT_MAX)):
            raise APITimeoutError(TOTAL_TIMEOUT_MESSAGE)
        try:
            # Asked again under the lock: whoever held it was fetching, for all who waited.
            if (known := self._known_key(stale)) is None:
                self._raise_shared(failures)
                settings = dataclasses.replace(self._settings, deadline=deadline)
                driver = self._driver(deadline=deadline)
                with self._sharing_failure(deadline):
                    known = self._key = driver.run(flow.fetch_public_key(settings))
                driver.close()
            return known
        finally:
            lock.release()


class AsyncPremClient(_ClientBase):
    """`PremClient` for asyncio, with the same arguments.

    One object may be used over several event loops, one after the other or at once in several threads:
    each loop has its own connections. `http_client`, where given, is an ``httpx.AsyncClient`` and bound to
    the loop it is used on first.
    """

    @without_traceback
    def __init__(
        self,
        *,
        api_key: str | None = None,
        gateway_url: str | None = None,
        enclave_url: str | None = None,
        enclave_public_key: PublicKey | bytes | str | None = None,
        encryption_keys: EncryptionKeys | None = None,
        timeout: float | httpx.Timeout = _config.DEFAULT_TIMEOUT,
        max_buffer_size: int = _config.DEFAULT_MAX_BUFFER_SIZE,
        max_retries: int = _config.DEFAULT_MAX_RETRIES,
        total_timeout: float | None = None,
        stream_chunk_timeout: float | None = None,
        max_concurrency: int | None = _config.DEFAULT_MAX_CONCURRENCY,
        requests_per_second: float | None = None,
        limits: Limits | None = None,
        http_client: httpx.AsyncClient | None = None,
        allow_insecure: bool = False,
    ) -> None:
        super().__init__(
            api_key=api_key,
            gateway_url=gateway_url,
            enclave_url=enclave_url,
            enclave_public_key=enclave_public_key,
            encryption_keys=encryption_keys,
            timeout=timeout,
            max_buffer_size=max_buffer_size,
            max_retries=max_retries,
            total_timeout=total_timeout,
            stream_chunk_timeout=stream_chunk_timeout,
            max_concurrency=max_concurrency,
            requests_per_second=requests_per_second,
            limits=limits,
            allow_insecure=allow_insecure,
        )
        if http_client is not None and not isinstance(http_client, httpx.AsyncClient):
            raise ConfigurationError("http_client must be an httpx.AsyncClient (PremClient takes a Client)")
        self._loops = LoopClients(http_client)
        self._closed = False

    @property
    def chat(self) -> AsyncChat:
        """``await client.chat.completions.create(…)``."""
        return AsyncChat(self)

    @property
    def audio(self) -> AsyncAudio:
        """``await client.audio.transcriptions.create(…)`` and its sister."""
        return AsyncAudio(self)

    @property
    def models(self) -> AsyncModels:
        """``await client.models.list()``."""
        return AsyncModels(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the running loop's connections; those of other loops close when these end. No call is made after it."""
        self._closed = True
        await self._loops.close()

    aclose = close

    async def _driver(
        self, timeout: float | httpx.Timeout | None = None, deadline: float | None = None
    ) -> AsyncDriver:
        if self._closed:
            raise ConfigurationError("the client is closed")
        return self._driver_on(await self._loops.current(), _checked(timeout), deadline)

    def _driver_on(
        self, state: LoopClient, timeout: float | httpx.Timeout | None = None, deadline: float | None = None
    ) -> AsyncDriver:
        async def fetch_key(stale: PublicKey | None) -> PublicKey:
            if (known := self._known_key(stale)) is not None:
                return known
            failures = self._failures
            async with state.key_lock:
                if (known := self._known_key(stale)) is None:
                    self._raise_shared(failures)
                    driver = self._driver_on(state)
                    with self._sharing_failure():
                        known = self._key = await driver.run(flow.fetch_public_key(self._settings))
                    await driver.close()
                return known

        return AsyncDriver(
            state.http, self._endpoints, fetch_key, timeout, limits=self._limits, deadline=deadline
        )


def _checked(timeout: float | httpx.Timeout | None) -> float | httpx.Timeout | None:
    if timeout is not None and not isinstance(timeout, httpx.Timeout):
        _config.positive("timeout", timeout)
    return timeout


def _read_timeout(timeout: float | httpx.Timeout | None) -> float | None:
    return timeout.read if isinstance(timeout, httpx.Timeout) else timeout
