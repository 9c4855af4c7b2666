"""One request, from its parameters to its result, without touching the network.

A flow is a generator. It yields two kinds of things:

- A `Step`: what the driver should do next (get a permit, send, read, …). The driver sends the outcome back into the
  generator, or throws the `PremError` that the step failed with.
- Anything else: a result for the caller. A streamed chat yields its chunks. Every other flow yields one result.

All decisions are here: which key and nonce, whether to retry, when an answer is complete, what an error means. The
drivers in `_transport` perform steps and decide nothing, so that `PremClient` and `AsyncPremClient` behave alike.

The steps of one request: probe (with `nonce_reuse` "error", once) → key (if unknown) → permit → mask and seal → send →
read → decode → open → chunk.

Pydantic reads the responses. It is imported with the first request and not with the package, because it doubles the
import time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from prem_core import _errors as errors
from prem_core._crypto.aead import new_nonce
from prem_core._crypto.keys import EncryptionKeys
from prem_core._media import audio_seconds
from prem_core._protocol.assumptions import EVENT_STREAM, PUBLIC_KEY_PATH
from prem_core._protocol.attempts import Attempts, check_time
from prem_core._protocol.charge import Charge, estimate_tokens, reported_seconds
from prem_core._protocol.error_body import MAX_ERROR_BODY, status_error
from prem_core._protocol.masking import ChatRequest
from prem_core._protocol.nonce_reuse import (
    REPLY_FORMS,
    ProbeSubject,
    probe_params,
    probe_recording,
    warn_of_nonce_reuse,
)
from prem_core._protocol.request_body import Body, audio_body, chat_body
from prem_core._protocol.request_json import to_json
from prem_core._protocol.response_body import (
    BodyReader,
    OpenedResponse,
    open_response,
    read_completion,
    read_models,
    read_public_key,
)
from prem_core._protocol.retry import Retries
from prem_core._protocol.routes import AUDIO_ROUTES, CHAT_ROUTE, MODELS_ROUTE
from prem_core._protocol.steps import READ, Flow, FlowSettings, ResponseHead, RunInThread, Send, Sleep, Step

if TYPE_CHECKING:
    from prem_core._audio.upload import Recording

R = TypeVar("R")

#: Above this many bytes, sealing blocks the event loop for more than about 1 ms, so it runs in a thread.
OFFLOAD_BYTES: Final = 256 * 1024

#: Maximum seconds to spend reading an error's body. The status code matters more than the body.
ERROR_BODY_SECONDS: Final = 5.0


def chat(request: ChatRequest, settings: FlowSettings, *, stream: bool) -> Flow:
    """A chat completion: with `stream` first its `Protection`, then its chunks; else the whole `ChatCompletion`.

    Args:
        request: The request's parameters. They ask for a stream only if `settings.asks_for_streams`.
        settings: See `FlowSettings`.
        stream: Whether the caller wants chunks. With `nonce_reuse` "error" they are made from a whole answer. Where no
            stream was asked for, the service may send one all the same, or a JSON envelope. Both are read.
    """
    from prem_core._protocol.accumulator import CompletionBuilder, chunks_of
    from prem_core._protocol.chat_stream import ChatStreamReader

    streamed = stream and settings.asks_for_streams
    estimate = Charge(stream=streamed, tokens=estimate_tokens(request.rest))
    attempts = Attempts(settings, ProbeSubject("chat", request.model), estimate)
    delivered = False
    if streamed and settings.nonce_reuse == "warn":
        warn_of_nonce_reuse()
    while True:
        keys = yield from attempts.start()
        try:
            nonce = new_nonce()
            if len(request.rest) < OFFLOAD_BYTES:
                body = _masked_body(request, keys, nonce, settings)
            else:
                body = yield RunInThread(functools.partial(_masked_body, request, keys, nonce, settings))
            send = Send(
                "POST", "gateway", CHAT_ROUTE, body, read_timeout=settings.chunk_timeout, whole=not streamed
            )
            head = yield send
            if not 200 <= head.status < 300:
                yield from raise_for_status(send, head, settings)
            content_type = _content_type(head)
            if content_type == EVENT_STREAM:
                attempts.check_nonce(own=False)
                reader = ChatStreamReader(keys, nonce, settings.max_buffer_size)
                builder = None if stream else CompletionBuilder(settings.max_buffer_size)
                protection = attempts.protection(own_nonce=False)
                charge, chunks = attempts.charge, 0
                clock, chunk_timeout = settings.clock, settings.chunk_timeout
                waiting_since = clock()
                while not reader.done:
                    data = yield READ
                    if not data:
                        reader.finish()
                    idle = True
                    for chunk in reader.feed(data):
                        idle = False
                        chunks += 1
                        if chunk.usage is not None:
                            charge.used_tokens = chunk.usage.total_tokens
                        if builder is not None:
                            # Not delivered yet, but the service has begun to answer, and would charge for it again.
                            delivered = True
                            builder.add(chunk)
                            continue
                        if not delivered:
                            yield protection
                            delivered = True
                        yield chunk
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
                if charge.used_tokens is None:  # most chunks have one token
                    charge.used_tokens = charge.tokens + chunks
                if builder is not None:
                    yield builder.build().with_protection(protection)
                elif not delivered:
                    raise errors.StreamInterruptedError("the stream had no chunk")
                return
            _expect_json(content_type)
            if streamed:
                raise errors.APIResponseValidationError(
                    "the request asks for a stream, but the response is JSON"
                )
            opened = open_response(keys, (yield from _body(settings)))
            own = opened.nonce != nonce
            attempts.check_nonce(own=own)
            completion = read_completion(opened.plaintext)
            protection = attempts.protection(own_nonce=own, support_id=opened.support_id)
            if completion.usage is not None:
                attempts.charge.used_tokens = completion.usage.total_tokens
            if stream:
                yield protection
                delivered = True
                yield from chunks_of(completion, include_usage=request.include_usage)
            else:
                yield completion.with_protection(protection)
            return
        except errors.APIError as error:
            yield from attempts.after(error, delivered=delivered)


def transcribe(
    task: Literal["transcribe", "translate"],
    model: str,
    plaintext: bytes,
    recording: Recording,
    settings: FlowSettings,
) -> Flow:
    """Transcribe or translate a recording; yields the decrypted response body and its `Protection`."""
    estimate = Charge(audio_seconds=audio_seconds(recording.data))
    attempts = Attempts(settings, ProbeSubject(task, model), estimate)
    name = recording.name.encode("utf-8", "surrogateescape")
    while True:
        keys = yield from attempts.start()
        try:
            opened, own = yield from _transcribe_once(task, keys, plaintext, name, recording.data, settings)
            attempts.check_nonce(own=own)
            attempts.charge.used_audio_seconds = reported_seconds(opened.plaintext)
            yield opened.plaintext, attempts.protection(own_nonce=own, support_id=opened.support_id)
            return
        except errors.APIError as error:
            yield from attempts.after(error)


def probe(subject: ProbeSubject, settings: FlowSettings) -> Flow:
    """Find out under which nonce a model's replies come, with a request that holds nothing of the caller's.

    Yields nothing of use: the outcome is recorded in `REPLY_FORMS`.
    """
    attempts = Attempts(settings)
    params = probe_params(subject)
    while True:
        keys = yield from attempts.start()
        try:
            if subject.task == "chat":
                own = yield from _probe_chat(ChatRequest.of(params), keys, settings)
            else:
                recording = probe_recording()
                _, own = yield from _transcribe_once(
                    subject.task, keys, to_json(params), b"recording.wav", recording, settings
                )
            REPLY_FORMS.record(settings.gateway_url, attempts.key, subject, own=own)
            return
        except errors.APIError as error:
            yield from attempts.after(error)


def _probe_chat(
    request: ChatRequest, keys: EncryptionKeys, settings: FlowSettings
) -> Generator[Step, Any, bool]:
    nonce = new_nonce()
    send = Send("POST", "gateway", CHAT_ROUTE, _masked_body(request, keys, nonce, settings), whole=True)
    head = yield send
    if not 200 <= head.status < 300:
        yield from raise_for_status(send, head, settings)
    content_type = _content_type(head)
    if content_type == EVENT_STREAM:
        return False
    _expect_json(content_type)
    # Opened, not only looked at: a gateway could write any nonce beside bytes that do not open.
    return open_response(keys, (yield from _body(settings))).nonce != nonce


def _transcribe_once(
    task: Literal["transcribe", "translate"],
    keys: EncryptionKeys,
    plaintext: bytes,
    name: bytes,
    recording: bytes,
    settings: FlowSettings,
) -> Generator[Step, Any, tuple[OpenedResponse, bool]]:
    """Send one recording. Returns the opened reply, and whether its nonce is its own."""
    nonces = (new_nonce(), new_nonce(), new_nonce())
    # Sealed inline, so that only the transport references the ciphertext and can free it.
    seal = functools.partial(audio_body, keys, plaintext, name, recording, nonces)
    answer = yield from _fetch(
        Send(
            "POST",
            "gateway",
            AUDIO_ROUTES[task],
            (yield RunInThread(seal)),
            read_timeout=settings.chunk_timeout,
            whole=True,
        ),
        settings,
    )
    opened = open_response(keys, answer)
    own = opened.nonce not in nonces
    if not own and opened.plaintext in (plaintext, name, recording):
        raise errors.APIResponseValidationError("the response is a copy of a part of the request")
    return opened, own


def _masked_body(request: ChatRequest, keys: EncryptionKeys, nonce: bytes, settings: FlowSettings) -> Body:
    return chat_body(keys, request.plaintext(masked=settings.request_masking), nonce)


def list_models(kind: str | None, settings: FlowSettings) -> Flow:
    """List the gateway's models: those of one type, or all."""
    request = Send("GET", "gateway", MODELS_ROUTE, query={"type": kind} if kind else {})
    yield (yield from with_retries(lambda: _fetch_and_read(request, settings, read_models), settings))


