"""Decode and open an encrypted event stream: bytes in, chunks out.

Every truncated answer is an error. The ``done`` event is not encrypted, so a gateway could send one after half an
answer. The finish reason is sealed. An answer is complete only if both arrived.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final, NoReturn

from pydantic import ValidationError

from prem_core._crypto.keys import EncryptionKeys
from prem_core._errors import (
    APIResponseValidationError,
    DecryptionError,
    ResponseTooLargeError,
    StreamInterruptedError,
)
from prem_core._protocol.assumptions import decode_binary
from prem_core._protocol.error_body import stream_error
from prem_core._protocol.response_types import ChatCompletionChunk, read_json
from prem_core._protocol.sse import EventDecoder

#: How many events and bytes one stream may have. A gateway can repeat a chunk for ever. The longest answers of today's
#: models have some 100,000 tokens, with one event of about 700 bytes for each.
MAX_EVENTS: Final = 250_000
MAX_STREAM_BYTES: Final = 256 * 1024 * 1024


class ChatStreamReader:
    """Decodes and opens an encrypted event stream.

    Args:
        keys: The request's secret.
        nonce: The request's nonce. Every chunk is sealed with it.
        max_buffer_size: Maximum bytes of one event in memory.
    """

    __slots__ = ("_bytes", "_decoder", "_events", "_finished", "_keys", "_nonce", "_seen", "done")

    def __init__(self, keys: EncryptionKeys, nonce: bytes, max_buffer_size: int) -> None:
        self._decoder = EventDecoder(max_buffer_size)
        self._keys = keys
        self._nonce = nonce
        self._events = 0
        self._bytes = 0
        self._seen: set[int] = set()  # indexes of the choices that appeared
        self._finished: set[int] = set()  # indexes of those with a finish reason
        #: Whether the answer is complete. Data after its end is not read.
        self.done = False

    def feed(self, data: bytes) -> Iterator[ChatCompletionChunk]:
        """Take the next bytes; yield the chunks they complete.

        Exhaust this iterator before the next call. If a chunk is invalid, the chunks before it are yielded first, and
        then the error is raised. The result does not depend on how the network splits the bytes.

        Raises:
            DecryptionError: A chunk could not be opened.
            APIError: The stream reports an error. The class depends on that error.
            StreamInterruptedError: ``done`` arrived before every choice had a finish reason.
            ResponseTooLargeError: One event is larger than the buffer, or the stream has too many events or bytes.
            APIResponseValidationError: An opened chunk does not have the form of a chunk.
        """
        if self.done:
            return
        self._bytes += len(data)
        if self._bytes > MAX_STREAM_BYTES:
            raise ResponseTooLargeError(f"the stream has more than {MAX_STREAM_BYTES} bytes")
        for name, value in self._decoder.feed(data):
            self._events += 1
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
                    # Parse leniently. Outside the handler, because a ValidationError contains the plaintext.
                    chunk = read_json(ChatCompletionChunk, plaintext)
                if chunk.error is not None:
                    raise stream_error(chunk.error)
                if not chunk.choices and "choices" not in chunk.model_fields_set:
                    # Without this check the request itself, sent back by the gateway, would pass as a chunk.
                    raise APIResponseValidationError("a chunk of the stream has no choices")
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
            # Other events are ignored: the service may add some, but no part of the answer is in them.
        if self._events > MAX_EVENTS:
            raise ResponseTooLargeError(f"the stream has more than {MAX_EVENTS} events")

    def finish(self) -> None:
        """Check the answer when the connection has ended.

        Raises:
            StreamInterruptedError: The answer is not complete.
        """
        if not self.done:
            raise StreamInterruptedError("the stream ended without its done event: the answer is truncated")

    def _raise_error(self, data: bytes) -> NoReturn:
        # Documented as "encrypted or plain JSON". Hex never begins with a brace.
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
