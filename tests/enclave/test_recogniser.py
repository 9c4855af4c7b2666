"""The recogniser: which recordings it decodes, what it transcribes, and what it refuses."""

from __future__ import annotations

import io
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from support.paths import CLINIC_NOTE
from support.raw_client import validator
from support.wire_schemas import DATA

from prem_core.enclave.engines import speech
from prem_core.enclave.engines.base import EngineError
from prem_core.enclave.engines.speech import recogniser, recording

NOTE = CLINIC_NOTE
SENTENCES = [
    "the doctor will see the patient again on friday",
    "the hospital will be open on saturday and sunday",
]
COPIES = sorted((DATA / "audio").glob("clinic_note.*"))


def file(samples: Any, rate: int, container: str = "WAV", codec: str = "PCM_16") -> bytes:
    made = io.BytesIO()
    soundfile.write(made, samples, rate, codec, format=container)
    return made.getvalue()


def heard(audio: bytes) -> list[speech.Utterance]:
    return list(speech.utterances(speech.decode(audio).pcm))


def close(utterances: list[speech.Utterance]) -> bool:
    """Most words are the right ones: libraries and processors differ in the last bits of a sample."""
    said = [set(utterance.text.split()) for utterance in utterances]
    return len(said) == 2 and all(
        len(words & set(right.split())) >= 0.6 * len(set(right.split()))
        for words, right in zip(said, SENTENCES, strict=True)
    )


def refused(audio: bytes) -> EngineError:
    with pytest.raises(EngineError) as caught:
        speech.decode(audio)
    assert (caught.value.status, caught.value.param) == (400, "file")
    assert caught.value.__cause__ is None
    return caught.value


@pytest.fixture(scope="module")
def note() -> list[speech.Utterance]:
    return heard(NOTE.read_bytes())


# What is heard


def test_the_sample_is_heard_word_for_word(note: list[speech.Utterance]) -> None:
    assert [utterance.text for utterance in note] == SENTENCES


@pytest.mark.parametrize("path", COPIES, ids=[path.suffix for path in COPIES])
def test_every_format_is_heard(path: Path) -> None:
    assert close(heard(path.read_bytes()))


def test_all_four_formats_are_tried() -> None:
    assert [path.suffix for path in COPIES] == [".flac", ".mp3", ".ogg", ".opus"]


def test_stereo_at_44_khz_is_heard() -> None:
    left = soxr.resample(soundfile.read(NOTE, dtype="float32")[0], 16_000, 44_100)
    assert close(heard(file(np.stack([left, np.zeros_like(left)], axis=1), 44_100)))


