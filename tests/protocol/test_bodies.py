import base64
import json

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fake_gateway import COMPLETION, Enclave, said
from support.paths import SCHEMAS

from prem_core import _errors as errors
from prem_core._crypto.aead import new_nonce
from prem_core._crypto.keys import EncryptionKeys
from prem_core._crypto.xwing import PUBLIC_KEY_BYTES
from prem_core._protocol.error_body import MAX_MESSAGE, is_key_rotation_error, status_error, stream_error
from prem_core._protocol.request_body import chat_body
from prem_core._protocol.response_body import open_response, parse_public_key, read_envelope, read_public_key

ENCLAVE = Enclave()
RAW = bytes(ENCLAVE.public)
KEYS = EncryptionKeys(bytes(range(32)), bytes(1120))
NONCE = bytes(24)


def schema(name):
    return json.loads((SCHEMAS / f"{name}.schema.json").read_text())


def body(value):
    return json.dumps(value).encode()


def error_body(status, error, **fields):
    value = {
        "status": status,
        "error": error,
        "message": None,
        "env": "production",
        "log": None,
        "support_id": None,
    }
    return body(value | fields)


# --- what goes out


def test_a_chat_request_has_the_three_published_fields_and_no_other():
    keys = EncryptionKeys.encapsulate(ENCLAVE.public)
    sent = chat_body(keys, b'{"model":"m"}', new_nonce())
    jsonschema.validate(json.loads(sent), schema("chat-request"))
    opened = ENCLAVE.open(sent)
    assert opened.params == {"model": "m"}
    assert opened.keys == keys


def test_a_chat_request_shows_nothing_of_the_parameters():
    keys = EncryptionKeys.encapsulate(ENCLAVE.public)
    sent = chat_body(keys, b"PLAINTEXT", NONCE)
    for shown in (
        b"PLAINTEXT",
        b"PLAINTEXT".hex().encode(),
        keys.shared_secret,
        keys.shared_secret.hex().encode(),
    ):
        assert shown not in sent


# --- the enclave's key


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
def test_the_enclaves_key_is_read_in_every_form_it_may_come_in(answer):
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
def test_an_answer_without_a_key_of_the_right_size_is_an_error(answer):
    with pytest.raises(errors.EnclaveKeyError):
        read_public_key(answer)


@pytest.mark.parametrize(
    "key", [ENCLAVE.public, RAW, bytearray(RAW), RAW.hex(), base64.b64encode(RAW).decode()]
)
def test_a_key_is_given_as_an_object_bytes_hex_or_base64(key):
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
def test_what_is_no_key_is_refused(key):
    with pytest.raises(errors.EnclaveKeyError, match="1216 bytes"):
        parse_public_key(key)


@given(st.binary(max_size=3000))
def test_no_answer_to_the_key_request_breaks_its_reading(answer):
    with pytest.raises(errors.EnclaveKeyError):
        read_public_key(answer)


# --- the success envelope


def test_an_envelope_gives_its_data():
    value = {"status": 200, "data": {"a": [1]}, "message": None, "env": "development"}
    jsonschema.validate(value, schema("response-envelope"))
    assert read_envelope(body(value)) == {"a": [1]}


@pytest.mark.parametrize("example", schema("response-envelope")["examples"])
def test_the_published_envelope_is_read(example):
    assert read_envelope(body(example)) == example["data"]


@pytest.mark.parametrize(
    "answer", [b"", b"<html>", b"[]", b"null", b'"a"', b"{}", b'{"status": 200}', b"\xff", b"[" * 999]
)
def test_what_is_no_envelope_is_an_error(answer):
    with pytest.raises(errors.APIResponseValidationError):
        read_envelope(answer)


def test_an_error_inside_a_success_is_an_error():
    with pytest.raises(errors.RateLimitError, match="slow down") as caught:
        read_envelope(error_body(429, "slow down", support_id="support_1"))
    assert caught.value.support_id == "support_1"


def sealed_answer(plain, under=NONCE, **fields):
    data = {"encryptedResponse": KEYS.seal(plain, under).hex(), "nonce": under.hex()} | fields
    return body({"status": 200, "data": data})


def test_a_sealed_answer_opens_under_the_nonce_it_brings():
    plain = body(COMPLETION)
    assert open_response(KEYS, sealed_answer(plain, bytes(range(24)))) == plain


