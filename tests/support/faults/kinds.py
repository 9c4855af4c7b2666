"""The faults, each a function over the stream of events or of bytes.

The rule of this file: a fault is a value. Those that strike events are made of a place (which event) and an act
(what is sent in place of it); those that strike bytes count them from the first one of the head.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from prem_core._crypto.aead import new_nonce
from prem_core._crypto.xwing import PrivateKey
from support.faults.layer import Drop, End, Exchange, Head, Pieces, Reset

Strike = Callable[[Exchange, Pieces], Pieces]
Act = Callable[[Exchange, bytes], AsyncIterator[bytes]]

#: What a service reports that fails, in OpenAI's form.
FAILED: Final = {"error": {"message": "the engine failed", "type": "server_error"}}
FAILED_ENVELOPE: Final = (
    b'{"status": 500, "data": null, "error": "the engine failed", "support_id": "support_1"}'
)
REFUSED: Final = {"error": {"message": "no such thing", "type": "invalid_request_error"}}

#: An X-Wing key whose private half the enclave does not have.
ANOTHER_KEY: Final = PrivateKey(b"some other enclave's private key").public_key()

HTML: Final = b"<!doctype html><title>502 Bad Gateway</title><h1>Bad Gateway</h1>"


# --- places -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """An event of the answer, or a piece of a JSON body.

    Attributes:
        name: In words.
        is_at: Given the exchange, the event's number from 0, and the event: whether it is this one.
    """

    name: str
    is_at: Callable[[Exchange, int, bytes], bool]


def _finishes(exchange: Exchange, number: int, event: bytes) -> bool:
    choices = exchange.open(event).get("choices", [])
    return any(choice["finish_reason"] is not None for choice in choices)


#: How many events come before the middle.
HALF: Final = 3

FIRST: Final = Place("before the first chunk", lambda exchange, number, event: number == 0)
MIDDLE: Final = Place("in the middle", lambda exchange, number, event: number == HALF)
FINISH: Final = Place("at the finish reason", _finishes)
DONE: Final = Place("before done", lambda exchange, number, event: event.startswith(b"event: done"))
EVERYWHERE: Final = Place("everywhere", lambda exchange, number, event: True)


def at(place: Place, act: Act) -> Strike:
    """Let `act` say what is sent in place of the event there; the others pass."""

    async def strike(exchange: Exchange, events: Pieces) -> Pieces:
        number = 0
        async for event in events:
            if place.is_at(exchange, number, event):
                async for each in act(exchange, event):
                    yield each
            else:
                yield event
            number += 1

    return strike


# --- acts ---------------------------------------------------------------------------------------------


async def _forever() -> None:
    # The layer ends it when the client leaves.
    await asyncio.Event().wait()


async def drop(exchange: Exchange, event: bytes) -> AsyncIterator[bytes]:
    """Close the connection before the event."""
    raise Drop
    yield b""


async def drop_after(exchange: Exchange, event: bytes) -> AsyncIterator[bytes]:
    """Close the connection behind the event."""
    yield event
    raise Drop


async def drop_inside(exchange: Exchange, event: bytes) -> AsyncIterator[bytes]:
    """Close the connection in the middle of the event."""
    yield event[: len(event) // 2]
    raise Drop


async def reset(exchange: Exchange, event: bytes) -> AsyncIterator[bytes]:
    """Reset the connection before the event."""
    # What was sent has to arrive first: a reset may overtake it.
    await asyncio.sleep(0.05)
    raise Reset
    yield b""


async def truncate(exchange: Exchange, event: bytes) -> AsyncIterator[bytes]:
    """End the answer before the event, as if it were whole."""
    raise End
    yield b""


async def truncate_inside(exchange: Exchange, event: bytes) -> AsyncIterator[bytes]:
    """End the answer in the middle of the event."""
    yield event[: len(event) // 2]
    raise End


async def stall(exchange: Exchange, event: bytes) -> AsyncIterator[bytes]:
    """Send nothing more, and keep the connection."""
    await _forever()
    yield b""


async def stall_after(exchange: Exchange, event: bytes) -> AsyncIterator[bytes]:
    """Send the event and nothing more, and keep the connection."""
    yield event
    await _forever()


async def comment_for_ever(exchange: Exchange, event: bytes) -> AsyncIterator[bytes]:
    """Keep the connection alive with comments, and never go on."""
    for _ in range(500):  # longer than any client here should wait, so that one that does is found out
        yield b": keep-alive\n\n"
        await asyncio.sleep(0.02)
    raise Drop


async def endless_line(exchange: Exchange, event: bytes) -> AsyncIterator[bytes]:
    """Begin an event's data, and never end the line."""
    yield b"event: data\ndata: "
    for _ in range(5000):  # twice the buffer a client has by default
        yield b"0" * 4096
    raise Drop


