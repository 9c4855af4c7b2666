"""``prem chat``: send a question and write the answer, on a terminal as it arrives.

Standard output contains the answer and nothing else. Only a terminal gets a stream: the gateway can read and replace
streamed answers.
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
from prem_core.cli.progress import spinner

if TYPE_CHECKING:
    from prem_core import ChatCompletion, ChatCompletionChunk, PremClient, Protection

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
        bool,
        typer.Option(
            "--json",
            help='Write the complete response as one JSON object. Its member "prem" is how the answer was protected.',
        ),
    ] = False,
    stats: Annotated[
        bool,
        typer.Option(
            "--stats", help="Write token counts, timing and how the answer was protected to standard error."
        ),
    ] = False,
) -> None:
    """Ask a model a question.

    Piped text is used as the question, or appended to QUESTION after an empty line. In a shell loop that reads lines,
    add </dev/null; otherwise the first call reads them all.

    Only the answer is written to standard output. On a terminal it is streamed, so the gateway can read and replace
    it. With --json, in a pipe, in a file and with --nonce-reuse error it is requested and written as a whole.

    Exit code 3 means that the answer was truncated, for example by --max-tokens. An answer that breaks off on the way
    is an error (exit code 1).

    \b
    Examples:
      prem chat "What is an enclave?"
      prem chat "Summarise this letter." < letter.txt
      prem chat --image scan.png "What is the total?"
      prem chat --json "Hello" | jq -r '.choices[0].message.content'
    """
    if reasoning is None:
        reasoning = is_terminal(sys.stdout) and is_terminal(sys.stderr) and not as_json
    printer = _Printer(answer=not as_json, reasoning=reasoning)
    streamed = is_terminal(sys.stdout) and not as_json and not connection.refuses_nonce_reuse()
    # The client first: wrong settings are reported before a user types a question.
    with connection.client() as client:
        request: dict[str, Any] = {
            "messages": _messages(system, _read_question(question or []), image or []),
            "model": model or _default_model(client, upstream=global_options(ctx).upstream is not None),
            # None means "not given".
            "temperature": temperature,
            "max_tokens": max_tokens,
            "reasoning_effort": reasoning_effort.value if reasoning_effort else None,
        }
        started = time.monotonic()
        try:
            completion = (_stream if streamed else _whole)(client, request, printer)
        except PremError as error:
            if printer.wrote_answer:
                raise CliError(f"the answer above is incomplete: {error}", EXIT_FAILURE) from error
            raise
        finally:
            printer.finish()
    finished = time.monotonic()
    if as_json:
        write_json(_as_dict(completion))
    if stats:
        first_token = printer.first_token if streamed else None
        write_stderr(_format_stats(completion, finished - started, first_token and first_token - started))
        if completion.prem:
            write_stderr(_format_protection(completion.prem))
    _check_complete(completion)


def _stream(client: PremClient, request: dict[str, Any], printer: _Printer) -> ChatCompletion:
    """Request a stream and print its chunks as they arrive. Returns the whole answer."""
    from prem_core._protocol.accumulator import CompletionBuilder

    builder = CompletionBuilder()
    request["stream_options"] = {"include_usage": True}
    with client.chat.completions.create(stream=True, **request) as stream:
        for chunk in stream:
            builder.add(chunk)
            printer.add(chunk)
    return builder.build().with_protection(stream.prem)


def _whole(client: PremClient, request: dict[str, Any], printer: _Printer) -> ChatCompletion:
    """Request the whole answer and print it."""
    from prem_core._protocol.accumulator import chunks_of

    with spinner("waiting for the answer"):
        completion: ChatCompletion = client.chat.completions.create(**request)
    for chunk in chunks_of(completion, include_usage=False):
        printer.add(chunk)
    return completion


def _default_model(client: PremClient, *, upstream: bool) -> str:
    listed = client.models.list(type="CHAT") if upstream else []
    return next((each.id for each in listed), DEFAULT_CHAT_MODEL)


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


class _Printer:
    """Writes the chunks of an answer.

    Args:
        answer: Write the answer to standard output.
        reasoning: Write the reasoning to standard error.
    """

    def __init__(self, *, answer: bool, reasoning: bool) -> None:
        self._prints_answer = answer
        self._write_reasoning = _reasoning_writer() if reasoning else None
        #: The time by `time.monotonic` of the first token, or None.
        self.first_token: float | None = None
        #: Whether a part of the answer is on standard output.
        self.wrote_answer = False
        # The last character of each text so far.
        self._reasoning_end = self._answer_end = "\n"

    def add(self, chunk: ChatCompletionChunk) -> None:
        """Write the next chunk."""
        for choice in chunk.choices:
            delta = choice.delta
            if self.first_token is None and (delta.content or delta.reasoning_content):
                self.first_token = time.monotonic()
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


def _as_dict(completion: ChatCompletion) -> dict[str, Any]:
    response = completion.model_dump(mode="json", exclude_none=True)
    return {**response, "prem": completion.prem.as_dict()} if completion.prem else response


def _check_complete(completion: ChatCompletion) -> None:
    """Fail if the model refused, or if the answer was truncated.

    Raises:
        CliError: It did, or it was.
    """
    for choice in completion.choices:
        if choice.message.refusal and not choice.message.content:
            raise CliError(f"the model refused: {choice.message.refusal}", EXIT_FAILURE)
        if reason := _TRUNCATION_REASONS.get(choice.finish_reason or ""):
            raise CliError(f"the answer was truncated by {reason}", EXIT_TRUNCATED)


def _format_stats(completion: ChatCompletion, total: float, first_token: float | None) -> str:
    parts = [completion.model]
    if usage := completion.usage:
        reasoning = (usage.completion_tokens_details or {}).get("reasoning_tokens")
        of_these = f" ({reasoning} for reasoning)" if reasoning else ""
        parts.append(f"{usage.prompt_tokens} input and {usage.completion_tokens} output{of_these} tokens")
    if first_token is not None:
        parts.append(f"first token after {first_token:.2f} s")
    return ", ".join([*filter(None, parts), f"total {total:.2f} s"])


def _format_protection(protection: Protection) -> str:
    key = f"sha256:{protection.key_fingerprint}" if protection.key_fingerprint else "unknown"
    attested = "not attested"
    if protection.attested:
        attested = "attested" if protection.key_bound else "a genuine machine answered; not bound to this key"
    own = protection.reply_nonce == "own"
    nonce = "a nonce of its own" if own else "the request's nonce (the gateway can read and replace it)"
    return f"sealed to the key {key} ({protection.key_source}, {attested}); the answer has {nonce}"
