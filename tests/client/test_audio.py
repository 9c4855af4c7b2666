"""Transcription and translation requests: parameters, recordings, responses."""

import asyncio
import io
import json

import pytest
from support.fake_gateway import FakeGateway
from support.paths import DATA
from support.wire_schemas import schema

from prem_core import AsyncPremClient, InvalidParameterError, PremClient, Transcription
from prem_core import _errors as errors
from prem_core._audio.upload import read_recording
from prem_core._crypto.aead import new_nonce
from prem_core._crypto.keys import EncryptionKeys
from prem_core._protocol.request_schema import audio_plaintext
from prem_core._protocol.response_body import read_transcription
from prem_core._protocol.routes import MAX_AUDIO_BYTES

TRANSLATION = schema("audio-translation-params")
REQUEST = schema("audio-request")
WAV = (DATA / "media" / "tone.wav").read_bytes()
MODEL = {"model": "openai/whisper-large-v3"}
VERBOSE = {"response_format": "verbose_json"}


# --- parameters


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"prompt": "A ward round.", "temperature": 0.3},
        {"temperature": 1, "response_format": "text"},
        {"response_format": "verbose_json"},
    ],
)
def test_valid_transcription_and_translation_parameters_are_accepted(params):
    for task in ("transcribe", "translate"):
        sent = json.loads(audio_plaintext(task, {**MODEL, **params}))
        assert sent == {**MODEL, **params}
        assert TRANSLATION.is_valid(sent)


@pytest.mark.parametrize(
    ("task", "params", "name"),
    [
        ("translate", {"temperature": 1.5}, "temperature"),
        ("translate", {"temperature": float("nan")}, "temperature"),
        ("translate", {"response_format": "srt"}, "response_format"),
        ("translate", {"language": "en"}, "language"),
        ("translate", {"timestamp_granularities": ["word"]}, "timestamp_granularities"),
        ("translate", {"prompt": 5}, "prompt"),
        ("translate", {"stream": True}, "stream"),
        ("transcribe", {"language": "english"}, "language"),
        ("transcribe", {"language": "EN"}, "language"),
        ("transcribe", {"timestamp_granularities": ["word"]}, "timestamp_granularities"),
        ("transcribe", {"timestamp_granularities": ["word"], "response_format": "json"}, "timestamp_granularities"),
        ("transcribe", {**VERBOSE, "timestamp_granularities": ["syllable"]}, "timestamp_granularities.0"),
        ("transcribe", {**VERBOSE, "timestamp_granularities": []}, "timestamp_granularities"),
        ("transcribe", {"model": None}, "model"),
    ],
)  # fmt: skip
def test_an_invalid_transcription_parameter_is_rejected_by_name(task, params, name):
    with pytest.raises(InvalidParameterError) as caught:
        audio_plaintext(task, {**MODEL, **params})
    assert caught.value.param == name


def test_an_unknown_choice_is_rejected_with_the_valid_choices():
    with pytest.raises(InvalidParameterError, match="'json', 'text' or 'verbose_json'"):
        audio_plaintext("transcribe", {**MODEL, "response_format": "vtt"})


def test_a_transcription_accepts_a_language_and_both_timestamp_granularities():
    params = {
        "language": "de",
        "response_format": "verbose_json",
        "timestamp_granularities": ("word", "segment"),
    }
    assert json.loads(audio_plaintext("transcribe", {**MODEL, **params}))["timestamp_granularities"] == [
        "word",
        "segment",
    ]


def test_transcription_parameters_that_are_none_are_omitted_and_extra_body_is_unvalidated():
    plain = audio_plaintext("transcribe", {**MODEL, "prompt": None, "language": None}, {"diarize": True})
    assert json.loads(plain) == {**MODEL, "diarize": True}


# --- the file


def named(data, name):
    file = io.BytesIO(data)
    file.name = name
    return file


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (WAV, "audio.wav"),
        (bytearray(WAV), "audio.wav"),
        (memoryview(WAV), "audio.wav"),
        (b"fLaC....", "audio.flac"),
        (b"OggS....", "audio.ogg"),
        (b"ID3.....", "audio.mp3"),
        (b"\xff\xfb......", "audio.mp3"),
        (b"....ftypM4A ", "audio.m4a"),
        (b"\x1a\x45\xdf\xa3....", "audio.webm"),
        (b"unknown.", "audio"),
        (("ward.wav", WAV), "ward.wav"),
        (io.BytesIO(WAV), "audio.wav"),
        (named(WAV, "/home/x/ward.wav"), "ward.wav"),
        (named(WAV, 5), "audio.wav"),
        (("other.wav", named(WAV, "ward.wav")), "other.wav"),
        (DATA / "media" / "tone.wav", "tone.wav"),
        (str(DATA / "media" / "tone.wav"), "tone.wav"),
        (("call.wav", DATA / "media" / "tone.wav"), "call.wav"),
    ],
)
def test_every_form_of_a_recording_yields_a_name_and_bytes(given, name):
    recording = read_recording(given)
    assert recording.name == name
    assert isinstance(recording.data, bytes)
    assert recording.data


