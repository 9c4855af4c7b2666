"""The result of one check, and the options of all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from prem_core._errors import PremError
from prem_core.cli.connection import Connection


class State(StrEnum):
    """The outcome of a check."""

    OK = "ok"
    FAILED = "failed"
    NOT_VERIFIED = "not verified"
    SKIPPED = "skipped"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check.

    Attributes:
        name: What was checked.
        state: The outcome.
        detail: What was seen.
        remedy: What the user can do about it, or "".
    """

    name: str
    state: State
    detail: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Options:
    """The options of ``prem doctor``.

    Attributes:
        connection: The connection options.
        local: Whether an embedded enclave was started for this command.
        calls: Request a chat completion, and probe the model.
        audio: Request a transcription, and probe the model.
        model: The chat model to use, or None for the first enabled chat model.
        fingerprint: The expected SHA-256 of the enclave's key, if known.
        verbose: List the names of the undocumented points.
    """

    connection: Connection
    local: bool = False
    calls: bool = True
    audio: bool = False
    model: str | None = None
    fingerprint: str | None = None
    verbose: bool = False


def attempt(name: str, call: Callable[[], Any], detail: str, remedy: str) -> Check:
    """Make a check of a call: ok with `detail`, or failed with the call's error and `remedy`."""
    try:
        call()
    except PremError as error:
        return Check(name, State.FAILED, str(error), remedy)
    return Check(name, State.OK, detail)
