"""Find the tracers, callbacks and caches of LangChain that would receive prompts in plaintext."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any, TypeVar, cast

from langchain_core.caches import BaseCache, InMemoryCache
from langchain_core.callbacks import base
from langchain_core.globals import get_llm_cache
from langchain_core.runnables import Runnable, RunnableBinding, RunnableConfig
from langchain_core.utils.env import env_var_is_set
from typing_extensions import override

from prem_core._adapters.plaintext_egress import LANGSMITH, exit_of, handler_exits, process_exits


def traced_exits() -> Iterator[str]:
    """What receives the plaintext of every run in this process."""
    # Here, because importing the package would take a tenth longer; the first call needs it anyway.
    from langchain_core.tracers.context import _configure_hooks, _tracing_v2_is_enabled

    if _tracing_v2_is_enabled() is True:  # "local" traces stay in memory
        yield LANGSMITH
    # Instrumentation adds its handler to each new manager by replacing this method.
    init: Any = base.BaseCallbackManager.__init__
    if type(init) is not FunctionType or init.__globals__ is not vars(base):
        yield from handler_exits(base.BaseCallbackManager([]).handlers)
    for context, _, handler_class, variable in _configure_hooks:
        if (handler := context.get()) is not None:
            yield from handler_exits([handler])
        elif (
            variable and env_var_is_set(variable) and (found := exit_of(handler_class or object)) is not None
        ):
            yield found
    yield from process_exits()


def model_exits(cache: BaseCache | bool | None, callbacks: Any) -> Iterator[str]:
    """What receives the plaintext of one model.

    A tracer in the `config` of a single call is not looked for: passing one is a decision already.

    Args:
        cache: The model's own ``cache`` setting.
        callbacks: The model's own ``callbacks``: None, a list, or a manager.
    """
    if callbacks:
        yield from handler_exits(getattr(callbacks, "handlers", callbacks))
    used = cache if isinstance(cache, BaseCache) else None if cache is False else get_llm_cache()
    # A cache in memory holds nothing that the process does not hold anyway.
    if used is not None and not isinstance(used, InMemoryCache):
        yield f"the LLM cache is a {type(used).__name__}"


Composition = TypeVar("Composition", bound=Runnable[Any, Any])

#: Methods of a runnable that return another one.
_COMPOSITIONS = (
    "bind", "with_config", "with_types", "with_listeners", "with_alisteners", "with_retry", "with_fallbacks", "map",
    "pipe", "__or__", "__ror__",
)  # fmt: skip


class ChecksCompositions:
    """Makes compositions that begin with this runnable check for plaintext exits before they open a run.

    A run is traced when it opens, with its input: a sequence, a retry or a fallback would send the prompt to the tracer
    before the model in it is called. List this class before the framework's own.
    """

    def _checked(self, composition: Composition) -> Composition:
        raise NotImplementedError


def _checking(name: str) -> Callable[..., Any]:
    @functools.wraps(getattr(Runnable, name))
    def method(self: ChecksCompositions, *args: Any, **kwargs: Any) -> Any:
        return self._checked(getattr(super(ChecksCompositions, self), name)(*args, **kwargs))

    return method


for _name in _COMPOSITIONS:
    # Not written out, so that the methods keep their signatures and types.
    setattr(ChecksCompositions, _name, _checking(_name))


class CheckedRunnable(ChecksCompositions, RunnableBinding[Any, Any]):  # type: ignore[no-redef]
    """Delegates to a composition after a check; opens no run of its own.

    The check is among the config factories, which run before the delegate, and which `bind`, `with_config` and
    `with_retry` keep.
    """

    @override
    def _checked(self, composition: Composition) -> Composition:
        return checked(composition, self.config_factories[0])

    @override
    def to_json(self) -> Any:
        # The check cannot be serialised, and the model in it checks at construction.
        return RunnableBinding(bound=self.bound, kwargs=self.kwargs, config=self.config).to_json()


def checked(composition: Composition, check: Callable[[RunnableConfig], RunnableConfig]) -> Composition:
    """`composition`, with `check` called before any run of it opens."""
    if isinstance(composition, CheckedRunnable):
        return composition
    if not isinstance(composition, RunnableBinding):
        return cast("Composition", CheckedRunnable(bound=composition, config_factories=[check]))
    # Replaced and not enclosed, because callers read the attributes of a binding.
    same = {name: getattr(composition, name) for name in RunnableBinding.model_fields}
    same["config_factories"] = [check, *same["config_factories"]]
    return cast("Composition", CheckedRunnable(**same))
