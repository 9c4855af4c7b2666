"""Recordings of beeps whose pitch is a number, and a function that transcribes them.

They show what was lost, doubled or moved, to the hundredth of a second.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from support.scripted_upstream import ReceivedRecording

RATE = 16_000
BEEP = 0.5

#: Uneven times of beeps over 40 s; between them it is quiet.
BEEP_TIMES = (
    0.4, 1.6, 3.0, 4.4, 6.0, 7.3, 9.1, 11.0, 12.5, 15.0, 17.7, 19.0, 22.2, 25.0, 27.1, 30.3, 33.0, 36.6, 38.9,
)  # fmt: skip

#: Those of the first 20 s.
SHORT_BEEP_TIMES = BEEP_TIMES[:12]


def beeps(at: Sequence[float], seconds: float, *, noise: float = 0.003) -> Any:
    """Samples with beep number n at the nth time, half a second each, in faint noise."""
    samples = noise * np.random.default_rng(1).standard_normal(int(seconds * RATE)).astype("float32")
    clock = np.arange(int(BEEP * RATE)) / RATE
    for number, start in enumerate(at):
        first = int(start * RATE)
        samples[first : first + len(clock)] += 0.3 * np.sin(2 * np.pi * _pitch(number) * clock)
    return samples


def write_beeps(path: Path, at: Sequence[float], seconds: float, *, subtype: str | None = None) -> Path:
    """Write beeps to a file, in the format of its suffix."""
    soundfile.write(path, beeps(at, seconds), RATE, subtype=subtype)
    return path


def transcribe_beeps(recording: ReceivedRecording) -> dict[str, Any]:
    """The transcription of a recording of beeps: a segment for each, with its number as its word."""
    samples, rate = soundfile.read(io.BytesIO(recording.data), dtype="float32", always_2d=True)
    samples = samples[:, 0]
    step = rate // 100
    blocks = samples[: len(samples) // step * step].reshape(-1, step)
    loud = np.concatenate([[False], np.sqrt((blocks**2).mean(axis=1)) > 0.05, [False]])
    edges = np.flatnonzero(loud[1:] != loud[:-1])
    segments = []
    for first, last in zip(edges[::2], edges[1::2], strict=True):
        beep = samples[first * step : last * step]
        pitch = np.abs(np.fft.rfft(beep, rate)).argmax()
        segments.append(
            {"id": len(segments), "start": first / 100, "end": last / 100, "text": f" beep{_number(pitch)}"}
        )
    return {
        "task": recording.task,
        "language": "english",
        "duration": len(samples) / rate,
        "text": "".join(each["text"] for each in segments),
        "segments": segments,
    }


def _pitch(number: int) -> int:
    return 300 + 20 * number


def _number(pitch: int) -> int:
    return round((int(pitch) - 300) / 20)