def test_words_have_times_that_grow_and_stay_inside_their_segment(note: list[speech.Utterance]) -> None:
    seconds = speech.decode(NOTE.read_bytes()).seconds
    times = [time for utterance in note for word in utterance.words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert all(word.start < word.end for utterance in note for word in utterance.words)
    for utterance in note:
        assert 0 <= utterance.start <= utterance.words[0].start
        assert utterance.words[-1].end <= utterance.end <= seconds
    assert note[0].end < note[1].start


def test_figures_of_confidence_are_in_their_ranges(note: list[speech.Utterance]) -> None:
    for utterance in note:
        assert -10 < utterance.avg_logprob <= 0
        assert 0 < utterance.no_speech_prob < 0.3


def test_the_same_recording_gives_the_same_in_any_thread_and_after_any_other(
    note: list[speech.Utterance],
) -> None:
    heard(file(np.random.default_rng(1).normal(0, 0.2, 16_000), 16_000))
    assert heard(NOTE.read_bytes()) == note
    told: list[Any] = []
    thread = threading.Thread(target=lambda: told.append(heard(NOTE.read_bytes())))
    thread.start()
    thread.join()
    assert told == [note]


def test_steps_may_be_taken_in_different_threads(note: list[speech.Utterance]) -> None:
    steps = speech.utterances(speech.decode(NOTE.read_bytes()).pcm)
    told: list[Any] = [next(steps)]
    thread = threading.Thread(target=lambda: told.extend(steps))
    thread.start()
    thread.join()
    assert told == note


def test_speech_that_does_not_end_is_heard_to_its_last_frame() -> None:
    pcm = speech.decode(NOTE.read_bytes()).pcm
    size = recogniser.Endpointer().frame_bytes
    whole = pcm[: 60 * size]  # in the middle of a word, at the end of a frame
    for cut in (whole, whole + pcm[60 * size : 60 * size + 100]):
        ((start, spoken),) = recogniser._spoken(cut)
        assert start == 0
        assert len(spoken) == len(cut)


def test_speech_without_a_pause_is_cut_into_utterances_that_follow_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pcm = speech.decode(NOTE.read_bytes()).pcm
    whole = list(recogniser._spoken(pcm))
    monkeypatch.setattr(recogniser, "MAX_UTTERANCE_SECONDS", 1)
    parts = list(recogniser._spoken(pcm))
    assert len(parts) > len(whole) == 2
    assert b"".join(part for _, part in parts) == b"".join(part for _, part in whole)
    for start, part in parts:
        at = round(start * recording.SAMPLE_RATE) * 2
        assert pcm[at : at + len(part)] == part
        assert len(part) <= 1.4 * recogniser._SECOND


@pytest.mark.parametrize("level", [0.0, 1e-4])
def test_a_recording_without_speech_has_an_empty_transcription(level: float) -> None:
    quiet = np.random.default_rng(2).normal(0, 1, 32_000) * level
    assert heard(file(quiet, 16_000)) == []


def test_variants_and_fillers_are_no_words(monkeypatch: pytest.MonkeyPatch) -> None:
    class Segment:
        def __init__(self, word: str, start: int, end: int) -> None:
            self.word, self.start_frame, self.end_frame = word, start, end

    class Said:
        said: tuple[Segment, ...] = ()

        def seg(self) -> Any:
            return iter(self.said)

        def hyp(self) -> Any:
            return type("Hypothesis", (), {"prob": 0.0})

    decoder = recogniser._Decoder.__new__(recogniser._Decoder)
    decoder._decoder = said = Said()
    said.said = (
        Segment("<s>", 0, 9),
        Segment("[NOISE]", 10, 19),
        Segment("read(2)", 20, 29),
        Segment("++BREATH++", 30, 39),
        Segment("'bout", 40, 59),
        Segment("</s>", 60, 79),
    )
    utterance = decoder._read(2.0, 0.5)
    assert utterance is not None
    assert utterance.words == (("read", 2.2, 2.3), ("'bout", 2.4, 2.5))
    assert utterance.text == "read 'bout"
    assert utterance.no_speech_prob == 0.625
    assert math.isfinite(utterance.avg_logprob), "also where the posterior is too small for a float"
    said.said = (Segment("<s>", 0, 9), Segment("</s>", 10, 19))
    assert decoder._read(0.0, 0.2) is None


def test_the_decoder_says_nothing_on_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    thread = threading.Thread(target=lambda: heard(NOTE.read_bytes()[: 44 + 64_000]))
    thread.start()  # a decoder of its own: loading is when it would talk
    thread.join()
    assert capfd.readouterr() == ("", "")


# What is decoded


@pytest.mark.parametrize(
    ("rate", "channels", "codec"),
    [(16_000, 1, "PCM_16"), (44_100, 2, "FLOAT"), (8_000, 1, "ULAW"), (96_000, 8, "PCM_24")],
)
def test_a_recording_becomes_16_khz_mono(rate: int, channels: int, codec: str) -> None:
    tone = 0.5 * np.sin(np.arange(rate) * 2 * np.pi * 440 / rate)
    decoded = speech.decode(file(np.stack([tone] * channels, axis=1), rate, codec=codec))
    assert decoded.seconds == 1
    pcm = np.frombuffer(decoded.pcm, np.int16)
    assert abs(len(pcm) - 16_000) <= 2
    spectrum = np.abs(np.fft.rfft(pcm[:16_000], 16_000))
    assert spectrum.argmax() == 440
    assert 0.48 < np.abs(pcm[1_000:-1_000]).max() / 32767 < 0.52


def test_what_the_lower_rate_cannot_hold_is_filtered_out_and_not_folded_back() -> None:
    tone = 0.5 * np.sin(np.arange(48_000) * 2 * np.pi * 11_000 / 48_000)
    pcm = np.frombuffer(speech.decode(file(tone, 48_000)).pcm, np.int16)
    assert np.abs(pcm[1_000:-1_000]).max() < 10


def test_channels_are_mixed() -> None:
    ones = np.ones(16_000)
    pcm = np.frombuffer(speech.decode(file(np.stack([0.5 * ones, 0 * ones], axis=1), 16_000)).pcm, np.int16)
    assert abs(int(pcm[8_000]) - 8_192) < 10


def test_samples_that_are_no_numbers_are_silence_or_full_scale() -> None:
    values = np.tile(np.float32([np.nan, np.inf, -np.inf, 9]), 4_000)
    decoded = speech.decode(file(values, 16_000, codec="FLOAT"))
    assert np.frombuffer(decoded.pcm, np.int16)[:4].tolist() == [0, 32767, -32767, 32767]


def test_an_empty_file_is_refused() -> None:
    assert "empty" in str(refused(b""))


def test_a_file_without_a_frame_is_refused() -> None:
    assert "no sound" in str(refused(file(np.zeros(0), 16_000)))


@pytest.mark.parametrize(
    "audio",
    [
        b"zebra",
        b"zebra" * 10_000,
        b"RIFF\xff\xff\xff\xffWAVEzebra",
        b"OggS" + bytes(100),
        b"fLaC" + b"\xff" * 1_000,
        b"ID3" + bytes(1_000),
        (DATA / "media" / "pixels.png").read_bytes(),
        (DATA / "media" / "letter.pdf").read_bytes(),
    ],
)
def test_what_is_no_recording_is_refused_without_repeating_it(audio: bytes) -> None:
    error = refused(audio)
    assert "zebra" not in str(error)
    assert "BytesIO" not in str(error)


def test_a_format_that_is_not_offered_is_refused_also_where_libsndfile_reads_it() -> None:
    assert "wav, flac, ogg or mp3" in str(refused(file(np.zeros(16_000), 16_000, "AIFF")))


@pytest.mark.parametrize(("rate", "channels"), [(1_000, 1), (384_000, 1), (16_000, 9)])
def test_a_rate_or_number_of_channels_out_of_bounds_is_refused(rate: int, channels: int) -> None:
    refused(file(np.zeros((rate, channels)), rate))


def test_a_recording_that_is_too_long_is_refused_by_its_content_and_early() -> None:
    rate = 192_000
    small = file(np.zeros(rate * 20), rate, "FLAC")
    assert len(small) < 100_000
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "MAX_SECONDS", 10)
        assert "minutes" in str(refused(small))
    assert speech.decode(small).seconds == 20


