"""The audio routes over real sockets, with the default engine behind them."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
from support.clock import Clock
from support.paths import CLINIC_NOTE
from support.raw_client import TRANSCRIPTIONS, TRANSLATIONS, WHISPER, RawClient, eventually, params, validator

from prem_core._protocol.assumptions import KEY_ROTATED_PATTERN
from prem_core._protocol.routes import MAX_AUDIO_BYTES
from prem_core.enclave import Exchange, LocalEnclave
from prem_core.enclave.engines import speech
from prem_core.enclave.gateway import FORWARDING_HEADER
from prem_core.enclave.quota import BASE, RATE_MESSAGE, Tier
from prem_core.enclave.sealed_fields import DECRYPT_MESSAGE

Run = Callable[..., RawClient]
NOTE = (CLINIC_NOTE).read_bytes()
TEXT = "the doctor will see the patient again on friday the hospital will be open on saturday and sunday"
FIELDS = ("encryptedInference", "nonce", "encryptedFile", "fileNonce", "encryptedFileName", "fileNameNonce")


def silence(seconds: float) -> bytes:
    made = io.BytesIO()
    soundfile.write(made, np.zeros(int(seconds * 16_000)), 16_000, format="WAV")
    return made.getvalue()


SILENCE = silence(0.5)


def error_envelope(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error envelope, checked against the published schema where it covers the status."""
    assert response.status_code == status, response.text
    envelope: dict[str, Any] = response.json()
    covered = status in (400, 401, 403, 404)
    validator("error-envelope").validate(envelope if covered else {**envelope, "status": 400})
    assert envelope["status"] == status
    assert envelope["error"]
    assert envelope["support_id"].startswith("support_")
    assert envelope["data"] is None
    return envelope


@pytest.fixture(scope="module")
def heard() -> Iterator[dict[str, Any]]:
    """One transcription of the sample in the longest form, and all that can be known of it."""
    seen: list[Exchange] = []
    with LocalEnclave(on_exchange=seen.append) as prem, httpx.Client(trust_env=False, timeout=60) as http:
        wire = RawClient(prem, http)
        sealed, response = wire.audio(
            NOTE,
            name=b"zebra.wav",
            response_format="verbose_json",
            timestamp_granularities=["word", "segment"],
            language="en",
            prompt="A lion.",
            temperature=0.5,
        )
        yield {
            "sealed": sealed,
            "response": response,
            "seen": seen,
            "said": json.loads(sealed.opened(response)),
        }


# What is answered


def test_the_sample_is_transcribed_with_segments_and_words(heard: dict[str, Any]) -> None:
    said = heard["said"]
    assert said["text"] == TEXT
    assert (said["task"], said["language"], said["duration"]) == ("transcribe", "english", 7.377)
    assert " ".join(segment["text"] for segment in said["segments"]) == TEXT
    assert [word["word"] for word in said["words"]] == TEXT.split()
    times = [time for word in said["words"] for time in (word["start"], word["end"])]
    assert times == sorted(times)
    assert times[0] >= 0 and times[-1] <= said["duration"]


def test_a_transcription_matches_the_published_schema_apart_from_words(heard: dict[str, Any]) -> None:
    published = {name: value for name, value in heard["said"].items() if name != "words"}
    validator("audio-translation-result").validate(published)


def test_the_gateway_sees_only_sealed_bytes(heard: dict[str, Any]) -> None:
    (exchange,) = heard["seen"]
    assert (exchange.method, exchange.path, exchange.status) == ("POST", TRANSCRIPTIONS, 200)
    assert json.loads(exchange.request_body) == heard["sealed"].body
    assert exchange.response_body == heard["response"].content
    for part in (exchange.request_body, exchange.response_body, repr(exchange).encode()):
        assert not any(word in part for word in (b"zebra", b"lion", b"doctor", b"RIFF", b"verbose"))


