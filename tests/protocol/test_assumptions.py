import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prem_core._protocol.assumptions import (
    KEY_ROTATED_PATTERN,
    KEY_ROTATED_STATUSES,
    ROUTE_SCOPES,
    STREAM_ERROR_STATUS,
    decode_binary,
    encode_binary,
)


@given(st.binary(max_size=200))
def test_a_binary_field_is_lower_case_hex_and_round_trips(data):
    text = encode_binary(data)
    assert re.fullmatch(r"([0-9a-f]{2})*", text)
    assert decode_binary(text) == data
    assert decode_binary(text.encode()) == data
    assert decode_binary(text.upper()) == data


@pytest.mark.parametrize("text", ["a", "SECRET", "0x00", "00 11", " 00", "zz", "ää", b"\xff\xff"])
def test_invalid_hex_is_rejected_without_quoting_it(text):
    with pytest.raises(ValueError) as caught:
        decode_binary(text)
    assert str(text) not in str(caught.value)


@pytest.mark.parametrize(
    "message",
    [
        "public key expired",
        "The enclave public key has expired",
        "enclave key rotated, fetch the new one",
        "Session expired",
        "expired session",
        "The request was sealed to an expired enclave key",
        "session key not found",
        "encryption_key is unknown",
        "KEM key mismatch",
        "publicKey is no longer valid",
        "Failed to decrypt inference payload",
        "failed to decrypt",
        "Could not decrypt the request",
        "couldn't decrypt",
        "Unable to decapsulate the cipher text",
        "Decryption failed",
        "Error while decrypting the payload",
        "decryption error",
    ],
)
def test_a_key_rotation_message_is_recognised(message):
    assert KEY_ROTATED_PATTERN.search(message)


@pytest.mark.parametrize(
    "message",
    [
        "Invalid API key",
        "API key expired",
        "Model not found",
        "You already have an active chat stream",
        "Rate limit exceeded for this session",
        "Enclave unavailable",
        "messages.0.content is not valid",
        "failed to decode the image",
        "The image at this public URL was not found",
        "could not decrypt the attached PDF: it is password protected",
        "unknown session id in metadata",
        "Error opening the file: decryption password required",
        "Internal server error",
        "",
    ],
)
def test_another_message_is_not_taken_for_a_key_rotation(message):
    assert not KEY_ROTATED_PATTERN.search(message)


def test_a_message_is_searched_in_linear_time():
    # Bounded gaps: a hostile body of this kind would take a careless pattern for ever.
    assert not KEY_ROTATED_PATTERN.search("public key " * 20_000)
    assert not KEY_ROTATED_PATTERN.search("fail " * 20_000)


@pytest.mark.parametrize("status", [401, 403, 404, 413, 429])
def test_another_status_is_not_taken_for_a_key_rotation(status):
    assert status not in KEY_ROTATED_STATUSES


def test_every_stream_error_type_maps_to_an_error_status():
    assert STREAM_ERROR_STATUS
    assert all(400 <= status < 600 for status in STREAM_ERROR_STATUS.values())


def test_every_route_has_a_scope():
    assert ROUTE_SCOPES["/rvenc/chat/completions"] == "chats.completion"
    assert all(route.startswith("/rvenc/") for route in ROUTE_SCOPES)
