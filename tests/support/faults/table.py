"""The fault table: the expected outcome of every fault in every column. A missing cell is not tested."""

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
from support.faults.fault_proxy import Fault
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
from support.wire_schemas import TEST_KEY

#: The timeout of the clients in rows where the service stalls, in seconds. Long enough for a busy machine.
SHORT: Final = 1.2

#: Clients make one more attempt, also where the service may have accepted the request (`retry_after_send`).
MAX_RETRIES: Final = 1


@dataclass(frozen=True)
class Cell:
    """The expected outcome of a fault.

    Attributes:
        error: The exact class; None for a response.
        status: Its HTTP status, if it has one.
        words: The chunks of text a stream yields before the error.
        text: The text of a wrong response that cannot be detected (see SECURITY.md).
        requests: The requests to the party whose responses had the fault.
        counted: The requests to the gateway in the client's stats; None for as many as the gateway got.
        gateway_requests: The requests to the gateway, if the fault was in the enclave's responses.
        connection_reused: Whether the next request uses the same connection; otherwise it is closed.
    """

    error: type[PremError] | None = None
    status: int | None = None
    words: int = 0
    text: str | None = None
    requests: int = 1
    counted: int | None = None
    gateway_requests: int = 0
    connection_reused: bool = False

    @property
    def is_retried(self) -> bool:
        """Whether a second attempt succeeds if only the first one has the fault."""
        return self.requests > 1


def success(requests: int = 1, *, connection_reused: bool = True, gateway_requests: int = 1) -> Cell:
    """The same response as without a fault."""
    return Cell(
        text=None, requests=requests, connection_reused=connection_reused, gateway_requests=gateway_requests
    )


def undetected(*words: str) -> Cell:
    """A response of these words, taken for complete."""
    return Cell(text="".join(words), connection_reused=True)


def fails(error: type[PremError], **values: Any) -> Cell:
    """An error."""
    return Cell(error, **values)


SUCCESS: Final = success()


@dataclass(frozen=True)
class Row:
    """A fault and its cells.

    Attributes:
        fault: The fault.
        cells: By kind of call: ``stream`` and ``whole``, or both as ``chat``; ``envelope``, ``audio`` and ``models``,
            or all three as ``json``; or all as ``every``.
        settings: Arguments of the client.
        connection_refused: Whether the party refuses connections.
        after_a_request: Whether the client has made a successful request before.
        rotated: Whether the enclave's key was rotated since that request.
        make_fault: Makes the fault, if each cell needs its own.
    """

    fault: Fault
    cells: Mapping[str, Cell]
    settings: Mapping[str, Any] = field(default_factory=dict)
    connection_refused: bool = False
    after_a_request: bool = False
    rotated: bool = False
    make_fault: Callable[[], Fault] | None = None

    @property
    def stalls(self) -> bool:
        """Whether its cells mostly wait for a timeout."""
        return SHORT in self.settings.values()

    def cell(self, column: Column) -> Cell | None:
        """The expected outcome in `column`; None if it is not tested."""
        names = (column.form, "chat") if column.kind == "chat" else (column.kind, "json")
        return next((self.cells[name] for name in (*names, "every") if name in self.cells), None)

    def __str__(self) -> str:
        return str(self.fault)


def _row(fault: Fault, settings: Mapping[str, Any] | None = None, **cells: Cell) -> Row:
    return Row(fault, cells, settings or {})


def _stream(
    place: Place, error: type[PremError], *, connection_reused: bool = False, **values: Any
) -> dict[str, Cell]:
    """The cells of a stream, and of a whole response read from one, that fail at `place`."""
    words = {FIRST: 0, MIDDLE: HALF, FINISH: len(WORDS), DONE: len(WORDS)}[place]
    cell = fails(error, connection_reused=connection_reused, **values)
    return {"stream": fails(error, words=words, connection_reused=connection_reused, **values), "whole": cell}


_PATIENT: Final = {"timeout": 60.0, "stream_chunk_timeout": SHORT}
_IMPATIENT: Final = {"timeout": SHORT}
_PINNED: Final = {"enclave_public_key": bytes(TEST_KEY.public_key()).hex()}
_SMALL: Final = {"max_buffer_size": 8192}

