"""A clock that moves only when a test moves it."""

from __future__ import annotations


class Clock:
    """Callable like `time.monotonic`. Assign to `now`, or add to it."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
