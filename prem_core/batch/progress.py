"""How far a batch is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Clock = Callable[[], float]

#: Why a run ended before all requests were sent.
Stop = Literal["interrupted", "limit", "max_cost"]


@dataclass(slots=True)
class Progress:
    """The counts of a run, updated while it runs. Tokens and cost are those of this run.

    Attributes:
        total: Requests in the input; None if they were not counted.
        skipped: Requests that earlier runs answered.
        failed_before: Requests that the service refused in an earlier run, and would refuse again.
        done: Requests answered.
        failed: Requests and invalid lines with an error.
        truncated: Answers, among those done, that reached their token limit.
        in_flight: Requests that are being answered.
        prompt_tokens: Tokens of the prompts.
        completion_tokens: Tokens of the answers.
        cost: The price of these tokens, in the currency of the models list; None if no price is known.
        unpriced: Answers that `cost` leaves out, because their model has no known price.
        stopped: Why the run ended early; None if it did not.
    """

    total: int | None = None
    skipped: int = 0
    failed_before: int = 0
    done: int = 0
    failed: int = 0
    truncated: int = 0
    in_flight: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    unpriced: int = 0
    stopped: Stop | None = None
    clock: Clock = field(default=time.monotonic, repr=False, compare=False)
    started: float = field(default=0.0, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.started = self.clock()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return self.clock() - self.started

    @property
    def rate(self) -> float:
        """Requests that ended per second, on average."""
        return (self.done + self.failed) / max(self.seconds, 1e-9)

    @property
    def remaining(self) -> int | None:
        """Requests that have not ended."""
        return (
            None
            if self.total is None
            else max(0, self.total - self.skipped - self.failed_before - self.done - self.failed)
        )

    @property
    def eta(self) -> float | None:
        """Seconds until the end at this rate; None if that cannot be estimated."""
        remaining = self.remaining
        return None if remaining is None or not self.done else remaining / self.rate
