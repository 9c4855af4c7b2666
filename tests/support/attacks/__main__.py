"""Print what each attack achieves in each mode."""

from __future__ import annotations

import warnings

from prem_core import NonceReuseWarning
from support.attacks.programs import ATTACKS, run
from support.attacks.world import MODES, Mode, Result, World


def line(attack: str, mode: Mode, result: Result) -> str:
    """One result as a line of text."""
    figures = ", ".join(f"{read} of {of} ({name})" for name, (read, of) in result.read.items())
    error = "" if result.error is None else type(result.error).__name__
    return f"{mode!s:42}{attack:28}{result!s:48}{figures}{error}"


def main() -> None:
    """Run every attack in every mode."""
    warnings.simplefilter("ignore", NonceReuseWarning)
    for mode in MODES:
        with World(mode.whole_replies) as world:
            for attack in ATTACKS:
                print(line(attack, mode, run(attack, mode, world)))


if __name__ == "__main__":
    main()
