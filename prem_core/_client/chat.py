"""``client.chat.completions``: whole answers and streams."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, Self, Unpack, cast, overload

import httpx

from prem_core._client.requester import AsyncRequester, Requester
from prem_core._crypto.redaction import clear_locals, without_locals
from prem_core._protocol import flow
from prem_core._protocol.masking import ChatRequest
from prem_core._protocol.protection import Protection
from prem_core._transport.aio import AsyncDriver
from prem_core._transport.sync import SyncDriver

if TYPE_CHECKING:
    from prem_core._protocol.request_schema import ChatOptions, Message
    from prem_core._protocol.response_types import ChatCompletion, ChatCompletionChunk

    Messages = Iterable[Message | Mapping[str, Any] | Any]


class Chat:
    """``client.chat``."""

    def __init__(self, requester: Requester) -> None:
        self.completions: Final = Completions(requester)


class AsyncChat:
    """``client.chat``."""

    def __init__(self, requester: AsyncRequester) -> None:
        self.completions: Final = AsyncCompletions(requester)


class Completions:
    """``client.chat.completions``."""

    def __init__(self, requester: Requester) -> None:
        self._requester = requester

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

    @without_locals
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
        """Create a chat completion.

        Args:
            messages: The conversation, as OpenAI-style message objects.
            model: The model's name, as `client.models.list()` gives it.
            stream: True for a stream of chunks.
            extra_body: Further top-level parameters, sent without a check: for a service newer than its published
                schema.
            timeout: Seconds, or an ``httpx.Timeout``, for this call in place of the client's.
            **params: Every other parameter of the published schema, under its name there (`ChatOptions`). None means
                "not given".

        Returns:
            The completion. With ``stream=True`` its chunks, as soon as the first one has arrived.

        Raises:
            InvalidParameterError: The published schema does not allow a parameter; nothing was sent.
            APIError: The service's error, or the network's; `prem_core` has the tree of errors.
            DecryptionError: The response does not open.
            EnclaveKeyError: The enclave's public key cannot be fetched or used.
        """
        request = functools.partial(
            flow.chat,
            _request(self._requester, messages, model, stream, extra_body, params),
            stream=bool(stream),
        )
        if stream:
            return ChatCompletionStream(*self._requester.stream(request, timeout))
        return cast("ChatCompletion", self._requester.run(request, timeout))


class AsyncCompletions:
    """``client.chat.completions``."""

    def __init__(self, requester: AsyncRequester) -> None:
        self._requester = requester

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

    @without_locals
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
        """See `Completions.create`."""
        if _is_large([messages, params]):
            # Validating and serialising 20 MB would hold the event loop for some 60 ms.
            made = await asyncio.to_thread(
                _request, self._requester, messages, model, stream, extra_body, params
            )
        else:
            made = _request(self._requester, messages, model, stream, extra_body, params)
        request = functools.partial(flow.chat, made, stream=bool(stream))
        if stream:
            driver, chunks = await self._requester.stream(request, timeout)
            protection: Protection = await anext(chunks)
            return AsyncChatCompletionStream(driver, protection, await anext(chunks), chunks)
        return cast("ChatCompletion", await self._requester.run(request, timeout))


class ChatCompletionStream:
    """The chunks of one answer, as they arrive. Iterate it once.

    It ends only when the answer is complete: a truncated answer raises `StreamInterruptedError` after the chunks that
    arrived. Leaving the loop early, `close()` and the end of a ``with`` block close the connection at once.

    Attributes:
        prem: How the answer was protected on its way.
    """

    def __init__(self, driver: SyncDriver, chunks: Iterator[Any]) -> None:
        self._driver = driver
        self._chunks = chunks
        # The first chunk is awaited here, so that what goes wrong before it is raised by `create`.
        self.prem: Protection = next(chunks)
        self._iterator: Iterator[ChatCompletionChunk] = itertools.chain((next(chunks),), chunks)
        weakref.finalize(self, driver.abandon).atexit = False

    def __iter__(self) -> Generator[ChatCompletionChunk, None, None]:
        # A generator of each loop's own: leaving the loop closes it, even if the stream is still referenced.
        try:
            yield from self._iterator
        except BaseException as error:
            clear_locals(error)
            raise
        finally:
            self.close()

    def __next__(self) -> ChatCompletionChunk:
        try:
            return next(self._iterator)
        except BaseException as error:
            clear_locals(error)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, from any thread. Does nothing if the stream has ended."""
        self._driver.close()
        with contextlib.suppress(ValueError):  # another thread is reading, and will find it closed
            cast("Generator[Any, None, None]", self._chunks).close()


class AsyncChatCompletionStream:
    """`ChatCompletionStream` for ``async for`` and ``async with``."""

    def __init__(
        self,
        driver: AsyncDriver,
        prem: Protection,
        first: ChatCompletionChunk,
        chunks: AsyncGenerator[ChatCompletionChunk, None],
    ) -> None:
        self._driver = driver
        self.prem = prem
        self._first: ChatCompletionChunk | None = first
        # It was started, so the event loop finalizes it if the stream is garbage-collected before its end.
        self._chunks = chunks

    async def __aiter__(self) -> AsyncIterator[ChatCompletionChunk]:
        try:
            if (first := self._take_first()) is not None:
                yield first
            async for chunk in self._chunks:
                yield chunk
        except BaseException as error:
            clear_locals(error)
            raise
        finally:
            await self.close()

    async def __anext__(self) -> ChatCompletionChunk:
        if (first := self._take_first()) is not None:
            return first
        try:
            return await anext(self._chunks)
        except BaseException as error:
            clear_locals(error)
            raise

    def _take_first(self) -> ChatCompletionChunk | None:
        first, self._first = self._first, None
        return first

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection. Does nothing if the stream has ended."""
        self._first = None
        await self._driver.close()
        # RuntimeError: another task closes it already, or is reading and will find it closed.
        with contextlib.suppress(RuntimeError):
            await self._chunks.aclose()

    aclose = close


def _request(
    requester: Requester | AsyncRequester,
    messages: Messages,
    model: str,
    stream: bool | None,
    extra_body: Mapping[str, Any] | None,
    params: Mapping[str, Any],
) -> ChatRequest:
    from prem_core._protocol.request_schema import chat_request

    given = {"model": model, "messages": messages, **params, "stream": stream}
    return chat_request(given, extra_body, whole=not requester.asks_for_streams)


def _is_large(value: Any) -> bool:
    """Whether `value` holds more than an event loop should be held for. Other iterables than lists are not opened."""
    size = 0
    pending = [value]
    while pending and size < flow.OFFLOAD_BYTES:
        value = pending.pop()
        size += 64
        if isinstance(value, str):
            size += len(value)
        elif isinstance(value, dict):
            pending.extend(value.values())
        elif isinstance(value, list | tuple):
            pending.extend(value)
    return size >= flow.OFFLOAD_BYTES
