"""Request bodies: sealed fields, written as hex in JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from prem_core._crypto.aead import new_nonce
from prem_core._crypto.keys import EncryptionKeys
from prem_core._protocol.assumptions import (
    encode_binary,
)

#: Bytes of ciphertext that one piece of a body holds, as hex twice that.
HEX_CHUNK_BYTES: Final = 64 * 1024


class SealedBody:
    """A request's JSON, written in pieces.

    Every field is binary and travels as hex. A recording of 25 MB is 50 MB of it, which is never held: each
    piece is made when it is sent. Iterating again writes the same body again.

    Args:
        fields: Name and bytes, in the order in which they are written.
    """

    __slots__ = ("_fields", "length")

    def __init__(self, fields: Mapping[str, bytes]) -> None:
        self._fields = fields
        #: Bytes of the whole body, for Content-Length.
        self.length = sum(len(name) + 2 * len(data) + 6 for name, data in fields.items()) + 1

    def __iter__(self) -> Iterator[bytes]:
        before = b"{"
        for name, data in self._fields.items():
            yield b'%b"%b":"' % (before, name.encode())
            view = memoryview(data)
            for start in range(0, len(view), HEX_CHUNK_BYTES):
                yield encode_binary(view[start : start + HEX_CHUNK_BYTES]).encode()
            before = b'",'
        yield b'"}'

    def __repr__(self) -> str:
        return f"SealedBody({self.length} bytes)"


Body = bytes | SealedBody


def _body(fields: Mapping[str, bytes]) -> Body:
    body = SealedBody(fields)
    # A small one goes out in one write.
    return b"".join(body) if body.length <= HEX_CHUNK_BYTES else body


def chat_body(keys: EncryptionKeys, plaintext: bytes, nonce: bytes) -> Body:
    """The body of POST /rvenc/chat/completions: these three fields and no other."""
    return _body(
        {"encryptedInference": keys.seal(plaintext, nonce), "cipherText": keys.cipher_text, "nonce": nonce}
    )


def audio_body(keys: EncryptionKeys, plaintext: bytes, name: bytes, recording: bytes) -> Body:
    """The body of the audio routes: chat's three fields, and the recording and its name.

    All under the one secret, each under a fresh nonce of its own.
    """
    nonce, file_nonce, name_nonce = new_nonce(), new_nonce(), new_nonce()
    return _body(
        {
            "encryptedInference": keys.seal(plaintext, nonce),
            "cipherText": keys.cipher_text,
            "nonce": nonce,
            "encryptedFileName": keys.seal(name, name_nonce),
            "fileNameNonce": name_nonce,
            "fileNonce": file_nonce,
            "encryptedFile": keys.seal(recording, file_nonce),
        }
    )
