"""Transcribes one recording or many. Every error names its recording, and no recording is skipped without an error."""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from typing import Any, Final, Literal, Self

from prem_core._audio.chunking import AudioChunk, chunks_of
from prem_core._audio.sources import AudioSource
from prem_core._audio.transcripts import ChunkTranscript, TranscriptionRequest
from prem_core._client.client import AsyncPremClient, PremClient
from prem_core._config import DEFAULT_MAX_CONCURRENCY
from prem_core._errors import AuthenticationError, ConfigurationError, PermissionDeniedError, PremError

#: Called with a recording and how much of it is done: 0 when it starts, and 1 once when it ends, even with an error.
OnProgress = Callable[[AudioSource, float], None]

#: Called with a recording that could not be transcribed, and its error. It may raise the error to end the batch.
OnFailure = Callable[[AudioSource, PremError], None]

OnError = Literal["raise", "collect"]

#: Errors that every recording of a batch would have: a wrong setting, key or permission. They always end the batch.
FATAL_ERRORS: Final = (ConfigurationError, AuthenticationError, PermissionDeniedError)


class TranscriptionFailedWarning(UserWarning):
    """Some recordings could not be transcribed; `errors` of the loader or reader lists each with its error."""


def _ignore_progress(source: AudioSource, done: float) -> None:
    pass


# --- one recording ----------------------------------------------------------------------------------------


def transcribe(
    client: PremClient,
    source: AudioSource,
    request: TranscriptionRequest,
    on_progress: OnProgress = _ignore_progress,
) -> list[ChunkTranscript]:
    """Transcribe a recording; if it is too long for one request, in chunks, one after the other.

    Raises:
        PremError: What `client.audio` raises, or the file cannot be read or split. The message names the source.
    """
    transcripts: list[ChunkTranscript] = []
    create = _resource(client, request).create
    on_progress(source, 0.0)
    try:
        with contextlib.closing(chunks_of(source, request.max_chunk_bytes)) as chunks:
            for chunk in chunks:
                with _source_in_errors(source):
                    transcription = create(file=(chunk.name, chunk.data), **request.params())
                transcripts.append(ChunkTranscript(transcription, chunk.offset, chunk.seconds))
                _report(chunk, source, on_progress)
                del chunk  # frees its memory before the next one is made
    finally:
        on_progress(source, 1.0)
    return transcripts


async def atranscribe(
    client: AsyncPremClient,
    source: AudioSource,
    request: TranscriptionRequest,
    on_progress: OnProgress = _ignore_progress,
) -> list[ChunkTranscript]:
    """`transcribe`, awaited. Files are read and split in a thread."""
    transcripts: list[ChunkTranscript] = []
    create = _resource(client, request).create
    on_progress(source, 0.0)
    chunks = chunks_of(source, request.max_chunk_bytes)
    try:
        while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
            with _source_in_errors(source):
                transcription = await create(file=(chunk.name, chunk.data), **request.params())
            transcripts.append(ChunkTranscript(transcription, chunk.offset, chunk.seconds))
            _report(chunk, source, on_progress)
            del chunk  # frees its memory before the next one is made
    finally:
        # If the task is cancelled while a thread runs the generator, the thread closes the file when it ends.
        with contextlib.suppress(ValueError):
            chunks.close()
        on_progress(source, 1.0)
    return transcripts


def _resource(client: PremClient | AsyncPremClient, request: TranscriptionRequest) -> Any:
    return client.audio.translations if request.task == "translate" else client.audio.transcriptions


def _report(chunk: AudioChunk, source: AudioSource, on_progress: OnProgress) -> None:
    if chunk.progress < 1:
        on_progress(source, chunk.progress)


@contextlib.contextmanager
def _source_in_errors(source: AudioSource) -> Iterator[None]:
    """Put the source's name before the message of the service's errors."""
    try:
        yield
    except PremError as error:
        # In place, so that its class, values and traceback stay.
        error.args = (f"{source.source}: {error.args[0] if error.args else ''}", *error.args[1:])
        raise


# --- many recordings --------------------------------------------------------------------------------------


