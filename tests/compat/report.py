"""What every Python program of the matrix needs: its settings, and a report line for each feature."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from typing import Any

#: What `matrix.py` passes on: URLs, the API key, prompts, and what the answers have to contain.
SETTINGS: dict[str, Any] = json.loads(os.environ["COMPAT"])

#: Seconds for one feature.
LIMIT = 30


async def run(**features: Callable[[], Awaitable[Any]]) -> None:
    """Run each feature, and print a line of JSON about it. A feature fails by raising."""
    for name, feature in features.items():
        error = None
        try:
            await asyncio.wait_for(feature(), LIMIT)
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
        print(json.dumps({"feature": name, "error": error}), flush=True)


async def raises(call: Awaitable[Any]) -> str:
    """The text of the error that `call` raises."""
    try:
        value = await call
    except Exception as error:
        return str(error)
    raise AssertionError(f"no error, but {value!r}")