def test_a_file_object_is_read_from_its_current_position():
    file = io.BytesIO(b"skipRIFFdata")
    file.seek(4)
    assert read_recording(file).data == b"RIFFdata"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("/nowhere/ward.wav", "no such file: /nowhere/ward.wav"),
        (DATA, "a directory"),
        (b"", "empty"),
        (("ward.wav", b""), r"empty \(ward.wav\)"),
        (io.BytesIO(), "empty"),
        (io.StringIO("text"), "binary mode"),
        (5, "must be a path, bytes"),
        (None, "must be a path, bytes"),
        (("ward.wav",), "a tuple must be"),
        (("", WAV), "a tuple must be"),
    ],
)
def test_an_invalid_recording_is_rejected(given, why):
    with pytest.raises(InvalidParameterError, match=why) as caught:
        read_recording(given)
    assert caught.value.param == "file"


def test_a_recording_above_25_mb_is_rejected_with_the_limit(tmp_path):
    exact = tmp_path / "exact.wav"
    with exact.open("wb") as file:
        file.truncate(MAX_AUDIO_BYTES)
    assert len(read_recording(exact).data) == MAX_AUDIO_BYTES
    larger = tmp_path / "larger.wav"
    with larger.open("wb") as file:
        file.truncate(MAX_AUDIO_BYTES + 1)
    for given in (larger, bytes(MAX_AUDIO_BYTES + 1), larger.open("rb")):
        with pytest.raises(InvalidParameterError, match="25 MB"):
            read_recording(given)
    given.close()


def test_the_repr_of_a_recording_contains_neither_name_nor_content():
    assert repr(read_recording(("anna-berg.wav", WAV))) == "Recording()"


# --- the answer


def test_a_transcription_is_typed_and_keeps_unknown_fields():
    verbose = {
        "task": "transcribe",
        "language": "english",
        "duration": 4.5,
        "text": "Hello there.",
        "segments": [{"id": 0, "seek": 0, "start": 0, "end": 4.5, "text": "Hello there.", "tokens": [1]}],
        "words": [{"word": "Hello", "start": 0.1, "end": 0.5}],
        "new": 1,
    }
    answer = read_transcription(json.dumps(verbose).encode(), "verbose_json")
    assert answer.segments[0].end == 4.5
    assert answer.words[0].word == "Hello"
    assert answer.model_extra == {"new": 1}
    assert "Hello" not in repr(answer)


def test_the_text_of_a_transcription_is_its_str():
    assert read_transcription("Grüß Gott\n".encode(), "text") == "Grüß Gott\n"
    assert read_transcription(b'{"text": "a"}', "text") == '{"text": "a"}'


def test_a_deepgram_transcription_is_parsed():
    deepgram = {
        "metadata": {"duration": 3.5},
        "results": {
            "channels": [
                {
                    "detected_language": "en",
                    "alternatives": [
                        {"transcript": "Hello there.", "words": [{"word": "hello", "start": 0.1, "end": 0.4}]}
                    ],
                }
            ]
        },
    }
    answer = read_transcription(json.dumps(deepgram).encode(), None)
    assert (answer.text, answer.duration, answer.language) == ("Hello there.", 3.5, "en")
    assert answer.words[0].start == 0.1


@pytest.mark.parametrize(
    ("plaintext", "form"),
    [
        (b"zebra", None),
        (b"[]", None),
        (b"{}", None),
        (b'{"text": 5}', None),
        (b'{"text": "a", "duration": "zebra"}', None),
        (b'{"results": {}}', None),
        (b'{"results": {"channels": []}}', None),
        (b'{"results": {"channels": [{"alternatives": ["zebra"]}]}}', None),
        (b"\xff\xfe", "text"),
    ],
)
def test_an_invalid_transcription_is_an_error_that_does_not_quote_it(plaintext, form):
    with pytest.raises(errors.APIResponseValidationError) as caught:
        read_transcription(plaintext, form)
    assert "zebra" not in str(caught.value)
    assert caught.value.__context__ is None or "zebra" not in repr(caught.value.__context__)


# --- the whole way, over a socket


