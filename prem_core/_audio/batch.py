"""Hearing recordings for the loaders of both frameworks: where they come from, and one or many of them.

The two sides differ in `await` alone. The rule of this file: an error names its recording, and none is skipped
without one.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import warnings
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any, Final, Literal, Self

from prem_core._audio.chunking import Piece, split
from prem_core._audio.sources import WHISPER_SUFFIXES, Source, _by_content, _reading, _refused
from prem_core._audio.transcripts import Answered, Hearing, Passage, passages
from prem_core._audio.upload import MAX_FILE_BYTES
from prem_core._client.client import AsyncPremClient, PremClient
from prem_core._errors import AuthenticationError, ConfigurationError, PremError
from prem_core._protocol.response_types import Transcription

OnError = Literal["raise", "collect"]

#: Seconds. An answer begins only when the whole recording was heard, and 25 MB can be two hours of speech: the 30
#: that do for a chat would cut it off.
AUDIO_TIMEOUT: Final = 300.0

#: Recordings heard at once. Each may take twice its size in memory while it is sent.
MAX_CONCURRENCY: Final = 5

#: Bytes. Below that a part would hold a second or two.
LEAST_PART_BYTES: Final = 256 * 1024


class TranscriptionFailedWarning(UserWarning):
    """Some recordings could not be heard; the loader's `errors` says which, and why."""


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
def _named(source: Source) -> Iterator[None]:
    """Put the source's name before the message of the service's errors."""
    try:
        yield
    except PremError as error:
        # In place: its class, its values and where it comes from stay.
        error.args = (f"{source.source}: {error.args[0] if error.args else ''}", *error.args[1:])
        raise


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
                TranscriptionFailedWarning,
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
