"""`nonce_reuse`: what the clients do about replies that are sealed under their request's nonce."""

import asyncio
import io
import json
import re
import warnings
import wave

import pytest
from support.fake_gateway import FakeGateway
from support.probed_gateway import (
    OpenedRecording,
    ProbedGateway,
    stream_hello,
    under_the_requests_nonce,
)

from prem_core import ConfigurationError, NonceReuseError, NonceReuseWarning
from prem_core import _errors as errors
from prem_core._protocol import nonce_reuse
from prem_core._protocol.accumulator import CompletionBuilder
from prem_core.enclave import LocalEnclave

ways = pytest.mark.parametrize("way", ["create", "stream"])
reused = pytest.mark.parametrize("reply", [stream_hello, under_the_requests_nonce])

SECRETS = {
    "messages": [
        {"role": "system", "content": "You are the zebra clinic."},
        {"role": "user", "content": "Zebra?", "name": "zebra"},
    ],
    "tools": [{"type": "function", "function": {"name": "zebra", "parameters": {"type": "object"}}}],
    "metadata": {"zebra": "zebra"},
    "safety_identifier": "zebra",
}


@pytest.fixture
def unwarned(monkeypatch):
    """The process as it starts, before the warning."""
    monkeypatch.setattr(nonce_reuse, "_warned", False)


