"""Find what would receive prompts in plaintext: tracing, instrumentation, caches outside memory.

Prompts and answers are encrypted on their way to the enclave. A tracer sends the same texts to another service. That is
legitimate, and should not happen unnoticed: the setting `plaintext_egress` warns of it, refuses it or allows it.

Nothing is imported to find a tracer. The modules that are loaded, the environment, and the classes of the handlers that
are registered are looked at.
"""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel

from prem_core._errors import ConfigurationError

PlaintextEgress = Literal["warn", "error", "allow"]

#: Instrumentors of both frameworks, and their classes: OpenInference, and OpenTelemetry by Traceloop.
_INSTRUMENTORS: Final = {
    "openinference.instrumentation.langchain": "LangChainInstrumentor",
    "openinference.instrumentation.llama_index": "LlamaIndexInstrumentor",
    "opentelemetry.instrumentation.langchain": "LangchainInstrumentor",
    "opentelemetry.instrumentation.llamaindex": "LlamaIndexInstrumentor",
}

LANGSMITH: Final = "LangSmith tracing is on"
_LANGFUSE: Final = "Langfuse is active"
_GATEWAY: Final = "LANGSMITH_GATEWAY sends what other chat models of this process receive through LangSmith"

#: What a handler of a package is reported as, so that it is reported once.
_REPORTED_AS: Final = {
    "langchain_core.tracers.langchain": LANGSMITH,
    "langfuse": _LANGFUSE,
    **{module: f"{module} is active" for module in _INSTRUMENTORS},
}

#: Packages whose handlers keep what they receive in this process, or print it.
_IN_PROCESS: Final = (
    "langchain_core", "langchain_classic", "langchain", "langgraph", "langchain_community.callbacks.openai_info",
    "langchain_community.callbacks.bedrock_anthropic_callback",
    "llama_index.core", "llama_index_instrumentation", "workflows", "pydantic", "typing_extensions",
)  # fmt: skip

_warned: set[str] = set()


class PlaintextEgressWarning(UserWarning):
    """Prompts and answers leave the process in plaintext, in addition to the encrypted request."""


def check(mode: PlaintextEgress, exits: Iterable[str]) -> None:
    """Warn of plaintext exits, once per process and kind, or refuse them.

    Raises:
        ConfigurationError: There is one, and `mode` is "error".
    """
    if mode == "allow":
        return
    for found in exits:
        message = (
            f"{found}: prompts and answers leave this process in plaintext, in addition to the encrypted request. "
            "Turn it off, or set plaintext_egress='allow' to permit it."
        )
        if mode == "error":
            raise ConfigurationError(message)
        if found not in _warned:
            _warned.add(found)
            warnings.warn(message, PlaintextEgressWarning, stacklevel=3)


def process_exits() -> Iterator[str]:
    """What receives plaintext of either framework, in this whole process."""
    modules = sys.modules
    for name, instrumentor in _INSTRUMENTORS.items():
        if name in modules:
            instance = getattr(getattr(modules[name], instrumentor, None), "_instance", None)
            if getattr(instance, "_is_instrumented_by_opentelemetry", False):
                yield _REPORTED_AS[name]
    if "langfuse" in modules:
        clients = modules.get("langfuse._client.resource_manager")
        active = getattr(getattr(clients, "LangfuseResourceManager", None), "_instances", {})
        if any(getattr(client, "tracing_enabled", True) for client in list(active.values())):
            yield _LANGFUSE
    # langchain-core routes the chat models of its provider packages by it. Ours is not among them, but an application
    # that sets it passes the same texts to others.
    if os.environ.get("LANGSMITH_GATEWAY", "").lower() not in ("", "false", "0", "no"):
        yield _GATEWAY


def handler_exits(handlers: Iterable[Any]) -> Iterator[str]:
    """Those of `handlers` that send what they receive to another process.

    A handler counts unless it is the framework's own, or the application's: a class outside installed packages. What
    prints does not count.
    """
    for handler in handlers:
        if (found := exit_of(type(handler))) is not None:
            yield found


def exit_of(handler: type) -> str | None:
    """What handlers of this class are reported as, or None if they keep in this process what they receive."""
    return _exit_of(handler)


@functools.lru_cache(maxsize=256)
def _exit_of(handler: type) -> str | None:
    for each in handler.__mro__:
        for package, found in _REPORTED_AS.items():
            if _is_in(each, package):
                return found
    for each in handler.__mro__:
        if _is_installed(each) and not any(_is_in(each, package) for package in _IN_PROCESS):
            return f"{handler.__module__}.{handler.__qualname__} is active"
    return None


def _is_in(each: type, package: str) -> bool:
    return f"{each.__module__}.".startswith(f"{package}.")


def _is_installed(each: type) -> bool:
    path = getattr(sys.modules.get(each.__module__), "__file__", None)
    return path is not None and not {"site-packages", "dist-packages"}.isdisjoint(PurePath(path).parts)


class EgressSetting(BaseModel):
    """The setting `plaintext_egress` of a model, checked at construction and before each call.

    List this class before `ModelSettings`. The frameworks' models define what is an exit.
    """

    plaintext_egress: PlaintextEgress = "warn"
    """What to do when tracing, instrumentation or a cache outside memory would receive prompts in plaintext: warn once,
    refuse construction and calls ("error"), or allow it."""

    if not TYPE_CHECKING:  # the signature stays that of the fields

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            try:
                super().__init__(*args, **kwargs)
            finally:
                del args, kwargs  # a traceback shows the locals, and the API key is among these
            self._check_process()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "plaintext_egress":
            self._check_process()

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        self._check_process()

    def _check_process(self) -> None:
        # What calls the model (a chain, an agent, a query engine) is traced before the model is called. Only now can
        # that be refused.
        if self.plaintext_egress == "error":
            check("error", self._process_exits())

    def _check_egress(self) -> None:
        check(self.plaintext_egress, self._call_exits())

    def _process_exits(self) -> Iterator[str]:
        """What receives the plaintext of everything in this process, whichever model is called."""
        return process_exits()

    def _call_exits(self) -> Iterator[str]:
        """What receives the plaintext of a call of this model now."""
        return self._process_exits()
