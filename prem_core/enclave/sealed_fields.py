"""Opening a request's sealed items, and sealing an answer that is not a stream: the same for every route.

The rule of this file: whatever fails to open is refused in the same words, and each large thing (a
recording is up to 25 MB) is let go of as soon as its next form is there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final, NamedTuple

from starlette.requests import Request
from starlette.types import Send

from prem_core._crypto.aead import NONCE_BYTES, TAG_BYTES, new_nonce
from prem_core._crypto.keys import EncryptionKeys
from prem_core._crypto.xwing import CIPHER_TEXT_BYTES, PrivateKey
from prem_core._errors import DecryptionError
from prem_core._protocol.assumptions import decode_binary, encode_binary
from prem_core.enclave.schema_check import Refused, envelope

#: What a payload that does not open is answered with. The enclave cannot tell a key that was turned
#: from a changed byte, and must not.
DECRYPT_MESSAGE: Final = "failed to decrypt: the enclave key has expired"


class Item(NamedTuple):
    """The names of a sealed item's two fields."""

    sealed: str
    nonce: str


INFERENCE: Final = Item("encryptedInference", "nonce")
FILE: Final = Item("encryptedFile", "fileNonce")
FILE_NAME: Final = Item("encryptedFileName", "fileNameNonce")


async def read_once(request: Request) -> bytes:
    """The body; unlike ``request.body()``, the request does not keep it for as long as it is answered."""
    return b"".join([piece async for piece in request.stream()])


def open_items(
    private_key: PrivateKey, fields: dict[str, str], items: Sequence[Item]
) -> tuple[EncryptionKeys, list[bytes]]:
    """The request's keys, and the plaintexts of `items`, whose ciphertexts are taken out of `fields`.

    Raises:
        Refused: 400; a field is not hex of the right length, or an item does not open.
    """
    cipher_text = binary(fields, "cipherText", exactly=CIPHER_TEXT_BYTES)
    # Backwards, so that the ciphertexts can be popped off in order.
    sealed = [
        (binary(fields, item.nonce, exactly=NONCE_BYTES), binary(fields, item.sealed, at_least=TAG_BYTES))
        for item in reversed(items)
    ]
    for item in items:
        del fields[item.sealed]
    opened = []
    try:
        keys = EncryptionKeys(private_key.decapsulate(cipher_text), cipher_text)
        while sealed:
            nonce, ciphertext = sealed.pop()
            opened.append(keys.open(ciphertext, nonce))
    except (ValueError, DecryptionError):
        raise Refused(400, DECRYPT_MESSAGE) from None
    return keys, opened


def binary(fields: dict[str, str], name: str, *, exactly: int | None = None, at_least: int = 0) -> bytes:
    """The bytes that a field holds as text.

    Raises:
        Refused: 400, naming the field: it is not hex, or not of the length asked for.
    """
    try:
        value = decode_binary(fields[name])
    except ValueError:
        rule = "must be hex"
    else:
        if len(value) == exactly or (exactly is None and len(value) >= at_least):
            return value
        rule = f"must be {exactly} bytes long" if exactly else f"must be at least {at_least} bytes long"
    raise Refused(400, f"Invalid request: {name} {rule}", validator={name: rule})


async def send_sealed(keys: EncryptionKeys, plaintext: bytes, send: Send) -> None:
    """Answer with the documented envelope around `plaintext`, sealed under a nonce of its own."""
    nonce = new_nonce()
    data = {"encryptedResponse": encode_binary(keys.seal(plaintext, nonce)), "nonce": encode_binary(nonce)}
    body = json.dumps(envelope(200, data=data)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
