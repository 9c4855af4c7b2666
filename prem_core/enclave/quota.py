"""The rate limits of a tier: token buckets, and a count of open requests. The clock is an argument."""

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


class QuotaLimits(NamedTuple):
    """The limits of one organisation."""

    requests: int  # the size of the bucket
    requests_per_second: float  # its refill
    tokens_per_minute: int  # the size of the bucket, and its refill
    audio_seconds_per_minute: int  # the size of the bucket, and its refill
    concurrent: int  # open requests


#: The BASE tier as documented.
BASE: Final = QuotaLimits(
    requests=5,
    requests_per_second=1,
    tokens_per_minute=38_000,
    audio_seconds_per_minute=10,
    concurrent=5,
)

#: What a request is charged in addition to itself: a chat tokens, a transcription seconds of audio.
Metered = Literal["tokens", "audio"]


class LimitReached(Exception):
    """A limit is reached.

    Attributes:
        retry_after: Whole seconds, at least 1, after which the same request can be admitted.
    """

    def __init__(self, message: str, wait: float) -> None:
        super().__init__(message)
        self.retry_after = max(1, math.ceil(wait))


class TokenBucket:
    """A bucket that refills at `rate` per second up to `capacity`. It can be overdrawn, and then has to refill."""

    def __init__(self, capacity: float, rate: float, now: float) -> None:
        self._capacity = capacity
        self._rate = rate
        self._level = capacity
        self._filled = now

    def wait(self, amount: float, now: float) -> float:
        """Seconds until `amount` is available; 0 if it is."""
        self._level = min(self._capacity, self._level + (now - self._filled) * self._rate)
        self._filled = now
        # A request that waited exactly as long as Retry-After asked is not rejected over a rounding error.
        missing = amount - self._level - 1e-6
        return max(0.0, missing / self._rate)

    def spend(self, amount: float) -> None:
        """Take `amount`, whether it is available or not."""
        self._level -= amount


class Tier:
    """One organisation's limits, and what it has used of them.

    The tokens or seconds of audio of a request are known only when it ends: `spend_tokens` and `spend_audio` charge
    them then, and the bucket may go below zero. Until it has refilled, no request that it is charged for is admitted.

    Args:
        limits: The limits.
        clock: Returns monotonic seconds.
    """

    def __init__(self, limits: QuotaLimits = BASE, clock: Callable[[], float] = time.monotonic) -> None:
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
        """Admit one request, and count it as open until the block ends.

        A request that is not admitted costs nothing.

        Raises:
            LimitReached: A limit on requests, open requests, or what is `metered` is reached.
        """
        if self._open >= self._concurrent:
            # The end of a stream cannot be predicted. One second is the shortest Retry-After.
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
        """Charge the tokens of a request, prompt and completion together."""
        self._metered["tokens"].spend(tokens)

    def spend_audio(self, seconds: float) -> None:
        """Charge the length of a transcribed recording."""
        self._metered["audio"].spend(seconds)
