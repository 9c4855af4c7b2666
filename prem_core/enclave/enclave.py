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
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import aclosing
from typing import Any, Final, Literal, NamedTuple

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
from prem_core.enclave.audio_request import TASKS, OpenedAudio, open_audio
from prem_core.enclave.engines.base import Chunk, Engine, EngineError, EngineRequest, TruncatedStreamError
from prem_core.enclave.gateway import CHAT_PATH, HOP_HEADER, ModelType, model_type
from prem_core.enclave.schema_check import Refused, read_body
from prem_core.enclave.sealed_fields import INFERENCE, binary, open_items, read_once, send_sealed

ReplyForm = Literal["stream", "envelope"]

_DONE: Final = b"event: done\ndata: [DONE]\n\n"

_log = logging.getLogger("prem_core.enclave")


class _Opened(NamedTuple):
    """One request after decryption."""

    keys: EncryptionKeys
    nonce: bytes
    params: dict[str, Any]

    def seal(self, value: Any) -> bytes:
        """`value` as JSON, sealed under the request's own nonce as the protocol has it, as hex."""
        return encode_binary(self.keys.seal(json.dumps(value).encode(), self.nonce)).encode()

    def event(self, name: bytes, value: Any) -> bytes:
        """`value` as a sealed event."""
        return b"event: %b\ndata: %b\n\n" % (name, self.seal(value))


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
        request = EngineRequest(opened.task, opened.params, opened.file_name, opened.audio)
        try:
            answer = await self._engine.audio(request)
        except EngineError as error:
            raise refusal(error) from None
        self._audio_meter(answer.seconds)
        content = answer.content
        plaintext = content if isinstance(content, str) else json.dumps(content)
        await send_sealed(opened.keys, plaintext.encode(), send)

    async def _answer_chat(self, opened: _Opened, scope: Scope, receive: Receive, send: Send) -> None:
        params = opened.params
        streamed = params.get("stream") is True
        # The engine always reports usage; the enclave leaves it out where it was not asked for.
        show_usage = not streamed or (params.get("stream_options") or {}).get("include_usage") is True
        async with (
            aclosing(self._engine.chat(EngineRequest("chat", params))) as answer,
            aclosing(_metered(answer, self._meter, show_usage=show_usage)) as chunks,
        ):
            send_answer = _send_stream if streamed or self._reply_form == "stream" else _send_envelope
            await send_answer(opened, chunks, send)


async def _metered(
    chunks: AsyncGenerator[Chunk, None], meter: Callable[[int], None], *, show_usage: bool
) -> AsyncGenerator[Chunk, None]:
    """`chunks` as they come. At the end, `meter` is called with the tokens, also when the end comes early.

    An answer without usage is charged one token per chunk.
    """
    total_tokens = count = 0
    try:
        async for chunk in chunks:
            count += 1
            if usage := chunk.get("usage"):
                total_tokens = usage.get("total_tokens") or 0
                if not show_usage:
                    if not chunk.get("choices"):
                        continue
                    chunk = {**chunk, "usage": None}
            yield chunk
    finally:
        meter(total_tokens or count)


async def _send_stream(opened: _Opened, chunks: AsyncGenerator[Chunk, None], send: Send) -> None:
    """Send the documented event stream."""

    async def send_body(events: bytes, *, more: bool = True) -> None:
        await send({"type": "http.response.body", "body": events, "more_body": more})

    end = _DONE
    first: Chunk | None = None
    try:
        first = await anext(chunks, None)
    except EngineError as error:
        raise refusal(error) from None
    except TruncatedStreamError:
        end = b""
    headers = [(b"content-type", EVENT_STREAM.encode()), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    try:
        # Sent even when it is empty: the response's headers go out with it.
        await send_body(b"" if first is None else opened.event(b"data", first))
        async for chunk in chunks:
            await send_body(opened.event(b"data", chunk))
            # Neither need wait for anything, and a disconnect must be noticed in between.
            await asyncio.sleep(0)
    except TruncatedStreamError:
        end = b""
    except Exception as error:
        end = opened.event(b"error", _error_object(error))
    await send_body(end, more=False)


async def _send_envelope(opened: _Opened, chunks: AsyncGenerator[Chunk, None], send: Send) -> None:
    """Send one ``chat.completion`` in the envelope of the audio routes."""
    completion = CompletionBuilder()
    try:
        async for chunk in chunks:
            completion.add(ChatCompletionChunk.model_validate(chunk))
    except EngineError as error:
        raise refusal(error) from None
    except TruncatedStreamError:
        pass  # without its finish reason, the answer is a truncated one
    await send_sealed(opened.keys, completion.build().model_dump_json().encode(), send)


def refusal(error: EngineError) -> Refused:
    """The HTTP error for an engine's error before its first chunk. It goes out unsealed."""
    message: str | dict[str, Any] = error.message
    if error.code is not None:  # the envelope has no place for a code; OpenAI's error object has
        message = {"message": error.message, "type": error.type, "code": error.code, "param": error.param}
    retry_after = error.retry_after
    if isinstance(retry_after, float | int):
        retry_after = f"{retry_after:g}"
    return Refused(
        error.status,
        message,
        validator=error.validator or ({error.param: error.message} if error.param else None),
        log={"type": error.type},
        headers={"Retry-After": retry_after} if retry_after else None,
    )


def _error_object(error: Exception) -> dict[str, Any]:
    """OpenAI's error object, to be sealed."""
    if isinstance(error, EngineError):
        found = {"message": error.detail or error.message, "type": error.type}
        return {"error": found if error.code is None else {**found, "code": error.code}}
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
