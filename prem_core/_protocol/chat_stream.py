"""Encrypted events of a stream in, opened chunks out.

A truncated answer is an error, however it was truncated. The ``done`` event travels in the clear, so a gateway could
write one after half an answer. The finish reason travels sealed. An answer is complete only with both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NoReturn

from pydantic import ValidationError

from prem_core._crypto.keys import EncryptionKeys
from prem_core._errors import DecryptionError, StreamInterruptedError
from prem_core._protocol.assumptions import decode_binary
from prem_core._protocol.error_body import stream_error
from prem_core._protocol.response_types import ChatCompletionChunk, read_json
from prem_core._protocol.sse import EventDecoder


class ChatStreamReader:
    """Decodes and opens an encrypted event stream.

    Args:
        keys: The request's secret.
        nonce: The request's nonce: every chunk is sealed with it.
        max_buffer_size: Bytes of one event that may be held.
    """

    __slots__ = ("_decoder", "_finished", "_keys", "_nonce", "_seen", "done")

    def __init__(self, keys: EncryptionKeys, nonce: bytes, max_buffer_size: int) -> None:
        self._decoder = EventDecoder(max_buffer_size)
        self._keys = keys
        self._nonce = nonce
        self._seen: set[int] = set()  # choices, by index
        self._finished: set[int] = set()  # those whose finish reason was seen
        #: Whether the answer is complete. What follows is not read.
        self.done = False

    def feed(self, data: bytes) -> Iterator[ChatCompletionChunk]:
        """Take the next bytes; yield the chunks they complete.

        An iterator, to be exhausted before the next call: chunks before a fault are delivered before it raises,
        however the network cut the stream.

        Raises:
            DecryptionError: A chunk does not open.
            APIError: The stream reports an error; its class is that error's.
            StreamInterruptedError: ``done`` came before every choice had its finish reason.
            ResponseTooLargeError: One event is larger than the buffer.
            APIResponseValidationError: A chunk opens, but is not a chunk.
        """
        if self.done:
            return
        for name, value in self._decoder.feed(data):
            if name == b"data" or (name == b"message" and value != b"[DONE]"):
                try:
                    sealed = decode_binary(value)
                except ValueError:
                    raise DecryptionError from None
                plaintext = self._keys.open(sealed, self._nonce)
                try:
                    chunk = ChatCompletionChunk.model_validate_json(plaintext)
                except ValidationError:
                    chunk = None
                if chunk is None:
                    # Leniently, and outside the handler: a ValidationError holds the plaintext.
                    chunk = read_json(ChatCompletionChunk, plaintext)
                if chunk.error is not None:
                    raise stream_error(chunk.error)
                for choice in chunk.choices:
                    if choice.finish_reason is not None:
                        self._finished.add(choice.index)
                    self._seen.add(choice.index)
                yield chunk
            elif name == b"error":
                self._raise_error(value)
            elif name == b"done" or value == b"[DONE]":
                if not self._seen or self._seen != self._finished:
                    raise StreamInterruptedError(
                        "the stream ended without a finish reason: the answer is truncated"
                    )
                self.done = True
                return
            # The service may add other events. None of them can hold a part of the answer.

    def finish(self) -> None:
        """The connection ended.

        Raises:
            StreamInterruptedError: The answer is not complete.
        """
        if not self.done:
            raise StreamInterruptedError("the stream ended without its done event: the answer is truncated")

    def _raise_error(self, data: bytes) -> NoReturn:
        # Documented as "encrypted or plain JSON"; hex never begins with a brace.
        plain = data
        if data.lstrip()[:1] != b"{":
            try:
                sealed = decode_binary(data)
            except ValueError:
                raise DecryptionError from None
            plain = self._keys.open(sealed, self._nonce)
        try:
            value: Any = json.loads(plain)
        except (ValueError, RecursionError):
            value = None
        raise stream_error(value)
