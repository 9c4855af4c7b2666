"""Makes subtitles, SubRip (srt) and WebVTT (vtt), from the segments of a recording.

Whatever times the service returned, cues are in order, do not overlap and have a length, so players accept the file.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from prem_core._audio.transcripts import TimedText
from prem_core._errors import APIResponseValidationError

#: Milliseconds of the shortest cue. In WebVTT a cue must end after its start.
MIN_CUE_MS: Final = 1


@dataclass(slots=True)
class Cue:
    """A text, and when it is shown, in milliseconds."""

    start: int
    end: int
    text: str


def srt(segments: Iterable[TimedText]) -> str:
    """A SubRip file.

    Args:
        segments: The recording's segments.

    Raises:
        APIResponseValidationError: They have no times.
    """
    return "\n".join(
        f"{number}\n{_timestamp(cue.start, ',')} --> {_timestamp(cue.end, ',')}\n{_srt_text(cue.text)}\n"
        for number, cue in enumerate(cues(segments), 1)
    )


def vtt(segments: Iterable[TimedText]) -> str:
    """A WebVTT file; see `srt`."""
    blocks = [
        f"{_timestamp(cue.start, '.')} --> {_timestamp(cue.end, '.')}\n{html.escape(cue.text, quote=False)}\n"
        for cue in cues(segments)
    ]
    return "\n".join(["WEBVTT\n", *blocks])


def cues(segments: Iterable[TimedText]) -> Sequence[Cue]:
    """One cue for each segment with words.

    A cue that overlaps the next one ends where the next one starts. A cue that does not start after the previous
    one takes the second half of its time.
    """
    made: list[Cue] = []
    for segment in segments:
        text = " ".join(filter(None, map(str.strip, segment.text.splitlines())))
        if not text:
            continue
        start, end = _milliseconds(segment, "start"), _milliseconds(segment, "end")
        if made:
            last = made[-1]
            if start <= last.start:
                middle = (last.start + last.end) // 2
                start, end = max(middle, last.start + MIN_CUE_MS), max(end, last.end)
            last.end = min(last.end, start)
        made.append(Cue(start, max(end, start + MIN_CUE_MS), text))
    return made


def _milliseconds(segment: TimedText, name: str) -> int:
    seconds: float | None = segment.metadata.get(name)
    if seconds is None:
        raise APIResponseValidationError(
            "the service returned no timestamps, which subtitles need; use the text format"
        )
    return max(0, round(seconds * 1000))


def _timestamp(milliseconds: int, point: str) -> str:
    seconds, thousandths = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{point}{thousandths:03}"


def _srt_text(text: str) -> str:
    # SubRip has no escapes, and players read a line with this arrow as the times of a cue.
    return text.replace("-->", "->")
