"""Reads a recording as blocks of frames, and writes blocks as the files that are sent.

The standard library reads PCM WAV, and its chunks are WAV files with the same samples. Everything else that libsndfile
decodes (flac, ogg, mp3, other WAV files) needs the extra ``audio``; its chunks are FLAC files of 16 bits at the
recording's own rate.
"""

from __future__ import annotations

import io
import math
import sys
import wave
from array import array
from collections.abc import Iterator
from typing import IO, Any, Final

from prem_core._audio.upload import invalid_file
from prem_core._errors import InvalidParameterError
from prem_core._media import HEAD_BYTES, audio_format

#: Bytes of a WAV file that may be something other than audio (a title, a cover). If there are more, the header's length
#: is too small: a recorder lost power, or the file is larger than 4 GB.
MAX_NON_AUDIO_BYTES: Final = 1024 * 1024

#: Bytes of a sample, in the encodings that have a fixed size.
_SAMPLE_BYTES: Final = {"PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}

#: Formats that libsndfile does not decode.
_NOT_DECODED: Final = {".m4a": "MP4", ".webm": "WebM"}


def open_decoder(file: IO[bytes], label: str) -> WavDecoder | SndfileDecoder:
    """A decoder for a recording.

    Args:
        file: The recording, open in binary mode and seekable. It is read from its start, and not closed.
        label: What an error calls the recording.

    Raises:
        InvalidParameterError: It cannot be decoded here, or its header is damaged.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    found = audio_format(file.read(HEAD_BYTES))
    suffix = "" if found is None else found.suffix
    if suffix == ".wav":
        file.seek(0)
        try:
            decoder = WavDecoder(file)
        except (wave.Error, EOFError, RuntimeError):  # the last if a RIFF chunk exceeds the file
            pass  # not PCM, or an unusual form of it
        else:
            if decoder.header_bytes > 0 and size - decoder.header_bytes <= MAX_NON_AUDIO_BYTES:
                return decoder
    if suffix in _NOT_DECODED:
        raise _too_large(
            label,
            size,
            f"{_NOT_DECODED[suffix]} files cannot be split here: split it yourself, or convert it",
        )
    return SndfileDecoder(file, size, label)


def _too_large(label: str, size: int, problem: str) -> InvalidParameterError:
    return invalid_file(f"{label}: {size:,} bytes is too large for one request; {problem}")


class WavDecoder:
    """Reads a PCM WAV file. A block is its bytes.

    Attributes:
        suffix: The suffix of the chunks' file names.
        rate: Frames in a second.
        frame_bytes: Most bytes that a frame takes in a chunk.
        overhead: Bytes that a chunk may have in addition to its `size` and to the frames that are not written yet.
    """

    suffix = ".wav"
    overhead = 64  # a WAV header has 44 bytes

    def __init__(self, file: IO[bytes]) -> None:
        self._wave = wave.open(file, "rb")  # noqa: SIM115 - closed by `close`
        self.rate = self._wave.getframerate()
        self._width = self._wave.getsampwidth()
        self.frame_bytes = self._wave.getnchannels() * self._width
        #: Bytes of audio according to the header; more than the file has if its writer did not fill in the length.
        self.header_bytes = self._wave.getnframes() * self.frame_bytes
        if not self.rate or not 1 <= self._width <= 4:
            raise wave.Error("no rate, or not PCM")

    def frames(self, block: bytes) -> int:
        return len(block) // self.frame_bytes

    def power(self, block: bytes) -> float:
        samples = _upper_16_bits(block, self._width)
        mean = sum(samples) / len(samples)
        # About the mean: the constant offset of a microphone is not sound.
        return sum(each * each for each in samples) / len(samples) - mean * mean

    def blocks(self, frames: int) -> Iterator[bytes]:
        step = frames * self.frame_bytes
        while read := self._wave.readframes(frames * 64):
            if rest := len(read) % self.frame_bytes:
                read = read[:-rest]  # the file ends within a frame
            for at in range(0, len(read), step):
                yield read[at : at + step]

    def writer(self) -> _WavWriter:
        return _WavWriter(self._wave)

    def close(self) -> None:
        self._wave.close()


class _WavWriter:
    def __init__(self, like: wave.Wave_read) -> None:
        self._file = io.BytesIO()
        self._wave = wave.open(self._file, "wb")  # noqa: SIM115 - closed by `finish`
        self._wave.setnchannels(like.getnchannels())
        self._wave.setsampwidth(like.getsampwidth())
        self._wave.setframerate(like.getframerate())

    def write(self, block: bytes) -> None:
        self._wave.writeframesraw(block)

    def size(self) -> int:
        return self._file.tell()

    def finish(self) -> bytes:
        self._wave.close()
        return self._file.getvalue()


def _upper_16_bits(samples: bytes, width: int) -> array[int]:
    """Little-endian samples of `width` bytes, as signed numbers of 16 bits."""
    if width == 1:
        # The only width that is unsigned.
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


class SndfileDecoder:
    """Reads what libsndfile decodes, like `WavDecoder`. A block is an array of frames and channels."""

    suffix = ".flac"

    def __init__(self, file: IO[bytes], size: int, label: str) -> None:
        try:
            import soundfile  # type: ignore[import-untyped, unused-ignore]
        except (ImportError, OSError):  # OSError: the package is installed, but its library is missing
            raise _too_large(
                label, size, 'to split this format, install the extra: pip install "prem-encrypted[audio]"'
            ) from None
        self._soundfile = soundfile
        self._label = label
        file.seek(0)

        class Streamed(soundfile.SoundFile):  # type: ignore[misc, unused-ignore]
            """Read from start to end. A SoundFile that can seek does so after every read: an MP3 decoder then loses
            its state, and reading stops at the length that the header estimates.
            """

            def seekable(self) -> bool:
                return False

        try:
            self._file = Streamed(file)
        except (soundfile.SoundFileError, TypeError):
            raise _too_large(
                label,
                size,
                "it cannot be decoded here: split it yourself, or convert it to flac, ogg, mp3 or wav",
            ) from None
        self.rate = int(self._file.samplerate)
        self._channels = int(self._file.channels)
        self.frame_bytes = 2 * self._channels
        # FLAC collects 4,096 frames before it writes them, and adds a little where it cannot compress them.
        self.overhead = 3 * 4096 * self.frame_bytes + 8192
        width = _SAMPLE_BYTES.get(self._file.subtype, 0)
        header_bytes = int(self._file.frames) * self._channels * width
        if self._file.format in ("WAV", "WAVEX") and width and size - header_bytes > MAX_NON_AUDIO_BYTES:
            self._file.close()
            raise invalid_file(
                f"{label}: its header declares less audio than the file contains; repair the file first"
            )

    def frames(self, block: Any) -> int:
        return len(block)

    def power(self, block: Any) -> float:
        return float(block.var())

    def blocks(self, frames: int) -> Iterator[Any]:
        decoded = 0
        while True:
            try:
                # As floating point: integers would not be scaled if the file holds floating point.
                read = self._file.read(frames * 64, dtype="float32", always_2d=True)
            except self._soundfile.SoundFileError:
                raise invalid_file(
                    f"{self._label}: it cannot be decoded after {decoded / self.rate:.0f} s"
                ) from None
            if not len(read):
                break
            if not math.isfinite(float(read.max()) - float(read.min())):
                raise invalid_file(f"{self._label}: it contains NaN or infinite samples")
            decoded += len(read)
            for at in range(0, len(read), frames):
                yield read[at : at + frames]
        expected = int(self._file.frames)
        # One second of tolerance: some formats only estimate their length. A huge length means "unknown".
        if self.rate < expected - decoded < 2**62:
            raise invalid_file(
                f"{self._label}: truncated, it ends after {decoded / self.rate:.0f} of {expected / self.rate:.0f} s"
            )

    def writer(self) -> _FlacWriter:
        error = invalid_file(
            f"{self._label}: its chunks cannot be written as FLAC ({self._channels} channels, {self.rate} Hz)"
        )
        return _FlacWriter(self._soundfile, self.rate, self._channels, error)

    def close(self) -> None:
        self._file.close()


class _FlacWriter:
    def __init__(self, soundfile: Any, rate: int, channels: int, error: InvalidParameterError) -> None:
        self._file = io.BytesIO()
        self._flac_error = soundfile.SoundFileError
        self._error = error
        try:
            self._flac = soundfile.SoundFile(
                self._file, "w", samplerate=rate, channels=channels, format="FLAC", subtype="PCM_16"
            )
        except self._flac_error:
            raise error from None

    def write(self, block: Any) -> None:
        try:
            self._flac.write(block)
        except self._flac_error:  # FLAC reports some unsupported forms only at the first write
            raise self._error from None

    def size(self) -> int:
        return self._file.getbuffer().nbytes

    def finish(self) -> bytes:
        self._flac.close()
        return self._file.getvalue()
