"""Server-sent events: bytes in, events out.

The rule of this file: pure and incremental. However a stream is cut into pieces, the same events come
out, and no more than `max_buffer_size` bytes of an unfinished event are ever held. Written from the
WHATWG HTML standard, section 9.2 (Server-sent events).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prem_core._errors import ResponseTooLargeError

_BOM: Final = b"\xef\xbb\xbf"


#: One dispatched event: its name (``message`` where the stream gave none) and its data.
Event = tuple[bytes, bytes]


class EventDecoder:
    """Cut a byte stream into events.

    Args:
        max_buffer_size: How many bytes of one unfinished event may be held.
    """

    __slots__ = ("_cr", "_data", "_held", "_line", "_max", "_name", "_started")

    def __init__(self, max_buffer_size: int) -> None:
        self._max = max_buffer_size
        self._line: list[bytes] = []  # pieces of a line whose end has not come
        self._data: list[bytes] = []  # data lines of the event being read
        self._name = b""
        self._held = 0
        self._cr = False  # the last piece ended in CR: a LF that follows belongs to it
        self._started = False

    def feed(self, piece: bytes) -> Iterator[Event]:
        """Take the next bytes, give the events they complete.

        An iterator, to be exhausted before the next call: the events before a fault are given before
        it raises, however the stream was cut into pieces.

        Raises:
            ResponseTooLargeError: An unfinished event is larger than the buffer.
        """
        if self._cr and piece:
            self._cr = False
            if piece[:1] == b"\n":
                piece = piece[1:]
        if b"\r" in piece:
            self._cr = piece[-1:] == b"\r"
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = piece.split(b"\n")
        if len(lines) == 1:
            # Pieces of one long line are kept apart until it ends: joining at each would be quadratic.
            self._hold(piece)
            return
        # Where the piece and all that is held fit, no line of it can be too long: one look instead of one a line.
        tight = self._held + len(piece) > self._max
        if self._line:
            self._line.append(lines[0])
            lines[0] = b"".join(self._line)
            self._held -= len(lines[0]) - len(self._line[-1])
            self._line = []
        rest = lines.pop()
        if not self._started:
            self._started = True
            self._check(lines[0])  # with its mark, as it is counted when it comes in pieces
            lines[0] = lines[0].removeprefix(_BOM)
        for line in lines:
            if tight:
                # Every line, not the data lines alone: one that comes in pieces is counted while it does.
                self._check(line)
            if line[:6] == b"data: ":
                self._data.append(line[6:])
                self._held += len(line)
            elif line[:7] == b"event: ":
                self._name = line[7:]
            elif line:
                self._field(line)
            else:
                data, name = self._data, self._name
                self._data, self._name, self._held = [], b"", 0
                # An event without data is not dispatched (section 9.2.6, step 2).
                if data:
                    yield name or b"message", data[0] if len(data) == 1 else b"\n".join(data)
        if rest:
            self._hold(rest)

    @property
    def pending(self) -> bool:
        """Whether part of an event is held: at the end of a stream it means that the event was cut."""
        return bool(self._line or self._data or self._name)

    def _hold(self, piece: bytes) -> None:
        if piece:
            self._line.append(piece)
            self._held += len(piece)
            if self._held > self._max:
                self._too_large()

    def _check(self, line: bytes) -> None:
        if self._held + len(line) > self._max:
            self._too_large()

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
            self._held += len(line)
        elif name == b"event":
            self._name = value
        # Comments, `id`, `retry` and unknown fields say nothing that this protocol uses.

    def _too_large(self) -> None:
        raise ResponseTooLargeError(
            f"one event of the answer is larger than max_buffer_size ({self._max} bytes)"
        )
