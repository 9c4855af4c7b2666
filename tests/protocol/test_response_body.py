"""Response bodies: the enclave's public key, the envelope and the sealed response inside."""

import base64
import json

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fake_gateway import COMPLETION, FakeEnclave
from support.paths import SCHEMAS

from prem_core import _errors as errors
from prem_core._crypto.keys import EncryptionKeys
from prem_core._crypto.xwing import PUBLIC_KEY_BYTES
from prem_core._protocol.response_body import open_response, parse_public_key, read_envelope, read_public_key

ENCLAVE = FakeEnclave()
RAW = bytes(ENCLAVE.public)
KEYS = EncryptionKeys(bytes(range(32)), bytes(1120))
NONCE = bytes(24)
ENVELOPE = json.loads((SCHEMAS / "response-envelope.schema.json").read_text())


def body(value):
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    "answer",
    [
        body({"publicKey": RAW.hex()}),
        body({"public_key": RAW.hex()}),
        body({"publicKey": RAW.hex().upper()}),
        body({"publicKey": base64.b64encode(RAW).decode()}),
        body({"publicKey": base64.urlsafe_b64encode(RAW).decode().rstrip("=")}),
        body({"publicKey": f" {RAW.hex()}\n"}),
        body({"status": 200, "data": {"publicKey": RAW.hex()}, "message": None, "env": "production"}),
        body({"status": 200, "data": {"public_key": base64.b64encode(RAW).decode()}}),
        body({"status": 200, "data": RAW.hex()}),
        body({"publicKey": RAW.hex(), "new": 1}),
        body(RAW.hex()),
        RAW.hex().encode(),
        RAW.hex().encode() + b"\n",
        base64.b64encode(RAW),
    ],
)
def test_the_enclaves_key_is_read_in_every_supported_encoding(answer):
    assert read_public_key(answer) == ENCLAVE.public


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"<html>502</html>",
        b"null",
        b"5",
        b"[]",
        b"{}",
        b"\xff\xff",
        body({"publicKey": None}),
        body({"publicKey": 5}),
        body({"publicKey": ""}),
        body({"publicKey": RAW[:-1].hex()}),
        body({"publicKey": (RAW + b"\0").hex()}),
        body({"publicKey": RAW.hex() + "0"}),
        body({"publicKey": RAW.hex()[:-1] + "g"}),
        body({"publicKey": base64.b64encode(RAW[:-1]).decode()}),
        body({"publicKey": "ff" * PUBLIC_KEY_BYTES}),
        body({"publicKey": {"hex": RAW.hex()}}),
        body({"data": {}}),
        body({"data": None}),
        body({"key": RAW.hex()}),
        "ä".encode() * 2432,
    ],
)
def test_a_response_without_a_key_of_the_right_size_is_an_error(answer):
    with pytest.raises(errors.EnclaveKeyError):
        read_public_key(answer)


@pytest.mark.parametrize(
    "key", [ENCLAVE.public, RAW, bytearray(RAW), RAW.hex(), base64.b64encode(RAW).decode()]
)
def test_a_public_key_may_be_an_object_bytes_hex_or_base64(key):
    assert parse_public_key(key) == ENCLAVE.public


@pytest.mark.parametrize(
    "key",
    [
        b"",
        RAW[:-1],
        RAW + b"\0",
        "",
        "zz",
        RAW.hex()[2:],
        "ä",
        PUBLIC_KEY_BYTES,
        None,
        object(),
        [1, 2],
        10**30,
    ],
)
def test_an_invalid_public_key_is_rejected(key):
    with pytest.raises(errors.EnclaveKeyError, match="1216 bytes"):
        parse_public_key(key)


@given(st.binary(max_size=3000))
def test_any_other_response_to_the_key_request_is_an_enclave_key_error(answer):
    with pytest.raises(errors.EnclaveKeyError):
        read_public_key(answer)


def test_an_envelope_is_read_with_all_its_fields():
    value = {"status": 200, "data": {"a": [1]}, "message": None, "env": "development"}
    jsonschema.validate(value, ENVELOPE)
    assert read_envelope(body(value)) == value


@pytest.mark.parametrize("example", ENVELOPE["examples"])
def test_the_published_envelope_examples_are_read(example):
    assert read_envelope(body(example)) == example


@pytest.mark.parametrize(
    "answer", [b"", b"<html>", b"[]", b"null", b'"a"', b"{}", b'{"status": 200}', b"\xff", b"[" * 999]
)
def test_a_body_that_is_no_envelope_is_an_error(answer):
    with pytest.raises(errors.APIResponseValidationError):
        read_envelope(answer)


def test_an_error_inside_a_success_response_is_an_error():
    with pytest.raises(errors.RateLimitError, match="slow down") as caught:
        read_envelope(body({"status": 429, "error": "slow down", "support_id": "support_1"}))
    assert caught.value.support_id == "support_1"


def sealed_answer(plain, under=NONCE, **fields):
    data = {"encryptedResponse": KEYS.seal(plain, under).hex(), "nonce": under.hex()} | fields
    return body({"status": 200, "data": data})


def test_a_sealed_response_opens_under_its_own_nonce():
    plain = body(COMPLETION)
    opened = open_response(KEYS, sealed_answer(plain, bytes(range(24))))
    assert (opened.plaintext, opened.nonce, opened.support_id) == (plain, bytes(range(24)), None)


def test_an_opened_response_has_the_support_id_of_its_envelope():
    value = json.loads(sealed_answer(body(COMPLETION))) | {"support_id": "support_1"}
    assert open_response(KEYS, body(value)).support_id == "support_1"


@pytest.mark.parametrize(
    "data",
    [None, [], {}, "x", {"nonce": "00"}, {"encryptedResponse": "00"}, {"encryptedResponse": 1, "nonce": 2}],
)
def test_a_sealed_response_without_its_two_fields_is_an_error(data):
    with pytest.raises(errors.APIResponseValidationError):
        open_response(KEYS, body({"status": 200, "data": data}))


@pytest.mark.parametrize(
    "fields",
    [
        {"encryptedResponse": ""},
        {"encryptedResponse": "zz"},
        {"encryptedResponse": "0"},
        {"encryptedResponse": "00" * 50},
        {"encryptedResponse": "ä"},
        {"nonce": ""},
        {"nonce": "zz"},
        {"nonce": "00" * 23},
        {"nonce": "01" * 24},
    ],
)
def test_a_sealed_response_that_does_not_open_is_a_decryption_error(fields):
    with pytest.raises(errors.DecryptionError):
        open_response(KEYS, sealed_answer(b"answer", **fields))
