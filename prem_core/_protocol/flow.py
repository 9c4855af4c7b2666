"""One request, from its parameters to its result, without touching the network.

A flow is a generator. It yields two kinds of things:

- A `Step`: what the driver should do next (get a permit, send, read, …). The driver sends the outcome back into the
  generator, or throws the `PremError` that the step failed with.
- Anything else: a result for the caller. A streamed chat yields its chunks. Every other flow yields one result.

All decisions are here: which key and nonce, whether to retry, when an answer is complete, what an error means. The
drivers in `_transport` perform steps and decide nothing, so that `PremClient` and `AsyncPremClient` behave alike.

The steps of one request: key (if unknown) → permit → seal → send → read → decode → open → chunk.

Pydantic reads the responses. It is imported with the first request and not with the package, because it doubles the
import time.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from prem_core import _errors as errors
from prem_core._crypto.aead import new_nonce
from prem_core._crypto.keys import EncryptionKeys
from prem_core._crypto.xwing import PublicKey
from prem_core._protocol.assumptions import EVENT_STREAM, PUBLIC_KEY_PATH
from prem_core._protocol.error_body import MAX_ERROR_BODY, is_key_rotation_error, status_error
from prem_core._protocol.request_body import Body, audio_body, chat_body
from prem_core._protocol.response_body import (
    BodyReader,
    open_completion,
    open_response,
    read_models,
    read_public_key,
)
from prem_core._protocol.retry import TOTAL_TIMEOUT_MESSAGE, RetryPolicy, rate_limit_interval, shared_backoff
from prem_core._protocol.routes import AUDIO_ROUTES, CHAT_ROUTE, MODELS_ROUTE

if TYPE_CHECKING:
    from prem_core._audio.upload import Recording

R = TypeVar("R")

#: Above this many bytes, sealing blocks the event loop for more than about 1 ms, so it runs in a thread.
OFFLOAD_BYTES: Final = 256 * 1024

#: Maximum seconds to spend reading an error's body. The status code matters more than the body.
ERROR_BODY_SECONDS: Final = 5.0


class Step:
    """Something for the driver to do."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Acquire(Step):
    """Wait for a permit, keep it, and return the enclave's public key (None where `key` is False).

    An unknown key is fetched before waiting for the permit, so that waiting for the key does not occupy a permit. The
    key is read again after the permit is granted, because it may have been rotated meanwhile.
    """

    key: bool = True


@dataclass(frozen=True, slots=True)
class FetchKey(Step):
    """Return the enclave's public key. Fetch it again if the cached key is still `stale`."""

    stale: PublicKey


@dataclass(frozen=True, slots=True)
class Release(Step):
    """Close the open response and release the permit, before another attempt or an error.

    Args:
        pause: Seconds for which no request may start; None for no pause.
        rate_limited: Whether the service answered 429.
        spacing: After a 429, seconds that should lie between the next requests; None otherwise.
    """

    pause: float | None = None
    rate_limited: bool = False
    spacing: float | None = None


@dataclass(frozen=True, slots=True)
class Sleep(Step):
    """Wait this many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class RunInThread(Step):
    """Call this and return its result. It takes too long to run on an event loop."""

    call: Callable[[], Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Send(Step):
    """Send this request and return the `ResponseHead`. A response that is still open is closed first.

    Args:
        method: The HTTP method.
        party: The destination: "gateway" or "enclave".
        path: The path below the party's URL.
        body: The request's body.
        query: The query parameters.
        read_timeout: Seconds to wait for the next bytes of the response's body, where shorter than the call's timeout.
    """

    method: str
    party: Literal["gateway", "enclave"]
    path: str
    body: Body | None = field(default=None, repr=False)
    query: Mapping[str, str] = field(default_factory=dict)
    read_timeout: float | None = None


class Read(Step):
    """Return the next bytes of the open response; ``b""`` at its end."""

    __slots__ = ()


#: One shared instance, because this step occurs for every network read.
READ: Final = Read()


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """Status and headers of a response. Header names are lower case; `received` is in seconds since the epoch."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    received: float = 0.0


Flow = Generator[Any, Any, None]


@dataclass(frozen=True, slots=True)
class FlowSettings:
    """The settings of a client, and of a call, that a flow needs.

    Args:
        retry: How often to retry, and after which delays.
        max_buffer_size: Maximum bytes of one event or one body in memory.
        keys: One KEM result reused for all requests; None generates a fresh one per request.
        pinned: Whether the caller set the enclave's key. It is then never fetched.
        chunk_timeout: Seconds between the chunks of a stream, or between the bytes of a body; None for no limit.
        deadline: The time by `clock` at which the call fails; None for no deadline.
        clock: A monotonic clock, in seconds.
    """

    retry: RetryPolicy
    max_buffer_size: int
    keys: EncryptionKeys | None = None
    pinned: bool = False
    chunk_timeout: float | None = None
    deadline: float | None = None
    clock: Callable[[], float] = time.monotonic


