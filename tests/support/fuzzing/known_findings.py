"""Cases that still find something, each with what it finds. What is mended is taken off this list."""

from __future__ import annotations

from typing import Final

from support.fuzzing.fuzzer import Signature, Target, TooSlow, attempt, signature_of

#: By the case's path under ``cases``: why it is not mended yet.
KNOWN: Final[dict[str, str]] = {}


def known_signatures(target: Target) -> set[Signature]:
    """What the known cases of a target find, so that the fuzzer need not find it again."""
    found: set[Signature] = set()
    with target.setting():
        for path in target.cases():
            if f"{target.name}/{path.name}" in KNOWN:
                try:
                    attempt(target, path.read_bytes())
                except (Exception, TooSlow) as error:
                    found.add(signature_of(error))
    return found
