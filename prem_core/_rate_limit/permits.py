"""Wait for a permit, on a thread or in a task. `AdmissionQueue` decides which request gets the next permit.

No thread ever blocks on the lock. Operations are queued; the thread that gets the lock runs all of them. Other threads
queue theirs and return, and the lock holder checks the queue again after releasing. A permit can therefore be released
anywhere, even in a garbage-collector finalizer.
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
from typing import Any, Final

from prem_core import _config
from prem_core._errors import APITimeoutError, ConfigurationError
from prem_core._protocol.charge import Charge
from prem_core._protocol.retry import TOTAL_TIMEOUT_MESSAGE
from prem_core._protocol.steps import Release
from prem_core._rate_limit.admission import AdmissionQueue, Stats, Waiter

#: Allowed lateness of the timer, in seconds. It avoids rescheduling on every call while the rate grows.
TIMER_ACCURACY: Final = 0.001

#: How many unpickled limits are kept while nothing refers to them. A task that a scheduler sends to this process often
#: brings the limits of the one before it.
MAX_IDLE_LIMITS: Final = 8

_NOTHING_SPECIAL: Final = Release()


class Limits:
    """How many requests may be open at once, and how many may start in a second.

    Prem's limits apply per organisation. Each client has its own `Limits`, which its threads and tasks share. Models
    and loaders share one `Limits` with every model and loader that has the same gateway, API key, `max_concurrency`
    and `requests_per_second`. Pass one object to several clients and models to share it::

        limits = Limits(max_concurrency=5)
        client, llm = AsyncPremClient(limits=limits), ChatPremEncrypted(model="…", limits=limits)

    Permits are granted in the order of the requests. When the service answers 429, or 503 with a Retry-After, all
    callers wait until the Retry-After is over. After a 429, the interval between requests is about the Retry-After. It
    shrinks while no further 429 arrives.

    An open stream holds a slot until it is read to its end, closed or garbage-collected. A thread that keeps
    `max_concurrency` streams open and requests another deadlocks, unless `total_timeout` is set. A stream in a
    reference cycle is released when Python's garbage collector runs.

    Within a process, a copy and an unpickled object are the same limits. Processes do not share them: each counts
    separately. `SharedLimits` counts for all.

    Args:
        max_concurrency: Requests that may be open at once; None for no limit. The BASE tier allows 5.
        requests_per_second: Sustained rate of requests; ``max(1, requests_per_second)`` of them may start at once
            after a pause. None for no limit except the service's.
        max_streams: Streams that may be open at once. None, the default, to learn it: the service promises one for each
            API key, and refuses further ones with a 429 of its own. Such a 429 does not delay other requests.

    Raises:
        ConfigurationError: A value is invalid; the message names the parameter.
    """

    def __init__(
        self,
        max_concurrency: int | None = _config.DEFAULT_MAX_CONCURRENCY,
        requests_per_second: float | None = None,
        max_streams: int | None = None,
    ) -> None:
        if max_concurrency is not None:
            _config.positive("max_concurrency", _config.not_negative("max_concurrency", max_concurrency))
        if requests_per_second is not None:
            _config.positive("requests_per_second", requests_per_second)
        if max_streams is not None:
            _config.positive("max_streams", _config.not_negative("max_streams", max_streams))
        self._settings = (max_concurrency, requests_per_second, max_streams)
        #: Pickles carry it, so that all that are unpickled in a process are one object.
        self._identity = os.urandom(16).hex()
        self._reset()
        _all_limits.add(self)
        _by_identity[self._identity] = self

    @property
    def max_concurrency(self) -> int | None:
        """Requests that may be open at once."""
        return self._settings[0]

    @property
    def requests_per_second(self) -> float | None:
        """The sustained rate of requests."""
        return self._settings[1]

    @property
    def max_streams(self) -> int | None:
        """Streams that may be open at once."""
        return self._settings[2]

    @property
    def stats(self) -> Stats:
        """The current counts."""
        return self._queue.stats

    def __repr__(self) -> str:
        return (
            f"Limits(max_concurrency={self._settings[0]}, requests_per_second={self._settings[1]}, "
            f"max_streams={self._settings[2]})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (type(self), self._identity, self._settings)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._operations: deque[Callable[[], object]] = deque()
        concurrency, rate, streams = self._settings
        self._queue = AdmissionQueue(concurrency, rate, time.monotonic(), streams)
        self._timer: _Timer | None = None

    # The interface that Permit uses. A subclass may override it.

    def _request(self, waiter: Waiter) -> None:
        """Queue `waiter` for a slot. If one is free, it is usually granted before this returns."""
        self._do(partial(self._queue.enqueue, waiter))

    def _wake_when_granted(self, waiter: Waiter, wake: Callable[[], object]) -> None:
        """Call `wake` when the request may start, on any thread; immediately if it may start already."""

        def operation() -> None:
            waiter.wake = wake
            if waiter.granted:
                self._wake(waiter)

        self._do(operation)

    def _release(self, waiter: Waiter, outcome: Release) -> None:
        """See `Permit.release`."""

        def operation() -> None:
            self._queue.end(waiter, time.monotonic(), outcome)
            waiter.wake = None

        self._do(operation)

    def _do(self, operation: Callable[[], object] | None = None) -> None:
        """Queue an operation. If the lock is free, run all queued operations and grant the permits that are due."""
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
            # Runs in its own thread because the first waiter may be a task on an event loop that is blocked.
            # Uses _thread because a finalizer may start it: unlike `threading.Thread.start`, this takes no lock and
            # does not wait for the thread.
            try:
                _thread.start_new_thread(self._run_timer, (self._timer,))
            except RuntimeError:  # the interpreter is shutting down, or no thread can be created
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
    """Wakes the `_run_timer` thread when it has work. That thread ends when there is none.

    Not a `threading.Timer`, because its cancel() can deadlock in a finalizer.

    Args:
        due: The time, on the clock of `time.monotonic`.
    """

    __slots__ = ("_changed", "_due")

    def __init__(self, due: float) -> None:
        self._due = due
        self._changed = threading.Lock()  # released to wake the thread
        self._changed.acquire()

    def set(self, due: float) -> None:
        """Change the time; infinity ends the thread. The caller must hold the limits' lock."""
        earlier = due < self._due - TIMER_ACCURACY or due == math.inf
        if earlier or due > self._due:
            self._due = due
        if earlier and self._changed.locked():
            self._changed.release()

    def wait(self) -> bool:
        """Wait until the time is reached. False if there is nothing left to wait for."""
        while self._due < math.inf:
            # Wait at least TIMER_ACCURACY, because another thread may be doing the due work.
            seconds = max(self._due - time.monotonic(), TIMER_ACCURACY)
            if not self._changed.acquire(timeout=min(seconds, threading.TIMEOUT_MAX)):
                return True
        return False


