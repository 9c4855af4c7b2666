"""How a command fails: one line on standard error and an exit code.

The line includes the support id if the service sent one. ``--debug`` adds a traceback without local variables, which
may contain secrets or prompts.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Final

import typer

from prem_core import _config
from prem_core._errors import ConfigurationError, InvalidParameterError, NonceReuseError, PremError
from prem_core.cli import EXIT_BROKEN_PIPE, EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_USAGE
from prem_core.cli.output import is_terminal, strip_controls, write_stderr

#: The base class of typer's usage errors. Its module differs between typer's releases.
UsageError: Final[Any] = typer.BadParameter.__base__

#: What a user of the command line can do about a `NonceReuseError`.
NONCE_REUSE_REMEDY: Final = "use another model, or accept this with --nonce-reuse warn"

_NONCE_REUSE_REFUSED: Final = (
    "the service seals this model's replies under the nonce of their request, so the gateway could read "
    "and replace them"
)

_NONCE_REUSE_WARNING: Final = (
    "the gateway can read and replace this answer and, by sending the request again, read the request; "
    "--nonce-reuse error prevents it, --nonce-reuse allow hides this warning"
)

#: The client's name of an option that has another name here.
_CLIENT_NAMES: Final = {"keys": "encryption_keys"}


class CliError(Exception):
    """An error with an exit code of its own.

    Args:
        text: The message, on one line.
        status: The exit code.
    """

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


@contextlib.contextmanager
def exit_with(status: int) -> Iterator[None]:
    """Give every `PremError` in the block this exit code."""
    try:
        yield
    except PremError as error:
        raise CliError(str(error), status) from error


@contextlib.contextmanager
def error_boundary(
    command: str, *, debug: bool = False, names: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Report any error in the block on one line and exit.

    Args:
        command: The start of the line, for example "prem chat".
        debug: Print a traceback as well.
        names: See `use_cli_names`.

    Raises:
        typer.Exit: With the exit code.
    """
    try:
        yield
    except KeyboardInterrupt:
        status = EXIT_INTERRUPTED
    except BrokenPipeError:
        discard_stdout()
        status = EXIT_BROKEN_PIPE
    except (typer.Exit, typer.Abort, UsageError):  # handled by `Group`
        raise
    except Exception as error:
        if debug:
            _print_traceback(error)
        if isinstance(error, OSError):  # probably standard output's: a full disk
            discard_stdout()
        text, status = _message_and_status(error, names or {})
        write_stderr(f"{command}: {text}")
    else:
        return
    raise typer.Exit(status)


@contextlib.contextmanager
def warnings_on_one_line(command: str) -> Iterator[None]:
    """Write every warning in the block as one line to standard error."""
    from prem_core import NonceReuseWarning

    def write(message: Warning | str, *_: Any, **__: Any) -> None:
        text = _NONCE_REUSE_WARNING if isinstance(message, NonceReuseWarning) else message
        write_stderr(f"{command}: warning: {text}")

    with warnings.catch_warnings():
        # Only --nonce-reuse hides this one, not Python's filters.
        warnings.simplefilter("always", NonceReuseWarning)
        warnings.showwarning = write
        yield


def discard_stdout() -> None:
    """Point standard output to the null device, because its reader has gone."""
    # Otherwise the interpreter flushes at exit and reports an error.
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def cli_names(ctx: Any) -> dict[str, str]:
    """For each parameter of a command: the option, or the environment variable that its value came from."""
    names: dict[str, str] = {}
    while ctx is not None:
        for parameter in ctx.command.params:
            option = next((each for each in parameter.opts if each.startswith("--")), None)
            variable = None
            if parameter.name in _config.VARIABLES and ctx.params.get(parameter.name) is None:
                variable = _config.environment_source(parameter.name)
            if name := variable or option:
                names.setdefault(_CLIENT_NAMES.get(parameter.name, parameter.name), name)
        ctx = ctx.parent
    return names


def use_cli_names(text: str, names: Mapping[str, str]) -> str:
    """Replace the Python parameters in an error message by the options or variables that a user can change.

    A name that is also an English word, such as "timeout", is replaced only at the start of the message.
    """
    for parameter, name in names.items():
        assigned = rf"{name}{' ' if name.startswith('--') else '='}\1"
        text = re.sub(rf"\b{parameter}='(\w+)'", assigned, text)
        found = rf"\b{parameter}\b" if "_" in parameter else rf"^{parameter}(?=: | must | is )"
        text = re.sub(rf"{found}(=\w+)?( \(from \w+\)| \({re.escape(name)}\))?", name, text)
    return text


def error_text(error: Exception) -> str:
    """The message of an error, with what a user of the command line can do."""
    if isinstance(error, NonceReuseError):
        return f"{_NONCE_REUSE_REFUSED}: {NONCE_REUSE_REMEDY}"
    return str(error)


def _message_and_status(error: Exception, names: Mapping[str, str]) -> tuple[str, int]:
    text = error_text(error)
    wrong_setting = (ConfigurationError, InvalidParameterError)
    if isinstance(error, wrong_setting) or isinstance(error.__cause__, wrong_setting):
        text = use_cli_names(text, names)
    source = error.__cause__ if isinstance(error, CliError) else error
    if isinstance(source, PremError):
        text = ". ".join([text, *(use_cli_names(note, names) for note in getattr(source, "__notes__", ()))])
    if isinstance(error, CliError):
        return text, error.status
    if isinstance(error, PremError):
        return text, EXIT_USAGE if isinstance(error, wrong_setting) else EXIT_FAILURE
    if isinstance(error, ModuleNotFoundError) and error.name and text.startswith("No module named"):
        return f'this command needs {error.name}: pip install "prem-encrypted[cli]"', EXIT_USAGE
    if isinstance(error, ImportError):  # our own message, which names the extra
        return text, EXIT_USAGE
    if isinstance(error, OSError):
        return text, EXIT_FAILURE
    # A bug. Print only the type, because the message may contain user data.
    return f"internal error: {type(error).__name__} (prem --debug shows where)", EXIT_FAILURE


def _print_traceback(error: Exception) -> None:
    text = "".join(traceback.format_exception(error))
    sys.stderr.write(strip_controls(text) if is_terminal(sys.stderr) else text)
