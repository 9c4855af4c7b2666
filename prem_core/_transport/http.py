"""The use of httpx that both drivers share: TLS, timeouts, large bodies and the translation of errors.

An httpx error never leaves this package, not even as a cause: it contains the request, and so the API key.
"""

from __future__ import annotations

import functools
import os
import ssl
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import certifi
import httpx

from prem_core import _errors as errors
from prem_core._config import is_loopback
from prem_core._crypto.xwing import PublicKey
from prem_core._protocol.request_body import SealedBody
from prem_core._protocol.steps import ResponseHead, Send

#: A stream occupies its connection until it ends. With httpx's default of 100 connections, the 101st stream would wait.
POOL_LIMITS: Final = httpx.Limits(max_connections=1000, max_keepalive_connections=100)

#: Our error for each httpx error; the first match applies. The messages are ours, because httpx's can quote a header.
#: The last value says whether the whole request may have arrived at the service.
HTTPX_ERROR_MAP: Final[tuple[tuple[type[Exception], type[errors.APIConnectionError], str, bool], ...]] = (
    (httpx.ConnectTimeout, errors.APITimeoutError, "connecting timed out", False),
    (httpx.PoolTimeout, errors.APITimeoutError, "no free connection within the timeout", False),
    (httpx.WriteTimeout, errors.APITimeoutError, "sending the request timed out", False),
    (httpx.ReadTimeout, errors.APITimeoutError, "waiting for the service timed out", True),
    (httpx.TimeoutException, errors.APITimeoutError, "the request timed out", True),
    (httpx.ConnectError, errors.APIConnectionError, "the connection could not be opened", False),
    (httpx.ProxyError, errors.APIConnectionError, "the HTTP proxy rejected the connection", False),
    (httpx.WriteError, errors.APIConnectionError, "the connection broke while the request was sent", False),
    (httpx.HTTPError, errors.APIConnectionError, "the connection broke", True),
    (httpx.InvalidURL, errors.APIConnectionError, "the URL is invalid", False),
    (httpx.StreamError, errors.APIConnectionError, "the stream was closed", True),
)


def translate(error: Exception, party: str, *, reading: bool) -> errors.APIConnectionError:
    """Our error for an httpx error.

    Args:
        error: One of the classes in `HTTPX_ERROR_MAP`.
        party: The destination: "gateway" or "enclave".
        reading: Whether the response had started. A connection error then means that the answer is truncated.
    """
    kind, text, sent = next(
        (kind, text, sent) for foreign, kind, text, sent in HTTPX_ERROR_MAP if isinstance(error, foreign)
    )
    if reading and kind is errors.APIConnectionError:
        return errors.StreamInterruptedError(f"{party}: the connection broke in the middle of the response")
    translated = kind(f"{party}: {text}")
    translated.request_sent = sent or reading
    return translated


HTTPX_ERRORS: Final = tuple(foreign for foreign, *_ in HTTPX_ERROR_MAP)


@functools.cache
def ssl_context() -> ssl.SSLContext:
    """One TLS context for all clients, because reading the certificates takes 10 to 40 ms.

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


def httpx_options(urls: Iterable[str]) -> dict[str, Any]:
    """The arguments of every httpx client that connects to `urls`, synchronous or asynchronous.

    - An HTTP proxy of the environment is not used for URLs on this machine. Over plain http it would get the API key,
      and could replace the enclave's key.
    - Cookies are not kept. httpx would send them back, and a cookie can link requests that the API key does not link.
    """
    hosts = {urlsplit(url).hostname or "" for url in urls}
    direct = {f"all://[{host}]" if ":" in host else f"all://{host}" for host in hosts if is_loopback(host)}
    return {
        "verify": ssl_context(),
        "limits": POOL_LIMITS,
        "cookies": CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        "mounts": dict.fromkeys(direct),
    }


class BuildRequest(Protocol):
    """Builds the HTTP request for a `Send` step."""

    def __call__(self, client: httpx.Client | httpx.AsyncClient, step: Send) -> httpx.Request: ...


def auth_of(step: Send) -> Any:
    """Whether the `auth` of a caller's own httpx client applies: to the service, and to no further party."""
    return None if step.party == "collateral" else httpx.USE_CLIENT_DEFAULT


class KnownKey(Protocol):
    """Has the enclave's public key; None until it was fetched."""

    public_key: PublicKey | None


class BodyStream(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A large request body, sent in parts.

    httpx has no type for a body of known length that synchronous and asynchronous clients can both send.
    """

    def __init__(self, body: SealedBody) -> None:
        self._body: Iterable[bytes] = body

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self._body:
            yield part

    def release(self) -> None:
        """Free the body after it was sent.

        httpx's response is in a reference cycle with its request. Without this call a recording would stay in memory
        until a full garbage collection.
        """
        self._body = ()


def response_head(response: httpx.Response, read_timeout: float | None) -> ResponseHead:
    """Status and headers of `response`.

    Args:
        response: The response, its body not read.
        read_timeout: Applies to the body if it is shorter than the call's timeout.

    Raises:
        APIResponseValidationError: The status is a success, and the body has a content coding. For an error, the status
            matters more: drivers then give an empty body.
    """
    if response.is_success and is_coded(response):
        raise errors.APIResponseValidationError(
            f"the response has the content encoding {response.headers['content-encoding'][:60]!r}, "
            "which was not requested and is not decoded: check the proxies between you and the service"
        )
    if read_timeout is not None:
        # httpcore reads this value when the first read of the body starts, which is later.
        timeout = response.request.extensions["timeout"]
        read = timeout.get("read")
        timeout["read"] = read_timeout if read is None else min(read, read_timeout)
    return ResponseHead(
        response.status_code, {k.lower(): v for k, v in response.headers.items()}, time.time()
    )


def is_coded(response: httpx.Response) -> bool:
    """Whether the body has a content coding, such as gzip.

    No request accepts one, and nothing is decoded: 260 bytes can decode to a gigabyte.
    """
    codings = response.headers.get_list("content-encoding", split_commas=True)
    return any(coding.strip().lower() not in ("", "identity") for coding in codings)


#: After the answer is complete, a driver waits for the end of the response for at most these seconds and reads.
DRAIN_TIMEOUT: Final = 0.25
DRAIN_MAX_READS: Final = 16


def limit_to_deadline(request: httpx.Request, deadline: float) -> None:
    """Limit each step of `request` (connecting, sending, waiting for the response) to the time before `deadline`."""
    # httpcore uses this same object, and reads the timeout of each step when the step starts.
    timeout: dict[str, float | None] = request.extensions["timeout"]

    def shorten(*_: object) -> None:
        left = max(deadline - time.monotonic(), 0.001)  # 0 would make the socket non-blocking
        for name, seconds in timeout.items():
            timeout[name] = left if seconds is None else min(seconds, left)

    shorten()
    request.extensions["trace"] = shorten
