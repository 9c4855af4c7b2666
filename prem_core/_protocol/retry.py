"""When to try again, and how long to wait first.

The rule of this file: plain functions of values; the clock and the dice come from outside.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final

from prem_core._errors import APIConnectionError, APIError, APIStatusError

#: Statuses that a later try may turn into an answer. 408 and 502 come from gateways on the way.
RETRYABLE_STATUS_CODES: Final = frozenset({408, 429, 500, 502, 503, 504})

#: Seconds: first wait, and the longest. As in the OpenAI SDK, whose users expect the same pace.
FIRST_DELAY: Final = 0.5
MAX_DELAY: Final = 8.0

#: Seconds: a service that asks for a longer pause is not waited for in silence; the error carries the figure.
MAX_RETRY_AFTER: Final = 60.0

#: What a call says that used up its `total_timeout`, whatever it was doing.
TOTAL_TIMEOUT_MESSAGE: Final = "the call took longer than total_timeout"


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, and at what pace, a request is tried again.

    Args:
        max_retries: Tries after the first one; 3 means at most 4 requests.
        dice: Gives a number in [0, 1) for the jitter.
    """

    max_retries: int = 2
    dice: Callable[[], float] = random.random

    def delay(self, retries: int, error: APIError) -> float | None:
        """Seconds to wait before retry number ``retries + 1``, or None: raise `error` instead.

        The wait doubles from `FIRST_DELAY` to `MAX_DELAY` and is shortened at random by up to a half, so
        that callers who failed together do not come back together. A Retry-After is obeyed to the
        letter, and jitter only lengthens it.
        """
        if retries >= self.max_retries or not is_retryable(error):
            return None
        backoff = min(FIRST_DELAY * 2 ** min(retries, 10), MAX_DELAY) * (1 - self.dice() / 2)
        asked = error.retry_after if isinstance(error, APIStatusError) else None
        if asked is None:
            return float(backoff)
        if asked > MAX_RETRY_AFTER:
            return None
        return float(asked + backoff / 4)


def shared_backoff(error: APIError, delay: float | None) -> float | None:
    """Seconds for which none of a client's callers should try, after one was answered with `error`.

    Args:
        error: What that caller was answered.
        delay: What `RetryPolicy.delay` makes of it.

    Returns:
        None where the error is that caller's own, or asks for a longer pause than is waited for in silence: the
        others then hear the figure too.
    """
    if not isinstance(error, APIStatusError) or error.status_code not in (429, 503):
        return None
    asked = error.retry_after
    if asked is None:
        # A limit is everybody's, even where nothing is said of its end; a failure may be this request's.
        asked = FIRST_DELAY if error.status_code == 429 else float("inf")
    if asked > MAX_RETRY_AFTER:
        return None
    return asked if delay is None else delay


def is_retryable(error: APIError) -> bool:
    """Whether `error` is one that another try may mend."""
    if isinstance(error, APIStatusError):
        return error.status_code in RETRYABLE_STATUS_CODES
    return isinstance(error, APIConnectionError)


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
