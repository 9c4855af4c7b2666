"""Transcripts as texts with times and ids."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from prem_core._audio.transcripts import ChunkTranscript as Chunk
from prem_core._audio.transcripts import TranscriptionRequest as Request
from prem_core._audio.transcripts import join, segment_id, segments
from prem_core._protocol.response_types import Transcription

SEGMENTS = Request(mode="segments")


def transcription(*spans: tuple[float, float, str], **more: Any) -> Transcription:
    """A transcription with these segments."""
    return Transcription.model_validate(
        {
            "text": "".join(text for _, _, text in spans).strip(),
            "segments": [{"start": start, "end": end, "text": text} for start, end, text in spans],
            **more,
        }
    )


VISIT = transcription(
    (0, 2.5, " Anna may go home."), (2.5, 4, " On Friday."), duration=4.2, language="english"
)


def times_and_texts(found: list[Any]) -> list[tuple[float | None, float | None, str]]:
    return [(each.metadata.get("start"), each.metadata.get("end"), each.text) for each in found]


def test_mode_document_makes_one_text_with_all_metadata():
    (text,) = segments("ward.wav", [Chunk(VISIT)], Request())
    assert text.text == "Anna may go home. On Friday."
    assert text.metadata == {
        "source": "ward.wav",
        "segment": 0,
        "start": 0.0,
        "end": 4.2,
        "duration": 4.2,
        "language": "english",
        "model": "openai/whisper-large-v3",
        "task": "transcribe",
    }


def test_mode_segments_makes_one_text_of_each_segment():
    found = segments("ward.wav", [Chunk(VISIT)], SEGMENTS)
    assert times_and_texts(found) == [(0, 2.5, "Anna may go home."), (2.5, 4, "On Friday.")]
    assert [each.metadata["segment"] for each in found] == [0, 1]
    assert all(each.metadata["duration"] == 4.2 and each.metadata["language"] == "english" for each in found)


def test_times_continue_across_chunks_and_the_duration_is_the_whole_recordings():
    chunks = [Chunk(VISIT, 0.0, 4.5), Chunk(VISIT, 4.5, 4.2)]
    assert times_and_texts(segments("w", chunks, SEGMENTS))[2:] == [
        (4.5, 7.0, "Anna may go home."),
        (7.0, 8.5, "On Friday."),
    ]
    (whole,) = segments("w", chunks, Request())
    assert whole.text == "Anna may go home. On Friday. Anna may go home. On Friday."
    assert (whole.metadata["end"], whole.metadata["duration"]) == (8.7, 8.7)


def test_a_segment_does_not_overlap_the_next_chunk():
    late = transcription((0, 30, " Hello."))
    assert times_and_texts(segments("w", [Chunk(late, 10.0, 4.0)], SEGMENTS)) == [(10.0, 14.0, "Hello.")]


def test_added_times_are_rounded():
    assert times_and_texts(segments("w", [Chunk(transcription((0.1, 0.2, "x")), 15.1, 9.0)], SEGMENTS)) == [
        (15.2, 15.3, "x")
    ]


def test_segments_are_joined_up_to_max_segment_seconds_and_never_split():
    five = transcription(
        *((n * 10, n * 10 + 9, f" {n}.") for n in range(5)), (50, 90, " A long one."), (91, 95, " 7.")
    )
    found = segments("w", [Chunk(five)], Request(mode="segments", max_segment_seconds=30))
    assert times_and_texts(found) == [
        (0, 29, "0. 1. 2."),
        (30, 49, "3. 4."),
        (50, 90, "A long one."),
        (91, 95, "7."),
    ]


def test_segments_are_joined_across_chunks():
    found = segments(
        "w",
        [Chunk(VISIT, 0, 5), Chunk(VISIT, 5, 5)],
        Request(mode="segments", max_segment_seconds=8),
    )
    assert times_and_texts(found) == [
        (0, 7.5, "Anna may go home. On Friday. Anna may go home."),
        (7.5, 9, "On Friday."),
    ]


def test_a_transcription_without_segments_is_one_text():
    answer = Transcription(text="Hello.", duration=3.0)
    assert times_and_texts(segments("w", [Chunk(answer)], SEGMENTS)) == [(0, 3, "Hello.")]
    assert times_and_texts(segments("w", [Chunk(answer), Chunk(answer, 3.0, 3.5)], SEGMENTS))[1] == (
        3,
        6.5,
        "Hello.",
    )


def test_missing_times_are_left_out():
    (text,) = segments("w", [Chunk(Transcription(text="Hello."))], SEGMENTS)
    assert not {"end", "duration", "language"} & text.metadata.keys()
    assert None not in text.metadata.values()


def test_without_a_duration_a_document_ends_with_its_last_segment():
    (text,) = segments("w", [Chunk(transcription((0, 2, " a"), (2, 5, " b")))], Request())
    assert text.metadata["end"] == 5 and "duration" not in text.metadata


def test_without_a_text_the_segments_are_joined():
    answer = transcription((0, 1, " a"), (1, 2, " b"))
    answer.text = ""
    assert segments("w", [Chunk(answer)], Request())[0].text == "a b"


@pytest.mark.parametrize("mode", ["document", "segments"])
@pytest.mark.parametrize("answer", [Transcription(duration=3.0), transcription((0, 3, "  "), duration=3.0)])
def test_a_silent_recording_gives_an_empty_text(mode, answer):
    (text,) = segments("w", [Chunk(answer)], Request(mode=mode))
    assert text.text == "" and text.metadata["end"] == 3.0


def test_segments_without_words_are_left_out():
    found = segments("w", [Chunk(transcription((0, 1, " a"), (1, 2, "  "), (2, 3, " c")))], SEGMENTS)
    assert [each.text for each in found] == ["a", "c"]
    assert [each.metadata["segment"] for each in found] == [0, 1]


def test_the_language_is_that_of_the_first_chunk_that_has_one():
    chunks = [Chunk(Transcription(text="")), Chunk(VISIT, 5, 5)]
    assert segments("w", chunks, Request())[0].metadata["language"] == "english"


@pytest.mark.parametrize(
    ("texts", "joined"),
    [
        ([" Hello.", " World."], "Hello. World."),
        (["Hello.", "World."], "Hello. World."),
        (["Hello. ", "World."], "Hello. World."),
        (["こんにちは。", "元気ですか"], "こんにちは。元気ですか"),
        (["안녕하세요", "반갑습니다"], "안녕하세요 반갑습니다"),
        (["", "a", "", "b"], "a b"),
        ([], ""),
    ],
)
def test_texts_are_joined_with_a_space_if_their_script_uses_spaces(texts, joined):
    assert join(texts) == joined


# --- ids


def test_ids_are_the_same_in_every_process():
    code = "from prem_core._audio.transcripts import *; print(segment_id('ward/ü.wav', TranscriptionRequest(), 3))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (
        run.stdout.strip() == segment_id("ward/ü.wav", Request(), 3) == "9fb49785-3ddb-58ca-8649-1dc8f2fad0be"
    )


def test_ids_differ_by_source_request_and_segment():
    ways = [
        Request(),
        Request(model="m"),
        Request(task="translate"),
        SEGMENTS,
        Request(mode="segments", max_segment_seconds=30),
    ]
    ids = {segment_id(source, way, chunk) for source in ("a", "b") for way in ways for chunk in (0, 1)}
    assert len(ids) == 2 * len(ways) * 2


def test_ids_do_not_depend_on_language_prompt_and_temperature():
    better = Request(language="de", prompt="Ramipril", temperature=0.2)
    assert segment_id("a", better, 0) == segment_id("a", Request(), 0)


# --- requests


def test_a_request_always_uses_the_format_with_times_and_language():
    params = Request(language="de", prompt="Ramipril", temperature=0.0).params()
    assert params == {
        "model": "openai/whisper-large-v3",
        "language": "de",
        "prompt": "Ramipril",
        "temperature": 0.0,
        "response_format": "verbose_json",
    }
    assert Request().params()["language"] is None
    assert "language" not in Request(task="translate").params()


def test_no_repr_shows_a_transcript_or_a_prompt():
    shown = repr(segments("ward.wav", [Chunk(VISIT)], SEGMENTS)) + repr(Request(prompt="Ramipril"))
    assert "Anna" not in shown and "Friday" not in shown and "Ramipril" not in shown
