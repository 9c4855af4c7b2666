"""One request from its parameters to its answer, without touching the network.

Each function here is a generator. It yields what should be done next (`FetchKey`, `Acquire`, `Send`,
`Read`, …), is sent the outcome, and has a failure on the way thrown into it; what it returns is the answer.
Every decision is here: which key, which nonce, whether to try again, what an error means. `PremClient`
and `AsyncPremClient` drive the same generators and decide nothing.

One request is a straight line: params → key → seal → send → reply → events → open → chunks.

What reads answers needs pydantic, and is imported where it is used: at the first request, not with the package.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from prem_core import _errors as errors
from prem_core._crypto.aead import new_nonce
from prem_core._crypto.keys import EncryptionKeys
from prem_core._crypto.xwing import PublicKey
from prem_core._protocol.assumptions import EVENT_STREAM, PUBLIC_KEY_PATH
from prem_core._protocol.error_body import is_key_rotation_error, status_error
from prem_core._protocol.request_body import Body, audio_body, chat_body
from prem_core._protocol.response_body import BodyReader, open_response, read_envelope, read_public_key
from prem_core._protocol.retry import FIRST_DELAY, TOTAL_TIMEOUT_MESSAGE, RetryPolicy, shared_backoff
from prem_core._protocol.routes import AUDIO_ROUTES, CHAT_ROUTE, MODELS_ROUTE

if TYPE_CHECKING:
    from prem_core._audio.upload import Recording
    from prem_core._protocol.chat_stream import ChatStreamReader
    from prem_core._protocol.response_types import ChatCompletion, ChatCompletionChunk, Model

#: Bytes of plaintext from which sealing takes longer than an event loop should be held (about a millisecond).
OFFLOAD_BYTES = 256 * 1024

#: Bytes of an error's body that are read; the rest cannot make it clearer.
MAX_ERROR_BODY = 64 * 1024


@dataclass(frozen=True, slots=True)
class FetchKey:
    """Wanted: the enclave's public key, and not `stale`, which the enclave has given up."""

    stale: PublicKey | None = None


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Acquire:
    """Wait for this call's turn, and hold it; behind all others, or where it stood before."""


@dataclass(frozen=True, slots=True)
class Release:
    """Drop the open reply and give the turn back, before another try or an error.

    Args:
        hold: Seconds for which the service asked everybody to stay away; None where it did not.
        spacing: After a rate limit, what its Retry-After said (seconds); None otherwise.
    """

    hold: float | None = None
    spacing: float | None = None


@dataclass(frozen=True, slots=True)
class ReadWithin:
    """Wait no longer than so many seconds for each of the open reply's next bytes; a shorter timeout stays."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Work:
    """Call this and give what it returns. It takes long enough to be kept off an event loop."""

    call: Callable[[], Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Send:
    """Send this request and give the `Head` of its reply. Replaces a reply that is still open."""

    method: str
    party: str  # "gateway" or "enclave"
    path: str
    body: Body | None = field(default=None, repr=False)
    query: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Read:
    """Give the open reply's next bytes; ``b""`` at its end."""