def warned_by(call):
    """The warnings of `call`."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    return [each for each in found if each.category is NonceReuseWarning]


def transcribe(api, client, task="transcriptions", **params):
    """A transcription with either client."""
    made = getattr(client.audio, task).create(file=b"RIFF zebra", **params)
    return api._run(made) if asyncio.iscoroutine(made) else made


# --- "warn", the default


@ways
def test_the_first_streamed_reply_of_a_process_is_warned_of(api, make, unwarned, way):
    with FakeGateway() as gateway:
        client, other = make(gateway), make(gateway, nonce_reuse="warn")
        found = warned_by(lambda: [getattr(api, way)(each) for each in (client, client, other)])
    assert len(found) == 1


def test_a_stream_is_warned_of_before_it_is_requested(api, make, unwarned):
    with FakeGateway() as gateway, warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(NonceReuseWarning):
            api.stream(make(gateway))
    assert gateway.chats() == []


def test_an_envelope_under_the_requests_nonce_is_warned_of(api, make, unwarned):
    with FakeGateway(under_the_requests_nonce) as gateway:
        assert len(warned_by(lambda: api.create(make(gateway)))) == 1


@pytest.mark.parametrize("item", [0, 1, 2])
def test_a_transcription_under_a_nonce_of_its_request_is_warned_of(api, make, unwarned, item):
    def reply(opened):
        return opened.envelope(nonce=opened.nonces[item])

    with ProbedGateway(recording=reply) as gateway:
        assert len(warned_by(lambda: transcribe(api, make(gateway)))) == 1


def test_the_warning_has_two_sentences_and_names_the_setting(api, make, unwarned):
    with FakeGateway() as gateway:
        (warning,) = warned_by(lambda: api.stream(make(gateway)))
    text = str(warning.message)
    assert len(re.split(r"\. ", text)) == 2
    for name in ("nonce_reuse='error'", "PREM_NONCE_REUSE", "'allow'", "gateway"):
        assert name in text


def test_a_reply_under_a_nonce_of_its_own_is_not_warned_of(api, make, unwarned):
    with ProbedGateway() as gateway:
        client = make(gateway)
        assert warned_by(lambda: (api.create(client), transcribe(api, client))) == []


@pytest.mark.parametrize("mode", ["warn", "allow"])
def test_only_error_sends_a_probe(api, make, mode):
    with ProbedGateway(prompt=stream_hello) as gateway:
        client = make(gateway, nonce_reuse=mode)
        api.stream(client)
        api.create(client)
        transcribe(api, client)
    assert gateway.probes == []
    assert len(gateway.recordings) == 1


# --- "allow"


def test_allow_is_silent(api, make, unwarned):
    def under(opened):
        return opened.envelope(nonce=opened.nonces[0])

    with ProbedGateway(prompt=stream_hello, recording=under) as gateway:
        client = make(gateway, nonce_reuse="allow")
        assert warned_by(lambda: (api.stream(client), api.create(client), transcribe(api, client))) == []


# --- "error": nothing is requested as a stream


def test_with_error_no_request_asks_for_a_stream(api, make):
    with ProbedGateway() as gateway:
        client = make(gateway, nonce_reuse="error")
        api.create(client)
        api.stream(client, stream_options={"include_usage": True})
        api.create(client, extra_body={"stream": True, "stream_options": {"include_usage": True}})
    assert len(gateway.opened) == 4
    for opened in gateway.opened:
        assert b'"stream' not in opened.plaintext


CALLS = [
    {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
    {"id": "call_2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
]
LOGPROBS = {"content": [{"token": "Hi", "logprob": -0.5, "bytes": None, "top_logprobs": []}]}
COMPLETION = {
    "id": "c1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "system_fingerprint": "fp",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hi", "reasoning_content": "They greet me."},
            "logprobs": LOGPROBS,
            "finish_reason": "stop",
            "matched_stop": "!",
        },
        {
            "index": 1,
            "message": {"role": "assistant", "content": None, "tool_calls": CALLS},
            "finish_reason": "tool_calls",
        },
        {
            "index": 2,
            "message": {"role": "assistant", "content": None, "refusal": "No."},
            "finish_reason": "stop",
        },
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}


def whole(completion):
    return lambda call: call.reply(call.opened().envelope(completion))


def test_with_error_a_stream_gives_the_whole_answer(api, make):
    with ProbedGateway(prompt=whole(COMPLETION)) as gateway:
        client = make(gateway, nonce_reuse="error")
        chunks = api.stream(client, n=3, stream_options={"include_usage": True})
        expected = api.create(client, n=3)
    builder = CompletionBuilder()
    for chunk in chunks:
        builder.add(chunk)
    assert builder.build().model_dump() == expected.model_dump()
    first = chunks[0].choices
    assert first[0].delta.content == "Hi"
    assert first[0].delta.reasoning_content == "They greet me."
    assert first[0].logprobs == LOGPROBS
    assert [call.model_dump() for call in first[1].delta.tool_calls] == [
        {"index": index, **call} for index, call in enumerate(CALLS)
    ]
    assert first[2].delta.refusal == "No."
    assert [choice.finish_reason for choice in chunks[1].choices] == ["stop", "tool_calls", "stop"]
    assert chunks[1].choices[0].matched_stop == "!"


@pytest.mark.parametrize(
    ("options", "reported"),
    [
        ({}, 0),
        ({"stream_options": {"include_usage": False}}, 0),
        ({"stream_options": {"include_usage": True}}, 1),
    ],
)
def test_with_error_a_stream_reports_the_usage_only_if_it_is_asked_for(api, make, options, reported):
    with ProbedGateway(prompt=whole(COMPLETION)) as gateway:
        chunks = api.stream(make(gateway, nonce_reuse="error"), **options)
    assert len([chunk for chunk in chunks if chunk.usage is not None]) == reported


# --- transcriptions


@pytest.mark.parametrize("task", ["transcriptions", "translations"])
def test_a_probe_for_recordings_holds_half_a_second_of_silence(api, make, task):
    with ProbedGateway() as gateway:
        client = make(gateway, nonce_reuse="error")
        for _ in range(2):
            transcribe(api, client, task, model="whisper", prompt="zebra")
    probe, first, _ = gateway.recordings
    assert probe.route.endswith(task)
    assert probe.params == {"model": "whisper"}
    assert probe.name == b"recording.wav"
    with wave.open(io.BytesIO(probe.recording)) as sound:
        assert sound.getnframes() / sound.getframerate() == 0.5
        assert set(sound.readframes(sound.getnframes())) == {0}
    assert first.params["prompt"] == "zebra"
    assert gateway.probes == []


def test_transcription_and_translation_are_probed_each(api, make):
    with ProbedGateway() as gateway:
        client = make(gateway, nonce_reuse="error")
        transcribe(api, client, "transcriptions")
        transcribe(api, client, "translations")
        api.create(client)
    assert len(gateway.recordings) == 4
    assert len(gateway.probes) == 1


@pytest.mark.parametrize("item", [0, 1, 2])
def test_a_recording_is_not_sent_where_the_probe_finds_nonce_reuse(api, make, item):
    with ProbedGateway(recording=lambda opened: opened.envelope(nonce=opened.nonces[item])) as gateway:
        with pytest.raises(NonceReuseError):
            transcribe(api, make(gateway, nonce_reuse="error"))
    assert [b"zebra" in each.recording for each in gateway.recordings] == [False]


def test_a_transcription_under_its_requests_nonce_after_a_good_probe_is_refused(api, make):
    def reply(opened: OpenedRecording) -> bytes:
        return opened.envelope(nonce=opened.nonces[0] if b"zebra" in opened.recording else None)

    with ProbedGateway(recording=reply) as gateway:
        client = make(gateway, nonce_reuse="error")
        for _ in range(2):
            with pytest.raises(NonceReuseError):
                transcribe(api, client)
    assert len(gateway.recordings) == 2


@pytest.mark.parametrize("mode", ["warn", "allow"])
def test_the_request_sent_back_as_the_answer_is_an_error(api, make, mode):
    def reflect(call):
        sent = json.loads(call.body)
        data = {"encryptedResponse": sent["encryptedInference"], "nonce": sent["nonce"]}
        call.reply(json.dumps({"status": 200, "data": data}).encode())

    with FakeGateway(reflect) as gateway, pytest.raises(errors.APIResponseValidationError, match="choices"):
        api.create(make(gateway, nonce_reuse=mode))


@pytest.mark.parametrize("item", [0, 1, 2])
@pytest.mark.parametrize("mode", ["warn", "allow"])
def test_a_part_of_the_request_sent_back_as_the_transcript_is_an_error(api, make, item, mode):
    def reflected(opened):
        plain = (opened.plaintext, opened.name, opened.recording)[item]
        return opened.envelope(plain, nonce=opened.nonces[item])

    with (
        ProbedGateway(recording=reflected) as gateway,
        pytest.raises(errors.APIResponseValidationError, match="copy"),
    ):
        transcribe(api, make(gateway, nonce_reuse=mode), response_format="text")


# --- settings


@pytest.mark.parametrize("value", ["yes", "", "Error", True, False, 0, ["error"]])
def test_a_bad_mode_is_refused_with_the_three_that_exist(api, value):
    with pytest.raises(ConfigurationError, match="nonce_reuse must be 'warn', 'error' or 'allow'"):
        api.client_class(api_key="k", nonce_reuse=value)


def test_a_bad_mode_in_the_environment_is_refused_with_the_name_of_the_variable(api, monkeypatch):
    monkeypatch.setenv("PREM_NONCE_REUSE", "sometimes")
    with pytest.raises(ConfigurationError, match=r"\(from PREM_NONCE_REUSE\).*'sometimes'"):
        api.client_class(api_key="k")


@pytest.mark.parametrize("where", ["argument", "environment"])
def test_error_cannot_be_combined_with_encryption_keys(api, make, monkeypatch, where):
    with ProbedGateway() as gateway:
        keys = api.generate(enclave_url=gateway.url)
        given = {"nonce_reuse": "error"} if where == "argument" else {}
        if where == "environment":
            monkeypatch.setenv("PREM_NONCE_REUSE", "error")
        with pytest.raises(ConfigurationError, match=r"encryption_keys.*nonce_reuse='error'"):
            make(gateway, encryption_keys=keys, **given)


def test_the_mode_comes_from_the_environment_and_an_argument_wins(api, make, monkeypatch):
    monkeypatch.setenv("PREM_NONCE_REUSE", "error")
    with FakeGateway() as gateway:
        with pytest.raises(NonceReuseError):
            api.create(make(gateway))
        api.create(make(gateway, nonce_reuse="allow"))


# --- the embedded enclave


@pytest.mark.parametrize("form", ["envelope", "stream"])
def test_the_embedded_enclave_answers_in_either_way(api, form):
    with LocalEnclave(whole_replies=form) as enclave:
        client = api.client_class(**enclave.client_options, nonce_reuse="error")
        try:
            if form == "stream":
                with pytest.raises(NonceReuseError):
                    api.stream(client, model="openai/gpt-oss-120b")
            else:
                assert api.stream(client, model="openai/gpt-oss-120b")
        finally:
            api.close(client)


def test_the_embedded_enclave_answers_an_audio_probe(api, enclave):
    client = api.client_class(**enclave.client_options, nonce_reuse="error")
    try:
        made = client.audio.transcriptions.create(file=("silence.wav", nonce_reuse.probe_recording()))
        assert (api._run(made) if asyncio.iscoroutine(made) else made).prem.reply_nonce == "own"
    finally:
        api.close(client)
