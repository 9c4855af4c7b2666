"""The enclave's public key: fetched once for all callers, and fetched again after a key rotation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from prem_core._client.shared_fetch import SharedFetch
from prem_core._crypto.xwing import PublicKey


class EnclaveKey:
    """The key of one client.

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

        def fetched() -> PublicKey:
            self.public_key = fetch()
            return self.public_key

        return self._fetches.get(lambda: self._known(stale), fetched, deadline)

    async def get_async(
        self, fetch: Callable[[], Awaitable[PublicKey]], lock: asyncio.Lock, stale: PublicKey | None = None
    ) -> PublicKey:
        """`get` on an event loop, whose callers wait for `lock`."""

        async def fetched() -> PublicKey:
            self.public_key = await fetch()
            return self.public_key

        return await self._fetches.get_async(lambda: self._known(stale), fetched, lock)

    def _known(self, stale: PublicKey | None) -> PublicKey | None:
        # Another caller may have fetched a new key since the enclave rejected `stale`.
        return self.public_key if self.public_key is not None and self.public_key != stale else None
