"""Say it when plaintext would leave the process by another door.

Prompts and replies are sealed on their way to the enclave. LangSmith tracing sends the same prompts and
replies to LangSmith, and a cache that is not in memory writes them somewhere: both are legitimate, and
neither should happen without somebody having meant it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, Literal

from langchain_core.caches import BaseCache, InMemoryCache
from langchain_core.globals import get_llm_cache

from prem_core import ConfigurationError

PlaintextEgress = Literal["warn", "error", "allow"]


class PlaintextEgressWarning(UserWarning):
    """Prompts and replies would leave the process in plaintext, beside the encrypted transport."""


_said: set[str] = set()


def check_egress(mode: PlaintextEgress, cache: BaseCache | bool | None, handlers: Iterable[Any] = ()) -> None:
    """Look for the doors known to be open at this moment.

    Args:
        mode: "warn" says it once per process and kind of door, "error" refuses the call, "allow" is silent.
        cache: The model's own ``cache`` setting.
        handlers: The run's callback handlers, where they are known already.

    Raises:
        ConfigurationError: One is open and `mode` is "error".
    """
    if mode == "allow":
        return
    for door in _doors(cache, handlers):
        message = (
            f"{door}: prompts and replies leave this process in plaintext, beside the encrypted transport. "
            "Turn it off, or say that you mean it with plaintext_egress='allow'."
        )
        if mode == "error":
            raise ConfigurationError(message)
        if door not in _said:
            _said.add(door)
            warnings.warn(message, PlaintextEgressWarning, stacklevel=2)


def handlers_of(callbacks: Any) -> Iterable[Any]:
    """The handlers in what LangChain calls `Callbacks`: None, a list, or a manager."""
    return getattr(callbacks, "handlers", callbacks) or ()


def _doors(cache: BaseCache | bool | None, handlers: Iterable[Any]) -> Iterable[str]:
    if _traces() or any(_is_tracer(handler) for handler in handlers):
        yield "LangSmith tracing is on"
    if cache is not False:
        used = cache if isinstance(cache, BaseCache) else get_llm_cache()
        # A cache in memory keeps what the process holds anyway.
        if used is not None and not isinstance(used, InMemoryCache):
            yield f"the LLM cache is a {type(used).__name__}"


def _traces() -> bool:
    from langchain_core.tracers.context import _tracing_v2_is_enabled

    # "local" traces stay on this machine's memory.
    return _tracing_v2_is_enabled() is True


def _is_tracer(handler: Any) -> bool:
    from langchain_core.tracers.langchain import LangChainTracer

    return isinstance(handler, LangChainTracer)
