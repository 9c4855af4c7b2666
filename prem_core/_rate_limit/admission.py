"""Decide which request may start next, and when. Each call takes the time as `now` (seconds); no clock is read here.

`RateLimiter` adapts to the service as TCP does, by additive increase and multiplicative decrease (AIMD). It is a token
bucket: one token starts one request. Without a configured rate it is always full, until the service answers 429:

- No request starts before the Retry-After is over.
- The rate is halved (the first time: set to one request per Retry-After), and the bucket holds one token. Releasing
  all waiters at once would get all but one of them rejected again.
- The rate then grows by a constant amount every second. It grows fast after the first 429, because a Retry-After in
  whole seconds is too coarse for a fast service, and slowly after the second, when the limit is roughly known.

`AdmissionQueue` adds the slots and the order: requests start in the order of arrival, and a retry keeps its place.
`StreamSlots` limits streams, which the service may count apart. Other requests pass streams that wait for their slot.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from prem_core._protocol.charge import Charge
from prem_core._protocol.steps import Release

#: Requests per second added each second after the first 429. Ten per second are reached within 20 seconds.
FAST_INCREASE: Final = 0.5

#: The part of the halved rate that is added each second after a further 429. The service is then tested about every
#: 25 seconds at any speed: under the BASE tier's limits about one request in 16 is answered 429, and so little of the
#: tier's rate is lost that its bucket of five absorbs it.
INCREASE_SHARE: Final = 0.04

#: The least increase, so that a rate that was halved many times recovers within minutes.
MIN_INCREASE: Final = 0.01

#: The lowest and the highest adapted rate, in requests per second. No lower rate is needed, because the client never
#: waits for a Retry-After of more than a minute. At the highest rate the limit is dropped: it would not be noticeable.
MIN_RATE: Final = 1 / 60
MAX_RATE: Final = 50.0

#: Seconds after which one stream more is allowed than the service refused. The test costs one refused stream.
STREAM_INCREASE_SECONDS: Final = 60.0

#: The part of a token that may be missing, so that rounding does not delay a caller that waited the computed time.
ROUNDING: Final = 1e-6


class RateLimiter:
    """Compute how long the next request has to wait.

    Args:
        requests_per_second: The configured rate; ``max(1, requests_per_second)`` tokens fit in its bucket. None for no
            limit except the service's.
        now: The time.
    """

    __slots__ = (
        "_burst", "_ceiling", "_decreased", "_increase", "_level", "_paused_until", "_rate", "_updated",
    )  # fmt: skip

    def __init__(self, requests_per_second: float | None, now: float) -> None:
        self._ceiling = self._rate = requests_per_second
        self._burst = self._level = max(1.0, requests_per_second or 0.0)
        self._increase = 0.0  # 0 until the first 429
        self._updated = now
        self._paused_until = now
        self._decreased = -math.inf  # when the rate was last halved

    def wait(self, now: float) -> float:
        """Seconds until a request may start; 0 or less if it may start now."""
        pause = self._paused_until - now
        if self._rate is None:
            return pause
        self._advance(now)
        if self._rate is None or self._level >= 1 - ROUNDING:
            return pause
        pause = max(0.0, pause)
        missing = 1 - self._level - self._rate * pause
        if missing <= 0:
            return pause
        # Solves rate * t + growth * t ** 2 / 2 = missing.
        root = math.sqrt(self._rate**2 + 2 * self._growth * missing)
        return pause + 2 * missing / (self._rate + root)

    def start(self, now: float) -> None:
        """Take the token of a request that starts."""
        if self._rate is not None:
            self._advance(now)
            self._level -= 1

    def pause(self, now: float, seconds: float) -> None:
        """Start no request for this many seconds."""
        self._advance(now)
        self._paused_until = max(self._paused_until, now + seconds)

    def slow_down(self, now: float, started: float, retry_after: float) -> None:
        """Decrease the rate after a 429.

        Args:
            now: The time.
            started: When the request started. If the rate was decreased after that, this 429 is ignored: it adds no
                information.
            retry_after: The Retry-After, in seconds.
        """
        if started <= self._decreased:
            return
        self._advance(now)
        rate = math.inf if self._rate is None else self._rate
        if not self._increase:
            rate = min(rate / 2, 1 / max(retry_after, 1 / MAX_RATE))
            self._increase = FAST_INCREASE
        else:
            # Retry-After is rounded up to whole seconds, so one second less is a safe bound for the rate.
            rate = min(rate / 2, 1 / max(retry_after - 1, 1 / MAX_RATE))
            self._increase = max(INCREASE_SHARE * rate, MIN_INCREASE)
        self._rate = max(rate, min(MIN_RATE, self._ceiling or MIN_RATE))
        self._level = 0.0
        self._decreased = now

    @property
    def _growth(self) -> float:
        return self._increase if self._rate != self._ceiling else 0.0

    def _advance(self, now: float) -> None:
        """Fill the bucket up to `now`. The rate does not grow during a pause."""
        elapsed, self._updated = now - self._updated, now
        if self._rate is None:
            return
        growth = self._growth
        growing = min(elapsed, max(0.0, now - self._paused_until))
        capacity = 1.0 if growth else self._burst
        self._level = min(capacity, self._level + self._rate * elapsed + growth * growing**2 / 2)
        if growth:
            self._rate += growth * growing
            if self._rate >= (self._ceiling or MAX_RATE):
                self._rate = self._ceiling
                if self._ceiling is None:
                    self._increase = 0.0


class StreamSlots:
    """How many streams may be open. It is learned from refused streams: one less than were open then.

    Args:
        max_streams: The configured number; None for no limit except the service's.
    """

    __slots__ = ("_ceiling", "_learned", "_learned_at", "_paused_until")

    def __init__(self, max_streams: int | None) -> None:
        self._ceiling = math.inf if max_streams is None else max_streams
        self._learned = math.inf
        self._learned_at = self._paused_until = -math.inf

    def wait(self, now: float, open_streams: int) -> float:
        """Seconds until another stream may start; infinity if one has to end first."""
        if open_streams >= self._ceiling:
            return math.inf
        growth = STREAM_INCREASE_SECONDS * (open_streams + 1 - self._learned)
        return max(0.0, self._paused_until - now, self._learned_at + growth - now)

    def refuse(self, now: float, open_streams: int, pause: float | None) -> None:
        """Learn from a refused stream, which `open_streams` counts, too."""
        if open_streams - 1 < self._learned or self.wait(now, open_streams - 1) <= 0:
            self._learned, self._learned_at = max(1, open_streams - 1), now
        if pause is not None:
            self._paused_until = max(self._paused_until, now + pause)


class Waiter:
    """One request's place in the queue, and then its slot.

    Args:
        earlier: The previous attempt of the same call, whose place it takes; None for a first attempt.
        charge: What the request is expected to be charged.

    Attributes:
        error: Why the permit cannot be granted. The waiter is woken, and its call raises it.
        granted: Whether the request was allowed to start. Stays true after it has ended.
        wake: Called when the request is granted. Raises RuntimeError if the waiting event loop is closed.
    """

    __slots__ = ("charge", "error", "granted", "is_retry", "position", "started", "wake")

    def __init__(self, earlier: Waiter | None = None, charge: Charge | None = None) -> None:
        self.charge = charge or Charge()
        self.error: Exception | None = None
        self.position: int | None = earlier.position if earlier is not None else None
        self.is_retry = earlier is not None
        self.granted = False
        self.started = -math.inf
        self.wake: Callable[[], object] | None = None


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts since the limits were created, over all clients that share them.

    Attributes:
        requests: Requests that were started, retries included. `models.list()` and the fetch of the enclave's key are
            not counted.
        retries: How many of these requests were retries.
        rate_limited: How many responses were a 429.
        in_flight: Requests that are open now. A stream is open until it is read to its end, closed or
            garbage-collected.
        waiting: Requests that wait for a permit now.
    """

    requests: int = 0
    retries: int = 0
    rate_limited: int = 0
    in_flight: int = 0
    waiting: int = 0