def chat(plaintext: bytes, settings: FlowSettings, *, stream: bool) -> Flow:
    """A chat completion: its chunks with `stream`, else the whole `ChatCompletion`.

    Args:
        plaintext: The request's parameters, as JSON.
        settings: See `FlowSettings`.
        stream: Whether `plaintext` requests a stream. Without it, the service may send the whole answer as an event
            stream or as a JSON envelope. Both are read.
    """
    from prem_core._protocol.accumulator import CompletionBuilder
    from prem_core._protocol.chat_stream import ChatStreamReader

    attempts = _Attempts(settings)
    delivered = False
    while True:
        keys = attempts.keys((yield attempts.acquire))
        try:
            nonce = new_nonce()
            if len(plaintext) < OFFLOAD_BYTES:
                body = chat_body(keys, plaintext, nonce)
            else:
                body = yield RunInThread(functools.partial(chat_body, keys, plaintext, nonce))
            send = Send("POST", "gateway", CHAT_ROUTE, body, read_timeout=settings.chunk_timeout)
            head = yield send
            if not 200 <= head.status < 300:
                yield from _raise_for_status(send, head, settings)
            content_type = head.headers.get("content-type", "").partition(";")[0].strip().lower()
            if content_type == EVENT_STREAM:
                reader = ChatStreamReader(keys, nonce, settings.max_buffer_size)
                builder = None if stream else CompletionBuilder()
                clock, chunk_timeout = settings.clock, settings.chunk_timeout
                waiting_since = clock()
                while not reader.done:
                    data = yield READ
                    if not data:
                        reader.finish()
                    idle = True
                    for chunk in reader.feed(data):
                        idle = False
                        delivered = True
                        if builder is None:
                            yield chunk
                        else:
                            builder.add(chunk)
                    # Time the caller spends processing chunks is not counted. Bytes without a chunk, such as a
                    # gateway's comments, do not reset the timeout.
                    if not idle:
                        waiting_since = clock()
                    elif (
                        chunk_timeout is not None
                        and clock() - waiting_since > chunk_timeout
                        and not reader.done
                    ):
                        raise errors.APITimeoutError("gateway: waiting for the stream's next chunk timed out")
                if builder is not None:
                    yield builder.build()
                elif not delivered:
                    raise errors.StreamInterruptedError("the stream had no chunk")
                return
            if content_type != "application/json":
                raise errors.APIResponseValidationError(
                    f"the response's content type is {_shown_type(content_type)}, neither an event stream nor JSON"
                )
            if stream:
                raise errors.APIResponseValidationError(
                    "the request asks for a stream, but the response is JSON"
                )
            yield open_completion(keys, (yield from _body(settings)))
            return
        except errors.APIError as error:
            yield from attempts.after(error, delivered=delivered)


def transcribe(
    task: Literal["transcribe", "translate"],
    plaintext: bytes,
    recording: Recording,
    settings: FlowSettings,
) -> Flow:
    """Transcribe or translate a recording; yields the decrypted response body."""
    attempts = _Attempts(settings)
    name = recording.name.encode("utf-8", "surrogateescape")
    while True:
        keys = attempts.keys((yield attempts.acquire))
        try:
            # Sealed inline, so that only the transport references the ciphertext and can free it.
            seal = functools.partial(audio_body, keys, plaintext, name, recording.data)
            answer = yield from _fetch(
                Send(
                    "POST",
                    "gateway",
                    AUDIO_ROUTES[task],
                    (yield RunInThread(seal)),
                    read_timeout=settings.chunk_timeout,
                ),
                settings,
            )
            yield open_response(keys, answer)
            return
        except errors.APIError as error:
            yield from attempts.after(error)


def list_models(kind: str | None, settings: FlowSettings) -> Flow:
    """List the gateway's models: those of one type, or all."""
    request = Send("GET", "gateway", MODELS_ROUTE, query={"type": kind} if kind else {})
    yield (yield from _fetch_with_retries(request, settings, read_models))


def fetch_public_key(settings: FlowSettings) -> Flow:
    """Fetch the enclave's `PublicKey` from the enclave.

    Raises:
        EnclaveKeyError: The enclave's response contains no valid key.
        APIConnectionError: The enclave could not be reached.
    """
    try:
        request = Send("GET", "enclave", PUBLIC_KEY_PATH)
        yield (yield from _fetch_with_retries(request, settings, read_public_key))
    except errors.APIConnectionError:
        raise
    except errors.APIError as error:
        raise errors.EnclaveKeyError(f"the enclave's public key could not be fetched: {error}") from error


