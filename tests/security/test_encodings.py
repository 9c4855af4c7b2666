"""The search for secrets finds every piece in every encoding, and nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import pickle
from collections.abc import Callable

import pytest
from support.security.encodings import PIECE, SecretSearch

TEXT = 'Zäpfchen-Quillonbury "4711"'
RAW = hashlib.sha256(b"a secret").digest()
SEARCH = SecretSearch(text=TEXT, raw=RAW, key="v8Jq2LmXw5TzRb1N")


@pytest.mark.parametrize(
    "show",
    [
        str,
        repr,
        ascii,
        json.dumps,
        str.upper,
        str.encode,
        lambda text: json.dumps(text, ensure_ascii=False),
        lambda text: repr(text.encode()),
        lambda text: text.encode().hex(),
        lambda text: base64.b64encode(text.encode()).decode(),
        lambda text: pickle.dumps({"x": text}),
        lambda text: text[:PIECE],
        lambda text: text[-PIECE:],
    ],
)
def test_a_text_is_found_in_every_encoding(show: Callable[[str], str | bytes]) -> None:
    assert SEARCH(show(TEXT)) == {"text"}


@pytest.mark.parametrize(
    "show",
    [
        repr,
        bytes.hex,
        lambda raw: raw.hex().upper(),
        lambda raw: raw.hex(" "),
        lambda raw: raw,
        lambda raw: pickle.dumps([raw]),
        lambda raw: str(list(raw)),
        lambda raw: repr(bytearray(raw)),
        lambda raw: base64.b64encode(raw),
        lambda raw: base64.urlsafe_b64encode(raw),
        lambda raw: base64.b64encode(b"a" + raw + b"b"),
        lambda raw: base64.urlsafe_b64encode(b"ab" + raw + b"c"),
        lambda raw: raw[:PIECE].hex(),
        lambda raw: repr(raw[-PIECE:]),
        lambda raw: str(list(raw[7 : 7 + PIECE])),
        lambda raw: b"\0\xff" + raw[:16] + b"\xfe",
        lambda raw: repr(b"it's \"" + raw),
    ],
)
def test_bytes_are_found_in_every_encoding(show: Callable[[bytes], str | bytes]) -> None:
    assert SEARCH(show(RAW)) == {"raw"}


def test_every_piece_of_bytes_is_found_in_base64_at_every_offset() -> None:
    for start in range(len(RAW) - PIECE + 1):
        for before in range(3):
            encoded = base64.b64encode(b"." * before + RAW[start : start + PIECE] + b".")
            assert SEARCH(encoded) == {"raw"}


@pytest.mark.parametrize(
    "output",
    ["", "sk_test_", TEXT[: PIECE - 1], RAW[: PIECE - 1].hex(), repr(RAW[:8]), b"\0" * 100, "0" * 100],
)
def test_less_than_a_piece_is_not_found(output: str | bytes) -> None:
    assert SEARCH(output) == set()