async def duplicate(exchange: Exchange, event: bytes) -> AsyncIterator[bytes]:
    """Send the event twice."""
    yield event
    yield event


async def lose(exchange: Exchange, event: bytes) -> AsyncIterator[bytes]:
    """Leave the event out."""
    return
    yield b""


def flip(offset: int, bit: int = 0) -> Act:
    """Flip a bit of the event's byte number `offset`; from its end where negative."""

    async def act(exchange: Exchange, event: bytes) -> AsyncIterator[bytes]:
        yield flipped(event, offset, bit)

    return act


def flipped(data: bytes, offset: int, bit: int = 0) -> bytes:
    """`data` with one bit changed."""
    changed = bytearray(data)
    changed[offset] ^= 1 << bit
    return bytes(changed)


def before(*data: bytes) -> Act:
    """Put `data` before the event."""

    async def act(exchange: Exchange, event: bytes) -> AsyncIterator[bytes]:
        for each in data:
            yield each
        yield event

    return act


def instead(make: Callable[[Exchange], bytes]) -> Act:
    """Send what `make` makes of the exchange in place of the event, and end."""

    async def act(exchange: Exchange, event: bytes) -> AsyncIterator[bytes]:
        yield make(exchange)
        raise End

    return act


def rewrite(change: Callable[[bytes], bytes]) -> Act:
    """Send `change(event)` for the event."""

    async def act(exchange: Exchange, event: bytes) -> AsyncIterator[bytes]:
        yield change(event)

    return act


def swap(place: Place) -> Strike:
    """Send the event there behind the one that follows it."""

    async def strike(exchange: Exchange, events: Pieces) -> Pieces:
        number, held = 0, b""
        async for event in events:
            if place.is_at(exchange, number, event):
                held = event
            else:
                yield event
                yield held
                held = b""
            number += 1
        yield held

    return strike


def done_too_early(place: Place) -> Strike:
    """Put a done event before the one there, and go on behind it."""
    return at(place, before(b"event: done\ndata: [DONE]\n\n"))


# --- what can stand in an event -----------------------------------------------------------------------


def event(name: str, data: bytes) -> bytes:
    """An event as it stands on the wire."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)


def plain_error(error: dict[str, Any]) -> Callable[[Exchange], bytes]:
    """An error event anybody can read."""
    return lambda exchange: event("error", json.dumps(error).encode())


def sealed_error(error: dict[str, Any]) -> Callable[[Exchange], bytes]:
    """An error event sealed to the request."""
    return lambda exchange: event("error", exchange.seal(error))


def sealed(value: Any) -> Callable[[Exchange], bytes]:
    """`value` in the place of a chunk, sealed to the request."""
    return lambda exchange: event("data", exchange.seal(value))


def large_chunk(size: int) -> Callable[[Exchange], bytes]:
    """A chunk of `size` characters, validly sealed."""
    choice = {"index": 0, "delta": {"content": "a" * size}, "finish_reason": None}
    return sealed({"object": "chat.completion.chunk", "choices": [choice]})


def multi_line_error(error: dict[str, Any]) -> Callable[[Exchange], bytes]:
    """An error event whose JSON is written over several data lines."""
    lines = json.dumps(error, indent=1).encode().split(b"\n")
    return lambda exchange: b"event: error\n" + b"".join(b"data: %b\n" % line for line in lines) + b"\n"


def multi_line(event: bytes) -> bytes:
    """The event with its data on two lines; they are joined by a line break, which hex does not have."""
    middle = len(event) // 2
    return event[:middle] + b"\ndata: " + event[middle:]


def crlf(event: bytes) -> bytes:
    """The event with the line ends of Windows."""
    return event.replace(b"\n", b"\r\n")


def cr(event: bytes) -> bytes:
    """The event with the line ends of the old Macintosh."""
    return event.replace(b"\n", b"\r")


def decorated(event: bytes) -> bytes:
    """The event with all that an event stream may hold and this protocol has no use for."""
    around = b": a comment\nid: 7\nretry: 10\nunknown: field\n"
    return b": comments alone\n\n" + around + event + b"event: later\ndata: {}\n\nevent: data\n\n"


# --- over the bytes on the socket ---------------------------------------------------------------------


def _upto(count: int, end: Callable[[], AsyncIterator[bytes]]) -> Strike:
    async def strike(exchange: Exchange, data: Pieces) -> Pieces:
        left = count
        async for each in data:
            if left <= len(each):
                if left:
                    yield each[:left]
                async for after in end():
                    yield after
            yield each
            left -= len(each)

    return strike


async def _dropped() -> AsyncIterator[bytes]:
    raise Drop
    yield b""


async def _reset() -> AsyncIterator[bytes]:
    raise Reset
    yield b""


async def _stalled() -> AsyncIterator[bytes]:
    await _forever()
    yield b""


def drop_at(offset: int) -> Strike:
    """Close the connection before byte number `offset` of the answer."""
    return _upto(offset, _dropped)


def reset_at(offset: int) -> Strike:
    """Reset the connection before byte number `offset`."""
    return _upto(offset, _reset)


def stall_at(offset: int) -> Strike:
    """Send nothing from byte number `offset` on."""
    return _upto(offset, _stalled)


def flip_at(offset: int, bit: int = 0) -> Strike:
    """Flip a bit of byte number `offset`, wherever that is: the status, a header, a chunk's length, an event."""

    async def strike(exchange: Exchange, data: Pieces) -> Pieces:
        begin = 0
        async for each in data:
            inside = begin <= offset < begin + len(each)
            yield flipped(each, offset - begin, bit) if inside else each
            begin += len(each)

    return strike