def test_a_recording_of_ten_minutes_is_taken_and_not_a_second_more() -> None:
    assert recording.MAX_SECONDS == 600
    assert speech.decode(file(np.zeros(600 * 4_000), 4_000, "FLAC")).seconds == 600
    refused(file(np.zeros(601 * 4_000), 4_000, "FLAC"))


# What is answered


def test_the_verbose_form_satisfies_the_published_schema(note: list[speech.Utterance]) -> None:
    said = speech.transcription({"response_format": "verbose_json"}, 7.3770625, note)
    assert isinstance(said, dict)
    validator("audio-translation-result").validate(said)
    assert {name: said[name] for name in ("task", "language", "duration", "text")} == {
        "task": "transcribe",
        "language": "english",
        "duration": 7.377,
        "text": " ".join(SENTENCES),
    }
    known = {"id", "seek", "start", "end", "text", "tokens", "temperature"}
    known |= {"avg_logprob", "compression_ratio", "no_speech_prob"}
    assert [set(segment) for segment in said["segments"]] == [known, known]
    assert [segment["id"] for segment in said["segments"]] == [0, 1]
    assert [segment["seek"] for segment in said["segments"]] == [round(u.start * 100) for u in note]


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        (["word"], {"words"}),
        (["segment"], {"segments"}),
        (["word", "segment"], {"words", "segments"}),
        (None, {"segments"}),
    ],
)
def test_what_has_times_is_what_was_asked_for(
    note: list[speech.Utterance], wanted: list[str] | None, names: set[str]
) -> None:
    params: dict[str, Any] = {"response_format": "verbose_json"}
    if wanted is not None:
        params["timestamp_granularities"] = wanted
    said = speech.transcription(params, 7.4, note)
    assert isinstance(said, dict)
    assert {"words", "segments"} & set(said) == names
    if "words" in said:
        assert said["words"][1] == {
            "word": "doctor",
            "start": note[0].words[1].start,
            "end": note[0].words[1].end,
        }


def test_json_is_the_text_alone_and_text_is_no_json(note: list[speech.Utterance]) -> None:
    text = " ".join(SENTENCES)
    assert speech.transcription({}, 7.4, note) == {"text": text}
    assert speech.transcription({"response_format": "json"}, 7.4, note) == {"text": text}
    assert speech.transcription({"response_format": "text"}, 7.4, note) == text


@pytest.mark.parametrize("form", ["json", "verbose_json"])
def test_silence_is_an_answer_too(form: str) -> None:
    said = speech.transcription({"response_format": form}, 1.0, [])
    assert isinstance(said, dict)
    assert said["text"] == ""
    assert said.get("segments", []) == []


def test_another_language_is_refused_by_name_and_english_is_not() -> None:
    with pytest.raises(EngineError) as caught:
        speech.refuse("transcribe", {"language": "de"})
    assert (caught.value.status, caught.value.param) == (400, "language")
    assert "--upstream" in str(caught.value)
    speech.refuse("transcribe", {"language": "en", "prompt": "x", "temperature": 1})


def test_translation_is_refused() -> None:
    with pytest.raises(EngineError, match="--upstream") as caught:
        speech.refuse("translate", {})
    assert caught.value.status == 400


def test_nothing_that_was_said_shows_in_a_repr(note: list[speech.Utterance]) -> None:
    shown = repr(note) + repr(speech.decode(NOTE.read_bytes()))
    assert "doctor" not in shown
    assert "\\x" not in shown
