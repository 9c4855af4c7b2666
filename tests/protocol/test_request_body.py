"""The encrypted body of a chat request."""

import json

import jsonschema
from support.fake_gateway import FakeEnclave
from support.paths import SCHEMAS

from prem_core._crypto.aead import new_nonce
from prem_core._crypto.keys import EncryptionKeys
from prem_core._protocol.request_body import chat_body

ENCLAVE = FakeEnclave()
NONCE = bytes(24)


def test_a_chat_request_has_the_three_published_fields_and_no_other():
    keys = EncryptionKeys.encapsulate(ENCLAVE.public)
    sent = chat_body(keys, b'{"model":"m"}', new_nonce())
    jsonschema.validate(json.loads(sent), json.loads((SCHEMAS / "chat-request.schema.json").read_text()))
    opened = ENCLAVE.open(sent)
    assert opened.params == {"model": "m"}
    assert opened.keys == keys


def test_a_chat_request_contains_no_plaintext():
    keys = EncryptionKeys.encapsulate(ENCLAVE.public)
    sent = chat_body(keys, b"PLAINTEXT", NONCE)
    for shown in (
        b"PLAINTEXT",
        b"PLAINTEXT".hex().encode(),
        keys.shared_secret,
        keys.shared_secret.hex().encode(),
    ):
        assert shown not in sent
