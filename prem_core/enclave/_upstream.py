"""The engine that passes requests on to an OpenAI-compatible server: Ollama, vLLM, llama.cpp and others.

The rule of this file: what goes up is the request as it was opened, what comes down is made to satisfy the
published chunk schema, and an answer that ends early is an error. The server's own words about an error
are kept apart from ours, because only what is sealed may repeat them.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
import time
import uuid
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import aclosing, suppress
from math import isfinite
from typing import Any, Final

import httpx

from prem_core._errors import ConfigurationError, ResponseTooLargeError
from prem_core._protocol.assumptions import EVENT_STREAM, STREAM_ERROR_STATUS
from prem_core._protocol.sse import EventDecoder
from prem_core.enclave._engine import AudioAnswer, AudioTask, EngineError
from prem_core.enclave.audio_request import PARAMS_SCHEMAS
from prem_core.enclave.schema_check import SchemaName, property_names

#: One event of the server, or one whole answer about a recording, may be this long, as the published
#: SDK's buffer.
MAX_EVENT_BYTES: Final = 10 * 1024 * 1024

#: Seconds to connect. There is no limit on reading: a prompt may take minutes on a CPU, and a
#: client that does not want to wait hangs up.
CONNECT_TIMEOUT: Final = 10.0

#: Seconds a server may take to end its answer after ``[DONE]``, for its connection to be used again.
_END_TIMEOUT: Final = 0.1

_CHAT_ROUTE: Final = "/chat/completions"

#: Where a server offers each task, behind its base URL.
_AUDIO_ROUTES: Final[Mapping[AudioTask, str]] = {
    "transcribe": "/audio/transcriptions",
    "translate": "/audio/translations",
}

#: Bytes of a second of audio, where the answer does not say how many seconds it was: 128 kbit/s.
_BYTES_PER_SECOND: Final = 16_000

_CONNECTION: Final = "cannot be reached, or broke the connection"
_UNAVAILABLE: Final = "the upstream server is unavailable"
_CONTEXT_LENGTH: Final = "the prompt is longer than the model's context window"

_CHUNK_FIELDS: Final = ("id", "created", "model", "system_fingerprint", "choices", "usage")


class UpstreamError(EngineError):
    """The upstream server refused or failed. `message` is in words of our own and may go out unsealed.

    Attributes:
        detail: The server's own words, which may repeat the request: only to be sent sealed.
        retry_after: Its Retry-After header, as it sent it; empty if it sent none.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        detail: str | None = None,
        retry_after: str = "",
        **values: Any,
    ) -> None:
        super().__init__(status, message, **values)
        self.detail = detail
        self.retry_after = retry_after


def completions_url(base: str) -> httpx.URL:
    """The chat completions URL of a server given by its base URL, with or without ``/v1``.

    Raises:
        ConfigurationError: It is not an http(s) URL.
    """
    try:
        url = httpx.URL(base.strip())
    except httpx.InvalidURL:
        url = httpx.URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigurationError("upstream must be an http or https URL, such as http://localhost:11434/v1")
    path = url.path.rstrip("/").removesuffix(_CHAT_ROUTE)
    if not re.search(r"/v\d", path):
        path += "/v1"
    return url.copy_with(path=f"{path}{_CHAT_ROUTE}")


