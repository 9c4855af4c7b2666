"""When the next request may begin, and who begins it.

The rule of this file: pure. A time is in seconds on one clock that only grows, and is handed in as `now`. No
thread, no event loop and no request is seen here: `_limits` has those.

Three things hold a request back, and the longest wait counts:

- the bucket, where a rate was set: `requests_per_second` flow in, up to ``max(1, requests_per_second)`` at once;
- `hold`: nobody begins before a Retry-After is over;
- the spacing that a rate limit leaves behind. A Retry-After of R seconds says that about one request every R
  seconds is what flows in, so the following ones begin R apart: were all that wait let loose at its end, all but
  one would be refused again. The spacing narrows with the time t since then, R / (1 + (t / T)³): hardly at first,
  since the limit that was just reached is most likely still there, then ever faster, until it is too small to matter.
  A refusal on the way sets it back to R, and doubles T between `LEAST_RECOVERY` and `MOST_RECOVERY`: a limit that
  stays is tried less and less often. A refusal of the very first request after the pause, which obeyed the service
  to the letter, doubles the spacing too.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

#: Seconds after which the spacing is half of what it was: at first, and after refusals on the way. Against a limit of
#: one request a second that stays, one in seven is refused at first, and one in thirty in the long run. Where a service
#: takes more than it says (a Retry-After is in whole seconds), ten a second are reached in 17 seconds.
LEAST_RECOVERY: Final = 8.0
MOST_RECOVERY: Final = 64.0

#: Seconds: the narrowest spacing that is kept, and the widest that is set.
LEAST_SPACING: Final = 0.02
MOST_SPACING: Final = 60.0


class Pace:
    """When the next request may begin, whoever makes it.

    Args:
        requests_per_second: How many may begin in the long run; None for any number.
        now: The time.
    """

    __slots__ = (
        "_begun", "_capacity", "_filled", "_level", "_not_before", "_probe", "_rate", "_recovery", "_refused",
        "_spacing",
    )  # fmt: skip

    def __init__(self, requests_per_second: float | None, now: float) -> None:
        self._rate = requests_per_second
        self._capacity = self._level = max(1.0, requests_per_second or 0.0)
        self._filled = now
        self._not_before = now
        self._begun = float("-inf")  # the latest request that began
        self._refused = float("-inf")  # the latest refusal for a rate
        self._probe = float("nan")  # the first request that began after it
        self._spacing = 0.0
        self._recovery = LEAST_RECOVERY

    def wait(self, now: float) -> float:
        """Seconds until a request may begin; 0 or less for now."""
        wait = self._not_before - now
        if self._rate is not None:
            self._level = min(self._capacity, self._level + (now - self._filled) * self._rate)
            self._filled = now
            # Whoever waited exactly as long as told is not sent away over a rounding error.
            wait = max(wait, (1 - 1e-6 - self._level) / self._rate)
        if self._spacing:
            wait = max(wait, self._begun + self._interval(now) - now)
        return wait

    def begin(self, now: float) -> float:
        """A request begins. Gives how far from the one before (seconds), as far as that was spacing's doing."""
        gap = min(now - self._begun, self._interval(now)) if self._spacing else 0.0
        self._begun = now
        if self._probe != self._probe:  # NaN: none has begun since the refusal
            self._probe = now
        if self._rate is not None:
            self._level -= 1
        return gap

    def hold(self, now: float, seconds: float) -> None:
        """Let nobody begin for so many seconds."""
        self._not_before = max(self._not_before, now + seconds)

    def refused(self, now: float, begun: float, gap: float, seconds: float) -> None:
        """A request was refused for its rate.

        Args:
            now: The time.
            begun: When that request began.
            gap: What `begin` gave for it.
            seconds: What its Retry-After said.
        """
        # Whole seconds, rounded up: the gap it had was too short by more than one less than that.
        spacing = max(seconds, gap + seconds - 1, LEAST_SPACING)
        if begun == self._probe:
            spacing = max(spacing, 2 * self._spacing)
        if begun <= self._refused:
            # It was on its way already when another was refused, and tells nothing new.
            spacing = max(spacing, self._spacing)
        elif self._spacing:
            self._recovery = min(2 * self._recovery, MOST_RECOVERY)
        self._spacing = min(spacing, MOST_SPACING)
        self._refused = now
        self._probe = float("nan")

    def _interval(self, now: float) -> float:
        recovered = max(0.0, now - max(self._refused, self._not_before)) / self._recovery
        interval = self._spacing / (1 + recovered**3)
        if interval < LEAST_SPACING:
            self._spacing, self._recovery = 0.0, LEAST_RECOVERY
        return interval


