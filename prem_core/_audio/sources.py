"""Finds recordings: paths, directories, bytes and open files, each as an `AudioSource`."""

from __future__ import annotations

import functools
import hashlib
import io
import mimetypes
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from os import PathLike, fspath
from pathlib import Path, PurePath
from typing import IO, Any, Final

from prem_core._audio.upload import (
    AudioFile,
    invalid_file,
    invalid_file_type,
    name_of,
    split_name,
    suffix_of_content,
)
from prem_core._errors import InvalidParameterError, PremError

#: File name suffixes that the service accepts, as OpenAI documents them for Whisper.
WHISPER_SUFFIXES: Final = (
    ".flac", ".m4a", ".mp3", ".mp4", ".mpeg", ".mpga", ".oga", ".ogg", ".wav", ".webm",
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class AudioSource:
    """A recording that can be opened any number of times.

    Attributes:
        source: What identifies it in metadata, ids and errors.
        name: The file name that is sent (sealed). `chunking.chunks_of` adds a suffix if it has no known one.
        open_file: Opens it in binary mode, seekable.
        metadata: The caller's own metadata for the recording's documents.
    """

    source: str
    name: str = field(repr=False)
    open_file: Callable[[], AbstractContextManager[IO[bytes]]] = field(repr=False)
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)


def source_of(
    file: AudioFile,
    *,
    fs: Any = None,
    source: str | None = None,
    name: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> AudioSource:
    """The `AudioSource` for `file`. A path is not opened yet.

    Args:
        file: A path, bytes, a file open in binary mode (read from its current position, every time), or a tuple of
            a name and one of these.
        fs: The fsspec file system of a path; None for the local one.
        source: What identifies it. By default its path or name, or ``audio-`` and the start of its SHA-256.
        name: Its file name. By default taken from `source`.
        metadata: See `AudioSource`.

    Raises:
        InvalidParameterError: `file` has another type, or cannot be read.
    """
    given, recording = split_name(file)
    source = source or given
    metadata = metadata or {}
    if isinstance(recording, str | PathLike):
        path = fspath(recording)
        source = source or path
        return AudioSource(
            source, name or PurePath(path).name, functools.partial(_open_path, path, fs), metadata
        )
    if isinstance(recording, bytes | bytearray | memoryview):
        content = bytes(recording)
    elif hasattr(recording, "read"):
        source = source or name_of(recording)
        label = source or "a file without a name"
        with file_errors(label):
            if source and hasattr(recording, "seekable") and recording.seekable():
                reopen = functools.partial(_rewind, recording, recording.tell())
                return AudioSource(source, name or PurePath(source).name, reopen, metadata)
            # A stream can be read only once, and a file without a name is identified by its content.
            content = recording.read()
        if not isinstance(content, bytes):
            raise invalid_file(f"{label} must be open in binary mode")
    else:
        raise invalid_file_type(recording)
    if not source:
        digest = hashlib.sha256(content).hexdigest()[:16]
        source = f"audio-{digest}{PurePath(name or '').suffix or suffix_of_content(content)}"
    return AudioSource(source, name or PurePath(source).name, lambda: io.BytesIO(content), metadata)


def sources_at(
    paths: Iterable[str | PathLike[str]], glob: str | None = None, suffixes: Iterable[str] | None = None
) -> list[AudioSource]:
    """The recordings at `paths`; for a directory the recordings in it, sorted.

    Args:
        paths: Files and directories.
        glob: Selects the files of a directory; ``**/*`` if None.
        suffixes: Selects files by the end of their names, in any case. If None: `WHISPER_SUFFIXES` without a `glob`,
            and any suffix with one.

    Raises:
        InvalidParameterError: A directory has no such file, which is most likely a mistake.
    """
    if suffixes is None and glob is None:
        suffixes = WHISPER_SUFFIXES
    endings = None if suffixes is None else {each.lower() for each in suffixes}
    found: list[AudioSource] = []
    for path in map(Path, paths):
        if not path.is_dir():
            found.append(source_of(path))
            continue
        files = sorted(
            each
            for each in path.glob(glob or "**/*")
            if (endings is None or each.suffix.lower() in endings) and each.is_file()
        )
        if not files:
            raise InvalidParameterError(
                f"path: no recording in {path} (glob {glob or '**/*'!r}, suffixes {sorted(endings or ['any'])})",
                param="path",
            )
        found += map(source_of, files)
    return found


def suffix_of_type(media_type: str | None) -> str:
    """The file name suffix for a media type; empty if it is not known."""
    return (mimetypes.guess_extension(media_type) if media_type else None) or ""


@contextmanager
def file_errors(label: str) -> Iterator[None]:
    """Turn errors of reading a file into `InvalidParameterError`, with `label` in the message."""
    try:
        yield
    except PremError:
        raise
    except FileNotFoundError:
        problem = "there is no such file"
    except IsADirectoryError:
        problem = "that is a directory"
    except Exception as error:
        # File systems of other machines raise errors of their own classes.
        problem = f"it cannot be read ({getattr(error, 'strerror', None) or type(error).__name__})"
    else:
        return
    raise invalid_file(f"{problem}: {label}")


@contextmanager
def _open_path(path: str, fs: Any) -> Iterator[IO[bytes]]:
    with Path(path).open("rb") if fs is None else fs.open(path, "rb") as file:
        yield file


@contextmanager
def _rewind(file: IO[bytes], start: int) -> Iterator[IO[bytes]]:
    file.seek(start)
    # Decoders count positions from the start of a file.
    yield file if start == 0 else io.BytesIO(file.read())
    file.seek(start)
