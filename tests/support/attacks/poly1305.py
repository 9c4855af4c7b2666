"""Compute Poly1305's one-time key from two items that were sealed with it.

The key is a point r and a mask s. An item's tag is a polynomial whose coefficients are the ciphertext's blocks, at the
point r modulo 2^130 - 5, plus s modulo 2^128 (RFC 8439, section 2.5). The difference of two tags with
one key does not contain s, and r is a root of the difference of the polynomials. This needs no secret, but two items
with one nonce.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Final

TAG_BYTES: Final = 16
P: Final = 2**130 - 5

#: The bits that may be set in r.
CLAMP: Final = 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF

#: Coefficients modulo P, the constant one first, the last one not 0.
Polynomial = list[int]


def tag(ciphertext: bytes, r: int, s: int) -> bytes:
    """The XChaCha20-Poly1305 tag of a ciphertext without associated data."""
    return ((_value(_polynomial(ciphertext), r) + s) % 2**128).to_bytes(16, "little")


def one_time_key(one: bytes, other: bytes) -> tuple[int, int]:
    """r and s, from two sealed items (ciphertext and tag each) of one key and nonce.

    Raises:
        ValueError: They were sealed with two keys or nonces.
    """
    (a, tag_a), (b, tag_b) = _parts(one), _parts(other)
    difference = _subtract(a, b)
    # Both sums were below 2^130 before s was added, modulo 2^128.
    for carry in range(-4, 5):
        equation = _trimmed([(difference[0] - (tag_a - tag_b) - carry * 2**128) % P, *difference[1:]])
        for r in _roots(equation):
            if r & ~CLAMP == 0:
                return r, (tag_a - _value(a, r)) % 2**128
    raise ValueError("no key fits both")


def _parts(sealed: bytes) -> tuple[Polynomial, int]:
    return _polynomial(sealed[:-TAG_BYTES]), int.from_bytes(sealed[-TAG_BYTES:], "little")


def _polynomial(ciphertext: bytes) -> Polynomial:
    padded = ciphertext + bytes(-len(ciphertext) % 16)
    data = padded + (0).to_bytes(8, "little") + len(ciphertext).to_bytes(8, "little")
    blocks = [int.from_bytes(data[at : at + 16], "little") + 2**128 for at in range(0, len(data), 16)]
    return [0, *reversed(blocks)]


def _value(f: Polynomial, x: int) -> int:
    value = 0
    for coefficient in reversed(f):
        value = (value * x + coefficient) % P
    return value


def _roots(f: Polynomial) -> Iterator[int]:
    """Every root of `f` modulo P, each once."""
    # x^P - x is the product of all x - a: what it has in common with f is the product of f's roots.
    yield from _split(_common(_subtract(_power([0, 1], P, f), [0, 1]), f))


def _split(f: Polynomial) -> Iterator[int]:
    # Cantor and Zassenhaus: half of all a make (x + a)^((P - 1) / 2) one at a given root.
    if len(f) == 2:
        yield -f[0] * pow(f[1], -1, P) % P
    elif len(f) > 2:
        part = [1]
        while len(part) in (1, len(f)):
            shifted = [random.randrange(P), 1]
            part = _common(_subtract(_power(shifted, (P - 1) // 2, f), [1]), f)
        yield from _split(part)
        yield from _split(_divided(f, part)[0])


def _power(base: Polynomial, exponent: int, modulus: Polynomial) -> Polynomial:
    result = [1]
    for bit in bin(exponent)[2:]:
        result = _divided(_product(result, result), modulus)[1]
        if bit == "1":
            result = _divided(_product(result, base), modulus)[1]
    return result


def _common(f: Polynomial, g: Polynomial) -> Polynomial:
    while g:
        f, g = g, _divided(f, g)[1]
    return f


def _divided(f: Polynomial, g: Polynomial) -> tuple[Polynomial, Polynomial]:
    inverse = pow(g[-1], -1, P)
    rest, quotient = list(f), [0] * max(0, len(f) - len(g) + 1)
    for at in reversed(range(len(quotient))):
        factor = quotient[at] = rest[at + len(g) - 1] * inverse % P
        if factor:
            for place, coefficient in enumerate(g, at):
                rest[place] = (rest[place] - factor * coefficient) % P
    return quotient, _trimmed(rest[: len(g) - 1])


def _product(f: Polynomial, g: Polynomial) -> Polynomial:
    if not f or not g:
        return []
    product = [0] * (len(f) + len(g) - 1)
    for at, a in enumerate(f):
        for place, b in enumerate(g, at):
            product[place] += a * b
    return _trimmed([each % P for each in product])


def _subtract(f: Polynomial, g: Polynomial) -> Polynomial:
    size = max(len(f), len(g))
    f, g = [*f, *[0] * (size - len(f))], [*g, *[0] * (size - len(g))]
    return _trimmed([(a - b) % P for a, b in zip(f, g, strict=True)])


def _trimmed(f: Polynomial) -> Polynomial:
    while f and not f[-1]:
        f.pop()
    return f