class TranscriptionHandler:
    """The audio routes of a gateway and its enclave: opens the request, responds with `answer`."""

    def __init__(self, answer, *, status=200):
        self.answer, self.status, self.requests = answer, status, []

    def __call__(self, call):
        fields = json.loads(call.body)
        if self.status != 200:
            call.reply(
                json.dumps({"status": self.status, "error": "no", "support_id": "support_1"}).encode(),
                self.status,
            )
            return
        raw = {name: bytes.fromhex(value) for name, value in fields.items()}
        keys = EncryptionKeys(call._enclave.private.decapsulate(raw["cipherText"]), raw["cipherText"])
        self.requests.append(
            {
                "path": call.path,
                "fields": fields,
                "params": json.loads(keys.open(raw["encryptedInference"], raw["nonce"])),
                "name": keys.open(raw["encryptedFileName"], raw["fileNameNonce"]).decode(),
                "file": keys.open(raw["encryptedFile"], raw["fileNonce"]),
            }
        )
        nonce = new_nonce()
        data = {"encryptedResponse": keys.seal(self.answer, nonce).hex(), "nonce": nonce.hex()}
        envelope = {"status": 200, "data": data, "message": None, "env": "development"}
        call.reply(json.dumps(envelope).encode())


def ask(gateway, task, asynchronous, **params):
    if not asynchronous:
        with PremClient(**gateway.settings(max_retries=0)) as client:
            return getattr(client.audio, task).create(**params)

    async def awaited():
        async with AsyncPremClient(**gateway.settings(max_retries=0)) as client:
            return await getattr(client.audio, task).create(**params)

    return asyncio.run(awaited())


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("task", ["transcriptions", "translations"])
@pytest.mark.parametrize("size", [100, 200_000])
def test_a_transcription_request_is_sealed_whole_and_its_response_opened(task, asynchronous, size):
    hearing = TranscriptionHandler(b'{"text": "Hello there."}')
    data = WAV[:100] + bytes(size)
    with FakeGateway(other=hearing) as gateway:
        answer = ask(gateway, task, asynchronous, file=("ward \u00fc.wav", data), prompt="A ward.")
    assert isinstance(answer, Transcription)
    assert answer.text == "Hello there."
    (heard,) = hearing.requests
    assert heard["path"] == f"/rvenc/audio/{task}"
    assert (heard["name"], heard["file"]) == ("ward \u00fc.wav", data)
    assert heard["params"] == {"model": "openai/whisper-large-v3", "prompt": "A ward."}
    assert list(REQUEST.iter_errors(heard["fields"])) == []
    nonces = [heard["fields"][name] for name in ("nonce", "fileNonce", "fileNameNonce")]
    assert len(set(nonces)) == 3


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_text_transcription_is_returned_as_a_string(asynchronous):
    with FakeGateway(other=TranscriptionHandler("Gr\u00fc\u00df Gott".encode())) as gateway:
        answer = ask(gateway, "transcriptions", asynchronous, file=WAV, response_format="text")
    assert answer == "Gr\u00fc\u00df Gott"


@pytest.mark.parametrize("asynchronous", [False, True])
def test_every_transcription_attempt_seals_the_recording_again(asynchronous):
    hearing = TranscriptionHandler(b'{"text": "a"}')
    bodies = []

    def failing(call):
        bodies.append(json.loads(call.body))
        if len(bodies) == 1:
            call.reply(b"", 503)
        else:
            hearing(call)

    with FakeGateway(other=failing) as gateway:
        settings = gateway.settings(max_retries=1)
        if asynchronous:

            async def awaited():
                async with AsyncPremClient(**settings) as client:
                    return await client.audio.transcriptions.create(file=WAV)

            answer = asyncio.run(awaited())
        else:
            with PremClient(**settings) as client:
                answer = client.audio.transcriptions.create(file=WAV)
    assert answer.text == "a"
    first, second = bodies
    assert not any(first[name] == second[name] for name in first)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    ("status", "kind"), [(413, errors.RequestTooLargeError), (403, errors.PermissionDeniedError)]
)
def test_an_error_of_a_transcription_is_typed(asynchronous, status, kind):
    with FakeGateway(other=TranscriptionHandler(b"", status=status)) as gateway:
        with pytest.raises(kind) as caught:
            ask(gateway, "transcriptions", asynchronous, file=WAV)
    assert caught.value.support_id == "support_1"


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_invalid_file_or_parameter_is_rejected_before_anything_is_sent(asynchronous):
    with FakeGateway() as gateway:
        for params in ({"file": b""}, {"file": "/nowhere.wav"}, {"file": WAV, "response_format": "vtt"}):
            with pytest.raises(InvalidParameterError):
                ask(gateway, "transcriptions", asynchronous, **params)
    assert gateway.calls == []


def test_a_transcription_may_have_its_own_timeout():
    def silent(call):
        call.wait_for_disconnect()

    with FakeGateway(other=silent) as gateway, PremClient(**gateway.settings(max_retries=0)) as client:
        with pytest.raises(errors.APITimeoutError):
            client.audio.transcriptions.create(file=WAV, timeout=0.2)
        with pytest.raises(errors.ConfigurationError, match="timeout"):
            client.audio.transcriptions.create(file=WAV, timeout=0)
