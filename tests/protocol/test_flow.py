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
    FakeEnclave,
    FlowHarness,
    ScriptedResponse,
    default_settings,
    error_reply,
    error_text,
    every_byte,
    text_of,
)

from prem_core import _errors as errors
from prem_core._crypto.keys import EncryptionKeys
from prem_core._crypto.xwing import PublicKey
from prem_core._protocol.error_body import MAX_ERROR_BODY
from prem_core._protocol.flow import chat
from prem_core._protocol.request_schema import chat_request
from prem_core._protocol.routes import CHAT_ROUTE
from prem_core._protocol.steps import ResponseHead, Send

BROKEN = errors.StreamInterruptedError("gateway: the connection broke in the middle of the answer")
PART = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]}
WAYS = {"whole": lambda harness: harness.complete(), "stream": lambda harness: list(harness.stream())}
both_ways = pytest.mark.parametrize("ask", WAYS.values(), ids=WAYS)


# --- the straight line


def test_a_request_has_the_published_route_and_body():
    harness = FlowHarness()
    harness.complete(temperature=0.5)
    (sent,) = harness.sent
    assert (sent.method, sent.party, sent.path, dict(sent.query)) == ("POST", "gateway", CHAT_ROUTE, {})
    assert harness.opened[0].params == {**PARAMS, "temperature": 0.5}


def test_a_whole_response_is_read_from_events():
    answer = FlowHarness().complete()
    assert answer.choices[0].message.content == "Hello"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == 5


def test_a_whole_response_is_read_from_an_envelope():
    harness = FlowHarness(
        answers=[lambda opened: ScriptedResponse(every_byte(opened.envelope()), headers=dict(JSON))]
    )
    answer = harness.complete()
    assert answer.choices[0].message.content == "Hello"
    assert answer.id == COMPLETION["id"]


def test_a_stream_yields_every_chunk():
    chunks = list(FlowHarness().stream())
    assert len(chunks) == len(HELLO)
    assert text_of(chunks) == "Hello"


def test_a_stream_starts_with_its_first_chunk():
    def first_only(opened):
        return ScriptedResponse([b": hello\n\n", opened.events(PART), BROKEN])

    stream = FlowHarness(answers=[first_only]).stream()
    assert next(stream).choices[0].delta.content == "a"
    with pytest.raises(errors.StreamInterruptedError):
        next(stream)


@pytest.mark.parametrize(
    "kind",
    ["text/event-stream", "text/event-stream; charset=utf-8", "TEXT/Event-Stream", " text/event-stream ;x=y"],
)
@both_ways
def test_the_content_type_decides_how_a_response_is_read(ask, kind):
    ask(
        FlowHarness(
            answers=[lambda opened: ScriptedResponse([opened.stream()], headers={"content-type": kind})]
        )
    )


@pytest.mark.parametrize(
    "headers", [{}, {"content-type": "text/html"}, {"content-type": ""}, {"content-type": "text/plain"}]
)
@both_ways
def test_a_response_of_another_content_type_is_an_error(ask, headers):
    harness = FlowHarness(answers=[lambda opened: ScriptedResponse([opened.stream()], headers=headers)])
    with pytest.raises(errors.APIResponseValidationError, match="content type"):
        ask(harness)
    assert len(harness.sent) == 1


def test_an_envelope_in_response_to_a_stream_request_is_an_error():
    harness = FlowHarness(answers=[lambda opened: ScriptedResponse([opened.envelope()], headers=dict(JSON))])
    with pytest.raises(errors.APIResponseValidationError, match="stream"):
        harness.stream()


@both_ways
def test_a_response_that_does_not_open_is_a_decryption_error_and_not_retried(ask):
    harness = FlowHarness(answers=[ScriptedResponse([b"event: data\ndata: " + b"00" * 40 + b"\n\n" + DONE])])
    with pytest.raises(errors.DecryptionError):
        ask(harness)
    assert len(harness.sent) == 1
    assert len(harness.fetches) == 1


# --- what an answer that is whole still waits for


@pytest.mark.parametrize(
    "end", [BROKEN, errors.APITimeoutError("gateway: waiting for the service timed out")]
)
def test_a_complete_response_is_not_lost_to_a_later_connection_error(end):
    harness = FlowHarness(answers=[lambda opened: ScriptedResponse([opened.stream(), end])])
    assert harness.complete().choices[0].message.content == "Hello"
    assert len(harness.sent) == 1


def test_nothing_is_read_after_a_complete_response():
    # A gateway that goes on sending keep-alive comments would hold the caller for ever.
    harness = FlowHarness(
        answers=[lambda opened: ScriptedResponse([opened.stream(), *[b": keep-alive\n\n"] * 50])]
    )
    assert harness.complete().choices[0].message.content == "Hello"
    assert harness.reads == 1


