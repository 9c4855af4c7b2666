"""X-Wing: the hybrid KEM that gives each request its secret.

ML-KEM-768 and X25519, combined as in draft-connolly-cfrg-xwing-kem (section 5). The primitives are `cryptography`'s;
this file only combines them. An attacker has to break both to learn the secret.

Bytes in, bytes out, every length checked. No repr shows a secret.
"""

from __future__ import annotations

import hashlib
from typing import Final

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

_MLKEM_PUBLIC_BYTES: Final = 1184
_MLKEM_CIPHER_BYTES: Final = 1088
_X25519_BYTES: Final = 32

#: Sizes in bytes, from the draft's section 5.
SEED_BYTES: Final = 32
PUBLIC_KEY_BYTES: Final = _MLKEM_PUBLIC_BYTES + _X25519_BYTES
CIPHER_TEXT_BYTES: Final = _MLKEM_CIPHER_BYTES + _X25519_BYTES
SHARED_SECRET_BYTES: Final = 32

#: The draft's domain separator, "\\.//^\\" drawn as an x-wing.
_LABEL: Final = bytes.fromhex("5c2e2f2f5e5c")


def _combine(ss_mlkem: bytes, ss_x25519: bytes, ct_x25519: bytes, pk_x25519: bytes) -> bytes:
    return hashlib.sha3_256(ss_mlkem + ss_x25519 + ct_x25519 + pk_x25519 + _LABEL).digest()


class PublicKey:
    """An enclave's X-Wing public key: 1216 bytes, ML-KEM-768 (1184) then X25519 (32).

    Parsed once, so that encapsulating costs about 0.1 ms. Safe to share between threads.

    Raises:
        ValueError: The bytes are not 1216 long, or not a key.
    """

    __slots__ = ("_mlkem", "_raw", "_sha256", "_x25519")

    def __init__(self, raw: bytes) -> None:
        if len(raw) != PUBLIC_KEY_BYTES:
            raise ValueError(f"an X-Wing public key is {PUBLIC_KEY_BYTES} bytes long, not {len(raw)}")
        self._raw = bytes(raw)
        self._mlkem = MLKEM768PublicKey.from_public_bytes(self._raw[:_MLKEM_PUBLIC_BYTES])
        self._x25519 = X25519PublicKey.from_public_bytes(self._raw[_MLKEM_PUBLIC_BYTES:])
        self._sha256 = hashlib.sha256(self._raw).hexdigest()

    def __bytes__(self) -> bytes:
        return self._raw

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PublicKey) and other._raw == self._raw

    def __hash__(self) -> int:
        return hash(self._raw)

    def __repr__(self) -> str:
        return f"PublicKey(sha256={self.fingerprint()[:16]}…)"

    def __reduce__(self) -> tuple[type[PublicKey], tuple[bytes]]:
        return PublicKey, (self._raw,)

    def fingerprint(self) -> str:
        """SHA-256 of the key, lower-case hex. Compare it before you pin a key."""
        return self._sha256

    def encapsulate(self) -> tuple[bytes, bytes]:
        """A fresh secret, shared with the holder of the private key.

        Returns:
            The shared secret (32 bytes, to be kept) and the cipher text (1120 bytes, to be sent).

        Raises:
            ValueError: The key's X25519 half is a point of small order.
        """
        ss_mlkem, ct_mlkem = self._mlkem.encapsulate()
        ephemeral = X25519PrivateKey.generate()
        ct_x25519 = ephemeral.public_key().public_bytes_raw()
        ss_x25519 = ephemeral.exchange(self._x25519)
        secret = _combine(ss_mlkem, ss_x25519, ct_x25519, self._raw[_MLKEM_PUBLIC_BYTES:])
        return secret, ct_mlkem + ct_x25519


class PrivateKey:
    """The enclave's private key, derived from a 32-byte seed by SHAKE256 (section 5.2 of the draft).

    Only the embedded enclave and the tests have one.

    Raises:
        ValueError: The seed is not 32 bytes long.
    """

    __slots__ = ("_mlkem", "_public", "_x25519")

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise ValueError(f"an X-Wing private key is a seed of {SEED_BYTES} bytes, not {len(seed)}")
        expanded = hashlib.shake_256(seed).digest(96)
        self._mlkem = MLKEM768PrivateKey.from_seed_bytes(expanded[:64])
        self._x25519 = X25519PrivateKey.from_private_bytes(expanded[64:])
        self._public = PublicKey(
            self._mlkem.public_key().public_bytes_raw() + self._x25519.public_key().public_bytes_raw()
        )

    def __repr__(self) -> str:
        return f"PrivateKey(public={self._public!r})"

    def __reduce__(self) -> tuple[type[PrivateKey], tuple[bytes]]:
        raise TypeError("a private key cannot be pickled")

    def public_key(self) -> PublicKey:
        """The public key for it."""
        return self._public

    def decapsulate(self, cipher_text: bytes) -> bytes:
        """The shared secret (32 bytes) in `cipher_text` (1120 bytes).

        A cipher text for another key gives another secret, not an error: ML-KEM rejects implicitly. Opening with
        that secret then fails.

        Raises:
            ValueError: The cipher text has the wrong length or a small-order point.
        """
        if len(cipher_text) != CIPHER_TEXT_BYTES:
            raise ValueError(f"an X-Wing cipher text is {CIPHER_TEXT_BYTES} bytes, not {len(cipher_text)}")
        ct_mlkem, ct_x25519 = cipher_text[:_MLKEM_CIPHER_BYTES], cipher_text[_MLKEM_CIPHER_BYTES:]
        ss_mlkem = self._mlkem.decapsulate(ct_mlkem)
        ss_x25519 = self._x25519.exchange(X25519PublicKey.from_public_bytes(ct_x25519))
        return _combine(ss_mlkem, ss_x25519, ct_x25519, bytes(self._public)[_MLKEM_PUBLIC_BYTES:])