@dataclass(frozen=True, slots=True)
class Head:
    """How a reply begins. Header names are lower case; `received` is in seconds since the epoch."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    received: float = 0.0


Step = FetchKey | Acquire | Release | Sleep | Work | Send | ReadWithin | Read
R = TypeVar("R")
Steps = Generator[Step, Any, R]


@dataclass(frozen=True, slots=True)
class Settings:
    """What an exchange has to know of its client, and of its call.

    Args:
        keys: A KEM result to use for every request, instead of a fresh one each.
        pinned: Whether the enclave's key was given and must never be fetched.
        max_buffer_size: Bytes of one event, or of one body, that may be held.
        retry: How often and at what pace to try again.
        limited: Whether a sealed request waits for its turn (`Acquire`).
        chunk_timeout: Seconds between the chunks of a stream, and between the bytes of an answer that has begun;
            None for any time.
        deadline: When the call has taken too long, on the clock; None for never.
        clock: Gives seconds that only grow.
    """

    retry: RetryPolicy
    max_buffer_size: int
    keys: EncryptionKeys | None = None
    pinned: bool = False
    limited: bool = False
    chunk_timeout: float | None = None
    deadline: float | None = None
    clock: Callable[[], float] = time.monotonic


@dataclass(slots=True)
class _Progress:
    """Whether a chunk of the answer has come: from then on nothing is tried again."""

    begun: bool = False


class Pulse:
    """Whether chunks still come: bytes alone, such as a gateway's comments, do not keep a stream alive.

    Args:
        settings: Its `chunk_timeout` counts from now, while bytes are waited for.
    """

    __slots__ = ("_clock", "_limit", "_since")

    def __init__(self, settings: Settings) -> None:
        self._clock = settings.clock
        self._limit = float("inf") if settings.chunk_timeout is None else settings.chunk_timeout
        self._since = self._clock()

    def beat(self) -> None:
        """Chunks came, and were given: whatever their taker did meanwhile does not count."""
        self._since = self._clock()

    def missed(self) -> None:
        """Bytes came, without a chunk.

        Raises:
            APITimeoutError: For too long.
        """
        if self._clock() - self._since > self._limit:
            raise errors.APITimeoutError("gateway: waiting for the stream's next chunk timed out")


@dataclass(slots=True)
class StreamBegun:
    """An answer whose first chunk is here: give `chunks`, then feed `reader` what follows, watched by `pulse`."""

    reader: ChatStreamReader
    chunks: Iterator[ChatCompletionChunk]
    pulse: Pulse


def stream_chat(plaintext: bytes, settings: Settings) -> Steps[StreamBegun]:
    """A streamed chat completion, up to and including its first chunk."""

    def attempt(keys: EncryptionKeys, progress: _Progress) -> Steps[StreamBegun]:
        reader = yield from _ask(plaintext, keys, settings)
        if isinstance(reader, BodyReader):
            raise errors.APIResponseValidationError("a stream was asked for, and the answer is not one")
        pulse = Pulse(settings)
        while piece := (yield Read()):
            chunks = reader.feed(piece)
            for first in chunks:
                progress.begun = True
                return StreamBegun(reader, itertools.chain((first,), chunks), pulse)
            pulse.missed()
        reader.finish()
        raise errors.StreamInterruptedError("the stream had no chunk")

    return _sealed(attempt, settings)


def complete_chat(plaintext: bytes, settings: Settings) -> Steps[ChatCompletion]:
    """A chat completion as a whole, whichever of the two forms the service answers in."""
    from prem_core._protocol.accumulator import CompletionBuilder
    from prem_core._protocol.response_body import open_completion

    def attempt(keys: EncryptionKeys, progress: _Progress) -> Steps[ChatCompletion]:
        reader = yield from _ask(plaintext, keys, settings)
        if isinstance(reader, BodyReader):
            while piece := (yield Read()):
                reader.feed(piece)
            return open_completion(keys, reader.body())
        builder = CompletionBuilder()
        pulse = Pulse(settings)
        while piece := (yield Read()):
            came = False
            for chunk in reader.feed(piece):
                came = progress.begun = True
                builder.add(chunk)
            if reader.done:  # whatever the connection does next, the answer is here
                break
            pulse.beat() if came else pulse.missed()
        reader.finish()
        return builder.build()

    return _sealed(attempt, settings)


def hear(
    task: Literal["transcribe", "translate"],
    plaintext: bytes,
    recording: Recording,
    settings: Settings,
) -> Steps[bytes]:
    """The opened answer to a recording."""

    def attempt(keys: EncryptionKeys, progress: _Progress) -> Steps[bytes]:
        del progress  # the answer is one body: there is no first chunk
        # Made in the call that sends it: after that the ciphertext is the transport's alone, and goes with it.
        name = recording.name.encode("utf-8", "surrogateescape")
        seal = functools.partial(audio_body, keys, plaintext, name, recording.data)
        send = Send("POST", "gateway", AUDIO_ROUTES[task], (yield Work(seal)))
        return open_response(keys, (yield from _fetch(send, settings, within=settings.chunk_timeout)))

    return _sealed(attempt, settings)


def list_models(kind: str | None, settings: Settings) -> Steps[list[Model]]:
    """The models the gateway offers, of one type or of all."""
    from prem_core._protocol.response_types import Model, read_value

    def attempt() -> Steps[list[Model]]:
        query = {"type": kind} if kind else {}
        body = yield from _fetch(Send("GET", "gateway", MODELS_ROUTE, query=query), settings)
        data = read_envelope(body)
        entries = data.get("models", data.get("data")) if isinstance(data, dict) else data
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise errors.APIResponseValidationError("the models list is not a list")
        return [read_value(Model, entry) for entry in entries]

    return _retried(attempt, settings)


def fetch_public_key(settings: Settings) -> Steps[PublicKey]:
    """The enclave's public key, from the enclave itself.

    Raises:
        EnclaveKeyError: The enclave answered, and not with a key.
        APIConnectionError: It did not answer.
    """

    def attempt() -> Steps[PublicKey]:
        return read_public_key((yield from _fetch(Send("GET", "enclave", PUBLIC_KEY_PATH), settings)))

    try:
        return (yield from _retried(attempt, settings))
    except errors.APIConnectionError:
        raise
    except errors.APIError as error:
        raise errors.EnclaveKeyError(f"the enclave's public key could not be fetched: {error}") from error


def _ask(plaintext: bytes, keys: EncryptionKeys, settings: Settings) -> Steps[ChatStreamReader | BodyReader]:
    """Seal under a fresh nonce, send, and give what can read the reply."""
    from prem_core._protocol.chat_stream import ChatStreamReader

    nonce = new_nonce()
    if len(plaintext) < OFFLOAD_BYTES:
        body = chat_body(keys, plaintext, nonce)
    else:
        body = yield Work(functools.partial(chat_body, keys, plaintext, nonce))
    head = yield from _accepted(Send("POST", "gateway", CHAT_ROUTE, body))
    kind = head.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == EVENT_STREAM:
        if settings.chunk_timeout is not None:
            yield ReadWithin(settings.chunk_timeout)
        return ChatStreamReader(keys, nonce, settings.max_buffer_size)
    if kind == "application/json":
        return BodyReader(settings.max_buffer_size)
    raise errors.APIResponseValidationError("by its content type the answer is neither a stream nor JSON")


def _fetch(request: Send, settings: Settings, within: float | None = None) -> Steps[bytes]:
    yield from _accepted(request)
    if within is not None:
        yield ReadWithin(within)
    reader = BodyReader(settings.max_buffer_size)
    while piece := (yield Read()):
        reader.feed(piece)
    return reader.body()


def _accepted(request: Send) -> Steps[Head]:
    """Send `request`; any status but a success is the error it stands for."""
    head: Head = yield request
    if 200 <= head.status < 300:
        return head
    body = b""
    try:
        while len(body) < MAX_ERROR_BODY and (piece := (yield Read())):
            body += piece
    except errors.APIConnectionError:
        pass  # the status is known, and says more than how its body ended
    raise status_error(
        head.status, body[:MAX_ERROR_BODY], route=request.path, headers=head.headers, now=head.received
    )


def _retried(attempt: Callable[[], Steps[R]], settings: Settings) -> Steps[R]:
    for retries in itertools.count():
        try:
            return (yield from attempt())
        except errors.APIError as error:
            delay = settings.retry.delay(retries, error)
            if delay is None:
                raise
            _check_time(settings, delay, error)
        yield Sleep(delay)
    raise AssertionError("itertools.count ends")  # pragma: no cover - tells mypy that the loop has no end


def _sealed(attempt: Callable[[EncryptionKeys, _Progress], Steps[R]], settings: Settings) -> Steps[R]:
    """Run `attempt` under a secret of its own each time; refetch a turned key once."""
    progress = _Progress()
    refetched = False
    retries = 0
    while True:
        if settings.limited:
            if settings.keys is None:
                yield FetchKey()  # before the turn: whoever waits for a key must not keep others from sending
            yield Acquire()
        if settings.keys is not None:
            keys = settings.keys
        else:
            # Known from the first request on, so that asking at each attempt costs nothing. After the turn: another
            # caller may have learned meanwhile that it was turned.
            key = yield FetchKey()
            keys = EncryptionKeys.encapsulate(key)
        try:
            return (yield from attempt(keys, progress))
        except errors.APIError as error:
            if progress.begun:
                raise
            if is_key_rotation_error(error):
                if refetched or settings.pinned or settings.keys:
                    raise errors.EnclaveKeyError(_turned(settings)) from error
                refetched = True
                # Before the turn is given back: whoever is served next would seal to the same key.
                yield FetchKey(stale=key)
                if settings.limited:
                    yield Release()
                continue
            delay = settings.retry.delay(retries, error)
            pause = shared_backoff(error, delay) if settings.limited else None
            if settings.limited:
                yield Release(pause, _spacing(error) if pause is not None else None)
            if delay is None:
                raise
            _check_time(settings, delay, error)
        retries += 1
        if pause is None:  # otherwise everybody waits, this caller with them
            yield Sleep(delay)


def _spacing(error: errors.APIError) -> float | None:
    if not isinstance(error, errors.APIStatusError) or error.status_code != 429:
        return None
    return FIRST_DELAY if error.retry_after is None else error.retry_after


def _check_time(settings: Settings, delay: float, error: errors.APIError) -> None:
    """Give up at once where the next try would come too late.

    Raises:
        APITimeoutError: It would.
    """
    if settings.deadline is None or settings.clock() + delay < settings.deadline:
        return
    if isinstance(error, errors.APITimeoutError) and settings.clock() >= settings.deadline:
        raise error
    raise errors.APITimeoutError(TOTAL_TIMEOUT_MESSAGE) from error


def _turned(settings: Settings) -> str:
    if settings.keys:
        return "the enclave no longer opens what encryption_keys seal: generate new ones"
    if settings.pinned:
        return "the enclave no longer holds the match of the pinned enclave_public_key: check and pin its new one"
    return "the enclave could not open the request, nor the same one sealed to a freshly fetched key"
