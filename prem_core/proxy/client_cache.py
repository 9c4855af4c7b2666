"""One client for each API key, with the least recently used closed when there are too many."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from prem_core._client.client import AsyncPremClient
from prem_core.proxy.wire import CapturingClient


@dataclass(slots=True, eq=False)
class _Entry:
    client: AsyncPremClient
    http_client: CapturingClient
    users: int = 0


class ClientCache:
    """The clients of one event loop by API key. Keys are stored only as hashes, keyed with a secret of this object.

    A client in use is not closed: while all are in use, there may be more than `max_clients`.

    Args:
        make: Builds a client on top of an HTTP client.
        max_clients: How many to keep.
        urls: The gateway's and the enclave's, which the clients connect to.
    """

    def __init__(
        self, make: Callable[[CapturingClient], AsyncPremClient], max_clients: int, urls: Iterable[str] = ()
    ) -> None:
        self._make = make
        self._urls = tuple(urls)
        self._max_clients = max_clients
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._secret = secrets.token_bytes(32)
        self._closing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._entries)

    def name_of(self, api_key: str) -> str:
        """A name that stands for `api_key` without revealing it."""
        return hashlib.blake2b(api_key.encode(), key=self._secret, digest_size=32).hexdigest()

    @asynccontextmanager
    async def client_for(self, api_key: str) -> AsyncIterator[AsyncPremClient]:
        """The client of `api_key`, which stays open inside the block."""
        name = self.name_of(api_key)
        entry = self._entries.get(name)
        if entry is None:
            http_client = CapturingClient(self._urls)
            entry = self._entries[name] = _Entry(self._make(http_client), http_client)
        self._entries.move_to_end(name)
        entry.users += 1
        try:
            self._close_oldest()
            yield entry.client
        finally:
            entry.users -= 1

    def _close_oldest(self) -> None:
        idle = [name for name, entry in self._entries.items() if not entry.users]
        for name in idle[: max(0, len(self._entries) - self._max_clients)]:
            # In a task of its own: the caller's disconnect must not interrupt it.
            task = asyncio.get_running_loop().create_task(self._entries.pop(name).http_client.aclose())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def aclose(self) -> None:
        """Close all clients."""
        entries, self._entries = list(self._entries.values()), OrderedDict()
        await asyncio.gather(
            *self._closing, *(entry.http_client.aclose() for entry in entries), return_exceptions=True
        )
