"""``prem enclave``: run the embedded enclave as a server."""

from __future__ import annotations

import shlex
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from prem_core._config import VARIABLES
from prem_core.cli.connection import read_variable
from prem_core.cli.serving import serve_until_stopped

if TYPE_CHECKING:
    from prem_core.enclave import LocalEnclave


class WholeReplies(StrEnum):
    """The form of answers that are not requested as a stream."""

    ENVELOPE = "envelope"
    STREAM = "stream"


class Tier(StrEnum):
    """The rate limits to simulate."""

    BASE = "base"
    OFF = "off"


def enclave(
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="PORT", help="Port of the gateway; 0 picks a free port.")
    ] = 3100,
    enclave_port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="PORT", help="Port of the enclave; 0 picks a free port.")
    ] = 3101,
    upstream: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="An OpenAI-compatible server (Ollama, vLLM, llama.cpp) that answers instead of the default engine.",
        ),
    ] = None,
    upstream_api_key_env: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Read the API key of --upstream from this environment variable."),
    ] = None,
    tier: Annotated[
        Tier, typer.Option(metavar="TIER", help="Rate limits to simulate: base (Prem's BASE tier) or off.")
    ] = Tier.OFF,
    whole_replies: Annotated[
        WholeReplies,
        typer.Option(
            metavar="FORM",
            help="Form of answers that are not requested as a stream: envelope (whole, under a nonce of its own) "
            "or stream (under the request's nonce). Which of them Prem's service sends is not documented.",
        ),
    ] = WholeReplies.ENVELOPE,
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Model to offer instead of the default ones. Can be repeated."),
    ] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Accept only the API key stored in this environment variable. Default: a new random key.",
        ),
    ] = None,
) -> None:
    """Run a gateway and an enclave on this machine, for development.

    They accept connections from this machine only and store nothing. The command prints the settings to paste in
    another terminal. Ctrl-C stops it (exit code 0).

    \b
    Examples:
      prem enclave
      prem enclave --upstream http://localhost:11434 --tier base
      prem enclave --whole-replies stream
    """
    from prem_core.enclave import LocalEnclave

    prem = LocalEnclave(
        api_key=read_variable(api_key_env) if api_key_env else None,
        port=port,
        enclave_port=enclave_port,
        upstream=upstream,
        upstream_api_key=read_variable(upstream_api_key_env) if upstream_api_key_env else None,
        tier=tier.value,
        whole_replies=whole_replies.value,
        models=model or None,
    )
    serve_until_stopped(prem, lambda: _print_settings(prem))


def _print_settings(prem: LocalEnclave) -> None:
    typer.echo(f"gateway      {prem.gateway_url}")
    typer.echo(f"enclave      {prem.enclave_url}")
    typer.echo(f"API key      {prem.api_key}")
    typer.echo(f"enclave key  sha256:{prem.public_key.fingerprint()}")
    typer.echo("\nPaste these lines in another terminal to use this enclave there:\n")
    for setting, value in prem.client_options.items():
        typer.echo(f"export {VARIABLES[setting][0]}={shlex.quote(value)}")
    typer.echo("\nPress Ctrl-C here to stop.")
