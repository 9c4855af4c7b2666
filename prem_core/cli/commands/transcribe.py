"""``prem transcribe``: recordings as text, JSON or subtitles.

One failing recording does not stop the others, and every failure is reported.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from prem_core._audio.upload import DEFAULT_MODEL
from prem_core._config import AUDIO_TIMEOUT, DEFAULT_MAX_CONCURRENCY
from prem_core._errors import InvalidParameterError, PremError
from prem_core.cli import EXIT_FAILURE, EXIT_USAGE
from prem_core.cli.connection import Connection, with_connection_options
from prem_core.cli.errors import CliError, error_text
from prem_core.cli.output import as_json, write, write_stderr

if TYPE_CHECKING:
    from prem_core._audio.sources import AudioSource
    from prem_core._audio.transcripts import ChunkTranscript, TranscriptionRequest

    #: Makes the output for a recording from its transcripts.
    Formatter = Callable[[AudioSource, Sequence[ChunkTranscript]], str]

    #: Writes the output of a recording.
    Writer = Callable[[AudioSource, str], None]


class Format(StrEnum):
    """What is written."""

    TEXT = "text"
    JSON = "json"
    SRT = "srt"
    VTT = "vtt"


_SUFFIXES: Final = {Format.TEXT: ".txt", Format.JSON: ".json", Format.SRT: ".srt", Format.VTT: ".vtt"}


@with_connection_options(timeout=AUDIO_TIMEOUT)
def transcribe(
    connection: Connection,
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE", help="Recordings, or directories with recordings. - reads standard input."
        ),
    ],
    format: Annotated[Format, typer.Option(help="Output format.")] = Format.TEXT,  # noqa: A002 - the option's name
    translate: Annotated[
        bool, typer.Option("--translate", help="Translate into English, from any language.")
    ] = False,
    language: Annotated[
        str | None,
        typer.Option(
            metavar="CODE", help="The spoken language, such as de. By default the model detects it."
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Names and terms to expect, in the spoken language.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(metavar="NUMBER", help="Sampling temperature, 0 to 1.")
    ] = None,
    model: Annotated[str, typer.Option(metavar="NAME", help="The transcription model.")] = DEFAULT_MODEL,
    output_dir: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Write one file per recording to this directory, readable only by you, not to standard output.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace existing files in --output-dir.")] = False,
    jobs: Annotated[
        int, typer.Option(min=1, max=64, metavar="N", help="Recordings to transcribe at once.")
    ] = DEFAULT_MAX_CONCURRENCY,
) -> None:
    """Transcribe recordings.

    Formats: flac, m4a, mp3, mp4, mpeg, mpga, oga, ogg, wav and webm. A recording of more than 25 MB is split at
    pauses, and timestamps run on across the parts. Splitting flac, ogg and mp3 needs the package's extra "audio"; wav
    needs no extra.

    On standard output, the text of several recordings has a line "==> FILE <==" above each, and JSON is one object
    per line. Subtitles of several recordings need --output-dir; the files are named FILE.srt or FILE.vtt, without the
    recording's own suffix.

    If a recording fails, the others are still transcribed. Each failure is one line on standard error, and the exit
    code is 1.

    \b
    Examples:
      prem transcribe meeting.mp3
      prem transcribe --format srt --output-dir subtitles recordings/*.m4a
      prem transcribe --translate interview.wav | prem chat "Summarise this."
    """
    from prem_core._audio.transcripts import TranscriptionRequest
    from prem_core._protocol.request_schema import audio_plaintext

    if translate and language is not None:
        raise CliError(
            "--language cannot be combined with --translate, which detects the language", EXIT_USAGE
        )
    if force and output_dir is None:
        raise CliError("--force needs --output-dir", EXIT_USAGE)
    request = TranscriptionRequest(
        model=model,
        task="translate" if translate else "transcribe",
        language=language,
        prompt=prompt,
        temperature=temperature,
    )
    audio_plaintext(request.task, request.params())  # a wrong value is reported once, not for every recording
    sources = _sources(files)
    if output_dir is None and len(sources) > 1 and format in (Format.SRT, Format.VTT):
        raise CliError(f"--format {format} with several recordings needs --output-dir", EXIT_USAGE)
    if output_dir is None:
        writer = _stdout_writer(headings=format is Format.TEXT and len(sources) > 1)
    else:
        writer = _file_writer(format, Path(output_dir), sources, overwrite=force)

    def formatter(source: AudioSource, transcripts: Sequence[ChunkTranscript]) -> str:
        return _formatted(format, source, request, transcripts)

    failed = asyncio.run(_transcribe_all(connection, sources, request, formatter, writer, jobs))
    if failed:
        raise CliError(f"{failed} of {len(sources)} recordings could not be transcribed", EXIT_FAILURE)


def _sources(files: Sequence[str]) -> list[AudioSource]:
    from prem_core._audio.sources import source_of, sources_at

    if files.count("-") > 1:
        raise CliError("- can be used only once: standard input is one recording", EXIT_USAGE)
    found: list[AudioSource] = []
    for name in files:
        if name == "-":
            found.append(source_of(sys.stdin.buffer.read(), source="stdin"))
        else:
            found += sources_at([name])
    return found


async def _transcribe_all(
    connection: Connection,
    sources: Sequence[AudioSource],
    request: TranscriptionRequest,
    formatter: Formatter,
    writer: Writer,
    jobs: int,
) -> int:
    """Transcribe all recordings, `jobs` at once, and write them in order. Returns how many failed."""
    from prem_core._audio.batch import atranscribe_many
    from prem_core.cli.progress import ProgressBars

    failed = 0
    async with connection.async_client(max_concurrency=jobs) as client:
        with ProgressBars(len(sources)) as bars:

            def on_failure(source: AudioSource, error: PremError | CliError) -> None:
                nonlocal failed
                failed += 1
                if len(sources) == 1:
                    raise CliError(_error_line(source, error), EXIT_FAILURE) from error
                with bars.hidden():
                    write_stderr(f"prem transcribe: {_error_line(source, error)}")

            found = atranscribe_many(
                client,
                sources,
                request,
                on_failure,
                bars.on_progress,
                max_recordings=jobs,
                # Transcripts are small: a long recording need not hold up all that follow.
                max_ahead=len(sources),
            )
            async with contextlib.aclosing(found):
                async for source, transcripts in found:
                    try:
                        text = formatter(source, transcripts)
                        with bars.hidden():
                            writer(source, text)
                    except (PremError, CliError) as error:
                        on_failure(source, error)
    return failed


def _error_line(source: AudioSource, error: PremError | CliError) -> str:
    text = error_text(error)
    if isinstance(error, InvalidParameterError):
        # "file" is the name of the parameter in Python; the text names the file itself.
        text = text.removeprefix("file: ")
    return text if source.source in text else f"{source.source}: {text}"


# --- output -----------------------------------------------------------------------------------------------


def _formatted(
    form: Format, source: AudioSource, request: TranscriptionRequest, transcripts: Sequence[ChunkTranscript]
) -> str:
    """The output for a recording.

    Raises:
        PremError: The service's response has no times, which the format needs.
    """
    from prem_core._audio.subtitles import srt, vtt
    from prem_core._audio.transcripts import segments

    (document,) = segments(source.source, transcripts, request)
    if form is Format.TEXT:
        return document.text + "\n"
    parts = segments(source.source, transcripts, dataclasses.replace(request, mode="segments"))
    if form is not Format.JSON:
        return (srt if form is Format.SRT else vtt)(parts)
    value = {
        "file": source.source,
        **{name: document.metadata.get(name) for name in ("task", "model", "language", "duration")},
        "text": document.text,
        "segments": [
            {"start": each.metadata.get("start"), "end": each.metadata.get("end"), "text": each.text}
            for each in parts
            if each.text
        ],
        # One for each chunk of the recording.
        "prem": [each.transcription.prem.as_dict() for each in transcripts if each.transcription.prem],
    }
    return as_json(value) + "\n"


def _stdout_writer(*, headings: bool) -> Writer:
    """Writes each recording to standard output, with the file's name above it if `headings`."""
    separator = ""

    def writer(source: AudioSource, text: str) -> None:
        nonlocal separator
        write(f"{separator}==> {source.source} <==\n{text}" if headings else text)
        separator = "\n"

    return writer


def _file_writer(form: Format, folder: Path, sources: Sequence[AudioSource], *, overwrite: bool) -> Writer:
    """Writes each recording to a file of its own.

    Raises:
        CliError: Two files would have the same name, or a file exists. Nothing was sent yet.
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
        raise CliError(f"--output-dir: {folder} cannot be created ({error.strerror})", EXIT_USAGE) from None

    def writer(source: AudioSource, text: str) -> None:
        path = paths[source.source]
        try:
            write_atomically(path, text.encode("utf-8", "surrogateescape"), overwrite=overwrite)
        except FileExistsError:
            raise CliError(exists(path), EXIT_FAILURE) from None
        except OSError as error:
            raise CliError(f"{path} cannot be written ({error.strerror})", EXIT_FAILURE) from None

    return writer
