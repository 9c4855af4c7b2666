"""Where recordings come from: paths, directories, bytes, open files."""

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

from prem_core._audio.upload import AudioFile, read_recording
from prem_core._errors import InvalidParameterError, PremError

#: How the names of files end that the service takes, as OpenAI documents it for Whisper.
WHISPER_SUFFIXES: Final = (
    ".flac", ".m4a", ".mp3", ".mp4", ".mpeg", ".mpga", ".oga", ".ogg", ".wav", ".webm",
)  # fmt: skip


# --- where recordings come from ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Source:
    """A recording that can be opened, as often as is needed.

    Attributes:
        source: What names it in metadata, ids and errors.
        name: The file's name, which is sent (sealed); its suffix is added where it has none that is known.
        opened: Opens it, in binary mode and seekable.
        about: What is known of it otherwise, for the metadata of its documents.
    """

    source: str
    name: str = field(repr=False)
    opened: Callable[[], AbstractContextManager[IO[bytes]]] = field(repr=False)
    about: Mapping[str, Any] = field(default_factory=dict, repr=False)


def source_of(
    file: AudioFile,
    *,
    fs: Any = None,
    source: str | None = None,
    name: str | None = None,
    about: Mapping[str, Any] | None = None,
) -> Source:
    """The recording that `file` stands for. A path is not looked at yet.

    Args:
        file: A path, bytes, a file open in binary mode (heard from where it stands now, every time), or a tuple of a
            name and one of these.
        fs: The fsspec file system that a path belongs to; this machine's where None.
        source: What names it; else its path or name, else ``audio-`` and the beginning of its SHA-256.
        name: Its file name; else from `source`.
        about: See `Source`.

    Raises:
        InvalidParameterError: `file` is none of these.
    """
    if isinstance(file, tuple):
        if len(file) != 2 or not isinstance(file[0], str) or not file[0]:
            raise _refused("a tuple must be a name and the recording: ('call.wav', data)")
        source, file = source or file[0], file[1]
    about = about or {}
    if isinstance(file, str | PathLike):
        path = fspath(file)
        source = source or path
        return Source(source, name or PurePath(path).name, functools.partial(_opened, path, fs), about)
    if isinstance(file, bytes | bytearray | memoryview):
        content = bytes(file)
    elif hasattr(file, "read"):
        named = getattr(file, "name", None)
        if isinstance(named, str) and named and not named.startswith("<"):
            source = source or named
        with _reading(source or "a file without a name"):
            if source and hasattr(file, "seekable") and file.seekable():
                opened = functools.partial(_rewound, file, file.tell())
                return Source(source, name or PurePath(source).name, opened, about)
            # A stream can be read once, and without a name the content must do for one.
            content = file.read()
        if not isinstance(content, bytes):
            raise _refused(f"{source or 'a file without a name'} must be open in binary mode")
    else:
        raise _refused("must be a path, bytes, a file open in binary mode, or ('name', one of these)")
    if not source:
        digest = hashlib.sha256(content).hexdigest()[:16]
        source = f"audio-{digest}{PurePath(name or '').suffix or PurePath(_by_content(content)).suffix}"
    return Source(source, name or PurePath(source).name, lambda: io.BytesIO(content), about)


def sources_at(
    paths: Iterable[str | PathLike[str]], glob: str | None = None, suffixes: Iterable[str] | None = None
) -> list[Source]:
    """The recordings at some paths; of a directory those in it, sorted.

    Args:
        paths: Files and directories.
        glob: Which files of a directory; ``**/*`` where None.
        suffixes: How their names must end, in any case. Where None, `WHISPER_SUFFIXES` without a `glob`, and any
            with one.

    Raises:
        InvalidParameterError: A directory has no such file: most likely not what was meant.
    """
    if suffixes is None and glob is None:
        suffixes = WHISPER_SUFFIXES
    endings = None if suffixes is None else {each.lower() for each in suffixes}
    found: list[Source] = []
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


def suffix_of_type(mimetype: str | None) -> str:
    """How the name of a file of this type ends; empty where nobody knows."""
    return (mimetypes.guess_extension(mimetype) if mimetype else None) or ""


@contextmanager
def _opened(path: str, fs: Any) -> Iterator[IO[bytes]]:
    with Path(path).open("rb") if fs is None else fs.open(path, "rb") as file:
        yield file


@contextmanager
def _rewound(file: IO[bytes], start: int) -> Iterator[IO[bytes]]:
    file.seek(start)
    # What decodes a recording counts from a file's beginning.
    yield file if start == 0 else io.BytesIO(file.read())
    file.seek(start)


def _by_content(content: bytes) -> str:
    """A name with the suffix that `content` begins like."""
    return read_recording(content[:64] or b"-").name


def _refused(why: str) -> InvalidParameterError:
    return InvalidParameterError(f"file: {why}", param="file")


@contextmanager
def _reading(called: str) -> Iterator[None]:
    """Say of every error of a file system which file it is about."""
    try:
        yield
    except PremError:
        raise
    except FileNotFoundError:
        why = "there is no such file"
    except IsADirectoryError:
        why = "that is a directory"
    except Exception as error:
        # Other machines' file systems raise errors of their own kinds.
        why = f"it cannot be read ({getattr(error, 'strerror', None) or type(error).__name__})"
    else:
        return
    raise _refused(f"{why}: {called}")
