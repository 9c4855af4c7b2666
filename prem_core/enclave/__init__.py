"""An embedded enclave for development and tests: real keys, real sealing, real HTTP, on this machine.

::

    with LocalEnclave(replies=["Hello"]) as prem:
        client = PremClient(**prem.client_options)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prem_core.enclave.engines.base import AudioReply, Engine, EngineError, EngineRequest
    from prem_core.enclave.engines.quoting import QuotingEngine
    from prem_core.enclave.engines.scripted import ScriptedEngine, reply, tool_call
    from prem_core.enclave.gateway import Exchange
    from prem_core.enclave.local import LocalEnclave

__all__ = [
    "AudioReply",
    "Engine",
    "EngineError",
    "EngineRequest",
    "Exchange",
    "LocalEnclave",
    "QuotingEngine",
    "ScriptedEngine",
    "reply",
    "tool_call",
]

_MODULES = {
    "engines.base": ("AudioReply", "Engine", "EngineError", "EngineRequest"),
    "engines.quoting": ("QuotingEngine",),
    "engines.scripted": ("ScriptedEngine", "reply", "tool_call"),
    "gateway": ("Exchange",),
    "local": ("LocalEnclave",),
}


def __getattr__(name: str) -> Any:
    # Imported when first used: pytest imports this package in every run, for its plugin.
    module = next((module for module, names in _MODULES.items() if name in names), None)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing == "prem_core":
            raise
        raise ImportError(
            f'the embedded enclave needs {missing}: pip install "prem-encrypted[enclave]"', name=missing
        ) from error
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
