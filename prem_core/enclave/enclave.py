"""The enclave: holds the private key, opens what the gateway forwards, runs the engine, seals what it says.

The rule of this file: plaintext leaves only sealed. An answer that cannot be sealed (an error before the
first chunk) goes through the gateway in the clear, so it names parameters and rules, never values.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from itertools import islice
from types import ModuleType
from typing import Any, Final, Literal, NamedTuple, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from prem_core._crypto.aead import NONCE_BYTES
from prem_core._crypto.keys import EncryptionKeys
from prem_core._crypto.xwing import PrivateKey
from prem_core._protocol.accumulator import CompletionBuilder
from prem_core._protocol.assumptions import EVENT_STREAM, PUBLIC_KEY_NAMES, PUBLIC_KEY_PATH, encode_binary
from prem_core._protocol.response_types import ChatCompletionChunk
from prem_core.enclave import extractive
from prem_core.enclave._engine import AudioAnswer, AudioTask, EngineError
from prem_core.enclave._upstream import UpstreamError
from prem_core.enclave.audio_request import TASKS, OpenedAudio, open_audio
from prem_core.enclave.gateway import CHAT_PATH, HOP_HEADER, ModelType, model_type
from prem_core.enclave.schema_check import Refused, read_body
from prem_core.enclave.sealed_fields import INFERENCE, binary, open_items, read_once, send_sealed

ReplyForm = Literal["stream", "envelope"]
Chunk = dict[str, Any]

#: The built-in engine works in a thread for about this many seconds at a time, so that a long answer
#: neither blocks the loop nor costs a switch of threads per chunk.
ENGINE_SLICE: Final = 0.02
_ENGINE_SLICE_CHUNKS: Final = 512

#: Threads of the built-in engine that listen to recordings. Each keeps a decoder of about 100 MB, and they
#: take turns: a second one is there so that a short recording does not wait for a long one.
_LISTENERS: Final = 2

_DONE: Final = b"event: done\ndata: [DONE]\n\n"

_log = logging.getLogger("prem_core.enclave")


class Engine(Protocol):
    """What answers a chat, and listens to a recording."""

    def chat(self, params: Mapping[str, Any]) -> AsyncGenerator[list[Chunk], None]:
        """The completion as ``chat.completion.chunk`` objects, in batches of what is ready together.

        `params` satisfy the published schema and always ask for usage.

        Raises:
            EngineError: From the first step: the request is refused. Later: the answer broke off.
        """
        ...

    async def audio(
        self, task: AudioTask, params: Mapping[str, Any], file_name: str, audio: bytes
    ) -> AudioAnswer:
        """What is said in a file, in its own language or in English.

        `params` satisfy the schema of the task.

        Raises:
            EngineError: The request is refused, or no answer came of it.
        """
        ...

    async def aclose(self) -> None:
        """Let go of connections and threads."""
        ...


class BuiltInEngine:
    """The extractive engine and the recogniser, run in threads piece by piece."""

    def __init__(self) -> None:
        self._listeners = ThreadPoolExecutor(_LISTENERS, thread_name_prefix="prem-listener")

    async def chat(self, params: Mapping[str, Any]) -> AsyncGenerator[list[Chunk], None]:
        """See `Engine.chat`."""
        chunks = await asyncio.to_thread(extractive.complete, params, created=int(time.time()))
        while True:
            batch, error = await asyncio.to_thread(_slice, chunks)
            if batch:
                yield batch
            if error is not None:
                raise error
            if not batch:
                return

    async def audio(
        self, task: AudioTask, params: Mapping[str, Any], file_name: str, audio: bytes
    ) -> AudioAnswer:
        """See `Engine.audio`. The file's name is not looked at: its content says what it is."""
        listen = functools.partial(asyncio.get_running_loop().run_in_executor, self._listeners)
        speech = await listen(_speech)
        speech.refuse(task, params)
        recording = await listen(speech.decode, audio)
        utterances = speech.utterances(recording.pcm)
        heard = []
        # One by one, so that it ends soon after the client hangs up.
        while (utterance := await listen(next, utterances, None)) is not None:
            heard.append(utterance)
        return AudioAnswer(speech.transcription(params, recording.seconds, heard), recording.seconds)

    async def aclose(self) -> None:
        """Let the threads end, when they are through with what they listen to."""
        self._listeners.shutdown(wait=False, cancel_futures=True)


