"""Recognises audio and image files by their first bytes, because a file name proves nothing."""

from __future__ import annotations

from typing import Final, NamedTuple

#: Bytes from the start of a file that are enough to recognise its format.
HEAD_BYTES: Final = 64


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


def _recognise(data: bytes, formats: tuple[FileFormat, ...]) -> FileFormat | None:
    return next((each for each in formats if data.startswith(each.magic, each.offset)), None)
