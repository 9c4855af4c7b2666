"""The engine that passes requests on to an OpenAI-compatible server: Ollama, vLLM, llama.cpp and others.

A chat request is forwarded with its parameters, always as a stream with usage. The response is adapted to the published
chunk schema. The server's own error texts may repeat the request, so they leave the enclave only sealed, as an error's
`detail`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
import time
import uuid
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing, suppress
from math import isfinite
from typing import Any, Final, NoReturn

import httpx

from prem_core._errors import ConfigurationError, ResponseTooLargeError
from prem_core._protocol.assumptions import EVENT_STREAM, STREAM_ERROR_STATUS
from prem_core._protocol.sse import EventDecoder
from prem_core.enclave.engines.base import AudioReply, AudioTask, Chunk, Engine, EngineError, EngineRequest
from prem_core.enclave.opened_request import PARAMS_SCHEMAS
from prem_core.enclave.schema_check import SchemaName, property_names

#: The most bytes of one event, or of one transcript: the size of the published SDK's buffer.
MAX_EVENT_BYTES: Final = 10 * 1024 * 1024

#: Seconds to connect. Reading has no limit: a prompt may take minutes on a CPU, and an impatient client
#: disconnects.
CONNECT_TIMEOUT: Final = 10.0

#: Seconds a server may take to end its response after ``[DONE]``, so that its connection can be reused.
_END_TIMEOUT: Final = 0.1

_CHAT_ROUTE: Final = "/chat/completions"

#: The route of each task, below the base URL.
_AUDIO_ROUTES: Final[Mapping[AudioTask, str]] = {
    "transcribe": "/audio/transcriptions",
    "translate": "/audio/translations",
}

#: The length of a recording whose transcript does not state it: 128 kbit/s.
_BYTES_PER_SECOND: Final = 16_000

_CONNECTION: Final = "cannot be reached, or broke the connection"
_UNAVAILABLE: Final = "the upstream server is unavailable"
_CONTEXT_LENGTH: Final = "the prompt is longer than the model's context window"

_CHUNK_FIELDS: Final = ("id", "created", "model", "system_fingerprint", "choices", "usage")


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


class UpstreamEngine(Engine):
    """Answers with what an OpenAI-compatible server answers.

    Args:
        base_url: The server, with or without ``/v1``.
        api_key: Sent as a bearer token, if given.

    Raises:
        ConfigurationError: `base_url` is not an http(s) URL.
    """

    def __init__(self, base_url: str, api_key: str | None = None) -> None:
        self._url = completions_url(base_url)
        self._headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._client: httpx.AsyncClient | None = None

    def __reduce__(self) -> NoReturn:
        raise TypeError("an engine with an upstream cannot be pickled or copied: it holds an API key")

    async def aclose(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    @property
    def _http(self) -> httpx.AsyncClient:
        if self._client is None:
            self._client = httpx.AsyncClient(
                headers=self._headers,
                timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT),
                limits=httpx.Limits(max_connections=None),
                # A proxy from the environment is for servers elsewhere, not for one on this machine.
                trust_env=not _is_loopback(self._url.host),
            )
        return self._client

    async def chat(self, request: EngineRequest) -> AsyncGenerator[Chunk, None]:
        """The completion's chunks as they arrive.

        Raises:
            EngineError: The server rejected the request, cannot be reached, or its stream is incomplete.
        """
        options = {**(request.params.get("stream_options") or {}), "include_usage": True}
        # ASCII: a lone surrogate in the prompt would not encode as UTF-8.
        body = json.dumps({**request.params, "stream": True, "stream_options": options}).encode()
        defaults = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": request.model,
        }
        headers = {"accept": EVENT_STREAM, "content-type": "application/json"}
        try:
            async with self._http.stream("POST", self._url, content=body, headers=headers) as response:
                if response.status_code != 200:
                    raise await _refusal(response, "chat-inference-params")
                async with aclosing(_events(response)) as events:
                    async for event in events:
                        if event.get("error"):
                            raise _reported(event["error"])
                        yield _chunk(event, defaults)
        except httpx.RequestError:
            raise _broken(_CONNECTION) from None
        except ResponseTooLargeError:
            raise _broken("sent an event that is too large") from None

    async def audio(self, request: EngineRequest) -> AudioReply:
        """The server's transcript or translation of the recording, unchanged.

        Raises:
            EngineError: The server rejected the request, cannot be reached, or responded in another format.
        """
        assert request.task != "chat"  # noqa: S101 - for mypy
        # A part without a file name would be a text field.
        file = {"file": (request.file_name or "audio", request.audio)}
        url = self._route(_AUDIO_ROUTES[request.task])
        try:
            async with self._http.stream("POST", url, data=_form(request.params), files=file) as response:
                if response.status_code != 200:
                    raise await _refusal(response, PARAMS_SCHEMAS[request.task])
                body = await _whole(response)
        except httpx.RequestError:
            raise _broken(_CONNECTION) from None
        seconds = len(request.audio) / _BYTES_PER_SECOND
        if request.params.get("response_format") == "text":
            return AudioReply(body.decode("utf-8", "replace"), seconds)
        transcript = _object(body, "an answer")
        if not isinstance(transcript.get("text"), str):
            raise _broken("sent an answer without text")
        return AudioReply(transcript, _seconds(transcript, seconds))

    async def models(self) -> Sequence[str]:
        """The names in the server's own ``/v1/models``; none where it has no such route.

        Raises:
            EngineError: The server rejected the request, cannot be reached, or sent something else.
        """
        try:
            async with self._http.stream("GET", self._route("/models")) as response:
                if response.status_code in (404, 405, 501):
                    return ()
                if response.status_code != 200:
                    raise await _refusal(response, "chat-inference-params")
                listed = _object(await _whole(response), "a models list").get("data")
        except httpx.RequestError:
            raise _broken(_CONNECTION) from None
        if not isinstance(listed, list):
            raise _broken("sent a models list without data")
        names = (entry.get("id") for entry in listed if isinstance(entry, dict))
        return [name for name in names if isinstance(name, str)]

    def _route(self, path: str) -> httpx.URL:
        return self._url.copy_with(path=self._url.path.removesuffix(_CHAT_ROUTE) + path)


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


async def _whole(response: httpx.Response) -> bytes:
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > MAX_EVENT_BYTES:
            raise _broken("sent an answer that is too large")
    return bytes(body)


def _seconds(transcript: Mapping[str, Any], otherwise: float) -> float:
    """The recording's length as the server reports it: in the verbose form, or in OpenAI's usage."""
    usage = transcript.get("usage")
    reported: list[Any] = [
        transcript.get("duration"),
        usage.get("seconds") if isinstance(usage, dict) else None,
    ]
    # Whisper's own servers sometimes write the duration as a string.
    for value in reported:
        with suppress(TypeError, ValueError):
            if isfinite(seconds := float(value)) and seconds >= 0:
                return seconds
    return otherwise


async def _events(response: httpx.Response) -> AsyncGenerator[dict[str, Any], None]:
    """The stream's JSON objects, up to ``[DONE]``."""
    if not response.headers.get("content-type", "").startswith(EVENT_STREAM):
        raise _broken("did not answer with an event stream")
    decoder = EventDecoder(MAX_EVENT_BYTES)
    pieces = response.aiter_bytes()
    async for piece in pieces:
        for _, data in decoder.feed(piece):
            if data.strip() == b"[DONE]":
                with suppress(TimeoutError, httpx.RequestError):
                    async with asyncio.timeout(_END_TIMEOUT):
                        async for _ in pieces:
                            pass
                return
            yield _object(data, "an event")
    raise _broken("closed the stream before the answer was complete")