class UpstreamEngine:
    """Chat completions from an OpenAI-compatible server, streamed through, and its words for recordings.

    Args:
        base_url: The server, with or without ``/v1``.
        api_key: Sent as a bearer token, if given.

    Raises:
        ConfigurationError: `base_url` is not an http(s) URL.
    """

    def __init__(self, base_url: str, api_key: str | None = None) -> None:
        self._url = completions_url(base_url)
        self._http = httpx.AsyncClient(
            headers={} if api_key is None else {"authorization": f"Bearer {api_key}"},
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT),
            limits=httpx.Limits(max_connections=None),
            # A proxy from the environment is for servers elsewhere, not for one on this machine.
            trust_env=not _is_loopback(self._url.host),
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def chat(self, params: Mapping[str, Any]) -> AsyncGenerator[list[dict[str, Any]], None]:
        """The completion's chunks, in batches as they arrive.

        Raises:
            UpstreamError: The server refused, cannot be reached, or its answer is no whole stream.
        """
        options = {**(params.get("stream_options") or {}), "include_usage": True}
        # ASCII: a lone surrogate in the prompt would not encode as UTF-8.
        body = json.dumps({**params, "stream": True, "stream_options": options}).encode()
        defaults = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": params["model"],
        }
        headers = {"accept": EVENT_STREAM, "content-type": "application/json"}
        try:
            async with self._http.stream("POST", self._url, content=body, headers=headers) as reply:
                if reply.status_code != 200:
                    raise await _refusal(reply, "chat-inference-params")
                async with aclosing(_events(reply)) as batches:
                    async for batch in batches:
                        chunks: list[dict[str, Any]] = []
                        for event in batch:
                            if event.get("error"):
                                if chunks:
                                    yield chunks  # what came before the error is not lost with it
                                raise _reported(event["error"])
                            chunks.append(_chunk(event, defaults))
                        yield chunks
        except httpx.RequestError:
            raise _broken(_CONNECTION) from None
        except ResponseTooLargeError:
            raise _broken("sent an event that is too large") from None

    async def audio(
        self, task: AudioTask, params: Mapping[str, Any], file_name: str, audio: bytes
    ) -> AudioAnswer:
        """What the server says of the file, unchanged.

        Raises:
            UpstreamError: The server refused, cannot be reached, or did not answer in the form asked for.
        """
        # A part without a file name would be a text field.
        file = {"file": (file_name or "audio", audio)}
        url = self._url.copy_with(path=self._url.path.removesuffix(_CHAT_ROUTE) + _AUDIO_ROUTES[task])
        try:
            async with self._http.stream("POST", url, data=_form(params), files=file) as reply:
                if reply.status_code != 200:
                    raise await _refusal(reply, PARAMS_SCHEMAS[task])
                body = await _whole(reply)
        except httpx.RequestError:
            raise _broken(_CONNECTION) from None
        seconds = len(audio) / _BYTES_PER_SECOND
        if params.get("response_format") == "text":
            return AudioAnswer(body.decode("utf-8", "replace"), seconds)
        said = _object(body, "an answer")
        if not isinstance(said.get("text"), str):
            raise _broken("sent an answer without text")
        return AudioAnswer(said, _seconds(said, seconds))


def _form(params: Mapping[str, Any]) -> dict[str, Any]:
    """`params` as fields of a form, a list as OpenAI writes it: with brackets, once for each value."""
    form: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, list):
            form[f"{name}[]"] = value
        else:
            # A lone surrogate in the prompt would not encode as UTF-8.
            form[name] = value.encode("utf-8", "replace") if isinstance(value, str) else value
    return form


async def _whole(reply: httpx.Response) -> bytes:
    body = bytearray()
    async for piece in reply.aiter_bytes():
        body += piece
        if len(body) > MAX_EVENT_BYTES:
            raise _broken("sent an answer that is too large")
    return bytes(body)


def _seconds(said: Mapping[str, Any], otherwise: float) -> float:
    """How long the server says the recording is; only the verbose form says it, or OpenAI's usage."""
    usage = said.get("usage")
    told: list[Any] = [said.get("duration"), usage.get("seconds") if isinstance(usage, dict) else None]
    # Whisper's own servers write the duration as a string at times.
    for value in told:
        with suppress(TypeError, ValueError):
            if isfinite(seconds := float(value)) and seconds >= 0:
                return seconds
    return otherwise


async def _events(reply: httpx.Response) -> AsyncGenerator[list[dict[str, Any]], None]:
    """Batches of the stream's JSON objects, up to ``[DONE]``."""
    if not reply.headers.get("content-type", "").startswith(EVENT_STREAM):
        raise _broken("did not answer with an event stream")
    decoder = EventDecoder(MAX_EVENT_BYTES)
    pieces = reply.aiter_bytes()
    async for piece in pieces:
        batch: list[dict[str, Any]] = []
        for _, data in decoder.feed(piece):
            if data.strip() == b"[DONE]":
                yield batch
                with suppress(TimeoutError, httpx.RequestError):
                    async with asyncio.timeout(_END_TIMEOUT):
                        async for _ in pieces:
                            pass
                return
            batch.append(_object(data, "an event"))
        if batch:
            yield batch
    raise _broken("ended its stream before it was done")


