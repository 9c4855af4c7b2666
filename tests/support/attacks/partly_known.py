"""Bytes of which some are known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class PartlyKnown:
    """Bytes of which some are known.

    Attributes:
        values: The bytes; 0 where unknown.
        known: 255 where known, otherwise 0.
    """

    values: bytes = b""
    known: bytes = b""

    @classmethod
    def of(cls, values: bytes) -> Self:
        """Bytes that are all known."""
        return cls(values, b"\xff" * len(values))

    @classmethod
    def unknown(cls, length: int) -> Self:
        """Bytes that are all unknown."""
        return cls(bytes(length), bytes(length))

    def __len__(self) -> int:
        return len(self.values)

    def __add__(self, other: PartlyKnown) -> PartlyKnown:
        return PartlyKnown(self.values + other.values, self.known + other.known)

    def __getitem__(self, part: slice) -> PartlyKnown:
        return PartlyKnown(self.values[part], self.known[part])

    def xor(self, other: bytes) -> PartlyKnown:
        """The XOR with `other`, as long as the shorter of both."""
        size = min(len(self), len(other))
        known = self.known[:size]
        return PartlyKnown(_and(xor(self.values, other), known), known)

    def agrees(self, other: PartlyKnown) -> bool:
        """Whether no byte is known differently in both."""
        both = _and(self.known, other.known)
        return not any(_and(xor(self.values, other.values), both))

    def merged(self, other: PartlyKnown) -> PartlyKnown:
        """What is known of either. Where both know a byte, that of `self` counts."""
        size = max(len(self), len(other))
        mine, theirs = self + self.unknown(size - len(self)), other + self.unknown(size - len(other))
        new = _and(theirs.known, bytes(255 - each for each in mine.known))
        return PartlyKnown(xor(mine.values, _and(theirs.values, new)), xor(mine.known, new))

    def covers(self, start: int, end: int) -> bool:
        """Whether every byte from `start` to `end` is known."""
        return end <= len(self) and 0 not in self.known[start:end]

    def covered_from(self, start: int) -> int:
        """The end of the known bytes that begin at `start`."""
        end = self.known.find(b"\0", start)
        return len(self) if end < 0 else end


def xor(a: bytes, b: bytes) -> bytes:
    """The XOR of two byte strings, as long as the shorter one."""
    size = min(len(a), len(b))
    return (int.from_bytes(a[:size]) ^ int.from_bytes(b[:size])).to_bytes(size)


def _and(a: bytes, b: bytes) -> bytes:
    size = min(len(a), len(b))
    return (int.from_bytes(a[:size]) & int.from_bytes(b[:size])).to_bytes(size)
