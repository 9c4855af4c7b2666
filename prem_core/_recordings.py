"""Hearing recordings for the loaders of both frameworks: where they come from, and one or many of them.

The two sides differ in `await` alone. The rule of this file: an error names its recording, and none is skipped
without one.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import io
import mimetypes
import warnings
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from os import PathLike, fspath
from pathlib import Path, PurePath
from typing import IO, Any, Final, Literal, Self

import httpx
from pydantic import Field, ValidationInfo, field_validator
from typing_extensions import override

from prem_core._audio import DEFAULT_MODEL, MAX_FILE_BYTES, AudioFile, read_recording
from prem_core._client import AsyncPremClient, PremClient
from prem_core._config import (
    DEFAULT_MAX_CONCURRENCY,
    DEFAULT_TIMEOUT,
)
from prem_core._errors import AuthenticationError, ConfigurationError, InvalidParameterError, PremError
from prem_core._params import audio_plaintext
from prem_core._settings import ClientSettings
from prem_core._splitting import Piece, split
from prem_core._spoken import Answered, Hearing, Mode, Passage, Task, passages
from prem_core._types import Transcription

OnError = Literal["raise", "collect"]

#: How the names of files end that the service takes, as OpenAI documents it for Whisper.
WHISPER_SUFFIXES: Final = (
    ".flac", ".m4a", ".mp3", ".mp4", ".mpeg", ".mpga", ".oga", ".ogg", ".wav", ".webm",
)  # fmt: skip

#: Seconds. An answer begins only when the whole recording was heard, and 25 MB can be two hours of speech: the 30
#: that do for a chat would cut it off.
RECORDING_TIMEOUT: Final = 300.0

#: Recordings heard at once. Each may take twice its size in memory while it is sent.
MAX_CONCURRENCY: Final = 5

#: Bytes. Below that a part would hold a second or two.
LEAST_PART_BYTES: Final = 256 * 1024


class UnheardRecordingsWarning(UserWarning):
    """Some recordings could not be heard; the loader's `errors` says which, and why."""


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


# --- hearing one ------------------------------------------------------------------------------------------


def hear(client: PremClient, source: Source, hearing: Hearing) -> list[Passage]:
    """What is said in a recording; in parts, one after the other, where it is too long for one request.

    Raises:
        PremError: As `client.audio` raises it, or as the file cannot be read or cut; the message names the source.
    """
    answers: list[Answered] = []
    create: Any = (
        client.audio.translations if hearing.task == "translate" else client.audio.transcriptions
    ).create
    with contextlib.closing(pieces(source, hearing.max_part_bytes)) as parts:
        for part in parts:
            with _named(source):
                said: Transcription = create(file=(part.name, part.data), **hearing.params())
            answers.append(Answered(said, part.offset, part.seconds))
            del part  # before the next one is made
    return passages(source.source, answers, hearing)


async def ahear(client: AsyncPremClient, source: Source, hearing: Hearing) -> list[Passage]:
    """`hear`, awaited. Files are read and cut in a thread."""
    answers: list[Answered] = []
    create: Any = (
        client.audio.translations if hearing.task == "translate" else client.audio.transcriptions
    ).create
    parts = pieces(source, hearing.max_part_bytes)
    try:
        while (part := await asyncio.to_thread(next, parts, None)) is not None:
            with _named(source):
                said: Transcription = await create(file=(part.name, part.data), **hearing.params())
            answers.append(Answered(said, part.offset, part.seconds))
            del part  # before the next one is made
    finally:
        # A thread that is at work on it when the task is cancelled cannot be stopped; the file is closed after it.
        with contextlib.suppress(ValueError):
            parts.close()
    return passages(source.source, answers, hearing)


