"""Changes to an input: to its bytes, and to the JSON in it.

What stands between ``<<`` and ``>>`` in an input is plaintext that the target seals before it is read, so that
a change reaches what is inside an answer and not only its tag.
"""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

#: Plaintext to be sealed.
PLAIN: Final = re.compile(rb"<<(.*?)>>", re.DOTALL)

#: Values that something does not expect.
VALUES: Final[tuple[Any, ...]] = (
    None, True, False, 0, -1, 1, 400, 2**31, 2**63, -(2**63), 10**40, 0.5, -0.0, 1e308, float("inf"), float("nan"),
    "", " ", "x", "0", "\0", "\n", "é", "你", "\U0001f600", "\ud800", "x" * 600, "[DONE]", "null", "{}", "00", "0g",
    "2026-01-01", "Wed, 21 Oct 2026 07:28:00 GMT", "a\r\nb: c", "the session key has expired",
    [], {}, [None], [[]], [{}], {"": None}, {"error": {"message": "m", "type": "t", "code": 1}},
)  # fmt: skip

#: Bytes that something may read in a way of its own.
TOKENS: Final = (
    b"\n", b"\r", b"\r\n", b"\n\n", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xc3", b"\xed\xa0\x80", b":", b": ", b"data: ",
    b"event: ", b"event: error\n", b"event: done\ndata: [DONE]\n\n", b"[DONE]", b"<<", b">>", b"{", b"}", b"[", b"]",
    b'"', b"\\u", b"\\ud800", b"null", b"NaN", b"-", b"1e999", b"0" * 400, b"9" * 5000, b"true", b"00", b"zz",
)  # fmt: skip

MAX_BYTES: Final = 24 * 1024


def mutated(data: bytes, others: Sequence[bytes], rng: random.Random, tokens: Sequence[bytes] = ()) -> bytes:
    """`data` with one to four changes; `others` lend pieces of themselves."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        change = rng.choice((_in_json, _in_json, _in_bytes, _in_bytes, _in_digits))
        data = change(data, others, rng, tokens)
    return data[:MAX_BYTES]


# --- bytes


def _in_bytes(data: bytes, others: Sequence[bytes], rng: random.Random, tokens: Sequence[bytes]) -> bytes:
    at = rng.randint(0, len(data))
    length = rng.choice((1, 1, 2, 4, 8, rng.randint(1, 64)))
    kind = rng.randrange(9)
    if kind == 0 and data:
        at = rng.randrange(len(data))
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + rng.randbytes(1) + data[at + 1 :]
    if kind == 2:
        return data[:at] + rng.choice((*TOKENS, *tokens, *tokens)) + data[at:]
    if kind == 3:
        return data[:at] + data[at + length :]
    if kind == 4:
        return data[:at] + data[at : at + length] * rng.choice((2, 3, 50)) + data[at + length :]
    if kind == 5:
        return data[:at]
    if kind == 6:
        other = rng.choice(others) if others else data
        start = rng.randint(0, len(other))
        return data[:at] + other[start : start + rng.randint(1, 200)] + data[at:]
    if kind == 7:
        other = rng.choice(others) if others else data
        return data[:at] + other[rng.randint(0, len(other)) :]
    depth = rng.choice((5, 100, 300, 600, rng.randint(900, 1000), rng.randint(1, 2000)))
    opening, closing = rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
    return data[:at] + opening * depth + b"1" + closing * depth + data[at:]


def _in_digits(data: bytes, others: Sequence[bytes], rng: random.Random, tokens: Sequence[bytes]) -> bytes:
    """Another number where there is one, or a hex digit in the other case."""
    found = list(re.finditer(rb"\d+|[0-9a-fA-F]{8,}", data))
    if not found:
        return _in_bytes(data, others, rng, tokens)
    match = rng.choice(found)
    old = match[0]
    number = rng.choice(
        (b"0", b"1", b"-1", b"255", b"65536", b"4294967296", b"99999999999999999999", old + b"0")
    )
    new = rng.choice((number, old.swapcase(), old[:-1], old + old[-1:]))
    return data[: match.start()] + new + data[match.end() :]


# --- JSON


def _in_json(data: bytes, others: Sequence[bytes], rng: random.Random, tokens: Sequence[bytes]) -> bytes:
    """A change to some JSON: the input's own, or that of a plaintext in it."""
    plain = list(PLAIN.finditer(data))
    if plain and rng.random() < 0.7:
        match = rng.choice(plain)
        changed = _tree_changed(match[1], rng)
        if changed is not None:
            return data[: match.start(1)] + changed + data[match.end(1) :]
    # Plaintexts are JSON strings while the JSON around them is changed.
    held: list[bytes] = []

    def hold(match: re.Match[bytes]) -> bytes:
        held.append(match[0])
        return b"@@%d@@" % (len(held) - 1)

    changed = _tree_changed(PLAIN.sub(hold, data), rng)
    if changed is None:
        return _in_bytes(data, others, rng, tokens)
    for number, each in enumerate(held):
        changed = changed.replace(b"@@%d@@" % number, each)
    return changed


def _tree_changed(text: bytes, rng: random.Random) -> bytes | None:
    try:
        tree = json.loads(text)
        for _ in range(rng.choice((1, 1, 2))):
            tree = _changed(tree, rng)
        return json.dumps(tree, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return None


def _changed(tree: Any, rng: random.Random) -> Any:
    root = [tree]
    places = list(_places(root))
    holder, key = rng.choice(places)
    change: Callable[[], None] = rng.choice(
        (
            lambda: _put(holder, key, _value(rng)),
            lambda: _put(holder, key, _at(*rng.choice(places))),
            lambda: _put(holder, key, [holder[key]]),
            lambda: _put(holder, key, {rng.choice(_names(places)): holder[key]}),
            lambda: _put(holder, key, _deep(rng)),
            lambda: _left_out(holder, key),
            lambda: _renamed(holder, key, rng.choice(_names(places))),
            lambda: _added(holder, rng.choice(_names(places)), _value(rng)),
        )
    )
    change()
    return root[0]


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    pending = [tree]
    while pending:
        holder = pending.pop()
        for key, value in list(holder.items()) if isinstance(holder, dict) else list(enumerate(holder)):
            yield holder, key
            if isinstance(value, dict | list):
                pending.append(value)


def _at(holder: Any, key: Any) -> Any:
    # Through JSON: a tree that held itself could not be written.
    return json.loads(json.dumps(holder[key]))


def _value(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(VALUES))


def _names(places: Sequence[tuple[Any, Any]]) -> list[str]:
    return [key for _, key in places if isinstance(key, str)] + ["x", "type", "error", "message"]


def _put(holder: Any, key: Any, value: Any) -> None:
    holder[key] = value


def _left_out(holder: Any, key: Any) -> None:
    if isinstance(holder, dict) or len(holder) > 1:
        del holder[key]


def _renamed(holder: Any, key: Any, name: str) -> None:
    if isinstance(holder, dict):
        holder[name] = holder.pop(key)


def _added(holder: Any, name: str, value: Any) -> None:
    if isinstance(holder, dict):
        holder[name] = value
    else:
        holder.append(value)


def _deep(rng: random.Random) -> Any:
    value: Any = 1
    for _ in range(rng.choice((10, 150, 300, 600, rng.randint(1, 960)))):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value
