"""Read one reply: bytes in, opened chunks or an opened body out.

``feed(bytes)`` takes what came and gives what it completes; ``finish()`` says that nothing more will
come, and raises where the answer is not whole.

The rule of this file: a cut answer is an error, whichever way it was cut. The ``done`` event travels
in the clear, so a gateway could write one behind half an answer; the finish reason travels sealed, so
an answer counts as whole only when both were seen.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NoReturn

from prem_core._crypto.keys import EncryptionKeys
from prem_core._errors import (
    DecryptionError,
    StreamInterruptedError,
)
from prem_core._protocol.assumptions import decode_binary
from prem_core._protocol.error_body import stream_error
from prem_core._protocol.response_types import ChatCompletionChunk, read_json
from prem_core._protocol.sse import EventDecoder


class ChatStreamReader:
    """An encrypted event stream, as chunks."""

    __slots__ = ("_begun", "_decoder", "_done", "_finished", "_keys", "_nonce")

    def __init__(self, keys: EncryptionKeys, nonce: bytes, max_buffer_size: int) -> None:
        self._decoder = EventDecoder(max_buffer_size)
        self._keys = keys
        self._nonce = nonce
        self._begun: set[int] = set()  # choices seen, by index
        self._finished: set[int] = set()  # ... and those whose finish reason was seen
        self._done = False

    @property
    def done(self) -> bool:
        """Whether the whole answer has been read; nothing that follows is looked at."""
        return self._done

    def feed(self, piece: bytes) -> Iterator[ChatCompletionChunk]:
        """Take the next bytes, give the chunks they complete.

        An iterator, to be exhausted before the next call, so that the chunks before a fault are given
        before it raises, however the stream was cut into pieces.

        Raises:
            DecryptionError: A chunk does not open.
            APIError: The stream reports an error; its type is the one that error stands for.
            StreamInterruptedError: ``done`` came before every choice had its finish reason.
            ResponseTooLargeError: One event is larger than the buffer.
            APIResponseValidationError: A chunk opens, and is no chunk.
        """
        if self._done:
            return
        for name, data in self._decoder.feed(piece):
            if name == b"data" or (name == b"message" and data != b"[DONE]"):
                yield self._chunk(data)
            elif name == b"error":
                self._error(data)
            elif name == b"done" or data == b"[DONE]":
                self._finish_choices()
                self._done = True
                return
            # Other events are the service's to add; none of them can hold a part of the answer.

    def finish(self) -> None:
        """The connection ended.

        Raises:
            StreamInterruptedError: Before the answer did.
        """
        if not self._done:
            raise StreamInterruptedError("the stream ended without its done event: the answer is cut")

    def _chunk(self, data: bytes) -> ChatCompletionChunk:
        chunk = read_json(ChatCompletionChunk, self._open(data))
        if chunk.error is not None:
            raise stream_error(chunk.error)
        for choice in chunk.choices:
            if choice.finish_reason is not None:
                self._finished.add(choice.index)
            self._begun.add(choice.index)
        return chunk

    def _open(self, data: bytes) -> bytes:
        try:
            sealed = decode_binary(data)
        except ValueError:
            raise DecryptionError from None
        return self._keys.open(sealed, self._nonce)

    def _error(self, data: bytes) -> NoReturn:
        # Documented as "encrypted or plain JSON"; hex never begins with a brace.
        plain = data if data.lstrip()[:1] == b"{" else self._open(data)
        try:
            value: Any = json.loads(plain)
        except (ValueError, RecursionError):
            value = None
        raise stream_error(value)

    def _finish_choices(self) -> None:
        if not self._begun or self._begun != self._finished:
            raise StreamInterruptedError("the stream ended before the answer's finish reason: it is cut")
