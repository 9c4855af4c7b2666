"""Decrypt recorded exchanges with the test enclave's private key, and validate them by the published schemas."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from jsonschema import Draft202012Validator

from prem_core._crypto.aead import new_nonce
from prem_core._crypto.keys import EncryptionKeys
from prem_core._crypto.xwing import PrivateKey
from prem_core._protocol.masking import without_padding
from prem_core._protocol.sse import EventDecoder
from support.paths import DATA as DATA
from support.paths import SCHEMAS

#: The private key of the enclaves in tests and of the committed cassettes. It protects nothing.
TEST_KEY = PrivateKey(b"prem-encrypted test enclave seed")


def schema(name: str) -> Draft202012Validator:
    """The validator of a published schema."""
    return Draft202012Validator(json.loads((SCHEMAS / f"{name}.schema.json").read_text()))


REQUEST = schema("chat-request")
PARAMS = schema("chat-inference-params")
CHUNK = schema("chat-chunk")


@dataclass(frozen=True)
class Opened:
    """A decrypted chat request: its parameters without the client's mask."""

    keys: EncryptionKeys
    nonce: bytes
    params: dict[str, Any]

    @classmethod
    def request(cls, body: bytes, keys: EncryptionKeys | None = None) -> Opened:
        """Decrypt a request with these keys, or with the test key."""
        masked = cls.masked(body, keys)
        return replace(masked, params=without_padding(masked.params))

    @classmethod
    def masked(cls, body: bytes, keys: EncryptionKeys | None = None) -> Opened:
        """Decrypt a request, and leave the mask in its parameters."""
        fields = json.loads(body)
        cipher_text = bytes.fromhex(fields["cipherText"])
        keys = keys or EncryptionKeys(TEST_KEY.decapsulate(cipher_text), cipher_text)
        nonce = bytes.fromhex(fields["nonce"])
        return cls(keys, nonce, json.loads(keys.open(bytes.fromhex(fields["encryptedInference"]), nonce)))

    @classmethod
    def sealed(cls, params: dict[str, Any]) -> tuple[Opened, bytes]:
        """A request to the test enclave, and its body."""
        keys, nonce = EncryptionKeys.encapsulate(TEST_KEY.public_key()), new_nonce()
        fields = {
            "encryptedInference": keys.seal(json.dumps(params).encode(), nonce).hex(),
            "cipherText": keys.cipher_text.hex(),
            "nonce": nonce.hex(),
        }
        return cls(keys, nonce, params), json.dumps(fields).encode()

    def chunks(self, reply: bytes) -> list[dict[str, Any]]:
        """The chunks of the event stream that responds to this request."""
        events = list(EventDecoder(1 << 24).feed(reply))
        return [
            json.loads(self.keys.open(bytes.fromhex(data.decode()), self.nonce))
            for n, data in events
            if n == b"data"
        ]

    def resealed(self, other: Opened, reply: bytes) -> bytes:
        """The response to this request (a stream or an envelope), sealed again as a response to `other`."""
        if reply.lstrip().startswith(b"{"):
            envelope = json.loads(reply)
            data = envelope["data"]
            nonce = new_nonce()
            plain = self.keys.open(bytes.fromhex(data["encryptedResponse"]), bytes.fromhex(data["nonce"]))
            data |= {"encryptedResponse": other.keys.seal(plain, nonce).hex(), "nonce": nonce.hex()}
            return json.dumps(envelope).encode()
        out = []
        for name, data in EventDecoder(1 << 24).feed(reply):
            if name == b"data":
                plain = self.keys.open(bytes.fromhex(data.decode()), self.nonce)
                data = other.keys.seal(plain, other.nonce).hex().encode()
            out.append(b"event: " + name + b"\ndata: " + data + b"\n\n")
        return b"".join(out)


def problems(body: bytes) -> list[str]:
    """The violations of the published schemas by a chat request: its body, and its decrypted parameters."""
    found = [error.message for error in REQUEST.iter_errors(json.loads(body))]
    found += [
        f"{error.json_path}: {error.validator}" for error in PARAMS.iter_errors(Opened.masked(body).params)
    ]
    return found
