"""`nonce_reuse`: what the clients do about replies that are sealed under their request's nonce."""

import asyncio
import io
import json
import re
import threading
import warnings
import wave
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.fake_gateway import JSON, PARAMS, FakeEnclave, FakeGateway
from support.probed_gateway import (
    OpenedRecording,
    ProbedGateway,
    in_an_envelope,
    stream_hello,
    under_the_requests_nonce,
)
from support.waiting import SOON

from prem_core import AsyncPremClient, ConfigurationError, NonceReuseError, NonceReuseWarning, PremClient
from prem_core import _errors as errors
from prem_core._protocol import nonce_reuse, retry
from prem_core._protocol.accumulator import CompletionBuilder
from prem_core._protocol.nonce_reuse import REPLY_FORMS
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


# --- the probe


def test_a_probe_holds_nothing_but_a_random_word(api, make):
    words = set()
    for _ in range(3):
        REPLY_FORMS.clear()
        with ProbedGateway() as gateway:
            api.create(make(gateway, nonce_reuse="error"), **SECRETS)
        probe = gateway.opened[0]
        assert set(probe.params) == {"model", "max_tokens", "messages"}
        (message,) = probe.params["messages"]
        assert set(message) == {"role", "content"}
        assert re.fullmatch("[a-z2-7]{20}", message["content"])
        assert b"zebra" not in probe.plaintext.lower()
        words.add(message["content"])
    assert len(words) == 3


@ways
@reused
def test_the_prompt_is_not_sent_where_the_probe_finds_nonce_reuse(api, make, way, reply):
    with ProbedGateway(probe=reply, prompt=reply) as gateway:
        client = make(gateway, nonce_reuse="error")
        for _ in range(2):
            with pytest.raises(NonceReuseError, match="nonce_reuse='error'"):
                getattr(api, way)(client, **SECRETS)
    assert len(gateway.probes) == 1
    assert gateway.prompts == []
    assert all(b"zebra" not in opened.plaintext.lower() for opened in gateway.opened)


@ways
def test_a_model_is_probed_once(api, make, way):
    with ProbedGateway() as gateway:
        client = make(gateway, nonce_reuse="error")
        for _ in range(3):
            getattr(api, way)(client)
    assert (len(gateway.probes), len(gateway.prompts)) == (1, 3)


def test_every_model_is_probed(api, make):
    with ProbedGateway() as gateway:
        client = make(gateway, nonce_reuse="error")
        for model in ("one", "two", "one"):
            api.create(client, model=model)
    assert [probe["model"] for probe in gateway.probes] == ["one", "two"]


def test_every_gateway_is_probed(api, make):
    with ProbedGateway() as gateway, ProbedGateway(probe=stream_hello) as other:
        api.create(make(gateway, nonce_reuse="error"))
        with pytest.raises(NonceReuseError):
            api.create(make(other, nonce_reuse="error"))
    assert (len(gateway.probes), len(other.probes)) == (1, 1)


def test_all_clients_of_a_process_share_the_outcome_of_a_probe():
    with ProbedGateway() as gateway:
        settings = gateway.settings(nonce_reuse="error")
        with PremClient(**settings) as one, PremClient(**{**settings, "api_key": "sk_test_other"}) as other:
            one.chat.completions.create(**PARAMS)
            other.chat.completions.create(**PARAMS)

        async def ask():
            async with AsyncPremClient(**settings) as client:
                await client.chat.completions.create(**PARAMS)

        asyncio.run(ask())
    assert (len(gateway.probes), len(gateway.prompts)) == (1, 3)


def test_a_forgotten_outcome_is_probed_for_again(api, make, monkeypatch):
    monkeypatch.setattr(nonce_reuse, "MAX_OUTCOMES", 2)
    with ProbedGateway() as gateway:
        client = make(gateway, nonce_reuse="error")
        for model in ("one", "two", "three", "one"):
            api.create(client, model=model)
    assert [probe["model"] for probe in gateway.probes] == ["one", "two", "three", "one"]


# --- key rotation


@ways
def test_after_a_key_rotation_the_new_key_is_probed(api, make, way):
    with ProbedGateway(enclave=FakeEnclave(1)) as gateway:
        client = make(gateway, nonce_reuse="error")
        getattr(api, way)(client)
        gateway.enclave = FakeEnclave(2)
        getattr(api, way)(client)
    assert (len(gateway.probes), len(gateway.prompts)) == (2, 2)


def test_after_a_key_rotation_the_prompt_is_not_sent_to_a_service_that_reuses_nonces(api, make):
    with ProbedGateway(enclave=FakeEnclave(1)) as gateway:
        client = make(gateway, nonce_reuse="error")
        api.create(client)
        gateway.enclave, gateway.probe, gateway.prompt = FakeEnclave(2), stream_hello, stream_hello
        with pytest.raises(NonceReuseError):
            api.create(client)
    assert (len(gateway.probes), len(gateway.prompts)) == (2, 1)


def test_a_key_rotation_before_the_probe_is_handled_by_the_probe(api, make):
    with ProbedGateway(enclave=FakeEnclave(1)) as gateway:
        client = make(gateway, nonce_reuse="error")
        api.create(client)
        gateway.enclave = FakeEnclave(2)
        assert api.create(client, model="another").choices[0].message.content == "Hello"
    # The first request with the old key was a probe, not the prompt.
    assert [call.path for call in gateway.calls].count("/publicKey") == 2
    assert len(gateway.chats()) == 5
    assert (len(gateway.probes), len(gateway.prompts)) == (2, 2)


# --- concurrency


