"""The enclave: it holds the private key, opens forwarded requests, runs the engine, and seals the responses.

An error before the first chunk cannot be sealed, and passes the gateway as plaintext. It names parameters and rules,
never values.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import secrets
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from contextlib import aclosing
from typing import Any, Final, Literal

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from prem_core._crypto.xwing import PrivateKey
from prem_core._protocol.accumulator import CompletionBuilder
from prem_core._protocol.assumptions import EVENT_STREAM, PUBLIC_KEY_NAMES, PUBLIC_KEY_PATH, encode_binary
from prem_core._protocol.masking import without_padding
from prem_core._protocol.response_types import ChatCompletionChunk, read_json
from prem_core._protocol.routes import AUDIO_ROUTES, CHAT_ROUTE
from prem_core.enclave.attester import Attester
from prem_core.enclave.engines.base import (
    AudioTask,
    Chunk,
    Engine,
    EngineError,
    EngineRequest,
    TruncatedStreamError,
)
from prem_core.enclave.envelope import EnvelopeError
from prem_core.enclave.gateway import FORWARDING_HEADER, model_type
from prem_core.enclave.opened_request import OpenedAudio, OpenedChat, open_audio, open_chat
from prem_core.enclave.sealed_fields import send_sealed

WholeReplies = Literal["stream", "envelope"]

_TASKS: Final[Mapping[str, AudioTask]] = {
    AUDIO_ROUTES["transcribe"]: "transcribe",
    AUDIO_ROUTES["translate"]: "translate",
}

_DONE: Final = b"event: done\ndata: [DONE]\n\n"

_log = logging.getLogger("prem_core.enclave")


class Enclave:
    """The enclave's routes, as an ASGI application.

    It raises errors as `EnvelopeError`; the middleware around it sends them.

    Args:
        private_key: The key to open requests with. Assign to the attribute of this name to rotate it.
        engine: Produces the responses.
        models: The models that requests may name; None for any.
        whole_replies: The form of a response without ``stream: true``.
        forwarding_secret: The value of `FORWARDING_HEADER`: only the gateway may forward requests.
        meter: Called with the tokens of each chat when it ends. How the real gateway learns them is not documented.
        audio_meter: Called with the seconds of each transcribed recording.
        attester: Answers the routes of attestation; None to have none.
    """

    def __init__(
        self,
        *,
        private_key: PrivateKey,
        engine: Engine,
        models: Collection[str] | None,
        whole_replies: WholeReplies,
        forwarding_secret: str,
        meter: Callable[[int], None],
        audio_meter: Callable[[float], None],
        attester: Attester | None = None,
    ) -> None:
        self.private_key = private_key
        self._engine = engine
        self._models = models
        self._whole_replies = whole_replies
        self._forwarding_secret = forwarding_secret.encode()
        self._meter = meter
        self._audio_meter = audio_meter
        self._router = Router(
            [
                Route(PUBLIC_KEY_PATH, self._publish_key, methods=["GET"]),
                Route(CHAT_ROUTE, self._chat, methods=["POST"]),
                *(Route(path, self._audio, methods=["POST"]) for path in _TASKS),
                *(attester.evidence_routes(self._check_forwarded) if attester is not None else ()),
                *(attester.vendor_routes() if attester is not None else ()),
            ],
            redirect_slashes=False,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._router(scope, receive, send)

    async def _publish_key(self, request: Request) -> Response:
        key = encode_binary(bytes(self.private_key.public_key()))
        return JSONResponse({PUBLIC_KEY_NAMES[0]: key})

    async def _chat(self, request: Request) -> ASGIApp:
        self._check_forwarded(request)
        # In a thread: a large body must not block the streams on the event loop.
        opened = await asyncio.to_thread(open_chat, self.private_key, await _take_body(request))
        self._check_model(opened.params["model"], "CHAT", "chat")
        return functools.partial(self._respond_chat, opened)

    async def _audio(self, request: Request) -> ASGIApp:
        self._check_forwarded(request)
        task = _TASKS[request.url.path]
        opened = await asyncio.to_thread(open_audio, self.private_key, task, await _take_body(request))
        self._check_model(opened.params["model"], "AUDIO_TRANSCRIPTION", "transcription")
        return functools.partial(self._respond_audio, opened)

    def _check_forwarded(self, request: Request) -> None:
        if not secrets.compare_digest(
            request.headers.get(FORWARDING_HEADER, "").encode(), self._forwarding_secret
        ):
            raise EnvelopeError(403, "This route accepts requests from the gateway only")

    def _check_model(self, model: str, kind: str, purpose: str) -> None:
        if self._models is not None and (model not in self._models or model_type(model) != kind):
            raise EnvelopeError(
                404, f"There is no such {purpose} model", validator={"model": f"is not a {purpose} model"}
            )

    async def _respond_audio(self, opened: OpenedAudio, scope: Scope, receive: Receive, send: Send) -> None:
        request = EngineRequest(opened.task, opened.params, opened.file_name, opened.audio)
        try:
            answer = await self._engine.audio(request)
        except EngineError as error:
            raise envelope_error(error) from None
        self._audio_meter(answer.seconds)
        content = answer.content
        plaintext = content if isinstance(content, str) else json.dumps(content)
        await send_sealed(opened.keys, plaintext.encode(), send)

    async def _respond_chat(self, opened: OpenedChat, scope: Scope, receive: Receive, send: Send) -> None:
        params = opened.params
        streamed = params.get("stream") is True
        # The engine always reports usage; the enclave leaves it out where it was not asked for.
        show_usage = not streamed or (params.get("stream_options") or {}).get("include_usage") is True
        async with (
            # Without the client's mask, which an upstream server might keep or refuse.
            aclosing(self._engine.chat(EngineRequest("chat", without_padding(params)))) as answer,
            aclosing(_metered(answer, self._meter, show_usage=show_usage)) as chunks,
        ):
            send_answer = _send_stream if streamed or self._whole_replies == "stream" else _send_envelope
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


async def _send_stream(opened: OpenedChat, chunks: AsyncGenerator[Chunk, None], send: Send) -> None:
    """Send the documented event stream."""

    async def send_body(events: bytes, *, more: bool = True) -> None:
        await send({"type": "http.response.body", "body": events, "more_body": more})

    end = _DONE
    first: Chunk | None = None
    try:
        first = await anext(chunks, None)
    except EngineError as error:
        raise envelope_error(error) from None
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


async def _send_envelope(opened: OpenedChat, chunks: AsyncGenerator[Chunk, None], send: Send) -> None:
    """Send one ``chat.completion`` in the envelope of the audio routes."""
    completion = CompletionBuilder()
    try:
        async for chunk in chunks:
            completion.add(read_json(ChatCompletionChunk, json.dumps(chunk).encode()))
    except EngineError as error:
        raise envelope_error(error) from None
    except TruncatedStreamError:
        pass  # without its finish reason, the answer is a truncated one
    await send_sealed(opened.keys, completion.build().model_dump_json().encode(), send)


def envelope_error(error: EngineError) -> EnvelopeError:
    """The error envelope for an engine's error before its first chunk. It is sent as plaintext."""
    message: str | dict[str, Any] = error.message
    if error.code is not None:  # the envelope has no place for a code; OpenAI's error object has
        message = {"message": error.message, "type": error.type, "code": error.code, "param": error.param}
    retry_after = error.retry_after
    if isinstance(retry_after, float | int):
        retry_after = f"{retry_after:g}"
    return EnvelopeError(
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
    # The text of the error may hold content; its type does not.
    _log.error("the engine failed in mid-stream: %s", type(error).__name__)
    return {"error": {"message": "the engine failed", "type": "server_error"}}


async def _take_body(request: Request) -> bytes:
    """The request body. Unlike ``request.body()``, this does not keep it in memory while the response is sent."""
    return b"".join([chunk async for chunk in request.stream()])
