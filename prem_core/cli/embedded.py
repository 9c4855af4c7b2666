"""``prem --local``: an embedded enclave for the time of one call.

The environment decides where a command goes, so it is the environment that is changed: every command then asks the
embedded enclave without knowing, and none can send a key of the user's anywhere.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any, Final

from prem_core._config import VARIABLES
from prem_core.cli import EXIT_USAGE
from prem_core.cli.errors import CliError

#: Parameters of commands that say where to go, or how to authenticate there.
_ELSEWHERE: Final = ("gateway_url", "enclave_url", "enclave_public_key", "api_key_env", "keys")

#: Commands that call the service. The others have nothing to do with an enclave that is gone when they end.
COMMANDS: Final = frozenset({"chat", "transcribe", "models", "doctor", "proxy"})


@contextlib.contextmanager
def embedded(command: str, given: Mapping[str, Any]) -> Iterator[None]:
    """Start an embedded enclave and have the environment point to it, until the block ends.

    Args:
        command: The subcommand's name.
        given: Its parameters, by name.

    Raises:
        CliError: The command has no use for it, or an option names another place.
        ImportError: The extra ``enclave`` is not installed.
    """
    if command not in COMMANDS:
        raise CliError(f"--local goes with {', '.join(sorted(COMMANDS))} only", EXIT_USAGE)
    for name in _ELSEWHERE:
        if given.get(name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise CliError(f"--local and {option}: give one of them", EXIT_USAGE)

    from prem_core.enclave import LocalEnclave

    with LocalEnclave() as prem:
        direct = _direct(prem.gateway_url.partition("//")[2].partition(":")[0])
        chosen = {VARIABLES[name][0]: value for name, value in prem.client_options.items()}
        with _environment({**chosen, **direct}):
            yield


def _direct(host: str) -> dict[str, str]:
    """Variables that keep an HTTP proxy of the environment out of this machine's own business."""
    # The lower-case one wins where both are set, so both are.
    now = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    either = ",".join(filter(None, (now, host)))
    return {"no_proxy": either, "NO_PROXY": either}


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
