"""What is remembered of each exchange: times, sizes, counts and the first bytes that the gateway saw.

The rule of this file: nothing of a prompt or a reply, and no key. There is no field that could hold one.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from prem_core._protocol.response_types import Usage

#: Exchanges that are remembered.
KEPT: Final = 200

#: Bytes of each direction that are kept as the gateway saw them: the JSON's or the event's own beginning, and then
#: ciphertext in hex. A chat's end before the words of its first message: its request and its reply share a nonce, and
#: the two together would say something of them.
PEEK: Final = 96

#: Characters of a model's name that are kept: it is the caller's text.
MAX_MODEL: Final = 100

State = Literal["running", "done", "failed", "left"]


@dataclass(slots=True)
class Wire:
    """What went over the wire to the gateway or came from it, as it was there: sealed.

    Attributes:
        size: Bytes of the body, so far.
        head: The first `PEEK` of them; empty where the body is not sealed (the models list, an error).
    """

    size: int = 0
    head: bytes = field(default=b"", repr=False)

    def see(self, piece: bytes, *, sealed: bool) -> None:
        """Take note of the next bytes."""
        if sealed and len(self.head) < PEEK:
            self.head += bytes(piece[: PEEK - len(self.head)])
        self.size += len(piece)


@dataclass(slots=True, eq=False)
class Exchange:
    """One request of a caller's and its answer.

    Attributes:
        id: Of this process alone; the answer's ``x-request-id``, unless the service gave a support id.
        route: ``/v1/chat/completions`` and so on.
        began: Seconds since the epoch.
        model: What the caller asked for, shortened; None where it was not read.
        streamed: Whether a stream was asked for.
        state: ``running``; ``done``, answered as a whole; ``failed``, answered with an error, or broken off by one;
            ``left``, the caller hung up.
        status: The HTTP status that the caller got; None while there is none. A stream that breaks off had 200.
        error: The name of the error's class, where there was one.
        support_id: The service's, where it gave one.
        first_token: Seconds to the first chunk, or to the whole answer; None while there is none.
        seconds: How long it took; None while it runs.
        prompt_tokens: As the service counted; None where it did not say.
        completion_tokens: Likewise.
        received: Bytes of the caller's request body.
        sent: Bytes of the answer's body.
        attempts: Requests to the gateway.
        gateway_request: The last attempt's body, as the gateway saw it.
        gateway_reply: The answer to it, as the gateway saw it.
    """

    route: str
    id: str = field(default_factory=lambda: f"req_{uuid.uuid4().hex}")
    began: float = field(default_factory=time.time)
    model: str | None = None
    streamed: bool = False
    state: State = "running"
    status: int | None = None
    error: str | None = None
    support_id: str | None = None
    first_token: float | None = None
    seconds: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    received: int = 0
    sent: int = 0
    attempts: int = 0
    gateway_request: Wire = field(default_factory=Wire)
    gateway_reply: Wire = field(default_factory=Wire)
    _start: float = field(default_factory=time.perf_counter, repr=False)

    def ask(self, model: Any, *, streamed: bool) -> None:
        """Note what was asked for."""
        self.model = model[:MAX_MODEL] if isinstance(model, str) else None
        self.streamed = streamed

    def count(self, usage: Usage | None) -> None:
        """Note the tokens that the service counted."""
        if usage is not None:
            self.prompt_tokens = usage.prompt_tokens
            self.completion_tokens = usage.completion_tokens

    def elapsed(self) -> float:
        """Seconds since it began."""
        return time.perf_counter() - self._start

    def as_dict(self) -> dict[str, Any]:
        """Everything above as JSON has it; the two heads as text, whatever is not ASCII replaced."""
        return {
            **{name: getattr(self, name) for name in self.__slots__ if name[0] != "_" and name not in _WIRES},
            **{
                name: {"size": wire.size, "head": wire.head.decode("ascii", "replace")}
                for name in _WIRES
                for wire in (getattr(self, name),)
            },
        }


_WIRES: Final = ("gateway_request", "gateway_reply")


class Changes(AsyncIterator[Exchange]):
    """Exchanges as they change. One that changes twice before it is asked for comes once, as it is then.

    Iterate it on the proxy's own event loop; `close` it, or leave its ``with`` block.
    """

    def __init__(self, exchanges: Exchanges) -> None:
        self._exchanges = exchanges
        self._pending: dict[str, Exchange] = {}
        self._some = asyncio.Event()

    def put(self, exchange: Exchange) -> None:
        """Note that `exchange` has changed."""
        self._pending[exchange.id] = exchange
        if len(self._pending) > KEPT:  # nobody asks
            del self._pending[next(iter(self._pending))]
        self._some.set()

    async def __anext__(self) -> Exchange:
        await self._some.wait()
        exchange = self._pending.pop(next(iter(self._pending)))
        if not self._pending:
            self._some.clear()
        return exchange

    def close(self) -> None:
        """Take note of no more."""
        self._exchanges._watchers.discard(self)

    def __enter__(self) -> Changes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Exchanges:
    """The latest exchanges of one proxy.

    Args:
        kept: How many are remembered.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self._kept: deque[Exchange] = deque(maxlen=kept)
        self._watchers: set[Changes] = set()

    def latest(self) -> list[Exchange]:
        """Those remembered, the newest first. From any thread."""
        return list(reversed(self._kept.copy()))

    def changes(self) -> Changes:
        """From now on, every exchange that begins, has its first token, or ends."""
        watcher = Changes(self)
        self._watchers.add(watcher)
        return watcher

    def add(self, exchange: Exchange) -> None:
        """Remember one that begins. This and what follows: on the proxy's own event loop."""
        self._kept.append(exchange)
        self._changed(exchange)

    def first_token(self, exchange: Exchange) -> None:
        """The answer is here, or its first chunk."""
        exchange.first_token = exchange.elapsed()
        self._changed(exchange)

    def end(
        self, exchange: Exchange, state: State, error: str | None = None, support_id: str | None = None
    ) -> None:
        """It is over, unless it was before."""
        if exchange.state == "running":
            exchange.state, exchange.error, exchange.support_id = state, error, support_id
            exchange.seconds = exchange.elapsed()
            self._changed(exchange)

    def _changed(self, exchange: Exchange) -> None:
        for watcher in self._watchers:
            watcher.put(exchange)
