"""``client.chat.completions``: whole answers and streams.

The two sides differ in `await` alone: the exchange decides, a driver performs.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, Self, overload

import httpx

from prem_core._protocol import flow
from prem_core._transport.aio import AsyncDriver
from prem_core._transport.sync import SyncDriver

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from prem_core._client.client import AsyncPremClient, PremClient
    from prem_core._protocol.request_schema import ChatOptions, Message
    from prem_core._protocol.response_types import ChatCompletion, ChatCompletionChunk

    Messages = Iterable[Message | Mapping[str, Any] | Any]


class Chat:
    """``client.chat``."""

    def __init__(self, client: PremClient) -> None:
        self.completions = Completions(client)


class AsyncChat:
    """``client.chat``."""

    def __init__(self, client: AsyncPremClient) -> None:
        self.completions = AsyncCompletions(client)


class Completions:
    """``client.chat.completions``."""

    def __init__(self, client: PremClient) -> None:
        self._client = client

    @overload
    def create(
        self,
        *,
        messages: Messages,
        model: str,
        stream: Literal[False] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        timeout: float | httpx.Timeout | None = None,
        **params: Unpack[ChatOptions],
    ) -> ChatCompletion: ...

    @overload
    def create(
        self,
        *,
        messages: Messages,
        model: str,
        stream: Literal[True],
        extra_body: Mapping[str, Any] | None = None,
        timeout: float | httpx.Timeout | None = None,
        **params: Unpack[ChatOptions],
    ) -> ChatCompletionStream: ...

    def create(
        self,
        *,
        messages: Messages,
        model: str,
        stream: bool | None = None,
        extra_body: Mapping[str, Any] | None = None,
        timeout: float | httpx.Timeout | None = None,
        **params: Unpack[ChatOptions],
    ) -> ChatCompletion | ChatCompletionStream:
        """Ask for a chat completion.

        Args:
            messages: The conversation, as OpenAI-style message objects.
            model: The model's name, as `client.models.list()` gives it.
            stream: True for a stream of chunks.
            extra_body: Further top-level names, passed through unchecked, for a service newer than its
                published schema.
            timeout: Seconds, or an ``httpx.Timeout``, for this call in place of the client's.
            **params: Every other parameter of the published schema, by its name there (`ChatOptions`). None
                means "not given".

        Returns:
            The answer; or, with ``stream=True``, its chunks, once the first one has come.

        Raises:
            InvalidParameterError: A parameter is not what the published schema allows; nothing was sent.
            APIError: The service's error, or the network's; see `prem_core`'s error tree.
            DecryptionError: The answer does not open.
            EnclaveKeyError: The enclave's key cannot be had or used.
        """
        plaintext = _plaintext(messages, model, stream, extra_body, params)
        settings = self._client._call_settings(timeout)
        driver = self._client._driver(timeout, settings.deadline)
        if stream:
            return ChatCompletionStream(driver, driver.run(flow.stream_chat(plaintext, settings)))
        completion = driver.run(flow.complete_chat(plaintext, settings))
        driver.drain()
        driver.close()
        return completion


class AsyncCompletions:
    """``client.chat.completions``."""

    def __init__(self, client: AsyncPremClient) -> None:
        self._client = client

    @overload
    async def create(
        self,
        *,
        messages: Messages,
        model: str,
        stream: Literal[False] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        timeout: float | httpx.Timeout | None = None,
        **params: Unpack[ChatOptions],
    ) -> ChatCompletion: ...

    @overload
    async def create(
        self,
        *,
        messages: Messages,
        model: str,
        stream: Literal[True],
        extra_body: Mapping[str, Any] | None = None,
        timeout: float | httpx.Timeout | None = None,
        **params: Unpack[ChatOptions],
    ) -> AsyncChatCompletionStream: ...

    async def create(
        self,
        *,
        messages: Messages,
        model: str,
        stream: bool | None = None,
        extra_body: Mapping[str, Any] | None = None,
        timeout: float | httpx.Timeout | None = None,
        **params: Unpack[ChatOptions],
    ) -> ChatCompletion | AsyncChatCompletionStream:
        """`Completions.create`, awaited."""
        plaintext = _plaintext(messages, model, stream, extra_body, params)
        settings = self._client._call_settings(timeout)
        driver = await self._client._driver(timeout, settings.deadline)
        if stream:
            begun = await driver.run(flow.stream_chat(plaintext, settings))
            return await AsyncChatCompletionStream.begin(driver, begun)
        completion = await driver.run(flow.complete_chat(plaintext, settings))
        await driver.drain()
        await driver.close()
        return completion


class ChatCompletionStream:
    """The chunks of one answer, as they come.

    Iterate it once. It ends only when the answer is whole: an answer that is cut raises
    `StreamInterruptedError`, after the chunks that came. Leaving the loop early, `close()` and the end of a
    ``with`` block drop the connection at once.
    """

    def __init__(self, driver: SyncDriver, begun: flow.StreamBegun) -> None:
        self._driver = driver
        # Not a method of this object: a generator that held it would make a cycle, and a forgotten stream
        # would keep its connection until the next full collection.
        self._iterator = _chunks(driver, begun)
        # A generator that was never begun has no `finally` to run.
        weakref.finalize(self, driver.abandon).atexit = False

    def __iter__(self) -> Iterator[ChatCompletionChunk]:
        # A generator of the loop's own: leaving the loop closes it, though the stream is still referenced.
        try:
            yield from self._iterator
        finally:
            self.close()

    def __next__(self) -> ChatCompletionChunk:
        return next(self._iterator)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connection, from whichever thread; harmless when the stream has ended."""
        self._driver.close()
        with contextlib.suppress(ValueError):  # another thread is inside it, and will find it closed
            self._iterator.close()


