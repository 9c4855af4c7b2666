"""Find a piece of a secret in a text or in bytes, in every encoding in which it could appear.

A piece is `PIECE` characters in a row of a secret text, or `PIECE` bytes in a row of a secret's bytes, in any encoding.
That is less than half of a key, and long enough that no random value matches by accident: the weakest encoding of a
piece, base64 compared without regard to case, has 15 characters of 5.2 bits each, so 78 bits. A run of the suite
compares at most 10^9 positions of output with at most 10^4 pieces: an accidental match has a probability of less than
10^13 / 2^78, which is one in 3 * 10^10 runs.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from typing import AnyStr, Final

#: Characters of a text, or bytes of a key, that make a piece.
PIECE: Final = 12


def _text_encodings(piece: str) -> Iterator[str]:
    yield piece
    yield json.dumps(piece)[1:-1]
    yield ascii(piece)[1:-1]


def _byte_encodings(piece: bytes) -> Iterator[str]:
    yield piece.decode("latin-1")
    # `repr` of bytes escapes a single quote only if there is a double quote as well.
    escaped = "".join("'" if byte == 0x27 else repr(bytes([byte]))[2:-1] for byte in piece)
    yield escaped
    yield escaped.replace("'", r"\'")
    yield piece.hex()
    yield piece.hex(" ")
    yield ", ".join(map(str, piece))
    # The base64 of a piece depends on the number of bytes before it, modulo three.
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + piece).decode().rstrip("=")
        # The first characters belong to the bytes before as well, the last one to the bytes after.
        inner = encoded[(0, 2, 3)[before] : len(encoded) if (before + len(piece)) % 3 == 0 else -1]
        yield inner
        yield inner.translate(str.maketrans("+/", "-_"))


def _windows(secret: AnyStr) -> Iterator[AnyStr]:
    return (secret[i : i + PIECE] for i in range(len(secret) - PIECE + 1))


def encoded_pieces(secret: str | bytes) -> Iterator[str]:
    """Every piece of `secret` in every encoding."""
    if isinstance(secret, str):
        for text in _windows(secret):
            yield from _text_encodings(text)
    for raw in _windows(secret.encode() if isinstance(secret, str) else secret):
        yield from _byte_encodings(raw)


class SecretSearch:
    """Search for secrets, each with a name; upper and lower case are equal.

    Args:
        secrets: The secrets by name. Pass an API key without the prefix that all API keys share.
    """

    def __init__(self, **secrets: str | bytes) -> None:
        #: The pieces by their first characters, so that each position of a text costs one look-up.
        self._pieces: dict[str, set[tuple[str, str]]] = {}
        for name, secret in secrets.items():
            for piece in map(str.lower, encoded_pieces(secret)):
                self._pieces.setdefault(piece[:PIECE], set()).add((piece, name))

    def __call__(self, output: str | bytes) -> set[str]:
        """The names of the secrets of which `output` contains a piece."""
        if isinstance(output, bytes):
            return self(output.decode("latin-1")) | self(output.decode("utf-8", "replace"))
        text = output.lower()
        candidates = self._pieces.keys() & {text[i : i + PIECE] for i in range(len(text) - PIECE + 1)}
        return {name for start in candidates for piece, name in self._pieces[start] if piece in text}

    def find(self, representations: Iterable[tuple[str, str | bytes]]) -> list[str]:
        """Each secret that is found, and the name of the representation that contains it."""
        return [f"{secret} in {name}" for name, output in representations for secret in sorted(self(output))]
