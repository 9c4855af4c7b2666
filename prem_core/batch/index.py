"""Which ids a batch has seen and what became of them, in 15 to 30 bytes for each id."""

from __future__ import annotations

import hashlib
import os
from array import array
from typing import Final

#: What is stored about an id.
SEEN: Final = 1  # in this run's input
ANSWERED: Final = 2  # in the output
FAILED: Final = 4  # in the errors file, with an error that would be the same again

_FIRST_SIZE: Final = 1 << 12


class IdIndex:
    """Flags by id. Only an 8-byte hash of each id is kept, in a hash table of two arrays.

    The hash has a random key, so no one can choose two ids with the same hash. Of a million ids two share a hash with a
    probability of 3 in 100 million; the second one would count as a duplicate.
    """

    def __init__(self) -> None:
        self._key = os.urandom(16)
        self._used = 0
        self._allocate(_FIRST_SIZE)

    def __len__(self) -> int:
        return self._used

    def add(self, name: str | bytes, flag: int) -> int:
        """Set a flag of an id; none with 0. Returns the flags that it had before; 0 for a new id."""
        if isinstance(name, str):
            name = name.encode("utf-8", "surrogatepass")
        found = int.from_bytes(hashlib.blake2b(name, digest_size=8, key=self._key).digest(), "little")
        hashes, flags, mask = self._hashes, self._flags, self._mask
        position = found & mask
        while (before := flags[position]) and hashes[position] != found:
            position = (position + 1) & mask
        flags[position] = before | flag
        if flag and not before:
            hashes[position] = found
            self._used += 1
            if self._used * 5 > (mask + 1) * 3:
                self._grow()
        return before

    def _allocate(self, size: int) -> None:
        self._mask = size - 1
        self._hashes = array("Q", bytes(8 * size))
        self._flags = bytearray(size)

    def _grow(self) -> None:
        old = zip(self._hashes, self._flags, strict=True)
        self._allocate(2 * (self._mask + 1))
        hashes, flags, mask = self._hashes, self._flags, self._mask
        for found, flag in old:
            if flag:
                position = found & mask
                while flags[position]:
                    position = (position + 1) & mask
                hashes[position], flags[position] = found, flag
