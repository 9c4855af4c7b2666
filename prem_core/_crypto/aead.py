"""XChaCha20-Poly1305: sizes and nonces."""

from __future__ import annotations

import secrets
from typing import Final

NONCE_BYTES: Final = 24
TAG_BYTES: Final = 16


def new_nonce() -> bytes:
    """24 fresh random bytes: one for every sealed item of every attempt."""
    return secrets.token_bytes(NONCE_BYTES)
