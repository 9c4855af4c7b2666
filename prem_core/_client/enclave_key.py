"""The enclave's public key: fetched once for all callers, and fetched again after a key rotation."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import threading
import time
from collections.abc import Awaitable, Callable, Iterator

from prem_core._crypto.xwing import PublicKey
from prem_core._errors import APITimeoutError, PremError
from prem_core._protocol.retry import TOTAL_TIMEOUT_MESSAGE


class EnclaveKey:
    """The key of one client. Callers that need it at the same time share one fetch, and its failure.

    Args:
        pinned: The key, if it was given; None to fetch it.

    Attributes:
        public_key: The key; None as long as it is not known.
    """

    def __init__(self, pinned: PublicKey | None) -> None:
        self.public_key = pinned
        self._lock = threading.Lock()
        self._failures = 0  # how many fetches have failed
        self._failure: PremError | None = None  # the last one's error

    def renew_lock(self) -> None:
        """Replace the lock, after a fork: a thread of the parent may hold it."""
        self._lock = threading.Lock()

    def get(
        self, fetch: Callable[[], PublicKey], stale: PublicKey | None = None, deadline: float | None = None
    ) -> PublicKey:
        """The key, fetched if it is not known or still `stale`.

        Args:
            fetch: Fetches it.
            stale: The key that the enclave no longer accepts.
            deadline: When to stop waiting for another caller's fetch, by `time.monotonic`.

        Raises:
            APITimeoutError: The deadline has passed.
            PremError: The fetch failed.
        """
        if (known := self._known(stale)) is not None:
            return known
        failures = self._failures
        wait = -1.0 if deadline is None else max(0.0, deadline - time.monotonic())
        lock = self._lock
        if not lock.acquire(timeout=min(wait, threading.TIMEOUT_MAX)):
            raise APITimeoutError(TOTAL_TIMEOUT_MESSAGE)
        try:
            # Checked again under the lock: its previous holder may have fetched the key.
            if (known := self._known(stale)) is None:
                with self._shared_failure(failures, deadline):
                    known = self.public_key = fetch()
            return known
        finally:
            lock.release()

    async def get_async(
        self, fetch: Callable[[], Awaitable[PublicKey]], lock: asyncio.Lock, stale: PublicKey | None = None
    ) -> PublicKey:
        """`get` on an event loop, whose callers wait for `lock`."""
        if (known := self._known(stale)) is not None:
            return known
        failures = self._failures
        async with lock:
            if (known := self._known(stale)) is None:
                with self._shared_failure(failures, None):
                    known = self.public_key = await fetch()
            return known

    def _known(self, stale: PublicKey | None) -> PublicKey | None:
        # Another caller may have fetched a new key since the enclave rejected `stale`.
        return self.public_key if self.public_key is not None and self.public_key != stale else None

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
