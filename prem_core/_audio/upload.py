"""Reads a recording into memory and checks it before anything is sealed."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from prem_core._errors import InvalidParameterError
from prem_core._media import audio_format
from prem_core._protocol.routes import MAX_AUDIO_BYTES

#: The only audio model that the service offers at present.
DEFAULT_MODEL: Final = "openai/whisper-large-v3"

Path_ = str | os.PathLike[str]

#: A recording: a path, its bytes, a file open in binary mode, or any of these with a name.
AudioFile = (
    Path_ | bytes | bytearray | memoryview | IO[bytes] | tuple[str, Path_ | bytes | bytearray | IO[bytes]]
)


@dataclass(frozen=True, slots=True)
class Recording:
    """One recording in memory, within the size limit. Its repr shows neither name nor content."""

    name: str = field(repr=False)
    data: bytes = field(repr=False)


def read_recording(file: AudioFile) -> Recording:
    """Read `file` into memory and give it a name.

    Args:
        file: A path (its name is sent, sealed), bytes, a file open in binary mode (read from its current position),
            or a tuple of a name and one of these.

    Raises:
        InvalidParameterError: The file does not exist, is empty, or is larger than `MAX_AUDIO_BYTES`.
    """
    name, content = split_name(file)
    data: Any
    if isinstance(content, str | os.PathLike):
        data = _read_path(Path(content))
        name = name or Path(content).name
    elif isinstance(content, bytes | bytearray | memoryview):
        data = content if isinstance(content, bytes) else bytes(content)
    elif hasattr(content, "read"):
        path = name_of(content)
        name = name or (None if path is None else Path(path).name)
        # One byte more than allowed distinguishes a file that is too large from one that just fits.
        data = content.read(MAX_AUDIO_BYTES + 1)
        if not isinstance(data, bytes):
            raise invalid_file("must be open in binary mode")
    else:
        raise invalid_file_type(content)
    if not data:
        raise invalid_file("the recording is empty" + (f" ({name})" if name else ""))
    _check_size(len(data), name)
    return Recording(name or "audio" + suffix_of_content(data), data)


def split_name(file: AudioFile) -> tuple[str | None, Any]:
    """The name and the rest of a ``(name, file)`` tuple; None and `file` for anything else.

    Raises:
        InvalidParameterError: It is a tuple of another form.
    """
    if not isinstance(file, tuple):
        return None, file
    if len(file) != 2 or not isinstance(file[0], str) or not file[0]:
        raise invalid_file("a tuple must be a name and a recording, as in ('call.wav', data)")
    return file


def name_of(file: Any) -> str | None:
    """The name or path that an open file has; None for a stream without one."""
    name = getattr(file, "name", None)
    return name if isinstance(name, str) and name and not name.startswith("<") else None


def suffix_of_content(data: bytes) -> str:
    """The file name suffix for a recording that starts with `data`; empty if its format is not recognised."""
    found = audio_format(data)
    return "" if found is None else found.suffix


def invalid_file(problem: str) -> InvalidParameterError:
    """The error for a recording that cannot be sent."""
    return InvalidParameterError(f"file: {problem}", param="file")


def invalid_file_type(file: object) -> InvalidParameterError:
    """The error for an object that is not a recording at all."""
    return invalid_file(
        "must be a path, bytes, a file open in binary mode, or a tuple of a name and one of these, "
        f"not {type(file).__name__}"
    )


def _read_path(path: Path) -> bytes:
    try:
        _check_size(path.stat().st_size, path.name)
        return path.read_bytes()
    except FileNotFoundError:
        problem = "there is no such file"
    except IsADirectoryError:
        problem = "that is a directory"
    except OSError as error:
        problem = f"it cannot be read ({error.strerror})"
    raise invalid_file(f"{problem}: {path}")


def _check_size(size: int, name: str | None) -> None:
    if size > MAX_AUDIO_BYTES:
        named = f" ({name})" if name else ""
        raise invalid_file(f"the recording is larger than 25 MB ({MAX_AUDIO_BYTES:,} bytes){named}; split it")
