"""A file with encryption keys, its secret sealed with the client's own master key (CLIENT_KEK).

A file has 1242 bytes; numbers are big-endian::

    offset  bytes
         0      8  magic, "PREMKEYS"
         8      2  version, 1
        10      8  time of writing, seconds since 1970 (UTC)
        18     32  SHA-256 of the enclave's public key; zeros if it is not known
        50   1120  the cipher text: public, sent with every request
      1170     24  nonce, fresh for every file
      1194     48  the shared secret (32), sealed, and the tag (16)

The secret is sealed with XChaCha20-Poly1305 under the KEK itself: 32 random bytes need no key derivation, and
passwords are not accepted. The first 1170 bytes are associated data, so they cannot be changed either; until the
file is opened, they are not proven. A random nonce of 24 bytes does not repeat, however many files are written.

The text of a KEK file is overwritten in memory after it was read. Nothing else can be: PyNaCl takes and returns
`bytes`, which Python cannot overwrite, and the environment keeps CLIENT_KEK for as long as the process runs. So no
object here keeps a KEK, and the errors of these functions keep no frame that holds one.

Writes are atomic. Files are created with mode 0600, and files that other users may access or own are rejected.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import stat
import struct
import time
from binascii import a2b_base64, unhexlify
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from prem_core._crypto.aead import NONCE_BYTES, TAG_BYTES, CryptoError, new_nonce, open_sealed, seal
from prem_core._crypto.files import write_atomically
from prem_core._crypto.redaction import without_traceback
from prem_core._crypto.xwing import CIPHER_TEXT_BYTES, SHARED_SECRET_BYTES
from prem_core._errors import ConfigurationError

Path = str | os.PathLike[str]

MAGIC: Final = b"PREMKEYS"
VERSION: Final = 1

_FINGERPRINT_BYTES: Final = 32
_HEADER: Final = struct.Struct(f">8sHQ{_FINGERPRINT_BYTES}s{CIPHER_TEXT_BYTES}s")
_VERSION_END: Final = 10

#: Bytes of a key file.
FILE_BYTES: Final = _HEADER.size + NONCE_BYTES + SHARED_SECRET_BYTES + TAG_BYTES

#: Bytes of a KEK file at most: 64 hex digits, and room for space around them.
_KEK_FILE_BYTES: Final = 128

#: The environment variable for the client's own master key. It seals what is kept on disk; no request uses it.
KEK_VARIABLE: Final = "CLIENT_KEK"
KEK_BYTES: Final = 32

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class KeyFile:
    """A key file as one sees it without the KEK. Nothing here is proven until `open`.

    Attributes:
        created: When it was written.
        enclave_fingerprint: SHA-256 of the enclave key that the pair was made for, hex; None where not known.
        cipher_text: The pair's public half.
        mode: The file's permissions, for example 0o600.
        owner: The user id of the file's owner.
    """

    path: str
    created: datetime
    enclave_fingerprint: str | None
    cipher_text: bytes = field(repr=False)
    mode: int
    owner: int
    _image: bytes = field(repr=False)
    version: int = VERSION

    def check_access(self) -> None:
        """Raise `ConfigurationError` if other users than this one and root may read, write or own the file."""
        _check_access(self.path, self.mode, self.owner)

    @without_traceback
    def open(self, kek: bytes) -> bytes:
        """The shared secret.

        Raises:
            ConfigurationError: The KEK is a different one, or the file was changed: these two cannot be distinguished.
        """
        header, nonce = self._image[: _HEADER.size], self._image[_HEADER.size : _HEADER.size + NONCE_BYTES]
        try:
            return open_sealed(self._image[_HEADER.size + NONCE_BYTES :], header, nonce, kek)
        except CryptoError:
            raise ConfigurationError(
                f"{quote_path(self.path)} does not open: the KEK is not the one it was sealed with, "
                "or the file is damaged"
            ) from None


@without_traceback
def write(
    path: Path,
    shared_secret: bytes,
    cipher_text: bytes,
    enclave_fingerprint: str | None,
    kek: bytes,
    *,
    overwrite: bool = False,
) -> None:
    """Keep a pair in a file, its secret sealed with `kek` (32 bytes).

    The write is atomic: a reader sees the old file, the new one, or none.

    Raises:
        ConfigurationError: A file exists and `overwrite` is False; `path` is a link or a folder; it
            cannot be written.
    """
    fingerprint = bytes.fromhex(enclave_fingerprint or "00" * _FINGERPRINT_BYTES)
    header = _HEADER.pack(MAGIC, VERSION, int(time.time()), fingerprint, cipher_text)
    nonce = new_nonce()
    _write(path, header + nonce + seal(shared_secret, header, nonce, kek), overwrite=overwrite)


def read_header(path: Path) -> KeyFile:
    """Read the unencrypted part of a key file, whatever its permissions.

    Raises:
        ConfigurationError: The file does not exist, is not a key file, or has another version.
    """
    path = os.fsdecode(path)
    buffer, length, status = _read(path, FILE_BYTES)
    image = bytes(buffer[:length])
    if not image.startswith(MAGIC) or len(image) < _VERSION_END:
        raise ConfigurationError(f"{quote_path(path)} is not an encryption-key file, or is damaged")
    version = int.from_bytes(image[len(MAGIC) : _VERSION_END])
    if version != VERSION:
        raise ConfigurationError(
            f"{quote_path(path)} is a key file of version {version}; this release reads version {VERSION}"
        )
    if len(image) != FILE_BYTES:
        raise ConfigurationError(f"{quote_path(path)} is damaged: a key file has {FILE_BYTES} bytes")
    _, _, seconds, fingerprint, cipher_text = _HEADER.unpack_from(image)
    try:
        created = _EPOCH + timedelta(seconds=seconds)
    except OverflowError:
        raise ConfigurationError(f"{quote_path(path)} is damaged: it contains an invalid date") from None
    known = fingerprint.hex() if any(fingerprint) else None
    return KeyFile(path, created, known, cipher_text, stat.S_IMODE(status.st_mode), status.st_uid, image)


@without_traceback
def resolve_kek(kek: bytes | bytearray | str | None = None) -> bytes:
    """The client's master key: `kek`, else the environment's CLIENT_KEK.

    Args:
        kek: 32 bytes; or 64 hex digits, or base64.

    Raises:
        ConfigurationError: There is no KEK, it has another form, or it is one byte repeated. The message never quotes
            it.
    """
    name = KEK_VARIABLE if kek is None else "kek"
    value = os.environ.get(KEK_VARIABLE, "").strip() or None if kek is None else kek
    if value is None:
        raise ConfigurationError(
            "no KEK: pass kek=… or set CLIENT_KEK (generate one with: openssl rand -hex 32)"
        )
    raw = bytes(value) if isinstance(value, bytes | bytearray) else None
    if isinstance(value, str):
        raw = decode_kek(value.strip())
    if raw is None or len(raw) != KEK_BYTES:
        raise ConfigurationError(f"{name} must be {KEK_BYTES} bytes: 64 hex digits, base64, or raw bytes")
    _check_not_repeated(name, raw)
    return raw


def decode_kek(text: str | memoryview) -> bytes | None:
    """The 32 bytes that `text` holds in hex or base64, or None. A view is read without a copy."""
    for decode in (unhexlify, _strict_base64):
        with contextlib.suppress(ValueError):
            if len(raw := decode(text)) == KEK_BYTES:
                return raw
    return None


def _strict_base64(text: str | memoryview) -> bytes:
    return a2b_base64(text, strict_mode=True)


def new_kek() -> bytes:
    """32 fresh random bytes."""
    return secrets.token_bytes(KEK_BYTES)


@without_traceback
def write_kek(path: Path, kek: bytes) -> None:
    """Write a KEK in hex to a new file. An existing file is never replaced: its KEK may open other key files.

    Raises:
        ConfigurationError: There is a file already, or it cannot be written.
    """
    _write(path, kek.hex().encode() + b"\n", overwrite=False)


@without_traceback
def read_kek(path: Path) -> bytes:
    """The KEK that a file holds as 64 hex digits or in base64.

    Raises:
        ConfigurationError: The file does not exist, other users can read, write or own it, or it does not
            contain a usable KEK.
    """
    path = os.fsdecode(path)
    text, length, status = _read(path, _KEK_FILE_BYTES)
    try:
        _check_access(path, stat.S_IMODE(status.st_mode), status.st_uid)
        while length and text[length - 1] in b"\r\n\t ":  # strip() would make a copy
            length -= 1
        with memoryview(text) as whole, whole[:length] as spelled:
            kek = decode_kek(spelled)
    finally:
        text[:] = bytes(len(text))
    if kek is None:
        raise ConfigurationError(
            f"{quote_path(path)} does not contain a KEK ({KEK_BYTES} bytes, as 64 hex digits or base64)"
        )
    _check_not_repeated(quote_path(path), kek)
    return kek


def check_not_exists(path: Path, *, overwrite: bool = False) -> None:
    """Raise `ConfigurationError` if `path` exists and may not be replaced."""
    path = os.fsdecode(path)
    try:
        mode = os.lstat(path).st_mode
    except (OSError, ValueError):
        return  # it does not exist; if it cannot be written either, the write reports that
    if not stat.S_ISREG(mode):  # a rename would replace a link, not its target
        raise ConfigurationError(f"{quote_path(path)} is a link, a folder or a device, and is not replaced")
    if not overwrite:
        raise ConfigurationError(_exists(path))


def quote_path(path: Path) -> str:
    """A path to print: on one line, and quoted for a shell."""
    text = os.fsdecode(path)
    return shlex.quote(text) if text.isprintable() else repr(text)


def _write(path: Path, image: bytes, *, overwrite: bool) -> None:
    path = os.fsdecode(path)
    try:
        check_not_exists(path, overwrite=overwrite)
        write_atomically(path, image, overwrite=overwrite)
    except ConfigurationError:
        raise
    except FileExistsError:
        raise ConfigurationError(_exists(path)) from None
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{quote_path(path)} cannot be written: {_reason(error)}") from None


def _exists(path: str) -> str:
    return f"{quote_path(path)} already exists and was not replaced"


def _read(path: str, limit: int) -> tuple[bytearray, int, os.stat_result]:
    """A buffer with a regular file's first `limit` + 1 bytes, how many these are, and the file's status."""
    buffer = bytearray(limit + 1)
    try:
        # Without O_NONBLOCK, opening a pipe would wait for somebody to write to it.
        flags = getattr(os, "O_NONBLOCK", 0)
        with open(path, "rb", buffering=0, opener=lambda name, given: os.open(name, given | flags)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ConfigurationError(f"{quote_path(path)} is not a regular file")
            return buffer, file.readinto(buffer), status
    except ConfigurationError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{quote_path(path)} cannot be read: {_reason(error)}") from None


def _check_access(path: str, mode: int, owner: int) -> None:
    # Windows has neither: the mode and owner that it reports do not show who can read the file.
    if os.name == "nt":
        return
    if owner not in (0, user := os.geteuid()):
        raise ConfigurationError(
            f"{quote_path(path)} belongs to another user (uid {owner}), who can read and replace it; "
            f"if you trust its content, run: chown {user} {quote_path(path)}"
        )
    if mode & 0o077:
        raise ConfigurationError(
            f"{quote_path(path)} can be accessed by other users (mode {mode:04o}); run: chmod 600 {quote_path(path)}"
        )


def _check_not_repeated(name: str, kek: bytes) -> None:
    if len(set(kek)) == 1:
        raise ConfigurationError(
            f"{name} is one byte repeated {KEK_BYTES} times, which is easy to guess; "
            "generate a KEK with: openssl rand -hex 32"
        )


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or "the path cannot be used"
