"""``prem models``: what the service offers."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from prem_core.cli.connection import Connection, with_connection_options
from prem_core.cli.output import is_terminal, one_line, write, write_json

if TYPE_CHECKING:
    from prem_core import Model


class Kind(StrEnum):
    """What a model is for."""

    CHAT = "chat"
    AUDIO_TRANSCRIPTION = "audio_transcription"
    AUDIO_SPEECH = "audio_speech"
    IMAGE = "image"


@with_connection_options()
def models(
    connection: Connection,
    kind: Annotated[Kind | None, typer.Option("--type", help="Only models of this type.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="A JSON list, with all that the service says of each.")
    ] = False,
) -> None:
    """List the models that the service offers.

    A table on a terminal. Piped: a line for each, its name, its type and whether it is enabled, with tabs between.

    \b
    Examples:
      prem models
      prem models --type chat | cut -f1
    """
    with connection.client() as client:
        listed = client.models.list(type=kind.name if kind else None)
    if as_json:
        write_json([each.model_dump(mode="json", exclude_none=True) for each in listed])
    elif is_terminal(sys.stdout):
        _tabulate(listed)
    else:
        write("".join("\t".join(_row(each)) + "\n" for each in listed))


def _row(model: Model) -> tuple[str, str, str]:
    # No field is trusted to be one line: a line is a model.
    state = {True: "enabled", False: "disabled", None: ""}[model.enabled]
    return one_line(model.request_name), one_line(model.type or ""), state


def _tabulate(listed: list[Model]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("model", "type", "takes", "", box=None, pad_edge=False, header_style="bold")
    for model in listed:
        name, kind, state = _row(model)
        takes = one_line(", ".join(model.input_modalities or []))
        style = "dim" if state == "disabled" else ""
        # As texts: in a string, rich would read brackets as its markup.
        table.add_row(*(Text(each, style) for each in (name, kind, takes, state)))
    Console().print(table)