@pytest.mark.parametrize("form", [None, "json", "verbose_json"])
def test_the_transcription_of_silence_is_empty(shared: RawClient, form: str | None) -> None:
    sealed, response = shared.audio(SILENCE, **({} if form is None else {"response_format": form}))
    said = json.loads(sealed.opened(response))
    validator("audio-translation-result").validate(said)
    assert said["text"] == ""
    assert ("segments" in said) == (form == "verbose_json")


def test_a_transcription_as_text_is_plain_text(shared: RawClient, monkeypatch: pytest.MonkeyPatch) -> None:
    said = (speech.Utterance((speech.recogniser.Word("zebra", 0, 1),), 0, 1, 0, 0),)
    monkeypatch.setattr(speech, "utterances", lambda pcm: iter(said))
    sealed, response = shared.audio(SILENCE, response_format="text")
    assert sealed.opened(response) == b"zebra"
    assert b"zebra" not in response.content


def test_every_transcription_is_sealed_under_its_own_nonce(shared: RawClient) -> None:
    sealed = shared.seal_audio({"model": WHISPER}, SILENCE)
    responses = [shared.post(sealed.body, TRANSCRIPTIONS) for _ in range(3)]
    assert all(json.loads(sealed.opened(response)) == {"text": ""} for response in responses)
    assert len({response.json()["data"]["nonce"] for response in responses}) == 3


def test_the_file_name_does_not_affect_the_transcription(shared: RawClient) -> None:
    for name in (b"", b"note.mp3", 'Müller/..\r\n"'.encode(), b"x" * 10_000):
        sealed, response = shared.audio(SILENCE, name=name)
        assert json.loads(sealed.opened(response)) == {"text": ""}


# What is refused


def test_an_unsupported_language_is_400_and_named(shared: RawClient) -> None:
    _, response = shared.audio(SILENCE, language="de")
    envelope = error_envelope(response, 400)
    assert list(envelope["validator"]) == ["language"]
    assert "--upstream" in envelope["error"]
    assert envelope["log"] == {"type": "invalid_request_error"}


def test_translation_is_400_and_names_the_alternative(shared: RawClient) -> None:
    _, response = shared.audio(SILENCE, TRANSLATIONS)
    assert "--upstream" in error_envelope(response, 400)["error"]


@pytest.mark.parametrize("model", ["zebra", "deepgram/nova-3", "openai/gpt-oss-120b", "openai/whisper-1"])
def test_an_unknown_transcription_model_is_404_without_naming_it(shared: RawClient, model: str) -> None:
    _, response = shared.audio(SILENCE, model=model)
    assert list(error_envelope(response, 404)["validator"]) == ["model"]
    assert model not in response.text


def test_an_unknown_translation_model_is_400_as_in_the_published_schema(shared: RawClient) -> None:
    _, response = shared.audio(SILENCE, TRANSLATIONS, model="zebra")
    assert error_envelope(response, 400)["validator"] == {"model": f'must be one of "{WHISPER}"'}


def test_a_transcription_model_does_not_chat(shared: RawClient) -> None:
    _, response = shared.chat({**params(), "model": WHISPER})
    assert "chat model" in error_envelope(response, 404)["error"]


@pytest.mark.parametrize(
    ("more", "path", "rule"),
    [
        ({"temperature": 1.5}, "temperature", "must be at most 1"),
        ({"temperature": None}, "temperature", "must be of type number"),
        ({"response_format": "srt"}, "response_format", 'must be one of "json", "text", "verbose_json"'),
        ({"stream": True}, "encryptedInference", "must not have a name that the schema does not define"),
        ({"zebra": 1}, "encryptedInference", "must not have a name that the schema does not define"),
        ({"prompt": ["zebra"]}, "prompt", "must be of type string"),
        ({"model": 5}, "model", "must be of type string"),
    ],
)
@pytest.mark.parametrize("route", [TRANSCRIPTIONS, TRANSLATIONS])
def test_an_invalid_parameter_is_named_without_its_value(
    shared: RawClient, route: str, more: dict[str, Any], path: str, rule: str
) -> None:
    _, response = shared.audio(SILENCE, route, **more)
    assert rule in error_envelope(response, 400)["validator"][path]
    assert "zebra" not in response.text


