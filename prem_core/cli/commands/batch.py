"""``prem batch``: many requests from a file, and values from many documents. Each run goes on where the last ended."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from prem_core._config import DEFAULT_MAX_CONCURRENCY
from prem_core._errors import PremError
from prem_core.cli import DEFAULT_CHAT_MODEL, EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_USAGE
from prem_core.cli.app import Group
from prem_core.cli.commands.keys import KekFile
from prem_core.cli.connection import Connection, find_kek, with_connection_options
from prem_core.cli.errors import CliError
from prem_core.cli.output import write, write_stderr
from prem_core.cli.progress import BatchBar

if TYPE_CHECKING:
    from prem_core.batch import InvalidLineError, Price, Progress, Report

#: Invalid lines that ``--dry-run`` shows.
_SHOWN_LINES: Final = 20


class _DefaultsToRun(Group):
    """Reads ``prem batch IN.jsonl`` as ``prem batch run IN.jsonl``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put ``run`` before arguments that name no subcommand."""
        if args and args[0] not in (*self.commands, "--help"):
            args = ["run", *args]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed


batch = typer.Typer(
    cls=_DefaultsToRun,
    no_args_is_help=True,
    help="Send a file of requests, or extract values from documents.\n\n"
    "prem batch IN.jsonl -o OUT.jsonl is short for prem batch run. Every run goes on where the last one ended, "
    "whatever ended it.\n\n"
    "\b\nExamples:\n"
    "  prem batch requests.jsonl -o answers.jsonl\n"
    "  prem batch extract invoices/ --schema invoice.py:Invoice -o rows.csv",
)

Jobs = Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="Requests in flight at most.")]
Ordered = Annotated[bool, typer.Option("--ordered", help="Write in the order of the input.")]
Limit = Annotated[int | None, typer.Option(min=1, metavar="N", help="Send at most N requests in this run.")]
MaxCost = Annotated[
    float | None,
    typer.Option(
        metavar="AMOUNT", help="Stop before this run costs more, in the currency of the models list."
    ),
]
MaxFailures = Annotated[
    int, typer.Option(min=0, metavar="N", help="Stop after N failed requests in a row; 0 for never.")
]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Send requests again that the service refused in earlier runs.")
]
Seal = Annotated[
    bool,
    typer.Option("--seal", help="Seal every line of the output with the KEK (CLIENT_KEK, or --kek-file)."),
]


@batch.command()
@with_connection_options()
def run(
    connection: Connection,
    requests: Annotated[str, typer.Argument(metavar="IN.jsonl", help="Requests, in OpenAI's Batch format.")],
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="OUT.jsonl", help="The file for the answers.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check every line and estimate the cost; send no request.")
    ] = False,
    ordered: Ordered = False,
    limit: Limit = None,
    max_cost: MaxCost = None,
    max_failures: MaxFailures = 20,
    retry_failed: RetryFailed = False,
    seal: Seal = False,
    jobs: Jobs = DEFAULT_MAX_CONCURRENCY,
) -> None:
    """Send the requests of a file, and write the answers to another.

    Each line of IN.jsonl is an object with custom_id, method ("POST"), url and body. The url is /v1/chat/completions,
    /v1/audio/transcriptions or /v1/audio/translations; for the last two, the body's file is the path of a recording,
    relative to the folder of IN.jsonl.

    Answers are written as they come, one line each, and errors to OUT.errors.jsonl. Run the same command again to go
    on after an interruption, a full disk or a kill: only requests without an answer are sent, and with --retry-failed
    those that the service refused (400, 404, 413, 422). The first Ctrl-C ends the requests in flight, the second one
    stops at once.

    Exit code 1 means that a request or a line failed, or that the run stopped.

    \b
    Examples:
      prem batch requests.jsonl --dry-run
      prem batch run requests.jsonl -o answers.jsonl --jobs 20 --max-cost 5
      prem batch requests.jsonl -o answers.jsonl --seal --kek-file prem.kek
    """
    from prem_core import batch as core

    if dry_run:
        _dry_run(connection, requests, output)
        return
    if output is None:
        raise CliError("-o OUT.jsonl is missing: the file for the answers", EXIT_USAGE)

    async def start(client: Any, **options: Any) -> Progress:
        return await core.arun(requests, output, client=client, **options)

    options = _options(connection, ordered, limit, max_cost, max_failures, retry_failed, seal)
    _report(asyncio.run(_run(connection, jobs, start, options)), output)


@batch.command("open")
def open_(
    path: Annotated[str, typer.Argument(metavar="FILE", help="An output of prem batch, or its errors.")],
    kek_file: KekFile = None,
) -> None:
    """Write the lines of a sealed output to standard output. A file that is not sealed is written as it is.

    \b
    Example:
      prem batch open answers.jsonl --kek-file prem.kek | jq .custom_id
    """
    from prem_core.batch.journal import read_lines

    for line in read_lines(path, find_kek(kek_file)):
        write(line.decode("utf-8", "surrogateescape") + "\n")


@batch.command()
@with_connection_options()
def extract(
    connection: Connection,
    documents: Annotated[
        list[str],
        typer.Argument(
            metavar="DOCS", help="Texts, PDFs, images and recordings, or directories with such files."
        ),
    ],
    schema: Annotated[
        str,
        typer.Option(
            metavar="SCHEMA",
            help="The form of a row: a Pydantic class, as invoice.py:Invoice (the file is executed), or a file "
            "with a JSON Schema.",
        ),
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="The rows: .jsonl, .csv or .parquet.")
    ],
    model: Annotated[
        str, typer.Option(metavar="NAME", help="The chat model (see prem models).")
    ] = DEFAULT_CHAT_MODEL,
    instructions: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What to extract, in addition to the schema.")
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="The limit of an answer; one more attempt has four times as many."
        ),
    ] = None,
    ordered: Ordered = False,
    limit: Limit = None,
    max_cost: MaxCost = None,
    max_failures: MaxFailures = 20,
    retry_failed: RetryFailed = False,
    seal: Seal = False,
    jobs: Jobs = DEFAULT_MAX_CONCURRENCY,
) -> None:
    """Extract a row of values from each document.

    A row has the document's path as _source and the properties of the schema. Every value is validated. A recording is
    transcribed first. The text of a PDF is taken out on this machine if pypdf is installed; a PDF without text is sent
    as it is, which not every model takes.

    A document that fails is an error in OUT.errors.jsonl, and the others go on. Run the same command again to go on
    after an interruption. A table (.csv, .parquet) is written at the end from the rows in FILE.rows.jsonl.

    \b
    Examples:
      prem batch extract invoices/*.pdf --schema invoice.py:Invoice -o rows.csv
      prem batch extract calls/ --schema call.json -o rows.jsonl
    """
    from prem_core import batch as core

    form = core.load_form(schema)

    async def start(client: Any, **options: Any) -> Progress:
        return await core.aextract(
            documents,
            form,
            output,
            client=client,
            model=model,
            instructions=instructions,
            max_tokens=max_tokens,
            **options,
        )

    options = _options(connection, ordered, limit, max_cost, max_failures, retry_failed, seal)
    _report(asyncio.run(_run(connection, jobs, start, options)), output)


def _options(
    connection: Connection,
    ordered: bool,
    limit: int | None,
    max_cost: float | None,
    max_failures: int,
    retry_failed: bool,
    seal: bool,
) -> dict[str, Any]:
    kek = find_kek(connection.kek_file) if seal else None
    if seal and kek is None:
        raise CliError("--seal needs a KEK: set CLIENT_KEK or use --kek-file", EXIT_USAGE)
    return {
        "ordered": ordered,
        "limit": limit,
        "max_cost": max_cost,
        "max_failures": max_failures or None,
        "retry_failed": retry_failed,
        "seal": seal,
        "kek": kek,
    }


async def _run(
    connection: Connection, jobs: int, start: Callable[..., Awaitable[Progress]], options: dict[str, Any]
) -> Progress:
    """Run with a bar, and with Ctrl-C once to end and twice to stop.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed twice.
    """
    stop = asyncio.Event()
    task = asyncio.current_task()
    latest: Progress | None = None

    def interrupt() -> None:
        if stop.is_set() and task is not None:
            task.cancel()
            return
        stop.set()
        write_stderr("prem batch: ending the requests in flight; Ctrl-C again stops at once")

    # Not on Windows, and not in a thread: there Ctrl-C stops at once.
    with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupt)
    with BatchBar() as bar:

        def on_progress(progress: Progress) -> None:
            nonlocal latest
            latest = progress
            ended = progress.skipped + progress.failed_before + progress.done + progress.failed
            bar.update(ended, progress.total, _counts(progress))

        try:
            async with connection.async_client(max_concurrency=jobs) as client:
                return await start(client, stop=stop, on_progress=on_progress, **options)
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
        except (PremError, OSError):
            if latest is not None:
                write_stderr(f"prem batch: {_counts(latest)}; run the same command again to go on")
            raise


def _counts(progress: Progress) -> str:
    parts = [f"{progress.done:,} done"]
    for count, what in (
        (progress.failed, "failed"),
        (progress.failed_before, "failed in earlier runs"),
        (progress.skipped, "done in earlier runs"),
        (progress.truncated, "truncated by their token limit"),
    ):
        if count:
            parts.append(f"{count:,} {what}")
    parts.append(f"{progress.rate:.1f}/s")
    tokens = progress.prompt_tokens + progress.completion_tokens
    if tokens:
        parts.append(f"{tokens:,} tokens")
    if progress.cost is not None:
        more = f" without {progress.unpriced:,} answers that have no price" if progress.unpriced else ""
        parts.append(f"cost {progress.cost:.4g}{more}")
    if progress.in_flight and progress.eta is not None:
        parts.append(f"{_duration(progress.eta)} left")
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _report(progress: Progress, output: str) -> None:
    write_stderr(f"prem batch: {_counts(progress)}")
    left = progress.remaining
    if progress.stopped == "interrupted":
        raise typer.Exit(EXIT_INTERRUPTED)
    if progress.stopped == "max_cost":
        raise CliError(f"stopped at --max-cost; {left} requests are left", EXIT_FAILURE)
    if failed := progress.failed + progress.failed_before:
        from prem_core.batch.errors_file import errors_path

        name = f"{output}.rows.jsonl" if output.endswith((".csv", ".parquet")) else output
        again = ""
        if progress.failed_before:
            again = f"; --retry-failed sends the {progress.failed_before:,} of earlier runs again"
        raise CliError(
            f"{failed:,} of {progress.total:,} failed: see {errors_path(name)}{again}", EXIT_FAILURE
        )


def _dry_run(connection: Connection, requests: str, output: str | None) -> None:
    from prem_core.batch import check

    shown = 0

    def on_invalid(error: InvalidLineError) -> None:
        nonlocal shown
        shown += 1
        if shown <= _SHOWN_LINES:
            write_stderr(f"prem batch: {requests}: {error}")

    prices = _prices(connection)
    report = check(requests, output, prices=prices, kek=find_kek(connection.kek_file), on_invalid=on_invalid)
    if shown > _SHOWN_LINES:
        write_stderr(f"prem batch: and {shown - _SHOWN_LINES:,} more invalid lines")
    write(_estimate(report))
    if report.invalid:
        raise CliError(f"{report.invalid:,} of {report.total:,} lines are invalid", EXIT_FAILURE)


def _prices(connection: Connection) -> dict[str, Price]:
    """The prices, if the service can be asked for them."""
    from prem_core.batch import read_prices

    try:
        with connection.client() as client:
            return read_prices(client.models.list())
    except PremError as error:
        write_stderr(f"prem batch: the cost is not estimated: {error}")
        return {}


def _estimate(report: Report) -> str:
    left = report.total - report.invalid - report.answered
    lines = [
        f"lines          {report.total:,}",
        f"invalid        {report.invalid:,}",
        f"answered       {report.answered:,}",
        f"to send        {left:,}",
        f"input tokens   about {report.prompt_tokens:,}",
        f"output tokens  at most {report.max_completion_tokens:,}"
        + (f", and those of {report.unlimited:,} requests without a limit" if report.unlimited else ""),
    ]
    if report.cost is not None:
        more = f", without {report.unpriced:,} requests that have no price" if report.unpriced else ""
        lines.append(f"cost           about {report.cost:.4g} with these tokens{more}")
    return "\n".join(lines) + "\n"
