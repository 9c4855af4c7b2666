"""Subtitles: exact files, and times that every player accepts."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prem_core import APIResponseValidationError
from prem_core._audio.subtitles import cues, srt, vtt
from prem_core._audio.transcripts import TimedText


def segment(text: str, start: float | None, end: float | None) -> TimedText:
    return TimedText("id", text, {"start": start, "end": end})


def test_srt_numbers_its_cues_and_has_commas_and_hours() -> None:
    made = srt([segment("Good morning.", 0.0, 1.2344), segment("It is late.", 3599.9996, 359_999.5)])
    assert made == (
        "1\n00:00:00,000 --> 00:00:01,234\nGood morning.\n\n2\n01:00:00,000 --> 99:59:59,500\nIt is late.\n"
    )


def test_vtt_has_a_header_and_points_and_escapes() -> None:
    made = vtt([segment('<i>A & B</i> --> "C"', 61.0005, 62.0), segment("D", 360_000.0, 360_001.25)])
    assert made == (
        "WEBVTT\n"
        "\n"
        '00:01:01.000 --> 00:01:02.000\n&lt;i&gt;A &amp; B&lt;/i&gt; --&gt; "C"\n'
        "\n"
        "100:00:00.000 --> 100:00:01.250\nD\n"
    )


def test_a_transcript_cannot_end_a_cue_or_look_like_its_times() -> None:
    made = srt([segment("one\n\n2\r\n00:00:05,000 --> 00:00:06,000\u2028two", 0, 1)])
    assert made == "1\n00:00:00,000 --> 00:00:01,000\none 2 00:00:05,000 -> 00:00:06,000 two\n"


def test_a_cue_ends_where_the_next_one_starts() -> None:
    made = cues([segment("a", 0, 2.5), segment("b", 2, 3), segment("c", 3, 3), segment("d", 4, 5)])
    assert [(cue.start, cue.end) for cue in made] == [(0, 2000), (2000, 3000), (3000, 3001), (4000, 5000)]


def test_cues_that_start_at_once_or_in_the_wrong_order_share_the_time() -> None:
    made = cues([segment("a", 2, 4), segment("b", 2, 3), segment("c", 1, 6)])
    assert [(cue.start, cue.end) for cue in made] == [(2000, 3000), (3000, 3500), (3500, 6000)]


def test_a_segment_without_words_is_not_a_cue() -> None:
    assert srt([segment("", 0, 5)]) == ""
    assert vtt([segment(" \n", 0, 5)]) == "WEBVTT\n"


@pytest.mark.parametrize("times", [(None, None), (0.0, None), (None, 1.0)])
def test_segments_without_times_are_an_error(times: tuple[float | None, float | None]) -> None:
    with pytest.raises(APIResponseValidationError, match="no times"):
        srt([segment("a", *times)])


TIMES = st.floats(-5, 400_000, allow_nan=False)


@given(st.lists(st.tuples(st.text(min_size=1), TIMES, TIMES), max_size=12))
def test_whatever_times_the_service_returns_cues_are_in_order_and_do_not_overlap(
    times_and_texts: list[tuple[str, float, float]],
) -> None:
    segments = [segment(*each) for each in times_and_texts]
    made = cues(segments)
    assert len(made) == sum(bool("".join(each.text.split())) for each in segments)
    assert all(0 <= cue.start < cue.end for cue in made)
    assert all(cue.end <= following.start for cue, following in pairwise(made))
    times = re.findall(
        r"^(\d{2,}):([0-5]\d):([0-5]\d)\.(\d{3}) --> \d{2,}:[0-5]\d:[0-5]\d\.\d{3}$", vtt(segments), re.M
    )
    assert len(times) == len(made)
    assert srt(segments).count("\n\n") == max(0, len(made) - 1)
