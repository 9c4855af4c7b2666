"""The shared secret of one KEM run, and what is sealed and opened with it.

XChaCha20-Poly1305 with a 24-byte nonce and no associated data. The protocol fixes this construction, including that a
whole streamed response is sealed with the request's own nonce; SECURITY.md explains the consequences.

A secret is `bytes` here: PyNaCl accepts nothing else, and Python cannot overwrite it. Wiping a buffer after each use
would leave the copies that hashlib and PyNaCl make, and would slow down every chunk. A secret is dropped with its
object.
"""

from __future__ import annotations

import re
import secrets
from binascii import unhexlify
from typing import TYPE_CHECKING, Any, Final, NoReturn

from prem_core._crypto import keyfile
from prem_core._crypto.aead import CryptoError, open_sealed, seal
from prem_core._crypto.redaction import without_traceback
from prem_core._crypto.xwing import CIPHER_TEXT_BYTES, SHARED_SECRET_BYTES, PublicKey
from prem_core._errors import ConfigurationError, DecryptionError, EnclaveKeyError

if TYPE_CHECKING:
    import os


_SHA256: Final = re.compile("[0-9a-fA-F]{64}")


class EncryptionKeys:
    """The result of one KEM run: the shared secret, and the cipher text that carries it to the enclave.

    By default every request gets its own. A pair made in advance (`generate_encryption_keys`) may be reused for many
    requests, as with the TypeScript SDK's `encryptionKeys` option. That saves about 0.1 ms a request, and lets
    anyone who learns the secret open all of these requests.

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
            EnclaveKeyError: The key has the right size but is invalid.
        """
        made = cls.__new__(cls)
        try:
            # Not through __init__: these lengths are right, and this runs once for every request.
            made._shared_secret, made._cipher_text = public_key.encapsulate()
        except ValueError:
            raise EnclaveKeyError("the enclave's public key is invalid") from None
        made._enclave_fingerprint = public_key.fingerprint()
        return made

    @property
    def shared_secret(self) -> bytes:
        """The secret, 32 bytes. It is never sent; keep it out of logs."""
        return self._shared_secret

    @property
    def cipher_text(self) -> bytes:
        """The X-Wing cipher text that is sent, 1120 bytes."""
        return self._cipher_text

    @property
    def enclave_fingerprint(self) -> str | None:
        """SHA-256 of the enclave key the pair was made for, as `PublicKey.fingerprint` gives it; None if unknown."""
        return self._enclave_fingerprint

    @without_traceback
    def save(
        self, path: str | os.PathLike[str], kek: bytes | str | None = None, *, overwrite: bool = False
    ) -> None:
        """Keep the pair in a file, sealed with your master key; `prem_core/_crypto/keyfile.py` has the format.

        Only the owner can read the file (mode 0600). The write is atomic.

        Args:
            path: The file. A link is neither followed nor replaced.
            kek: 32 bytes; or their hex, or base64. Environment: CLIENT_KEK.
            overwrite: Replace an existing file.

        Raises:
            ConfigurationError: There is no KEK, or it is not valid; a file exists; it cannot be written.
        """
        keyfile.write(
            path,
            self._shared_secret,
            self._cipher_text,
            self._enclave_fingerprint,
            keyfile.resolve_kek(kek),
            overwrite=overwrite,
        )

    @classmethod
    @without_traceback
    def load(cls, path: str | os.PathLike[str], kek: bytes | str | None = None) -> EncryptionKeys:
        """The pair in a file that `save` wrote.

        Args:
            path: The file.
            kek: As for `save`.

        Raises:
            ConfigurationError: There is no such file or KEK; the file belongs to another user, or other users may
                access it; the KEK is not the one it was sealed with, or the file is damaged.
        """
        file = keyfile.read_header(path)
        file.check_access()
        secret = file.open(keyfile.resolve_kek(kek))
        return cls(secret, file.cipher_text, enclave_fingerprint=file.enclave_fingerprint)

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
        raise TypeError("EncryptionKeys cannot be pickled: they contain a secret")

    # Immutable, so a copy is the object itself; copying would otherwise go through pickle.
    def __copy__(self) -> EncryptionKeys:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> EncryptionKeys:
        return self

    def seal(self, plaintext: bytes, nonce: bytes) -> bytes:
        """`plaintext` sealed under the secret: the ciphertext and, behind it, the 16-byte tag."""
        return seal(plaintext, None, nonce, self._shared_secret)

    def open(self, sealed: bytes, nonce: bytes) -> bytes:
        """The plaintext of `sealed`.

        Raises:
            DecryptionError: It was not sealed under this secret and nonce, or was changed since.
        """
        try:
            return open_sealed(sealed, None, nonce, self._shared_secret)
        except (CryptoError, ValueError):
            pass
        # Outside the handler, and not out of a local: either would keep the secret in a traceback's frames.
        raise DecryptionError


def _exactly(value: bytes | str, length: int, name: str) -> bytes:
    if isinstance(value, str):
        try:
            value = unhexlify(value)
        except ValueError:
            raise ConfigurationError(f"{name} is not hex") from None
    if not isinstance(value, bytes | bytearray) or len(value) != length:
        raise ConfigurationError(f"{name} must be {length} bytes, or {length * 2} hex digits")
    return bytes(value)
