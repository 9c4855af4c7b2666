"""``prem chat``: send a question and write the answer as it arrives.

Standard output contains the answer and nothing else.
"""

from __future__ import annotations

import sys
import time
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from prem_core._errors import PremError
from prem_core.cli import DEFAULT_CHAT_MODEL, EXIT_FAILURE, EXIT_TRUNCATED, EXIT_USAGE
from prem_core.cli.connection import Connection, global_options, with_connection_options
from prem_core.cli.errors import CliError
from prem_core.cli.output import is_terminal, strip_controls, write, write_json, write_stderr

if TYPE_CHECKING:
    from prem_core import ChatCompletion, ChatCompletionChunk, PremClient

#: Bytes of standard input: far more than any model's context.
MAX_INPUT: Final = 16 * 1024 * 1024

#: The finish reasons of a truncated answer, in words.
_TRUNCATION_REASONS: Final = {"length": "the token limit", "content_filter": "the service's content filter"}


class Effort(StrEnum):
    """How much a model reasons."""

    NONE = "none"
    MINIMAL = "minimal"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


@with_connection_options()
def chat(
    ctx: typer.Context,
    connection: Connection,
    question: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="QUESTION",
            help="The question; several words are joined. - reads it from standard input.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"Model to use (see prem models). Default: {DEFAULT_CHAT_MODEL}; with --upstream, its first model.",
        ),
    ] = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="System message: instructions for the model.")
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH|URL",
            help="Image to send: a PNG, JPEG, GIF or WebP file of up to 20 MB, or a URL. Can be repeated.",
        ),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(metavar="NUMBER", help="Sampling temperature, 0 to 2.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Maximum number of tokens to generate.")
    ] = None,
    reasoning_effort: Annotated[
        Effort | None,
        typer.Option(
            metavar="EFFORT", help="How much the model reasons: none, minimal, low, medium or high."
        ),
    ] = None,
    reasoning: Annotated[
        bool | None,
        typer.Option(
            "--reasoning/--no-reasoning",
            help="Write the model's reasoning to standard error. Default: only if standard output and standard error "
            "are terminals.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write the complete response as one JSON object.")
    ] = False,
    stats: Annotated[
        bool, typer.Option("--stats", help="Write token counts and timing to standard error.")
    ] = False,
) -> None:
    """Ask a model a question.

    Piped text is used as the question, or appended to QUESTION after an empty line. In a shell loop that reads lines,
    add </dev/null; otherwise the first call reads them all.

    Only the answer is written to standard output, as it arrives. Exit code 3 means that the answer was truncated, for
    example by --max-tokens. An answer that breaks off on the way is an error (exit code 1).

    \b
    Examples:
      prem chat "What is an enclave?"
      prem chat "Summarise this letter." < letter.txt
      prem chat --image scan.png "What is the total?"
      prem chat --json "Hello" | jq -r '.choices[0].message.content'
    """
    if reasoning is None:
        reasoning = is_terminal(sys.stdout) and is_terminal(sys.stderr) and not as_json
    printer = _StreamPrinter(answer=not as_json, reasoning=reasoning)
    # The client first: wrong settings are reported before a user types a question.
    with connection.client() as client:
        request: dict[str, Any] = {
            "messages": _messages(system, _read_question(question or []), image or []),
            "model": model or _default_model(client, upstream=global_options(ctx).upstream is not None),
            # None means "not given".
            "temperature": temperature,
            "max_tokens": max_tokens,
            "reasoning_effort": reasoning_effort.value if reasoning_effort else None,
            "stream_options": {"include_usage": True},
        }
        try:
            printer.start()
            with client.chat.completions.create(stream=True, **request) as stream:
                for chunk in stream:
                    printer.add(chunk)
        except PremError as error:
            if printer.wrote_answer:
                raise CliError(f"the answer above is incomplete: {error}", EXIT_FAILURE) from error
            raise
        finally:
            printer.finish()
    _report(printer, as_json=as_json, stats=stats)


def _default_model(client: PremClient, *, upstream: bool) -> str:
    listed = client.models.list(type="CHAT") if upstream else []
    return next((each.request_name for each in listed), DEFAULT_CHAT_MODEL)


def _read_question(words: list[str]) -> str:
    """Read the question from the arguments, from standard input, or from both."""
    argument = " ".join(words)
    if argument == "-":
        text = _read_stdin()
    else:
        piped = "" if sys.stdin is None or is_terminal(sys.stdin) else _read_stdin()
        text = "\n\n".join(each for each in (argument, piped) if each.strip())
    if not text.strip():
        raise CliError('no question: use prem chat "QUESTION", or pipe text in', EXIT_USAGE)
    return text


