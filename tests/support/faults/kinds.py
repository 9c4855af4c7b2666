"""The kinds of faults: functions over the events or the bytes of a response.

A fault of events combines a place (which event) with an action (what is sent instead). A fault of bytes counts
from the first byte of the head.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from prem_core._crypto.aead import new_nonce
from prem_core._crypto.xwing import PrivateKey
from support.faults.fault_proxy import Drop, End, Head, Pieces, ProxiedRequest, Reset

Injection = Callable[[ProxiedRequest, Pieces], Pieces]
Act = Callable[[ProxiedRequest, bytes], AsyncIterator[bytes]]

#: An error of the service in OpenAI's form.
FAILED: Final = {"error": {"message": "the engine failed", "type": "server_error"}}
FAILED_ENVELOPE: Final = (
    b'{"status": 500, "data": null, "error": "the engine failed", "support_id": "support_1"}'
)
REFUSED: Final = {"error": {"message": "no such thing", "type": "invalid_request_error"}}

#: An X-Wing key of another enclave.
ANOTHER_KEY: Final = PrivateKey(b"some other enclave's private key").public_key()

HTML: Final = b"<!doctype html><title>502 Bad Gateway</title><h1>Bad Gateway</h1>"


# --- places -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """An event of a response, or a piece of a JSON body.

    Attributes:
        name: The place in words.
        is_at: Whether an event, with its exchange and its number from 0, is at this place.
    """

    name: str
    is_at: Callable[[ProxiedRequest, int, bytes], bool]


def _finishes(exchange: ProxiedRequest, number: int, event: bytes) -> bool:
    choices = exchange.open(event).get("choices", [])
    return any(choice["finish_reason"] is not None for choice in choices)


#: The number of events before the middle.
HALF: Final = 3

FIRST: Final = Place("before the first chunk", lambda exchange, number, event: number == 0)
MIDDLE: Final = Place("in the middle", lambda exchange, number, event: number == HALF)
FINISH: Final = Place("at the finish reason", _finishes)
DONE: Final = Place("before done", lambda exchange, number, event: event.startswith(b"event: done"))
EVERYWHERE: Final = Place("everywhere", lambda exchange, number, event: True)


def at(place: Place, act: Act) -> Injection:
    """Send what `act` yields instead of the event at `place`."""

    async def inject(exchange: ProxiedRequest, events: Pieces) -> Pieces:
        number = 0
        async for event in events:
            if place.is_at(exchange, number, event):
                async for each in act(exchange, event):
                    yield each
            else:
                yield event
            number += 1

    return inject


# --- acts ---------------------------------------------------------------------------------------------


async def _forever() -> None:
    # Cancelled when the client disconnects.
    await asyncio.Event().wait()


async def drop(exchange: ProxiedRequest, event: bytes) -> AsyncIterator[bytes]:
    """Close the connection before the event."""
    raise Drop
    yield b""


async def drop_after(exchange: ProxiedRequest, event: bytes) -> AsyncIterator[bytes]:
    """Close the connection behind the event."""
    yield event
    raise Drop


async def drop_inside(exchange: ProxiedRequest, event: bytes) -> AsyncIterator[bytes]:
    """Close the connection in the middle of the event."""
    yield event[: len(event) // 2]
    raise Drop


async def reset(exchange: ProxiedRequest, event: bytes) -> AsyncIterator[bytes]:
    """Reset the connection before the event."""
    # A reset may overtake data that was sent before it.
    await asyncio.sleep(0.05)
    raise Reset
    yield b""


async def truncate(exchange: ProxiedRequest, event: bytes) -> AsyncIterator[bytes]:
    """End the response before the event, as if it were complete."""
    raise End
    yield b""


async def truncate_inside(exchange: ProxiedRequest, event: bytes) -> AsyncIterator[bytes]:
    """End the response in the middle of the event."""
    yield event[: len(event) // 2]
    raise End


async def stall(exchange: ProxiedRequest, event: bytes) -> AsyncIterator[bytes]:
    """Send nothing more, and keep the connection."""
    await _forever()
    yield b""


async def stall_after(exchange: ProxiedRequest, event: bytes) -> AsyncIterator[bytes]:
    """Send the event and nothing more, and keep the connection."""
    yield event
    await _forever()


async def send_comments_forever(exchange: ProxiedRequest, event: bytes) -> AsyncIterator[bytes]:
    """Send comments and no further event."""
    for _ in range(500):  # for longer than any timeout of the tests
        yield b": keep-alive\n\n"
        await asyncio.sleep(0.02)
    raise Drop


async def endless_line(exchange: ProxiedRequest, event: bytes) -> AsyncIterator[bytes]:
    """Send the data of an event without an end of line."""
    yield b"event: data\ndata: "
    for _ in range(5000):  # twice the buffer a client has by default
        yield b"0" * 4096
    raise Drop


async def duplicate(exchange: ProxiedRequest, event: bytes) -> AsyncIterator[bytes]:
    """Send the event twice."""
    yield event
    yield event


async def lose(exchange: ProxiedRequest, event: bytes) -> AsyncIterator[bytes]:
    """Leave the event out."""
    return
    yield b""


def flip(offset: int, bit: int = 0) -> Act:
    """Flip a bit of the event's byte number `offset`; from its end where negative."""

    async def act(exchange: ProxiedRequest, event: bytes) -> AsyncIterator[bytes]:
        yield flipped(event, offset, bit)

    return act


