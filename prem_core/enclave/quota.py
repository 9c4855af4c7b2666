"""The limits of a tier: token buckets and a count of open requests.

The rule of this file: pure. Time comes from the clock that is handed in, and no request is seen here:
only that one begins, that one ends, and how many tokens or seconds of audio it used.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Literal, NamedTuple

#: The documented 429 messages.
CONCURRENCY_MESSAGE: Final = (
    "You already have an active chat stream. Please wait for it to complete or try again in a few moments."
)
RATE_MESSAGE: Final = "Rate limit exceeded. Please try again later."


class Limits(NamedTuple):
    """What one organisation may use."""

    requests: int  # at once, from a full bucket
    requests_per_second: float  # refill
    tokens_per_minute: int  # bucket and refill
    audio_seconds_per_minute: int  # bucket and refill
    concurrent: int  # open requests


#: The BASE tier as documented.
BASE: Final = Limits(
    requests=5,
    requests_per_second=1,
    tokens_per_minute=38_000,
    audio_seconds_per_minute=10,
    concurrent=5,
)

#: What a request uses up besides itself: a chat tokens, a recording seconds of audio.
Metered = Literal["tokens", "audio"]


class LimitReached(Exception):
    """A limit is reached.

    Attributes:
        retry_after: Whole seconds, at least 1, after which the same request may pass.
    """

    def __init__(self, message: str, wait: float) -> None:
        super().__init__(message)
        self.retry_after = max(1, math.ceil(wait))


class TokenBucket:
    """Fills at `rate` a second up to `capacity`; may be overdrawn, and then has to fill up again."""

    def __init__(self, capacity: float, rate: float, now: float) -> None:
        self._capacity = capacity
        self._rate = rate
        self._level = capacity
        self._filled = now

    def wait(self, amount: float, now: float) -> float:
        """Seconds until `amount` is there; 0 if it is."""
        self._level = min(self._capacity, self._level + (now - self._filled) * self._rate)
        self._filled = now
        # Whoever waited exactly as long as asked is not sent away again over a rounding error.
        missing = amount - self._level - 1e-6
        return max(0.0, missing / self._rate)

    def spend(self, amount: float) -> None:
        """Take `amount`, whether it is there or not."""
        self._level -= amount


class Tier:
    """One organisation's use of its limits.

    How many tokens or seconds of audio a request takes is known only after it: `spend_tokens` and
    `spend_audio` charge them then, and the bucket may go below zero. Until it is above again, no request
    that takes of it is admitted.

    Args:
        limits: The tier's limits.
        clock: Seconds that only grow.
    """

    def __init__(self, limits: Limits = BASE, clock: Callable[[], float] = time.monotonic) -> None:
        now = clock()
        self._clock = clock
        self._concurrent = limits.concurrent
        self._open = 0
        self._requests = TokenBucket(limits.requests, limits.requests_per_second, now)
        self._metered: dict[Metered, TokenBucket] = {
            "tokens": TokenBucket(limits.tokens_per_minute, limits.tokens_per_minute / 60, now),
            "audio": TokenBucket(limits.audio_seconds_per_minute, limits.audio_seconds_per_minute / 60, now),
        }

    @contextmanager
    def request(self, metered: Metered = "tokens") -> Iterator[None]:
        """Hold a place for one request, from its admission to its end.

        A request that is not admitted costs nothing.

        Raises:
            LimitReached: The requests, the places, or what is `metered` are used up.
        """
        if self._open >= self._concurrent:
            # Nobody knows when a stream ends; a second is the shortest wait that can be asked for.
            raise LimitReached(CONCURRENCY_MESSAGE, 1)
        now = self._clock()
        wait = max(self._requests.wait(1, now), self._metered[metered].wait(1, now))
        if wait:
            raise LimitReached(RATE_MESSAGE, wait)
        self._requests.spend(1)
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    def spend_tokens(self, tokens: int) -> None:
        """Charge what a request used, prompt and completion together."""
        self._metered["tokens"].spend(tokens)

    def spend_audio(self, seconds: float) -> None:
        """Charge the length of a recording that was answered."""
        self._metered["audio"].spend(seconds)
