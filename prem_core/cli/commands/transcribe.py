"""``prem transcribe``: what recordings say, as text, JSON or subtitles.

The rule of this file: no recording is lost to another one's error, and none is left out without a line that says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Final

import typer

from prem_core._audio.upload import DEFAULT_MODEL
from prem_core._errors import (
    AuthenticationError,
    ConfigurationError,
    InvalidParameterError,
    PermissionDeniedError,
    PremError,
)
from prem_core.cli import EXIT_FAILURE, EXIT_USAGE
from prem_core.cli.connection import Connection, with_connection_options
from prem_core.cli.errors import CliError
from prem_core.cli.output import as_json, write, write_stderr

if TYPE_CHECKING:
    from prem_core import AsyncPremClient
    from prem_core._audio.sources import Source
    from prem_core._audio.transcripts import Answered, Hearing
    from prem_core.cli.progress import Bar

    #: Takes a recording and what was made of it.
    Take = Callable[[Source, str], None]

#: Seconds; `prem_core._audio.batch.AUDIO_TIMEOUT`, which a test holds this to: importing it takes its time.
TIMEOUT: Final = 300.0

#: A setting, the key or its permission: the error of every recording, said once.
_EVERYBODYS: Final = (ConfigurationError, AuthenticationError, PermissionDeniedError)


class Format(StrEnum):
    """What is written."""

    TEXT = "text"
    JSON = "json"
    SRT = "srt"
    VTT = "vtt"


_SUFFIXES: Final = {Format.TEXT: ".txt", Format.JSON: ".json", Format.SRT: ".srt", Format.VTT: ".vtt"}


@with_connection_options(timeout=TIMEOUT)
def transcribe(
    connection: Connection,
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE",
            help="Recordings, and directories of them, as many as you like. - is standard input.",
        ),
    ],
    format: Annotated[Format, typer.Option(help="What to write.")] = Format.TEXT,  # noqa: A002 - the option's name
    translate: Annotated[
        bool, typer.Option("--translate", help="Write it in English, whatever is spoken.")
    ] = False,
    language: Annotated[
        str | None,
        typer.Option(metavar="CODE", help="What is spoken, such as de. By default the model finds out."),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Names and terms to expect, in the language spoken.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(metavar="NUMBER", help="Sampling temperature, 0 to 1.")
    ] = None,
    model: Annotated[str, typer.Option(metavar="NAME", help="The model that hears.")] = DEFAULT_MODEL,
    output_dir: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Write a file for each recording in here, instead of standard output."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files of --output-dir.")] = False,
    jobs: Annotated[int, typer.Option(min=1, max=64, metavar="N", help="Recordings to hear at once.")] = 5,
) -> None:
    """Write down what recordings say.

    flac, m4a, mp3, mp4, mpeg, mpga, oga, ogg, wav and webm. A recording of more than 25 MB is cut at its pauses, and
    its times go on: wav as it is; flac, ogg and mp3 need the package's extra "audio".

    On standard output, the text of several recordings has a line "==> FILE <==" above each, and JSON is one object
    a line. Subtitles of several go to --output-dir, as FILE.srt or FILE.vtt without its own suffix.

    The other recordings are heard where one cannot be: each such file has a line on standard error, and the exit
    status is 1.

    \b
    Examples:
      prem transcribe meeting.mp3
      prem transcribe --format srt --output-dir subtitles recordings/*.m4a
      prem transcribe --translate interview.wav | prem chat "Summarise this."
    """
    from prem_core._audio.transcripts import Hearing
    from prem_core._protocol.request_schema import audio_plaintext

    if translate and language is not None:
        raise CliError("--translate and --language: a translation finds out by itself", EXIT_USAGE)
    if force and output_dir is None:
        raise CliError("--force is for the files of --output-dir", EXIT_USAGE)
    hearing = Hearing(
        model=model,
        task="translate" if translate else "transcribe",
        language=language,
        prompt=prompt,
        temperature=temperature,
    )
    audio_plaintext(hearing.task, hearing.params())  # what is wrong with these is every recording's error
    sources = _sources(files)
    if output_dir is None and len(sources) > 1 and format in (Format.SRT, Format.VTT):
        raise CliError(f"{format} files of several recordings need --output-dir", EXIT_USAGE)
    if output_dir is None:
        take = _printer(heads=format is Format.TEXT and len(sources) > 1)
    else:
        take = _writer(format, Path(output_dir), sources, overwrite=force)

    def form(source: Source, answers: Sequence[Answered]) -> str:
        return _form(format, source, hearing, answers)

    missed = asyncio.run(_hear_all(connection, sources, hearing, form, take, jobs))
    if missed:
        raise CliError(f"{missed} of {len(sources)} recordings could not be heard", EXIT_FAILURE)


def _sources(files: Sequence[str]) -> list[Source]:
    from prem_core._audio.sources import source_of, sources_at

    if files.count("-") > 1:
        raise CliError("- can be given once: standard input is one recording", EXIT_USAGE)
    found: list[Source] = []
    for name in files:
        if name == "-":
            found.append(source_of(sys.stdin.buffer.read(), source="stdin"))
        else:
            found += sources_at([name])
    return found


# --- hearing ----------------------------------------------------------------------------------------------


async def _hear_all(
    connection: Connection,
    sources: Sequence[Source],
    hearing: Hearing,
    form: Callable[[Source, Sequence[Answered]], str],
    take: Take,
    jobs: int,
) -> int:
    """Hear all, `jobs` at once, and have them taken in their order. Gives how many could not be heard."""
    from prem_core.cli.progress import Bars

    missed = 0
    # The client lets no more of them out at once; this lets no more of them into memory.
    places = asyncio.Semaphore(jobs)
    async with connection.async_client(max_concurrency=jobs) as client:
        with Bars(len(sources)) as bars:

            async def hear(source: Source) -> str:
                async with places:
                    with bars.hearing(source.source) as bar:
                        return form(source, await _answers(client, source, hearing, bar))

            tasks = [asyncio.create_task(hear(source)) for source in sources]
            try:
                for source, task in zip(sources, tasks, strict=True):
                    try:
                        text = await task
                        with bars.aside():
                            take(source, text)
                    except _EVERYBODYS:
                        raise
                    except (PremError, CliError) as error:
                        missed += 1
                        with bars.aside():
                            write_stderr(f"prem transcribe: {_about(source, error)}")
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
    return missed


async def _answers(client: AsyncPremClient, source: Source, hearing: Hearing, bar: Bar) -> list[Answered]:
    """The answers to a recording's parts. Files are read and cut in a thread."""
    from prem_core._audio.batch import pieces
    from prem_core._audio.transcripts import Answered

    create: Any = (
        client.audio.translations if hearing.task == "translate" else client.audio.transcriptions
    ).create
    read = _Read(source)
    parts = pieces(read.source, hearing.max_part_bytes)
    answers: list[Answered] = []
    try:
        while (part := await asyncio.to_thread(next, parts, None)) is not None:
            said = await create(file=(part.name, part.data), **hearing.params())
            answers.append(Answered(said, part.offset, part.seconds))
            del part  # before the next one is made
            bar.reached(*read.position())
    finally:
        with contextlib.suppress(ValueError):  # a thread is at work on it, and closes the file after that
            parts.close()
    return answers


class _Read:
    """How far a recording has been read: what has been read of it when a part was heard, has been heard."""

    def __init__(self, source: Source) -> None:
        self.source = dataclasses.replace(source, opened=self._opened)
        self._source = source
        self._file: IO[bytes] | None = None
        self._size = 0

    @contextlib.contextmanager
    def _opened(self) -> Iterator[IO[bytes]]:
        with self._source.opened() as file:
            self._size = file.seek(0, io.SEEK_END)
            file.seek(0)
            self._file = file
            yield file

    def position(self) -> tuple[int, int]:
        """Bytes read, and bytes in all."""
        if self._file is None or self._file.closed:
            return self._size, self._size
        return self._file.tell(), self._size


def _about(source: Source, error: PremError | CliError) -> str:
    text = str(error)
    if isinstance(error, InvalidParameterError):
        # Where a file is at fault, the text names it, and the parameter, which is none here.
        text = text.removeprefix("file: ")
    return text if source.source in text else f"{source.source}: {text}"


# --- what becomes of it -----------------------------------------------------------------------------------


def _form(form: Format, source: Source, hearing: Hearing, answers: Sequence[Answered]) -> str:
    """What is written for a recording.

    Raises:
        PremError: The answers do not have what the format needs.
    """
    from prem_core._audio.subtitles import srt, vtt
    from prem_core._audio.transcripts import passages

    (whole,) = passages(source.source, answers, hearing)
    if form is Format.TEXT:
        return whole.text + "\n"
    segments = passages(source.source, answers, dataclasses.replace(hearing, mode="segments"))
    if form is not Format.JSON:
        return (srt if form is Format.SRT else vtt)(segments)
    value = {
        "file": source.source,
        **{name: whole.metadata.get(name) for name in ("task", "model", "language", "duration")},
        "text": whole.text,
        "segments": [
            {"start": each.metadata.get("start"), "end": each.metadata.get("end"), "text": each.text}
            for each in segments
            if each.text
        ],
    }
    return as_json(value) + "\n"


def _printer(*, heads: bool) -> Take:
    """Writes one after the other to standard output, with the file's name above each where `heads`."""
    before = ""

    def take(source: Source, text: str) -> None:
        nonlocal before
        write(f"{before}==> {source.source} <==\n{text}" if heads else text)
        before = "\n"

    return take


def _writer(form: Format, folder: Path, sources: Sequence[Source], *, overwrite: bool) -> Take:
    """Writes each to a file of its own.

    Raises:
        CliError: Two of them would have one name, or one is there already; nothing was sent yet.
    """
    from prem_core._crypto.files import write_atomically

    def exists(path: Path) -> str:
        return f"{path} already exists; --force replaces it"

    paths: dict[str, Path] = {}
    for source in sources:
        path = folder / Path(source.name).with_suffix(_SUFFIXES[form]).name
        if other := next((name for name, each in paths.items() if each == path), None):
            raise CliError(f"{other} and {source.source} would both be written to {path}", EXIT_USAGE)
        if not overwrite and path.exists():
            raise CliError(exists(path), EXIT_USAGE)
        paths[source.source] = path
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CliError(f"--output-dir: {folder} cannot be made ({error.strerror})", EXIT_USAGE) from None

    def take(source: Source, text: str) -> None:
        path = paths[source.source]
        try:
            write_atomically(path, text.encode("utf-8", "surrogateescape"), overwrite=overwrite)
        except FileExistsError:
            raise CliError(exists(path), EXIT_FAILURE) from None
        except OSError as error:
            raise CliError(f"{path} cannot be written ({error.strerror})", EXIT_FAILURE) from None

    return take