# --- secrets and nonces


@both_ways
def test_every_attempt_has_a_fresh_cipher_text_and_nonce(ask):
    harness = FlowHarness(
        default_settings(max_retries=4, retry_after_send=True),
        answers=[
            lambda _: errors.APITimeoutError("x"),
            lambda _: error_reply(503, "busy"),
            lambda _: KEY_ROTATED,
        ]
        + [lambda opened: opened.stream()],
    )
    ask(harness)
    ask(harness)
    assert len(harness.opened) == 5
    for name in ("cipherText", "nonce", "encryptedInference"):
        assert len({opened.body[name] for opened in harness.opened}) == 5
    assert len({opened.keys.shared_secret for opened in harness.opened}) == 5


@both_ways
def test_configured_keys_are_used_for_every_request_with_fresh_nonces(ask):
    enclave = FakeEnclave()
    keys = EncryptionKeys.encapsulate(enclave.public)
    harness = FlowHarness(
        default_settings(keys=keys),
        enclave,
        answers=[lambda _: error_reply(503, "busy"), lambda opened: opened.stream()],
    )
    ask(harness)
    ask(harness)
    assert [opened.keys for opened in harness.opened] == [keys] * 3
    assert len({opened.nonce for opened in harness.opened}) == 3
    assert len({opened.body["encryptedInference"] for opened in harness.opened}) == 3
    assert harness.fetches == []


def test_the_repr_of_a_step_contains_no_content():
    steps = chat(chat_request({**PARAMS, "safety_identifier": "SECRET"}), default_settings(), stream=False)
    enclave = FakeEnclave()
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
def test_the_enclave_key_is_fetched_before_anything_is_sent(ask):
    harness = FlowHarness()
    harness.keys = [errors.EnclaveKeyError("no key")]
    with pytest.raises(errors.EnclaveKeyError, match="no key"):
        ask(harness)
    assert harness.sent == []


@both_ways
def test_a_document_that_does_not_decrypt_is_not_taken_for_a_key_rotation(ask):
    message = "could not decrypt the attached PDF: it is password protected"
    harness = FlowHarness(answers=[error_reply(400, message)])
    with pytest.raises(errors.BadRequestError, match="attached PDF"):
        ask(harness)
    assert len(harness.sent) == 1
    assert harness.fetches == [None]


@both_ways
def test_after_a_key_rotation_the_new_key_is_fetched_and_the_request_sealed_to_it(ask):
    old, new = FakeEnclave(1), FakeEnclave(2)
    harness = FlowHarness(enclave=new, answers=[KEY_ROTATED, lambda opened: opened.stream()])
    harness.keys = [old.public, new.public]
    ask(harness)
    assert harness.fetches == [None, old.public]
    assert len(harness.sent) == 2
    assert harness.sleeps == []
    assert harness.opened[0].params["messages"] == PARAMS["messages"]


@both_ways
def test_a_second_key_rotation_in_one_request_is_an_enclave_key_error(ask):
    harness = FlowHarness(default_settings(max_retries=5), answers=[KEY_ROTATED])
    with pytest.raises(errors.EnclaveKeyError):
        ask(harness)
    assert len(harness.sent) == 2
    assert len(harness.fetches) == 2


@both_ways
def test_a_key_rotation_is_detected_from_an_error_event(ask):
    event = (
        b'event: error\ndata: {"error": {"message": "session expired", "type": "invalid_request_error"}}\n\n'
    )
    harness = FlowHarness(answers=[event, lambda opened: opened.stream()])
    ask(harness)
    assert len(harness.sent) == 2
    assert len(harness.fetches) == 2


@both_ways
def test_a_key_rotation_after_the_first_chunk_is_not_retried(ask):
    event = b'event: error\ndata: {"error": {"message": "session expired"}}\n\n'
    harness = FlowHarness(answers=[lambda opened: opened.events(PART) + event])
    with pytest.raises(errors.APIError, match="session expired"):
        ask(harness)
    assert len(harness.sent) == 1


@both_ways
def test_the_rotation_of_a_pinned_key_is_an_error_without_a_retry(ask):
    harness = FlowHarness(default_settings(pinned=True), answers=[KEY_ROTATED])
    with pytest.raises(errors.EnclaveKeyError, match="pinned"):
        ask(harness)
    assert len(harness.sent) == 1
    assert len(harness.fetches) == 1


@both_ways
def test_a_key_rotation_with_configured_keys_is_an_error_without_a_retry(ask):
    enclave = FakeEnclave()
    harness = FlowHarness(default_settings(keys=enclave_keys(enclave)), enclave, answers=[KEY_ROTATED])
    with pytest.raises(errors.EnclaveKeyError, match="encryption_keys"):
        ask(harness)
    assert len(harness.sent) == 1
    assert harness.fetches == []


