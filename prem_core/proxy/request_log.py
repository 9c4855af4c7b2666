"""A record of each request: times, sizes, counts, and the first bytes that the gateway saw.

A record has no field that could hold a prompt, a response or an API key.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from prem_core._protocol.protection import Protection
    from prem_core._protocol.response_types import Usage

#: Requests that a log keeps.
MAX_RECORDS: Final = 200

#: Bytes of each direction that are kept as the gateway saw them: the start of the JSON or the event, then ciphertext in
#: hex. They end before the text of a chat's first message: its request and response share a nonce, so that both
#: ciphertexts together would reveal something of the text.
CAPTURE_BYTES: Final = 96

#: Characters of a model's name that are kept: the caller can send any text as the name.
MAX_MODEL_LENGTH: Final = 100

State = Literal["running", "done", "failed", "disconnected"]


@dataclass(slots=True)
class WireCapture:
    """The size and the start of one HTTP body, as the gateway sees it: sealed.

    Attributes:
        size: Bytes of the body so far.
        head: Its first `CAPTURE_BYTES` bytes; empty where the body is not sealed (the models list, an error).
    """

    size: int = 0
    head: bytes = field(default=b"", repr=False)

    def add(self, data: bytes, *, sealed: bool) -> None:
        """Record the next bytes of the body."""
        if sealed and len(self.head) < CAPTURE_BYTES:
            self.head += bytes(data[: CAPTURE_BYTES - len(self.head)])
        self.size += len(data)


@dataclass(slots=True, eq=False)
class RequestRecord:
    """One request to the proxy and its response.

    Attributes:
        id: Unique in this process; the response's ``x-request-id``, unless the service sent a support id.
        route: ``/v1/chat/completions`` and so on.
        started_at: Seconds since the epoch.
        model: The requested model, shortened; None where the request was not read.
        streamed: Whether a stream was requested.
        state: ``running``; ``done`` for a complete response; ``failed`` for an error, also in mid-stream;
            ``disconnected`` where the client disconnected.
        status: The HTTP status of the response; None before it starts. A stream that fails later keeps 200.
        error: The name of the error's class, or the error code of the proxy's own errors.
        support_id: The service's, where it sent one.
        protection: How the answer was protected; None before it arrives, and where nothing was sealed.
        time_to_first_token: Seconds to the first chunk, or to the whole response; None before that.
        duration: Seconds from start to end; None while it runs.
        prompt_tokens: As the service counted them; None where it did not.
        completion_tokens: As the service counted them; None where it did not.
        request_bytes: Bytes of the request body.
        response_bytes: Bytes of the response body.
        attempts: Requests to the gateway, a probe included.
        gateway_request: The body of the last attempt, as the gateway saw it.
        gateway_response: The body of the gateway's response to it.
    """

    route: str
    id: str = field(default_factory=lambda: f"req_{uuid.uuid4().hex}")
    started_at: float = field(default_factory=time.time)
    model: str | None = None
    streamed: bool = False
    state: State = "running"
    status: int | None = None
    error: str | None = None
    support_id: str | None = None
    protection: Protection | None = None
    time_to_first_token: float | None = None
    duration: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    request_bytes: int = 0
    response_bytes: int = 0
    attempts: int = 0
    gateway_request: WireCapture = field(default_factory=WireCapture)
    gateway_response: WireCapture = field(default_factory=WireCapture)
    _start: float = field(default_factory=time.perf_counter, repr=False)

    def set_request(self, model: Any, *, streamed: bool) -> None:
        """Record what was requested."""
        self.model = model[:MAX_MODEL_LENGTH] if isinstance(model, str) else None
        self.streamed = streamed

    def set_usage(self, usage: Usage | None) -> None:
        """Record the tokens that the service counted."""
        if usage is not None:
            self.prompt_tokens = usage.prompt_tokens
            self.completion_tokens = usage.completion_tokens

    def set_protection(self, protection: Protection | None) -> None:
        """Record how the answer was protected."""
        self.protection = protection
        if protection is not None:
            self.support_id = protection.support_id

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start

    def as_dict(self) -> dict[str, Any]:
        """All attributes as JSON values. The captured bytes become text, with other characters than ASCII replaced."""
        values = {name: getattr(self, name) for name in self.__slots__ if not name.startswith("_")}
        for name, value in values.items():
            if isinstance(value, WireCapture):
                values[name] = {"size": value.size, "head": value.head.decode("ascii", "replace")}
        if self.protection is not None:
            values["protection"] = self.protection.as_dict()
        return values


class Subscription(AsyncIterator[RequestRecord]):
    """Records as they change. A record that changes twice before it is read comes once, in its latest state.

    Iterate it on the proxy's own event loop. Close it with `close` or a ``with`` block.
    """

    def __init__(self, log: RequestLog) -> None:
        self._log = log
        self._pending: dict[str, RequestRecord] = {}
        self._available = asyncio.Event()

    def put(self, record: RequestRecord) -> None:
        """Add a changed record."""
        self._pending[record.id] = record
        if len(self._pending) > MAX_RECORDS:  # nothing reads them
            del self._pending[next(iter(self._pending))]
        self._available.set()

    async def __anext__(self) -> RequestRecord:
        await self._available.wait()
        record = self._pending.pop(next(iter(self._pending)))
        if not self._pending:
            self._available.clear()
        return record

    def close(self) -> None:
        """Receive no further changes."""
        self._log._subscriptions.discard(self)

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RequestLog:
    """The latest requests of one proxy, in memory.

    Args:
        max_records: How many to keep.
        on_end: Called with each record that is complete, on the proxy's event loop.
    """

    def __init__(
        self, max_records: int = MAX_RECORDS, *, on_end: Callable[[RequestRecord], None] | None = None
    ) -> None:
        self._on_end = on_end
        self._records: deque[RequestRecord] = deque(maxlen=max_records)
        self._subscriptions: set[Subscription] = set()

    def latest(self) -> list[RequestRecord]:
        """The records, the newest first. Callable from any thread."""
        return list(reversed(self._records.copy()))

    def subscribe(self) -> Subscription:
        """Every record from now on, when it is added, has its first token, and ends."""
        subscription = Subscription(self)
        self._subscriptions.add(subscription)
        return subscription

    def add(self, record: RequestRecord) -> None:
        """Add a new request. Call this and the methods below on the proxy's own event loop."""
        self._records.append(record)
        self._publish(record)

    def first_token(self, record: RequestRecord) -> None:
        """Record that the first chunk or the whole response has arrived."""
        record.time_to_first_token = record.elapsed()
        self._publish(record)

    def end(
        self, record: RequestRecord, state: State, error: str | None = None, support_id: str | None = None
    ) -> None:
        """Record the end of a request. Does nothing for one that has ended."""
        if record.state == "running":
            record.state, record.error = state, error
            record.support_id = support_id or record.support_id
            record.duration = record.elapsed()
            self._publish(record)
            if self._on_end is not None:
                self._on_end(record)

    def _publish(self, record: RequestRecord) -> None:
        for subscription in self._subscriptions:
            subscription.put(record)