@pytest.mark.parametrize(
    ("more", "path", "rule"),
    [
        ({"language": "german"}, "language", "must match ^[a-z]{2}$"),
        ({"language": "EN"}, "language", "must match ^[a-z]{2}$"),
        (
            {"timestamp_granularities": ["zebra"], "response_format": "verbose_json"},
            "timestamp_granularities.0",
            'must be one of "word", "segment"',
        ),
        (
            {"timestamp_granularities": [], "response_format": "verbose_json"},
            "timestamp_granularities",
            "must have at least 1 items",
        ),
        (
            {"timestamp_granularities": ["word"]},
            "timestamp_granularities",
            "needs response_format verbose_json",
        ),
        (
            {"timestamp_granularities": ["word"], "response_format": "json"},
            "timestamp_granularities",
            "needs response_format verbose_json",
        ),
    ],
)
def test_parameters_of_transcriptions_only_are_checked(
    shared: RawClient, more: dict[str, Any], path: str, rule: str
) -> None:
    _, response = shared.audio(SILENCE, **more)
    assert error_envelope(response, 400)["validator"] == {path: rule}
    _, response = shared.audio(SILENCE, TRANSLATIONS, **more)
    assert "encryptedInference" in error_envelope(response, 400)["validator"], (
        "and translations do not take it"
    )


@pytest.mark.parametrize("audio", [b"", b"zebra" * 1_000, silence(0)], ids=["empty", "no audio", "no frames"])
def test_a_file_that_is_not_a_recording_is_400_naming_the_file(shared: RawClient, audio: bytes) -> None:
    _, response = shared.audio(audio)
    envelope = error_envelope(response, 400)
    assert list(envelope["validator"]) == ["file"]
    assert "zebra" not in response.text


def test_a_file_name_that_is_not_utf_8_is_400(shared: RawClient) -> None:
    _, response = shared.audio(SILENCE, name=b"\xff\xfe")
    assert error_envelope(response, 400)["validator"] == {"encryptedFileName": "must be UTF-8"}


@pytest.mark.parametrize("field", FIELDS)
def test_a_flipped_bit_in_any_field_is_the_documented_decrypt_error(shared: RawClient, field: str) -> None:
    sealed = shared.seal_audio({"model": WHISPER}, SILENCE)
    for position in (0, -1):
        raw = bytearray.fromhex(sealed.body[field])
        raw[position] ^= 1
        envelope = error_envelope(shared.post({**sealed.body, field: raw.hex()}, TRANSCRIPTIONS), 400)
        assert envelope["error"] == DECRYPT_MESSAGE
        assert KEY_ROTATED_PATTERN.search(envelope["error"])
        assert envelope["validator"] is None


def test_swapped_sealed_fields_do_not_open(shared: RawClient) -> None:
    sealed = shared.seal_audio({"model": WHISPER}, SILENCE)
    swapped = {
        **sealed.body,
        "encryptedFile": sealed.body["encryptedFileName"],
        "encryptedFileName": sealed.body["encryptedFile"],
    }
    assert error_envelope(shared.post(swapped, TRANSCRIPTIONS), 400)["error"] == DECRYPT_MESSAGE


@pytest.mark.parametrize("field", [*FIELDS, "cipherText"])
@pytest.mark.parametrize("value", ["", "0", "zz", "é", "00" * 15])
def test_a_field_that_is_not_hex_of_the_right_length_is_400_and_named(
    shared: RawClient, field: str, value: str
) -> None:
    body = {**shared.seal_audio({"model": WHISPER}, SILENCE).body, field: value}
    envelope = error_envelope(shared.post(body, TRANSCRIPTIONS), 400)
    assert list(envelope["validator"]) == [field]
    assert not KEY_ROTATED_PATTERN.search(envelope["error"])


