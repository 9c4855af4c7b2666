"""Seals the lines of a file with the client's own master key (CLIENT_KEK), one by one.

The first line is the header, the only one that is not sealed::

    {"prem_sealed_lines":1,"file":"32 hex digits","check":"base64"}

Every further line is base64 of a nonce (24 bytes) and a sealed line. The cipher is XChaCha20-Poly1305. Its key is
BLAKE2b of the file's random id under the KEK. Associated data are the format, the file's id and the line's number, so
a line opens only in its own file and place. Lines that are missing at the end cannot be detected: a file ends so, too,
when its writer was stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
from binascii import a2b_base64, b2a_base64
from typing import Final, NoReturn, Self

from prem_core._crypto.aead import NONCE_BYTES, CryptoError, new_nonce, open_sealed, seal
from prem_core._crypto.redaction import without_traceback
from prem_core._errors import ConfigurationError

VERSION: Final = 1

_MARK: Final = b'{"prem_sealed_lines":'
_ID_BYTES: Final = 16


def is_sealed(first_line: bytes) -> bool:
    """Whether a file that starts with this line has sealed lines."""
    return first_line.startswith(_MARK)


class LineSeal:
    """Seals and opens the lines of one file. It holds a key of that file, not the KEK."""

    __slots__ = ("_file_id", "_key")

    def __reduce__(self) -> NoReturn:
        raise TypeError("a LineSeal holds a key and cannot be pickled")

    @without_traceback
    def __init__(self, kek: bytes, file_id: bytes | None = None) -> None:
        self._file_id = os.urandom(_ID_BYTES) if file_id is None else file_id
        self._key = hashlib.blake2b(
            key=kek, salt=self._file_id, person=b"prem-batch-lines", digest_size=32
        ).digest()

    @classmethod
    @without_traceback
    def from_header(cls, line: bytes, kek: bytes, path: str) -> Self:
        """The seal of a file that starts with this line.

        Raises:
            ConfigurationError: The header is damaged or of another version, or the KEK is a different one.
        """
        try:
            header = json.loads(line)
            version, file_id, check = header["prem_sealed_lines"], header["file"], header["check"]
            found = bytes.fromhex(file_id)
            sealed = check.encode()
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ConfigurationError(f"{path} is damaged: its first line is not a header") from None
        if version != VERSION or len(found) != _ID_BYTES:
            raise ConfigurationError(
                f"{path} has the format {version!r:.20}; this release reads format {VERSION}"
            )
        made = cls(kek, found)
        made.open(0, sealed, path)
        return made

    def header(self) -> bytes:
        """The file's first line. It holds an empty sealed text, which a wrong KEK does not open."""
        check = self.seal(0, b"").decode()
        return json.dumps(
            {"prem_sealed_lines": VERSION, "file": self._file_id.hex(), "check": check}, separators=(",", ":")
        ).encode()

    def seal(self, number: int, line: bytes) -> bytes:
        """The sealed form of a line, counted from 1."""
        nonce = new_nonce()
        return b2a_base64(nonce + seal(line, self._associated(number), nonce, self._key), newline=False)

    @without_traceback
    def open(self, number: int, line: bytes, path: str) -> bytes:
        """The line that was sealed.

        Raises:
            ConfigurationError: It does not open here.
        """
        try:
            raw = a2b_base64(line, strict_mode=True)
            return open_sealed(raw[NONCE_BYTES:], self._associated(number), raw[:NONCE_BYTES], self._key)
        except (CryptoError, ValueError):
            where = "the file" if number == 0 else f"line {number + 1}"
            raise ConfigurationError(
                f"{path}: {where} does not open: the KEK is not the one it was sealed with, or the file was changed"
            ) from None

    def _associated(self, number: int) -> bytes:
        return b"prem-sealed-lines-1" + self._file_id + number.to_bytes(8, "big")
