"""What was said in a recording, as the passages that documents are made of.

The rule of this file: pure functions of the service's answers, and every recording gives at least one passage, if
an empty one: what is missing from an index must not be a recording that nobody could understand.
"""

from __future__ import annotations

import json
import unicodedata
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from prem_core._audio.upload import DEFAULT_MODEL, MAX_FILE_BYTES
from prem_core._protocol.response_types import Transcription

Task = Literal["transcribe", "translate"]
Mode = Literal["full", "segments"]

#: Names of a passage's metadata that say where and how, not what: they do not belong into an embedding.
NUMBERS: Final = ("chunk", "start", "end", "duration")

#: Of the passages' ids.
_NAMESPACE: Final = uuid.uuid5(uuid.NAMESPACE_URL, "https://prem.io/prem-encrypted/passages")


@dataclass(frozen=True, slots=True)
class Hearing:
    """How recordings are to be heard. Its repr shows no prompt.

    Attributes:
        model: The model's name.
        task: "transcribe" what is said, or "translate" it into English.
        language: What is spoken, an ISO-639-1 code; None lets the model find out. Transcriptions only.
        prompt: Text that leads the model's style. Every part of a long recording gets it.
        temperature: 0 to 1.
        mode: "full" makes one passage of a recording, "segments" one of each segment.
        group_seconds: In mode "segments": join segments up to this length. A segment is never split, and one that
            is longer is a passage of its own.
        max_part_bytes: A longer recording is sent in parts.
    """

    model: str = DEFAULT_MODEL
    task: Task = "transcribe"
    language: str | None = None
    prompt: str | None = field(default=None, repr=False)
    temperature: float | None = None
    mode: Mode = "full"
    group_seconds: float | None = None
    max_part_bytes: int = MAX_FILE_BYTES

    def params(self) -> dict[str, Any]:
        """Arguments of ``client.audio.transcriptions.create``, or of its sister for translations."""
        asked: dict[str, Any] = {
            "model": self.model,
            "prompt": self.prompt,
            "temperature": self.temperature,
            # Always: times and language come with no other.
            "response_format": "verbose_json",
        }
        return asked if self.task == "translate" else {**asked, "language": self.language}


class Answered(NamedTuple):
    """The answer to one part of a recording.

    Attributes:
        said: The answer, its times counted from the part's beginning.
        offset: Seconds from the recording's beginning to the part's.
        seconds: How long the part is; None where nobody measured.
    """

    said: Transcription
    offset: float = 0.0
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Passage:
    """A stretch of what was said. Its repr does not show it.

    Attributes:
        id: The same for every run over the same source in the same way.
        text: What was said.
        metadata: source, chunk (counted from 0), start, end and duration (of the recording) in seconds, language,
            model and task. What is not known is not there: vector stores refuse a None.
    """

    id: str
    text: str = field(repr=False)
    metadata: dict[str, Any]


class _Stretch(NamedTuple):
    text: str
    start: float | None
    end: float | None


def passages(source: str, answers: Sequence[Answered], hearing: Hearing) -> list[Passage]:
    """The passages of one recording.

    Args:
        source: What names the recording.
        answers: The answers to its parts, in order.
        hearing: How it was heard.

    Returns:
        At least one. In mode "segments", an answer without segments is one stretch, with its whole text; segments
        without words are left out.
    """
    duration = _duration(answers)
    if hearing.mode == "segments":
        stretches = [each for answer in answers for each in _segments(answer)]
        found = [each for each in stretches if each.text.strip()] or [_Stretch("", 0.0, duration)]
        if hearing.group_seconds is not None:
            found = _grouped(found, hearing.group_seconds)
    else:
        end = duration
        if end is None:
            end = (
                max((each.end or 0.0 for answer in answers for each in _segments(answer)), default=0.0)
                or None
            )
        found = [_Stretch(join(_text(answer.said) for answer in answers), 0.0, end)]
    language = next((answer.said.language for answer in answers if answer.said.language), None)
    return [
        Passage(
            passage_id(source, hearing, chunk),
            each.text.strip(),
            _known(
                source=source,
                chunk=chunk,
                start=_seconds(each.start),
                end=_seconds(each.end),
                duration=_seconds(duration),
                language=language,
                model=hearing.model,
                task=hearing.task,
            ),
        )
        for chunk, each in enumerate(found)
    ]


def passage_id(source: str, hearing: Hearing, chunk: int) -> str:
    """A UUID of the recording's name, the way it is heard and the passage's place.

    Not of the words or the times, which may differ a little from run to run, and not of language, prompt and
    temperature: hearing a recording again with these corrected replaces the passages of before.
    """
    name = [source, hearing.model, hearing.task, hearing.mode, hearing.group_seconds, chunk]
    return str(uuid.uuid5(_NAMESPACE, json.dumps(name, ensure_ascii=True)))


def join(texts: Iterable[str]) -> str:
    """Texts in a row, with a space between two where their script has spaces and there is none yet."""
    joined = ""
    for text in texts:
        if joined and text and not joined[-1].isspace() and not text[0].isspace():
            joined += "" if _unspaced(joined[-1]) or _unspaced(text[0]) else " "
        joined += text
    return joined.strip()


def _unspaced(char: str) -> bool:
    # Chinese and Japanese, their punctuation included; Korean is as wide, and has spaces.
    return unicodedata.east_asian_width(char) in "WF" and not unicodedata.name(char, "").startswith("HANGUL")


def _text(said: Transcription) -> str:
    return said.text.strip() or join(each.text for each in said.segments or ())


def _segments(answer: Answered) -> list[_Stretch]:
    offset, longest = answer.offset, answer.seconds
    segments = answer.said.segments or []
    if not any(each.text.strip() for each in segments):
        length = longest if longest is not None else answer.said.duration
        return [_Stretch(answer.said.text, offset, None if length is None else offset + length)]

    def placed(at: float) -> float:
        # Whisper counts the silence it fills the last half minute with; the next part begins before that.
        return offset + (at if longest is None else min(at, longest))

    return [_Stretch(each.text, placed(each.start), placed(each.end)) for each in segments]


def _duration(answers: Sequence[Answered]) -> float | None:
    if not answers:
        return None
    last = answers[-1]
    length = last.seconds if last.seconds is not None else last.said.duration
    return None if length is None else last.offset + length


def _grouped(stretches: Iterable[_Stretch], seconds: float) -> list[_Stretch]:
    groups: list[list[_Stretch]] = []
    for each in stretches:
        first = groups[-1][0].start if groups else None
        # Where a time is not known, nothing can be said of a length.
        if first is not None and each.end is not None and each.end - first <= seconds:
            groups[-1].append(each)
        else:
            groups.append([each])
    return [_Stretch(join(each.text for each in group), group[0].start, group[-1].end) for group in groups]


def _seconds(at: float | None) -> float | None:
    # Adding offsets leaves 15.300000000000001; the service's own grain is 10 ms.
    return None if at is None else round(at, 3)


def _known(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
