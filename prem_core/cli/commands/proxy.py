"""``prem proxy``: an OpenAI-compatible server on this machine that seals what it is asked and opens what comes back."""

from __future__ import annotations

import re
import signal
import threading
from typing import Annotated, Final

import typer

from prem_core._config import DEFAULT_MAX_CONCURRENCY
from prem_core._errors import ConfigurationError
from prem_core.cli import EXIT_USAGE
from prem_core.cli.command import Call
from prem_core.cli.connection import Connection, with_connection_options
from prem_core.cli.errors import exit_with
from prem_core.cli.output import write_stderr

#: Of the service's own proxy too.
PORT: Final = 3000

_UNITS: Final = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}


@with_connection_options()
def proxy(
    ctx: typer.Context,
    connection: Connection,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 for a free one.")] = PORT,
    api_key_from_env: Annotated[
        bool,
        typer.Option(
            "--api-key-from-env",
            help="Ask with the key in PREM_API_KEY for every caller, whatever key it sends: whoever reaches the port "
            "then uses your key. By default every caller's own key is used.",
        ),
    ] = False,
    drop_unsupported: Annotated[
        bool,
        typer.Option(
            "--drop-unsupported",
            help="Leave out parameters that Prem's published schema does not have, and name them in the header "
            "x-prem-dropped. By default they are refused.",
        ),
    ] = False,
    max_concurrency: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Requests of one key on their way at once; others wait. 0 for any number.",
        ),
    ] = DEFAULT_MAX_CONCURRENCY,
    audio_timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long to wait for the answer to a recording.")
    ] = 300.0,
    body_limit: Annotated[
        str, typer.Option(metavar="SIZE", help="The largest request, such as 500kb, 32mb or 1gb.")
    ] = "32mb",
    allow_remote: Annotated[
        bool,
        typer.Option(
            "--allow-remote",
            help="Listen on an address that other machines reach. Prompts, replies and keys travel to the proxy "
            "unencrypted, and whoever reaches it can use it.",
        ),
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A further name by which callers may ask, such as host.docker.internal. May be repeated.",
        ),
    ] = None,
) -> None:
    """Serve OpenAI's API on this machine, encrypted to Prem.

    Point any OpenAI client's base URL to http://127.0.0.1:3000/v1. Chat completions (streamed and whole, tools,
    structured output, reasoning), transcriptions, translations and the models list. Stop with Ctrl-C, which is no error
    here. Where the proxy has tried again by itself, it tells callers not to; --max-retries 0 leaves that to them.

    \b
    Examples:
      prem proxy
      prem --local proxy --port 8080
      OPENAI_BASE_URL=http://127.0.0.1:3000/v1 OPENAI_API_KEY=$PREM_API_KEY python app.py
    """
    from prem_core.proxy import LocalProxy

    # An embedded enclave knows one key, which no caller has.
    local = (ctx.find_object(Call) or Call()).local
    if connection.api_key_env and not api_key_from_env:
        raise ConfigurationError(
            "--api-key-env goes with --api-key-from-env: by default callers send their keys"
        )
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with exit_with(EXIT_USAGE):
        served = LocalProxy(
            host=host,
            port=port,
            api_key=connection.api_key() if api_key_from_env or local else None,
            gateway_url=connection.gateway_url,
            enclave_url=connection.enclave_url,
            enclave_public_key=connection.enclave_public_key,
            encryption_keys=connection.encryption_keys(),
            timeout=connection.timeout,
            audio_timeout=audio_timeout,
            max_retries=connection.max_retries,
            max_concurrency=max_concurrency or None,
            body_limit=_size(body_limit),
            drop_unsupported=drop_unsupported,
            allow_remote=allow_remote,
            allow_hosts=allow_host or (),
            allow_insecure=connection.allow_insecure,
        )
    try:
        served.start()
    except OSError as error:  # a port
        raise ConfigurationError(str(error)) from error
    try:
        if allow_remote:
            write_stderr(
                f"prem proxy: prompts, replies and keys travel unencrypted between {host} and those who ask"
            )
        whose = (
            "whoever reaches it uses your API key" if api_key_from_env else "callers send their own API keys"
        )
        typer.echo(f"prem proxy: {served.base_url} ({'an embedded enclave' if local else whose})")
        # With a timeout: on Windows a wait without one is not interrupted by Ctrl-C.
        while not stopped.wait(0.5):
            pass
    finally:
        served.stop()


def _size(text: str) -> int:
    """Bytes, from a figure with a unit: ``32mb``."""
    found = re.fullmatch(r"(\d+)\s*([kmg]?)(?:i?b)?", text.strip().lower())
    if found is None or not int(found[1]):
        raise ConfigurationError("--body-limit must be a size such as 500kb, 32mb or 1gb")
    return int(found[1]) * _UNITS[found[2]]
