"""Fetched documents, kept in memory and in a folder for as long as they are valid."""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from prem_core._crypto.files import write_atomically
from prem_core._errors import AttestationError
from prem_core.attestation.documents import REFRESH, Document
from prem_core.attestation.evidence import read_file

#: How many documents a process keeps. A forgotten one is fetched again.
MAX_DOCUMENTS: Final = 256


@dataclass(frozen=True, slots=True)
class Stored:
    """A document, when it was fetched, and when it stops being valid."""

    body: bytes = field(repr=False)
    fetched_at: datetime
    valid_until: datetime

    def is_valid(self, now: datetime) -> bool:
        """Whether it is valid."""
        return self.fetched_at <= now < self.valid_until

    def is_fresh(self, document: Document, now: datetime) -> bool:
        """Whether it is valid, and a newer one need not be fetched."""
        refresh = REFRESH.get(document.role, timedelta.max)
        return self.is_valid(now) and now - self.fetched_at < refresh


class CollateralCache:
    """Documents by their sources and names."""

    def __init__(self) -> None:
        self._stored: OrderedDict[tuple[Hashable, str], Stored] = OrderedDict()

    def get(self, sources: Hashable, document: Document) -> Stored | None:
        """The document, valid or not; None if it is not kept."""
        return self._stored.get((sources, document.name))

    def put(self, sources: Hashable, document: Document, stored: Stored) -> None:
        """Keep a document."""
        self._stored[sources, document.name] = stored
        if len(self._stored) > MAX_DOCUMENTS:
            self._stored.popitem(last=False)

    def clear(self) -> None:
        """Forget all documents."""
        self._stored.clear()


#: The documents of this process.
COLLATERAL: Final = CollateralCache()


def load(folder: str, document: Document) -> Stored | None:
    """The document in a folder; None if it is not there or cannot be read."""
    try:
        body = read_file(folder, document.name)
        fetched = os.stat(os.path.join(folder, document.name)).st_mtime
        return Stored(body, datetime.fromtimestamp(fetched, UTC), document.valid_until(body))
    except (OSError, ValueError, OverflowError, AttestationError):
        return None


def save(folder: str, document: Document, body: bytes) -> None:
    """Write a document to a folder. If it cannot be written, it is only fetched again."""
    with contextlib.suppress(OSError):
        write_atomically(os.path.join(folder, document.name), body, overwrite=True)