def _object(data: bytes, called: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _broken(f"sent {called} that is not a JSON object")
    return value


def _chunk(event: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`event` in the form of the published schema, without fields that the schema does not define.

    Raises:
        EngineError: It has no such shape.
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


def _reported(error: Any) -> EngineError:
    values = error if isinstance(error, Mapping) else {"message": error}
    kinds = (values.get("type"), values.get("code"))
    kind = next((k for k in kinds if isinstance(k, str) and k in STREAM_ERROR_STATUS), "server_error")
    detail = values.get("message")
    return EngineError(
        "the upstream server reported an error",
        status=STREAM_ERROR_STATUS[kind],
        type=kind,
        detail=detail if isinstance(detail, str) else None,
    )


async def _refusal(response: httpx.Response, schema: SchemaName) -> EngineError:
    """The error for an HTTP status that is not 200, in words of our own: it leaves the enclave unsealed.

    `schema` is that of the request's parameters: the server may name one of them.
    """
    status = response.status_code
    retry_after = response.headers.get("retry-after")
    if retry_after is not None and not retry_after.isascii():
        retry_after = None
    if status in (401, 403):
        message = "the upstream server rejected the enclave's credentials"
        return EngineError(message, status=503)
    if status == 429:
        message = "the upstream server's rate limit is exceeded"
        return EngineError(message, status=429, retry_after=retry_after)
    if status == 413:
        message = "the request is larger than the upstream server takes"
        return EngineError(message, status=413)
    if status == 404:
        return EngineError("the upstream server has no such model or route", status=404)
    if 400 <= status < 500:
        return await _bad_request(response, property_names(schema))
    if status == 500:
        return EngineError("the upstream server failed", status=500, retry_after=retry_after)
    message = _UNAVAILABLE if status >= 500 else "the upstream server answered with a redirect"
    return EngineError(message, status=503, retry_after=retry_after)


async def _bad_request(response: httpx.Response, names: Collection[str]) -> EngineError:
    try:
        error = json.loads(await response.aread())["error"]
        code, param, text = (error.get(name) for name in ("code", "param", "message"))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        code = param = text = None
    too_long = re.search(r"context (?:length|window|size)", str(text), re.I)
    if "messages" in names and (too_long or code == "context_length_exceeded"):
        return EngineError(_CONTEXT_LENGTH, status=400, type="context_length_exceeded", param="messages")
    param = param.removesuffix("[]") if isinstance(param, str) else None
    if param != "file" and param not in names:
        param = None  # it could be anything, the request's own text included
    message = "the upstream server rejected the request"
    return EngineError(f"{message}: {param}" if param else message, status=400, param=param)


def _broken(what: str) -> EngineError:
    return EngineError(f"the upstream server {what}", status=503)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
