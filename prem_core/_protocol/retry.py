"""Whether to retry, and after which delay: plain functions of values."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final

from prem_core._errors import APIError, APIStatusError

#: Seconds: the first and the longest delay. They are the OpenAI SDK's, whose users expect the same.
FIRST_DELAY: Final = 0.5
MAX_DELAY: Final = 8.0

#: Seconds: a longer Retry-After is not slept through. The error is raised, with `retry_after` set.
MAX_RETRY_AFTER: Final = 60.0

#: The message of every call that exceeded its `total_timeout`.
TOTAL_TIMEOUT_MESSAGE: Final = "the call took longer than total_timeout"


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often to retry a request, and after which delays.

    Args:
        max_retries: Retries after the first attempt; 3 means at most 4 requests.
        rng: Gives a number in [0, 1) for the jitter.
    """

    max_retries: int = 2
    rng: Callable[[], float] = random.random

    def delay(self, retries: int, error: APIError) -> float | None:
        """Seconds to wait before retry number ``retries + 1``; None to raise `error` instead.

        The delay doubles from `FIRST_DELAY` to `MAX_DELAY` and is shortened at random by up to a half, so that callers
        that failed together do not return together. Jitter only ever lengthens a Retry-After.
        """
        if retries >= self.max_retries or not error.is_retryable:
            return None
        backoff = min(FIRST_DELAY * 2 ** min(retries, 10), MAX_DELAY) * (1 - self.rng() / 2)
        asked = error.retry_after if isinstance(error, APIStatusError) else None
        if asked is None:
            return float(backoff)
        if asked > MAX_RETRY_AFTER:
            return None
        return float(asked + backoff / 4)


def shared_backoff(error: APIError, delay: float | None) -> float | None:
    """Seconds for which no caller should send a request, after one got `error`.

    Args:
        error: What that caller got.
        delay: Its own delay, as `RetryPolicy.delay` gives it.

    Returns:
        None where the error concerns that caller alone, or where Retry-After is too long to sleep through: the other
        callers then get the error, too.
    """
    if not isinstance(error, APIStatusError) or error.status_code not in (429, 503):
        return None
    retry_after = error.retry_after
    if retry_after is None:
        if error.status_code != 429:
            return None  # the failure may concern this request alone
        # A limit concerns everybody, even if the service does not say when it ends.
        retry_after = FIRST_DELAY
    if retry_after > MAX_RETRY_AFTER:
        return None
    return retry_after if delay is None else delay


def rate_limit_interval(error: APIError) -> float | None:
    """Seconds that should lie between requests after `error`: a 429's Retry-After; None for any other error."""
    if not isinstance(error, APIStatusError) or error.status_code != 429:
        return None
    return FIRST_DELAY if error.retry_after is None else error.retry_after


def parse_retry_after(value: str | None, now: float) -> float | None:
    """Seconds from a Retry-After header (RFC 9110, 10.2.3): a number, or an HTTP date.

    Args:
        value: The header, or None.
        now: The time the reply came, in seconds since the epoch.

    Returns:
        Seconds from now, at least 0; None where the header is absent or unreadable.
    """
    if value is None:
        return None
    value = value.strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
            # A form without a zone is in UTC too (RFC 9110, 5.6.7).
            seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now
        except (ValueError, TypeError, OverflowError):
            return None
    # NaN compares false with everything, and a wait of NaN or infinity is no wait.
    return min(max(seconds, 0.0), 1e9) if seconds == seconds else None
