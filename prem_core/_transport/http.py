"""What both drivers share of httpx: TLS, timeouts, large bodies, and the table of its errors.

An httpx error never leaves this package, not even as a cause: it holds the request, and with it the API key.
"""

from __future__ import annotations

import functools
import os
import ssl
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Final, Protocol

import certifi
import httpx

from prem_core import _errors as errors
from prem_core._crypto.xwing import PublicKey
from prem_core._protocol.flow import ResponseHead, Send
from prem_core._protocol.request_body import SealedBody

#: A stream holds its connection until it ends; with httpx's default of 100, the 101st would wait.
POOL_LIMITS: Final = httpx.Limits(max_connections=1000, max_keepalive_connections=100)

#: Our error for each of httpx's, the first match counts. The texts are ours: httpx's can quote a header.
HTTPX_ERROR_MAP: Final[tuple[tuple[type[Exception], type[errors.APIConnectionError], str], ...]] = (
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
    """Our error for an httpx error.

    Args:
        error: One of the classes in `HTTPX_ERROR_MAP`.
        party: The other side: "gateway" or "enclave".
        reading: Whether the response had started: a connection that breaks then has truncated the answer.
    """
    kind, text = next((kind, text) for foreign, kind, text in HTTPX_ERROR_MAP if isinstance(error, foreign))
    if reading and kind is errors.APIConnectionError:
        return errors.StreamInterruptedError(f"{party}: the connection broke in the middle of the response")
    return kind(f"{party}: {text}")


HTTPX_ERRORS: Final = tuple(foreign for foreign, _, _ in HTTPX_ERROR_MAP)


@functools.cache
def ssl_context() -> ssl.SSLContext:
    """One TLS context for all clients: reading the certificates takes 10 to 40 ms.

    SSL_CERT_FILE, or else SSL_CERT_DIR, replaces certifi's certificates, as it does for httpx.

    Raises:
        ConfigurationError: The certificates in SSL_CERT_FILE cannot be read.
    """
    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    if not file:
        return ssl.create_default_context(capath=folder, cafile=None if folder else certifi.where())
    try:
        return ssl.create_default_context(cafile=file)
    except OSError as error:
        raise errors.ConfigurationError(f"could not read certificates from SSL_CERT_FILE: {error}") from None


def no_cookies() -> CookieJar:
    """A cookie jar that stays empty. httpx would send back what the gateway sets, and a cookie links requests that
    the API key does not link."""
    return CookieJar(DefaultCookiePolicy(allowed_domains=[]))


class BuildRequest(Protocol):
    """Makes the HTTP request for a `Send` step."""

    def __call__(self, client: httpx.Client | httpx.AsyncClient, step: Send) -> httpx.Request: ...


class KnownKey(Protocol):
    """Holds the enclave's public key, once it is known."""

    public_key: PublicKey | None


class BodyStream(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A large request body, written in parts. httpx has no form for a body that both kinds of client can send and whose
    length is known."""

    def __init__(self, body: SealedBody) -> None:
        self._body: Iterable[bytes] = body

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self._body:
            yield part

    def release(self) -> None:
        """Drop the body once it was sent. httpx's response refers to itself and to its request: without this, a
        recording would stay in memory until a full garbage collection."""
        self._body = ()


def response_head(response: httpx.Response, read_timeout: float | None) -> ResponseHead:
    """Status and headers of `response`; its body is read with `read_timeout` where that is shorter than the call's."""
    if read_timeout is not None:
        # httpcore reads this when the body's first bytes are asked for, which they have not been yet.
        timeout = response.request.extensions["timeout"]
        read = timeout.get("read")
        timeout["read"] = read_timeout if read is None else min(read, read_timeout)
    return ResponseHead(
        response.status_code, {k.lower(): v for k, v in response.headers.items()}, time.time()
    )


def is_decoded(response: httpx.Response) -> bool:
    """Whether httpx has to decode the body.

    We ask for no content coding, but a gateway may apply one all the same. Without one, the raw bytes are the body, and
    reading them directly is faster. A body that a transport delivered whole was consumed already; only httpx's decoding
    iterator gives it again.
    """
    return "content-encoding" in response.headers or response.is_stream_consumed


#: Seconds, and reads, for which a driver waits for the end of the connection's response after the answer is complete.
DRAIN_TIMEOUT: Final = 0.25
DRAIN_MAX_READS: Final = 16


def limit_to_deadline(request: httpx.Request, deadline: float) -> None:
    """Let no step of `request` (connecting, writing, waiting for the response) last beyond `deadline`."""
    # httpcore has the same object, and reads the timeout of each step when that step starts.
    timeout: dict[str, float | None] = request.extensions["timeout"]

    def shorten(*_: object) -> None:
        left = max(deadline - time.monotonic(), 0.001)  # 0 would mean: do not block
        for name, seconds in timeout.items():
            timeout[name] = left if seconds is None else min(seconds, left)

    shorten()
    request.extensions["trace"] = shorten
