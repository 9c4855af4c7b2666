"""Find the handlers of LlamaIndex that would receive prompts in plaintext."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

import llama_index.core
from llama_index.core.callbacks import CallbackManager
from llama_index.core.instrumentation import get_dispatcher, root_manager  # type: ignore[attr-defined]
from llama_index.core.instrumentation.dispatcher import DISPATCHER_SPAN_DECORATED_ATTR  # type: ignore[attr-defined]
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.settings import Settings

from prem_core._adapters.plaintext_egress import handler_exits, process_exits

#: The dispatchers of a model's own events and spans. A handler of any other one sees only what calls the model.
_OF_MODELS = tuple(
    get_dispatcher(name)
    for name in (
        "root", "llama_index.core.llms.callbacks", "llama_index.core.llms.llm", "llama_index_prem.llm",
        "llama_index_prem._structured_output",
    )
)  # fmt: skip


def all_dispatchers() -> Iterable[Any]:
    """Every dispatcher in this process."""
    # A copy, because another thread may import a module that adds its dispatcher.
    return list(root_manager.dispatchers.values())


def registered_exits(dispatchers: Iterable[Any] = _OF_MODELS) -> Iterator[str]:
    """What receives plaintext through LlamaIndex's global handler, its settings and `dispatchers`."""
    if (handler := llama_index.core.global_handler) is not None:
        yield from handler_exits([handler])
    # Not `Settings.callback_manager`, which would create one.
    if (manager := Settings._callback_manager) is not None:
        yield from handler_exits(manager.handlers)
    for dispatcher in dispatchers:
        if dispatcher.event_handlers:
            yield from handler_exits(dispatcher.event_handlers)
        if dispatcher.span_handlers:
            yield from handler_exits(dispatcher.span_handlers)
    yield from process_exits()


def model_exits(callback_manager: Any) -> Iterator[str]:
    """What receives the plaintext of a model with this callback manager."""
    if isinstance(callback_manager, CallbackManager):
        yield from handler_exits(callback_manager.handlers)


class _ChecksEgress(Protocol):
    def _check_egress(self) -> None: ...


Checked = TypeVar("Checked", bound=_ChecksEgress)


def check_before_calls(model: type[Checked]) -> type[Checked]:
    """Make every method of `model` that opens a span check for plaintext exits first.

    A span handler receives the call's arguments when the span opens, before the method itself runs.
    """
    for name in dir(model):
        method = inspect.getattr_static(model, name)
        if hasattr(method, DISPATCHER_SPAN_DECORATED_ATTR):
            setattr(model, name, _checking(method))
    return model


def _checking(method: Any) -> Callable[..., Any]:
    # Bound by hand, as attribute access would: the instrumentation's decorator depends on it.
    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def coroutine(self: _ChecksEgress, *args: Any, **kwargs: Any) -> Any:
            self._check_egress()
            return await method.__get__(self, type(self))(*args, **kwargs)

        return coroutine

    @functools.wraps(method)
    def function(self: _ChecksEgress, *args: Any, **kwargs: Any) -> Any:
        self._check_egress()
        return method.__get__(self, type(self))(*args, **kwargs)

    return function


@check_before_calls
class CheckedStructuredLLM(StructuredLLM):
    """A `StructuredLLM` whose calls check for plaintext exits before their spans open."""

    def _check_egress(self) -> None:
        self.llm._check_egress()  # type: ignore[attr-defined]
