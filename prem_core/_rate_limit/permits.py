"""Threads and tasks wait here for permits; `AdmissionQueue` decides who gets the next one.

The lock is never waited for. An operation is put into a list, and the thread that gets the lock does all that are in
it. A thread that does not get the lock leaves its operation to the one that holds it, which looks into the list again
after releasing the lock. So a permit can be released at any point, by a finalizer that Python's garbage collector runs
in the middle of this module as well.
"""

from __future__ import annotations

import _thread
import asyncio
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

from prem_core import _config
from prem_core._errors import APITimeoutError, ConfigurationError
from prem_core._protocol.retry import TOTAL_TIMEOUT_MESSAGE
from prem_core._rate_limit.admission import AdmissionQueue, Stats, Waiter

#: Seconds: the timer may be this much late. Without it a rate that grows would set the timer anew at each call.
TIMER_ACCURACY: Final = 0.001


class Limits:
    """How many requests may be open at once, and how many may start in a second.

    Prem's limits apply per organisation. Each client has limits of its own, which its threads and tasks share. Models
    and loaders share theirs with all others that have the same gateway, API key, `max_concurrency` and
    `requests_per_second`. Pass one object to several clients and models to share it::

        limits = Limits(max_concurrency=5)
        client, llm = AsyncPremClient(limits=limits), ChatPremEncrypted(model="…", limits=limits)

    Waiting callers are served first come, first served. When the service answers 429, or 503 with a Retry-After, all
    callers wait until the Retry-After is over. After a 429 later requests are spaced by about that interval, which
    shrinks while no further 429 arrives.

    An open stream holds a slot until it is read to its end, closed or garbage-collected. A thread that keeps
    `max_concurrency` streams open and requests another deadlocks itself, unless `total_timeout` is set. A stream in a
    reference cycle is released when Python's garbage collector runs.

    Limits are not shared between processes. A copy, a pickle or a forked process has the same settings and its own
    counts.

    Args:
        max_concurrency: Requests that may be open at once; None for no limit. The BASE tier allows 5.
        requests_per_second: Sustained rate of requests; ``max(1, requests_per_second)`` of them may start at once
            after a pause. None for as many as the service accepts.

    Raises:
        ConfigurationError: A value is invalid; the message names the parameter.
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
        self._settings = (max_concurrency, requests_per_second)
        self._reset()
        _all_limits.add(self)

    @property
    def max_concurrency(self) -> int | None:
        """Requests that may be open at once."""
        return self._settings[0]

    @property
    def requests_per_second(self) -> float | None:
        """The sustained rate of requests."""
        return self._settings[1]

    @property
    def stats(self) -> Stats:
        """The current counts."""
        return self._queue.stats

    def __repr__(self) -> str:
        return f"Limits(max_concurrency={self._settings[0]}, requests_per_second={self._settings[1]})"

    def __reduce__(self) -> tuple[type[Limits], tuple[int | None, float | None]]:
        return type(self), self._settings

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._operations: deque[Callable[[], object]] = deque()
        self._queue = AdmissionQueue(*self._settings, time.monotonic())
        self._timer: _Timer | None = None

    # What a permit uses. Another kind of limits may grant its permits elsewhere.

    def _request(self, waiter: Waiter) -> None:
        """Let `waiter` wait for a slot. If one is free, it is mostly granted before this returns."""
        self._do(partial(self._queue.enqueue, waiter))

    def _wake_when_granted(self, waiter: Waiter, wake: Callable[[], object]) -> None:
        """Call `wake` when the request may start: on any thread, and at once if it may start already."""

        def operation() -> None:
            waiter.wake = wake
            if waiter.granted:
                self._wake(waiter)

        self._do(operation)

    def _release(
        self, waiter: Waiter, pause: float | None, rate_limited: bool, spacing: float | None
    ) -> None:
        """See `Permit.release`."""

        def operation() -> None:
            # First the pause: the slot must not be granted to a request that would be answered 429 as well.
            now = time.monotonic()
            if rate_limited:
                self._queue.count_rate_limit(waiter, now, spacing)
            if pause is not None:
                self._queue.pause(now, pause)
            self._queue.remove(waiter)
            waiter.wake = None

        self._do(operation)

    def _do(self, operation: Callable[[], object] | None = None) -> None:
        """Do an operation, or leave it to the thread that holds the lock; then grant what can be granted."""
        self._operations.append(operation or _nothing)
        while self._operations and self._lock.acquire(blocking=False):
            try:
                while self._operations:
                    self._operations.popleft()()
                self._grant()
            finally:
                self._lock.release()

    def _grant(self) -> None:
        queue, now = self._queue, time.monotonic()
        while queue.waiting and (ready := queue.pop_ready(now)):
            for waiter in ready:
                if waiter.wake is not None:
                    self._wake(waiter)
        wait = queue.wait(now) if queue.waiting else None
        due = math.inf if wait is None else now + wait
        if self._timer is not None:
            self._timer.set(due)
        elif due < math.inf:
            self._timer = _Timer(due)
            # A thread of its own: the first waiter may be a task of an event loop that is blocked. A finalizer may
            # start it: unlike `threading.Thread.start`, this takes no lock and does not wait for the thread.
            try:
                _thread.start_new_thread(self._run_timer, (self._timer,))
            except RuntimeError:  # the interpreter is shutting down, or the system has no thread left
                self._timer = None
        if due == math.inf:
            self._timer = None

    def _wake(self, waiter: Waiter) -> None:
        wake, waiter.wake = waiter.wake, None
        if wake is not None:
            try:
                wake()
            except RuntimeError:  # its event loop is closed
                self._queue.remove(waiter)

    def _run_timer(self, timer: _Timer) -> None:
        while timer.wait():
            self._do()


class _Timer:
    """When the thread that runs `Limits._run_timer` has work; it ends when there is none.

    Not `threading.Timer`, whose `cancel` waits for a lock that a finalizer may find taken by its own thread.

    Args:
        due: The time, on the clock of `time.monotonic`.
    """

    __slots__ = ("_changed", "_due")

    def __init__(self, due: float) -> None:
        self._due = due
        self._changed = threading.Lock()  # released to wake the thread
        self._changed.acquire()

    def set(self, due: float) -> None:
        """Change the time; infinity ends the thread. Called with the limits' lock held."""
        earlier = due < self._due - TIMER_ACCURACY or due == math.inf
        if earlier or due > self._due:
            self._due = due
        if earlier and self._changed.locked():
            self._changed.release()

    def wait(self) -> bool:
        """Wait until the time has come; False if there is nothing to wait for any more."""
        while self._due < math.inf:
            # At least a moment: another thread may be about to do what is due.
            seconds = max(self._due - time.monotonic(), TIMER_ACCURACY)
            if not self._changed.acquire(timeout=min(seconds, threading.TIMEOUT_MAX)):
                return True
        return False


