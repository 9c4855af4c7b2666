"""XChaCha20-Poly1305 under the secret one KEM run agreed on.

libsodium's `crypto_aead_xchacha20poly1305_ietf` through PyNaCl: a 24-byte nonce, no associated data, the
16-byte tag behind the ciphertext. The protocol fixes this construction, including that a whole reply
is sealed with the request's own nonce; what follows from that is in SECURITY.md.

A secret here is `bytes`: PyNaCl takes no other form, and Python cannot overwrite it. Wiping a buffer after
each use would leave the copies made from it, hashlib's and PyNaCl's own, and costs every chunk (a
copy is 0.05 µs of 3). So a secret is dropped with the object that holds it, and its memory is reused when it is.

The rule of this file: a failure to open has one message, and no object here shows what it holds.
"""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING, Any, Final, NoReturn

from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt as _decrypt,
)
from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_encrypt as _encrypt,
)
from nacl.exceptions import CryptoError

from prem_core._crypto.redaction import without_traceback
from prem_core._crypto.xwing import CIPHER_TEXT_BYTES, SHARED_SECRET_BYTES, PublicKey
from prem_core._errors import ConfigurationError, DecryptionError, EnclaveKeyError
from prem_core._protocol.assumptions import decode_binary

if TYPE_CHECKING:
    import os


_SHA256: Final = re.compile("[0-9a-fA-F]{64}")


class EncryptionKeys:
    """One KEM run's result: the shared secret, and the cipher text that carries it to the enclave.

    By default every request gets its own. A pair made beforehand (`generate_encryption_keys`) may be
    reused for many requests, as the TypeScript SDK's `encryptionKeys` option does: it saves about
    0.1 ms a request, and whoever learns the secret of one exchange can then open all of them.

    Args:
        shared_secret: 32 bytes; or their hex.
        cipher_text: 1120 bytes; or their hex.
        enclave_fingerprint: SHA-256 of the enclave key they were made for, 64 hex digits, where it is known.

    Raises:
        ConfigurationError: A value has the wrong length or is not hex.
    """

    __slots__ = ("_cipher_text", "_enclave_fingerprint", "_shared_secret")

    @without_traceback
    def __init__(
        self, shared_secret: bytes | str, cipher_text: bytes | str, *, enclave_fingerprint: str | None = None
    ) -> None:
        self._shared_secret = _exactly(shared_secret, SHARED_SECRET_BYTES, "shared_secret")
        self._cipher_text = _exactly(cipher_text, CIPHER_TEXT_BYTES, "cipher_text")
        if enclave_fingerprint is not None and not _SHA256.fullmatch(enclave_fingerprint):
            raise ConfigurationError("enclave_fingerprint must be 64 hex digits")
        self._enclave_fingerprint = enclave_fingerprint and enclave_fingerprint.lower()

    @classmethod
    def encapsulate(cls, public_key: PublicKey) -> EncryptionKeys:
        """A fresh pair for the enclave that holds `public_key`'s match.

        Raises:
            EnclaveKeyError: The key has the right size and cannot be used.
        """
        try:
            return cls(*public_key.encapsulate(), enclave_fingerprint=public_key.fingerprint())
        except ValueError:
            raise EnclaveKeyError("the enclave's public key cannot be used") from None

    @property
    def shared_secret(self) -> bytes:
        """The secret, 32 bytes. It never goes on the wire; keep it out of logs."""
        return self._shared_secret

    @property
    def cipher_text(self) -> bytes:
        """What goes on the wire, 1120 bytes."""
        return self._cipher_text

    @property
    def enclave_fingerprint(self) -> str | None:
        """SHA-256 of the enclave key the pair was made for, as `PublicKey.fingerprint` gives it; None if unknown."""
        return self._enclave_fingerprint

    def save(
        self, path: str | os.PathLike[str], kek: bytes | str | None = None, *, overwrite: bool = False
    ) -> None:
        """Keep the pair in a file, sealed with your master key; `prem_core/keyfile.py` has the format.

        The file is its owner's only (mode 0600), and is written whole or not at all.

        Args:
            path: Where. A link is neither followed nor replaced.
            kek: 32 bytes; or their hex, or base64. Environment: CLIENT_KEK.
            overwrite: Replace a file that is there.

        Raises:
            ConfigurationError: There is no such KEK; a file is there; it cannot be written.
        """
        # Files and the environment are the edge, which only this method and the next one need.
        from prem_core import _config
        from prem_core._crypto import keyfile

        try:
            keyfile.write(path, self, _config.resolve_kek(kek), overwrite=overwrite)
        finally:
            del kek  # a traceback may show locals

    @classmethod
    def load(cls, path: str | os.PathLike[str], kek: bytes | str | None = None) -> EncryptionKeys:
        """The pair that `save` kept.

        Args:
            path: The file.
            kek: As for `save`.

        Raises:
            ConfigurationError: There is no such file or KEK; others than the owner may read or write the file;
                the KEK is not the one it was sealed with, or the file is damaged.
        """
        from prem_core import _config
        from prem_core._crypto import keyfile

        try:
            return keyfile.read(path, _config.resolve_kek(kek))
        finally:
            del kek

    def __repr__(self) -> str:
        return "EncryptionKeys(shared_secret=**********)"

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, EncryptionKeys)
            and secrets.compare_digest(self._shared_secret, other._shared_secret)
            and self._cipher_text == other._cipher_text
        )

    def __hash__(self) -> int:
        return hash(self._cipher_text)

    def __reduce__(self) -> NoReturn:
        raise TypeError("EncryptionKeys hold a secret and are not pickled")

    # Immutable, so a copy is the object itself; copying would otherwise go through pickle.
    def __copy__(self) -> EncryptionKeys:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> EncryptionKeys:
        return self

    def seal(self, plaintext: bytes, nonce: bytes) -> bytes:
        """`plaintext` sealed under the secret: the ciphertext and, behind it, the 16-byte tag."""
        return _encrypt(plaintext, None, nonce, self._shared_secret)

    def open(self, sealed: bytes, nonce: bytes) -> bytes:
        """The plaintext of `sealed`.

        Raises:
            DecryptionError: It was not sealed under this secret and nonce, or was changed since.
        """
        try:
            return _decrypt(sealed, None, nonce, self._shared_secret)
        except (CryptoError, ValueError):
            pass
        # Outside the handler, and not out of a local: either would keep the secret in a traceback's frames.
        raise DecryptionError


def _exactly(value: bytes | str, length: int, name: str) -> bytes:
    if isinstance(value, str):
        try:
            value = decode_binary(value)
        except ValueError:
            raise ConfigurationError(f"{name} is not hex") from None
    if not isinstance(value, bytes | bytearray) or len(value) != length:
        raise ConfigurationError(f"{name} must be {length} bytes, or {length * 2} hex digits")
    return bytes(value)
