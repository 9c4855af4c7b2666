"""``prem proxy``: a local OpenAI-compatible server that encrypts requests and decrypts responses."""

from __future__ import annotations

import logging
import re
import time
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from prem_core._config import AUDIO_TIMEOUT, DEFAULT_MAX_CONCURRENCY
from prem_core._errors import ConfigurationError
from prem_core.cli import EXIT_USAGE
from prem_core.cli.connection import (
    LOCAL_ROOTS,
    Connection,
    global_options,
    parse_enclave_key,
    with_connection_options,
)
from prem_core.cli.errors import exit_with
from prem_core.cli.output import one_line, write_stderr
from prem_core.cli.serving import serve_until_stopped

if TYPE_CHECKING:
    from prem_core.proxy import RequestRecord

#: The port of Prem's own proxy, so that existing configurations keep working.
PORT: Final = 3000

#: Seconds to wait at the start for the enclave's key, whose fingerprint is printed.
_KEY_TIMEOUT: Final = 5.0

_UNITS: Final = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}


@with_connection_options(
    api_key_env_help="With --api-key-from-env: read the API key from this environment variable instead of PREM_API_KEY."
)
def proxy(
    ctx: typer.Context,
    connection: Connection,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="PORT", help="Port to listen on; 0 picks a free port.")
    ] = PORT,
    api_key_from_env: Annotated[
        bool,
        typer.Option(
            "--api-key-from-env",
            help="Use the API key in PREM_API_KEY for all requests, whatever key a caller sends. Anyone who can reach "
            "the port can then use your key. Default: each caller's own key.",
        ),
    ] = False,
    compat: Annotated[
        Literal["openai", "anthropic", "both"],
        typer.Option(
            help="Serve the API of OpenAI, of Anthropic, or both. Both are under /v1, and under /openai/v1 and "
            "/anthropic/v1.",
        ),
    ] = "both",
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Reject every parameter that Prem does not support. Default: remove those that do not change the "
            "answer, and list them in the response header x-prem-dropped.",
        ),
    ] = False,
    store_responses: Annotated[
        bool,
        typer.Option(
            "--store-responses",
            help="Keep responses of OpenAI's Responses API in memory, with their conversations, for clients that refer "
            "to earlier responses by id. Default: keep nothing.",
        ),
    ] = False,
    max_concurrency: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Maximum concurrent requests per API key; others wait. 0 means unlimited.",
        ),
    ] = DEFAULT_MAX_CONCURRENCY,
    audio_timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="Seconds to wait for a transcription.")
    ] = AUDIO_TIMEOUT,
    body_limit: Annotated[
        str, typer.Option(metavar="SIZE", help="Maximum request size, for example 500kb, 32mb or 1gb.")
    ] = "32mb",
    allow_remote: Annotated[
        bool,
        typer.Option(
            "--allow-remote",
            help="Allow an address that other machines can reach. Prompts, answers and API keys then travel to the "
            "proxy unencrypted, and anyone who reaches it can use it.",
        ),
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Additional host name that callers may use, such as host.docker.internal. Can be repeated.",
        ),
    ] = None,
    log: Annotated[
        bool,
        typer.Option(
            "--log",
            help="Print a line for each request: time, route, model, status, duration and tokens, but no content.",
        ),
    ] = False,
    env: Annotated[
        Literal["openai", "anthropic"] | None,
        typer.Option(
            help="Print the environment variables for clients of OpenAI or Anthropic, and exit. For a shell: "
            'eval "$(prem proxy --env openai)"',
        ),
    ] = None,
    no_page: Annotated[
        bool,
        typer.Option(
            "--no-page",
            help="Do not serve the web page that shows the requests live. Default: serve it at a URL with a secret "
            "token, which is printed at the start.",
        ),
    ] = False,
) -> None:
    """Run a local server with the APIs of OpenAI and Anthropic, for any client.

    Set the base URL of an OpenAI client to http://127.0.0.1:3000/v1. Supported are chat completions (with streaming,
    tools, structured output and reasoning), text completions, transcriptions, translations and the models list. Ctrl-C
    stops the proxy (exit code 0).

    Prompts and answers are encrypted between the proxy and the enclave, not between a caller and the proxy. The gateway
    can read and replace streamed answers. With --nonce-reuse error no stream is requested: a caller that asks for one
    gets the answer whole, and comments while it waits. The header x-prem-protection states how an answer was protected.

    The proxy retries failed requests itself and tells callers not to retry; --max-retries 0 leaves retries to callers.

    The proxy cannot see what a client sends elsewhere. The OpenAI Agents SDK sends prompts and its API key to OpenAI
    unless OPENAI_AGENTS_DISABLE_TRACING=1 is set. LangChain sends prompts to LangSmith where LANGSMITH_TRACING=true is
    set, and CrewAI to CrewAI where CREWAI_TRACING_ENABLED=true is set.

    \b
    Examples:
      prem proxy
      prem --local proxy --port 8080 --log
      prem proxy --env openai
    """
    if env is not None:
        typer.echo(_exports(env, host, port, own_key=not api_key_from_env))
        return
    from prem_core.proxy import LocalProxy, RequestLog

    logging.basicConfig(format="prem proxy: %(message)s")
    # The embedded enclave accepts one key, which no caller has.
    local = global_options(ctx).local
    if connection.api_key_env and not api_key_from_env:
        raise ConfigurationError(
            "--api-key-env needs --api-key-from-env: by default callers send their own keys"
        )
    with exit_with(EXIT_USAGE):
        served = LocalProxy(
            host=host,
            port=port,
            api_key=connection.api_key() if api_key_from_env or local else None,
            gateway_url=connection.gateway_url,
            enclave_url=connection.enclave_url,
            enclave_public_key=parse_enclave_key(connection.enclave_public_key),
            encryption_keys=connection.encryption_keys(),
            nonce_reuse=connection.nonce_reuse,
            request_masking=connection.masking,
            attestation=connection.attestation,
            attestation_roots=LOCAL_ROOTS.get(),
            timeout=connection.timeout,
            audio_timeout=audio_timeout,
            max_retries=connection.max_retries,
            retry_after_send=connection.retry_after_send,
            max_concurrency=max_concurrency or None,
            body_limit=_size(body_limit),
            compat=compat,
            strict=strict,
            store_responses=store_responses,
            allow_remote=allow_remote,
            allow_hosts=allow_host or (),
            page=not no_page,
            log=RequestLog(on_end=_print_record) if log else None,
            allow_insecure=connection.allow_insecure,
        )

    def announce() -> None:
        if allow_remote:
            write_stderr(f"prem proxy: prompts, answers and API keys travel to {host} unencrypted")
        keys = "every caller uses your API key" if api_key_from_env else "callers send their own API keys"
        lines = [f"{served.base_url} ({'embedded enclave' if local else keys})"]
        if not no_page:
            lines.append(f"{served.page_url} (a page with the requests; the URL is secret)")
        header = "" if api_key_from_env or local else ' -H "Authorization: Bearer $PREM_API_KEY"'
        lines.append(f"try: curl {served.base_url}/models{header}")
        lines.append(f"gateway: {served.gateway_url}")
        for line in lines:
            typer.echo(f"prem proxy: {line}")
        # Last, as it may wait for the enclave.
        typer.echo(f"prem proxy: enclave key: {_key_of(connection)}")
        typer.echo("prem proxy: Ctrl-C stops it")

    serve_until_stopped(served, announce)


