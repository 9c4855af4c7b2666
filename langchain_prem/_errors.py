"""prem_core's errors, each also the langchain-core error for its condition.

LangChain's retry and fallback middleware looks for core's classes and their `is_retryable`; users of prem_core catch
prem_core's. An error raised by `ChatPremEncrypted` is an instance of both.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import langchain_core.exceptions as core

import prem_core

#: Classes of prem_core and the names of core's; the first match applies. Where an older core lacks the class, the error
#: is prem_core's only.
CONDITIONS: tuple[tuple[type[prem_core.PremError], str], ...] = (
    (prem_core.ContextLengthExceededError, "ContextOverflowError"),
    (prem_core.AuthenticationError, "ModelAuthenticationError"),
    (prem_core.PermissionDeniedError, "ModelPermissionDeniedError"),
    (prem_core.NotFoundError, "ModelNotFoundError"),
    (prem_core.RateLimitError, "ModelRateLimitError"),
    (prem_core.InternalServerError, "ModelAPIError"),
    (prem_core.BadRequestError, "ModelInvalidRequestError"),
    (prem_core.RequestTooLargeError, "ModelInvalidRequestError"),
    (prem_core.InvalidParameterError, "ModelInvalidRequestError"),
    (prem_core.APITimeoutError, "ModelTimeoutError"),
    (prem_core.APIConnectionError, "ModelConnectionError"),
)


@functools.cache
def combined_error_class(kind: Any) -> type[prem_core.PremError]:
    """A class that is both `kind` and core's class for its condition; `kind` itself where core has none."""
    name = (
        "ModelRefusalError"
        if issubclass(kind, prem_core.RefusalError)
        else next((name for ours, name in CONDITIONS if issubclass(kind, ours)), None)
    )
    theirs = getattr(core, name, None) if name else None
    if theirs is None or issubclass(kind, theirs):
        return cast("type[prem_core.PremError]", kind)
    namespace = {
        "__doc__": kind.__doc__,
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        # This class cannot be imported by name; a pickle refers to the one it is made from.
        "__reduce__": lambda self: (_rebuild, (kind, self.args, self.__dict__)),
    }
    return type(kind.__name__, (kind, theirs), namespace)


def _rebuild(
    kind: type[prem_core.PremError], args: tuple[Any, ...], state: dict[str, Any]
) -> prem_core.PremError:
    combined: type[prem_core.PremError] = combined_error_class(cast("Any", kind))
    error = combined.__new__(combined, *args)
    error.args = args
    error.__dict__.update(state)
    return error


def translate(error: prem_core.PremError) -> prem_core.PremError:
    """`error` as an instance of both classes, with the same text, attributes, cause and traceback."""
    translated = _rebuild(type(error), error.args, error.__dict__)
    translated.__cause__ = error.__cause__
    return translated.with_traceback(error.__traceback__)


@contextmanager
def core_errors() -> Iterator[None]:
    """Raise prem_core's errors as instances of both classes."""
    try:
        yield
    except prem_core.PremError as error:
        raise translate(error) from error.__cause__
