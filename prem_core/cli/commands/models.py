"""``prem models``: list the models of the service."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from prem_core.cli.connection import Connection, with_connection_options
from prem_core.cli.output import is_terminal, one_line, write, write_json, write_stderr

if TYPE_CHECKING:
    from prem_core import Model


class Kind(StrEnum):
    """The type of a model."""

    CHAT = "chat"
    AUDIO_TRANSCRIPTION = "audio_transcription"
    AUDIO_SPEECH = "audio_speech"
    IMAGE = "image"


@with_connection_options()
def models(
    connection: Connection,
    kind: Annotated[
        Kind | None,
        typer.Option(
            "--type",
            metavar="TYPE",
            help="List only models of this type: chat, audio_transcription, audio_speech or image.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write a JSON list with everything the service reports.")
    ] = False,
) -> None:
    """List the available models.

    On a terminal the models are shown as a table. In a pipe each model is one line: name, type and enabled or disabled,
    separated by tabs.

    \b
    Examples:
      prem models
      prem models --type chat | cut -f1
      prem --local --upstream http://localhost:11434 models
    """
    with connection.client() as client:
        listed = client.models.list(type=kind.name if kind else None)
    if not listed:
        write_stderr(f"prem models: the service lists no {'such ' if kind else ''}models")
    if as_json:
        write_json([each.model_dump(mode="json", exclude_none=True) for each in listed])
    elif is_terminal(sys.stdout):
        _print_table(listed)
    else:
        write("".join("\t".join(_row(each)) + "\n" for each in listed))


def _row(model: Model) -> tuple[str, str, str]:
    # A field could contain a line break, but a model must stay on one line.
    state = {True: "enabled", False: "disabled", None: ""}[model.enabled]
    return one_line(model.id), one_line(model.type or ""), state


def _print_table(listed: list[Model]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("model", "type", "input", "", box=None, pad_edge=False, header_style="bold")
    for model in listed:
        name, kind, state = _row(model)
        modalities = one_line(", ".join(model.input_modalities or []))
        style = "dim" if state == "disabled" else ""
        # Text objects, because rich reads brackets in a string as markup.
        table.add_row(*(Text(each, style) for each in (name, kind, modalities, state)))
    Console().print(table)
