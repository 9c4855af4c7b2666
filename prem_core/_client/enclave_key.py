"""The enclave's public key: fetched once for all callers, and fetched again after a key rotation."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from prem_core._client.shared_fetch import SharedFetch
from prem_core._crypto.xwing import PublicKey

_log = logging.getLogger("prem_core")


class EnclaveKey:
    """The key of one client.

    A key that replaces another one is logged: a gateway can cause a fetch by reporting a key rotation.

    Args:
        pinned: The key, if it was given; None to fetch it.

    Attributes:
        public_key: The key; None as long as it is not known.
    """

    def __init__(self, pinned: PublicKey | None) -> None:
        self.public_key = pinned
        self._fetches: SharedFetch[PublicKey] = SharedFetch()

    def renew_lock(self) -> None:
        """Replace the lock, after a fork: a thread of the parent may hold it."""
        self._fetches.renew_lock()

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
        return self._fetches.get(lambda: self._known(stale), lambda: self._store(fetch()), deadline)

    async def get_async(
        self, fetch: Callable[[], Awaitable[PublicKey]], lock: asyncio.Lock, stale: PublicKey | None = None
    ) -> PublicKey:
        """`get` on an event loop, whose callers wait for `lock`."""

        async def fetched() -> PublicKey:
            return self._store(await fetch())

        return await self._fetches.get_async(lambda: self._known(stale), fetched, lock)

    def _store(self, key: PublicKey) -> PublicKey:
        previous, self.public_key = self.public_key, key
        if previous is not None and previous != key:
            _log.warning(
                "the enclave's public key changed: sha256:%s was replaced by sha256:%s",
                previous.fingerprint(),
                key.fingerprint(),
            )
        return key

    def _known(self, stale: PublicKey | None) -> PublicKey | None:
        # Another caller may have fetched a new key since the enclave rejected `stale`.
        return self.public_key if self.public_key is not None and self.public_key != stale else None
