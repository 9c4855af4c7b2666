import json

import pytest
from support.fake_gateway import (
    COMPLETION,
    DONE,
    EVENT_STREAM,
    HELLO,
    JSON,
    KEY_ROTATED,
    PARAMS,
    Enclave,
    Pair,
    Reply,
    default_settings,
    error_reply,
    every_byte,
    said,
    text_of,
)

from prem_core import _errors as errors
from prem_core._crypto.keys import EncryptionKeys
from prem_core._crypto.xwing import PublicKey
from prem_core._protocol.error_body import MAX_ERROR_BODY
from prem_core._protocol.flow import ResponseHead, Send, chat
from prem_core._protocol.request_schema import chat_plaintext
from prem_core._protocol.routes import CHAT_ROUTE

BROKEN = errors.StreamInterruptedError("gateway: the connection broke in the middle of the answer")
PART = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]}
WAYS = {"whole": lambda pair: pair.complete(), "stream": lambda pair: list(pair.stream())}
both_ways = pytest.mark.parametrize("ask", WAYS.values(), ids=WAYS)


# --- the straight line


def test_a_request_goes_to_the_published_route_with_the_published_body():
    pair = Pair()
    pair.complete(temperature=0.5)
    (sent,) = pair.sent
    assert (sent.method, sent.party, sent.path, dict(sent.query)) == ("POST", "gateway", CHAT_ROUTE, {})
    assert pair.opened[0].params == {**PARAMS, "temperature": 0.5}


def test_an_answer_in_events_is_a_whole_answer():
    answer = Pair().complete()
    assert answer.choices[0].message.content == "Hello"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == 5


def test_an_answer_in_an_envelope_is_a_whole_answer():
    pair = Pair(answers=[lambda opened: Reply(every_byte(opened.envelope()), headers=dict(JSON))])
    answer = pair.complete()
    assert answer.choices[0].message.content == "Hello"
    assert answer.id == COMPLETION["id"]


def test_a_stream_gives_every_chunk():
    chunks = list(Pair().stream())
    assert len(chunks) == len(HELLO)
    assert text_of(chunks) == "Hello"


def test_a_stream_begins_with_its_first_chunk_and_not_before():
    def first_only(opened):
        return Reply([b": hello\n\n", opened.events(PART), BROKEN])

    stream = Pair(answers=[first_only]).stream()
    assert next(stream).choices[0].delta.content == "a"
    with pytest.raises(errors.StreamInterruptedError):
        next(stream)


@pytest.mark.parametrize(
    "kind",
    ["text/event-stream", "text/event-stream; charset=utf-8", "TEXT/Event-Stream", " text/event-stream ;x=y"],
)
@both_ways
def test_the_form_of_an_answer_is_told_by_its_content_type(ask, kind):
    ask(Pair(answers=[lambda opened: Reply([opened.stream()], headers={"content-type": kind})]))


@pytest.mark.parametrize(
    "headers", [{}, {"content-type": "text/html"}, {"content-type": ""}, {"content-type": "text/plain"}]
)
@both_ways
def test_an_answer_of_another_content_type_is_none(ask, headers):
    pair = Pair(answers=[lambda opened: Reply([opened.stream()], headers=headers)])
    with pytest.raises(errors.APIResponseValidationError, match="content type"):
        ask(pair)
    assert len(pair.sent) == 1


def test_a_stream_that_is_answered_with_an_envelope_is_an_error():
    pair = Pair(answers=[lambda opened: Reply([opened.envelope()], headers=dict(JSON))])
    with pytest.raises(errors.APIResponseValidationError, match="stream"):
        pair.stream()


@both_ways
def test_an_answer_that_does_not_open_is_a_decryption_error_and_not_tried_again(ask):
    pair = Pair(answers=[Reply([b"event: data\ndata: " + b"00" * 40 + b"\n\n" + DONE])])
    with pytest.raises(errors.DecryptionError):
        ask(pair)
    assert len(pair.sent) == 1
    assert len(pair.fetches) == 1


# --- what an answer that is whole still waits for


@pytest.mark.parametrize(
    "end", [BROKEN, errors.APITimeoutError("gateway: waiting for the service timed out")]
)
def test_an_answer_that_is_whole_is_not_lost_to_what_the_connection_does_next(end):
    pair = Pair(answers=[lambda opened: Reply([opened.stream(), end])])
    assert pair.complete().choices[0].message.content == "Hello"
    assert len(pair.sent) == 1


def test_nothing_is_read_once_an_answer_is_whole():
    # A gateway that goes on sending keep-alive comments would hold the caller for ever.
    pair = Pair(answers=[lambda opened: Reply([opened.stream(), *[b": keep-alive\n\n"] * 50])])
    assert pair.complete().choices[0].message.content == "Hello"
    assert pair.reads == 1