def transcribe_many(
    client: PremClient,
    sources: Iterable[AudioSource],
    request: TranscriptionRequest,
    on_failure: OnFailure,
    on_progress: OnProgress = _ignore_progress,
) -> Iterator[tuple[AudioSource, list[ChunkTranscript]]]:
    """Each recording with its transcripts, in order. A recording is transcribed only when the iterator reaches it."""
    for source in sources:
        try:
            transcripts = transcribe(client, source, request, on_progress)
        except FATAL_ERRORS:
            raise
        except PremError as error:
            on_failure(source, error)
        else:
            yield source, transcripts


async def atranscribe_many(
    client: AsyncPremClient,
    sources: Iterable[AudioSource],
    request: TranscriptionRequest,
    on_failure: OnFailure,
    on_progress: OnProgress = _ignore_progress,
    *,
    max_recordings: int = DEFAULT_MAX_CONCURRENCY,
    max_ahead: int | None = None,
) -> AsyncGenerator[tuple[AudioSource, list[ChunkTranscript]], None]:
    """`transcribe_many`, with several recordings at once. Results still come in the order of `sources`.

    When the generator is closed, or an error is raised, transcriptions in progress are cancelled.

    Args:
        client: The client.
        sources: The recordings. They are taken in a thread, because a blob loader may read from a disk.
        request: How they are transcribed.
        on_failure: Called in the order of `sources`.
        on_progress: Called in the order of events.
        max_recordings: Most recordings in progress at once, each of them in memory.
        max_ahead: Most recordings that are started before the first of them has been yielded; `max_recordings` if
            None. With more, a long recording does not hold up those that follow.
    """
    running = asyncio.Semaphore(max_recordings)

    async def run(source: AudioSource) -> list[ChunkTranscript]:
        async with running:
            return await atranscribe(client, source, request, on_progress)

    remaining = iter(sources)
    started: deque[tuple[AudioSource, asyncio.Task[list[ChunkTranscript]]]] = deque()
    try:
        while True:
            while len(started) < (max_ahead or max_recordings):
                source = await asyncio.to_thread(next, remaining, None)
                if source is None:
                    break
                started.append((source, asyncio.create_task(run(source))))
            if not started:
                break
            source, task = started.popleft()
            try:
                transcripts = await task
            except FATAL_ERRORS:
                raise
            except PremError as error:
                on_failure(source, error)
            else:
                yield source, transcripts
    finally:
        for _, task in started:
            task.cancel()
        await asyncio.gather(*(task for _, task in started), return_exceptions=True)


class ErrorCollector:
    """Raises or collects the errors of a batch, and shows a progress bar. Use it as a context manager.

    At the end it warns how many recordings failed.

    Args:
        on_error: "raise" the first error, or "collect" all and transcribe the other recordings.
        errors: The list for collected errors, each with its source.
        show_progress: Whether to show a progress bar.
        total: The number of recordings, if it is known.

    Raises:
        ImportError: A progress bar needs tqdm.
    """

    def __init__(
        self,
        on_error: OnError,
        errors: list[tuple[str, PremError]],
        *,
        show_progress: bool = False,
        total: int | None = None,
    ) -> None:
        self._on_error = on_error
        self._errors = errors
        self._failed = 0
        self._ended = 0
        self._bar = _progress_bar(total) if show_progress else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        if kind is None and self._failed:
            warnings.warn(
                f"{self._failed} of {self._ended} recordings could not be transcribed: see errors",
                TranscriptionFailedWarning,
                stacklevel=4,
            )

    def on_failure(self, source: AudioSource, error: PremError) -> None:
        """Raise `error`, or collect it."""
        if self._on_error == "raise":
            raise error
        self._errors.append((source.source, error))
        self._failed += 1

    def on_progress(self, source: AudioSource, done: float) -> None:
        """Count a recording that has ended."""
        if done == 1:
            self._ended += 1
            if self._bar is not None:
                self._bar.update()


def _progress_bar(total: int | None) -> Any:
    try:
        from tqdm.auto import tqdm  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise ImportError("show_progress needs tqdm: pip install tqdm") from error
    return tqdm(total=total, desc="Transcribing", unit="file")
