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

#: The message of every call that exceeded its `total_timeout`.
TOTAL_TIMEOUT_MESSAGE: Final = "the call took longer than total_timeout"


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often to retry a request, and after which delays.

    Args:
        max_retries: Retries after the first attempt; 3 means at most 4 requests.
        rng: Returns a random number in [0, 1) for the jitter.
    """

    max_retries: int = 2
    rng: Callable[[], float] = random.random

    def delay(self, retries: int, error: APIError) -> float | None:
        """Seconds to wait before retry number ``retries + 1``; None to raise `error` instead.

        The delay doubles from `FIRST_DELAY` to `MAX_DELAY`. Jitter shortens it by up to a half, so that callers that
        failed at the same time do not retry at the same time. Jitter lengthens a Retry-After and never shortens it.
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