def broken_framing(number: int) -> Strike:
    """Flip a bit of the HTTP chunk's length that stands before event `number`, so that it is none."""

    async def strike(exchange: Exchange, data: Pieces) -> Pieces:
        before = -1  # the head
        async for each in data:
            yield flipped(each, 0, 6) if before == number else each
            before += 1

    return strike


async def one_byte_writes(exchange: Exchange, data: Pieces) -> Pieces:
    """Write every byte by itself."""
    async for each in data:
        for start in range(len(each)):
            yield each[start : start + 1]


async def one_write(exchange: Exchange, data: Pieces) -> Pieces:
    """Write the whole answer at once."""
    yield b"".join([each async for each in data])


def answered(raw: bytes) -> Strike:
    """Send `raw` in place of the answer, and close."""

    async def strike(exchange: Exchange, data: Pieces) -> Pieces:
        yield raw
        raise Drop

    return strike


# --- over the head ------------------------------------------------------------------------------------


def content_type(kind: str) -> Callable[[Head], Head]:
    """The answer under another content type."""
    return lambda head: replace(head, headers={**head.headers, "content-type": kind})


def status(code: int, **headers: str) -> Callable[[Head], Head]:
    """The answer under another status, as HTML."""
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda head: replace(
        head, status=code, headers={**head.headers, "content-type": "text/html", **more}
    )


def announced(length: int) -> Callable[[Head], Head]:
    """A head that announces a body of `length` bytes."""

    def change(head: Head) -> Head:
        kept = {name: value for name, value in head.headers.items() if name != "transfer-encoding"}
        return replace(head, headers={**kept, "content-length": str(length)})

    return change


def body(data: bytes) -> Strike:
    """`data` in place of the answer's body."""

    async def strike(exchange: Exchange, events: Pieces) -> Pieces:
        yield data

    return strike


def sealed_envelope(value: Any) -> Strike:
    """`value`, sealed to the request under a nonce of its own, in place of the answer's body."""

    async def strike(exchange: Exchange, events: Pieces) -> Pieces:
        nonce = new_nonce()
        sealed = exchange.opened.keys.seal(json.dumps(value).encode(), nonce)
        data = {"encryptedResponse": sealed.hex(), "nonce": nonce.hex()}
        yield json.dumps({"status": 200, "data": data}).encode()

    return strike


# --- over the request ---------------------------------------------------------------------------------


def flipped_request(exchange: Exchange) -> bytes:
    """The request with a bit of its sealed part flipped, which leaves it hex."""
    place = exchange.body.index(b'"encryptedInference"') + 30
    digit = int(exchange.body[place : place + 1], 16) ^ 1
    return exchange.body[:place] + b"%x" % digit + exchange.body[place + 1 :]


class AnotherAnswer:
    """The answer to an earlier request, as a gateway might mix them up."""

    def __init__(self) -> None:
        self._kept: list[bytes] = []

    async def __call__(self, exchange: Exchange, events: Pieces) -> Pieces:
        """Keep the first answer, and send it for every other."""
        came = [event async for event in events]
        self._kept = self._kept or came
        for each in self._kept:
            yield each
