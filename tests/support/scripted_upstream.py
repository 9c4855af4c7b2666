"""A real OpenAI-compatible server whose responses each test sets, and the chunks to respond with."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse


@dataclass(frozen=True)
class ReceivedRecording:
    """A recording as it was sent for transcription or translation."""

    task: str
    name: str
    data: bytes = field(repr=False)
    params: dict[str, str]

    @classmethod
    def of(cls, path: str, content_type: str, body: bytes) -> ReceivedRecording:
        boundary = content_type.partition("boundary=")[2].encode()
        params, name, data = {}, "", b""
        for part in body.split(b"--" + boundary)[1:-1]:
            head, _, content = part.partition(b"\r\n\r\n")
            names = dict(re.findall(r'(\w+)="([^"]*)"', head.decode()))
            if "filename" in names:
                name, data = names["filename"], content[:-2]
            else:
                params[names["name"]] = content[:-2].decode()
        return cls("translate" if path.endswith("translations") else "transcribe", name, data, params)


@dataclass
class Upstream:
    """A real OpenAI-compatible server whose response each test sets."""

    url: str = ""
    answer: Callable[[dict[str, Any]], Response] = lambda body: Response(status_code=500)
    requests: list[tuple[dict[str, str], dict[str, Any]]] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)
    transcribe: Callable[[ReceivedRecording], Any] = lambda recording: Response(status_code=500)
    recordings: list[ReceivedRecording] = field(default_factory=list)
    models: Response = field(default_factory=lambda: Response(status_code=404))

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append((dict(request.headers), body))
        return self.answer(body)

    async def receive_recording(self, request: Request) -> Response:
        body = await request.body()
        recording = ReceivedRecording.of(request.url.path, request.headers["content-type"], body)
        self.recordings.append(recording)
        answer = await asyncio.to_thread(self.transcribe, recording)
        return answer if isinstance(answer, Response) else JSONResponse(answer)

    def transcribe_with(self, answer: Callable[[ReceivedRecording], Any] | dict[str, Any]) -> None:
        """Respond to recordings with this object, or with the result of this function (called in a thread)."""
        self.transcribe = answer if callable(answer) else lambda recording: answer

    def respond_with(self, *chunks: Any, done: bool = True) -> None:
        """Respond to chat requests with these chunks."""

        async def events() -> AsyncIterator[str]:
            for each in chunks:
                yield f"data: {each if isinstance(each, str) else json.dumps(each)}\n\n"
            if done:
                yield "data: [DONE]\n\n"

        self.answer = lambda body: StreamingResponse(events(), media_type="text/event-stream")

    def stalls(self, *chunks: Any) -> None:
        """Respond with these chunks and then nothing; `left` is set when the client disconnects."""

        async def events() -> AsyncIterator[str]:
            try:
                for each in chunks:
                    yield f"data: {json.dumps(each)}\n\n"
                await asyncio.sleep(60)
            finally:
                self.left.set()

        self.answer = lambda body: StreamingResponse(events(), media_type="text/event-stream")

    def refuses(self, status: int, body: Any = None, **headers: str) -> None:
        """Respond with an HTTP error."""
        content = json.dumps(body).encode()
        self.answer = lambda _: Response(
            content, status, {k.replace("_", "-"): v for k, v in headers.items()}
        )


def chunk(content: str | None = None, *, finish: str | None = None, **more: Any) -> dict[str, Any]:
    """A chunk with a piece of text, a finish reason, or both."""
    added = {} if content is None else {"content": content}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "scripted"}
    return {**head, "choices": [{"index": 0, "delta": added, "finish_reason": finish}], **more}


def usage_chunk(total: int) -> dict[str, Any]:
    """The chunk that counts `total` tokens."""
    return usage(total - 1, 1)


def delta(**fields: Any) -> dict[str, Any]:
    """A chunk that adds these fields to the first choice."""
    return chunk(choices=[{"index": 0, "delta": fields, "finish_reason": None}])


def finish(reason: str = "stop") -> dict[str, Any]:
    """The chunk that ends the first choice."""
    return chunk(finish=reason)


def usage(
    prompt: int, completion: int, *, reasoning: int | None = None, cached: int | None = None
) -> dict[str, Any]:
    """The chunk that counts tokens."""
    counts: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    if reasoning is not None:
        counts["completion_tokens_details"] = {"reasoning_tokens": reasoning}
    if cached is not None:
        counts["prompt_tokens_details"] = {"cached_tokens": cached}
    return chunk(choices=[], usage=counts)


def tool_call(
    index: int, call_id: str | None = None, name: str | None = None, arguments: str = ""
) -> dict[str, Any]:
    """A piece of a call."""
    piece: dict[str, Any] = {"index": index, "function": {"arguments": arguments}}
    if call_id is not None:
        piece.update(id=call_id, type="function")
    if name is not None:
        piece["function"]["name"] = name
    return piece
