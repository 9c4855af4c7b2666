"""XChaCha20-Poly1305 (libsodium's `crypto_aead_xchacha20poly1305_ietf`, through PyNaCl).

A 32-byte key, a 24-byte nonce, optional associated data. The sealed form is the ciphertext followed by a 16-byte tag.
"""

from __future__ import annotations

import functools
import os
from typing import Final

from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_decrypt as open_sealed
from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_encrypt as seal
from nacl.exceptions import CryptoError

__all__ = ["NONCE_BYTES", "TAG_BYTES", "CryptoError", "new_nonce", "open_sealed", "seal"]

NONCE_BYTES: Final = 24
TAG_BYTES: Final = 16

#: 24 fresh random bytes: one nonce for every sealed item of every attempt. 24 bytes are enough to draw them at random.
new_nonce = functools.partial(os.urandom, NONCE_BYTES)
