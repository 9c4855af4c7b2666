"""The `prem` command: one module of this package per subcommand.

To add one, write a module with a function of the same name, its typer command, or with a `Typer` of that name
for a group of them, and name it in `COMMANDS`. A module imports what only it needs inside the function, so that
no command needs another's extras.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Final

#: The subcommands, in the order of the help.
COMMANDS: Final = ("enclave", "keys")

#: Exit status of a command that cannot run as it was called, or as it is installed.
USAGE_ERROR: Final = 2


def main() -> None:
    """Run the command line in `sys.argv`; the entry point ``prem``."""
    try:
        import typer
    except ModuleNotFoundError as missing:
        sys.stderr.write(
            f'prem: the command line needs {missing.name}: pip install "prem-encrypted[enclave]"\n'
        )
        sys.exit(USAGE_ERROR)

    from prem_core._version import __version__

    app = typer.Typer(
        name="prem",
        help="Prem's end-to-end encrypted inference, from the command line.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )

    def show_version(wanted: bool) -> None:
        if wanted:
            typer.echo(f"prem {__version__}")
            raise typer.Exit

    @app.callback()
    def prem(
        version: bool = typer.Option(
            False, "--version", callback=show_version, is_eager=True, help="Show the version and exit."
        ),
    ) -> None:
        pass

    for name in COMMANDS:
        command = getattr(import_module(f"prem_core.cli.{name}"), name)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    app()
