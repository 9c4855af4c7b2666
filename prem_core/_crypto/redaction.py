"""Keep secrets and prompts out of tracebacks.

A traceback holds the frames that an error passed through, and with them their arguments. Tools that show local
variables, and error trackers that record them, would show an API key because of a mistyped URL, or a prompt because of
a timeout.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import traceback
from collections.abc import Callable
from typing import Any, Final, ParamSpec, TypeVar, cast

from prem_core._errors import PremError

P = ParamSpec("P")
R = TypeVar("R")

#: This package, and those that call it with prompts.
_PACKAGES: Final = ("prem_core", "langchain_prem", "llama_index_prem")


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


def without_locals(call: Callable[P, R]) -> Callable[P, R]:
    """Make the errors of `call`, a function or a coroutine function, leave with `clear_locals` applied.

    For every function that is given a prompt. Unlike `without_traceback` it keeps the error's cause, and the lines of
    code that the error passed through.
    """
    if inspect.iscoroutinefunction(call):

        @functools.wraps(call)
        async def cleared_async(*args: P.args, **kwargs: P.kwargs) -> Any:
            try:
                return await call(*args, **kwargs)
            except BaseException as error:
                clear_locals(error)
                raise
            finally:
                del args, kwargs

        return cast("Callable[P, R]", cleared_async)

    @functools.wraps(call)
    def cleared(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return call(*args, **kwargs)
        except BaseException as error:
            clear_locals(error)
            raise
        finally:
            del args, kwargs

    return cleared


def clear_locals(error: BaseException) -> None:
    """Delete the local variables of this package's frames, and of those below them, from the tracebacks of `error`.

    The same is done for its causes and contexts. A frame that is still running keeps its variables.
    """
    pending: list[BaseException | None] = [error]
    seen: set[int] = set()
    while pending:
        each = pending.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        ours = False
        for frame, _ in traceback.walk_tb(each.__traceback__):
            ours = ours or frame.f_globals.get("__name__", "").partition(".")[0] in _PACKAGES
            if ours:
                with contextlib.suppress(RuntimeError):  # it is running
                    frame.clear()
        pending += [each.__cause__, each.__context__]