def fetch_public_key(settings: FlowSettings) -> Flow:
    """Fetch the enclave's `PublicKey` from the enclave.

    Raises:
        EnclaveKeyError: The enclave's response contains no valid key.
        APIConnectionError: The enclave could not be reached.
    """
    try:
        request = Send("GET", "enclave", PUBLIC_KEY_PATH)
        yield (yield from with_retries(lambda: _fetch_and_read(request, settings, read_public_key), settings))
    except errors.APIConnectionError:
        raise
    except errors.APIError as error:
        raise errors.EnclaveKeyError(f"the enclave's public key could not be fetched: {error}") from error


def fetch_page(settings: FlowSettings) -> Flow:
    """Fetch the page at the enclave's URL itself; yields its bytes."""
    yield (yield from _fetch(Send("GET", "enclave", ""), settings))


def with_retries(
    attempt: Callable[[], Generator[Step, Any, R]], settings: FlowSettings
) -> Generator[Step, Any, R]:
    """What an attempt returns, after retries. For requests that are not sealed and may be sent again."""
    retries = Retries(settings.retry, settings.clock)
    while True:
        try:
            return (yield from attempt())
        except errors.APIError as error:
            delay = retries.delay(error)
            if delay is None:
                raise
            check_time(settings, delay, error)
        yield Sleep(delay)