# --- secrets and nonces


@both_ways
def test_every_attempt_has_a_fresh_cipher_text_and_nonce(ask):
    pair = Pair(
        default_settings(max_retries=4),
        answers=[
            lambda _: errors.APITimeoutError("x"),
            lambda _: error_reply(503, "busy"),
            lambda _: KEY_ROTATED,
        ]
        + [lambda opened: opened.stream()],
    )
    ask(pair)
    ask(pair)
    assert len(pair.opened) == 5
    for name in ("cipherText", "nonce", "encryptedInference"):
        assert len({opened.body[name] for opened in pair.opened}) == 5
    assert len({opened.keys.shared_secret for opened in pair.opened}) == 5


@both_ways
def test_given_keys_are_used_for_every_request_under_fresh_nonces(ask):
    enclave = Enclave()
    keys = EncryptionKeys.encapsulate(enclave.public)
    pair = Pair(
        default_settings(keys=keys),
        enclave,
        answers=[lambda _: error_reply(503, "busy"), lambda opened: opened.stream()],
    )
    ask(pair)
    ask(pair)
    assert [opened.keys for opened in pair.opened] == [keys] * 3
    assert len({opened.nonce for opened in pair.opened}) == 3
    assert len({opened.body["encryptedInference"] for opened in pair.opened}) == 3
    assert pair.fetches == []


def test_no_step_shows_what_it_carries():
    steps = chat(chat_plaintext({**PARAMS, "safety_identifier": "SECRET"}), default_settings(), stream=False)
    enclave = Enclave()
    fetch = next(steps)
    send = steps.send(enclave.public)
    assert isinstance(send, Send)
    for step in (
        fetch,
        send,
        ResponseHead(200, {"authorization": "SECRET"}),
        default_settings(keys=enclave_keys(enclave)),
    ):
        assert "SECRET" not in repr(step)
        assert send.body.decode()[24:60] not in repr(step)
    keys = enclave_keys(enclave)
    assert keys.shared_secret.hex() not in repr(default_settings(keys=keys))
    steps.close()


def enclave_keys(enclave):
    return EncryptionKeys.encapsulate(enclave.public)


# --- the enclave's key


@both_ways
def test_the_key_is_asked_for_before_anything_is_sent(ask):
    pair = Pair()
    pair.keys = [errors.EnclaveKeyError("no key")]
    with pytest.raises(errors.EnclaveKeyError, match="no key"):
        ask(pair)
    assert pair.sent == []


@both_ways
def test_a_turned_key_is_fetched_once_more_and_the_request_sealed_to_it(ask):
    old, new = Enclave(1), Enclave(2)
    pair = Pair(enclave=new, answers=[KEY_ROTATED, lambda opened: opened.stream()])
    pair.keys = [old.public, new.public]
    ask(pair)
    assert pair.fetches == [None, old.public]
    assert len(pair.sent) == 2
    assert pair.sleeps == []
    assert pair.opened[0].params["messages"] == PARAMS["messages"]


@both_ways
def test_a_key_turned_twice_is_an_enclave_key_error(ask):
    pair = Pair(default_settings(max_retries=5), answers=[KEY_ROTATED])
    with pytest.raises(errors.EnclaveKeyError):
        ask(pair)
    assert len(pair.sent) == 2
    assert len(pair.fetches) == 2


@both_ways
def test_a_turned_key_is_found_out_by_an_error_event(ask):
    event = (
        b'event: error\ndata: {"error": {"message": "session expired", "type": "invalid_request_error"}}\n\n'
    )
    pair = Pair(answers=[event, lambda opened: opened.stream()])
    ask(pair)
    assert len(pair.sent) == 2
    assert len(pair.fetches) == 2


@both_ways
def test_a_key_that_turns_in_the_middle_of_an_answer_is_not_tried_again(ask):
    event = b'event: error\ndata: {"error": {"message": "session expired"}}\n\n'
    pair = Pair(answers=[lambda opened: opened.events(PART) + event])
    with pytest.raises(errors.APIError, match="session expired"):
        ask(pair)
    assert len(pair.sent) == 1


@both_ways
def test_a_pinned_key_that_was_turned_is_an_error_at_once(ask):
    pair = Pair(default_settings(pinned=True), answers=[KEY_ROTATED])
    with pytest.raises(errors.EnclaveKeyError, match="pinned"):
        ask(pair)
    assert len(pair.sent) == 1
    assert len(pair.fetches) == 1


@both_ways
def test_given_keys_that_no_longer_open_are_an_error_at_once(ask):
    enclave = Enclave()
    pair = Pair(default_settings(keys=enclave_keys(enclave)), enclave, answers=[KEY_ROTATED])
    with pytest.raises(errors.EnclaveKeyError, match="encryption_keys"):
        ask(pair)
    assert len(pair.sent) == 1
    assert pair.fetches == []