class Permit:
    """Permission for one call to have a request open: waited for, held, released once.

    A call acquires it again for each retry, and keeps its place in the queue. It is released when it is
    garbage-collected, too.
    """

    __slots__ = ("_latest", "_limits", "_waiter")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._waiter: Waiter | None = None  # waiting, or holding a slot
        self._latest: Waiter | None = None

    def acquire(self, deadline: float | None = None) -> None:
        """Wait for the permit, on this thread.

        Args:
            deadline: When to give up, on the clock of `time.monotonic`.

        Raises:
            APITimeoutError: The deadline came first.
        """
        waiter = self._enter()
        try:
            self._limits._request(waiter)
            if waiter.granted:
                return
            timeout = -1.0
            if deadline is not None:
                timeout = min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)
            granted = threading.Lock()
            granted.acquire()
            self._limits._wake_when_granted(waiter, granted.release)
            if not granted.acquire(timeout=timeout):
                raise APITimeoutError(TOTAL_TIMEOUT_MESSAGE)
        except BaseException:  # a KeyboardInterrupt too
            self.release()
            raise

    async def acquire_async(self) -> None:
        """`acquire`, awaited, on any event loop. A task that is cancelled gives its place up."""
        waiter = self._enter()
        try:
            self._limits._request(waiter)
            if waiter.granted:
                return
            loop = asyncio.get_running_loop()
            granted = loop.create_future()
            self._limits._wake_when_granted(waiter, lambda: loop.call_soon_threadsafe(_resolve, granted))
            await granted
        except BaseException:  # it may have been granted in the same moment
            self.release()
            raise

    def release(
        self, *, pause: float | None = None, rate_limited: bool = False, spacing: float | None = None
    ) -> None:
        """Let the next request start. From any thread and any finalizer; does nothing the second time.

        Args:
            pause: Seconds for which no request may start, because the service asked for it; None for no pause.
            rate_limited: Whether the answer was 429.
            spacing: Seconds; its Retry-After, to which the rate adapts. None to count the answer only.
        """
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            self._limits._release(waiter, pause, rate_limited, spacing)

    def __del__(self) -> None:
        self.release()

    def _enter(self) -> Waiter:
        self._waiter = self._latest = waiter = Waiter(self._latest)
        return waiter


def resolve_limits(
    limits: Limits | None, max_concurrency: int | None, requests_per_second: float | None
) -> Limits:
    """The limits that a client's arguments stand for.

    Raises:
        ConfigurationError: They contradict each other, or a value is invalid.
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
    """Check that no setting of `limits` is passed a second time.

    Raises:
        ConfigurationError: One is; the message names it.
    """
    for name, value, default in (
        ("max_concurrency", max_concurrency, _config.DEFAULT_MAX_CONCURRENCY),
        ("requests_per_second", requests_per_second, None),
    ):
        if limits is not None and value != default:
            raise ConfigurationError(f"pass {name} to Limits(), not together with limits=")


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _nothing() -> None:
    pass


_all_limits: weakref.WeakSet[Limits] = weakref.WeakSet()


def _reset_after_fork() -> None:
    # The open requests are the parent's, and so are the threads that would release them, or the lock.
    for limits in list(_all_limits):
        limits._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
