"""The table: what has to come of every fault, in every column.

The rule of this file: expectations, written down before anything is run. A cell that is not here is not asked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from prem_core import (
    APIConnectionError,
    APIError,
    APIResponseValidationError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    DecryptionError,
    EnclaveKeyError,
    InternalServerError,
    PremError,
    RateLimitError,
    ResponseTooLargeError,
    StreamInterruptedError,
)
from support.faults import kinds as kinds
from support.faults.columns import TEXT, WORDS, Column
from support.faults.kinds import (
    DONE,
    EVERYWHERE,
    FAILED,
    FINISH,
    FIRST,
    HALF,
    HTML,
    MIDDLE,
    REFUSED,
    Place,
    at,
)
from support.faults.layer import Fault
from support.wire_schemas import TEST_KEY

#: Seconds a client of this table waits where the fault is that nothing comes.
SHORT: Final = 0.4

#: Clients of this table try once more.
MAX_RETRIES: Final = 1


@dataclass(frozen=True)
class Cell:
    """What has to come of a fault.

    Attributes:
        error: The exact class; None for an answer.
        status: Its HTTP status, where it has one.
        words: Of a stream, how many chunks of text were given before it.
        text: The text of an answer that is not the right one: nobody can notice it (see SECURITY.md).
        requests: How many requests the party saw whose answers were struck.
        began: How many the client says to have sent to the gateway; None for as many as that saw.
        passed: Where the enclave's answers were struck, how many requests the gateway saw then.
        kept: Whether the connection serves the next request too; otherwise it is closed.
    """

    error: type[PremError] | None = None
    status: int | None = None
    words: int = 0
    text: str | None = None
    requests: int = 1
    began: int | None = None
    passed: int = 0
    kept: bool = False

    @property
    def is_mended(self) -> bool:
        """Whether one more request has the right answer, where the fault strikes the first one only."""
        return self.requests > 1


def right(requests: int = 1, *, kept: bool = True, passed: int = 1) -> Cell:
    """The answer that comes without a fault."""
    return Cell(text=None, requests=requests, kept=kept, passed=passed)


def unnoticed(*words: str) -> Cell:
    """An answer of these words, taken for whole."""
    return Cell(text="".join(words), kept=True)


def fails(error: type[PremError], **values: Any) -> Cell:
    """An error."""
    return Cell(error, **values)


RIGHT: Final = right()


@dataclass(frozen=True)
class Row:
    """A fault, and its cells.

    Attributes:
        fault: What strikes.
        cells: By what is asked: ``stream`` and ``whole``, or both as ``chat``; ``envelope``, ``audio`` and
            ``models``, or all three as ``json``; or all as ``every``.
        settings: Arguments of the client.
        refused: Whether the party does not listen at all.
        asked_before: Whether the client has asked, and was answered, before the fault is there.
        turned: Whether another enclave, with another key, has taken the place of the first one since.
        makes: The fault, where each cell needs one of its own.
    """

    fault: Fault
    cells: Mapping[str, Cell]
    settings: Mapping[str, Any] = field(default_factory=dict)
    refused: bool = False
    asked_before: bool = False
    turned: bool = False
    makes: Callable[[], Fault] | None = None

    @property
    def waits(self) -> bool:
        """Whether its cells do nothing most of the time."""
        return SHORT in self.settings.values()

    def cell(self, column: Column) -> Cell | None:
        """What has to come of it there; None where it is not asked."""
        names = (column.form, "chat") if column.kind == "chat" else (column.kind, "json")
        return next((self.cells[name] for name in (*names, "every") if name in self.cells), None)

    def __str__(self) -> str:
        return str(self.fault)


def _row(fault: Fault, settings: Mapping[str, Any] | None = None, **cells: Cell) -> Row:
    return Row(fault, cells, settings or {})


def _stream(place: Place, error: type[PremError], *, kept: bool = False, **values: Any) -> dict[str, Cell]:
    """The cells of a stream, and of a whole answer made of one, that fail at `place`."""
    words = {FIRST: 0, MIDDLE: HALF, FINISH: len(WORDS), DONE: len(WORDS)}[place]
    cell = fails(error, kept=kept, **values)
    return {"stream": fails(error, words=words, kept=kept, **values), "whole": cell}


_PATIENT: Final = {"timeout": 10.0, "stream_chunk_timeout": SHORT}
_IMPATIENT: Final = {"timeout": SHORT}
_PINNED: Final = {"enclave_public_key": bytes(TEST_KEY.public_key()).hex()}
_SMALL: Final = {"max_buffer_size": 8192}

_BROKEN: Final = fails(APIConnectionError, requests=2)
_CUT: Final = fails(StreamInterruptedError, requests=2)
_LATE: Final = fails(APITimeoutError, requests=2)
_NONSENSE: Final = fails(APIResponseValidationError)
_READ_NONSENSE: Final = fails(APIResponseValidationError, kept=True)
_SHUT: Final = fails(DecryptionError, kept=True)


def _in_place(name: str, place: Place, strike: kinds.Strike) -> Fault:
    return Fault(name, place.name, events=strike)


_CONNECTION: Final = (
    Row(
        Fault("refuse", "the connection"),
        {"every": fails(APIConnectionError, requests=0, began=2)},
        refused=True,
    ),
    _row(Fault("drop", "before the headers", data=kinds.drop_at(0)), every=_BROKEN),
    _row(Fault("drop", "inside the headers", data=kinds.drop_at(30)), every=_BROKEN),
    _row(Fault("reset", "before the headers", data=kinds.reset_at(0)), every=_BROKEN),
    _row(
        Fault("stall", "before the headers", data=kinds.stall_at(0)), {**_IMPATIENT, **_PINNED}, every=_LATE
    ),
    _row(Fault("not HTTP", data=kinds.answered(b"220 mail.example ESMTP\r\n")), every=_BROKEN),
    _row(Fault("1-byte writes", data=kinds.one_byte_writes), every=RIGHT),
    _row(Fault("one write for all", data=kinds.one_write), every=RIGHT),
)

_HEAD: Final = (
    _row(
        Fault("a header without a body", "ended as HTTP does", events=kinds.body(b"")),
        chat=fails(StreamInterruptedError, requests=2, kept=True),
        json=_READ_NONSENSE,
    ),
    _row(
        Fault(
            "a header without a body",
            "and the connection closed",
            head=kinds.announced(999),
            events=at(FIRST, kinds.drop),
        ),
        every=_CUT,
    ),
    _row(
        Fault("HTML for JSON", head=kinds.content_type("text/html"), events=kinds.body(HTML)),
        chat=_NONSENSE,
        envelope=_NONSENSE,
        json=_READ_NONSENSE,
    ),
    _row(
        Fault(
            "HTML for JSON",
            "called JSON",
            head=kinds.content_type("application/json"),
            events=kinds.body(HTML),
        ),
        stream=_NONSENSE,
        whole=_READ_NONSENSE,
        json=_READ_NONSENSE,
    ),
    _row(
        Fault("HTML for JSON", "with status 502", head=kinds.status(502), events=kinds.body(HTML)),
        every=fails(InternalServerError, status=502, requests=2, kept=True),
    ),
    _row(
        Fault("HTML for JSON", "with status 401", head=kinds.status(401), events=kinds.body(HTML)),
        every=fails(AuthenticationError, status=401, kept=True),
    ),
    _row(
        Fault("a status without a body", "503", head=kinds.status(503), events=kinds.body(b"")),
        every=fails(InternalServerError, status=503, requests=2, kept=True),
    ),
    _row(
        Fault(
            "a status without a body",
            "429, Retry-After: 0",
            head=kinds.status(429, retry_after="0"),
            events=kinds.body(b""),
        ),
        every=fails(RateLimitError, status=429, requests=2, kept=True),
    ),
    _row(
        Fault("a redirect", head=kinds.status(302, location="http://127.0.0.1:9/"), events=kinds.body(HTML)),
        every=fails(APIStatusError, status=302, kept=True),
    ),
    _row(
        Fault("a wrong content type", "text/plain", head=kinds.content_type("text/plain")),
        chat=_NONSENSE,
        envelope=_NONSENSE,
        json=RIGHT,
    ),
    _row(
        Fault("a wrong content type", "JSON for a stream", head=kinds.content_type("application/json")),
        stream=_NONSENSE,
        whole=_READ_NONSENSE,
    ),
)

_LENGTH: Final = (
    _row(_in_place("drop", FIRST, at(FIRST, kinds.drop)), every=_CUT),
    _row(
        _in_place("drop", MIDDLE, at(MIDDLE, kinds.drop)),
        **_stream(MIDDLE, StreamInterruptedError),
        json=_CUT,
    ),
    _row(
        Fault("drop", "inside an event", events=at(MIDDLE, kinds.drop_inside)),
        **_stream(MIDDLE, StreamInterruptedError),
        json=_CUT,
    ),
    _row(_in_place("drop", DONE, at(DONE, kinds.drop)), **_stream(DONE, StreamInterruptedError)),
    _row(Fault("drop", "after done", events=at(DONE, kinds.drop_after)), chat=right(kept=False)),
    _row(
        _in_place("reset", MIDDLE, at(MIDDLE, kinds.reset)),
        **_stream(MIDDLE, StreamInterruptedError),
        json=_CUT,
    ),
    _row(
        _in_place("truncate", FIRST, at(FIRST, kinds.truncate)),
        chat=fails(StreamInterruptedError, requests=2, kept=True),
        json=_READ_NONSENSE,
    ),
    _row(
        _in_place("truncate", MIDDLE, at(MIDDLE, kinds.truncate)),
        **_stream(MIDDLE, StreamInterruptedError, kept=True),
        json=_READ_NONSENSE,
    ),
    _row(
        Fault("truncate", "inside an event", events=at(MIDDLE, kinds.truncate_inside)),
        **_stream(MIDDLE, StreamInterruptedError, kept=True),
        json=_READ_NONSENSE,
    ),
    _row(
        _in_place("truncate", DONE, at(DONE, kinds.truncate)),
        **_stream(DONE, StreamInterruptedError, kept=True),
    ),
    _row(_in_place("stall", FIRST, at(FIRST, kinds.stall)), _IMPATIENT, every=_LATE),
    _row(
        _in_place("stall", MIDDLE, at(MIDDLE, kinds.stall)),
        _PATIENT,
        **_stream(MIDDLE, APITimeoutError),
        audio=_LATE,
    ),
    _row(_in_place("stall", DONE, at(DONE, kinds.stall)), _PATIENT, **_stream(DONE, APITimeoutError)),
    _row(Fault("stall", "after done", events=at(DONE, kinds.stall_after)), chat=right(kept=False)),
    _row(
        _in_place("comments and no chunk", FIRST, at(FIRST, kinds.comment_for_ever)),
        _PATIENT,
        chat=_LATE,
    ),
    _row(
        _in_place("comments and no chunk", MIDDLE, at(MIDDLE, kinds.comment_for_ever)),
        _PATIENT,
        **_stream(MIDDLE, APITimeoutError),
    ),
)

_ORDER: Final = (
    _row(
        _in_place("duplicate", FIRST, at(FIRST, kinds.duplicate)),
        chat=unnoticed(WORDS[0], *WORDS),
    ),
    _row(
        _in_place("duplicate", MIDDLE, at(MIDDLE, kinds.duplicate)),
        chat=unnoticed(*WORDS[:HALF], WORDS[HALF], *WORDS[HALF:]),
        envelope=_SHUT,
        audio=_SHUT,
    ),
    _row(_in_place("duplicate", FINISH, at(FINISH, kinds.duplicate)), chat=unnoticed(TEXT)),
    _row(_in_place("duplicate", DONE, at(DONE, kinds.duplicate)), chat=RIGHT),
    _row(
        _in_place("reorder", MIDDLE, kinds.swap(MIDDLE)),
        chat=unnoticed(*WORDS[:HALF], WORDS[HALF + 1], WORDS[HALF], *WORDS[HALF + 2 :]),
        envelope=_SHUT,
        audio=_SHUT,
    ),
    _row(
        Fault("reorder", "done to the middle", events=kinds.done_too_early(MIDDLE)),
        **_stream(MIDDLE, StreamInterruptedError),
    ),
    _row(
        Fault("reorder", "done before the finish reason", events=kinds.done_too_early(FINISH)),
        **_stream(FINISH, StreamInterruptedError),
    ),
    _row(_in_place("lose an event", FIRST, at(FIRST, kinds.lose)), chat=unnoticed(*WORDS[1:])),
    _row(
        _in_place("lose an event", MIDDLE, at(MIDDLE, kinds.lose)),
        chat=unnoticed(*WORDS[:HALF], *WORDS[HALF + 1 :]),
        envelope=_SHUT,
        audio=_SHUT,
    ),
    _row(
        _in_place("lose an event", FINISH, at(FINISH, kinds.lose)),
        **_stream(FINISH, StreamInterruptedError),
    ),
    Row(
        Fault("another request's answer"),
        {"chat": fails(DecryptionError), "audio": _SHUT, "envelope": _SHUT},
        asked_before=True,
        makes=lambda: Fault("another request's answer", events=kinds.AnotherAnswer()),
    ),
)

_BITS: Final = (
    _row(_in_place("flip a bit", FIRST, at(FIRST, kinds.flip(20))), chat=fails(DecryptionError)),
    _row(
        _in_place("flip a bit", MIDDLE, at(MIDDLE, kinds.flip(20))),
        **_stream(MIDDLE, DecryptionError),
        envelope=_SHUT,
        audio=_SHUT,
    ),
    _row(
        _in_place("flip a bit", FINISH, at(FINISH, kinds.flip(20))),
        **_stream(FINISH, DecryptionError),
    ),
    _row(
        Fault("flip a bit", "of an event's name", events=at(MIDDLE, kinds.flip(len("event: ")))),
        chat=unnoticed(*WORDS[:HALF], *WORDS[HALF + 1 :]),
    ),
    _row(Fault("flip a bit", "of done's name", events=at(DONE, kinds.flip(len("event: ")))), chat=RIGHT),
    _row(
        Fault("flip a bit", "of a chunk's HTTP length", data=kinds.broken_framing(HALF)),
        **_stream(MIDDLE, StreamInterruptedError),
    ),
    _row(
        Fault("flip a bit", "of the request", request=kinds.flipped_request),
        chat=fails(EnclaveKeyError, requests=2, kept=True),
        envelope=fails(EnclaveKeyError, requests=2, kept=True),
        audio=fails(EnclaveKeyError, requests=2, kept=True),
    ),
)


def _instead(name: str, place: Place, make: Any) -> Fault:
    return _in_place(name, place, at(place, kinds.instead(make)))


_ERRORS: Final = (
    _row(
        _instead("an error event, plain", FIRST, kinds.plain_error(FAILED)),
        chat=fails(InternalServerError, status=500, requests=2),
    ),
    _row(
        _instead("an error event, plain", MIDDLE, kinds.plain_error(FAILED)),
        **_stream(MIDDLE, InternalServerError, status=500),
    ),
    _row(
        _instead("an error event, plain", DONE, kinds.plain_error(FAILED)),
        **_stream(DONE, InternalServerError, status=500),
    ),
    _row(
        _instead("an error event, encrypted", FIRST, kinds.sealed_error(FAILED)),
        chat=fails(InternalServerError, status=500, requests=2),
    ),
    _row(
        _instead("an error event, encrypted", MIDDLE, kinds.sealed_error(REFUSED)),
        **_stream(MIDDLE, BadRequestError, status=400),
    ),
    _row(
        _instead("an error event, encrypted", DONE, kinds.sealed_error(REFUSED)),
        **_stream(DONE, BadRequestError, status=400),
    ),
    _row(
        Fault(
            "an error event",
            "that does not open",
            events=at(MIDDLE, kinds.instead(lambda _: kinds.event("error", b"00" * 40))),
        ),
        **_stream(MIDDLE, DecryptionError),
    ),
    _row(
        Fault(
            "an error event",
            "of no known type",
            events=at(MIDDLE, kinds.instead(kinds.plain_error({"error": "odd"}))),
        ),
        **_stream(MIDDLE, APIError),
    ),
    _row(
        _instead("an error inside a chunk", FIRST, kinds.sealed(FAILED)),
        chat=fails(InternalServerError, status=500, requests=2),
    ),
    _row(
        _instead("an error inside a chunk", MIDDLE, kinds.sealed(FAILED)),
        **_stream(MIDDLE, InternalServerError, status=500),
    ),
)

_ERRORS_IN_ENVELOPES: Final = (
    _row(
        Fault("an error inside an envelope", "plain", events=kinds.body(kinds.FAILED_ENVELOPE)),
        json=fails(InternalServerError, status=500, requests=2, kept=True),
    ),
    _row(
        Fault("an error inside an envelope", "encrypted", events=kinds.sealed_envelope(FAILED)),
        envelope=fails(InternalServerError, status=500, requests=2, kept=True),
        audio=_READ_NONSENSE,
    ),
)

_FORM: Final = (
    _row(Fault("CRLF", events=at(EVERYWHERE, kinds.rewrite(kinds.crlf))), chat=RIGHT),
    _row(Fault("CR alone", events=at(EVERYWHERE, kinds.rewrite(kinds.cr))), chat=RIGHT),
    _row(
        Fault("comments, ids, other events", events=at(EVERYWHERE, kinds.rewrite(kinds.decorated))),
        chat=RIGHT,
    ),
    _row(_in_place("a byte order mark", FIRST, at(FIRST, kinds.before(b"\xef\xbb\xbf"))), chat=RIGHT),
    _row(
        Fault("multi-line data", "of a chunk", events=at(MIDDLE, kinds.rewrite(kinds.multi_line))),
        **_stream(MIDDLE, DecryptionError),
    ),
    _row(
        Fault(
            "multi-line data",
            "of a plain error",
            events=at(MIDDLE, kinds.instead(kinds.multi_line_error(REFUSED))),
        ),
        **_stream(MIDDLE, BadRequestError, status=400),
    ),
    _row(
        _instead("a sealed item that is no chunk", FIRST, kinds.sealed(b"Hello")),
        chat=_NONSENSE,
    ),
    _row(
        _instead("a sealed item that is no chunk", MIDDLE, kinds.sealed([1])),
        **_stream(MIDDLE, APIResponseValidationError),
    ),
    _row(
        _instead("an event larger than the buffer", FIRST, kinds.large_chunk(8192)),
        _SMALL,
        chat=fails(ResponseTooLargeError),
    ),
    _row(
        _instead("an event larger than the buffer", MIDDLE, kinds.large_chunk(8192)),
        _SMALL,
        **_stream(MIDDLE, ResponseTooLargeError),
    ),
    _row(
        Fault("a line that never ends", events=at(MIDDLE, kinds.endless_line)),
        _SMALL,
        **_stream(MIDDLE, ResponseTooLargeError),
    ),
    _row(
        Fault("a body larger than the buffer", events=at(FIRST, kinds.before(b" " * 8192))),
        _SMALL,
        json=fails(ResponseTooLargeError),
    ),
)

_TURNED: Final = (
    Row(
        Fault("a key turned", "between two requests"),
        {"models": RIGHT, "every": right(2)},
        asked_before=True,
        turned=True,
    ),
    Row(
        Fault("a key turned", "and the old one pinned"),
        {"models": RIGHT, "every": fails(EnclaveKeyError, kept=True)},
        settings=_PINNED,
        asked_before=True,
        turned=True,
    ),
)


def _of_key(
    where: str, name: str, settings: Mapping[str, Any] | None = None, *, cell: Cell, **parts: Any
) -> Row:
    fault = Fault(f"the key: {name}", where, party="enclave", **parts)
    return _row(fault, settings, chat=cell, envelope=cell, audio=cell)


_KEY: Final = (
    Row(
        Fault("the key: refuse", "the connection", party="enclave"),
        dict.fromkeys(("chat", "envelope", "audio"), fails(APIConnectionError, requests=0)),
        refused=True,
    ),
    _of_key("before the headers", "stall", _IMPATIENT, cell=_LATE, data=kinds.stall_at(0)),
    _of_key("before the headers", "drop", cell=_BROKEN, data=kinds.drop_at(0)),
    _of_key("in the middle", "drop", cell=_CUT, events=at(MIDDLE, kinds.drop)),
    _of_key("in the middle", "truncate", cell=fails(EnclaveKeyError), events=at(MIDDLE, kinds.truncate)),
    _of_key("", "HTML for JSON", cell=fails(EnclaveKeyError), events=kinds.body(HTML)),
    _of_key(
        "with status 502",
        "HTML for JSON",
        cell=fails(EnclaveKeyError, requests=2),
        head=kinds.status(502),
        events=kinds.body(HTML),
    ),
    _of_key(
        "",
        "another's",
        cell=fails(EnclaveKeyError, requests=2, passed=2, kept=True),
        events=kinds.body(json.dumps({"publicKey": bytes(kinds.ANOTHER_KEY).hex()}).encode()),
    ),
    _of_key("", "flip a bit", cell=fails(EnclaveKeyError), events=at(MIDDLE, kinds.flip(0, 7))),
    _of_key("", "a wrong content type", cell=RIGHT, head=kinds.content_type("text/plain")),
    _of_key("", "1-byte writes", cell=RIGHT, data=kinds.one_byte_writes),
)

ROWS: Final = (
    *_CONNECTION,
    *_HEAD,
    *_LENGTH,
    *_ORDER,
    *_BITS,
    *_ERRORS,
    *_ERRORS_IN_ENVELOPES,
    *_FORM,
    *_TURNED,
    *_KEY,
)