def test_an_enclave_key_error_keeps_what_the_service_said():
    pair = Pair(answers=[error_reply(400, "failed to decrypt the payload", support_id="support_9")])
    with pytest.raises(errors.EnclaveKeyError) as caught:
        pair.complete()
    assert isinstance(caught.value.__cause__, errors.BadRequestError)
    assert caught.value.__cause__.support_id == "support_9"


@pytest.mark.parametrize("status", [401, 403, 429])
def test_a_status_that_speaks_of_the_api_key_does_not_turn_the_enclaves(status):
    pair = Pair(default_settings(max_retries=0), answers=[error_reply(status, "session expired")])
    with pytest.raises(errors.APIStatusError):
        pair.complete()
    assert len(pair.fetches) == 1


@both_ways
def test_fetching_a_turned_key_does_not_use_up_a_retry(ask):
    answers = [KEY_ROTATED, *[error_reply(503, "busy")] * 2, lambda opened: opened.stream()]
    pair = Pair(default_settings(max_retries=2), answers=answers)
    ask(pair)
    assert len(pair.sent) == 4
    assert pair.sleeps == [0.5, 1.0]


def test_a_key_that_cannot_be_used_is_an_enclave_key_error():
    pair = Pair()
    pair.keys = [PublicKey(bytes(pair.enclave.public)[:1184] + bytes(32))]
    with pytest.raises(errors.EnclaveKeyError):
        pair.complete()
    assert pair.sent == []


# --- fetching it


def key_reply(enclave):
    return Reply([json.dumps({"publicKey": bytes(enclave.public).hex()}).encode()], headers=dict(JSON))


def test_the_key_is_read_from_the_enclave_and_not_from_the_gateway():
    pair = Pair(answers=[key_reply(Enclave())])
    assert pair.public_key() == Enclave().public
    (sent,) = pair.sent
    assert (sent.method, sent.party, sent.path, sent.body) == ("GET", "enclave", "/publicKey", None)


def test_an_enclave_that_is_busy_is_asked_again():
    pair = Pair(answers=[error_reply(503, "busy"), errors.APITimeoutError("x"), key_reply(Enclave())])
    assert pair.public_key() == Enclave().public
    assert pair.sleeps == [0.5, 1.0]


def test_an_enclave_that_refuses_is_an_enclave_key_error():
    pair = Pair(answers=[error_reply(404, "not here", support_id="support_3")])
    with pytest.raises(errors.EnclaveKeyError, match="not here") as caught:
        pair.public_key()
    assert "support_3" in str(caught.value)
    assert len(pair.sent) == 1


def test_an_enclave_that_cannot_be_reached_is_a_connection_error():
    pair = Pair(default_settings(max_retries=1), answers=[errors.APIConnectionError("enclave: no")])
    with pytest.raises(errors.APIConnectionError, match="enclave: no"):
        pair.public_key()
    assert len(pair.sent) == 2


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b'{"publicKey": "00"}'])
def test_an_enclave_without_a_key_is_an_enclave_key_error(body):
    pair = Pair(answers=[Reply([body])])
    with pytest.raises(errors.EnclaveKeyError):
        pair.public_key()
    assert len(pair.sent) == 1


def test_a_key_answer_of_any_size_is_not_held():
    pair = Pair(default_settings(max_buffer_size=10_000), answers=[Reply([b"x" * 6000] * 3)])
    with pytest.raises(errors.PremError):
        pair.public_key()


# --- errors


@both_ways
def test_an_error_carries_what_the_service_said(ask):
    pair = Pair(
        answers=[error_reply(400, "bad temperature", support_id="support_42", validator={"temperature": "x"})]
    )
    with pytest.raises(errors.BadRequestError) as caught:
        ask(pair)
    error = caught.value
    assert (error.status_code, error.support_id) == (400, "support_42")
    assert error.validator == {"temperature": "x"}
    assert "bad temperature" in str(error)


@pytest.mark.parametrize("body", [b"", b"<html><h1>Bad Gateway</h1></html>", b"\xff\x00", b"null"])
@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 413, 418, 429, 500, 502, 503])
def test_an_error_of_any_body_is_the_error_of_its_status(status, body):
    pair = Pair(
        default_settings(max_retries=0), answers=[Reply([body], status, {"content-type": "text/html"})]
    )
    with pytest.raises(errors.APIStatusError) as caught:
        pair.complete()
    assert caught.value.status_code == status


def test_a_403_without_words_on_the_scope_is_not_given_one():
    pair = Pair(answers=[error_reply(403, "missing scope")])
    with pytest.raises(errors.PermissionDeniedError) as caught:
        pair.complete()
    assert caught.value.scope == "chats.completion"