def test_an_enclave_key_error_carries_the_services_message():
    harness = FlowHarness(answers=[error_reply(400, "failed to decrypt the payload", support_id="support_9")])
    with pytest.raises(errors.EnclaveKeyError) as caught:
        harness.complete()
    assert isinstance(caught.value.__cause__, errors.BadRequestError)
    assert caught.value.__cause__.support_id == "support_9"


@pytest.mark.parametrize("status", [401, 403, 429])
def test_an_api_key_error_is_not_taken_for_a_key_rotation(status):
    harness = FlowHarness(default_settings(max_retries=0), answers=[error_reply(status, "session expired")])
    with pytest.raises(errors.APIStatusError):
        harness.complete()
    assert len(harness.fetches) == 1


@both_ways
def test_a_key_rotation_does_not_use_up_a_retry(ask):
    answers = [KEY_ROTATED, *[error_reply(503, "busy")] * 2, lambda opened: opened.stream()]
    harness = FlowHarness(default_settings(max_retries=2), answers=answers)
    ask(harness)
    assert len(harness.sent) == 4
    assert harness.sleeps == [0.5, 1.0]


def test_an_unusable_key_is_an_enclave_key_error():
    harness = FlowHarness()
    harness.keys = [PublicKey(bytes(harness.enclave.public)[:1184] + bytes(32))]
    with pytest.raises(errors.EnclaveKeyError):
        harness.complete()
    assert harness.sent == []


# --- fetching it


def key_reply(enclave):
    return ScriptedResponse(
        [json.dumps({"publicKey": bytes(enclave.public).hex()}).encode()], headers=dict(JSON)
    )


def test_the_key_is_fetched_from_the_enclave_and_not_from_the_gateway():
    harness = FlowHarness(answers=[key_reply(FakeEnclave())])
    assert harness.public_key() == FakeEnclave().public
    (sent,) = harness.sent
    assert (sent.method, sent.party, sent.path, sent.body) == ("GET", "enclave", "/publicKey", None)


def test_a_key_request_to_a_busy_enclave_is_retried():
    harness = FlowHarness(
        answers=[error_reply(503, "busy"), errors.APITimeoutError("x"), key_reply(FakeEnclave())]
    )
    assert harness.public_key() == FakeEnclave().public
    assert harness.sleeps == [0.5, 1.0]


def test_a_rejected_key_request_is_an_enclave_key_error():
    harness = FlowHarness(answers=[error_reply(404, "not here", support_id="support_3")])
    with pytest.raises(errors.EnclaveKeyError, match="not here") as caught:
        harness.public_key()
    assert "support_3" in str(caught.value)
    assert len(harness.sent) == 1


def test_an_unreachable_enclave_is_a_connection_error():
    harness = FlowHarness(default_settings(max_retries=1), answers=[errors.APIConnectionError("enclave: no")])
    with pytest.raises(errors.APIConnectionError, match="enclave: no"):
        harness.public_key()
    assert len(harness.sent) == 2


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b'{"publicKey": "00"}'])
def test_an_enclave_without_a_key_is_an_enclave_key_error(body):
    harness = FlowHarness(answers=[ScriptedResponse([body])])
    with pytest.raises(errors.EnclaveKeyError):
        harness.public_key()
    assert len(harness.sent) == 1


def test_a_key_response_is_read_up_to_a_limit():
    harness = FlowHarness(
        default_settings(max_buffer_size=10_000), answers=[ScriptedResponse([b"x" * 6000] * 3)]
    )
    with pytest.raises(errors.PremError):
        harness.public_key()


# --- errors


@both_ways
def test_an_error_carries_the_services_message(ask):
    harness = FlowHarness(
        answers=[error_reply(400, "bad temperature", support_id="support_42", validator={"temperature": "x"})]
    )
    with pytest.raises(errors.BadRequestError) as caught:
        ask(harness)
    error = caught.value
    assert (error.status_code, error.support_id) == (400, "support_42")
    assert error.validator == {"temperature": "x"}
    assert "bad temperature" in str(error)


@pytest.mark.parametrize("body", [b"", b"<html><h1>Bad Gateway</h1></html>", b"\xff\x00", b"null"])
@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 413, 418, 429, 500, 502, 503])
def test_an_error_response_maps_to_the_error_of_its_status_whatever_its_body(status, body):
    harness = FlowHarness(
        default_settings(max_retries=0),
        answers=[ScriptedResponse([body], status, {"content-type": "text/html"})],
    )
    with pytest.raises(errors.APIStatusError) as caught:
        harness.complete()
    assert caught.value.status_code == status


def test_a_403_that_mentions_no_scope_has_none():
    harness = FlowHarness(answers=[error_reply(403, "missing scope")])
    with pytest.raises(errors.PermissionDeniedError) as caught:
        harness.complete()
    assert caught.value.scope == "chats.completion"