def _fetch_and_read(
    request: Send, settings: FlowSettings, read: Callable[[bytes], R]
) -> Generator[Step, Any, R]:
    """The response, parsed with `read`, which raises if a 200 response contains an error."""
    return read((yield from _fetch(request, settings)))


def _fetch(request: Send, settings: FlowSettings) -> Generator[Step, Any, bytes]:
    """Send `request` and return the body of its response."""
    head: ResponseHead = yield request
    if not 200 <= head.status < 300:
        yield from raise_for_status(request, head, settings)
    return (yield from _body(settings))


def _body(settings: FlowSettings) -> Generator[Step, Any, bytes]:
    reader = BodyReader(settings.max_buffer_size)
    while data := (yield READ):
        reader.feed(data)
    return reader.body()


def raise_for_status(request: Send, head: ResponseHead, settings: FlowSettings) -> Generator[Step, Any, None]:
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


def _content_type(head: ResponseHead) -> str:
    return head.headers.get("content-type", "").partition(";")[0].strip().lower()


def _expect_json(content_type: str) -> None:
    if content_type != "application/json":
        raise errors.APIResponseValidationError(
            f"the response's content type is {_shown_type(content_type)}, neither an event stream nor JSON"
        )


def _shown_type(content_type: str) -> str:
    # Untrusted input: show it only if printable, and at most 60 characters.
    return repr(content_type[:60]) if content_type.isprintable() and content_type else "missing"
