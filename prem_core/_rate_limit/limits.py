"""Limits on what is on its way at once: `_pace` decides, and this is where threads and tasks wait for it.

Nobody ever blocks on the lock in here. What is to be done is put into an inbox, and whoever gets the lock does
all that is in it; whoever does not can rely on the one who has it, who looks again after letting it go. So the
garbage collector may give a forgotten stream's slot back in the middle of anything, this file included.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from prem_core import _config
from prem_core._errors import APITimeoutError, ConfigurationError
from prem_core._protocol.retry import TOTAL_TIMEOUT_MESSAGE
from prem_core._rate_limit.limiter import Gate, Stats, Ticket

#: A forgotten stream in a reference cycle holds its slot until a collection, and while everybody waits for a slot
#: nothing brings one on. Then it is done here: when a thread begins to wait, and when nobody was served for so many
#: seconds. Collections that find no turn take no more than this part of the time.
STARVED: Final = 1.0
COLLECTING: Final = 0.02

_log = logging.getLogger("prem_core")


class Limits:
    """What may be on its way at once, and how many requests may begin in a second.

    Prem's limits are an organisation's. Each client and model has limits of its own, which its threads and tasks
    share; give several of them one object where they share an organisation::

        limits = Limits(max_concurrency=5)
        client, llm = AsyncPremClient(limits=limits), ChatPremEncrypted(model="…", limits=limits)

    Callers are served in the order they came. When the service answers 429, or 503 with a Retry-After, all of them
    wait, and not only the one who was answered so; after a 429 the following requests begin about one Retry-After
    apart, and faster as time passes without another (see `_pace`). A stream counts until it is whole, closed or
    forgotten: a thread that holds `max_concurrency` streams open and asks for one more is warned, and waits for itself.

    The limits are this process's. A copy and a pickle have the same figures and counts of their own; copies of a
    model share the object that was given to it.

    Args:
        max_concurrency: Requests on their way at once; None for any number. The BASE tier allows 5.
        requests_per_second: Requests that begin, in the long run; ``max(1, requests_per_second)`` of them may begin
            at once after a pause. None for as many as the service takes.

    Raises:
        ConfigurationError: A figure cannot work; the message names it.
    """

    def __init__(
        self,
        max_concurrency: int | None = _config.DEFAULT_MAX_CONCURRENCY,
        requests_per_second: float | None = None,
    ) -> None:
        if max_concurrency is not None:
            _config.positive("max_concurrency", _config.not_negative("max_concurrency", max_concurrency))
        if requests_per_second is not None:
            _config.positive("requests_per_second", requests_per_second)
        self._figures = (max_concurrency, requests_per_second)
        self._reset()
        _every.add(self)

    @property
    def max_concurrency(self) -> int | None:
        """Requests on their way at once."""
        return self._figures[0]

    @property
    def requests_per_second(self) -> float | None:
        """Requests that begin, in the long run."""
        return self._figures[1]

    @property
    def stats(self) -> Stats:
        """The counts of this moment."""
        return self._gate.stats

    def __repr__(self) -> str:
        return f"Limits(max_concurrency={self._figures[0]}, requests_per_second={self._figures[1]})"

    def __reduce__(self) -> tuple[type[Limits], tuple[int | None, float | None]]:
        return type(self), self._figures

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._inbox: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._alarm: threading.Timer | None = None
        self._alarm_at = float("inf")
        self._gate = Gate(*self._figures, time.monotonic())
        self._served = self._next_collection = float("-inf")
        self._forgotten = 0  # turns that nobody gave back
        self._stuck = self._told = False

    def _do(self, call: Callable[..., object], *args: Any) -> None:
        """Have ``call(*args)`` done by whoever holds the lock, and then those served whose turn it is."""
        self._inbox.append((call, args))
        while self._inbox and self._lock.acquire(blocking=False):
            try:
                while self._inbox:
                    call, args = self._inbox.popleft()
                    call(*args)
                self._serve()
            finally:
                self._lock.release()

    def _serve(self) -> None:
        gate = self._gate
        if not gate.waiting:
            if self._alarm is not None:  # for those who have left since
                self._alarm.cancel()
                self._alarm, self._alarm_at = None, float("inf")
            return
        now = time.monotonic()
        while due := gate.due(now):
            self._served = now
            for ticket in due:
                if (wake := ticket.wake) is not None:
                    ticket.wake = None
                    try:
                        wake()
                    except RuntimeError:  # its event loop is closed
                        gate.leave(ticket)
        wait = gate.wait(now)
        if wait is None and gate.starved:
            wait = max(STARVED, self._next_collection - now)  # for `_rung`
        # A millisecond's grace: a spacing that narrows must not mean a new alarm at every look.
        if wait is not None and now + wait < self._alarm_at - 0.001:
            self._set_alarm(now, wait)

    def _set_alarm(self, now: float, wait: float) -> None:
        # A thread, and not one of those who wait: the first in line may be a task of a loop that stands still.
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = now + wait
        self._alarm = threading.Timer(wait, self._ring)
        self._alarm.daemon = True
        with contextlib.suppress(RuntimeError):  # the interpreter is shutting down
            self._alarm.start()

    def _ring(self) -> None:
        # A timer that was cancelled too late rings too; it does no harm.
        self._do(self._rung)
        if self._stuck and not self._told:
            self._told = True
            _log.warning(
                "a thread or task holds as many streams as max_concurrency allows, and waits for one more: "
                "close one of them, or raise max_concurrency"
            )

    def _rung(self) -> None:
        self._alarm_at = float("inf")
        if time.monotonic() >= self._served + STARVED:
            self._find_forgotten()
            self._stuck = self._gate.waits_for_itself

    def _find_forgotten(self) -> None:
        begun = time.monotonic()
        if self._gate.starved and begun >= self._next_collection and gc.isenabled():
            found, self._next_collection = self._forgotten, float("inf")
            gc.collect()
            ended = time.monotonic()
            fruitless = self._forgotten == found
            self._next_collection = ended + (max((ended - begun) / COLLECTING, 0.1) if fruitless else 0.0)


class Turn:
    """One call's turn: waited for, held while its request is on its way, given back once.

    It is given back when it is forgotten, too.
    """

    __slots__ = ("_gate", "_limits", "_out", "_ticket")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._gate = limits._gate
        self._ticket = Ticket()
        self._out = False  # waiting, or holding a slot

    def take(self, deadline: float | None = None) -> None:
        """Wait for the turn, on this thread.

        Args:
            deadline: When to give up, on the clock of `time.monotonic`.

        Raises:
            APITimeoutError: The deadline came first.
        """
        limits, gate, ticket = self._limits, self._gate, self._ticket
        self._out = True
        ticket.owner = threading.get_ident()
        # Not "holds it": what gives the turn back before another try may still be in the inbox.
        starts = ticket.starts
        limits._do(_ask, gate, ticket)
        if ticket.starts > starts:
            return
        timeout = -1.0
        if deadline is not None:
            timeout = min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)
        called = threading.Lock()
        called.acquire()
        try:
            limits._find_forgotten()
            limits._do(_call_me, gate, ticket, called.release)
            if not called.acquire(timeout=timeout):
                raise APITimeoutError(TOTAL_TIMEOUT_MESSAGE)
        except BaseException:  # a KeyboardInterrupt too
            self.give_back()
            raise

    async def atake(self) -> None:
        """`take`, awaited, on any event loop. A task that is cancelled gives its place up."""
        limits, gate, ticket = self._limits, self._gate, self._ticket
        self._out = True
        ticket.owner = id(asyncio.current_task())
        # Not "holds it": what gives the turn back before another try may still be in the inbox.
        starts = ticket.starts
        limits._do(_ask, gate, ticket)
        if ticket.starts > starts:
            return
        loop = asyncio.get_running_loop()
        called = loop.create_future()
        try:
            limits._do(_call_me, gate, ticket, lambda: loop.call_soon_threadsafe(_resolve, called))
            await called
        except BaseException:  # its turn may have come in the same moment
            self.give_back()
            raise

    def give_back(self) -> None:
        """The request is over, or is not made after all. Does nothing where there is nothing to give back."""
        if self._out:
            self._out = False
            self._limits._do(self._gate.leave, self._ticket)

    def pause(self, hold: float, spacing: float | None) -> None:
        """Give it back, and let nobody begin for so many seconds; see `Gate.hold`."""
        self._out = False
        self._limits._do(_pause, self._gate, self._ticket, hold, spacing)

    def forget(self) -> None:
        """Note that nobody will give it back by himself; whoever calls this does."""
        if self._out:
            self._limits._forgotten += 1
            self._ticket.owner = 0

    def __del__(self) -> None:
        self.forget()
        self.give_back()


def limits_of(
    limits: Limits | None, max_concurrency: int | None, requests_per_second: float | None
) -> Limits:
    """The limits that a client's arguments stand for.

    Raises:
        ConfigurationError: They contradict each other, or cannot work.
    """
    if limits is None:
        return Limits(max_concurrency, requests_per_second)
    if not isinstance(limits, Limits):
        raise ConfigurationError("limits must be a prem_core.Limits")
    check_one_source(limits, max_concurrency, requests_per_second)
    return limits


def check_one_source(
    limits: Limits | None, max_concurrency: int | None, requests_per_second: float | None
) -> None:
    """Hold against each other what can be said in two places.

    Raises:
        ConfigurationError: `limits` is given, and another figure beside it.
    """
    for name, value, default in (
        ("max_concurrency", max_concurrency, _config.DEFAULT_MAX_CONCURRENCY),
        ("requests_per_second", requests_per_second, None),
    ):
        if limits is not None and value != default:
            raise ConfigurationError(f"{name} is a figure of limits where these are given: set it there")


def _ask(gate: Gate, ticket: Ticket) -> None:
    gate.ask(ticket, time.monotonic())


def _call_me(gate: Gate, ticket: Ticket, wake: Callable[[], object]) -> None:
    if gate.holds(ticket):  # since it asked
        wake()
    else:
        ticket.wake = wake


def _pause(gate: Gate, ticket: Ticket, hold: float, spacing: float | None) -> None:
    # First the pause: a slot that came free before would let the next one run into the same refusal.
    gate.hold(ticket, time.monotonic(), hold, spacing)
    gate.leave(ticket)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


_every: weakref.WeakSet[Limits] = weakref.WeakSet()


def _forked() -> None:
    # The requests on their way are the parent's, and so is whoever would give their slots back.
    for limits in list(_every):
        limits._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