def _speech() -> ModuleType:
    """The recogniser, imported when a first recording comes: numpy and two libraries of C come with it."""
    try:
        from prem_core.enclave import speech
    except (ImportError, OSError):  # OSError: there is no libsndfile for this machine
        raise EngineError(
            503,
            'the built-in engine cannot listen: pip install "prem-encrypted[enclave]"',
            type="service_unavailable",
        ) from None
    return speech


def _slice(chunks: Iterator[Chunk]) -> tuple[list[Chunk], Exception | None]:
    """The next chunks, and what stopped them: what came before an error is not lost with it."""
    end = time.monotonic() + ENGINE_SLICE
    batch: list[Chunk] = []
    try:
        for chunk in islice(chunks, _ENGINE_SLICE_CHUNKS):
            batch.append(chunk)
            if time.monotonic() > end:
                break
    except Exception as error:
        return batch, error
    return batch, None


class _Opened(NamedTuple):
    """One request after decryption."""

    keys: EncryptionKeys
    nonce: bytes
    params: dict[str, Any]

    def seal(self, value: Any) -> bytes:
        """`value` as JSON, sealed under the request's own nonce as the protocol has it, as hex."""
        return encode_binary(self.keys.seal(json.dumps(value).encode(), self.nonce)).encode()

    def events(self, chunks: list[Chunk]) -> bytes:
        """`chunks` as ``data`` events."""
        return b"".join([b"event: data\ndata: %b\n\n" % self.seal(chunk) for chunk in chunks])


