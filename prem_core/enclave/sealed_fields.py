"""Open the sealed fields of a request, and seal a response that is not a stream.

All decryption failures have the same message. A large buffer (a recording is up to 25 MB) is released as soon as it has
been transformed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final, NamedTuple

from starlette.types import Send

from prem_core._crypto.aead import NONCE_BYTES, TAG_BYTES, new_nonce
from prem_core._crypto.keys import EncryptionKeys
from prem_core._crypto.xwing import CIPHER_TEXT_BYTES, PrivateKey
from prem_core._errors import DecryptionError
from prem_core._protocol.assumptions import decode_binary, encode_binary
from prem_core.enclave.envelope import EnvelopeError, envelope

#: The error for a request that does not open. The enclave cannot tell a key rotation from a changed byte, and must not.
DECRYPT_MESSAGE: Final = "failed to decrypt: the enclave key has expired"


class SealedField(NamedTuple):
    """The names of the two fields of a sealed item."""

    sealed: str
    nonce: str


INFERENCE: Final = SealedField("encryptedInference", "nonce")
FILE: Final = SealedField("encryptedFile", "fileNonce")
FILE_NAME: Final = SealedField("encryptedFileName", "fileNameNonce")


def open_fields(
    private_key: PrivateKey, fields: dict[str, str], items: Sequence[SealedField]
) -> tuple[EncryptionKeys, list[bytes]]:
    """The keys of a request and the plaintexts of `items`. Their ciphertexts are removed from `fields`.

    Raises:
        EnvelopeError: 400, a field is not hex of the right length, or an item does not open.
    """
    cipher_text = decode_field(fields, "cipherText", exactly=CIPHER_TEXT_BYTES)
    # In reverse, so that the ciphertexts can be popped in order.
    sealed = [
        (
            decode_field(fields, item.nonce, exactly=NONCE_BYTES),
            decode_field(fields, item.sealed, at_least=TAG_BYTES),
        )
        for item in reversed(items)
    ]
    for item in items:
        del fields[item.sealed]
    plaintexts = []
    try:
        keys = EncryptionKeys(private_key.decapsulate(cipher_text), cipher_text)
        while sealed:
            nonce, ciphertext = sealed.pop()
            plaintexts.append(keys.open(ciphertext, nonce))
    except (ValueError, DecryptionError):
        raise EnvelopeError(400, DECRYPT_MESSAGE) from None
    return keys, plaintexts


def decode_field(
    fields: dict[str, str], name: str, *, exactly: int | None = None, at_least: int = 0
) -> bytes:
    """The bytes of a hex field.

    Raises:
        EnvelopeError: 400, the field is not hex, or has another length. The message names it.
    """
    try:
        value = decode_binary(fields[name])
    except ValueError:
        raise EnvelopeError.invalid(name, "must be hex") from None
    if exactly is not None and len(value) != exactly:
        raise EnvelopeError.invalid(name, f"must be {exactly} bytes long")
    if len(value) < at_least:
        raise EnvelopeError.invalid(name, f"must be at least {at_least} bytes long")
    return value


async def send_sealed(keys: EncryptionKeys, plaintext: bytes, send: Send) -> None:
    """Send the documented envelope around `plaintext`, sealed under a fresh nonce."""
    nonce = new_nonce()
    data = {"encryptedResponse": encode_binary(keys.seal(plaintext, nonce)), "nonce": encode_binary(nonce)}
    body = json.dumps(envelope(200, data=data)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
