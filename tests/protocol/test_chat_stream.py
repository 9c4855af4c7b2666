import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_gateway import (
    COMPLETION,
    DONE,
    HELLO,
    PARAMS,
    FakeEnclave,
    FlowHarness,
    OpenedRequest,
    ScriptedResponse,
    chunk,
    default_settings,
    error_text,
    event,
    every_byte,
    open_completion,
    text_of,
)

from prem_core import _errors as errors
from prem_core._crypto.aead import new_nonce
from prem_core._crypto.keys import EncryptionKeys
from prem_core._protocol import chat_stream
from prem_core._protocol.chat_stream import ChatStreamReader
from prem_core._protocol.request_body import chat_body
from prem_core._protocol.request_schema import chat_request
from prem_core._protocol.response_body import BodyReader

MAX = 1 << 20
ENCLAVE = FakeEnclave()
KEYS = EncryptionKeys.encapsulate(ENCLAVE.public)
OPENED: OpenedRequest = ENCLAVE.open(chat_body(KEYS, b"{}", new_nonce()))
STREAM = OPENED.stream()
PART = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]}
FINISH = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


def reader(max_buffer_size=MAX):
    return ChatStreamReader(KEYS, OPENED.nonce, max_buffer_size)


def read(pieces):
    """The chunks of a stream that ends after these pieces, and the error it ended with."""
    found, stream = [], reader()
    try:
        for piece in pieces:
            for value in stream.feed(piece):
                found.append(value)
        stream.finish()
    except errors.PremError as error:
        return found, error
    return found, None


def whole(stream):
    """What a stream gives when it comes in one piece; checked to be the same in every other way."""
    found, error = read([stream])
    for pieces in (every_byte(stream), [stream[:-1], stream[-1:]], [stream[:1], stream[1:]]):
        again, other = read(pieces)
        assert again == found
        assert type(other) is type(error)
        assert str(other) == str(error)
    return found, error


def test_a_complete_stream_yields_its_chunks():
    found, error = whole(STREAM)
    assert error is None
    assert text_of(found) == "Hello"
    assert found[-2].choices[0].finish_reason == "stop"
    assert found[-1].choices == []
    assert found[-1].usage.total_tokens == 5