def flipped(data: bytes, offset: int, bit: int = 0) -> bytes:
    """`data` with one bit changed."""
    changed = bytearray(data)
    changed[offset] ^= 1 << bit
    return bytes(changed)


def before(*data: bytes) -> Act:
    """Put `data` before the event."""

    async def act(exchange: ProxiedRequest, event: bytes) -> AsyncIterator[bytes]:
        for each in data:
            yield each
        yield event

    return act


def instead(make: Callable[[ProxiedRequest], bytes]) -> Act:
    """Send `make(exchange)` instead of the event, and end the response."""

    async def act(exchange: ProxiedRequest, event: bytes) -> AsyncIterator[bytes]:
        yield make(exchange)
        raise End

    return act


def rewrite(change: Callable[[bytes], bytes]) -> Act:
    """Send `change(event)` for the event."""

    async def act(exchange: ProxiedRequest, event: bytes) -> AsyncIterator[bytes]:
        yield change(event)

    return act


def swap(place: Place) -> Injection:
    """Send the event at `place` after the one that follows it."""

    async def inject(exchange: ProxiedRequest, events: Pieces) -> Pieces:
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

    return inject


def done_too_early(place: Place) -> Injection:
    """Send a done event before the event at `place`, and continue."""
    return at(place, before(b"event: done\ndata: [DONE]\n\n"))


# --- contents of an event -----------------------------------------------------------------------


def event(name: str, data: bytes) -> bytes:
    """An event as bytes."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)


def plain_error(error: dict[str, Any]) -> Callable[[ProxiedRequest], bytes]:
    """A plaintext error event."""
    return lambda exchange: event("error", json.dumps(error).encode())


def sealed_error(error: dict[str, Any]) -> Callable[[ProxiedRequest], bytes]:
    """An error event sealed to the request."""
    return lambda exchange: event("error", exchange.seal(error))


def sealed(value: Any) -> Callable[[ProxiedRequest], bytes]:
    """`value` instead of a chunk, sealed to the request."""
    return lambda exchange: event("data", exchange.seal(value))


def large_chunk(size: int) -> Callable[[ProxiedRequest], bytes]:
    """A chunk of `size` characters, validly sealed."""
    choice = {"index": 0, "delta": {"content": "a" * size}, "finish_reason": None}
    return sealed({"object": "chat.completion.chunk", "choices": [choice]})


def multi_line_error(error: dict[str, Any]) -> Callable[[ProxiedRequest], bytes]:
    """An error event whose JSON spans several data lines."""
    lines = json.dumps(error, indent=1).encode().split(b"\n")
    return lambda exchange: b"event: error\n" + b"".join(b"data: %b\n" % line for line in lines) + b"\n"


def multi_line(event: bytes) -> bytes:
    """The event with its data on two lines, which are joined by a line break: no longer hex."""
    middle = len(event) // 2
    return event[:middle] + b"\ndata: " + event[middle:]


def crlf(event: bytes) -> bytes:
    """The event with the line ends of Windows."""
    return event.replace(b"\n", b"\r\n")


def cr(event: bytes) -> bytes:
    """The event with the line ends of the old Macintosh."""
    return event.replace(b"\n", b"\r")


def decorated(event: bytes) -> bytes:
    """The event among comments, ids and unknown events, which a client must ignore."""
    around = b": a comment\nid: 7\nretry: 10\nunknown: field\n"
    return b": comments alone\n\n" + around + event + b"event: later\ndata: {}\n\nevent: data\n\n"


# --- over the bytes on the socket ---------------------------------------------------------------------


def _upto(count: int, end: Callable[[], AsyncIterator[bytes]]) -> Injection:
    async def inject(exchange: ProxiedRequest, data: Pieces) -> Pieces:
        left = count
        async for each in data:
            if left <= len(each):
                if left:
                    yield each[:left]
                async for after in end():
                    yield after
            yield each
            left -= len(each)

    return inject


async def _dropped() -> AsyncIterator[bytes]:
    raise Drop
    yield b""


async def _reset() -> AsyncIterator[bytes]:
    raise Reset
    yield b""


async def _stalled() -> AsyncIterator[bytes]:
    await _forever()
    yield b""


def drop_at(offset: int) -> Injection:
    """Close the connection before byte number `offset` of the response."""
    return _upto(offset, _dropped)


def reset_at(offset: int) -> Injection:
    """Reset the connection before byte number `offset`."""
    return _upto(offset, _reset)


def stall_at(offset: int) -> Injection:
    """Send nothing from byte number `offset` on."""
    return _upto(offset, _stalled)


def flip_at(offset: int, bit: int = 0) -> Injection:
    """Flip a bit of byte number `offset`, wherever that is: the status, a header, a chunk's length, an event."""

    async def inject(exchange: ProxiedRequest, data: Pieces) -> Pieces:
        begin = 0
        async for each in data:
            inside = begin <= offset < begin + len(each)
            yield flipped(each, offset - begin, bit) if inside else each
            begin += len(each)

    return inject


