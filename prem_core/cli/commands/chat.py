"""``prem chat``: a question, and its answer as it comes.

The rule of this file: standard output holds the answer and nothing else.
"""

from __future__ import annotations

import sys
import time
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from prem_core._errors import PremError
from prem_core.cli import EXIT_FAILURE, EXIT_TRUNCATED, EXIT_USAGE
from prem_core.cli.connection import Connection, with_connection_options
from prem_core.cli.errors import CliError
from prem_core.cli.output import is_terminal, strip_controls, write, write_json, write_stderr

if TYPE_CHECKING:
    from prem_core import ChatCompletion, ChatCompletionChunk

DEFAULT_MODEL: Final = "openai/gpt-oss-120b"

#: Bytes of standard input: far beyond any model's context, and an end to what has none.
MAX_INPUT: Final = 16 * 1024 * 1024

#: Why an answer may end before it is finished, and what to say of it.
_SHORT: Final = {"length": "at its token limit", "content_filter": "at the service's content filter"}


class Effort(StrEnum):
    """How much to reason."""

    NONE = "none"
    MINIMAL = "minimal"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


@with_connection_options()
def chat(
    connection: Connection,
    question: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="QUESTION", help="What to ask; several words are joined. - reads standard input."
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(metavar="NAME", help="The model to ask (prem models).")
    ] = DEFAULT_MODEL,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="Instructions to the model.")] = None,
    image: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH|URL",
            help="An image to show: a PNG, JPEG, GIF or WebP file of up to 20 MB, or a URL. May be repeated.",
        ),
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Sampling temperature, 0 to 2.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens to generate.")] = None,
    reasoning_effort: Annotated[Effort | None, typer.Option(help="How much to reason.")] = None,
    reasoning: Annotated[
        bool | None,
        typer.Option(
            "--reasoning/--no-reasoning",
            help="Write the model's reasoning to standard error, dim on a terminal. By default where both outputs "
            "are terminals.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write the whole answer as one JSON object, when it is complete.")
    ] = False,
    stats: Annotated[
        bool, typer.Option("--stats", help="Write tokens and times to standard error, behind the answer.")
    ] = False,
) -> None:
    """Ask a model, and write its answer as it comes.

    Text piped in is the question, or stands below it, after an empty line, where QUESTION is given too. In a loop
    that reads lines, add </dev/null, or the first call takes them all.

    Standard output holds the answer and nothing else. Exit status 3: the answer stopped at a limit, such as
    --max-tokens; what there is was written. An answer that was cut on its way is an error, 1.

    \b
    Examples:
      prem chat "What is an enclave?"
      prem chat "Summarise this letter." < letter.txt
      prem chat --image scan.png --json "What is the total?" | jq -r '.choices[0].message.content'
    """
    if reasoning is None:
        reasoning = is_terminal(sys.stdout) and is_terminal(sys.stderr) and not as_json
    answer = _Answer(shown=not as_json, reasoning=reasoning)
    # What is wrong with the settings is said before anybody types a question.
    with connection.client() as client:
        request: dict[str, Any] = {
            "messages": _messages(system, _ask(question or []), image or []),
            "model": model,
            # None means "not given".
            "temperature": temperature,
            "max_tokens": max_tokens,
            "reasoning_effort": reasoning_effort.value if reasoning_effort else None,
            "stream_options": {"include_usage": True},
        }
        try:
            answer.asked()
            with client.chat.completions.create(stream=True, **request) as stream:
                for chunk in stream:
                    answer.add(chunk)
        except PremError as error:
            if answer.written:
                raise CliError(
                    f"the answer is cut, what stands above is not all of it: {error}", EXIT_FAILURE
                ) from error
            raise
        finally:
            answer.end()
    _finish(answer, as_json=as_json, stats=stats)


def _ask(words: list[str]) -> str:
    """The question: the command line's, standard input's, or one above the other."""
    given = " ".join(words)
    if given == "-":
        text = _read_input()
    else:
        piped = "" if sys.stdin is None or is_terminal(sys.stdin) else _read_input()
        text = "\n\n".join(each for each in (given, piped) if each.strip())
    if not text.strip():
        raise CliError(
            "no question: write it behind the command, or pipe it in (see prem chat --help)", EXIT_USAGE
        )
    return text