def test_64_threads_share_one_probe():
    with ProbedGateway() as gateway:
        with PremClient(**gateway.settings(nonce_reuse="error", max_concurrency=None)) as client:
            start = threading.Barrier(64)

            def ask(_):
                start.wait(SOON)
                return client.chat.completions.create(**PARAMS).choices[0].message.content

            with ThreadPoolExecutor(64) as pool:
                assert list(pool.map(ask, range(64))) == ["Hello"] * 64
    assert (len(gateway.probes), len(gateway.prompts)) == (1, 64)


async def test_200_tasks_share_one_probe():
    with ProbedGateway() as gateway:
        async with AsyncPremClient(**gateway.settings(nonce_reuse="error", max_concurrency=20)) as client:
            answers = await asyncio.gather(*[client.chat.completions.create(**PARAMS) for _ in range(200)])
    assert len(answers) == 200
    assert (len(gateway.probes), len(gateway.prompts)) == (1, 200)


async def test_tasks_that_wait_for_a_probe_share_its_failure():
    with ProbedGateway(probe=lambda call: call.reply(b"{}", 401)) as gateway:
        # With a known key, every task waits for the probe before the first response can arrive.
        settings = gateway.settings(nonce_reuse="error", enclave_public_key=gateway.enclave.public)
        async with AsyncPremClient(**settings) as client:
            calls = [client.chat.completions.create(**PARAMS) for _ in range(10)]
            found = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(each) for each in found] == [errors.AuthenticationError] * 10
    assert (len(gateway.probes), gateway.prompts) == (1, [])


@ways
def test_a_probe_needs_no_second_permit(api, make, way):
    with ProbedGateway() as gateway:
        client = make(gateway, nonce_reuse="error", max_concurrency=1, total_timeout=SOON)
        getattr(api, way)(client)
        assert client.stats.in_flight == 0
    assert (len(gateway.probes), len(gateway.prompts)) == (1, 1)


# --- a probe that fails


def cut(call):
    body = call.opened().envelope()
    call.head(200, JSON | {"content-length": str(len(body))})
    call.raw(body[: len(body) // 2])
    call.disconnect()


def never(call):
    call.wait_for_disconnect()


FAILURES = [
    pytest.param(lambda call: call.reply(b"{}", 401), errors.AuthenticationError, 1, id="401"),
    pytest.param(lambda call: call.reply(b"{}", 404), errors.NotFoundError, 1, id="404"),
    pytest.param(
        lambda call: call.reply(b"{}", 500), errors.InternalServerError, 3, id="500, which is retried"
    ),
    pytest.param(lambda call: call.reply(b"{}", 429), errors.RateLimitError, 3, id="429, which is retried"),
    pytest.param(
        lambda call: call.reply(b"<html>", headers={"content-type": "text/html"}),
        errors.APIResponseValidationError,
        1,
        id="HTML",
    ),
    pytest.param(lambda call: call.reply(b"<html>"), errors.APIResponseValidationError, 1, id="no JSON"),
    pytest.param(
        lambda call: call.reply(b'{"status": 200, "data": {}}'),
        errors.APIResponseValidationError,
        1,
        id="no data",
    ),
    pytest.param(
        lambda call: call.reply(
            json.dumps({"status": 200, "data": {"encryptedResponse": "00" * 40, "nonce": "00" * 24}}).encode()
        ),
        errors.DecryptionError,
        1,
        id="bytes that do not open under another nonce",
    ),
    pytest.param(cut, errors.StreamInterruptedError, 1, id="truncated"),
    pytest.param(never, errors.APITimeoutError, 1, id="timeout"),
]


@ways
@pytest.mark.parametrize(("probe", "kind", "attempts"), FAILURES)
def test_a_probe_that_fails_raises_its_error_and_nothing_is_remembered(
    api, make, monkeypatch, way, probe, kind, attempts
):
    monkeypatch.setattr(retry, "FIRST_DELAY", 0.001)
    with ProbedGateway(probe=probe) as gateway:
        client = make(gateway, nonce_reuse="error", timeout=0.3 if probe is never else SOON)
        with pytest.raises(kind) as caught:
            getattr(api, way)(client, **SECRETS)
        assert not isinstance(caught.value, NonceReuseError)
        assert client.stats.in_flight == 0
        assert len(gateway.probes) == attempts
        assert gateway.prompts == []
        gateway.probe = in_an_envelope
        getattr(api, way)(client)
    assert len(gateway.probes) == attempts + 1
    assert len(gateway.prompts) == 1


# --- a gateway that answers a probe otherwise than a prompt


@ways
@reused
def test_a_reply_under_the_requests_nonce_after_a_good_probe_is_refused_and_remembered(api, make, way, reply):
    with ProbedGateway(prompt=reply) as gateway:
        client = make(gateway, nonce_reuse="error")
        with pytest.raises(NonceReuseError):
            getattr(api, way)(client)
        for each in (client, make(gateway, nonce_reuse="error", api_key="sk_test_other")):
            with pytest.raises(NonceReuseError):
                getattr(api, way)(each)
    assert (len(gateway.probes), len(gateway.prompts)) == (1, 1)


def test_a_refused_reply_is_not_outweighed_by_a_later_good_probe():
    key, subject = FakeEnclave().public, nonce_reuse.ProbeSubject("chat", "m")
    REPLY_FORMS.record("https://gateway", key, subject, own=False)
    REPLY_FORMS.record("https://gateway", key, subject, own=True)
    assert REPLY_FORMS.own_nonce("https://gateway", key, subject) is False


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
