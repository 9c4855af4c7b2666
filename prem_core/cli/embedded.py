"""``prem --local``: an embedded enclave for the duration of one command.

The enclave's addresses and key are set in the environment of this process. Commands need no change for it, and the
user's own API key is sent nowhere.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any, Final

from prem_core.cli import EXIT_USAGE
from prem_core.cli.connection import LOCAL_ROOTS, GlobalOptions, read_variable
from prem_core.cli.errors import CliError

#: Options that name another service or its credentials.
_CONFLICTING: Final = ("gateway_url", "enclave_url", "enclave_public_key", "api_key_env", "keys")

#: Commands that call the service.
COMMANDS: Final = frozenset({"attest", "batch", "chat", "transcribe", "models", "doctor", "proxy"})


@contextlib.contextmanager
def embedded_enclave(command: str, parameters: Mapping[str, Any], options: GlobalOptions) -> Iterator[None]:
    """Run the block with an embedded enclave if ``--local`` is set.

    Args:
        command: The subcommand's name.
        parameters: The subcommand's parameters.
        options: The options of `prem` itself.

    Raises:
        CliError: The options cannot be combined.
        ConfigurationError: ``--upstream`` is wrong, or its key's variable is not set.
        ImportError: The extra ``enclave`` is not installed.
    """
    _check(command, parameters, options)
    if not options.local:
        yield
        return

    from prem_core.enclave import LocalEnclave

    key_variable = options.upstream_api_key_env
    with (
        LocalEnclave(
            upstream=options.upstream, upstream_api_key=read_variable(key_variable) if key_variable else None
        ) as prem,
        _environment(prem.environment),
    ):
        roots = LOCAL_ROOTS.set(prem.attestation_roots)
        try:
            yield
        finally:
            LOCAL_ROOTS.reset(roots)


def _check(command: str, parameters: Mapping[str, Any], options: GlobalOptions) -> None:
    if options.upstream_api_key_env and not options.upstream:
        raise CliError("--upstream-api-key-env needs --upstream", EXIT_USAGE)
    if options.upstream and not options.local:
        raise CliError("--upstream needs --local: prem --local --upstream URL COMMAND", EXIT_USAGE)
    if not options.local:
        return
    if command not in COMMANDS:
        raise CliError(f"--local works only with {', '.join(sorted(COMMANDS))}", EXIT_USAGE)
    for name in _CONFLICTING:
        if parameters.get(name) is not None:
            raise CliError(f"--local and --{name.replace('_', '-')} cannot be combined", EXIT_USAGE)


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
