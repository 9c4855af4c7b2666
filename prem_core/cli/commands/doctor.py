"""``prem doctor``: what is installed, set, reachable and allowed; and what nobody has verified."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from prem_core.cli import EXIT_FAILURE
from prem_core.cli.command import Call
from prem_core.cli.connection import Connection, with_connection_options
from prem_core.cli.errors import CliError
from prem_core.cli.output import is_terminal, one_line, write, write_json

if TYPE_CHECKING:
    from prem_core.cli.checks import Check

_STYLES = {"ok": "green", "failed": "bold red", "not verified": "yellow", "not tried": "dim", "info": "dim"}


@with_connection_options()
def doctor(
    ctx: typer.Context,
    connection: Connection,
    calls: Annotated[
        bool,
        typer.Option(
            "--calls/--no-calls",
            help="Ask for the smallest answer there is, of one token, to see that chat works.",
        ),
    ] = True,
    audio: Annotated[
        bool,
        typer.Option("--audio", help="Have a second of silence transcribed too, to see that audio works."),
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The chat model to ask. By default the first one listed."),
    ] = None,
    fingerprint: Annotated[
        str | None,
        typer.Option(metavar="SHA256", help="What the SHA-256 of the enclave's key must be, in hex."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object with every check.")] = False,
) -> None:
    """Check installation, settings, service and API key.

    A line for each check: ok, failed, not tried, info where there is nothing to judge, and, so that nobody thinks it
    was checked, what is not verified. No secret is shown. Exit status 1: a check failed.

    \b
    Examples:
      prem doctor
      prem doctor --no-calls --json | jq '.checks[] | select(.state == "failed")'
      prem --local doctor --audio
    """
    from prem_core.cli import checks as service_checks

    call = ctx.find_object(Call) or Call()
    made: list[Check] = []
    for check in service_checks.all_checks(
        connection, local=call.local, calls=calls, audio=audio, model=model, fingerprint=fingerprint
    ):
        made.append(check)
        if not as_json:
            _show(check)
    failed = [each.name for each in made if each.state == "failed"]
    if as_json:
        checks = [{"name": each.name, "state": str(each.state), "detail": each.detail} for each in made]
        write_json({"ok": not failed, "checks": checks})
    if failed:
        raise CliError(f"failed: {', '.join(failed)}", EXIT_FAILURE)


def _show(check: Check) -> None:
    state, rest = f"{check.state:<13}", f"{check.name:<18}{one_line(check.detail)}"
    if not is_terminal(sys.stdout):
        write(f"{state}{rest}\n")
        return
    from rich.console import Console
    from rich.text import Text

    Console().print(Text.assemble((state, _STYLES[check.state]), rest), soft_wrap=True)