def pieces(source: Source, limit: int = MAX_FILE_BYTES) -> Generator[Piece, None, None]:
    """A recording as it is sent: whole where it has at most `limit` bytes, else cut at its pauses.

    Raises:
        InvalidParameterError: It cannot be read, it is empty, or it is too long and cannot be cut.
    """
    with contextlib.ExitStack() as stack:
        with _reading(source.source):
            file = stack.enter_context(source.opened())
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            head = file.read(64)
            if not isinstance(head, bytes):
                raise _refused(f"{source.source} must be open in binary mode")
            if not head:
                raise _refused(f"the recording is empty: {source.source}")
        name = source.name
        if PurePath(name).suffix.lower() not in WHISPER_SUFFIXES:
            # The service goes by the suffix.
            name += PurePath(_by_content(head)).suffix
        if size > limit:
            parts = split(name, file, limit, called=source.source)
            while True:
                with _reading(source.source):
                    part = next(parts, None)
                if part is None:
                    return
                yield part
                del part
        with _reading(source.source):
            file.seek(0)
            data = file.read()
        yield Piece(name, data)


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


@contextmanager
def _named(source: Source) -> Iterator[None]:
    """Put the source's name before the message of the service's errors."""
    try:
        yield
    except PremError as error:
        # In place: its class, its values and where it comes from stay.
        error.args = (f"{source.source}: {error.args[0] if error.args else ''}", *error.args[1:])
        raise


def _refused(why: str) -> InvalidParameterError:
    return InvalidParameterError(f"file: {why}", param="file")


# --- hearing many -----------------------------------------------------------------------------------------


class Watch:
    """What happens to errors while many recordings are heard, and the progress bar.

    A wrong setting or key is raised in any case: it would be every recording's error.

    Args:
        on_error: "raise" the first error, or "collect" them: the other recordings are heard, and at the end a
            warning says how many were not.
        errors: Where they are collected, each with its source.
        progress: Whether to show a progress bar.
        total: How many recordings there are, where that is known.
        translate: Makes a framework's error of one of ours.

    Raises:
        ImportError: A progress bar without tqdm.
    """

    def __init__(
        self,
        on_error: OnError,
        errors: list[tuple[str, Exception]],
        *,
        progress: bool = False,
        total: int | None = None,
        translate: Callable[[PremError], PremError] = lambda error: error,
    ) -> None:
        self._on_error = on_error
        self._errors = errors
        self._translate = translate
        self._missed = 0
        self._heard = 0
        self._bar = _progress_bar(total) if progress else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        if kind is None and self._missed:
            warnings.warn(
                f"{self._missed} of {self._missed + self._heard} recordings could not be heard: see errors",
                UnheardRecordingsWarning,
                stacklevel=3,
            )

    @contextmanager
    def one(self, source: Source) -> Iterator[None]:
        """Around the hearing of one recording."""
        try:
            yield
        except PremError as error:
            translated = self._translate(error)
            if self._on_error == "raise" or isinstance(error, ConfigurationError | AuthenticationError):
                if translated is error:
                    raise
                raise translated.with_traceback(error.__traceback__) from error.__cause__
            self._errors.append((source.source, translated))
            self._missed += 1
        else:
            self._heard += 1
        if self._bar is not None:
            self._bar.update()


def _progress_bar(total: int | None) -> Any:
    try:
        from tqdm.auto import tqdm  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise ImportError("show_progress needs tqdm: pip install tqdm") from error
    return tqdm(total=total, desc="Hearing recordings", unit="file")


def hear_all(
    client: PremClient, sources: Iterable[Source], hearing: Hearing, watch: Watch
) -> Iterator[tuple[Source, list[Passage]]]:
    """Each recording and its passages, in order; one is heard when it is asked for."""
    with watch:
        for source in sources:
            found = None
            with watch.one(source):
                found = hear(client, source, hearing)
            if found is not None:
                yield source, found