def test_a_body_with_a_missing_or_an_unknown_field_is_400(shared: RawClient) -> None:
    sealed = shared.seal_audio({"model": WHISPER}, SILENCE)
    for name in sealed.body:
        body = {**sealed.body}
        del body[name]
        assert error_envelope(shared.post(body, TRANSLATIONS), 400)["validator"] == {
            "body": f"must have {name}"
        }
    response = shared.post({**sealed.body, "zebra": "1"}, TRANSLATIONS)
    error_envelope(response, 400)
    assert "zebra" not in response.text


@pytest.mark.parametrize(
    ("path", "scope", "other"),
    [
        (TRANSCRIPTIONS, "audio.transcription", "audio.translation"),
        (TRANSLATIONS, "audio.translation", "audio.transcription"),
    ],
)
def test_each_route_needs_its_own_scope(run: Run, path: str, scope: str, other: str) -> None:
    without = run(scopes={other, "chats.completion"})
    _, response = without.audio(SILENCE, path)
    assert scope in error_envelope(response, 403)["error"]
    _, response = run(scopes={scope}).audio(SILENCE, path)
    assert response.status_code == (200 if path == TRANSCRIPTIONS else 400)


def test_a_wrong_key_is_401_and_a_wrong_method_405(shared: RawClient) -> None:
    sealed = shared.seal_audio({"model": WHISPER}, SILENCE)
    error_envelope(
        shared.post(sealed.body, TRANSCRIPTIONS, headers={"Authorization": "Bearer sk_test_no"}), 401
    )
    error_envelope(shared.get(TRANSLATIONS), 405)


def test_the_enclave_rejects_requests_that_bypass_the_gateway(shared: RawClient) -> None:
    body = shared.seal_audio({"model": WHISPER}, SILENCE).body
    for headers in ({}, shared.headers, {FORWARDING_HEADER: "guess"}):
        error_envelope(
            shared.http.post(shared.prem.enclave_url + TRANSCRIPTIONS, json=body, headers=headers), 403
        )


def test_after_key_rotation_a_recording_sealed_to_the_old_key_does_not_open(run: Run) -> None:
    wire = run()
    old = wire.seal_audio({"model": WHISPER}, SILENCE)
    wire.prem.rotate_key()
    assert error_envelope(wire.post(old.body, TRANSCRIPTIONS), 400)["error"] == DECRYPT_MESSAGE
    sealed, response = wire.audio(SILENCE)
    assert sealed.opened(response)


# Size


def sized(size: int) -> bytes:
    """A body whose file is `size` bytes long, and opens with no key."""
    body = dict.fromkeys((*FIELDS, "cipherText"), "00")
    return json.dumps({**body, "encryptedFile": "0" * 2 * (size + 16)}).encode()


def test_a_file_of_25_mb_passes_the_gateway_and_a_byte_more_is_413(run: Run) -> None:
    seen: list[Exchange] = []
    wire = run(on_exchange=seen.append)
    envelope = error_envelope(wire.post(sized(MAX_AUDIO_BYTES), TRANSCRIPTIONS), 400)
    assert list(envelope["validator"]) == ["cipherText"], "the enclave has opened it"
    for path in (TRANSCRIPTIONS, TRANSLATIONS):
        envelope = error_envelope(wire.post(sized(MAX_AUDIO_BYTES + 1), path), 413)
        assert envelope["error"] == "Audio file size exceeds the maximum allowed limit of 25MB."
    assert MAX_AUDIO_BYTES == 25 * 1024 * 1024


def test_a_recording_of_25_mb_is_transcribed(shared: RawClient) -> None:
    audio = silence(599)
    audio += bytes(MAX_AUDIO_BYTES - len(audio))  # what follows a wav's data is not played
    sealed, response = shared.audio(audio)
    assert json.loads(sealed.opened(response)) == {"text": ""}


# Limits


def test_the_base_tier_has_ten_seconds_of_audio_a_minute(run: Run, clock: Clock) -> None:
    wire = run(tier=Tier(BASE, clock))
    for seconds in (9, 3):
        sealed, response = wire.audio(silence(seconds))
        assert sealed.opened(response)
    _, response = wire.audio(SILENCE)
    assert error_envelope(response, 429)["error"] == RATE_MESSAGE
    assert response.headers["retry-after"] == "18"
    sealed, response = wire.chat(params())
    assert sealed.chunks(response), "a chat is not charged for audio"


