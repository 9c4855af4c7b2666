"""Wait for what another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

#: Seconds after which a test gives up waiting. Only a failing test waits this long, so a busy machine has time.
SOON: Final = 30.0


def eventually(condition: Callable[[], bool], seconds: float = SOON) -> bool:
    """Whether `condition` becomes true within `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return condition()
        time.sleep(0.002)
    return True