async def ahear_all(
    client: AsyncPremClient,
    sources: Iterable[Source],
    hearing: Hearing,
    watch: Watch,
    max_concurrency: int | None = MAX_CONCURRENCY,
) -> AsyncGenerator[tuple[Source, list[Passage]], None]:
    """`hear_all`, with up to `max_concurrency` recordings at once, in the order of `sources` all the same.

    No more than that many are ahead of the one that was given last. When the generator is closed, or an error is
    raised, those on their way are cancelled.
    """
    waiting = iter(sources)
    ahead: deque[tuple[Source, asyncio.Task[list[Passage]]]] = deque()
    with watch:
        try:
            while True:
                # Without a limit on requests there is still one on memory.
                while len(ahead) < (max_concurrency or MAX_CONCURRENCY):
                    # In a thread: a blob loader may read from a disk here.
                    source = await asyncio.to_thread(next, waiting, None)
                    if source is None:
                        break
                    ahead.append((source, asyncio.create_task(ahear(client, source, hearing))))
                if not ahead:
                    break
                source, task = ahead[0]
                found = None
                with watch.one(source):
                    found = await task
                ahead.popleft()
                if found is not None:
                    yield source, found
        finally:
            for _, task in ahead:
                task.cancel()
            await asyncio.gather(*(task for _, task in ahead), return_exceptions=True)


# --- settings ---------------------------------------------------------------------------------------------


class HearingSettings(ClientSettings):
    """How recordings are heard, and the settings of the client that hears them."""

    model: str = Field(default=DEFAULT_MODEL, min_length=1)
    """Name of the model."""
    task: Task = "transcribe"
    """"transcribe" what is said, or "translate" it into English."""
    language: str | None = None
    """What is spoken, an ISO-639-1 code. None lets the model find out. Transcriptions only."""
    prompt: str | None = Field(default=None, repr=False)
    """Text that leads the model's style: names and terms to expect."""
    temperature: float | None = None
    """0 to 1."""
    mode: Mode = "full"
    """"full" makes one document of a recording, "segments" one of each segment."""
    group_seconds: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """In mode "segments": join segments up to this length, never splitting one."""
    max_part_bytes: int = Field(default=MAX_FILE_BYTES, ge=LEAST_PART_BYTES, le=MAX_FILE_BYTES)
    """A recording of more bytes is sent in parts, cut at pauses."""

    timeout: float = Field(default=RECORDING_TIMEOUT, gt=0, allow_inf_nan=False)
    """Seconds to wait for an answer, which begins when the whole recording was heard; 30 at most to connect."""

    @field_validator("language", "prompt", "temperature")
    @classmethod
    def _as_published(cls, value: Any, info: ValidationInfo) -> Any:
        audio_plaintext("transcribe", {"model": "m", str(info.field_name): value})
        return value

    @override
    def _check(self) -> None:
        super()._check()
        if self.task == "translate" and self.language is not None:
            raise InvalidParameterError(
                "language: a translation finds out by itself; the schema has it for transcriptions only",
                param="language",
            )
        if self.group_seconds is not None and self.mode != "segments":
            raise InvalidParameterError("group_seconds: needs mode='segments'", param="group_seconds")

    def _hearing(self) -> Hearing:
        return Hearing(
            model=self.model,
            task=self.task,
            language=self.language,
            prompt=self.prompt,
            temperature=self.temperature,
            mode=self.mode,
            group_seconds=self.group_seconds,
            max_part_bytes=self.max_part_bytes,
        )

    @override
    def _client_timeout(self) -> httpx.Timeout:
        # It is the hearing that takes long, not finding the gateway.
        return httpx.Timeout(self.timeout, connect=min(self.timeout, DEFAULT_TIMEOUT))


class LoadingSettings(HearingSettings):
    """... and what is done with many of them."""

    on_error: OnError = "raise"
    """"raise" the first error, or "collect" them in `errors` and go on."""
    show_progress: bool = False
    """Whether to show a progress bar (tqdm's)."""
    max_concurrency: int | None = Field(default=MAX_CONCURRENCY, ge=1, strict=True)
    """Recordings heard at once, in asynchronous calls; and requests on their way, where no `limits` say otherwise. None
    for the default, and any number of requests."""

    @override
    def _limited_to(self) -> int | None:
        return DEFAULT_MAX_CONCURRENCY  # here it says how many recordings are held in memory, too
