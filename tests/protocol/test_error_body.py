"""Error bodies and error events, and the exceptions they map to."""

import json

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fake_gateway import error_text
from support.paths import SCHEMAS

from prem_core import _errors as errors
from prem_core._protocol.error_body import MAX_MESSAGE, is_key_rotation_error, status_error, stream_error

ENVELOPE = json.loads((SCHEMAS / "error-envelope.schema.json").read_text())


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
def test_each_status_maps_to_its_error_class(status, kind):
    error = status_error(status, b"")
    assert type(error) is kind
    assert error.status_code == status
    assert str(status) in str(error)


@pytest.mark.parametrize("status", ENVELOPE["properties"]["status"]["enum"])
def test_the_published_error_envelope_is_read(status):
    sent = error_body(
        status,
        "Some error message",
        validator={"email": "Invalid email address"},
        support_id="support_0190-ab",
    )
    jsonschema.validate(json.loads(sent), ENVELOPE)
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


def test_the_message_field_is_used_when_error_is_empty():
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
def test_an_unreadable_error_body_still_maps_to_the_error_of_its_status(answer):
    error = status_error(503, answer)
    assert isinstance(error, errors.InternalServerError)
    assert str(error) == "the service answered 503"
    assert error.support_id is None


def test_a_lone_surrogate_in_a_message_is_replaced():
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
def test_any_error_body_maps_to_a_status_error(status, answer):
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
def test_a_message_from_the_network_is_one_line_of_bounded_length(fields):
    text = str(status_error(400, body(fields)))
    assert "\n" not in text
    assert "\r" not in text
    assert len(text) <= 2 * MAX_MESSAGE


@pytest.mark.parametrize(
    ("value", "seconds"), [("7", 7.0), ("soon", None), (None, None), ("Tue, 14 Nov 2023 22:14:20 GMT", 60.0)]
)
def test_the_error_carries_retry_after(value, seconds):
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
def test_a_403_names_a_missing_scope_only_if_that_is_the_reason(message, route, scope):
    error = status_error(403, body({"error": message}), route=route)
    assert isinstance(error, errors.PermissionDeniedError)
    assert error.scope == scope
    assert scope is None or scope in str(error)


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
def test_an_error_event_maps_to_the_error_class_of_its_type(kind, expected):
    error = stream_error({"error": {"message": "it failed", "type": kind}})
    assert type(error) is expected
    assert (error.type, error.args) == (kind, ("it failed",))


@pytest.mark.parametrize("where", ["status", "code"])
def test_an_error_event_may_carry_a_status(where):
    error = stream_error({"error": {"message": "no", where: 429}})
    assert isinstance(error, errors.RateLimitError)
    assert error.status_code == 429


def test_an_error_event_may_name_its_type_in_the_code():
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
def test_an_error_event_without_a_message_is_still_an_error(value):
    error = stream_error(value)
    assert isinstance(error, errors.APIError)
    assert "error inside the stream" in str(error)


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
def test_a_key_rotation_is_recognised_by_message_and_status(error, expected):
    assert is_key_rotation_error(error) is expected


def test_an_error_keeps_only_the_message_of_its_body():
    error = status_error(400, body({"error": "no", "data": "SECRET", "log": {"request": "SECRET"}}))
    assert "SECRET" not in error_text(error)
