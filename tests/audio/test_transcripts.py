"""Passages: what was said, where, and under which id."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from prem_core._audio.transcripts import Answered, Hearing, join, passage_id, passages
from prem_core._protocol.response_types import Transcription

SEGMENTS = Hearing(mode="segments")


def said(*segments: tuple[float, float, str], **more: Any) -> Transcription:
    """A Whisper's answer."""
    return Transcription.model_validate(
        {
            "text": "".join(text for _, _, text in segments).strip(),
            "segments": [{"start": start, "end": end, "text": text} for start, end, text in segments],
            **more,
        }
    )


ROUND = said((0, 2.5, " Anna may go home."), (2.5, 4, " On Friday."), duration=4.2, language="english")


def told(found: list[Any]) -> list[tuple[float | None, float | None, str]]:
    return [(each.metadata.get("start"), each.metadata.get("end"), each.text) for each in found]


def test_mode_full_makes_one_passage_with_all_that_is_known():
    (passage,) = passages("ward.wav", [Answered(ROUND)], Hearing())
    assert passage.text == "Anna may go home. On Friday."
    assert passage.metadata == {
        "source": "ward.wav",
        "chunk": 0,
        "start": 0.0,
        "end": 4.2,
        "duration": 4.2,
        "language": "english",
        "model": "openai/whisper-large-v3",
        "task": "transcribe",
    }


def test_mode_segments_makes_one_of_each_segment():
    found = passages("ward.wav", [Answered(ROUND)], SEGMENTS)
    assert told(found) == [(0, 2.5, "Anna may go home."), (2.5, 4, "On Friday.")]
    assert [each.metadata["chunk"] for each in found] == [0, 1]
    assert all(each.metadata["duration"] == 4.2 and each.metadata["language"] == "english" for each in found)


def test_times_go_on_across_parts_and_the_duration_is_that_of_all():
    parts = [Answered(ROUND, 0.0, 4.5), Answered(ROUND, 4.5, 4.2)]
    assert told(passages("w", parts, SEGMENTS))[2:] == [
        (4.5, 7.0, "Anna may go home."),
        (7.0, 8.5, "On Friday."),
    ]
    (whole,) = passages("w", parts, Hearing())
    assert whole.text == "Anna may go home. On Friday. Anna may go home. On Friday."
    assert (whole.metadata["end"], whole.metadata["duration"]) == (8.7, 8.7)


def test_a_segment_does_not_reach_into_the_next_part():
    late = said((0, 30, " Hello."))
    assert told(passages("w", [Answered(late, 10.0, 4.0)], SEGMENTS)) == [(10.0, 14.0, "Hello.")]


def test_sums_of_times_have_no_tail():
    assert told(passages("w", [Answered(said((0.1, 0.2, "x")), 15.1, 9.0)], SEGMENTS)) == [(15.2, 15.3, "x")]


def test_segments_are_joined_up_to_the_length_asked_for_and_never_split():
    five = said(
        *((n * 10, n * 10 + 9, f" {n}.") for n in range(5)), (50, 90, " A long one."), (91, 95, " 7.")
    )
    found = passages("w", [Answered(five)], Hearing(mode="segments", group_seconds=30))
    assert told(found) == [(0, 29, "0. 1. 2."), (30, 49, "3. 4."), (50, 90, "A long one."), (91, 95, "7.")]


def test_groups_go_on_across_parts():
    found = passages(
        "w", [Answered(ROUND, 0, 5), Answered(ROUND, 5, 5)], Hearing(mode="segments", group_seconds=8)
    )
    assert told(found) == [(0, 7.5, "Anna may go home. On Friday. Anna may go home."), (7.5, 9, "On Friday.")]


def test_without_segments_the_whole_text_is_one_passage():
    answer = Transcription(text="Hello.", duration=3.0)
    assert told(passages("w", [Answered(answer)], SEGMENTS)) == [(0, 3, "Hello.")]
    assert told(passages("w", [Answered(answer), Answered(answer, 3.0, 3.5)], SEGMENTS))[1] == (
        3,
        6.5,
        "Hello.",
    )


def test_without_times_nothing_is_made_up():
    (passage,) = passages("w", [Answered(Transcription(text="Hello."))], SEGMENTS)
    assert not {"end", "duration", "language"} & passage.metadata.keys()
    assert None not in passage.metadata.values()


def test_without_a_duration_a_text_ends_with_its_last_segment():
    (passage,) = passages("w", [Answered(said((0, 2, " a"), (2, 5, " b")))], Hearing())
    assert passage.metadata["end"] == 5 and "duration" not in passage.metadata


def test_without_a_text_the_segments_are_the_text():
    answer = said((0, 1, " a"), (1, 2, " b"))
    answer.text = ""
    assert passages("w", [Answered(answer)], Hearing())[0].text == "a b"


@pytest.mark.parametrize("mode", ["full", "segments"])
@pytest.mark.parametrize("answer", [Transcription(duration=3.0), said((0, 3, "  "), duration=3.0)])
def test_silence_is_a_passage_without_words(mode, answer):
    (passage,) = passages("w", [Answered(answer)], Hearing(mode=mode))
    assert passage.text == "" and passage.metadata["end"] == 3.0


def test_segments_without_words_are_left_out():
    found = passages("w", [Answered(said((0, 1, " a"), (1, 2, "  "), (2, 3, " c")))], SEGMENTS)
    assert [each.text for each in found] == ["a", "c"]
    assert [each.metadata["chunk"] for each in found] == [0, 1]


def test_the_language_is_that_of_the_first_part_that_has_one():
    parts = [Answered(Transcription(text="")), Answered(ROUND, 5, 5)]
    assert passages("w", parts, Hearing())[0].metadata["language"] == "english"


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
def test_texts_are_joined_as_their_script_is_written(texts, joined):
    assert join(texts) == joined


# --- ids


def test_ids_are_the_same_in_every_process():
    code = "from prem_core._audio.transcripts import *; print(passage_id('ward/ü.wav', Hearing(), 3))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (
        run.stdout.strip() == passage_id("ward/ü.wav", Hearing(), 3) == "c18e2a0d-bef0-5abe-8b0c-e11901cddc59"
    )


def test_ids_tell_apart_what_differs_in_what_is_asked():
    ways = [
        Hearing(),
        Hearing(model="m"),
        Hearing(task="translate"),
        SEGMENTS,
        Hearing(mode="segments", group_seconds=30),
    ]
    ids = {passage_id(source, way, chunk) for source in ("a", "b") for way in ways for chunk in (0, 1)}
    assert len(ids) == 2 * len(ways) * 2


def test_hearing_again_with_a_better_language_or_prompt_replaces():
    better = Hearing(language="de", prompt="Ramipril", temperature=0.2)
    assert passage_id("a", better, 0) == passage_id("a", Hearing(), 0)


# --- what is asked


def test_times_and_language_are_always_asked_for():
    asked = Hearing(language="de", prompt="Ramipril", temperature=0.0).params()
    assert asked == {
        "model": "openai/whisper-large-v3",
        "language": "de",
        "prompt": "Ramipril",
        "temperature": 0.0,
        "response_format": "verbose_json",
    }
    assert Hearing().params()["language"] is None
    assert "language" not in Hearing(task="translate").params()


def test_nothing_said_is_in_a_repr():
    shown = repr(passages("ward.wav", [Answered(ROUND)], SEGMENTS)) + repr(Hearing(prompt="Ramipril"))
    assert "Anna" not in shown and "Friday" not in shown and "Ramipril" not in shown
