"""Which value stands closest to the words of a property: "price of 5", "5 units", "aged 34"."""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Sequence
from typing import Any

from prem_core.enclave.extractive.keys import keys
from prem_core.enclave.extractive.material import Material
from prem_core.enclave.extractive.readings import Read

# How far, in characters, a number may be behind or before the words it belongs to.
_BEHIND, _BEFORE = 24, 8
_BREAK = re.compile(r"[.!?;\n]\s|\n|\w+\W+\w+\W+\w+\W+\w")
# An age is told without the word: "is 34 years old", "Anna is 34", "Anna (34)".
_AGE = keys("age aged year")
_TELLS_AGE = re.compile(r"(?:\b(?:is|was|turned|turns|aged?)\s|\()$", re.I)


def clusters(material: Material, words: frozenset[str]) -> list[tuple[float, int, int]]:
    """Where words of a property's name stand together: (share of the name, start, end), best share first."""
    found: list[tuple[float, int, int]] = []
    tokens = material.tokens
    last = -1
    for position in sorted({at for word in words for at in material.by_key.get(word, ())}):
        if position <= last:
            continue
        seen, last = {tokens[position].key}, position
        # "date of birth", "name of the customer": stopwords may stand between the words of a name.
        for following in range(position + 1, min(position + 8, len(tokens))):
            if tokens[following].key in words:
                seen.add(tokens[following].key)
                last = following
            elif material.text[tokens[following].start : tokens[following].end].casefold() not in (
                "of",
                "the",
                "for",
            ):
                break
        found.append((len(seen) / len(words), tokens[position].start, tokens[last].end))
    return sorted(found, key=lambda cluster: (-cluster[0], cluster[1]))


def nearest_number(
    free: Sequence[Read], material: Material, words: frozenset[str], fits: Callable[[Any], bool]
) -> Read | None:
    """The number of `free` (in order) that `fits` and is closest to the property's words; None if none is close.

    More of the words beside it count more than a smaller distance.
    """
    if words & _AGE:
        words |= _AGE
    best: tuple[float, int, int] | None = None
    chosen: Read | None = None
    for share, start, end in clusters(material, words) if free and words else ():
        behind = bisect.bisect_left(free, end, key=lambda read: read.start)
        for read in free[max(0, behind - 1) : behind + 1]:
            follows = read.start >= end
            gap = read.start - end if follows else start - read.end
            if not 0 <= gap <= (_BEHIND if follows else _BEFORE):
                continue
            between = material.text[end : read.start] if follows else material.text[read.end : start]
            order = (-share, gap, read.start)
            if (best is None or order < best) and not _BREAK.search(between) and fits(read.value):
                best, chosen = order, read
    if chosen is None and words & _AGE:
        told = (read for read in free if _TELLS_AGE.search(material.text[: read.start][-8:]))
        chosen = next((read for read in told if fits(read.value)), None)
    return chosen
