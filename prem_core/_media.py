"""Recognises audio and image files by their first bytes, because a file name proves nothing. Estimates lengths, too."""

from __future__ import annotations

from typing import Final, NamedTuple

#: Bytes from the start of a file that are enough to recognise its format.
HEAD_BYTES: Final = 64

#: Bytes of each second of speech in compressed formats: 64 kbit/s.
COMPRESSED_BYTES_PER_SECOND: Final = 8000


class FileFormat(NamedTuple):
    """A file format and the bytes that mark it."""

    offset: int
    magic: bytes
    suffix: str
    media_type: str


AUDIO_FORMATS: Final = (
    FileFormat(0, b"RIFF", ".wav", "audio/wav"),
    FileFormat(0, b"fLaC", ".flac", "audio/flac"),
    FileFormat(0, b"OggS", ".ogg", "audio/ogg"),
    FileFormat(0, b"ID3", ".mp3", "audio/mpeg"),
    FileFormat(0, b"\xff\xfb", ".mp3", "audio/mpeg"),
    FileFormat(0, b"\xff\xf3", ".mp3", "audio/mpeg"),
    FileFormat(0, b"\xff\xf2", ".mp3", "audio/mpeg"),
    FileFormat(4, b"ftyp", ".m4a", "audio/mp4"),
    FileFormat(0, b"\x1a\x45\xdf\xa3", ".webm", "audio/webm"),
)

IMAGE_FORMATS: Final = (
    FileFormat(0, b"\x89PNG\r\n\x1a\n", ".png", "image/png"),
    FileFormat(0, b"\xff\xd8\xff", ".jpg", "image/jpeg"),
    FileFormat(0, b"GIF8", ".gif", "image/gif"),
    FileFormat(8, b"WEBP", ".webp", "image/webp"),
)


def audio_format(data: bytes) -> FileFormat | None:
    """The audio format that `data` starts like, or None."""
    return _recognise(data, AUDIO_FORMATS)


def image_format(data: bytes) -> FileFormat | None:
    """The image format that `data` starts like, or None."""
    return _recognise(data, IMAGE_FORMATS)


def audio_seconds(data: bytes) -> float:
    """The length of a recording by its header; where the header has none, an estimate by its size."""
    if (
        data.startswith(b"RIFF")
        and data[12:16] == b"fmt "
        and (rate := int.from_bytes(data[28:32], "little"))
    ):
        return max(0, len(data) - 44) / rate
    if data.startswith(b"fLaC"):
        fields = int.from_bytes(data[18:26])  # rate 20 bits, channels 3, bits per sample 5, samples 36
        if (rate := fields >> 44) and (samples := fields & (1 << 36) - 1):
            return samples / rate
    return len(data) / COMPRESSED_BYTES_PER_SECOND


def _recognise(data: bytes, formats: tuple[FileFormat, ...]) -> FileFormat | None:
    return next((each for each in formats if data.startswith(each.magic, each.offset)), None)
