"""What `prem` and every command of it do around the command's own work."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from prem_core.cli import EXIT_BROKEN_PIPE, EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_USAGE
from prem_core.cli.embedded import embedded
from prem_core.cli.errors import UsageError, discard_stdout, error_boundary
from prem_core.cli.output import configure_stdout, one_line, write_stderr

#: Options of `prem` itself, which people put behind the command's name.
_GLOBAL: Final = ("--local", "--debug")

EXIT_STATUS: Final = (
    "Exit status: 0, done; 1, it ran and failed; 2, it cannot run as called; 130, interrupted; 141, the reader of "
    "standard output has left."
)


@dataclass(frozen=True, slots=True)
class Call:
    """The options of `prem` itself: ``ctx.find_object(Call)``."""

    debug: bool = False
    local: bool = False


class Command(TyperCommand):
    """A command that ends in one line, runs on an embedded enclave where asked to, and says how it exits."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options["epilog"] = options.get("epilog") or EXIT_STATUS
        super().__init__(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        """Run it. The command line has been read by then, so that a wrong one starts nothing."""
        call = ctx.find_object(Call) or Call()
        name = ctx.command_path.partition(" ")[2].partition(" ")[0]
        place = embedded(name, ctx.params) if call.local else contextlib.nullcontext()
        with error_boundary(ctx.command_path, debug=call.debug), place:
            return super().invoke(ctx)


class Group(TyperGroup):
    """`prem` itself. A wrong call is one line too."""

    def main(self, *args: Any, **options: Any) -> NoReturn:
        """Run what the command line says, and exit."""
        configure_stdout()
        # Or it would be "python -m prem_core.cli" in every usage.
        options["prog_name"] = options.get("prog_name") or "prem"
        status: Any
        try:
            status = super().main(*args, **{**options, "standalone_mode": False})
            sys.stdout.flush()
        except UsageError as error:
            status = _wrong(error)
        except typer.Abort:
            status = EXIT_FAILURE
        except KeyboardInterrupt:
            status = EXIT_INTERRUPTED
        except BrokenPipeError:
            discard_stdout()
            status = EXIT_BROKEN_PIPE
        except OSError as error:
            discard_stdout()
            write_stderr(f"prem: {error}")
            status = EXIT_FAILURE
        # A command's own result is no status; typer gives either.
        sys.exit(status if isinstance(status, int) else 0)


def _wrong(error: Any) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return EXIT_USAGE
    path = error.ctx.command_path if error.ctx is not None else "prem"
    text = one_line(error.format_message()).rstrip(".")
    if getattr(error, "option_name", None) in _GLOBAL:
        where = f"it goes before the command: prem {error.option_name} {path.partition(' ')[2]}"
    else:
        where = f"see {path} --help"
    write_stderr(f"{path}: {text} ({where})")
    return EXIT_USAGE
