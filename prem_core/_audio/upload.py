"""Recordings: what may be sent, and what comes back.

The rule of this file: everything that can be known to fail is refused here, before anything is sealed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from prem_core._errors import InvalidParameterError

#: The one model the service offers for recordings at present.
DEFAULT_MODEL: Final = "openai/whisper-large-v3"

#: Bytes of a recording, before it is sealed: the service's 25 MB.
MAX_FILE_BYTES: Final = 25 * 1024 * 1024

Path_ = str | os.PathLike[str]

#: A recording: a path, its bytes, a file open in binary mode, or any of these with a name.
AudioFile = (
    Path_ | bytes | bytearray | memoryview | IO[bytes] | tuple[str, Path_ | bytes | bytearray | IO[bytes]]
)

#: How recordings begin, for naming those that come without a name: the service goes by the suffix.
_BEGINNINGS: Final = (
    (0, b"RIFF", ".wav"),
    (0, b"fLaC", ".flac"),
    (0, b"OggS", ".ogg"),
    (0, b"ID3", ".mp3"),
    (0, b"\xff\xfb", ".mp3"),
    (0, b"\xff\xf3", ".mp3"),
    (0, b"\xff\xf2", ".mp3"),
    (4, b"ftyp", ".m4a"),
    (0, b"\x1a\x45\xdf\xa3", ".webm"),
)


@dataclass(frozen=True, slots=True)
class Recording:
    """One recording, read and within the limit. Its repr shows neither name nor content."""

    name: str = field(repr=False)
    data: bytes = field(repr=False)


def read_recording(file: AudioFile) -> Recording:
    """`file` as bytes with a name.

    Args:
        file: A path (its name is sent, sealed), bytes, a file open in binary mode (read from where it stands),
            or a tuple of a name and one of these.

    Raises:
        InvalidParameterError: There is no such file, it is empty, or it is larger than `MAX_FILE_BYTES`.
    """
    name = None
    if isinstance(file, tuple):
        if len(file) != 2 or not isinstance(file[0], str) or not file[0]:
            raise _refused("a tuple must be a name and the recording: ('call.wav', data)")
        name, file = file
    data: Any
    if isinstance(file, str | os.PathLike):
        data = _read_path(Path(file))
        name = name or Path(file).name
    elif isinstance(file, bytes | bytearray | memoryview):
        data = file if isinstance(file, bytes) else bytes(file)
    elif hasattr(file, "read"):
        name = name or _name_of(file)
        # One byte more than is allowed tells a file that is too large from one that just fits.
        data = file.read(MAX_FILE_BYTES + 1)
        if not isinstance(data, bytes):
            raise _refused("the file must be open in binary mode")
    else:
        raise _refused("must be a path, bytes, a file open in binary mode, or ('name', one of these)")
    if not data:
        raise _refused("the recording is empty" + (f" ({name})" if name else ""))
    _check_size(len(data), name)
    return Recording(name or "audio" + _suffix(data), data)


def _read_path(path: Path) -> bytes:
    try:
        _check_size(path.stat().st_size, path.name)
        return path.read_bytes()
    except FileNotFoundError:
        why = "there is no such file"
    except IsADirectoryError:
        why = "that is a directory"
    except OSError as error:
        why = f"it cannot be read ({error.strerror})"
    raise _refused(f"{why}: {path}")


def _check_size(size: int, name: str | None) -> None:
    if size > MAX_FILE_BYTES:
        named = f" ({name})" if name else ""
        raise _refused(f"a recording may be 25 MB ({MAX_FILE_BYTES:,} bytes) at most{named}; split it")


def _name_of(file: Any) -> str | None:
    name = getattr(file, "name", None)
    return Path(name).name if isinstance(name, str) and name and not name.startswith("<") else None


def _suffix(data: bytes) -> str:
    return next((suffix for at, mark, suffix in _BEGINNINGS if data[at : at + len(mark)] == mark), "")


def _refused(why: str) -> InvalidParameterError:
    return InvalidParameterError(f"file: {why}", param="file")
