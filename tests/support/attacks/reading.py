"""Passive reading: a streamed response, and the beginning of its request, from one recorded exchange.

All items of the exchange are masked with the same key stream. The known bytes of one chunk give the key stream at their
places. A chunk with a text has known bytes behind it, so that each chunk makes a longer one readable.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from support.attacks.chunk_form import ChunkForm
from support.attacks.gateway import Recording
from support.attacks.partly_known import PartlyKnown
from support.attacks.poly1305 import TAG_BYTES


class AttackFailed(Exception):
    """The recorded bytes do not allow the attack."""


@dataclass(frozen=True)
class Reading:
    """What was read. `keystream` is what all items are masked with."""

    chunks: Sequence[dict[str, Any]]
    request: PartlyKnown
    keystream: PartlyKnown

    @property
    def content(self) -> str:
        """The text of the response."""
        return self._text("content")

    @property
    def reasoning(self) -> str:
        """The reasoning of the response."""
        return self._text("reasoning_content")

    def _text(self, name: str) -> str:
        deltas = [choice["delta"] for chunk in self.chunks for choice in chunk["choices"]]
        return "".join(delta.get(name) or "" for delta in deltas)


#: The reading of an exchange that cannot be read.
NOTHING: Final = Reading([], PartlyKnown(), PartlyKnown())


def read(recording: Recording, form: ChunkForm, beginnings: Sequence[bytes] = ()) -> Reading:
    """Read a recorded exchange.

    Args:
        recording: The exchange.
        form: The known form of a chunk.
        beginnings: How a request may begin.

    Raises:
        AttackFailed: Nothing can be read.
    """
    bodies = [chunk[:-TAG_BYTES] for chunk in recording.chunks]
    keystream, chunks = _read_chunks(bodies, form, _first_keystream(bodies, form))
    keystream = _with_beginning(keystream, recording.sealed_request, beginnings)
    return Reading(chunks, keystream.xor(recording.sealed_request[:-TAG_BYTES]), keystream)


def read_again(recording: Recording, form: ChunkForm, keystream: PartlyKnown) -> Reading:
    """Read another response that is masked with a known key stream."""
    bodies = [chunk[:-TAG_BYTES] for chunk in recording.chunks]
    keystream, chunks = _read_chunks(bodies, form, keystream)
    return Reading(chunks, keystream.xor(recording.sealed_request[:-TAG_BYTES]), keystream)


def _first_keystream(bodies: Sequence[bytes], form: ChunkForm) -> PartlyKnown:
    """The key stream from the chunk with the finish reason, which is fully known except for its id."""
    guesses = [
        (form.head + PartlyKnown.of(end)).xor(body)
        for body in bodies
        for end in form.ends
        if len(form.head) + len(end) == len(body)
    ]
    if not guesses:
        raise AttackFailed("no chunk has the length of a finish reason")
    best = max(guesses, key=lambda guess: sum(bool(_fitting(body, form, guess)) for body in bodies))
    if 2 * sum(bool(_fitting(body, form, best)) for body in bodies) < len(bodies):
        raise AttackFailed("the chunks do not share a key stream")
    return best


def _read_chunks(
    bodies: Sequence[bytes], form: ChunkForm, keystream: PartlyKnown
) -> tuple[PartlyKnown, list[dict[str, Any]]]:
    start = len(form.head)
    chunks: dict[int, dict[str, Any]] = {}
    unread = sorted(range(len(bodies)), key=lambda number: len(bodies[number]))
    while unread:
        left, learned = [], False
        for number in unread:
            body = bodies[number]
            if keystream.covers(start, len(body)):
                plain = keystream.xor(body).values[start:]
                chunks[number] = json.loads(b"{" + plain)
            else:
                left.append(number)
                fitting = _fitting(body, form, keystream)
                if len(fitting) == 1:
                    more = keystream.merged(fitting[0].xor(body))
                    learned = learned or more != keystream
                    keystream = more
        if len(left) == len(unread) and not learned:
            break
        unread = left
    return keystream, [chunks[number] for number in sorted(chunks)]


def _fitting(body: bytes, form: ChunkForm, keystream: PartlyKnown) -> list[PartlyKnown]:
    """The chunks that `body` may be, by the known part of the key stream."""
    made = [form.chunk(frame, len(body)) for frame in form.frames]
    plain = keystream.xor(body)
    return [chunk for chunk in made if chunk is not None and chunk.agrees(plain)]


def _with_beginning(keystream: PartlyKnown, request: bytes, beginnings: Sequence[bytes]) -> PartlyKnown:
    for beginning in sorted(beginnings, key=len, reverse=True):
        found = PartlyKnown.of(beginning).xor(request)
        if found.agrees(keystream):
            return keystream.merged(found)
    return keystream
