"""A secret in every form in which it could be seen, and the search for a piece of it.

A piece is 12 characters in a row of any form: of a key, half of it is as bad as the whole.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Final

#: Characters of a piece. 48 bits of hex: nothing else looks like it by chance.
PIECE: Final = 12


def spellings(secret: str | bytes) -> Iterator[str]:
    """The forms of `secret`: as it is, escaped for JSON and for Python, in hex, base64 and numbers."""
    raw = secret.encode() if isinstance(secret, str) else secret
    if isinstance(secret, str):
        yield secret
        yield json.dumps(secret)[1:-1]
        yield ascii(secret)[1:-1]
    yield raw.decode("latin-1")
    yield repr(raw)[2:-1]
    yield raw.hex()
    yield raw.hex(" ")
    yield ", ".join(map(str, raw))
    # What stands before a secret moves its base64 by a part of a character.
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + raw).decode().rstrip("=")[(0, 2, 3)[before] : -1]
        yield encoded
        yield encoded.translate(str.maketrans("+/", "-_"))


def _pieces(text: str) -> Iterator[str]:
    text = text.lower()
    return (text[i : i + PIECE] for i in range(len(text) - PIECE + 1))


class Search:
    """Looks for secrets, each known by a name.

    Args:
        secrets: The secrets by name. Of an API key, leave the prefix out that every key has.
    """

    def __init__(self, **secrets: str | bytes) -> None:
        self._names = {
            piece: name
            for name, secret in secrets.items()
            for form in spellings(secret)
            for piece in _pieces(form)
        }

    def __call__(self, shown: str | bytes) -> set[str]:
        """The names of the secrets of which a piece is in `shown`."""
        if isinstance(shown, bytes):
            return self(shown.decode("latin-1")) | self(shown.decode("utf-8", "replace"))
        found = (self._names.get(piece) for piece in _pieces(shown))
        return {name for name in found if name is not None}
