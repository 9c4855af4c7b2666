"""The checks of ``prem doctor``.

A check reports only what it has seen. No check shows a secret, and the API key is sent to the gateway only.
"""

from __future__ import annotations

from collections.abc import Iterator

from prem_core.cli.checks import environment, installation, service, unverified
from prem_core.cli.checks.check import Check, Options, State

__all__ = ["Check", "Options", "State", "all_checks"]


def all_checks(options: Options) -> Iterator[Check]:
    """Run every check, one at a time as the caller iterates."""
    yield from installation.checks()
    yield from environment.checks(options)
    yield from service.checks(options)
    yield from unverified.checks(options)
