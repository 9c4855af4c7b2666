"""Recordings longer than the service takes in one request, cut into parts at pauses.

PCM WAV files are read by the standard library, and their parts are WAV files with the same samples. Whatever
else libsndfile decodes (flac, ogg, mp3, other WAV files) needs the extra ``audio``; its parts are FLAC files of
16 bits at the recording's own rate.

The rule of this file: nothing of a recording is lost without an error, and never more than one part of it is
held.
"""

from __future__ import annotations

import io
import math
import sys
import wave
from array import array
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import PurePath
from typing import IO, Any, Final, Protocol

from prem_core._audio.upload import MAX_FILE_BYTES
from prem_core._errors import InvalidParameterError

#: Seconds before a part's end that are searched for a pause: people seldom speak longer without one, and
#: Whisper hears half a minute at a time.
SEARCH_SECONDS: Final = 30.0

#: Seconds of the quietest stretch, in whose middle the cut is made: a pause between two sentences.
PAUSE_SECONDS: Final = 0.3

#: Seconds that loudness is measured over, and the grain of a cut.
GRAIN_SECONDS: Final = 0.05

#: Seconds that a cut leaves for the next part at least: services refuse a recording of next to nothing.
LEAST_SECONDS: Final = 1.0

#: Bytes of a WAV file that may be something other than sound (a title, a cover). More means that the header counts
#: too little: that of a recorder that was switched off, or of a file beyond 4 GB.
MAX_OTHER_BYTES: Final = 1024 * 1024