def test_an_error_with_a_truncated_body_is_still_the_error_of_its_status():
    harness = FlowHarness(answers=[ScriptedResponse([b'{"error": "inv', BROKEN], 401, dict(JSON))])
    with pytest.raises(errors.AuthenticationError):
        harness.complete()
    assert len(harness.sent) == 1


def test_only_the_beginning_of_a_huge_error_body_is_read():
    piece = b"x" * 1024
    harness = FlowHarness(answers=[ScriptedResponse([piece] * 10_000, 400, {})])
    with pytest.raises(errors.BadRequestError):
        harness.complete()
    assert harness.reads <= MAX_ERROR_BODY / len(piece) + 1


def test_no_error_of_a_request_contains_the_request():
    replies = [
        KEY_ROTATED,
        error_reply(400, "no"),
        ScriptedResponse([b"{}"], headers=dict(JSON)),
        ScriptedResponse([b"x"], headers=dict(EVENT_STREAM)),
    ]
    for reply in replies:
        harness = FlowHarness(default_settings(max_retries=0), answers=[reply])
        with pytest.raises(errors.PremError) as caught:
            harness.complete(safety_identifier="SECRET")
        sealed = json.loads(harness.sent[0].body)["encryptedInference"]
        assert "SECRET" not in error_text(caught.value)
        assert sealed[:40] not in error_text(caught.value)


@both_ways
def test_a_response_larger_than_the_buffer_is_an_error_and_not_retried(ask):
    harness = FlowHarness(default_settings(max_buffer_size=100))
    with pytest.raises(errors.ResponseTooLargeError):
        ask(harness)
    assert len(harness.sent) == 1


def test_an_envelope_larger_than_the_buffer_is_an_error():
    harness = FlowHarness(
        default_settings(max_buffer_size=100),
        answers=[lambda opened: ScriptedResponse([opened.envelope()], headers=dict(JSON))],
    )
    with pytest.raises(errors.ResponseTooLargeError):
        harness.complete()


def test_an_envelope_that_reports_an_error_raises_that_error():
    harness = FlowHarness(
        answers=[ScriptedResponse([b'{"status": 404, "error": "no such model"}'], headers=dict(JSON))]
    )
    with pytest.raises(errors.NotFoundError, match="no such model"):
        harness.complete()


# --- the models list

MODEL = {
    "id": "m1",
    "model": "openai/gpt-oss-120b",
    "type": "CHAT",
    "enabled": True,
    "price_config": {"in": 1},
}


def envelope(data):
    return ScriptedResponse(
        [json.dumps({"status": 200, "data": data, "message": None, "env": "production"}).encode()]
    )


@pytest.mark.parametrize("data", [[MODEL], {"models": [MODEL]}, {"data": [MODEL]}])
def test_the_models_list_is_parsed_in_every_form(data):
    harness = FlowHarness(answers=[envelope(data)])
    (model,) = harness.models()
    assert (model.id, model.price_config) == ("openai/gpt-oss-120b", {"in": 1})
    (sent,) = harness.sent
    assert (sent.method, sent.party, sent.path, dict(sent.query)) == ("GET", "gateway", "/models", {})
    assert harness.fetches == []


def test_the_model_type_is_sent_as_a_query():
    harness = FlowHarness(answers=[envelope([])])
    assert harness.models("CHAT") == []
    assert dict(harness.sent[0].query) == {"type": "CHAT"}


@pytest.mark.parametrize(
    "data", [None, {}, "text", 5, ["m1"], {"models": "m1"}, [None], {"models": {"a": MODEL}}]
)
def test_an_invalid_models_list_is_an_error(data):
    with pytest.raises(errors.APIResponseValidationError):
        FlowHarness(answers=[envelope(data)]).models()


@pytest.mark.parametrize(
    "entry",
    [
        {"id": None, "model": "m"},
        {"id": 5, "model": "m"},
        {"model": "m", "input_modalities": "text"},
        {"model": "m", "enabled": "?"},
    ],
)
def test_an_unusual_models_entry_is_parsed_or_is_a_prem_error(entry):
    harness = FlowHarness(answers=[envelope([entry])])
    try:
        assert harness.models()[0].id == "m"
    except errors.APIResponseValidationError:
        pass


def test_the_models_list_is_retried():
    harness = FlowHarness(answers=[error_reply(502, "x"), errors.APIConnectionError("x"), envelope([MODEL])])
    assert len(harness.models()) == 1
    assert harness.sleeps == [0.5, 1.0]


@pytest.mark.parametrize(
    ("status", "kind"), [(401, errors.AuthenticationError), (403, errors.PermissionDeniedError)]
)
def test_a_rejected_models_request_is_an_error(status, kind):
    with pytest.raises(kind):
        FlowHarness(answers=[error_reply(status, "no")]).models()
