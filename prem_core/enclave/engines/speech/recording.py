"""A recording decoded for the recogniser: 16 kHz, mono, 16 bits.

The files come from outside. Formats, rate, channels and length are limited, a header's claims about them are not
relied on, and error messages repeat nothing of the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Final

import numpy as np
import soundfile  # type: ignore[import-untyped]
import soxr  # type: ignore[import-untyped]

from prem_core.enclave.engines.base import EngineError

#: Samples per second that the recogniser needs.
SAMPLE_RATE: Final = 16_000

#: Seconds of the longest recording. Recognising takes about a fifth of a recording's length.
MAX_SECONDS: Final = 600

#: libsndfile's names of the containers that are accepted. It reads two dozen more.
_FORMATS: Final = frozenset({"WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3"})

_MIN_RATE: Final = 4_000
_MAX_RATE: Final = 192_000
_MAX_CHANNELS: Final = 8

#: Frames decoded at a time, so that a file that unpacks to gigabytes is rejected early.
_BLOCK: Final = 1 << 16

_Samples = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Recording:
    """A decoded recording.

    Attributes:
        pcm: 16-bit samples in the machine's byte order, mono, `SAMPLE_RATE` a second.
        seconds: Its length as it was sent.
    """

    pcm: bytes = field(repr=False)
    seconds: float


def decode(audio: bytes) -> Recording:
    """A wav, flac, ogg (Vorbis or Opus) or mp3 file.

    Raises:
        EngineError: 400, naming `file`: it is no such file, cannot be decoded, or is out of bounds.
    """
    if not audio:
        raise _refused("is empty")
    try:
        with soundfile.SoundFile(BytesIO(audio)) as file:
            _check(file)
            rate = file.samplerate
            resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
            frames, pcm = 0, bytearray()
            for block in _mono(file):
                frames += len(block)
                if frames > MAX_SECONDS * rate:
                    raise _refused(f"must be at most {MAX_SECONDS // 60} minutes long")
                pcm += _int16(resampler.resample_chunk(block))
            pcm += _int16(resampler.resample_chunk(np.empty(0, np.float32), last=True))
    except soundfile.SoundFileError:
        raise _refused("cannot be decoded as wav, flac, ogg or mp3") from None
    if not frames:
        raise _refused("contains no sound")
    return Recording(bytes(pcm), frames / rate)


def _check(file: soundfile.SoundFile) -> None:
    if file.format not in _FORMATS:
        raise _refused("cannot be decoded as wav, flac, ogg or mp3")
    if not _MIN_RATE <= file.samplerate <= _MAX_RATE:
        raise _refused(f"must have between {_MIN_RATE} and {_MAX_RATE} samples a second")
    if file.channels > _MAX_CHANNELS:
        raise _refused(f"must have at most {_MAX_CHANNELS} channels")


def _mono(file: soundfile.SoundFile) -> Iterator[_Samples]:
    """The frames, block by block: the mean of their channels, -1 to 1."""
    while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
        # A wav of floats may hold anything, infinities included.
        yield np.clip(np.nan_to_num(block), -1, 1).mean(axis=1)


def _int16(samples: _Samples) -> bytes:
    return (np.clip(samples, -1, 1) * 32767).astype(np.int16).tobytes()


def _refused(why: str) -> EngineError:
    return EngineError(f"file {why}", param="file")
