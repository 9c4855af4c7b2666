"""One client for each API key, the least recently used of them closed when there are too many.

The rule of this file: a key is known here by a hash alone, under a secret of this process.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from prem_core._client.client import AsyncPremClient
from prem_core.proxy.wire import WireClient


@dataclass(slots=True, eq=False)
class _Kept:
    client: AsyncPremClient
    wire: WireClient
    users: int = field(default=0)


class Clients:
    """The clients of one event loop, by API key.

    A client in use is not closed: where all are, there are more of them than `kept` for as long.

    Args:
        make: Makes a client that sends through the wire given.
        kept: How many are kept.
    """

    def __init__(self, make: Callable[[WireClient], AsyncPremClient], kept: int) -> None:
        self._make = make
        self._most = kept
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()
        self._secret = secrets.token_bytes(32)
        self._closings: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._kept)

    @asynccontextmanager
    async def of(self, api_key: str) -> AsyncIterator[AsyncPremClient]:
        """The client of `api_key`, which stays open for as long as the block."""
        name = hashlib.blake2b(api_key.encode(), key=self._secret, digest_size=32).digest()
        entry = self._kept.get(name)
        if entry is None:
            wire = WireClient()
            entry = self._kept[name] = _Kept(self._make(wire), wire)
        self._kept.move_to_end(name)
        entry.users += 1
        try:
            self._close_oldest()
            yield entry.client
        finally:
            entry.users -= 1

    def _close_oldest(self) -> None:
        idle = [name for name, entry in self._kept.items() if not entry.users]
        for name in idle[: max(0, len(self._kept) - self._most)]:
            # In a task: the caller need not wait for it, nor break it off by leaving.
            closing = asyncio.get_running_loop().create_task(self._kept.pop(name).wire.aclose())
            self._closings.add(closing)
            closing.add_done_callback(self._closings.discard)

    async def aclose(self) -> None:
        """Close them all."""
        entries, self._kept = list(self._kept.values()), OrderedDict()
        closings = (*self._closings, *(entry.wire.aclose() for entry in entries))
        await asyncio.gather(*closings, return_exceptions=True)