def test_an_error_whose_body_breaks_off_is_still_the_error_of_its_status():
    pair = Pair(answers=[Reply([b'{"error": "inv', BROKEN], 401, dict(JSON))])
    with pytest.raises(errors.AuthenticationError):
        pair.complete()
    assert len(pair.sent) == 1


def test_of_a_huge_error_body_only_the_beginning_is_read():
    piece = b"x" * 1024
    pair = Pair(answers=[Reply([piece] * 10_000, 400, {})])
    with pytest.raises(errors.BadRequestError):
        pair.complete()
    assert pair.reads <= MAX_ERROR_BODY / len(piece) + 1


def test_no_error_of_an_exchange_shows_the_request():
    replies = [
        KEY_ROTATED,
        error_reply(400, "no"),
        Reply([b"{}"], headers=dict(JSON)),
        Reply([b"x"], headers=dict(EVENT_STREAM)),
    ]
    for reply in replies:
        pair = Pair(default_settings(max_retries=0), answers=[reply])
        with pytest.raises(errors.PremError) as caught:
            pair.complete(safety_identifier="SECRET")
        sealed = json.loads(pair.sent[0].body)["encryptedInference"]
        assert "SECRET" not in said(caught.value)
        assert sealed[:40] not in said(caught.value)


@both_ways
def test_an_answer_larger_than_the_buffer_is_an_error_and_not_asked_for_again(ask):
    pair = Pair(default_settings(max_buffer_size=100))
    with pytest.raises(errors.ResponseTooLargeError):
        ask(pair)
    assert len(pair.sent) == 1


def test_an_envelope_larger_than_the_buffer_is_an_error():
    pair = Pair(
        default_settings(max_buffer_size=100),
        answers=[lambda opened: Reply([opened.envelope()], headers=dict(JSON))],
    )
    with pytest.raises(errors.ResponseTooLargeError):
        pair.complete()


def test_an_envelope_that_reports_an_error_is_that_error():
    pair = Pair(answers=[Reply([b'{"status": 404, "error": "no such model"}'], headers=dict(JSON))])
    with pytest.raises(errors.NotFoundError, match="no such model"):
        pair.complete()


# --- the models list

MODEL = {
    "id": "m1",
    "model": "openai/gpt-oss-120b",
    "type": "CHAT",
    "enabled": True,
    "price_config": {"in": 1},
}


def envelope(data):
    return Reply([json.dumps({"status": 200, "data": data, "message": None, "env": "production"}).encode()])


@pytest.mark.parametrize("data", [[MODEL], {"models": [MODEL]}, {"data": [MODEL]}])
def test_the_models_list_is_read_in_every_form(data):
    pair = Pair(answers=[envelope(data)])
    (model,) = pair.models()
    assert (model.id, model.request_name, model.price_config) == ("m1", "openai/gpt-oss-120b", {"in": 1})
    (sent,) = pair.sent
    assert (sent.method, sent.party, sent.path, dict(sent.query)) == ("GET", "gateway", "/models", {})
    assert pair.fetches == []


def test_the_models_of_one_type_are_asked_for_by_query():
    pair = Pair(answers=[envelope([])])
    assert pair.models("CHAT") == []
    assert dict(pair.sent[0].query) == {"type": "CHAT"}


@pytest.mark.parametrize(
    "data", [None, {}, "text", 5, ["m1"], {"models": "m1"}, [None], {"models": {"a": MODEL}}]
)
def test_a_models_list_that_is_none_is_an_error(data):
    with pytest.raises(errors.APIResponseValidationError):
        Pair(answers=[envelope(data)]).models()


@pytest.mark.parametrize(
    "entry",
    [
        {"id": None, "model": "m"},
        {"id": 5, "model": "m"},
        {"model": "m", "input_modalities": "text"},
        {"model": "m", "enabled": "?"},
    ],
)
def test_an_entry_of_another_form_is_read_or_is_an_error_of_ours(entry):
    pair = Pair(answers=[envelope([entry])])
    try:
        assert pair.models()[0].request_name == "m"
    except errors.APIResponseValidationError:
        pass


def test_the_models_list_is_retried():
    pair = Pair(answers=[error_reply(502, "x"), errors.APIConnectionError("x"), envelope([MODEL])])
    assert len(pair.models()) == 1
    assert pair.sleeps == [0.5, 1.0]


@pytest.mark.parametrize(
    ("status", "kind"), [(401, errors.AuthenticationError), (403, errors.PermissionDeniedError)]
)
def test_a_models_list_that_is_refused_is_an_error(status, kind):
    with pytest.raises(kind):
        Pair(answers=[error_reply(status, "no")]).models()
