"""The edge: exchanges driven over httpx, synchronously and asynchronously.

The rule of this file: no decisions. A driver does what a step says and gives back what came, or
throws one of this package's errors into the exchange. An httpx error never leaves this file, not even
as a cause: it holds the request, and with it the API key.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import ssl
import time
from collections.abc import (
    AsyncIterator,
    Iterable,
    Iterator,
)
from dataclasses import dataclass, field
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Final, TypeVar

import certifi
import httpx

from prem_core import _errors as errors
from prem_core._protocol.flow import (
    Head,
    Send,
)
from prem_core._protocol.request_body import SealedBody
from prem_core._rate_limit.limits import Turn
from prem_core._version import __version__

R = TypeVar("R")

#: Streams hold their connection for as long as they run; httpx's own 100 would make the 101st wait.
LIMITS: Final = httpx.Limits(max_connections=1000, max_keepalive_connections=100)

#: What each of httpx's failures is to our callers. The texts are ours: httpx's can quote a header.
TRANSLATIONS: Final[tuple[tuple[type[Exception], type[errors.APIConnectionError], str], ...]] = (
    (httpx.ConnectTimeout, errors.APITimeoutError, "connecting timed out"),
    (httpx.PoolTimeout, errors.APITimeoutError, "no free connection within the timeout"),
    (httpx.WriteTimeout, errors.APITimeoutError, "sending the request timed out"),
    (httpx.ReadTimeout, errors.APITimeoutError, "waiting for the service timed out"),
    (httpx.TimeoutException, errors.APITimeoutError, "the request timed out"),
    (httpx.ConnectError, errors.APIConnectionError, "the connection could not be made"),
    (httpx.ProxyError, errors.APIConnectionError, "the HTTP proxy on the way refused the connection"),
    (httpx.HTTPError, errors.APIConnectionError, "the connection broke"),
    (httpx.InvalidURL, errors.APIConnectionError, "the URL could not be used"),
    (httpx.StreamError, errors.APIConnectionError, "the stream was closed"),
)


def translate(error: Exception, party: str, *, reading: bool) -> errors.APIConnectionError:
    """The error of ours that an httpx failure stands for.

    Args:
        error: Anything in `TRANSLATIONS`.
        party: Who was being talked to: "gateway" or "enclave".
        reading: Whether the reply had begun: a connection that breaks then has cut the answer.
    """
    kind, text = next((kind, text) for foreign, kind, text in TRANSLATIONS if isinstance(error, foreign))
    if reading and kind is errors.APIConnectionError:
        return errors.StreamInterruptedError(f"{party}: the connection broke in the middle of the answer")
    return kind(f"{party}: {text}")


_FOREIGN: Final = tuple(foreign for foreign, _, _ in TRANSLATIONS)


@functools.lru_cache(maxsize=64)
def _url(text: str) -> httpx.URL:
    # The same few URLs for every request; parsing one costs as much as sealing a prompt.
    return httpx.URL(text)


@functools.cache
def ssl_context() -> ssl.SSLContext:
    """One TLS context for every client: reading the certificates takes some 10 to 40 ms.

    SSL_CERT_FILE, or else SSL_CERT_DIR, stands in for certifi's certificates, as it does for httpx.

    Raises:
        ConfigurationError: There are no certificates in the file that SSL_CERT_FILE names.
    """
    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    if not file:
        return ssl.create_default_context(capath=folder, cafile=None if folder else certifi.where())
    try:
        return ssl.create_default_context(cafile=file)
    except OSError as error:
        raise errors.ConfigurationError(f"SSL_CERT_FILE: no certificates can be read: {error}") from None


def no_cookies() -> CookieJar:
    """A jar that stays empty: httpx would keep what the gateway sets, and a cookie tells one request's sender from
    another's where keys do not."""
    return CookieJar(DefaultCookiePolicy(allowed_domains=[]))


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where each party is, how to authenticate, and how long to wait (seconds)."""

    gateway_url: str
    enclave_url: str
    timeout: float | httpx.Timeout
    api_key: str | None = field(default=None, repr=False)

    def request(
        self,
        client: httpx.Client | httpx.AsyncClient,
        step: Send,
        timeout: float | httpx.Timeout | None = None,
    ) -> httpx.Request:
        """The HTTP request that a `Send` describes; `timeout` in place of the client's own."""
        url = _url((self.gateway_url if step.party == "gateway" else self.enclave_url) + step.path)
        headers = {
            "accept": "text/event-stream, application/json",
            # Sealed bytes do not compress, and a reply that is not unpacked cannot be a bomb.
            "accept-encoding": "identity",
            "user-agent": f"prem-encrypted/{__version__}",
        }
        if step.body is not None:
            headers["content-type"] = "application/json"
        if step.party == "gateway" and self.api_key:
            headers["authorization"] = f"Bearer {self.api_key}"
        large = step.body if isinstance(step.body, SealedBody) else None
        request = client.build_request(
            step.method,
            url,
            content=None if isinstance(step.body, SealedBody) else step.body,
            headers=headers,
            params=step.query or None,
            timeout=self.timeout if timeout is None else timeout,
        )
        if large is not None:
            # httpx has no form for a body that either kind of client can send, and whose length is known.
            request.stream = _Pieces(large)
            request.headers["content-length"] = str(large.length)
        return request