_BROKEN: Final = fails(APIConnectionError, requests=2)
_TRUNCATED: Final = fails(StreamInterruptedError, requests=2)
_TIMEOUT: Final = fails(APITimeoutError, requests=2)
_INVALID: Final = fails(APIResponseValidationError)
_INVALID_AND_READ: Final = fails(APIResponseValidationError, connection_reused=True)
_UNDECRYPTABLE: Final = fails(DecryptionError, connection_reused=True)


def _in_place(name: str, place: Place, injection: kinds.Injection) -> Fault:
    return Fault(name, place.name, events=injection)


_CONNECTION: Final = (
    Row(
        Fault("refuse", "the connection"),
        {"every": fails(APIConnectionError, requests=0, counted=2)},
        connection_refused=True,
    ),
    _row(Fault("drop", "before the headers", data=kinds.drop_at(0)), every=_BROKEN),
    _row(Fault("drop", "inside the headers", data=kinds.drop_at(30)), every=_BROKEN),
    _row(Fault("reset", "before the headers", data=kinds.reset_at(0)), every=_BROKEN),
    _row(
        Fault("stall", "before the headers", data=kinds.stall_at(0)),
        {**_IMPATIENT, **_PINNED},
        every=_TIMEOUT,
    ),
    _row(Fault("not HTTP", data=kinds.answered(b"220 mail.example ESMTP\r\n")), every=_BROKEN),
    _row(Fault("1-byte writes", data=kinds.one_byte_writes), every=SUCCESS),
    _row(Fault("one write for all", data=kinds.one_write), every=SUCCESS),
)

_HEAD: Final = (
    _row(
        Fault("a header without a body", "ended as HTTP does", events=kinds.body(b"")),
        chat=fails(StreamInterruptedError, requests=2, connection_reused=True),
        json=_INVALID_AND_READ,
    ),
    _row(
        Fault(
            "a header without a body",
            "and the connection closed",
            head=kinds.announced(999),
            events=at(FIRST, kinds.drop),
        ),
        every=_TRUNCATED,
    ),
    _row(
        Fault("HTML for JSON", head=kinds.content_type("text/html"), events=kinds.body(HTML)),
        chat=_INVALID,
        envelope=_INVALID,
        json=_INVALID_AND_READ,
    ),
    _row(
        Fault(
            "HTML for JSON",
            "called JSON",
            head=kinds.content_type("application/json"),
            events=kinds.body(HTML),
        ),
        stream=_INVALID,
        whole=_INVALID_AND_READ,
        json=_INVALID_AND_READ,
    ),
    _row(
        Fault("HTML for JSON", "with status 502", head=kinds.status(502), events=kinds.body(HTML)),
        every=fails(InternalServerError, status=502, requests=2, connection_reused=True),
    ),
    _row(
        Fault("HTML for JSON", "with status 401", head=kinds.status(401), events=kinds.body(HTML)),
        every=fails(AuthenticationError, status=401, connection_reused=True),
    ),
    _row(
        Fault("a status without a body", "503", head=kinds.status(503), events=kinds.body(b"")),
        every=fails(InternalServerError, status=503, requests=2, connection_reused=True),
    ),
    _row(
        Fault(
            "a status without a body",
            "429, Retry-After: 3600",
            head=kinds.status(429, retry_after="3600"),
            events=kinds.body(b""),
        ),
        every=fails(RateLimitError, status=429, connection_reused=True),
    ),
    _row(
        Fault("a redirect", head=kinds.status(302, location="http://127.0.0.1:9/"), events=kinds.body(HTML)),
        every=fails(APIStatusError, status=302, connection_reused=True),
    ),
    _row(
        Fault("a wrong content type", "text/plain", head=kinds.content_type("text/plain")),
        chat=_INVALID,
        envelope=_INVALID,
        json=SUCCESS,
    ),
    _row(
        Fault("a wrong content type", "JSON for a stream", head=kinds.content_type("application/json")),
        stream=_INVALID,
        whole=_INVALID_AND_READ,
    ),
)

