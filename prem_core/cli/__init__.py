"""The `prem` command. Each subcommand is a module in `commands/`.

To add a subcommand, write a module in `commands/` with a function of the same name (a typer command) or, for a group,
a `Typer` of that name, and add the name to `COMMANDS`. Import what only this subcommand needs inside the function, so
that no subcommand needs another's extras. `app` has what all of them share: help, ``--local``, ``--debug`` and exit
codes; `connection` has the options of those that call the service.

Exit codes:

====  ===================================================================================================
0     success
1     failure: the service, the network, one of several files, or a check
2     usage error: an option, a setting or a missing package; nothing was sent
3     truncated answer (`prem chat` only), for example by ``--max-tokens``; what arrived was written
130   interrupted (Ctrl-C)
141   broken pipe: the program that reads standard output has ended, as ``head`` does
====  ===================================================================================================
"""

from __future__ import annotations

import sys
from typing import Final

#: The subcommands, in the order of the help.
COMMANDS: Final = ("chat", "transcribe", "batch", "models", "attest", "doctor", "proxy", "enclave", "keys")

DEFAULT_CHAT_MODEL: Final = "openai/gpt-oss-120b"

EXIT_FAILURE: Final = 1
EXIT_USAGE: Final = 2
EXIT_TRUNCATED: Final = 3
EXIT_INTERRUPTED: Final = 130
EXIT_BROKEN_PIPE: Final = 141


def main() -> None:
    """Run the command line in `sys.argv`: the entry point of ``prem``."""
    try:
        from prem_core.cli.app import application
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] == "prem_core":
            raise
        sys.stderr.write(f'prem: the command line needs {missing.name}: pip install "prem-encrypted[cli]"\n')
        sys.exit(EXIT_USAGE)
    application()()