#: Bytes of a sample in the encodings whose size does not depend on the sound.
_SAMPLE_BYTES: Final = {"PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}

#: How recordings begin that libsndfile does not decode.
_NOT_DECODED: Final = ((4, b"ftyp", "MP4"), (0, b"\x1a\x45\xdf\xa3", "WebM"))


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a recording, or a whole one, as it is sent. Its repr shows nothing of it.

    Attributes:
        name: The file's name.
        data: The file.
        offset: Seconds from the recording's beginning.
        seconds: How long the part is; None for a whole recording, which nobody decoded here.
    """

    name: str = field(repr=False)
    data: bytes = field(repr=False)
    offset: float = 0.0
    seconds: float | None = None


def split(
    name: str, file: IO[bytes], limit: int = MAX_FILE_BYTES, *, called: str | None = None
) -> Generator[Piece, None, None]:
    """Cut a recording at its pauses into parts, one at a time.

    Args:
        name: The recording's file name; the parts' names are made from it.
        file: The recording, open in binary mode and seekable, read from its beginning. Not closed.
        limit: Bytes of one part at most.
        called: What an error calls the recording; its name where None.

    Yields:
        Parts of at most `limit` bytes, in order and without gaps.

    Raises:
        InvalidParameterError: It cannot be decoded here (in any way, or without the extra ``audio``), it breaks
            off, or `limit` holds next to nothing.
    """
    called = called or name
    sound = _open(file, called)
    try:
        stem = PurePath(name).stem
        start = 0
        for number, (data, frames) in enumerate(_cut(sound, limit, called), 1):
            part = f"{stem}.part{number:03d}{sound.suffix}"
            yield Piece(part, data, start / sound.rate, frames / sound.rate)
            del data  # before the next one is made
            start += frames
    finally:
        sound.close()


class _Part(Protocol):
    """A part that is being written."""

    def add(self, grain: Any) -> None: ...

    def size(self) -> int: ...

    def finish(self) -> bytes: ...


class _Sound(Protocol):
    """A recording that is being decoded. A grain is a stretch of frames, in a form of its own."""

    suffix: str
    rate: int
    #: Bytes that a frame takes in a part at most.
    frame_bytes: int
    #: Bytes that a part may have beyond its `size` and the frames that are not in it yet.
    slack: int

    def frames(self, grain: Any) -> int: ...

    def power(self, grain: Any) -> float: ...

    def grains(self, frames: int) -> Iterator[Any]: ...

    def part(self) -> _Part: ...

    def close(self) -> None: ...


def _cut(sound: _Sound, limit: int, called: str) -> Iterator[tuple[bytes, int]]:
    """Parts, and the frames that each has."""
    grain_frames = max(1, round(sound.rate * GRAIN_SECONDS))
    grain_bytes = grain_frames * sound.frame_bytes
    # What is held back for the search may fill half a part: the other half always goes ahead.
    held = min(round(SEARCH_SECONDS / GRAIN_SECONDS), limit // (2 * grain_bytes))
    if held < 4 or sound.slack + 2 * grain_bytes > limit // 2:
        raise _refused(f"{called}: a part of {limit:,} bytes would hold next to nothing of it")
    part = sound.part()
    frames = 0
    waiting: deque[Any] = deque()
    for grain in sound.grains(grain_frames):
        if part.size() + sound.slack + (len(waiting) + 1) * grain_bytes > limit:
            for _ in range(_pause([sound.power(each) for each in waiting])):
                frames += sound.frames(waiting[0])
                part.add(waiting.popleft())
            done, part = part, sound.part()
            yield done.finish(), frames
            del done
            frames = 0
        waiting.append(grain)
        if len(waiting) > held:
            frames += sound.frames(waiting[0])
            part.add(waiting.popleft())
    for grain in waiting:
        frames += sound.frames(grain)
        part.add(grain)
    if not frames:
        raise _refused(f"{called}: there is no sound in it that can be decoded")
    yield part.finish(), frames


def _pause(powers: list[float]) -> int:
    """How many of these grains go before the cut: up to the middle of the quietest stretch, the last of equals."""
    width = min(round(PAUSE_SECONDS / GRAIN_SECONDS), len(powers) // 2)
    left = min(round(LEAST_SECONDS / GRAIN_SECONDS), len(powers) // 4)
    sums = [0.0, *accumulate(powers)]
    stretches = range(len(powers) - left - width + 1)
    quietest = min(stretches, key=lambda at: (sums[at + width] - sums[at], -at))
    return max(1, quietest + width // 2)


def _open(file: IO[bytes], called: str) -> _Sound:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(12)
    if head[:4] == b"RIFF":
        file.seek(0)
        try:
            pcm = _Pcm(file)
        except (wave.Error, EOFError, RuntimeError):  # the last for a chunk beyond the file's end
            pass  # not PCM, or none of the plain kind
        else:
            if pcm.nominal_bytes > 0 and size - pcm.nominal_bytes <= MAX_OTHER_BYTES:
                return pcm
    for at, mark, form in _NOT_DECODED:
        if head[at : at + len(mark)] == mark:
            raise _refused(
                f"{called}: {size:,} bytes are more than one request holds, and {form} cannot be cut here; split "
                "it, or convert it to flac, ogg, mp3 or wav"
            )
    return _Decoded(file, size, called)


class _Pcm:
    """A PCM WAV file. A grain is its bytes."""

    suffix = ".wav"
    slack = 64  # the header of a WAV file, with room to spare

    def __init__(self, file: IO[bytes]) -> None:
        self._wave = wave.open(file, "rb")  # noqa: SIM115 - closed by `close`
        self.rate = self._wave.getframerate()
        self._width = self._wave.getsampwidth()
        self.frame_bytes = self._wave.getnchannels() * self._width
        #: Bytes of sound, as the header counts them; more than the file has where its writer did not know.
        self.nominal_bytes = self._wave.getnframes() * self.frame_bytes
        if not self.rate or not 1 <= self._width <= 4:
            raise wave.Error("no rate, or no PCM")

    def frames(self, grain: bytes) -> int:
        return len(grain) // self.frame_bytes

    def power(self, grain: bytes) -> float:
        samples = _upper_16_bits(grain, self._width)
        mean = sum(samples) / len(samples)
        # About the mean: a microphone's constant offset is no sound.
        return sum(each * each for each in samples) / len(samples) - mean * mean

    def grains(self, frames: int) -> Iterator[bytes]:
        step = frames * self.frame_bytes
        while block := self._wave.readframes(frames * 64):
            if left := len(block) % self.frame_bytes:
                block = block[:-left]  # a file that ends within a frame
            for at in range(0, len(block), step):
                yield block[at : at + step]

    def part(self) -> _Part:
        return _PcmPart(self._wave)

    def close(self) -> None:
        self._wave.close()


class _PcmPart:
    def __init__(self, like: wave.Wave_read) -> None:
        self._file = io.BytesIO()
        self._wave = wave.open(self._file, "wb")  # noqa: SIM115 - closed by `finish`
        self._wave.setnchannels(like.getnchannels())
        self._wave.setsampwidth(like.getsampwidth())
        self._wave.setframerate(like.getframerate())

    def add(self, grain: bytes) -> None:
        self._wave.writeframesraw(grain)

    def size(self) -> int:
        return self._file.tell()

    def finish(self) -> bytes:
        self._wave.close()
        return self._file.getvalue()


def _upper_16_bits(samples: bytes, width: int) -> array[int]:
    """Little-endian samples of `width` bytes, as signed numbers of 16 bits."""
    if width == 1:
        # The only width without a sign.
        return array("h", [(each - 128) << 8 for each in samples])
    if width == 2:
        upper = samples
    else:
        picked = bytearray(2 * (len(samples) // width))
        picked[0::2] = samples[width - 2 :: width]
        picked[1::2] = samples[width - 1 :: width]
        upper = bytes(picked)
    found = array("h", upper)
    if sys.byteorder == "big":
        found.byteswap()
    return found


class _Decoded:
    """A recording that libsndfile decodes. A grain is an array of frames and channels."""

    suffix = ".flac"

    def __init__(self, file: IO[bytes], size: int, called: str) -> None:
        try:
            import soundfile  # type: ignore[import-untyped, unused-ignore]
        except (ImportError, OSError):  # OSError: the package is there, and its library is not
            raise _refused(
                f"{called}: {size:,} bytes are more than one request holds, and cutting this kind of recording needs "
                'an extra: pip install "prem-encrypted[audio]"'
            ) from None
        self._soundfile = soundfile
        self._called = called
        file.seek(0)

        class Streamed(soundfile.SoundFile):  # type: ignore[misc, unused-ignore]
            """Read from beginning to end. A SoundFile that can seek does so after every read, which costs an MP3
            decoder what it remembers, and it stops at the length that the header estimates.
            """

            def seekable(self) -> bool:
                return False

        try:
            self._file = Streamed(file)
        except (soundfile.SoundFileError, TypeError):
            raise _refused(
                f"{called}: {size:,} bytes are more than one request holds, and it cannot be decoded here to cut it; "
                "split it, or convert it to flac, ogg, mp3 or wav"
            ) from None
        self.rate = int(self._file.samplerate)
        self._channels = int(self._file.channels)
        self.frame_bytes = 2 * self._channels
        # FLAC gathers 4,096 frames before it writes them, and where it cannot make them smaller adds a little.
        self.slack = 3 * 4096 * self.frame_bytes + 8192
        width = _SAMPLE_BYTES.get(self._file.subtype, 0)
        counted = int(self._file.frames) * self._channels * width
        if self._file.format in ("WAV", "WAVEX") and width and size - counted > MAX_OTHER_BYTES:
            self._file.close()
            raise _refused(f"{called}: its header counts less sound than the file holds; repair it first")

    def frames(self, grain: Any) -> int:
        return len(grain)

    def power(self, grain: Any) -> float:
        return float(grain.var())

    def grains(self, frames: int) -> Iterator[Any]:
        heard = 0
        while True:
            try:
                # As floating point: whole numbers would not be scaled where the file holds floating point.
                block = self._file.read(frames * 64, dtype="float32", always_2d=True)
            except self._soundfile.SoundFileError:
                raise _refused(
                    f"{self._called}: it cannot be decoded beyond {heard / self.rate:.0f} s"
                ) from None
            if not len(block):
                break
            if not math.isfinite(float(block.max()) - float(block.min())):
                raise _refused(f"{self._called}: it holds samples that are no numbers")
            heard += len(block)
            for at in range(0, len(block), frames):
                yield block[at : at + frames]
        expected = int(self._file.frames)
        # A second: the lengths of some formats are estimates. A length beyond reason stands for "unknown".
        if self.rate < expected - heard < 2**62:
            raise _refused(
                f"{self._called}: it breaks off after {heard / self.rate:.0f} of {expected / self.rate:.0f} s"
            )

    def part(self) -> _Part:
        refusal = _refused(
            f"{self._called}: a part of it cannot be written as FLAC ({self._channels} channels, {self.rate} Hz)"
        )
        return _FlacPart(self._soundfile, self.rate, self._channels, refusal)

    def close(self) -> None:
        self._file.close()


class _FlacPart:
    def __init__(self, soundfile: Any, rate: int, channels: int, refusal: InvalidParameterError) -> None:
        self._file = io.BytesIO()
        self._error = soundfile.SoundFileError
        self._refusal = refusal
        try:
            self._flac = soundfile.SoundFile(
                self._file, "w", samplerate=rate, channels=channels, format="FLAC", subtype="PCM_16"
            )
        except self._error:
            raise refusal from None

    def add(self, grain: Any) -> None:
        try:
            self._flac.write(grain)
        except self._error:  # some of what FLAC has no place for is noticed only here
            raise self._refusal from None

    def size(self) -> int:
        return self._file.getbuffer().nbytes

    def finish(self) -> bytes:
        self._flac.close()
        return self._file.getvalue()


def _refused(why: str) -> InvalidParameterError:
    return InvalidParameterError(f"file: {why}", param="file")