_LENGTH: Final = (
    _row(_in_place("drop", FIRST, at(FIRST, kinds.drop)), every=_TRUNCATED),
    _row(
        _in_place("drop", MIDDLE, at(MIDDLE, kinds.drop)),
        **_stream(MIDDLE, StreamInterruptedError),
        json=_TRUNCATED,
    ),
    _row(
        Fault("drop", "inside an event", events=at(MIDDLE, kinds.drop_inside)),
        **_stream(MIDDLE, StreamInterruptedError),
        json=_TRUNCATED,
    ),
    _row(_in_place("drop", DONE, at(DONE, kinds.drop)), **_stream(DONE, StreamInterruptedError)),
    _row(
        Fault("drop", "after done", events=at(DONE, kinds.drop_after)), chat=success(connection_reused=False)
    ),
    _row(
        _in_place("reset", MIDDLE, at(MIDDLE, kinds.reset)),
        **_stream(MIDDLE, StreamInterruptedError),
        json=_TRUNCATED,
    ),
    _row(
        _in_place("truncate", FIRST, at(FIRST, kinds.truncate)),
        chat=fails(StreamInterruptedError, requests=2, connection_reused=True),
        json=_INVALID_AND_READ,
    ),
    _row(
        _in_place("truncate", MIDDLE, at(MIDDLE, kinds.truncate)),
        **_stream(MIDDLE, StreamInterruptedError, connection_reused=True),
        json=_INVALID_AND_READ,
    ),
    _row(
        Fault("truncate", "inside an event", events=at(MIDDLE, kinds.truncate_inside)),
        **_stream(MIDDLE, StreamInterruptedError, connection_reused=True),
        json=_INVALID_AND_READ,
    ),
    _row(
        _in_place("truncate", DONE, at(DONE, kinds.truncate)),
        **_stream(DONE, StreamInterruptedError, connection_reused=True),
    ),
    _row(_in_place("stall", FIRST, at(FIRST, kinds.stall)), _IMPATIENT, every=_TIMEOUT),
    _row(
        _in_place("stall", MIDDLE, at(MIDDLE, kinds.stall)),
        _PATIENT,
        **_stream(MIDDLE, APITimeoutError),
        audio=_TIMEOUT,
    ),
    _row(_in_place("stall", DONE, at(DONE, kinds.stall)), _PATIENT, **_stream(DONE, APITimeoutError)),
    _row(
        Fault("stall", "after done", events=at(DONE, kinds.stall_after)),
        chat=success(connection_reused=False),
    ),
    _row(
        _in_place("comments and no chunk", FIRST, at(FIRST, kinds.send_comments_forever)),
        _PATIENT,
        chat=_TIMEOUT,
    ),
    _row(
        _in_place("comments and no chunk", MIDDLE, at(MIDDLE, kinds.send_comments_forever)),
        _PATIENT,
        **_stream(MIDDLE, APITimeoutError),
    ),
)

_ORDER: Final = (
    _row(
        _in_place("duplicate", FIRST, at(FIRST, kinds.duplicate)),
        chat=undetected(WORDS[0], *WORDS),
    ),
    _row(
        _in_place("duplicate", MIDDLE, at(MIDDLE, kinds.duplicate)),
        chat=undetected(*WORDS[:HALF], WORDS[HALF], *WORDS[HALF:]),
        envelope=_UNDECRYPTABLE,
        audio=_UNDECRYPTABLE,
    ),
    _row(_in_place("duplicate", FINISH, at(FINISH, kinds.duplicate)), chat=undetected(TEXT)),
    _row(_in_place("duplicate", DONE, at(DONE, kinds.duplicate)), chat=SUCCESS),
    _row(
        _in_place("reorder", MIDDLE, kinds.swap(MIDDLE)),
        chat=undetected(*WORDS[:HALF], WORDS[HALF + 1], WORDS[HALF], *WORDS[HALF + 2 :]),
        envelope=_UNDECRYPTABLE,
        audio=_UNDECRYPTABLE,
    ),
    _row(
        Fault("reorder", "done to the middle", events=kinds.done_too_early(MIDDLE)),
        **_stream(MIDDLE, StreamInterruptedError),
    ),
    _row(
        Fault("reorder", "done before the finish reason", events=kinds.done_too_early(FINISH)),
        **_stream(FINISH, StreamInterruptedError),
    ),
    _row(_in_place("lose an event", FIRST, at(FIRST, kinds.lose)), chat=undetected(*WORDS[1:])),
    _row(
        _in_place("lose an event", MIDDLE, at(MIDDLE, kinds.lose)),
        chat=undetected(*WORDS[:HALF], *WORDS[HALF + 1 :]),
        envelope=_UNDECRYPTABLE,
        audio=_UNDECRYPTABLE,
    ),
    _row(
        _in_place("lose an event", FINISH, at(FINISH, kinds.lose)),
        **_stream(FINISH, StreamInterruptedError),
    ),
    Row(
        Fault("the response to another request"),
        {"chat": fails(DecryptionError), "audio": _UNDECRYPTABLE, "envelope": _UNDECRYPTABLE},
        after_a_request=True,
        make_fault=lambda: Fault("the response to another request", events=kinds.ResponseOfAnotherRequest()),
    ),
)