def broken_framing(number: int) -> Injection:
    """Flip a bit of the HTTP chunk length before event `number`, so that it is invalid."""

    async def inject(exchange: ProxiedRequest, data: Pieces) -> Pieces:
        before = -1  # the head
        async for each in data:
            yield flipped(each, 0, 6) if before == number else each
            before += 1

    return inject


async def one_byte_writes(exchange: ProxiedRequest, data: Pieces) -> Pieces:
    """Write every byte by itself."""
    async for each in data:
        for start in range(len(each)):
            yield each[start : start + 1]


async def one_write(exchange: ProxiedRequest, data: Pieces) -> Pieces:
    """Write the whole response at once."""
    yield b"".join([each async for each in data])


def answered(raw: bytes) -> Injection:
    """Send `raw` instead of the response, and close the connection."""

    async def inject(exchange: ProxiedRequest, data: Pieces) -> Pieces:
        yield raw
        raise Drop

    return inject


# --- over the head ------------------------------------------------------------------------------------


def content_type(kind: str) -> Callable[[Head], Head]:
    """Change the content type."""
    return lambda head: replace(head, headers={**head.headers, "content-type": kind})


def status(code: int, **headers: str) -> Callable[[Head], Head]:
    """Change the status, and the content type to HTML."""
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


def body(data: bytes) -> Injection:
    """Replace the body by `data`."""

    async def inject(exchange: ProxiedRequest, events: Pieces) -> Pieces:
        yield data

    return inject


def sealed_envelope(value: Any) -> Injection:
    """Replace the body by an envelope of `value`, sealed to the request."""

    async def inject(exchange: ProxiedRequest, events: Pieces) -> Pieces:
        nonce = new_nonce()
        sealed = exchange.opened.keys.seal(json.dumps(value).encode(), nonce)
        data = {"encryptedResponse": sealed.hex(), "nonce": nonce.hex()}
        yield json.dumps({"status": 200, "data": data}).encode()

    return inject


# --- over the request ---------------------------------------------------------------------------------


def flipped_request(exchange: ProxiedRequest) -> bytes:
    """The request with one bit of its sealed part flipped; it stays hex."""
    place = exchange.body.index(b'"encryptedInference"') + 30
    digit = int(exchange.body[place : place + 1], 16) ^ 1
    return exchange.body[:place] + b"%x" % digit + exchange.body[place + 1 :]


class ResponseOfAnotherRequest:
    """The response to an earlier request, as if a gateway mixed them up."""

    def __init__(self) -> None:
        self._kept: list[bytes] = []

    async def __call__(self, exchange: ProxiedRequest, events: Pieces) -> Pieces:
        """Keep the first response, and send it for all later requests."""
        events_received = [event async for event in events]
        self._kept = self._kept or events_received
        for each in self._kept:
            yield each
