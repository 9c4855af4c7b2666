"""Keep secrets out of tracebacks.

A traceback holds the frames that an error passed through, and with them their arguments. Tools that show local
variables, and error trackers that record them, would show an API key because of a mistyped URL.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from prem_core._errors import PremError

P = ParamSpec("P")
R = TypeVar("R")


def without_traceback(call: Callable[P, R]) -> Callable[P, R]:
    """Make the errors of `call` leave without its frames, and without the error that caused them.

    For every function that is given a secret. The functions that it calls may then hold the secret in local
    variables. The message of such an error has to say what is wrong, and with which setting.
    """

    @functools.wraps(call)
    def redacted(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return call(*args, **kwargs)
        except (PremError, ValueError, TypeError) as error:  # pydantic's errors are ValueErrors
            failure = error.with_traceback(None)
            failure.__cause__ = failure.__context__ = None
        finally:
            del args, kwargs
        # Outside the handler, so that the error is not kept as the context of another.
        raise failure

    return redacted