def _chunks(driver: SyncDriver, begun: flow.StreamBegun) -> Generator[ChatCompletionChunk, None, None]:
    reader, beat, missed = begun.reader, begun.pulse.beat, begun.pulse.missed
    read, feed = driver.read, reader.feed
    try:
        yield from begun.chunks
        beat()
        while not reader.done:
            piece = read()
            if not piece:
                reader.finish()
            came = False
            for chunk in feed(piece):
                came = True
                yield chunk
            beat() if came else missed()
        driver.drain()
    finally:
        driver.close()


class AsyncChatCompletionStream:
    """`ChatCompletionStream` for ``async for`` and ``async with``."""

    def __init__(self, driver: AsyncDriver, begun: flow.StreamBegun) -> None:
        self._driver = driver
        self._iterator = _achunks(driver, begun)
        self._guard = _guard(driver)

    @classmethod
    async def begin(cls, driver: AsyncDriver, begun: flow.StreamBegun) -> Self:
        """The stream, with its connection given back when it is forgotten."""
        stream = cls(driver, begun)
        # Begun, so that the loop finalises it with the stream; the chunks' own may never be.
        await anext(stream._guard)
        return stream

    async def __aiter__(self) -> AsyncIterator[ChatCompletionChunk]:
        try:
            async for chunk in self._iterator:
                yield chunk
        finally:
            await self.close()

    async def __anext__(self) -> ChatCompletionChunk:
        return await anext(self._iterator)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Drop the connection; harmless when the stream has ended."""
        # A RuntimeError: another task is closing it already, or is inside it and will find it closed.
        with contextlib.suppress(RuntimeError):
            await self._guard.aclose()
        with contextlib.suppress(RuntimeError):
            await self._iterator.aclose()

    aclose = close


async def _guard(driver: AsyncDriver) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        await driver.close()


async def _achunks(driver: AsyncDriver, begun: flow.StreamBegun) -> AsyncGenerator[ChatCompletionChunk, None]:
    reader, beat, missed = begun.reader, begun.pulse.beat, begun.pulse.missed
    try:
        for chunk in begun.chunks:
            yield chunk
        beat()
        while not reader.done:
            piece = await driver.read()
            if not piece:
                reader.finish()
            came = False
            for chunk in reader.feed(piece):
                came = True
                yield chunk
            beat() if came else missed()
        await driver.drain()
    finally:
        await driver.close()


def _plaintext(
    messages: Messages,
    model: str,
    stream: bool | None,
    extra_body: Mapping[str, Any] | None,
    params: Mapping[str, Any],
) -> bytes:
    # Here, because it needs pydantic, which doubles what importing the package costs.
    from prem_core._protocol.request_schema import chat_plaintext

    return chat_plaintext({"model": model, "messages": messages, **params, "stream": stream}, extra_body)