def _object(data: bytes, called: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _broken(f"sent {called} that is not a JSON object")
    return value


def _chunk(event: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`event` as the published schema has it; fields that schema does not know are left out.

    Raises:
        UpstreamError: It has no such shape.
    """
    given = {name: event[name] for name in _CHUNK_FIELDS if event.get(name) is not None}
    chunk: dict[str, Any] = {**defaults, **given, "object": "chat.completion.chunk"}
    usage, choices = chunk.get("usage", {}), chunk.get("choices", [])
    if not isinstance(usage, dict) or not isinstance(choices, list):
        raise _broken("sent a chunk that cannot be read")
    chunk["choices"] = [_choice(choice) for choice in choices]
    return chunk


def _choice(choice: Any) -> dict[str, Any]:
    delta = choice.get("delta") or {} if isinstance(choice, dict) else None
    if not isinstance(delta, dict):
        raise _broken("sent a chunk that cannot be read")
    delta = dict(delta)
    reasoning = delta.pop("reasoning", None)
    if reasoning is not None and delta.get("reasoning_content") is None:
        delta["reasoning_content"] = reasoning
    return {"index": 0, "logprobs": None, "finish_reason": None, **choice, "delta": delta}


def _reported(error: Any) -> UpstreamError:
    values = error if isinstance(error, Mapping) else {"message": error}
    kinds = (values.get("type"), values.get("code"))
    kind = next((k for k in kinds if isinstance(k, str) and k in STREAM_ERROR_STATUS), "server_error")
    detail = values.get("message")
    return UpstreamError(
        STREAM_ERROR_STATUS[kind],
        "the upstream server reported an error",
        type=kind,
        detail=detail if isinstance(detail, str) else None,
    )


async def _refusal(reply: httpx.Response, schema: SchemaName) -> UpstreamError:
    """The error for an HTTP status that is not 200, in words of our own: it leaves the enclave unsealed.

    `schema` is that of the request's parameters: the server may name one of them.
    """
    status = reply.status_code
    retry_after = reply.headers.get("retry-after", "")
    if not retry_after.isascii():
        retry_after = ""
    if status in (401, 403):
        message = "the upstream server refused the enclave's credentials"
        return UpstreamError(503, message, type="service_unavailable")
    if status == 429:
        message = "the upstream server's rate limit is exceeded"
        return UpstreamError(429, message, type="rate_limit_error", retry_after=retry_after)
    if status == 413:
        message = "the request is larger than the upstream server takes"
        return UpstreamError(413, message, type="request_too_large")
    if status == 404:
        return UpstreamError(404, "the upstream server has no such model or route", type="not_found_error")
    if 400 <= status < 500:
        return await _bad_request(reply, property_names(schema))
    if status == 500:
        return UpstreamError(500, "the upstream server failed", type="server_error", retry_after=retry_after)
    message = _UNAVAILABLE if status >= 500 else "the upstream server answered with a redirect"
    return UpstreamError(503, message, type="service_unavailable", retry_after=retry_after)


async def _bad_request(reply: httpx.Response, names: Collection[str]) -> UpstreamError:
    try:
        error = json.loads(await reply.aread())["error"]
        code, param, text = (error.get(name) for name in ("code", "param", "message"))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        code = param = text = None
    too_long = re.search(r"context (?:length|window|size)", str(text), re.I)
    if "messages" in names and (too_long or code == "context_length_exceeded"):
        return UpstreamError(400, _CONTEXT_LENGTH, type="context_length_exceeded", param="messages")
    param = param.removesuffix("[]") if isinstance(param, str) else None
    if param != "file" and param not in names:
        param = None  # it could be anything, the request's own text included
    message = "the upstream server refuses the request"
    return UpstreamError(400, f"{message}: {param}" if param else message, param=param)


def _broken(what: str) -> UpstreamError:
    return UpstreamError(503, f"the upstream server {what}", type="service_unavailable")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
