"""Request bodies: sealed fields, written as hex in JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from prem_core._crypto.keys import EncryptionKeys
from prem_core._protocol.assumptions import encode_binary

#: Bytes of ciphertext that one part of a large body holds; twice that as hex.
HEX_CHUNK_BYTES: Final = 64 * 1024


class SealedBody:
    """A large request's JSON, written in parts.

    Every field is binary and travels as hex. A recording of 25 MB is 50 MB of hex, which is never held: each part is
    made when it is sent. Iterating again writes the same body again.

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
            for start in range(0, len(data), HEX_CHUNK_BYTES):
                yield encode_binary(data[start : start + HEX_CHUNK_BYTES]).encode()
            before = b'",'
        yield b'"}'

    def __repr__(self) -> str:
        return f"SealedBody({self.length} bytes)"


Body = bytes | SealedBody


def chat_body(keys: EncryptionKeys, plaintext: bytes, nonce: bytes) -> Body:
    """The body of POST /rvenc/chat/completions: these three fields and no other."""
    sealed = keys.seal(plaintext, nonce)
    if len(sealed) > HEX_CHUNK_BYTES:
        return SealedBody({"encryptedInference": sealed, "cipherText": keys.cipher_text, "nonce": nonce})
    # A small one goes out in one write.
    return (
        f'{{"encryptedInference":"{encode_binary(sealed)}","cipherText":"{encode_binary(keys.cipher_text)}",'
        f'"nonce":"{encode_binary(nonce)}"}}'
    ).encode()


def audio_body(
    keys: EncryptionKeys, plaintext: bytes, name: bytes, recording: bytes, nonces: tuple[bytes, bytes, bytes]
) -> Body:
    """The body of the audio routes: chat's three fields, the recording and its name.

    All are sealed under one secret, each with a nonce of its own.

    Args:
        keys: The secret.
        plaintext: The parameters, as JSON.
        name: The recording's file name.
        recording: The recording.
        nonces: Three fresh nonces: of the parameters, the name and the recording.
    """
    nonce, name_nonce, file_nonce = nonces
    return SealedBody(
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
