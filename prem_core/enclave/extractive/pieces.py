"""The engine's tokens: a word or a run of punctuation with the white space before it.

One rule cuts everything that is streamed or counted, so usage, limits and deltas always agree.
"""

from __future__ import annotations

import json
import re
from typing import Any

# Runs are bounded so that text without spaces (a long key, a Chinese sentence) still streams in several deltas.
_PIECE = re.compile(r"\s*(?:\w{1,16}|[^\w\s]{1,4})|\s+")


def pieces(text: str) -> list[str]:
    """Cut `text` into tokens; joined again they are exactly `text`."""
    return _PIECE.findall(text)


def count(text: str) -> int:
    """How many tokens `text` has."""
    return sum(1 for _ in _PIECE.finditer(text))


def compact(value: Any) -> str:
    """JSON text without spaces, characters as they are."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
