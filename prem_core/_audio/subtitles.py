"""Subtitles, SubRip (srt) and WebVTT (vtt), from the passages of a recording.

The rule of this file: pure, and every file it makes is one that players accept. Cues are in order, none lasts no time
and none begins before the one before has ended, whatever times the service gave.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from prem_core._audio.transcripts import Passage
from prem_core._errors import APIResponseValidationError

#: Milliseconds: the shortest cue. WebVTT wants an end after the start.
LEAST: Final = 1


@dataclass(slots=True)
class Cue:
    """Words, and when they are shown, in milliseconds."""

    start: int
    end: int
    text: str


def srt(passages: Iterable[Passage]) -> str:
    """A SubRip file.

    Args:
        passages: The recording's segments.

    Raises:
        APIResponseValidationError: They have no times.
    """
    return "\n".join(
        f"{number}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n{_srt_text(cue.text)}\n"
        for number, cue in enumerate(cues(passages), 1)
    )


def vtt(passages: Iterable[Passage]) -> str:
    """A WebVTT file; see `srt`."""
    blocks = [
        f"{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n{html.escape(cue.text, quote=False)}\n"
        for cue in cues(passages)
    ]
    return "\n".join(["WEBVTT\n", *blocks])


def cues(passages: Iterable[Passage]) -> Sequence[Cue]:
    """One cue for each passage that says something.

    A cue that reaches into the next one ends where that begins. One that does not begin after the one before it shares
    that one's time.
    """
    made: list[Cue] = []
    for passage in passages:
        text = " ".join(filter(None, map(str.strip, passage.text.splitlines())))
        if not text:
            continue
        start, end = _milliseconds(passage, "start"), _milliseconds(passage, "end")
        if made:
            last = made[-1]
            if start <= last.start:
                middle = (last.start + last.end) // 2
                start, end = max(middle, last.start + LEAST), max(end, last.end)
            last.end = min(last.end, start)
        made.append(Cue(start, max(end, start + LEAST), text))
    return made


def _milliseconds(passage: Passage, name: str) -> int:
    seconds: float | None = passage.metadata.get(name)
    if seconds is None:
        raise APIResponseValidationError("the service gave no times, and subtitles need them; ask for text")
    return max(0, round(seconds * 1000))


def _clock(milliseconds: int, point: str) -> str:
    seconds, thousandths = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{point}{thousandths:03}"


def _srt_text(text: str) -> str:
    # The format has no escapes. Players take a line with this arrow for the times of a cue.
    return text.replace("-->", "->")