@pytest.mark.parametrize(
    "data",
    [None, [], {}, "x", {"nonce": "00"}, {"encryptedResponse": "00"}, {"encryptedResponse": 1, "nonce": 2}],
)
def test_a_sealed_answer_without_its_two_fields_is_an_error(data):
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
def test_a_sealed_answer_that_does_not_open_is_a_decryption_error(fields):
    with pytest.raises(errors.DecryptionError):
        open_response(KEYS, sealed_answer(b"answer", **fields))


# --- errors by status


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (302, errors.APIStatusError),
        (400, errors.BadRequestError),
        (401, errors.AuthenticationError),
        (402, errors.APIStatusError),
        (403, errors.PermissionDeniedError),
        (404, errors.NotFoundError),
        (409, errors.APIStatusError),
        (413, errors.RequestTooLargeError),
        (418, errors.APIStatusError),
        (422, errors.BadRequestError),
        (429, errors.RateLimitError),
        (500, errors.InternalServerError),
        (502, errors.InternalServerError),
        (503, errors.InternalServerError),
        (504, errors.InternalServerError),
        (599, errors.InternalServerError),
    ],
)
def test_a_status_has_its_own_error(status, kind):
    error = status_error(status, b"")
    assert type(error) is kind
    assert error.status_code == status
    assert str(status) in str(error)


@pytest.mark.parametrize("status", schema("error-envelope")["properties"]["status"]["enum"])
def test_the_published_error_envelope_is_read(status):
    sent = error_body(
        status,
        "Some error message",
        validator={"email": "Invalid email address"},
        support_id="support_0190-ab",
    )
    jsonschema.validate(json.loads(sent), schema("error-envelope"))
    error = status_error(status, sent)
    assert "Some error message" in str(error)
    assert "email" in str(error)
    assert "support_0190-ab" in str(error)
    assert error.support_id == "support_0190-ab"
    assert error.validator == {"email": "Invalid email address"}


def test_an_openai_error_object_is_read():
    detail = {
        "message": "no such model",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }
    error = status_error(404, body({"error": detail}))
    assert str(error) == "no such model"
    assert (error.type, error.param, error.code) == ("invalid_request_error", "model", "model_not_found")


def test_a_message_beside_an_empty_error_is_read():
    assert str(status_error(400, body({"error": None, "message": "from message"}))) == "from message"
    assert str(status_error(400, body({"error": " ", "message": "from message"}))) == "from message"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"<html><body>502 Bad Gateway</body></html>",
        b"null",
        b"[]",
        b"5",
        b'"text"',
        b"{",
        b"\xff\xfe\x00",
        b"{}",
        b'{"error": []}',
        b'{"error": {"message": {"a": 1}}}',
        b'{"error": {"message": null, "code": {}, "type": []}}',
        b'{"error": 5, "message": 6, "support_id": {}, "validator": "x"}',
        b"[" * 100_000,
    ],
)
def test_a_body_of_any_kind_leaves_the_error_that_its_status_stands_for(answer):
    error = status_error(503, answer)
    assert isinstance(error, errors.InternalServerError)
    assert str(error) == "the service answered 503"
    assert error.support_id is None


def test_a_text_that_cannot_be_written_is_written_with_replacements():
    assert str(status_error(503, b'{"error": "busy \\ud800!"}')) == "busy ?!"


@given(
    st.integers(300, 599),
    st.binary(max_size=100)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(
                    ["error", "message", "code", "type", "param", "support_id", "validator", "status"]
                )
                | st.text(),
                inner,
            )
        ),
    ).map(body),
)
def test_no_body_breaks_the_reading_of_an_error(status, answer):
    error = status_error(status, answer)
    assert isinstance(error, errors.APIStatusError)
    assert error.status_code == status


@pytest.mark.parametrize(
    "fields",
    [
        {"error": "a\nb\r\n" * 10_000},
        {"error": "no", "validator": {"field\n" * 10_000: "x"}},
        {"error": "no", "validator": {f"field{n}": "x" for n in range(10_000)}},
        {"error": "no", "support_id": "support\n" * 10_000},
    ],
)
def test_a_text_from_the_network_is_one_line_of_bounded_length(fields):
    text = str(status_error(400, body(fields)))
    assert "\n" not in text
    assert "\r" not in text
    assert len(text) <= 2 * MAX_MESSAGE


