"""The search itself: it finds what it is to find, and nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import pickle
from collections.abc import Callable

import pytest
from support.security.encodings import Search

TEXT = 'Zäpfchen-Quillonbury "4711"'
RAW = hashlib.sha256(b"a secret").digest()
SEARCH = Search(text=TEXT, raw=RAW, key="v8Jq2LmXw5TzRb1N")


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
        lambda text: text[:12],
        lambda text: text[-12:],
    ],
)
def test_a_text_is_found_in_every_form(show: Callable[[str], str | bytes]) -> None:
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
        lambda raw: raw.hex()[:12],
        lambda raw: raw.hex()[-12:],
        lambda raw: b"\0\xff" + raw[:16] + b"\xfe",
    ],
)
def test_bytes_are_found_in_every_form(show: Callable[[bytes], str | bytes]) -> None:
    assert SEARCH(show(RAW)) == {"raw"}


@pytest.mark.parametrize("shown", ["", "sk_test_", TEXT[:11], RAW.hex()[:11], b"\0" * 100, "0" * 100])
def test_what_is_no_piece_of_a_secret_is_not_found(shown: str | bytes) -> None:
    assert SEARCH(shown) == set()
