"""Recordings that tests transcribe, and the service's responses to them."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from support.paths import CLINIC_NOTE
from support.scripted_upstream import ReceivedRecording

#: The bytes of the sample recording.
WAV: Final = CLINIC_NOTE.read_bytes()

#: A transcription with two segments.
TRANSCRIPTION: Final = {
    "task": "transcribe",
    "language": "german",
    "duration": 4.5,
    "text": "Anna darf nach Hause. Am Freitag.",
    "segments": [
        {"id": 0, "start": 0.0, "end": 2.5, "text": " Anna darf nach Hause."},
        {"id": 1, "start": 2.5, "end": 4.0, "text": " Am Freitag."},
    ],
}


def fill_directory(path: Path) -> Path:
    """`path` with three recordings, a.wav, b.wav and c.wav, and a text file."""
    for name in ("a.wav", "b.wav", "c.wav"):
        shutil.copy(CLINIC_NOTE, path / name)
    (path / "notes.txt").write_text("not a recording")
    return path


def source_names(documents: Iterable[Any]) -> list[str]:
    """The file name of each document's source."""
    return [Path(document.metadata["source"]).name for document in documents]


class Overlap:
    """Responds to transcription requests, and holds the first ones until `expected` are in progress at once.

    Attributes:
        most: The most requests that were in progress at once.
    """

    def __init__(
        self, expected: int, respond: Callable[[ReceivedRecording], Any] = lambda recording: TRANSCRIPTION
    ) -> None:
        self.most = 0
        self._expected = expected
        self._respond = respond
        self._in_progress = 0
        self._changed = threading.Condition()

    def __call__(self, recording: ReceivedRecording) -> Any:
        with self._changed:
            self._in_progress += 1
            self.most = max(self.most, self._in_progress)
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self.most >= self._expected, timeout=30)
        try:
            return self._respond(recording)
        finally:
            with self._changed:
                self._in_progress -= 1


class LastFirst:
    """Responds to the first request of a batch only after the request for the recording `last` had its response."""

    def __init__(self, first: str, last: str, respond: Callable[[ReceivedRecording], Any]) -> None:
        self._first, self._last, self._respond = first, last, respond
        self._responded = threading.Event()

    def __call__(self, recording: ReceivedRecording) -> Any:
        if recording.name == self._first:
            assert self._responded.wait(30)
        if recording.name == self._last:
            self._responded.set()
        return self._respond(recording)
