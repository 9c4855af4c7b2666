"""Forging: any response in place of the enclave's, tool calls included."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any, Final

from support.attacks.gateway import DONE, Recording, envelope, event
from support.attacks.partly_known import xor
from support.attacks.poly1305 import TAG_BYTES, one_time_key, tag
from support.attacks.reading import AttackFailed, Reading

#: The characters of a forged chunk's text: few, because no chunk can be longer than the longest recorded one.
_PART: Final = 20


class Forger:
    """Seals items under the key and nonce of a recorded exchange, without the key.

    Args:
        recording: The exchange.
        reading: What was read of it.
        head_size: The bytes that all chunks of a response have in common.

    Raises:
        AttackFailed: The one-time key cannot be computed.
    """

    def __init__(self, recording: Recording, reading: Reading, head_size: int) -> None:
        chunks = recording.chunks
        self._keystream = reading.keystream
        self._nonce = recording.fields["nonce"]
        self._head = chunks[0][:head_size]
        # The shortest ones: they make the polynomials of the lowest degree.
        distinct = sorted(set(chunks), key=len)[:6]
        for one, other in itertools.combinations(distinct, 2):
            try:
                r, s = one_time_key(one, other)
            except ValueError:
                continue
            if all(tag(each[:-TAG_BYTES], r, s) == each[-TAG_BYTES:] for each in chunks[:3]):
                self._key = r, s
                return
        raise AttackFailed("no one-time key fits the chunks")

    def tagged(self, ciphertext: bytes) -> bytes:
        """A ciphertext with a valid tag."""
        return ciphertext + tag(ciphertext, *self._key)

    def sealed(self, choice: dict[str, Any]) -> bytes:
        """A sealed object with one choice. Its head is that of the recorded chunks, whose id may be unknown."""
        plain = json.dumps({"choices": [{"index": 0, **choice}]}, separators=(",", ":"))[1:].encode()
        start, end = len(self._head), len(self._head) + len(plain)
        if not self._keystream.covers(start, end):
            raise AttackFailed("the known key stream is too short")
        return self.tagged(self._head + xor(plain, self._keystream.values[start:end]))

    def chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        """The event of a sealed chunk."""
        return event(self.sealed({"delta": delta, "finish_reason": finish_reason}))

    def completion(self, text: str) -> bytes:
        """A whole response in the JSON envelope, under the request's nonce."""
        message = {"role": "assistant", "content": text}
        return envelope(self.sealed({"message": message, "finish_reason": "stop"}), self._nonce)

    def text(self, text: str) -> Iterator[bytes]:
        """A whole response with a text of the attacker's own."""
        for part in _parts(text):
            yield self.chunk({"content": part})
        yield self.chunk({}, "stop")
        yield DONE

    def tool_call(self, name: str, arguments: dict[str, Any]) -> Iterator[bytes]:
        """A whole response with a tool call of the attacker's own."""
        function: dict[str, Any] = {"name": name, "arguments": ""}
        first = {"index": 0, "id": "call_1", "type": "function", "function": function}
        yield self.chunk({"tool_calls": [first]})
        for part in _parts(json.dumps(arguments)):
            yield self.chunk({"tool_calls": [{"index": 0, "function": {"arguments": part}}]})
        yield self.chunk({}, "tool_calls")
        yield DONE


def _parts(text: str) -> Iterator[str]:
    return (text[start : start + _PART] for start in range(0, len(text), _PART))
