"""``prem doctor``: check the installation, settings, service and API key."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Final

import typer

from prem_core.cli import EXIT_FAILURE
from prem_core.cli.connection import Connection, global_options, with_connection_options
from prem_core.cli.errors import CliError
from prem_core.cli.output import is_terminal, one_line, write, write_json

if TYPE_CHECKING:
    from prem_core.cli.checks import Check

_STYLES: Final = {
    "ok": "green", "failed": "bold red", "not verified": "yellow", "skipped": "dim", "info": "dim",
}  # fmt: skip

#: Columns of a line before the detail: the state and the name.
_INDENT: Final = 14 + 17


@with_connection_options()
def doctor(
    ctx: typer.Context,
    connection: Connection,
    calls: Annotated[
        bool,
        typer.Option(
            "--calls/--no-calls",
            help="Check chat with a request for one token, and the nonce of its replies with a random word. Both are "
            "charged: about 20 tokens of output.",
            show_default=False,
        ),
    ] = True,
    audio: Annotated[
        bool,
        typer.Option(
            "--audio",
            help="Check transcription with a second of silence, and the nonce of its replies with half a second more. "
            "Both are charged.",
        ),
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Chat model to use. Default: the first enabled chat model."),
    ] = None,
    fingerprint: Annotated[
        str | None,
        typer.Option(metavar="SHA256", help="Expected SHA-256 of the enclave's key, in hex."),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="List the undocumented points by name.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write all checks as one JSON object.")] = False,
) -> None:
    """Check the installation, settings, service and API key.

    Each check has one line: ok, failed, skipped, info, or "not verified" for protection that is missing or cannot be
    checked. A failed check shows what to do. No secret is shown. Exit code 1 means that a check failed.

    \b
    Examples:
      prem doctor
      prem doctor --no-calls --json | jq '.checks[] | select(.state == "failed")'
      prem --local doctor --audio
    """
    from prem_core.cli.checks import Options, all_checks

    options = Options(
        connection=connection,
        local=global_options(ctx).local,
        calls=calls,
        audio=audio,
        model=model,
        fingerprint=fingerprint,
        verbose=verbose,
    )
    results: list[Check] = []
    for check in all_checks(options):
        results.append(check)
        if not as_json:
            _print_check(check)
    failed = [each.name for each in results if each.state == "failed"]
    if as_json:
        write_json({"ok": not failed, "checks": [_as_dict(each) for each in results]})
    else:
        _print_counts(results)
    if failed:
        raise CliError(f"failed: {', '.join(failed)}", EXIT_FAILURE)


def _as_dict(check: Check) -> dict[str, str]:
    remedy = {"remedy": check.remedy} if check.remedy else {}
    return {"name": check.name, "state": str(check.state), "detail": check.detail, **remedy}


def _print_check(check: Check) -> None:
    name, indent = f"{check.name:<17}", " " * _INDENT
    detail, remedy = one_line(check.detail), one_line(check.remedy)
    if is_terminal(sys.stdout):
        detail, remedy = _wrap(detail), _wrap(remedy, "  ")
    _print((f"{check.state:<14}", _STYLES[check.state]), (f"{name}{detail}\n", ""))
    if remedy:
        _print((f"{indent}→ {remedy}\n", ""))


def _wrap(text: str, hang: str = "") -> str:
    """Wrap for the terminal, with the following lines indented. A long word, such as a key, is not broken."""
    indent = " " * _INDENT + hang
    width = max(shutil.get_terminal_size().columns, 60)
    lines = textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent, break_long_words=False,
                          break_on_hyphens=False)  # fmt: skip
    return "\n".join(lines).removeprefix(indent)


def _print_counts(results: list[Check]) -> None:
    counts = Counter(str(each.state) for each in results)
    parts: list[tuple[str, str]] = [("\n", "")]
    for state in ("ok", "failed", "not verified", "skipped"):
        parts += [(f"{counts[state]} {state}", _STYLES[state] if counts[state] else "dim"), (", ", "")]
    _print(*parts[:-1], ("\n", ""))


def _print(*parts: tuple[str, str]) -> None:
    """Write text; styles are used on a terminal only."""
    if not is_terminal(sys.stdout):
        write("".join(text for text, _ in parts))
        return
    from rich.console import Console
    from rich.text import Text

    Console().print(Text.assemble(*parts), end="", soft_wrap=True)
