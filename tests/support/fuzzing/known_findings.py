"""Cases that are still findings. A fixed case is removed from this list."""

from __future__ import annotations

from typing import Final

from support.fuzzing.fuzzer import Signature, Target, TooSlow, attempt, signature_of

#: The reason why a case is not fixed yet, by its path under ``cases``.
KNOWN: Final[dict[str, str]] = {}


def known_signatures(target: Target) -> set[Signature]:
    """The signatures of the known cases of a target."""
    found: set[Signature] = set()
    with target.setting():
        for path in target.cases():
            if f"{target.name}/{path.name}" in KNOWN:
                try:
                    attempt(target, path.read_bytes())
                except (Exception, TooSlow) as error:
                    found.add(signature_of(error))
    return found