def _print_record(record: RequestRecord) -> None:
    """Print a request that has ended, on one line."""
    parts = [
        time.strftime("%H:%M:%S", time.localtime(record.started_at)),
        record.route,
        record.model or "-",
        str(record.status or "-"),
        record.state,
        f"{record.duration or 0:.2f} s",
    ]
    if record.prompt_tokens is not None:
        parts.append(f"{record.prompt_tokens} + {record.completion_tokens} tokens")
    if record.attempts > 1:
        parts.append(f"{record.attempts} attempts")
    parts += filter(None, (record.error, record.support_id))
    write_stderr(" ".join(parts))


def _key_of(connection: Connection) -> str:
    """The fingerprint of the enclave's key, and where it comes from."""
    from prem_core import PremError, generate_encryption_keys

    if connection.keys is not None:
        return "that of --keys"
    pinned = parse_enclave_key(connection.enclave_public_key)
    try:
        made = generate_encryption_keys(
            enclave_url=connection.enclave_url,
            enclave_public_key=pinned,
            timeout=_KEY_TIMEOUT,
            max_retries=0,
            allow_insecure=connection.allow_insecure,
        )
    except PremError as error:
        return f"not known yet ({one_line(str(error))})"
    source = "fetched" if pinned is None else "pinned"
    proof = (
        "attestation is verified before the first request"
        if connection.verifies_attestation()
        else "not attested"
    )
    return f"sha256:{made.enclave_fingerprint} ({source}, {proof})"


def _exports(env: str, host: str, port: int, *, own_key: bool) -> str:
    """The variables that clients read, as shell commands. The API key is named, not printed."""
    if not port:
        raise ConfigurationError("--env needs a --port other than 0")
    address = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host  # noqa: S104
    root = f"http://{address}:{port}"
    name = env.upper()
    # Anthropic's clients add /v1 themselves.
    url = root if env == "anthropic" else f"{root}/v1"
    key = '"$PREM_API_KEY"' if own_key else "unused"
    return f"export {name}_BASE_URL={url}\nexport {name}_API_KEY={key}"


def _size(text: str) -> int:
    """Parse a size with a unit, such as ``32mb``, into bytes."""
    found = re.fullmatch(r"(\d+)\s*([kmg]?)(?:i?b)?", text.strip().lower())
    if found is None or not int(found[1]):
        raise ConfigurationError("--body-limit must be a size such as 500kb, 32mb or 1gb")
    return int(found[1]) * _UNITS[found[2]]
