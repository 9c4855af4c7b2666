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
    "AudioReply": "engines.base",
    "Engine": "engines.base",
    "EngineError": "engines.base",
    "EngineRequest": "engines.base",
    "Exchange": "gateway",
    "LocalEnclave": "local",
    "QuotingEngine": "engines.quoting",
    "ScriptedEngine": "engines.scripted",
    "reply": "engines.scripted",
    "tool_call": "engines.scripted",
}


def __getattr__(name: str) -> Any:
    # Imported when asked for: pytest imports this package in every run, for its plugin.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] == "prem_core":
            raise
        raise ImportError(
            f'the embedded enclave needs {missing.name}: pip install "prem-encrypted[enclave]"',
            name=missing.name,
        ) from missing
