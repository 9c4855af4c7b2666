"""`prem` itself: its own options, and every subcommand."""

from __future__ import annotations

import sys
from importlib import import_module

import typer

from prem_core._version import __version__
from prem_core.cli import COMMANDS
from prem_core.cli.command import EXIT_STATUS, Call, Command, Group
from prem_core.cli.output import is_terminal


def application() -> typer.Typer:
    """The command line, to be called."""
    app = typer.Typer(
        name="prem",
        cls=Group,
        epilog=EXIT_STATUS,
        no_args_is_help=True,
        # Boxes and colours are for a terminal; whoever pipes the help wants its text.
        rich_markup_mode="rich" if is_terminal(sys.stdout) else None,
        pretty_exceptions_enable=False,
    )

    app.callback()(_prem)
    for name in COMMANDS:
        command = getattr(import_module(f"prem_core.cli.commands.{name}"), name)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name, cls=Command)(command)
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"prem {__version__}")
        raise typer.Exit


def _prem(
    ctx: typer.Context,
    local: bool = typer.Option(
        False,
        "--local",
        help="Start an embedded enclave for this call and use it: no account, nothing leaves this machine. "
        "Its built-in engine is no model: it quotes and extracts what the prompt holds.",
    ),
    debug: bool = typer.Option(False, "--debug", help="Show a traceback where a command fails."),
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    """Prem's end-to-end encrypted inference, from the command line.

    Prompts and recordings are sealed on this machine to the enclave's key; the gateway in between sees
    ciphertext. PREM_API_KEY holds the API key. No option takes a secret, because others can read a
    command line.

    \b
    Examples:
      prem chat "What is an enclave?"
      prem --local chat "Context: The clinic opens at eight. Question: When does it open?"
      prem transcribe --format srt --output-dir subtitles *.mp3
      prem doctor
    """
    del version
    ctx.obj = Call(debug=debug, local=local)
