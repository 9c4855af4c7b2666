"""The engine for tests: it answers with replies that the test has written down."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
import threading
import traceback
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from prem_core._errors import APIStatusError, ConfigurationError
from prem_core._protocol.nonce_reuse import is_probe, probe_recording
from prem_core.enclave.engines.base import (
    AudioReply,
    Chunk,
    Engine,
    EngineError,
    EngineRequest,
    TruncatedStreamError,
)
from prem_core.enclave.engines.stream import Choice, StreamedCall, prompt_tokens, stream

#: Functions given as `respond` run in separate threads, so that one that blocks does not delay other requests.
_THREADS: Final = 64

#: The length of a recording whose transcript does not state it: 128 kbit/s.
_AUDIO_BYTES_PER_SECOND: Final = 16_000

#: The time of every answer, in seconds since the epoch: the same in every run.
_CREATED: Final = 1_700_000_000

_sleep = asyncio.sleep


@dataclass(frozen=True, slots=True)
class ScriptedToolCall:
    """A tool call in a reply, made by `tool_call`. `id` is by default ``call_1``, ``call_2`` and so on."""

    name: str
    arguments: str = field(repr=False)
    id: str | None = None


@dataclass(frozen=True, slots=True)
class ScriptedReply:
    """One answer, made by `reply`, whose arguments these are."""

    content: str | Sequence[str] = field(default="", repr=False)
    reasoning: str | Sequence[str] = field(default="", repr=False)
    refusal: str = field(default="", repr=False)
    tool_calls: Sequence[ScriptedToolCall] = field(default=(), repr=False)
    chunks: Sequence[Chunk] | None = field(default=None, repr=False)
    transcript: Mapping[str, Any] | None = field(default=None, repr=False)
    finish_reason: str | None = None
    usage: tuple[int, int] | Mapping[str, Any] | None = None
    delay: float = 0
    chunk_delay: float = 0
    error: Exception | None = field(default=None, repr=False)
    truncated: bool = False
    stalled: bool = False


#: What a test may write down as a reply; see `ScriptedEngine`.
ReplyLike = (
    str
    | ScriptedReply
    | ScriptedToolCall
    | Sequence[ScriptedToolCall | Chunk | Exception]
    | Mapping[str, Any]
    | Exception
)
Respond = Callable[[EngineRequest], Any]


def tool_call(
    name: str, arguments: Mapping[str, Any] | str | None = None, /, **keywords: Any
) -> ScriptedToolCall:
    """A tool call: ``tool_call("get_weather", city="Paris")``.

    Args:
        name: The tool's name.
        arguments: The arguments as a mapping, for names that cannot be keywords; or as JSON text, which may
            be broken.
        keywords: The arguments.
    """
    if isinstance(arguments, str):
        return ScriptedToolCall(name, arguments)
    return ScriptedToolCall(name, json.dumps({**(arguments or {}), **keywords}, ensure_ascii=False))


def reply(
    content: str | Sequence[str] = "",
    *,
    reasoning: str | Sequence[str] = "",
    tool_calls: ScriptedToolCall | Sequence[ScriptedToolCall] = (),
    refusal: str = "",
    finish_reason: str | None = None,
    usage: tuple[int, int] | Mapping[str, Any] | None = None,
    delay: float = 0,
    chunk_delay: float = 0,
    error: Exception | None = None,
    truncated: bool = False,
    stalled: bool = False,
) -> ScriptedReply:
    """An answer: ``reply("It is 18 °C.", reasoning="Look outside.", usage=(12, 5))``.

    For a recording, `content` is the transcript.

    Args:
        content: The text, streamed word by word; a list of texts is streamed in exactly these pieces.
        reasoning: The reasoning before it, likewise.
        tool_calls: The tool calls after it.
        refusal: The model's refusal.
        finish_reason: ``length`` for an answer that was cut by a token limit; by default ``tool_calls`` or
            ``stop``.
        usage: Tokens of the prompt and of the answer, or the whole usage object; by default words are counted.
        delay: Seconds before the first chunk.
        chunk_delay: Seconds before each further chunk.
        error: An error in mid-stream, after the content: an `APIStatusError` or an `EngineError`.
        truncated: The stream stops after the content, without its finish reason and its ``done`` event.
        stalled: Nothing follows the content until the client disconnects.
    """
    calls = (tool_calls,) if isinstance(tool_calls, ScriptedToolCall) else tuple(tool_calls)
    return ScriptedReply(
        content=content,
        reasoning=reasoning,
        refusal=refusal,
        tool_calls=calls,
        finish_reason=finish_reason,
        usage=usage,
        delay=delay,
        chunk_delay=chunk_delay,
        error=error,
        truncated=truncated,
        stalled=stalled,
    )


class ScriptedEngine(Engine):
    """Answers with given replies, in order, or with what a function returns for each request.

    ::

        ScriptedEngine(["Hello", tool_call("get_weather", city="Paris"), RateLimitError(retry_after=1)])
        ScriptedEngine(respond=lambda request: request.text.upper())

    A reply is one of these:

    - a text, for a chat or as the transcript of a recording,
    - `reply(…)`, an answer with everything it can have,
    - `tool_call(…)`, or a list of them,
    - an `APIStatusError`, such as ``RateLimitError(retry_after=1)``, or an `EngineError`,
    - a list of ``chat.completion.chunk`` objects, sent as they are; an error may follow them,
    - the transcript of a recording, as a dict or a `Transcription`.

    A reply is sent as it is written: `stop`, `max_tokens`, `response_format` and `tool_choice` do not change
    it, and each of `n` choices is the same. Ids count up: ``chatcmpl-1``, ``call_1``. A client with `nonce_reuse`
    "error" first sends a probe; it is answered without using a reply, and is not among the `requests`.

    Args:
        replies: One reply for each request.
        respond: Called with each `EngineRequest`, and returns its reply. It may be async; otherwise it runs in
            a thread, and may block. An exception it raises is the reply.

    Attributes:
        replies: The replies that are left. Assign a list, or append to it, to set what comes next.
        respond: The function, or None.
        requests: Every request, in the order in which they came.
        disconnected: Set when a client disconnects before its answer is whole.

    Raises:
        ConfigurationError: Both `replies` and `respond` are given.
    """

    def __init__(self, replies: Iterable[ReplyLike] = (), *, respond: Respond | None = None) -> None:
        self.replies = list(replies)
        self.respond = respond
        self.requests: list[EngineRequest] = []
        self.disconnected = threading.Event()
        self._lock = threading.Lock()
        self._replies_used = 0
        self._call_ids = itertools.count(1)
        self._threads: ThreadPoolExecutor | None = None
        if respond is not None and self.replies:
            raise ConfigurationError("replies and respond are both given: pass one of them")

    def __repr__(self) -> str:
        return f"ScriptedEngine({len(self.replies)} replies left, {len(self.requests)} requests)"

    async def chat(self, request: EngineRequest) -> AsyncGenerator[Chunk, None]:
        """See `Engine.chat`."""
        if is_probe(request.params):
            for chunk in self._chunks(request, 0, ScriptedReply("ok")):
                yield chunk
            return
        try:
            number, answer = await self._answer(request)
            for position, chunk in enumerate(self._chunks(request, number, answer)):
                if position and answer.chunk_delay:
                    await _sleep(answer.chunk_delay)
                yield chunk
            if answer.stalled:
                await asyncio.Event().wait()
        except (GeneratorExit, asyncio.CancelledError):
            self.disconnected.set()
            raise
        if answer.error is not None:
            raise _engine_error(answer.error)
        if answer.truncated:
            raise TruncatedStreamError

    async def audio(self, request: EngineRequest) -> AudioReply:
        """See `Engine.audio`."""
        if request.audio == probe_recording():
            return _audio_reply(request, ScriptedReply("ok"))
        try:
            _, answer = await self._answer(request)
            if answer.stalled:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.disconnected.set()
            raise
        if answer.error is not None:
            raise _engine_error(answer.error)
        return _audio_reply(request, answer)

    async def aclose(self) -> None:
        """See `Engine.aclose`. Replies and requests stay."""
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)

    async def _answer(self, request: EngineRequest) -> tuple[int, ScriptedReply]:
        """Record the request; after the reply's delay, its number and its reply.

        Raises:
            EngineError: The reply is an error, there is none, or it does not fit the request.
        """
        with self._lock:
            self.requests.append(request)
            number = len(self.requests)
            value: Any = None
            if scripted := bool(self.replies):
                value = self.replies.pop(0)
                self._replies_used += 1
        if not scripted:
            if self.respond is None:
                raise EngineError(
                    f"no reply left for request {number} ({self._replies_used} given): add a reply, or pass respond="
                )
            value = await self._call(self.respond, request)
        answer = _scripted_reply(value)
        chat_only = answer.chunks is not None or answer.tool_calls
        if answer.transcript is not None if request.task == "chat" else chat_only:
            expected = "a chat" if request.task == "chat" else "a recording"
            raise EngineError(f"request {number} is {expected}, and its reply is for another kind of request")
        if answer.delay:
            await _sleep(answer.delay)
        return number, answer

    async def _call(self, respond: Respond, request: EngineRequest) -> Any:
        try:
            if inspect.iscoroutinefunction(respond):
                return await respond(request)
            if self._threads is None:
                self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="prem-respond")
            value = await asyncio.get_running_loop().run_in_executor(self._threads, respond, request)
            return await value if inspect.isawaitable(value) else value
        except (APIStatusError, EngineError) as error:
            return error
        except Exception as error:
            # Not its text, which may repeat the request.
            raise EngineError(f"respond raised {type(error).__name__}{_place(error)}") from None

    def _chunks(self, request: EngineRequest, number: int, answer: ScriptedReply) -> Iterable[Chunk]:
        if answer.chunks is not None:
            return answer.chunks
        calls = [
            StreamedCall(call.id or f"call_{next(self._call_ids)}", call.name, call.arguments)
            for call in answer.tool_calls
        ]
        choice = Choice(answer.content, answer.reasoning, answer.refusal, calls, answer.finish_reason)
        head = {
            "id": f"chatcmpl-{number}",
            "object": "chat.completion.chunk",
            "created": _CREATED,
            "model": request.model,
            "system_fingerprint": "scripted",
        }
        usage = answer.usage
        if isinstance(usage, tuple):
            prompt, completion = usage
            usage = {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
            }
        return stream(
            [choice] * (request.params.get("n") or 1),
            head,
            prompt_tokens=prompt_tokens(request),
            usage=usage,
            finished=not (answer.error or answer.truncated or answer.stalled),
        )


def _scripted_reply(value: Any) -> ScriptedReply:
    """Any form of `ReplyLike` as a `ScriptedReply`.

    Raises:
        EngineError: It is an error, or has none of the forms.
    """
    if isinstance(value, ScriptedReply):
        return value
    if isinstance(value, str):
        return ScriptedReply(value)
    if isinstance(value, ScriptedToolCall):
        return ScriptedReply(tool_calls=(value,))
    if isinstance(value, Exception):
        raise _engine_error(value)
    if isinstance(value, Mapping):
        return ScriptedReply(transcript=value)
    if hasattr(value, "model_dump"):  # prem_core.Transcription, without an import of pydantic
        return ScriptedReply(transcript=value.model_dump(exclude_none=True))
    if isinstance(value, list | tuple) and value:
        if all(isinstance(each, ScriptedToolCall) for each in value):
            return ScriptedReply(tool_calls=tuple(value))
        error = value[-1] if isinstance(value[-1], Exception) else None
        chunks = value if error is None else value[:-1]
        if all(isinstance(each, Mapping) for each in chunks):
            return ScriptedReply(chunks=tuple(chunks), error=error)
    raise EngineError(
        f"a reply cannot be of type {type(value).__name__}: give a text, reply(…), tool_call(…), a list of tool "
        "calls or of chunks, an APIStatusError, or a transcript"
    )


def _engine_error(error: Exception) -> EngineError:
    if isinstance(error, EngineError):
        return error
    if not isinstance(error, APIStatusError) or not 400 <= error.status_code < 600:
        return EngineError(
            f"a reply cannot be this {type(error).__name__}: give an APIStatusError with a status_code of 400 to "
            "599, or an EngineError"
        )
    message = str(error.args[0])
    if scope := getattr(error, "scope", None):
        message += f": missing scope {scope}"
    return EngineError(
        message,
        status=error.status_code,
        type=error.type,
        code=error.code,
        param=error.param,
        validator=error.validator,
        retry_after=error.retry_after,
    )


def _audio_reply(request: EngineRequest, answer: ScriptedReply) -> AudioReply:
    seconds = len(request.audio) / _AUDIO_BYTES_PER_SECOND
    response_format = request.params.get("response_format")
    if answer.transcript is not None:
        transcript = dict(answer.transcript)
        seconds = float(transcript.get("duration") or seconds)
        return AudioReply(
            str(transcript.get("text", "")) if response_format == "text" else transcript, seconds
        )
    text = answer.content if isinstance(answer.content, str) else "".join(answer.content)
    if response_format == "text":
        return AudioReply(text, seconds)
    if response_format != "verbose_json":
        return AudioReply({"text": text}, seconds)
    segment = {"id": 0, "start": 0.0, "end": seconds, "text": text}
    transcript = {"task": request.task, "language": "english", "duration": seconds, "text": text}
    return AudioReply({**transcript, "segments": [segment] if text else []}, seconds)


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
