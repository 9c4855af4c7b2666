"""The `prem` command: one module of this package per subcommand.

To add one, write a module with a function of the same name, its typer command, or with a `Typer` of that name
for a group of them (whose commands take ``cls=Command``), and name it in `COMMANDS`. A module imports what only it
needs inside the function, so that no command needs another's extras. What every command has is in one place each:
how it ends (`_ending`), ``--local`` and ``--debug`` (`_command`), and the options of those that call the service
(`_connection`).

Exit status of every command:

====  ===================================================================================================
0     done
1     it ran and failed: the service, the network, a file of several, a check
2     it cannot run as it was called, or as it is installed; nothing was sent
3     `prem chat` only: the answer stopped at a limit, such as ``--max-tokens``; what there is was printed
130   interrupted (Ctrl-C)
141   the reader of standard output has left, as ``head`` does
====  ===================================================================================================
"""

from __future__ import annotations

import sys
from typing import Final

#: The subcommands, in the order of the help.
COMMANDS: Final = ("chat", "transcribe", "models", "doctor", "proxy", "enclave", "keys")

EXIT_FAILURE: Final = 1
EXIT_USAGE: Final = 2
EXIT_TRUNCATED: Final = 3
EXIT_INTERRUPTED: Final = 130
EXIT_BROKEN_PIPE: Final = 141


def main() -> None:
    """Run the command line in `sys.argv`; the entry point ``prem``."""
    try:
        from prem_core.cli.app import application
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] == "prem_core":
            raise
        sys.stderr.write(f'prem: the command line needs {missing.name}: pip install "prem-encrypted[cli]"\n')
        sys.exit(EXIT_USAGE)
    application()()