def test_a_rejected_recording_is_not_charged(run: Run) -> None:
    wire = run(tier="base")
    _, response = wire.audio(silence(60), language="de")
    error_envelope(response, 400)
    sealed, response = wire.audio(SILENCE)
    assert sealed.opened(response)


def test_the_transcription_model_is_listed_as_enabled(shared: RawClient) -> None:
    (entry,) = shared.get("/models", params={"type": "AUDIO_TRANSCRIPTION"}).json()["data"]
    assert (entry["model"], entry["type"], entry["enabled"]) == (WHISPER, "AUDIO_TRANSCRIPTION", True)
    assert entry["input_modalities"] == ["audio"]


# During a transcription


def test_other_requests_are_answered_during_a_transcription(run: Run) -> None:
    wire = run()
    with ThreadPoolExecutor(1) as pool, httpx.Client(trust_env=False) as other:
        hearing = pool.submit(wire.audio, NOTE)
        answered = 0
        while not hearing.done():
            assert other.get(f"{wire.prem.enclave_url}/publicKey").status_code == 200
            answered += 1
        sealed, response = hearing.result()
        assert json.loads(sealed.opened(response)) == {"text": TEXT}
    assert answered >= 5


def test_a_disconnect_ends_the_transcription(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    stepped = threading.Semaphore(0)

    def endless(pcm: bytes) -> Iterator[speech.Utterance]:
        while True:
            stepped.release()
            time.sleep(0.02)
            yield speech.Utterance((), 0, 0, 0, 0)

    monkeypatch.setattr(speech, "utterances", endless)
    seen: list[Exchange] = []
    wire = run(on_exchange=seen.append)
    sealed = wire.seal_audio({"model": WHISPER}, SILENCE)
    with pytest.raises(httpx.ReadTimeout):
        wire.http.post(
            wire.prem.gateway_url + TRANSCRIPTIONS, json=sealed.body, headers=wire.headers, timeout=0.5
        )
    assert eventually(lambda: len(seen) == 1)
    while stepped.acquire(timeout=0.3):
        pass  # it would go on for ever
    assert seen[0].status == 0


def test_a_stopped_enclave_leaves_no_transcription_thread(http: httpx.Client) -> None:
    before = set(threading.enumerate())
    with LocalEnclave() as prem:
        sealed, response = RawClient(prem, http).audio(SILENCE)
        assert sealed.opened(response)
    assert eventually(lambda: set(threading.enumerate()) <= before)


def test_transcription_without_its_packages_is_an_error_with_the_install_command(
    shared: RawClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("prem_core.enclave.engines.speech")
    monkeypatch.setitem(sys.modules, "prem_core.enclave.engines.speech", None)
    _, response = shared.audio(SILENCE)
    assert 'pip install "prem-encrypted[enclave]"' in error_envelope(response, 503)["error"]


@pytest.mark.parametrize("step", ["decode", "utterances"])
def test_an_internal_error_of_the_recogniser_does_not_quote_the_recording(
    shared: RawClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, step: str
) -> None:
    def breaks(value: bytes) -> Any:
        raise KeyError("zebra")

    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(speech, step, breaks)
    _, response = shared.audio(SILENCE)
    assert error_envelope(response, 500)["error"] == "Internal server error"
    assert "KeyError" in caplog.text
    assert "zebra" not in caplog.text + response.text


def test_nothing_of_a_recording_is_logged_or_printed(
    shared: RawClient, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(1)
    sealed, response = shared.audio(NOTE, name=b"zebra.wav", prompt="A lion.")
    assert TEXT in sealed.opened(response).decode()
    shared.audio(b"zebra", name=b"zebra.wav", prompt="A lion.")
    shared.audio(NOTE, name=b"zebra.wav", language="de")
    assert not any(word in caplog.text for word in ("zebra", "lion", "doctor", "friday"))
    assert shared.prem.api_key not in caplog.text
    assert capfd.readouterr() == ("", "")