class Ticket:
    """One caller's place in the queue, and then its slot. It keeps its number, and so its place, over retries."""

    __slots__ = ("begun", "gap", "number", "owner", "place", "starts", "wake")

    def __init__(self) -> None:
        self.owner = 0  # the thread or task that asked
        self.number = -1
        self.begun = 0.0
        self.gap = 0.0
        self.starts = 0
        self.place: list[Any] | None = None
        #: Called when its turn has come. Raises RuntimeError when nobody is there any more.
        self.wake: Callable[[], object] | None = None


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts since the limits were made, over every client that shares them.

    Attributes:
        requests: Requests that began, tries after the first included. Neither `models.list()` nor the fetch of the
            enclave's key is counted.
        retries: Those of them that were tries after the first.
        rate_limited: Answers of 429.
        in_flight: Requests that are on their way now. A stream is, until it is whole, closed or forgotten.
        waiting: Requests that wait for their turn now.
    """

    requests: int = 0
    retries: int = 0
    rate_limited: int = 0
    in_flight: int = 0
    waiting: int = 0


class Gate:
    """Who may begin: first come, first served, and whoever is sent back keeps the place it came with.

    Args:
        max_concurrency: Slots; None for any number.
        requests_per_second: See `Pace`.
        now: The time.
    """

    def __init__(self, max_concurrency: int | None, requests_per_second: float | None, now: float) -> None:
        self._slots = max_concurrency
        self._pace = Pace(requests_per_second, now)
        self._numbers = itertools.count()
        self._places = itertools.count()
        # By number, then by place, which no two share. A place whose ticket has left holds None.
        self._queue: list[list[Any]] = []
        self._held: set[Ticket] = set()
        self._waiting = self._requests = self._retries = self._rate_limited = 0

    @property
    def stats(self) -> Stats:
        """The counts."""
        return Stats(self._requests, self._retries, self._rate_limited, len(self._held), self._waiting)

    def holds(self, ticket: Ticket) -> bool:
        """Whether it has a slot."""
        return ticket in self._held

    def ask(self, ticket: Ticket, now: float) -> None:
        """Have a slot at once where nothing is in the way; else stand in line, where this ticket stood before or behind
        everybody."""
        if ticket.number < 0:
            ticket.number = next(self._numbers)
        if not self._waiting and self._has_slot() and self._pace.wait(now) <= 0:
            self._admit(ticket, now)
            return
        ticket.place = [ticket.number, next(self._places), ticket]
        heapq.heappush(self._queue, ticket.place)
        self._waiting += 1

    def leave(self, ticket: Ticket) -> None:
        """Give up the slot or the place; does nothing where there is neither."""
        self._held.discard(ticket)
        ticket.wake = None
        if ticket.place is not None:
            ticket.place[2] = None
            ticket.place = None
            self._waiting -= 1

    def hold(self, ticket: Ticket, now: float, seconds: float, spacing: float | None) -> None:
        """The service asked for a pause, in answer to this ticket's request.

        Args:
            ticket: The one that was answered so.
            now: The time.
            seconds: For which nobody begins.
            spacing: For a rate limit, what its Retry-After said (seconds); None for another error.
        """
        if spacing is not None:
            self._rate_limited += 1
            self._pace.refused(now, ticket.begun, ticket.gap, spacing)
        self._pace.hold(now, seconds)

    def due(self, now: float) -> list[Ticket]:
        """Those whose turn has come. Each holds a slot from here on."""
        due: list[Ticket] = []
        while (first := self._first()) is not None and self._has_slot() and self._pace.wait(now) <= 0:
            heapq.heappop(self._queue)
            first.place = None
            self._waiting -= 1
            self._admit(first, now)
            due.append(first)
        return due

    def _admit(self, ticket: Ticket, now: float) -> None:
        self._held.add(ticket)
        ticket.gap = self._pace.begin(now)
        ticket.begun = now
        self._requests += 1
        self._retries += ticket.starts > 0
        ticket.starts += 1

    def wait(self, now: float) -> float | None:
        """Seconds until `due` may give somebody; None where time alone changes nothing."""
        if self._first() is None or not self._has_slot():
            return None
        return max(0.0, self._pace.wait(now))

    @property
    def waiting(self) -> int:
        """How many stand in line."""
        return self._waiting

    @property
    def starved(self) -> bool:
        """Whether somebody waits for a slot, and not for a time."""
        return self._waiting > 0 and not self._has_slot()

    @property
    def waits_for_itself(self) -> bool:
        """Whether the first in line has all slots itself."""
        first = self._first()
        return self.starved and all(each.owner == first.owner for each in self._held if first is not None)

    def _has_slot(self) -> bool:
        return self._slots is None or len(self._held) < self._slots

    def _first(self) -> Ticket | None:
        while self._queue:
            ticket: Ticket | None = self._queue[0][2]
            if ticket is not None:
                return ticket
            heapq.heappop(self._queue)
        return None