def _read_input() -> str:
    data = sys.stdin.buffer.read(MAX_INPUT + 1)
    if len(data) > MAX_INPUT:
        raise CliError(f"standard input has more than {MAX_INPUT // 1024**2} MB", EXIT_USAGE)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise CliError("standard input is not text in UTF-8", EXIT_USAGE) from None


def _messages(system: str | None, question: str, images: list[str]) -> list[dict[str, Any]]:
    try:
        f"{system}{question}".encode()
    except UnicodeEncodeError:  # bytes of a command line that are no text
        raise CliError("the question is not text in UTF-8", EXIT_USAGE) from None
    content: str | list[dict[str, Any]] = question
    if images:
        from prem_core._adapters.content import text_part
        from prem_core.cli.images import part_of

        content = [text_part(question), *map(part_of, images)]
    asked = {"role": "user", "content": content}
    return [asked] if system is None else [{"role": "system", "content": system}, asked]


class _Answer:
    """An answer on its way: shown as it comes, and kept as a whole.

    Args:
        shown: Whether to write it to standard output.
        reasoning: Whether to write the reasoning to standard error.
    """

    def __init__(self, *, shown: bool, reasoning: bool) -> None:
        from prem_core._protocol.accumulator import CompletionBuilder

        self._shown = shown
        self._reasons = _dim_writer() if reasoning else None
        self._builder = CompletionBuilder()
        self._begun = 0.0
        #: Seconds until the first token; None before it came.
        self.first_token: float | None = None
        #: Whether some of the answer stands on standard output.
        self.written = False
        # What the last piece of either kind ended with.
        self._reasoning_end = self._answer_end = "\n"

    @property
    def seconds(self) -> float:
        """Since it was asked for."""
        return time.monotonic() - self._begun

    def asked(self) -> None:
        """The clock starts."""
        self._begun = time.monotonic()

    def add(self, chunk: ChatCompletionChunk) -> None:
        """Take the next chunk."""
        self._builder.add(chunk)
        for choice in chunk.choices:
            delta = choice.delta
            if self.first_token is None and (delta.content or delta.reasoning_content):
                self.first_token = self.seconds
            if delta.reasoning_content and self._reasons is not None:
                self._reasons(delta.reasoning_content)
                self._reasoning_end = delta.reasoning_content[-1]
            if delta.content and self._shown:
                self._end_reasoning()
                write(delta.content)
                self.written = True
                self._answer_end = delta.content[-1]

    def end(self) -> None:
        """Nothing more comes: the cursor goes to a line of its own."""
        self._end_reasoning()
        if self._answer_end != "\n":
            self._answer_end = "\n"
            write("\n")

    def completion(self) -> ChatCompletion:
        """The whole answer."""
        return self._builder.build()

    def _end_reasoning(self) -> None:
        if self._reasoning_end != "\n" and self._reasons is not None:
            self._reasons("\n\n")
        self._reasoning_end = "\n"


def _dim_writer() -> Any:
    """What writes pieces of text to standard error: dim where it is a terminal that can do that."""
    if not is_terminal(sys.stderr):

        def plain(text: str) -> None:
            sys.stderr.write(text)
            sys.stderr.flush()

        return plain

    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)

    def dim(text: str) -> None:
        console.print(Text(strip_controls(text), style="dim"), end="", soft_wrap=True)

    return dim


def _finish(answer: _Answer, *, as_json: bool, stats: bool) -> None:
    completion = answer.completion()
    if as_json:
        write_json(completion.model_dump(mode="json", exclude_none=True))
    if stats:
        write_stderr(_figures(answer, completion))
    for choice in completion.choices:
        if choice.message.refusal and not choice.message.content:
            raise CliError(f"the model refused: {choice.message.refusal}", EXIT_FAILURE)
        if choice.finish_reason in _SHORT:
            raise CliError(f"the answer stopped {_SHORT[choice.finish_reason]}", EXIT_TRUNCATED)


def _figures(answer: _Answer, completion: ChatCompletion) -> str:
    seconds = answer.seconds
    parts = [completion.model]
    if usage := completion.usage:
        reasoned = (usage.completion_tokens_details or {}).get("reasoning_tokens")
        of_these = f" ({reasoned} reasoning)" if reasoned else ""
        parts.append(f"{usage.prompt_tokens} + {usage.completion_tokens}{of_these} tokens")
    if answer.first_token is not None:
        parts.append(f"first token after {answer.first_token:.2f} s")
    return ", ".join([*filter(None, parts), f"all after {seconds:.2f} s"])