class _Pieces(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A large body, written piece by piece."""

    def __init__(self, body: SealedBody) -> None:
        self._body: Iterable[bytes] = body

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._body:
            yield piece


def _let_go(request: httpx.Request) -> None:
    # httpx's response refers to itself and to the request: a recording would stay until a full collection.
    if isinstance(request.stream, _Pieces):
        request.stream._body = ()


def _head(response: httpx.Response) -> Head:
    return Head(response.status_code, {k.lower(): v for k, v in response.headers.items()}, time.time())


def _is_coded(response: httpx.Response) -> bool:
    # We ask for no content coding; a gateway may apply one all the same. Without one, the raw bytes are
    # the body, and taking them saves a round of decoding for every piece. A body that a transport gave
    # whole has been consumed already, and only the other iterator gives it again.
    return "content-encoding" in response.headers or response.is_stream_consumed


#: How long an answer that is whole waits for its connection's end, in seconds, and for how many pieces.
LINGER: Final = 0.25
MAX_DRAINED: Final = 16


def _shut_down(response: httpx.Response) -> None:
    if response.is_closed:  # its connection may serve another request by now
        return
    # HTTP/2 has other answers on the same socket.
    stream = response.extensions.get("network_stream")
    sock = stream.get_extra_info("socket") if stream and response.http_version.startswith("HTTP/1") else None
    if sock is not None:
        with contextlib.suppress(OSError):
            # Not SSLSocket's own, which would make a thread inside it read in the clear.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _end(response: httpx.Response, pieces: Iterator[bytes] | None = None, turn: Turn | None = None) -> None:
    del pieces
    try:
        # Closing a socket does not wake a thread that waits on it, nor tell the service; this does both.
        _shut_down(response)
        response.close()
    finally:
        if turn is not None:
            turn.give_back()


def _read_within(response: httpx.Response | None, seconds: float) -> None:
    # httpcore looks it up when a body's first bytes are asked for, which they have not been yet.
    timeout = response.request.extensions.get("timeout") if response is not None else None
    if isinstance(timeout, dict):
        read = timeout.get("read")
        timeout["read"] = seconds if read is None else min(read, seconds)


def _end_by(request: httpx.Request, deadline: float) -> None:
    """Let no step of `request` (connecting, writing, waiting for the answer) go on beyond `deadline`."""
    # httpcore has the same object, and looks each step's timeout up when that step begins.
    timeout: dict[str, float | None] = request.extensions["timeout"]

    def shorten(*_: object) -> None:
        left = max(deadline - time.monotonic(), 0.001)  # 0 would mean: do not block
        for name, each in timeout.items():
            timeout[name] = left if each is None else min(each, left)

    shorten()
    request.extensions["trace"] = shorten
