"""Calls that are given a secret, and whose errors keep none of it.

A traceback holds the frames an error passed, and with them their arguments: tools that show locals, and error
trackers, would show an API key because of a mistyped URL.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from prem_core._errors import PremError

P = ParamSpec("P")
R = TypeVar("R")


def without_traceback(call: Callable[P, R]) -> Callable[P, R]:
    """`call`, whose errors name no frame of it: a setting's error says in its text what is wrong, and with which."""

    @functools.wraps(call)
    def forgetting(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return call(*args, **kwargs)
        except (PremError, ValueError) as error:  # the last: Pydantic's
            failure = error.with_traceback(None)
        finally:
            del args, kwargs
        # Outside the handler, so that the error it came from is not its context.
        raise failure

    return forgetting
