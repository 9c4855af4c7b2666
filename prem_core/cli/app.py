"""The `prem` application: global options, subcommands, help, and how every command exits."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any, Final, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from prem_core._version import __version__
from prem_core.cli import COMMANDS, EXIT_BROKEN_PIPE, EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_USAGE
from prem_core.cli.connection import GlobalOptions, global_options
from prem_core.cli.embedded import embedded_enclave
from prem_core.cli.errors import UsageError, cli_names, discard_stdout, error_boundary, warnings_on_one_line
from prem_core.cli.output import configure_stdout, one_line, write_stderr

#: How to use an option of `prem` itself, for users who put it after the subcommand.
_GLOBAL_USAGE: Final = {
    "--local": "--local",
    "--debug": "--debug",
    "--upstream": "--local --upstream URL",
    "--upstream-api-key-env": "--local --upstream URL --upstream-api-key-env NAME",
}

EXIT_CODES: Final = (
    "Exit codes: 0 success, 1 failure, 2 usage error, 3 truncated answer (prem chat only), 130 interrupted, 141 broken "
    "pipe (the program that reads standard output has ended)."
)


def application() -> typer.Typer:
    """Build the command line application."""
    app = typer.Typer(
        name="prem",
        cls=Group,
        epilog=EXIT_CODES,
        no_args_is_help=True,
        # typer's own help on terminals cuts defaults and paragraphs at 80 columns.
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(_prem)
    for name in COMMANDS:
        command = getattr(import_module(f"prem_core.cli.commands.{name}"), name)
        if isinstance(command, typer.Typer):
            for each in command.registered_commands:
                each.cls = Command
            own = command.info.cls
            app.add_typer(command, name=name, cls=own if isinstance(own, type) else Group, epilog=EXIT_CODES)
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
        help="Use an embedded enclave that runs only for this command: no account is needed and nothing leaves this "
        "machine. Its default engine is not a language model: it quotes the prompt.",
    ),
    upstream: str | None = typer.Option(
        None,
        metavar="URL",
        help="With --local: an OpenAI-compatible server (Ollama, vLLM, llama.cpp) that answers instead of the "
        "default engine.",
    ),
    upstream_api_key_env: str | None = typer.Option(
        None, metavar="NAME", help="Read the API key of --upstream from this environment variable."
    ),
    debug: bool = typer.Option(False, "--debug", help="Print a traceback when a command fails."),
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    """Prem's encrypted inference API, from the command line.

    Prompts and recordings are encrypted on this machine to the enclave's key. The gateway in between can read and
    replace streamed answers: see prem chat --nonce-reuse, and prem doctor for what is not verified.

    Set PREM_API_KEY to your API key. No option takes a secret, because other users can read a command line.

    \b
    Examples:
      prem chat "What is an enclave?"
      prem --local chat "The clinic opens at eight. When does it open?"
      prem transcribe --format srt --output-dir subtitles *.mp3
      prem doctor
    """
    del version
    ctx.obj = GlobalOptions(
        debug=debug, local=local, upstream=upstream, upstream_api_key_env=upstream_api_key_env
    )


class Command(TyperCommand):
    """A subcommand: reports errors on one line, runs with ``--local``, and documents its exit codes."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options["epilog"] = options.get("epilog") or EXIT_CODES
        super().__init__(*args, **options)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options in their sections."""
        _write_options(self, ctx, formatter)

    def invoke(self, ctx: Any) -> Any:
        """Run the command. Its options are parsed by now, so a usage error starts no enclave."""
        options = global_options(ctx)
        subcommand = ctx.command_path.split()[1]
        with (
            warnings_on_one_line(ctx.command_path),
            error_boundary(ctx.command_path, debug=options.debug, names=cli_names(ctx)),
            embedded_enclave(subcommand, ctx.params, options),
        ):
            return super().invoke(ctx)


class Group(TyperGroup):
    """`prem` itself, or a group of subcommands. Reports usage errors on one line."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options in their sections, and the subcommands."""
        _write_options(self, ctx, formatter)
        self.format_commands(ctx, formatter)

    def main(self, *args: Any, **options: Any) -> NoReturn:
        """Run the command line and exit."""
        configure_stdout()
        # Otherwise every usage line starts with "python -m prem_core.cli".
        options["prog_name"] = options.get("prog_name") or "prem"
        status: Any
        try:
            status = super().main(*args, **{**options, "standalone_mode": False})
            sys.stdout.flush()
        except UsageError as error:
            status = _report_usage_error(error)
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
        # typer returns an exit code, or else what the command returned.
        sys.exit(status if isinstance(status, int) else 0)


def _write_options(command: Any, ctx: Any, formatter: Any) -> None:
    sections: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record is None:
            continue
        section = getattr(parameter, "rich_help_panel", None) or "Options"
        if parameter.param_type_name == "argument":
            section, record = "Arguments", (parameter.metavar, record[1])
        sections.setdefault(section, []).append(record)
    for section, records in sections.items():
        with formatter.section(section):
            formatter.write_dl(records)


def _report_usage_error(error: Any) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return EXIT_USAGE
    path = error.ctx.command_path if error.ctx is not None else "prem"
    text = one_line(error.format_message()).rstrip(".").replace("Value error, ", "")
    if usage := _GLOBAL_USAGE.get(getattr(error, "option_name", None) or ""):
        hint = f"it goes before the command: prem {usage} {path.partition(' ')[2]}"
    else:
        hint = f"see {path} --help"
    write_stderr(f"{path}: {text} ({hint})")
    return EXIT_USAGE