class Permit:
    """Permission for one call to have a request open. It is acquired, held and released once.

    For a retry the call acquires it again and keeps its place in the queue. A garbage-collected permit is released.
    """

    __slots__ = ("_latest", "_limits", "_waiter")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._waiter: Waiter | None = None  # waiting, or holding a slot
        self._latest: Waiter | None = None

    def acquire(self, deadline: float | None = None, charge: Charge | None = None) -> None:
        """Block this thread until the permit is granted.

        Args:
            deadline: When to give up, on the clock of `time.monotonic`.
            charge: What the request is expected to be charged.

        Raises:
            APITimeoutError: The permit was not granted before the deadline.
            PremError: The limits cannot grant it; see `SharedLimits`.
        """
        waiter = self._enter(charge)
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
            if waiter.error is not None:
                raise waiter.error
        except BaseException:  # including KeyboardInterrupt
            self.release()
            raise

    async def acquire_async(self, charge: Charge | None = None) -> None:
        """Wait until the permit is granted, on any event loop. A cancelled task loses its place."""
        waiter = self._enter(charge)
        try:
            self._limits._request(waiter)
            if waiter.granted:
                return
            loop = asyncio.get_running_loop()
            granted = loop.create_future()
            self._limits._wake_when_granted(waiter, lambda: loop.call_soon_threadsafe(_resolve, granted))
            await granted
            if waiter.error is not None:
                raise waiter.error
        except BaseException:  # the permit may already have been granted
            self.release()
            raise

    def release(self, outcome: Release = _NOTHING_SPECIAL) -> None:
        """Free the slot for the next request. Callable from any thread and finalizer; a second call does nothing.

        Args:
            outcome: What the response asks of all callers.
        """
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            self._limits._release(waiter, outcome)

    def __del__(self) -> None:
        self.release()

    def _enter(self, charge: Charge | None) -> Waiter:
        self._waiter = self._latest = waiter = Waiter(self._latest, charge)
        return waiter


def resolve_limits(
    limits: Limits | None, max_concurrency: int | None, requests_per_second: float | None
) -> Limits:
    """Build Limits from a client's arguments.

    Raises:
        ConfigurationError: The arguments contradict each other, or a value is invalid.
    """
    if limits is None:
        return default_limits(max_concurrency, requests_per_second)
    if not isinstance(limits, Limits):
        raise ConfigurationError("limits must be a prem_core.Limits")
    check_one_source(limits, max_concurrency, requests_per_second)
    return limits


def default_limits(max_concurrency: int | None, requests_per_second: float | None) -> Limits:
    """The `SharedLimits` that PREM_LIMITS_URL names, or new `Limits` with these settings.

    Raises:
        ConfigurationError: Both are given, or a value is invalid.
    """
    if _config.environment_source("limits") is None:
        return Limits(max_concurrency, requests_per_second)
    from prem_core._rate_limit.shared import SharedLimits

    limits = SharedLimits()
    check_one_source(limits, max_concurrency, requests_per_second, "in PREM_LIMITS_URL, which is set")
    return limits


def check_one_source(
    limits: Limits | None,
    max_concurrency: int | None,
    requests_per_second: float | None,
    place: str = "to Limits(), not together with limits=",
) -> None:
    """Check that no setting of `limits` is passed a second time.

    Raises:
        ConfigurationError: A setting is passed twice; the message names it.
    """
    for name, value, default in (
        ("max_concurrency", max_concurrency, _config.DEFAULT_MAX_CONCURRENCY),
        ("requests_per_second", requests_per_second, None),
    ):
        if limits is not None and value != default:
            raise ConfigurationError(f"pass {name} {place}")


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _nothing() -> None:
    pass


def _unpickled(kind: type[Limits], identity: str, settings: tuple[Any, ...]) -> Limits:
    with _registry_lock:
        limits = _by_identity.get(identity)
        if limits is None:
            limits = kind(*settings)
            limits._identity = identity
            _by_identity[identity] = limits
        if limits not in _recently_unpickled:
            _recently_unpickled.append(limits)
    return limits


_all_limits: weakref.WeakSet[Limits] = weakref.WeakSet()
_by_identity: weakref.WeakValueDictionary[str, Limits] = weakref.WeakValueDictionary()
_recently_unpickled: deque[Limits] = deque(maxlen=MAX_IDLE_LIMITS)
# Reentrant, because the garbage collector may run a finalizer that unpickles.
_registry_lock = threading.RLock()


def _reset_after_fork() -> None:
    global _registry_lock
    _registry_lock = threading.RLock()  # a lock that another thread held is never released
    # The open requests belong to the parent process, and so do the threads that would release them or the lock.
    for limits in list(_all_limits):
        limits._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
