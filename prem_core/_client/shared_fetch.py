"""Fetch something once for all callers that need it at the same time."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Generic, TypeVar

from prem_core._errors import APITimeoutError, PremError
from prem_core._protocol.retry import TOTAL_TIMEOUT_MESSAGE

T = TypeVar("T")


class SharedFetch(Generic[T]):
    """Callers that need a value at the same time share one fetch, and its failure."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures = 0  # how many fetches have failed
        self._failure: PremError | None = None  # the last one's error

    def renew_lock(self) -> None:
        """Replace the lock, after a fork: a thread of the parent may hold it."""
        self._lock = threading.Lock()

    def get(self, known: Callable[[], T | None], fetch: Callable[[], T], deadline: float | None = None) -> T:
        """The value.

        Args:
            known: Returns it where it is known, else None.
            fetch: Fetches it.
            deadline: When to stop waiting for another caller's fetch, by `time.monotonic`.

        Raises:
            APITimeoutError: The deadline has passed.
            PremError: The fetch failed.
        """
        if (value := known()) is not None:
            return value
        failures = self._failures
        wait = -1.0 if deadline is None else max(0.0, deadline - time.monotonic())
        lock = self._lock
        if not lock.acquire(timeout=min(wait, threading.TIMEOUT_MAX)):
            raise APITimeoutError(TOTAL_TIMEOUT_MESSAGE)
        try:
            # Checked again under the lock: its previous holder may have fetched the value.
            if (value := known()) is None:
                with self._shared_failure(failures, deadline):
                    value = fetch()
            return value
        finally:
            lock.release()

    async def get_async(
        self, known: Callable[[], T | None], fetch: Callable[[], Awaitable[T]], lock: asyncio.Lock
    ) -> T:
        """`get` on an event loop, whose callers wait for `lock`."""
        if (value := known()) is not None:
            return value
        failures = self._failures
        async with lock:
            if (value := known()) is None:
                with self._shared_failure(failures, None):
                    value = await fetch()
            return value

    @contextlib.contextmanager
    def _shared_failure(self, failures: int, deadline: float | None) -> Iterator[None]:
        # If a fetch failed while this caller waited, its error is raised here too. Otherwise callers that wait would
        # time out one after another.
        if self._failures != failures and self._failure is not None:
            raise copy.copy(self._failure)
        try:
            yield
        except PremError as error:
            if deadline is not None and time.monotonic() >= deadline:
                raise  # this call ran out of its own time
            # A copy has no traceback: the frames of a finished call are not kept alive.
            self._failure = copy.copy(error)
            self._failures += 1
            raise
