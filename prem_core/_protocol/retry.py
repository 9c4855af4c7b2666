"""Whether to retry, and after which delay: plain functions of values."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final

from prem_core._errors import APIError, APIStatusError

#: The first and the longest delay, in seconds. They equal the OpenAI SDK's, because its users expect the same delays.
FIRST_DELAY: Final = 0.5
MAX_DELAY: Final = 8.0

#: The longest Retry-After to wait for, in seconds. After a longer one the error is raised, with `retry_after` set.
MAX_RETRY_AFTER: Final = 60.0

#: How long a call waits for rate limits to end, in seconds from its first one. Without `total_timeout` it would wait
#: forever for a quota of a day whose 429 has no Retry-After. The value is the service's own limit for a request.
MAX_RATE_LIMITED: Final = 600.0

#: The message of every call that exceeded its `total_timeout`.
TOTAL_TIMEOUT_MESSAGE: Final = "the call took longer than total_timeout"


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often to retry a request, and after which delays.

    Args:
        max_retries: Retries after failures; 3 means at most 4 requests. Retries after a rate limit are not counted,
            except that 0 means no retry at all.
        rng: Returns a random number in [0, 1) for the jitter.
    """

    max_retries: int = 2
    rng: Callable[[], float] = random.random

    def delay(self, retries: int, error: APIError, limited_for: float = 0.0) -> float | None:
        """Seconds to wait before retry number ``retries + 1``; None to raise `error` instead.

        The delay doubles from `FIRST_DELAY` to `MAX_DELAY`. Jitter shortens it by up to a half, so that callers that
        failed at the same time do not retry at the same time. Jitter lengthens a Retry-After and never shortens it.

        A rate limit does not use up `max_retries`, because other processes may cause it.

        Args:
            retries: Earlier retries of the call: after a rate limit those after rate limits, else the others.
            error: How the attempt failed.
            limited_for: Seconds since the first rate limit of the call.
        """
        if not error.is_retryable or not self.max_retries:
            return None
        if limited_for > MAX_RATE_LIMITED if is_rate_limit(error) else retries >= self.max_retries:
            return None
        backoff = min(FIRST_DELAY * 2 ** min(retries, 10), MAX_DELAY) * (1 - self.rng() / 2)
        asked = error.retry_after if isinstance(error, APIStatusError) else None
        if asked is None:
            return float(backoff)
        if asked > MAX_RETRY_AFTER:
            return None
        return float(asked + backoff / 4)


class Retries:
    """Counts the retries of one call.

    Args:
        policy: Decides whether to retry.
        clock: A monotonic clock, in seconds.
    """

    __slots__ = ("_clock", "_failures", "_limited_since", "_policy", "_rate_limits")

    def __init__(self, policy: RetryPolicy, clock: Callable[[], float]) -> None:
        self._policy = policy
        self._clock = clock
        self._failures = self._rate_limits = 0
        self._limited_since: float | None = None

    def delay(self, error: APIError) -> float | None:
        """Seconds to wait before the next attempt, which is then counted; None to raise `error` instead."""
        if not is_rate_limit(error):
            self._failures += 1
            return self._policy.delay(self._failures - 1, error)
        now = self._clock()
        if self._limited_since is None:
            self._limited_since = now
        self._rate_limits += 1
        return self._policy.delay(self._rate_limits - 1, error, now - self._limited_since)


def is_rate_limit(error: APIError) -> bool:
    """Whether the service asks to send the request later: a 429, or a 503 with a Retry-After."""
    if not isinstance(error, APIStatusError):
        return False
    return error.status_code == 429 or (error.status_code == 503 and error.retry_after is not None)


def shared_backoff(error: APIError, delay: float | None) -> float | None:
    """Seconds for which no caller should send a request after one of them received `error`.

    Args:
        error: The error that the caller received.
        delay: The caller's own delay from `RetryPolicy.delay`.

    Returns:
        None if the error may concern only that caller, or if Retry-After exceeds `MAX_RETRY_AFTER`: the other callers
        then receive the error, too.
    """
    if not isinstance(error, APIStatusError) or error.status_code not in (429, 503):
        return None
    retry_after = error.retry_after
    if retry_after is None:
        if error.status_code != 429:
            return None  # the failure may concern only this request
        # A rate limit concerns every caller, even without a Retry-After.
        retry_after = FIRST_DELAY
    if retry_after > MAX_RETRY_AFTER:
        return None
    return retry_after if delay is None else delay


def rate_limit_interval(error: APIError) -> float | None:
    """The interval between requests after a 429, in seconds: its Retry-After. None for any other error."""
    if not isinstance(error, APIStatusError) or error.status_code != 429:
        return None
    return FIRST_DELAY if error.retry_after is None else error.retry_after


def parse_retry_after(value: str | None, now: float) -> float | None:
    """Seconds from a Retry-After header (RFC 9110, 10.2.3): a number, or an HTTP date.

    Args:
        value: The header, or None.
        now: When the response arrived, in seconds since the epoch.

    Returns:
        Seconds from now, at least 0; None if the header is absent or invalid.
    """
    if value is None:
        return None
    value = value.strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
            # A date without a time zone is in UTC (RFC 9110, 5.6.7).
            seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now
        except (ValueError, TypeError, OverflowError):
            return None
    # Neither NaN nor infinity is a usable delay: NaN counts as invalid, infinity is capped.
    return min(max(seconds, 0.0), 1e9) if seconds == seconds else None