def test_a_stream_truncated_at_any_byte_is_an_error():
    for length in range(len(STREAM)):
        for pieces in ([STREAM[:length]], [STREAM[: length // 2], STREAM[length // 2 : length]]):
            found, error = read(pieces)
            if error is None:
                # Only the end of the done event itself may be missing, never a part of the answer.
                assert length >= len(STREAM) - 1
                assert len(found) == len(HELLO)
            else:
                assert type(error) is errors.StreamInterruptedError


def test_a_truncated_stream_yields_the_chunks_before_the_truncation():
    stream = OPENED.events(PART, PART, PART)
    found, error = whole(stream)
    assert len(found) == 3
    assert type(error) is errors.StreamInterruptedError


@given(st.lists(st.integers(0, len(STREAM)), max_size=10))
@settings(max_examples=100, deadline=None)
def test_a_stream_split_in_any_way_yields_the_same_chunks(places):
    marks = [0, *sorted(places), len(STREAM)]
    found, error = read(STREAM[a:b] for a, b in itertools.pairwise(marks))
    assert error is None
    assert found == read([STREAM])[0]


def test_an_empty_stream_is_an_error():
    assert type(read([])[1]) is errors.StreamInterruptedError
    assert type(read([b""])[1]) is errors.StreamInterruptedError


def test_done_without_any_chunk_is_an_error():
    assert type(whole(DONE)[1]) is errors.StreamInterruptedError


def test_done_without_a_finish_reason_is_a_truncated_response():
    found, error = whole(OPENED.events(PART, PART) + DONE)
    assert len(found) == 2
    assert type(error) is errors.StreamInterruptedError


def test_done_before_every_choice_has_finished_is_a_truncated_response():
    second = {"choices": [{"index": 1, "delta": {"content": "b"}, "finish_reason": None}]}
    found, error = whole(OPENED.events(PART, second, FINISH) + DONE)
    assert len(found) == 3
    assert type(error) is errors.StreamInterruptedError


def test_a_response_is_complete_when_every_choice_has_finished():
    second = {"choices": [{"index": 1, "delta": {"content": "b"}, "finish_reason": "length"}]}
    assert whole(OPENED.events(PART, second, FINISH) + DONE)[1] is None


def test_usage_without_a_choice_is_an_error():
    assert type(whole(OPENED.events(HELLO[-1]) + DONE)[1]) is errors.StreamInterruptedError


def test_a_finish_reason_without_done_is_a_truncated_response():
    assert type(whole(OPENED.events(PART, FINISH))[1]) is errors.StreamInterruptedError


@pytest.mark.parametrize(
    "done",
    [
        DONE,
        b"data: [DONE]\n\n",
        b"data:[DONE]\n\n",
        b"event: done\ndata\n\n",
        b"event: done\r\ndata: {}\r\n\r\n",
    ],
)
def test_done_is_recognised_in_every_form(done):
    stream = OPENED.events(PART, FINISH) + done
    found, error = read([stream])
    assert error is None
    assert len(found) == 2


def test_data_after_done_is_ignored():
    for rest in (b"event: error\ndata: {}\n\n", b"event: data\ndata: zz\n\n", b"x" * (MAX + 1), STREAM):
        stream = reader()
        assert len(list(stream.feed(STREAM + rest))) == len(HELLO)
        assert stream.done
        assert list(stream.feed(rest)) == []
        stream.finish()


def test_an_unnamed_event_is_a_chunk():
    stream = b"".join(b"data: %b\n\n" % OPENED.seal(chunk(value)).encode() for value in (PART, FINISH))
    found, error = whole(stream + b"data: [DONE]\n\n")
    assert error is None
    assert text_of(found) == "a"


def test_an_unknown_event_is_ignored():
    stream = event("ping", "{}") + OPENED.events(PART) + event("usage", "zz") + OPENED.events(FINISH) + DONE
    found, error = whole(stream)
    assert error is None
    assert len(found) == 2


def test_comments_between_events_are_ignored():
    stream = b": hi\n\n" + OPENED.events(PART) + b": keep-alive\n\n" + OPENED.events(FINISH) + b":\n" + DONE
    assert whole(stream)[1] is None


@pytest.mark.parametrize(
    "value",
    [
        {"choices": [{"index": 0, "delta": []}]},
        {"choices": [{"index": 0, "delta": None}]},
        {"choices": [{}]},
        {"choices": []},
        {
            "choices": [{"index": 0, "delta": {"content": None, "role": None, "tool_calls": None}}],
            "usage": None,
        },
        {"choices": [{"index": 0, "delta": {"content": ""}, "logprobs": None, "matched_stop": None}]},
        {
            "choices": [],
            "id": None,
            "created": None,
            "model": None,
            "object": None,
            "system_fingerprint": None,
            "error": None,
        },
        {"choices": [], "new": {"field": [1, None]}},
        {"choices": [{"index": 0, "delta": {"new": 1}, "newer": "x"}]},
        {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3, "new": {}}},
        {"choices": [], "usage": {"prompt_tokens": None}},
    ],
)
def test_a_chunk_that_deviates_from_the_schema_is_parsed(value):
    found, error = whole(OPENED.events(value, PART, FINISH) + DONE)
    assert error is None
    assert len(found) == 3
    assert text_of(found) == "a"


@pytest.mark.parametrize("value", [{}, {"choices": None}, {"new": {"field": [1, None]}}])
def test_a_chunk_without_choices_is_an_error(value):
    found, error = whole(OPENED.events(PART, value, FINISH) + DONE)
    assert len(found) == 1
    assert type(error) is errors.APIResponseValidationError
    assert "choices" in str(error)


@pytest.mark.parametrize("masked", [True, False])
def test_the_request_itself_sent_back_as_a_chunk_is_an_error(masked):
    # Nothing in the protocol binds a direction: the gateway has the request under the same secret and nonce.
    request = chat_request(PARAMS).plaintext(masked=masked)
    sent = json.loads(chat_body(KEYS, request, OPENED.nonce))["encryptedInference"]
    found, error = whole(event("data", sent) + OPENED.events(PART, FINISH) + DONE)
    assert found == []
    assert type(error) is errors.APIResponseValidationError


@pytest.mark.parametrize("plain", [b"", b"hello", b"[]", b'{"choices": 5}', b"\xff"])
def test_decrypted_data_that_is_no_chunk_is_an_error(plain):
    found, error = whole(OPENED.events(PART) + event("data", OPENED.seal(plain)) + DONE)
    assert len(found) == 1
    assert type(error) is errors.APIResponseValidationError


# --- errors inside the stream

ERROR = {"error": {"message": "it failed", "type": "rate_limit_error"}}


@pytest.mark.parametrize(
    "data",
    [
        json.dumps(ERROR),
        " " + json.dumps(ERROR),
        json.dumps(ERROR["error"]),
        json.dumps(ERROR, indent=1).replace("\n", "\ndata: "),
    ],
)
def test_a_plaintext_error_event_raises_the_matching_error(data):
    found, error = whole(OPENED.events(PART) + event("error", data) + DONE)
    assert len(found) == 1
    assert type(error) is errors.RateLimitError
    assert str(error) == "it failed"


@pytest.mark.parametrize("value", [ERROR, ERROR["error"]])
def test_an_encrypted_error_event_raises_the_matching_error(value):
    found, error = whole(OPENED.events(PART) + event("error", OPENED.seal(value)) + DONE)
    assert len(found) == 1
    assert type(error) is errors.RateLimitError
    assert str(error) == "it failed"


@pytest.mark.parametrize("value", [ERROR, {**chunk(PART), **ERROR}, {"error": "it failed"}])
def test_an_error_inside_a_chunk_is_an_error(value):
    found, error = whole(OPENED.events(PART) + event("data", OPENED.seal(value)) + DONE)
    assert len(found) == 1
    assert isinstance(error, errors.APIError)
    assert str(error) == "it failed"


@pytest.mark.parametrize("plain", [b"not json", b"", b"[]", b'"words"', b"\xff"])
def test_a_malformed_error_event_is_still_an_error(plain):
    _, error = whole(event("error", OPENED.seal(plain)))
    assert isinstance(error, errors.APIError)


def test_an_error_event_that_cannot_be_decrypted_is_a_decryption_error():
    wrong = (
        OPENED.seal(ERROR)[:-2] + "00"
        if not OPENED.seal(ERROR).endswith("00")
        else OPENED.seal(ERROR)[:-2] + "01"
    )
    assert type(whole(event("error", wrong))[1]) is errors.DecryptionError


@pytest.mark.parametrize(
    "data", ["{", '{"error"', "{}", '{"error": {"message": {"a": 1}}}', '{"error": "\\ud800"}']
)
def test_a_plaintext_error_event_of_any_form_is_an_api_error(data):
    assert isinstance(whole(event("error", data))[1], errors.APIError)


# --- tampering


def test_a_changed_hex_digit_anywhere_is_a_decryption_error():
    sealed = OPENED.seal(chunk(PART))
    for place in range(len(sealed)):
        digit = "0123456789abcdef"[(int(sealed[place], 16) + 1) % 16]
        found, error = read([event("data", sealed[:place] + digit + sealed[place + 1 :]) + DONE])
        assert found == []
        assert type(error) is errors.DecryptionError
        assert str(error) == errors.DecryptionError.MESSAGE


@pytest.mark.parametrize(
    "data",
    [
        "",
        "z",
        "zz",
        "0",
        "00",
        "[DONE]",
        "null",
        "{}",
        "ä",
        "0x" + "00" * 20,
        " " + "00" * 20,
        "00 " * 20,
        "\0",
    ],
)
def test_data_that_is_not_hex_or_too_short_is_a_decryption_error(data):
    found, error = whole(OPENED.events(PART) + event("data", data) + DONE)
    assert len(found) == 1
    assert type(error) is errors.DecryptionError


def test_a_plaintext_chunk_is_rejected():
    found, error = whole(event("data", json.dumps(chunk(PART))) + DONE)
    assert found == []
    assert type(error) is errors.DecryptionError


def test_a_chunk_of_another_request_is_a_decryption_error():
    other = ENCLAVE.open(chat_body(KEYS, b"{}", new_nonce()))
    assert type(whole(other.stream())[1]) is errors.DecryptionError
    stranger = ENCLAVE.open(chat_body(EncryptionKeys.encapsulate(ENCLAVE.public), b"{}", OPENED.nonce))
    assert type(whole(stranger.stream())[1]) is errors.DecryptionError


def test_stream_errors_do_not_quote_the_content():
    value = {"choices": "SECRET WORDS"}
    _, error = whole(event("data", OPENED.seal(chunk(value))))
    assert type(error) is errors.APIResponseValidationError
    assert "SECRET" not in error_text(error)


FAULTS = {
    "flipped": (event("data", "00" * 40), errors.DecryptionError),
    "not hex": (event("data", "zz"), errors.DecryptionError),
    "error event": (event("error", json.dumps(ERROR)), errors.RateLimitError),
    "error chunk": (event("data", OPENED.seal(ERROR)), errors.RateLimitError),
    "no chunk": (event("data", OPENED.seal(b"[]")), errors.APIResponseValidationError),
    "done too early": (DONE, errors.StreamInterruptedError),
    "too large": (event("data", "00" * MAX), errors.ResponseTooLargeError),
}


@pytest.mark.parametrize(("fault", "kind"), FAULTS.values(), ids=FAULTS)
def test_the_chunks_before_an_error_are_yielded_first_however_the_stream_is_split(fault, kind):
    good = OPENED.events(PART, PART)
    stream = good + fault
    sizes = [len(stream), len(good), len(good) + 1, len(good) - 1, 4096, 64, 7]
    for size in sizes:
        found, error = read(stream[i : i + size] for i in range(0, len(stream), size))
        assert text_of(found) == "aa"
        assert type(error) is kind


def test_an_event_that_is_too_large_is_an_error():
    stream = reader(max_buffer_size=100)
    with pytest.raises(errors.ResponseTooLargeError):
        list(stream.feed(OPENED.stream()))


def test_a_stream_with_too_many_events_is_an_error(monkeypatch):
    # A gateway can send one genuine chunk for ever.
    monkeypatch.setattr(chat_stream, "MAX_EVENTS", 10)
    stream, part = reader(), OPENED.events(PART)
    assert [len(list(stream.feed(part))) for _ in range(10)] == [1] * 10
    with pytest.raises(errors.ResponseTooLargeError, match="10 events"):
        list(stream.feed(part))


def test_a_stream_with_too_many_bytes_is_an_error(monkeypatch):
    monkeypatch.setattr(chat_stream, "MAX_STREAM_BYTES", 1000)
    stream = reader()
    for _ in range(10):
        assert list(stream.feed(b":" + b"-" * 97 + b"\n\n")) == []
    with pytest.raises(errors.ResponseTooLargeError, match="1000 bytes"):
        list(stream.feed(b":"))


def test_a_stream_may_be_as_long_as_its_bounds(monkeypatch):
    monkeypatch.setattr(chat_stream, "MAX_EVENTS", len(HELLO) + 1)
    monkeypatch.setattr(chat_stream, "MAX_STREAM_BYTES", len(STREAM))
    assert len(list(reader().feed(STREAM))) == len(HELLO)


@pytest.mark.parametrize(
    "delta",
    [
        {"content": "a" * 50},
        {"reasoning_content": "a" * 50},
        {"refusal": "a" * 50},
        {"tool_calls": [{"index": 0, "function": {"arguments": "a" * 50}}]},
    ],
)
def test_an_answer_that_is_collected_is_limited_by_the_buffer_size(delta):
    part = {"choices": [{"index": 0, "delta": delta}]}
    harness = FlowHarness(
        default_settings(max_buffer_size=2000), answers=[lambda opened: opened.events(*[part] * 100)]
    )
    with pytest.raises(errors.ResponseTooLargeError, match="max_buffer_size"):
        harness.complete()
    assert len(harness.sent) == 1


def test_a_stream_may_be_longer_than_the_buffer_size():
    chunks = [PART] * 100 + [FINISH]
    harness = FlowHarness(
        default_settings(max_buffer_size=500), answers=[lambda opened: opened.stream(*chunks)]
    )
    assert text_of(harness.stream()) == "a" * 100


# --- the envelope form


def test_an_envelope_is_a_complete_response():
    completion = open_completion(KEYS, OPENED.envelope())
    assert completion.choices[0].message.content == "Hello"
    assert completion.choices[0].finish_reason == "stop"


def test_an_envelope_truncated_at_any_byte_is_an_error():
    body = OPENED.envelope()
    for length in range(len(body)):
        with pytest.raises(errors.APIResponseValidationError):
            open_completion(KEYS, body[:length])


def test_an_envelope_without_a_finish_reason_is_a_truncated_response():
    message = {"role": "assistant", "content": "Hel"}
    for reason in ({"finish_reason": None}, {}):
        value = {**COMPLETION, "choices": [{"index": 0, "message": message, **reason}]}
        with pytest.raises(errors.StreamInterruptedError):
            open_completion(KEYS, OPENED.envelope(value))


def test_an_envelope_with_an_error_inside_raises_that_error():
    with pytest.raises(errors.RateLimitError, match="it failed"):
        open_completion(KEYS, OPENED.envelope(ERROR))


@pytest.mark.parametrize(
    "value", [{}, [], b"text", {**COMPLETION, "choices": []}, {**COMPLETION, "choices": None}]
)
def test_an_envelope_without_a_response_is_an_error(value):
    with pytest.raises(errors.APIResponseValidationError):
        open_completion(KEYS, OPENED.envelope(value))


def test_a_modified_envelope_is_a_decryption_error():
    value = json.loads(OPENED.envelope())
    sealed = value["data"]["encryptedResponse"]
    for place in range(len(sealed)):
        digit = "0123456789abcdef"[(int(sealed[place], 16) + 1) % 16]
        value["data"]["encryptedResponse"] = sealed[:place] + digit + sealed[place + 1 :]
        with pytest.raises(errors.DecryptionError):
            open_completion(KEYS, json.dumps(value).encode())


@given(st.lists(st.binary(max_size=30), max_size=20))
def test_a_body_is_the_concatenation_of_its_reads(pieces):
    found = BodyReader(1000)
    for piece in pieces:
        found.feed(piece)
    assert found.body() == b"".join(pieces)


def test_a_body_of_exactly_the_limit_is_read_and_one_byte_more_is_an_error():
    found = BodyReader(100)
    found.feed(bytes(60))
    found.feed(bytes(40))
    assert len(found.body()) == 100
    with pytest.raises(errors.ResponseTooLargeError, match="100 bytes"):
        found.feed(b"x")


# --- through the exchange


@pytest.mark.parametrize("cut", [lambda stream: [stream], every_byte])
def test_streamed_and_whole_requests_read_the_same_response(cut):
    harness = FlowHarness(answers=[lambda opened: ScriptedResponse(cut(opened.stream()))])
    assert text_of(harness.stream()) == "Hello"
    assert harness.complete().choices[0].message.content == "Hello"


def test_a_stream_truncated_at_any_byte_is_never_returned_as_a_shorter_response():
    for length in range(0, len(STREAM) - 1, 7):
        harness = FlowHarness(
            answers=[lambda opened, length=length: ScriptedResponse([opened.stream()[:length]])]
        )
        with pytest.raises(errors.StreamInterruptedError):
            harness.complete()