_BITS: Final = (
    _row(_in_place("flip a bit", FIRST, at(FIRST, kinds.flip(20))), chat=fails(DecryptionError)),
    _row(
        _in_place("flip a bit", MIDDLE, at(MIDDLE, kinds.flip(20))),
        **_stream(MIDDLE, DecryptionError),
        envelope=_UNDECRYPTABLE,
        audio=_UNDECRYPTABLE,
    ),
    _row(
        _in_place("flip a bit", FINISH, at(FINISH, kinds.flip(20))),
        **_stream(FINISH, DecryptionError),
    ),
    _row(
        Fault("flip a bit", "of an event's name", events=at(MIDDLE, kinds.flip(len("event: ")))),
        chat=undetected(*WORDS[:HALF], *WORDS[HALF + 1 :]),
    ),
    _row(Fault("flip a bit", "of done's name", events=at(DONE, kinds.flip(len("event: ")))), chat=SUCCESS),
    _row(
        Fault("flip a bit", "of a chunk's HTTP length", data=kinds.broken_framing(HALF)),
        **_stream(MIDDLE, StreamInterruptedError),
    ),
    _row(
        Fault("flip a bit", "of the request", request=kinds.flipped_request),
        chat=fails(EnclaveKeyError, requests=2, connection_reused=True),
        envelope=fails(EnclaveKeyError, requests=2, connection_reused=True),
        audio=fails(EnclaveKeyError, requests=2, connection_reused=True),
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
        json=fails(InternalServerError, status=500, requests=2, connection_reused=True),
    ),
    _row(
        Fault("an error inside an envelope", "encrypted", events=kinds.sealed_envelope(FAILED)),
        envelope=fails(InternalServerError, status=500, requests=2, connection_reused=True),
        audio=_INVALID_AND_READ,
    ),
)

_FORM: Final = (
    _row(Fault("CRLF", events=at(EVERYWHERE, kinds.rewrite(kinds.crlf))), chat=SUCCESS),
    _row(Fault("CR alone", events=at(EVERYWHERE, kinds.rewrite(kinds.cr))), chat=SUCCESS),
    _row(
        Fault("comments, ids, other events", events=at(EVERYWHERE, kinds.rewrite(kinds.decorated))),
        chat=SUCCESS,
    ),
    _row(_in_place("a byte order mark", FIRST, at(FIRST, kinds.before(b"\xef\xbb\xbf"))), chat=SUCCESS),
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
        chat=_INVALID,
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

_ROTATED: Final = (
    Row(
        Fault("a key rotation", "between two requests"),
        {"models": SUCCESS, "every": success(2)},
        after_a_request=True,
        rotated=True,
    ),
    Row(
        Fault("a key rotation", "of a pinned key"),
        {"models": SUCCESS, "every": fails(EnclaveKeyError, connection_reused=True)},
        settings=_PINNED,
        after_a_request=True,
        rotated=True,
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
        connection_refused=True,
    ),
    _of_key("before the headers", "stall", _IMPATIENT, cell=_TIMEOUT, data=kinds.stall_at(0)),
    _of_key("before the headers", "drop", cell=_BROKEN, data=kinds.drop_at(0)),
    _of_key("in the middle", "drop", cell=_TRUNCATED, events=at(MIDDLE, kinds.drop)),
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
        "another enclave's",
        cell=fails(EnclaveKeyError, requests=2, gateway_requests=2, connection_reused=True),
        events=kinds.body(json.dumps({"publicKey": bytes(kinds.ANOTHER_KEY).hex()}).encode()),
    ),
    _of_key("", "flip a bit", cell=fails(EnclaveKeyError), events=at(MIDDLE, kinds.flip(0, 7))),
    _of_key("", "a wrong content type", cell=SUCCESS, head=kinds.content_type("text/plain")),
    _of_key("", "1-byte writes", cell=SUCCESS, data=kinds.one_byte_writes),
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
    *_ROTATED,
    *_KEY,
)
