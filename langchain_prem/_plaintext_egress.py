"""Warn when LangSmith tracing or an external LLM cache would send prompts out unencrypted.

Prompts and answers are encrypted on their way to the enclave. LangSmith tracing sends the same texts to LangSmith,
and a cache outside memory stores them. Both are legitimate, and neither should happen unnoticed.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, Literal

from langchain_core.caches import BaseCache, InMemoryCache
from langchain_core.globals import get_llm_cache

from prem_core import ConfigurationError

PlaintextEgress = Literal["warn", "error", "allow"]


class PlaintextEgressWarning(UserWarning):
    """Prompts and answers leave the process in plaintext, in addition to the encrypted request."""


_warned: set[str] = set()


def check_egress(mode: PlaintextEgress, cache: BaseCache | bool | None, callbacks: Any) -> None:
    """Look for tracing and caches that receive plaintext at this moment.

    A tracer in the `config` of a single call is not looked for: passing one is a decision already.

    Args:
        mode: "warn" warns once per process and kind, "error" refuses the call, "allow" does nothing.
        cache: The model's own ``cache`` setting.
        callbacks: The model's own ``callbacks``: None, a list, or a manager.

    Raises:
        ConfigurationError: There is one, and `mode` is "error".
    """
    if mode == "allow":
        return
    # Here, because importing the package would take a tenth longer; the first call needs it anyway.
    from langchain_core.tracers.context import _tracing_v2_is_enabled

    traced = _tracing_v2_is_enabled() is True  # "local" traces stay in memory
    used = cache if isinstance(cache, BaseCache) else None if cache is False else get_llm_cache()
    if not traced and used is None and not callbacks:  # as in most calls
        return
    for sink in _plaintext_sinks(traced, used, callbacks):
        message = (
            f"{sink}: prompts and answers leave this process in plaintext, in addition to the encrypted request. "
            "Turn it off, or set plaintext_egress='allow' to permit it."
        )
        if mode == "error":
            raise ConfigurationError(message)
        if sink not in _warned:
            _warned.add(sink)
            warnings.warn(message, PlaintextEgressWarning, stacklevel=2)


def _plaintext_sinks(traced: bool, cache: BaseCache | None, callbacks: Any) -> Iterator[str]:
    from langchain_core.tracers.langchain import LangChainTracer

    handlers = getattr(callbacks, "handlers", callbacks) or ()
    if traced or any(isinstance(handler, LangChainTracer) for handler in handlers):
        yield "LangSmith tracing is on"
    # A cache in memory holds nothing that the process does not hold anyway.
    if cache is not None and not isinstance(cache, InMemoryCache):
        yield f"the LLM cache is a {type(cache).__name__}"
