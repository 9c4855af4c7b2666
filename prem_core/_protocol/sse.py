"""Decode server-sent events: bytes in, events out (WHATWG HTML standard, section 9.2).

The decoder is incremental. The events do not depend on how the network splits the stream. At most `max_buffer_size`
bytes of an incomplete event are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prem_core._errors import ResponseTooLargeError

_BOM: Final = b"\xef\xbb\xbf"


#: One dispatched event: its name (``message`` if the stream has none) and its data.
Event = tuple[bytes, bytes]


class EventDecoder:
    """Splits a byte stream into events.

    Args:
        max_buffer_size: Maximum bytes of an incomplete event in memory.
    """

    __slots__ = ("_cr", "_data", "_held", "_line", "_max", "_name", "_started")

    def __init__(self, max_buffer_size: int) -> None:
        self._max = max_buffer_size
        self._line: list[bytes] = []  # parts of a line without its end
        self._data: list[bytes] = []  # data lines of the event being read
        self._name = b""
        self._held = 0
        self._cr = False  # the last bytes ended in CR; a LF at the start of the next bytes is part of the same line end
        self._started = False

    def feed(self, received: bytes) -> Iterator[Event]:
        """Take the next bytes; yield the events they complete.

        Exhaust this iterator before the next call. If an event is too large, the events before it are yielded first,
        and then the error is raised.

        Raises:
            ResponseTooLargeError: An incomplete event is larger than the buffer.
        """
        if self._cr and received:
            self._cr = False
            if received[:1] == b"\n":
                received = received[1:]
        if b"\r" in received:
            self._cr = received[-1:] == b"\r"
            received = received.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = received.split(b"\n")
        if len(lines) == 1:
            # The parts of a long line are joined once, at its end. Joining after each part would be quadratic.
            self._hold(received)
            return
        # If all of these bytes fit in the buffer, no line in them is too long. One check replaces one per line.
        tight = self._held + len(received) > self._max
        if self._line:
            self._line.append(lines[0])
            lines[0] = b"".join(self._line)
            self._held -= len(lines[0]) - len(self._line[-1])
            self._line = []
        rest = lines.pop()
        if not self._started:
            self._started = True
            self._check(
                lines[0]
            )  # including its byte order mark, which also counts if the line arrives in parts
            lines[0] = lines[0].removeprefix(_BOM)
        for line in lines:
            if tight:
                # All lines, not only data lines: a line that arrives in parts counts whatever it contains.
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

    def _hold(self, received: bytes) -> None:
        if received:
            self._line.append(received)
            self._held += len(received)
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
        # Comments, `id`, `retry` and unknown fields are not used by this protocol.

    def _too_large(self) -> None:
        raise ResponseTooLargeError(
            f"one event of the response is larger than max_buffer_size ({self._max} bytes)"
        )
