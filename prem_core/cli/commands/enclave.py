"""``prem enclave``: the embedded enclave as a process of its own."""

from __future__ import annotations

import os
import shlex
import signal
import threading
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from prem_core._errors import ConfigurationError

if TYPE_CHECKING:
    from prem_core.enclave import LocalEnclave


class Tier(StrEnum):
    """The limits that can be simulated."""

    BASE = "base"
    OFF = "off"


def enclave(
    port: Annotated[int, typer.Option(min=0, max=65535, help="The gateway's port; 0 for a free one.")] = 3100,
    enclave_port: Annotated[
        int, typer.Option(min=0, max=65535, help="The enclave's port; 0 for a free one.")
    ] = 3101,
    upstream: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="An OpenAI-compatible server (Ollama, vLLM, llama.cpp) that answers. "
            "By default the built-in extractive engine does.",
        ),
    ] = None,
    upstream_api_key_env: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The environment variable that holds the upstream server's key."),
    ] = None,
    tier: Annotated[
        Tier, typer.Option(help="Limit requests as the BASE tier does, or not at all.")
    ] = Tier.OFF,
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A model to offer, instead of the usual ones. May be repeated."),
    ] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The environment variable that holds the key to accept. By default a fresh key is made.",
        ),
    ] = None,
) -> None:
    """Run a gateway and an enclave here, for development.

    They listen on this machine's loopback only, and keep nothing. Stop with Ctrl-C, which is no error here.

    \b
    Examples:
      prem enclave
      prem enclave --upstream http://localhost:11434 --tier base
    """
    from prem_core.enclave import LocalEnclave
    from prem_core.enclave.local import DEFAULT_MODELS

    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    try:
        prem = LocalEnclave(
            api_key=_from_environment(api_key_env),
            port=port,
            enclave_port=enclave_port,
            upstream=upstream,
            upstream_api_key=_from_environment(upstream_api_key_env),
            tier=tier.value,
            models=model or DEFAULT_MODELS,
        ).start()
    except OSError as error:  # a port
        raise ConfigurationError(str(error)) from error
    try:
        _show(prem)
        # With a timeout: on Windows a wait without one is not interrupted by Ctrl-C.
        while not stopped.wait(0.5):
            pass
    finally:
        prem.stop()


def _show(prem: LocalEnclave) -> None:
    typer.echo(f"proxy        {prem.gateway_url}")
    typer.echo(f"enclave      {prem.enclave_url}")
    typer.echo(f"API key      {prem.api_key}")
    typer.echo(f"enclave key  sha256:{prem.public_key.fingerprint()}")
    typer.echo()
    for name, value in (
        ("PREM_API_KEY", prem.api_key),
        ("PREM_GATEWAY_URL", prem.gateway_url),
        ("PREM_ENCLAVE_URL", prem.enclave_url),
    ):
        typer.echo(f"export {name}={shlex.quote(value)}")


def _from_environment(name: str | None) -> str | None:
    """The variable's value, or None where no variable was named."""
    if name is None:
        return None
    value = os.environ.get(name)
    if not value:
        raise ConfigurationError(f"the environment variable {name} is not set")
    return value