@pytest.mark.parametrize(
    ("value", "seconds"), [("7", 7.0), ("soon", None), (None, None), ("Tue, 14 Nov 2023 22:14:20 GMT", 60.0)]
)
def test_the_time_to_wait_is_carried(value, seconds):
    headers = {} if value is None else {"retry-after": value}
    assert status_error(429, b"", headers=headers, now=1_700_000_000.0).retry_after == seconds


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("This model's maximum context length is 8192 tokens", None),
        ("The prompt is too long", None),
        ("context window exceeded", None),
        ("bad", "context_length_exceeded"),
    ],
)
def test_a_prompt_that_is_too_long_has_its_own_error(message, code):
    error = status_error(400, body({"error": {"message": message, "code": code}}))
    assert type(error) is errors.ContextLengthExceededError


@pytest.mark.parametrize(
    ("message", "route", "scope"),
    [
        ("missing scope audio.translation", "/rvenc/chat/completions", "audio.translation"),
        ("API key lacks the required scope", "/rvenc/chat/completions", "chats.completion"),
        ("API key lacks the required scope", "/rvenc/audio/transcriptions", "audio.transcription"),
        ("Insufficient scopes", "/elsewhere", None),
        ("IP address not allowed", "/rvenc/chat/completions", None),
        ("", "/rvenc/chat/completions", None),
    ],
)
def test_a_403_names_the_scope_that_is_missing_and_no_other_reason(message, route, scope):
    error = status_error(403, body({"error": message}), route=route)
    assert isinstance(error, errors.PermissionDeniedError)
    assert error.scope == scope
    assert scope is None or scope in str(error)


# --- errors inside a stream


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("invalid_request_error", errors.BadRequestError),
        ("authentication_error", errors.AuthenticationError),
        ("permission_error", errors.PermissionDeniedError),
        ("not_found_error", errors.NotFoundError),
        ("rate_limit_error", errors.RateLimitError),
        ("server_error", errors.InternalServerError),
        ("api_error", errors.InternalServerError),
        ("overloaded_error", errors.InternalServerError),
        ("something_new", errors.APIError),
    ],
)
def test_an_error_event_has_the_error_its_type_stands_for(kind, expected):
    error = stream_error({"error": {"message": "it failed", "type": kind}})
    assert type(error) is expected
    assert (error.type, error.args) == (kind, ("it failed",))


@pytest.mark.parametrize("where", ["status", "code"])
def test_an_error_event_may_carry_a_status(where):
    error = stream_error({"error": {"message": "no", where: 429}})
    assert isinstance(error, errors.RateLimitError)
    assert error.status_code == 429


def test_an_error_event_may_name_its_kind_in_the_code():
    assert isinstance(stream_error({"message": "no", "code": "rate_limit_exceeded"}), errors.RateLimitError)


@pytest.mark.parametrize(
    "value",
    [{"message": "m", "support_id": "support_1"}, {"error": {"message": "m"}, "support_id": "support_1"}],
)
def test_an_error_event_carries_its_support_id(value):
    error = stream_error(value)
    assert (error.support_id, error.args) == ("support_1", ("m",))


def test_an_error_event_may_be_the_error_envelope():
    error = stream_error({"status": 400, "error": "the words", "support_id": "support_1"})
    assert "the words" in str(error)
    assert error.support_id == "support_1"


@pytest.mark.parametrize(
    "value", [None, [], {}, "", {"error": None}, {"error": []}, {"error": {}}, {"message": {}}]
)
def test_an_error_event_without_words_is_still_an_error(value):
    error = stream_error(value)
    assert isinstance(error, errors.APIError)
    assert "error inside the stream" in str(error)


# --- turned keys


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.BadRequestError("Failed to decrypt payload", status_code=400), True),
        (errors.InternalServerError("session expired", status_code=500), True),
        (errors.APIError("could not decrypt the request"), True),
        (errors.AuthenticationError("session expired", status_code=401), False),
        (errors.PermissionDeniedError("encryption key revoked", status_code=403), False),
        (errors.RateLimitError("session key expired", status_code=429), False),
        (errors.BadRequestError("temperature must be a number", status_code=400), False),
        (errors.InternalServerError("enclave unavailable", status_code=503), False),
        (errors.BadRequestError("no", status_code=400, support_id="session expired"), False),
    ],
)
def test_only_a_message_of_the_right_status_speaks_of_a_turned_key(error, expected):
    assert is_key_rotation_error(error) is expected


def test_an_error_keeps_nothing_of_the_body_it_was_read_from_but_its_words():
    error = status_error(400, body({"error": "no", "data": "SECRET", "log": {"request": "SECRET"}}))
    assert "SECRET" not in said(error)