def _read_stdin() -> str:
    data = sys.stdin.buffer.read(MAX_INPUT + 1)
    if len(data) > MAX_INPUT:
        raise CliError(f"standard input is longer than {MAX_INPUT // 1024**2} MB", EXIT_USAGE)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise CliError("standard input is not UTF-8 text", EXIT_USAGE) from None


def _messages(system: str | None, question: str, images: list[str]) -> list[dict[str, Any]]:
    try:
        f"{system}{question}".encode()
    except UnicodeEncodeError:  # the command line has bytes that are not text
        raise CliError("the question is not UTF-8 text", EXIT_USAGE) from None
    content: str | list[dict[str, Any]] = question
    if images:
        from prem_core._adapters.content import text_part
        from prem_core.cli.images import image_content

        content = [text_part(question), *map(image_content, images)]
    user = {"role": "user", "content": content}
    return [user] if system is None else [{"role": "system", "content": system}, user]


class _StreamPrinter:
    """Writes a streamed answer as it arrives, and keeps the whole completion.

    Args:
        answer: Write the answer to standard output.
        reasoning: Write the reasoning to standard error.
    """

    def __init__(self, *, answer: bool, reasoning: bool) -> None:
        from prem_core._protocol.accumulator import CompletionBuilder

        self._prints_answer = answer
        self._write_reasoning = _reasoning_writer() if reasoning else None
        self._builder = CompletionBuilder()
        self._started = 0.0
        #: Seconds until the first token, or None.
        self.first_token: float | None = None
        #: Whether a part of the answer is on standard output.
        self.wrote_answer = False
        # The last character of each text so far.
        self._reasoning_end = self._answer_end = "\n"

    @property
    def seconds(self) -> float:
        """Time since `start`."""
        return time.monotonic() - self._started

    def start(self) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def add(self, chunk: ChatCompletionChunk) -> None:
        """Write the next chunk."""
        self._builder.add(chunk)
        for choice in chunk.choices:
            delta = choice.delta
            if self.first_token is None and (delta.content or delta.reasoning_content):
                self.first_token = self.seconds
            # State first: Ctrl-C may arrive right after the text is written.
            if delta.reasoning_content and self._write_reasoning is not None:
                self._reasoning_end = delta.reasoning_content[-1]
                self._write_reasoning(delta.reasoning_content)
            if delta.content and self._prints_answer:
                self._end_reasoning()
                self.wrote_answer = True
                self._answer_end = delta.content[-1]
                write(delta.content)

    def finish(self) -> None:
        """End the last line."""
        self._end_reasoning()
        if self._answer_end != "\n":
            self._answer_end = "\n"
            write("\n")

    def completion(self) -> ChatCompletion:
        """The whole answer."""
        return self._builder.build()

    def _end_reasoning(self) -> None:
        if self._reasoning_end != "\n" and self._write_reasoning is not None:
            self._write_reasoning("\n\n")
        self._reasoning_end = "\n"


def _reasoning_writer() -> Any:
    """A function that writes text to standard error: dim on a terminal that supports it."""
    if not is_terminal(sys.stderr):

        def write_plain(text: str) -> None:
            sys.stderr.write(text)
            sys.stderr.flush()

        return write_plain

    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)

    def write_dim(text: str) -> None:
        console.print(Text(strip_controls(text), style="dim"), end="", soft_wrap=True)

    return write_dim


def _report(printer: _StreamPrinter, *, as_json: bool, stats: bool) -> None:
    completion = printer.completion()
    if as_json:
        write_json(completion.model_dump(mode="json", exclude_none=True))
    if stats:
        write_stderr(_format_stats(printer, completion))
    for choice in completion.choices:
        if choice.message.refusal and not choice.message.content:
            raise CliError(f"the model refused: {choice.message.refusal}", EXIT_FAILURE)
        if reason := _TRUNCATION_REASONS.get(choice.finish_reason or ""):
            raise CliError(f"the answer was truncated by {reason}", EXIT_TRUNCATED)


def _format_stats(printer: _StreamPrinter, completion: ChatCompletion) -> str:
    total = printer.seconds
    parts = [completion.model]
    if usage := completion.usage:
        reasoning = (usage.completion_tokens_details or {}).get("reasoning_tokens")
        of_these = f" ({reasoning} for reasoning)" if reasoning else ""
        parts.append(f"{usage.prompt_tokens} input and {usage.completion_tokens} output{of_these} tokens")
    if printer.first_token is not None:
        parts.append(f"first token after {printer.first_token:.2f} s")
    return ", ".join([*filter(None, parts), f"total {total:.2f} s"])