class AdmissionQueue:
    """Decide which requests may start, in the order of arrival.

    Attributes:
        waiting: The waiters that are not granted yet.

    Args:
        max_concurrency: Slots; None for any number.
        requests_per_second: See `RateLimiter`.
        now: The time.
        max_streams: See `StreamSlots`.
    """

    def __init__(
        self,
        max_concurrency: int | None,
        requests_per_second: float | None,
        now: float,
        max_streams: int | None = None,
    ) -> None:
        self._slots = math.inf if max_concurrency is None else max_concurrency
        self._rate = RateLimiter(requests_per_second, now)
        self._stream_slots = StreamSlots(max_streams)
        self._positions = itertools.count()
        self._sequence = itertools.count()
        # Streams have a heap of their own. A removed waiter stays in its heap until it reaches the top; `waiting` has
        # only those that still wait.
        self._heaps: dict[bool, list[tuple[int, int, Waiter]]] = {False: [], True: []}
        self.waiting: set[Waiter] = set()
        self._open: set[Waiter] = set()
        self._open_streams = 0
        self._requests = self._retries = self._rate_limited = 0

    @property
    def stats(self) -> Stats:
        """The counts."""
        return Stats(self._requests, self._retries, self._rate_limited, len(self._open), len(self.waiting))

    def enqueue(self, waiter: Waiter) -> None:
        """Add a waiter: last in the queue, or at its former place for a retry."""
        if waiter.position is None:
            waiter.position = next(self._positions)
        self.waiting.add(waiter)
        heapq.heappush(self._heaps[waiter.charge.stream], (waiter.position, next(self._sequence), waiter))

    def adopt(self, waiter: Waiter) -> None:
        """Count a request as open that was granted elsewhere."""
        self._open.add(waiter)
        self._open_streams += waiter.charge.stream

    def remove(self, waiter: Waiter) -> None:
        """Free the waiter's slot or place. Does nothing if it has neither."""
        if waiter in self._open:
            self._open.discard(waiter)
            self._open_streams -= waiter.charge.stream
        self.waiting.discard(waiter)

    def pop_ready(self, now: float) -> list[Waiter]:
        """Give a slot to each waiter whose request may start now, and return these waiters."""
        ready: list[Waiter] = []
        while self.waiting and (heap := self._next_heap(now)) and self._rate.wait(now) <= 0:
            waiter = heapq.heappop(heap)[-1]
            self.waiting.discard(waiter)
            self._open.add(waiter)
            self._open_streams += waiter.charge.stream
            self._rate.start(now)
            waiter.granted, waiter.started = True, now
            self._requests += 1
            self._retries += waiter.is_retry
            ready.append(waiter)
        return ready

    def wait(self, now: float) -> float | None:
        """Seconds until `pop_ready` may return a waiter; None without a waiter or without a free slot."""
        if self._next_heap(now):
            return max(0.0, self._rate.wait(now))
        if len(self._open) < self._slots and self._head(stream=True):
            wait = self._stream_slots.wait(now, self._open_streams)
            return wait if wait < math.inf else None
        return None

    def pause(self, now: float, seconds: float) -> None:
        """Start no request for this many seconds, because the service asked for it."""
        self._rate.pause(now, seconds)

    def count_rate_limit(self, waiter: Waiter, now: float, spacing: float | None) -> None:
        """Count a 429 for this waiter's request.

        Args:
            waiter: The waiter of that request.
            now: The time.
            spacing: Retry-After in seconds, used to adapt the rate. None: count the 429 without adapting.
        """
        self._rate_limited += 1
        if spacing is not None:
            self._rate.slow_down(now, waiter.started, spacing)

    def refuse_stream(self, now: float, pause: float | None) -> None:
        """Start fewer streams, and none during `pause`, because the service refused one."""
        self._stream_slots.refuse(now, self._open_streams, pause)

    def end(self, waiter: Waiter, now: float, outcome: Release) -> None:
        """Free the waiter's slot, after what the service answered was taken into account."""
        # The pause comes first; otherwise the next request would also get a 429.
        if outcome.rate_limited:
            self.count_rate_limit(waiter, now, outcome.spacing)
        if outcome.stream_refused:
            self.refuse_stream(now, outcome.pause)
        elif outcome.pause is not None:
            self.pause(now, outcome.pause)
        self.remove(waiter)

    def _next_heap(self, now: float) -> list[tuple[int, int, Waiter]] | None:
        """The heap whose first waiter is next; None without a waiter or a slot for it."""
        if len(self._open) >= self._slots:
            return None
        other, stream = self._head(stream=False), self._head(stream=True)
        if stream and self._stream_slots.wait(now, self._open_streams) > 0:
            stream = None
        return min(other, stream, key=lambda heap: heap[0]) if other and stream else other or stream

    def _head(self, *, stream: bool) -> list[tuple[int, int, Waiter]] | None:
        """The heap with a waiter that still waits on top; None if it has none."""
        heap = self._heaps[stream]
        while heap and heap[0][-1] not in self.waiting:
            heapq.heappop(heap)
        return heap or None
