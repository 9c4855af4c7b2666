"""Turns the service's transcriptions of a recording into texts with times, for documents and subtitles.

Every recording has at least one text, which may be empty: an index must not miss a recording in which no speech was
recognised.
"""

from __future__ import annotations

import json
import unicodedata
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from prem_core._audio.upload import DEFAULT_MODEL
from prem_core._protocol.response_types import Transcription
from prem_core._protocol.routes import MAX_AUDIO_BYTES

Task = Literal["transcribe", "translate"]
Mode = Literal["document", "segments"]

#: Metadata about a text's position and origin, not its content. It should not be embedded or sent to an LLM.
EXCLUDED_METADATA_KEYS: Final = ("segment", "start", "end", "duration", "model", "task")

#: The namespace of the texts' ids.
_NAMESPACE: Final = uuid.uuid5(uuid.NAMESPACE_URL, "https://prem.io/prem-encrypted/transcripts")


@dataclass(frozen=True, slots=True)
class TranscriptionRequest:
    """How recordings are transcribed. Its repr does not show the prompt.

    Attributes:
        model: Name of the model.
        task: "transcribe", or "translate" into English.
        language: The spoken language, an ISO-639-1 code; None lets the model detect it. Transcriptions only.
        prompt: Text that guides the model's style. It is sent with every chunk of a long recording.
        temperature: 0 to 1.
        mode: "document" makes one text per recording, "segments" one per segment.
        max_segment_seconds: In mode "segments": join segments up to this length. A segment is never split, and a
            longer one is a separate text.
        max_chunk_bytes: A recording of more bytes is sent in chunks.
    """

    model: str = DEFAULT_MODEL
    task: Task = "transcribe"
    language: str | None = None
    prompt: str | None = field(default=None, repr=False)
    temperature: float | None = None
    mode: Mode = "document"
    max_segment_seconds: float | None = None
    max_chunk_bytes: int = MAX_AUDIO_BYTES

    def params(self) -> dict[str, Any]:
        """Arguments of ``client.audio.transcriptions.create`` or ``client.audio.translations.create``."""
        params: dict[str, Any] = {
            "model": self.model,
            "prompt": self.prompt,
            "temperature": self.temperature,
            # The only format with times and the language.
            "response_format": "verbose_json",
        }
        return params if self.task == "translate" else {**params, "language": self.language}


class ChunkTranscript(NamedTuple):
    """The transcription of one chunk of a recording.

    Attributes:
        transcription: The service's response; its times count from the chunk's start.
        offset: Seconds from the recording's start to the chunk's.
        seconds: How long the chunk is; None if it was not measured.
    """

    transcription: Transcription
    offset: float = 0.0
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class TimedText:
    """The speech in a part of a recording, with its times. Its repr does not show the text.

    Attributes:
        id: The same each time the same source is transcribed in the same way.
        text: The words spoken.
        metadata: source, segment (counted from 0), start, end and duration (of the recording) in seconds, language,
            model and task. Unknown values are left out, because vector stores reject None.
    """

    id: str
    text: str = field(repr=False)
    metadata: dict[str, Any]


class _Span(NamedTuple):
    text: str
    start: float | None
    end: float | None


def segments(
    source: str, transcripts: Sequence[ChunkTranscript], request: TranscriptionRequest
) -> list[TimedText]:
    """The texts of one recording.

    Args:
        source: What identifies the recording.
        transcripts: The transcriptions of its chunks, in order.
        request: How it was transcribed.

    Returns:
        At least one text. In mode "segments", a transcription without segments is one text, and segments without words
        are left out.
    """
    duration = _duration(transcripts)
    if request.mode == "segments":
        spans = [span for each in transcripts for span in _spans(each)]
        spans = [span for span in spans if span.text.strip()] or [_Span("", 0.0, duration)]
        if request.max_segment_seconds is not None:
            spans = _joined(spans, request.max_segment_seconds)
    else:
        end = duration
        if end is None:
            ends = (span.end or 0.0 for each in transcripts for span in _spans(each))
            end = max(ends, default=0.0) or None
        spans = [_Span(join(_text(each.transcription) for each in transcripts), 0.0, end)]
    languages = (each.transcription.language for each in transcripts)
    language = next((each for each in languages if each), None)
    return [
        TimedText(
            segment_id(source, request, number),
            span.text.strip(),
            _without_none(
                source=source,
                segment=number,
                start=_seconds(span.start),
                end=_seconds(span.end),
                duration=_seconds(duration),
                language=language,
                model=request.model,
                task=request.task,
            ),
        )
        for number, span in enumerate(spans)
    ]


def segment_id(source: str, request: TranscriptionRequest, number: int) -> str:
    """A UUID made from the recording's source, the way it is transcribed, and the segment's number.

    It does not depend on words and times, which may differ slightly between runs, nor on language, prompt and
    temperature: a new transcription with better ones replaces the old documents.
    """
    name = [source, request.model, request.task, request.mode, request.max_segment_seconds, number]
    return str(uuid.uuid5(_NAMESPACE, json.dumps(name, ensure_ascii=True)))


def join(texts: Iterable[str]) -> str:
    """Join texts, with a space between two if their script uses spaces and there is none yet."""
    joined = ""
    for text in texts:
        if joined and text and not joined[-1].isspace() and not text[0].isspace():
            joined += "" if _is_unspaced(joined[-1]) or _is_unspaced(text[0]) else " "
        joined += text
    return joined.strip()


def _is_unspaced(char: str) -> bool:
    # Chinese and Japanese, with their punctuation. Korean characters are as wide, but Korean uses spaces.
    return unicodedata.east_asian_width(char) in "WF" and not unicodedata.name(char, "").startswith("HANGUL")


def _text(transcription: Transcription) -> str:
    return transcription.text.strip() or join(each.text for each in transcription.segments or ())


def _spans(transcript: ChunkTranscript) -> list[_Span]:
    transcription, offset, seconds = transcript
    found = transcription.segments or []
    if not any(each.text.strip() for each in found):
        length = seconds if seconds is not None else transcription.duration
        return [_Span(transcription.text, offset, None if length is None else offset + length)]

    def placed(at: float) -> float:
        # Whisper counts the silence that pads the last half minute; the next chunk starts before its end.
        return offset + (at if seconds is None else min(at, seconds))

    return [_Span(each.text, placed(each.start), placed(each.end)) for each in found]


def _duration(transcripts: Sequence[ChunkTranscript]) -> float | None:
    if not transcripts:
        return None
    transcription, offset, seconds = transcripts[-1]
    length = seconds if seconds is not None else transcription.duration
    return None if length is None else offset + length


def _joined(spans: Iterable[_Span], seconds: float) -> list[_Span]:
    groups: list[list[_Span]] = []
    for span in spans:
        start = groups[-1][0].start if groups else None
        # Without times the length of a group is unknown.
        if start is not None and span.end is not None and span.end - start <= seconds:
            groups[-1].append(span)
        else:
            groups.append([span])
    return [_Span(join(each.text for each in group), group[0].start, group[-1].end) for group in groups]


def _seconds(at: float | None) -> float | None:
    # Adding offsets leaves 15.300000000000001; the service itself counts in steps of 10 ms.
    return None if at is None else round(at, 3)


def _without_none(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
