"""How a command ends: an error is one line on standard error and an exit status.

The line has the support id where the service gave one. A traceback comes with ``--debug`` only, and without the
values of variables: a secret or a prompt may be among them.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any, Final

import typer

from prem_core._errors import ConfigurationError, InvalidParameterError, PremError
from prem_core.cli import EXIT_BROKEN_PIPE, EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_USAGE
from prem_core.cli.output import is_terminal, strip_controls, write_stderr

#: The base of every wrong call. typer's releases differ in where it lives.
UsageError: Final[Any] = typer.BadParameter.__base__


class CliError(Exception):
    """An end in one line, with an exit status that the error's class does not tell."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


@contextlib.contextmanager
def exit_with(status: int) -> Iterator[None]:
    """Have this package's errors end in `status`, whatever their class."""
    try:
        yield
    except PremError as error:
        raise CliError(str(error), status) from error


@contextlib.contextmanager
def error_boundary(command: str, *, debug: bool = False) -> Iterator[None]:
    """Around a command's work, whichever way it ends.

    Args:
        command: What its line begins with, for example "prem chat".
        debug: Whether to show a traceback too.

    Raises:
        typer.Exit: With the exit status.
    """
    try:
        yield
    except KeyboardInterrupt:
        status = EXIT_INTERRUPTED
    except BrokenPipeError:
        discard_stdout()
        status = EXIT_BROKEN_PIPE
    except (typer.Exit, typer.Abort, UsageError):  # typer's own; `Group` ends on them
        raise
    except Exception as error:
        if debug:
            _show(error)
        if isinstance(error, OSError):  # of standard output, most likely: a full disk
            discard_stdout()
        text, status = _message_and_status(error)
        write_stderr(f"{command}: {text}")
    else:
        return
    raise typer.Exit(status)


def discard_stdout() -> None:
    """Give standard output up: nobody takes what is written to it."""
    # At exit the interpreter flushes what is left, and would complain.
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _message_and_status(error: Exception) -> tuple[str, int]:
    if isinstance(error, CliError):
        return str(error), error.status
    if isinstance(error, PremError):
        wrong = isinstance(error, ConfigurationError | InvalidParameterError)
        return str(error), EXIT_USAGE if wrong else EXIT_FAILURE
    if isinstance(error, ModuleNotFoundError) and error.name and str(error).startswith("No module named"):
        return f'this needs {error.name}: pip install "prem-encrypted[cli]"', EXIT_USAGE
    if isinstance(error, ImportError):  # our own words, with the extra's name
        return str(error), EXIT_USAGE
    if isinstance(error, OSError):
        return str(error), EXIT_FAILURE
    # A fault of ours. Its text could hold anything; its kind cannot.
    return f"unexpected {type(error).__name__}; prem --debug … shows where", EXIT_FAILURE


def _show(error: Exception) -> None:
    text = "".join(traceback.format_exception(error))
    sys.stderr.write(strip_controls(text) if is_terminal(sys.stderr) else text)
