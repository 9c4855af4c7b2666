"""The known form of a chunk, learned from one exchange with an API key of the attacker's own."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Final, Self

import httpx

from prem_core._protocol.sse import EventDecoder
from prem_core.enclave import LocalEnclave
from support.attacks.partly_known import PartlyKnown
from support.raw_client import RawClient, params

FINISH_REASONS: Final = ("stop", "length", "tool_calls")

_TEXT = re.compile(rb'"(?:reasoning_)?content":\s*"((?:[^"\\]|\\.)*)"')
_FINISH = re.compile(rb'"finish_reason":\s*"([a-z_]+)"')


@dataclass(frozen=True)
class Frame:
    """What stands before and after the text in a chunk, without the chunk's head."""

    before: bytes
    after: bytes


@dataclass(frozen=True)
class ChunkForm:
    """The form of every chunk of one model.

    Attributes:
        head: Id, time and model: what all chunks of a response have in common. The id is unknown.
        frames: The chunks with a text.
        ends: The chunks with a finish reason, without their head.
    """

    head: PartlyKnown
    frames: frozenset[Frame]
    ends: frozenset[bytes]

    @classmethod
    def learn(cls, enclave: LocalEnclave, model: str, created: int) -> Self:
        """The form that `model` has in a response created at the time `created`."""
        with httpx.Client(trust_env=False) as http:
            sealed, response = RawClient(enclave, http).chat(params("Hello!", model=model))
        chunks = [
            sealed.keys.open(bytes.fromhex(data.decode()), sealed.nonce)
            for name, data in EventDecoder(1 << 24).feed(response.content)
            if name == b"data"
        ]
        size = chunks[0].index(b'"choices"')
        own = json.loads(chunks[0])
        now = chunks[0][:size].replace(str(own["created"]).encode(), str(created).encode())
        before_id, after_id = now.split(own["id"].encode())
        fixed, varying = own["id"][: len("chatcmpl-")].encode(), len(own["id"]) - len("chatcmpl-")
        head = PartlyKnown.of(before_id + fixed) + PartlyKnown.unknown(varying) + PartlyKnown.of(after_id)
        frames, ends = set(), set()
        for body in (chunk[size:] for chunk in chunks):
            if text := _TEXT.search(body):
                frames.add(Frame(body[: text.start(1)], body[text.end(1) :]))
            elif finish := _FINISH.search(body):
                ends |= {
                    body[: finish.start(1)] + reason.encode() + body[finish.end(1) :]
                    for reason in FINISH_REASONS
                }
        return cls(head, frozenset(frames), frozenset(ends))

    def chunk(self, frame: Frame, size: int) -> PartlyKnown | None:
        """A chunk of `size` bytes with an unknown text; None if it does not fit."""
        text = size - len(self.head) - len(frame.before) - len(frame.after)
        if text < 0:
            return None
        before, after = PartlyKnown.of(frame.before), PartlyKnown.of(frame.after)
        return self.head + before + PartlyKnown.unknown(text) + after