class Enclave:
    """The enclave's routes, as an ASGI application.

    Refusals are raised (`Refused`); the listener around it writes them.

    Args:
        private_key: The key to open with; assign to `private_key` to turn it.
        engine: What answers.
        models: The models that are known; None passes every name to the engine.
        reply_form: How a request without ``stream: true`` is answered.
        hop_secret: What `HOP_HEADER` has to say: only the gateway may forward.
        meter: Told the tokens of every chat when it ends. How the real gateway learns them is not
            documented; here the two share a process, and this call.
        audio_meter: Told the seconds of every recording that was answered, likewise.
    """

    def __init__(
        self,
        *,
        private_key: PrivateKey,
        engine: Engine,
        models: Collection[str] | None,
        reply_form: ReplyForm,
        hop_secret: str,
        meter: Callable[[int], None],
        audio_meter: Callable[[float], None],
    ) -> None:
        self.private_key = private_key
        self._engine = engine
        self._models = models
        self._reply_form = reply_form
        self._hop_secret = hop_secret.encode()
        self._meter = meter
        self._audio_meter = audio_meter
        self._router = Router(
            [
                Route(PUBLIC_KEY_PATH, self._publish_key, methods=["GET"]),
                Route(CHAT_PATH, self._chat, methods=["POST"]),
                *(Route(path, self._audio, methods=["POST"]) for path in TASKS),
            ],
            redirect_slashes=False,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._router(scope, receive, send)

    async def _publish_key(self, request: Request) -> Response:
        key = encode_binary(bytes(self.private_key.public_key()))
        return JSONResponse({PUBLIC_KEY_NAMES[0]: key})

    async def _chat(self, request: Request) -> ASGIApp:
        self._check_hop(request)
        # In a thread: a body may be large, and the loop has streams to serve.
        opened = await asyncio.to_thread(_open, self.private_key, await read_once(request))
        self._check_model(opened.params["model"], "CHAT", "chat")
        return functools.partial(self._answer_chat, opened)

    async def _audio(self, request: Request) -> ASGIApp:
        self._check_hop(request)
        task = TASKS[request.url.path]
        opened = await asyncio.to_thread(open_audio, self.private_key, task, await read_once(request))
        self._check_model(opened.params["model"], "AUDIO_TRANSCRIPTION", "transcription")
        return functools.partial(self._answer_audio, opened)

    def _check_hop(self, request: Request) -> None:
        if not secrets.compare_digest(request.headers.get(HOP_HEADER, "").encode(), self._hop_secret):
            raise Refused(403, "This route answers the gateway only")

    def _check_model(self, model: str, kind: ModelType, called: str) -> None:
        if self._models is not None and (model not in self._models or model_type(model) != kind):
            raise Refused(
                404, f"There is no such {called} model", validator={"model": f"is no {called} model here"}
            )

    async def _answer_audio(self, opened: OpenedAudio, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            answer = await self._engine.audio(opened.task, opened.params, opened.file_name, opened.audio)
        except EngineError as error:
            raise _refusal(error) from None
        self._audio_meter(answer.seconds)
        content = answer.content
        plaintext = content if isinstance(content, str) else json.dumps(content)
        await send_sealed(opened.keys, plaintext.encode(), send)

    async def _answer_chat(self, opened: _Opened, scope: Scope, receive: Receive, send: Send) -> None:
        params = opened.params
        options = params.get("stream_options") or {}
        streamed = params.get("stream") is True
        # The engine always streams and always counts; what was not asked for is left out afterwards.
        asked = {**params, "stream": True, "stream_options": {**options, "include_usage": True}}
        show_usage = not streamed or options.get("include_usage") is True
        async with (
            aclosing(self._engine.chat(asked)) as chunks,
            aclosing(_metered(chunks, self._meter, show_usage=show_usage)) as batches,
        ):
            answer = _answer_stream if streamed or self._reply_form == "stream" else _answer_envelope
            await answer(opened, batches, send)


async def _metered(
    batches: AsyncGenerator[list[Chunk], None], meter: Callable[[int], None], *, show_usage: bool
) -> AsyncGenerator[list[Chunk], None]:
    """`batches` as they come; `meter` is told at the end, also when that comes early.

    An engine that does not count is charged a token per chunk.
    """
    counted = chunks = 0
    try:
        async for batch in batches:
            chunks += len(batch)
            shown = []
            for chunk in batch:
                if usage := chunk.get("usage"):
                    counted = usage.get("total_tokens") or 0
                    if not show_usage:
                        if not chunk["choices"]:
                            continue
                        chunk = {**chunk, "usage": None}
                shown.append(chunk)
            yield shown
    finally:
        meter(counted or chunks)


async def _answer_stream(opened: _Opened, batches: AsyncGenerator[list[Chunk], None], send: Send) -> None:
    """The documented event stream."""

    async def send_body(events: bytes, *, more: bool = True) -> None:
        await send({"type": "http.response.body", "body": events, "more_body": more})

    try:
        batch: list[Chunk] = await anext(batches, [])
    except EngineError as error:
        raise _refusal(error) from None
    headers = [(b"content-type", EVENT_STREAM.encode()), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    try:
        await send_body(opened.events(batch))
        async for batch in batches:
            await send_body(opened.events(batch))
    except Exception as error:
        await send_body(b"event: error\ndata: %b\n\n" % opened.seal(_error_object(error)), more=False)
    else:
        await send_body(_DONE, more=False)


async def _answer_envelope(opened: _Opened, batches: AsyncGenerator[list[Chunk], None], send: Send) -> None:
    """The audio routes' form: one ``chat.completion`` in the envelope."""
    completion = CompletionBuilder()
    try:
        async for batch in batches:
            for chunk in batch:
                completion.add(ChatCompletionChunk.model_validate(chunk))
    except EngineError as error:
        raise _refusal(error) from None
    await send_sealed(opened.keys, completion.build().model_dump_json().encode(), send)


def _refusal(error: EngineError) -> Refused:
    retry_after = error.retry_after if isinstance(error, UpstreamError) else ""
    return Refused(
        error.status,
        error.message,
        validator={error.param: error.message} if error.param else None,
        log={"type": error.type},
        headers={"Retry-After": retry_after} if retry_after else None,
    )


def _error_object(error: Exception) -> dict[str, Any]:
    """OpenAI's error object, to be sealed."""
    if isinstance(error, EngineError):
        detail = error.detail if isinstance(error, UpstreamError) else None
        return {"error": {"message": detail or error.message, "type": error.type}}
    # Its text may hold anything.
    _log.error("the engine failed in the middle of an answer: %s", type(error).__name__)
    return {"error": {"message": "the engine failed", "type": "server_error"}}


def _open(private_key: PrivateKey, body: bytes) -> _Opened:
    """A forwarded body, opened and checked.

    Raises:
        Refused: 400; it does not have the published shape, does not open, or what it holds is not allowed.
    """
    fields = read_body("chat-request", body)
    keys, (plaintext,) = open_items(private_key, fields, (INFERENCE,))
    params = read_body("chat-inference-params", plaintext, called=INFERENCE.sealed)
    return _Opened(keys, binary(fields, INFERENCE.nonce, exactly=NONCE_BYTES), params)