class _Attempts:
    """The attempts of one sealed request: creates a secret per attempt and decides what to do after a failure."""

    __slots__ = ("_key", "_refetched", "_retries", "_settings", "acquire")

    def __init__(self, settings: FlowSettings) -> None:
        self._settings = settings
        self._retries = 0
        self._refetched = False
        self._key: PublicKey
        #: The step that starts an attempt.
        self.acquire = _ACQUIRE_WITH_KEY if settings.keys is None else _ACQUIRE

    def keys(self, key: PublicKey) -> EncryptionKeys:
        """The secret for the next attempt: a fresh one for `key`, unless the client reuses one for all requests."""
        self._key = key
        return self._settings.keys or EncryptionKeys.encapsulate(key)

    def after(self, error: errors.APIError, *, delivered: bool = False) -> Generator[Step, Any, None]:
        """Release the permit and wait, if another attempt makes sense. Otherwise raise.

        Args:
            error: How the attempt failed.
            delivered: Whether the caller already received a chunk. A retry would repeat it.

        Raises:
            APIError: `error`, or a timeout if the next attempt would start after the deadline.
            EnclaveKeyError: The enclave cannot decrypt requests sealed with the pinned or refetched key.
        """
        settings = self._settings
        if not delivered and is_key_rotation_error(error):
            if self._refetched or settings.pinned or settings.keys:
                raise errors.EnclaveKeyError(self._key_rotation_message()) from error
            self._refetched = True
            # Fetched before the permit is released; otherwise the next caller would seal to the same old key.
            yield FetchKey(stale=self._key)
            yield Release()
            return
        delay = None if delivered else settings.retry.delay(self._retries, error)
        pause = shared_backoff(error, delay)
        rate_limited = isinstance(error, errors.APIStatusError) and error.status_code == 429
        yield Release(pause, rate_limited, rate_limit_interval(error) if pause is not None else None)
        if delay is None:
            raise error
        _check_time(settings, delay, error)
        self._retries += 1
        if pause is None:  # a pause already delays every caller, including this one
            yield Sleep(delay)

    def _key_rotation_message(self) -> str:
        if self._settings.keys:
            return "the enclave no longer accepts these encryption_keys: generate new ones"
        if self._settings.pinned:
            return (
                "the enclave no longer has the private key of the pinned enclave_public_key: "
                "check the enclave's new key, then pin it"
            )
        return "the enclave could not open the request, even after its key was fetched again"


_ACQUIRE_WITH_KEY: Final = Acquire()
_ACQUIRE: Final = Acquire(key=False)


def _fetch_with_retries(
    request: Send, settings: FlowSettings, read: Callable[[bytes], R]
) -> Generator[Step, Any, R]:
    """The response to an unsealed request, parsed with `read`, which raises if a 200 response contains an error."""
    retries = 0
    while True:
        try:
            return read((yield from _fetch(request, settings)))
        except errors.APIError as error:
            delay = settings.retry.delay(retries, error)
            if delay is None:
                raise
            _check_time(settings, delay, error)
        retries += 1
        yield Sleep(delay)


def _fetch(request: Send, settings: FlowSettings) -> Generator[Step, Any, bytes]:
    """Send `request` and return the body of its response."""
    head: ResponseHead = yield request
    if not 200 <= head.status < 300:
        yield from _raise_for_status(request, head, settings)
    return (yield from _body(settings))


def _body(settings: FlowSettings) -> Generator[Step, Any, bytes]:
    reader = BodyReader(settings.max_buffer_size)
    while data := (yield READ):
        reader.feed(data)
    return reader.body()


def _raise_for_status(
    request: Send, head: ResponseHead, settings: FlowSettings
) -> Generator[Step, Any, None]:
    """Raise the error for this status, with the message from its body."""
    body = b""
    until = settings.clock() + ERROR_BODY_SECONDS
    try:
        while len(body) < MAX_ERROR_BODY and settings.clock() < until and (data := (yield READ)):
            body += data
    except errors.APIConnectionError:
        pass  # the status code matters more than a truncated body
    raise status_error(
        head.status, body[:MAX_ERROR_BODY], route=request.path, headers=head.headers, now=head.received
    )


def _check_time(settings: FlowSettings, delay: float, error: errors.APIError) -> None:
    """Fail now if the next attempt would start after the deadline.

    Raises:
        APITimeoutError: The next attempt would start after the deadline.
    """
    if settings.deadline is None or settings.clock() + delay < settings.deadline:
        return
    if isinstance(error, errors.APITimeoutError) and settings.clock() >= settings.deadline:
        raise error
    raise errors.APITimeoutError(TOTAL_TIMEOUT_MESSAGE) from error


def _shown_type(content_type: str) -> str:
    # Untrusted input: show it only if printable, and at most 60 characters.
    return repr(content_type[:60]) if content_type.isprintable() and content_type else "missing"
