"""What counts as a plaintext exit: handlers by their package, instrumentors, Langfuse and LangSmith's gateway.

OpenInference, OpenTelemetry and Langfuse are not installed here: modules with their names stand for them. They show
which names are looked at, and not what those packages do.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler, StdOutCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.tracers.langchain import LangChainTracer
from llama_index.core.callbacks import LlamaDebugHandler, TokenCountingHandler
from llama_index.core.callbacks.simple_llm_handler import SimpleLLMHandler
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler

import langchain_prem
import llama_index_prem
from langchain_prem import ChatPremEncrypted
from llama_index_prem import PremEncrypted
from prem_core import ConfigurationError
from prem_core._adapters.plaintext_egress import PlaintextEgressWarning, check, exit_of, process_exits

MODELS = pytest.mark.parametrize("model", [ChatPremEncrypted, PremEncrypted])


class OwnHandler(BaseCallbackHandler):
    """A handler of the application."""


def of_module(name: str, base: type = object) -> type:
    return type("Handler", (base,), {"__module__": name})


@pytest.mark.parametrize(
    "handler",
    [
        StdOutCallbackHandler,
        UsageMetadataCallbackHandler,
        LlamaDebugHandler,
        TokenCountingHandler,
        SimpleLLMHandler,
        SimpleSpanHandler,
        OwnHandler,
    ],
)
def test_a_handler_in_memory_one_that_prints_and_the_applications_own_are_no_exits(handler: type) -> None:
    assert exit_of(handler) is None


@pytest.mark.parametrize(
    ("handler", "found"),
    [
        (LangChainTracer, "LangSmith tracing is on"),
        (type("OwnTracer", (LangChainTracer,), {}), "LangSmith tracing is on"),
        (of_module("langfuse.langchain.CallbackHandler", OwnHandler), "Langfuse is active"),
        (of_module("langfuse.callback.langchain"), "Langfuse is active"),
        (
            of_module("openinference.instrumentation.langchain._tracer"),
            "openinference.instrumentation.langchain is active",
        ),
        (
            of_module("opentelemetry.instrumentation.llamaindex.dispatcher_wrapper"),
            "opentelemetry.instrumentation.llamaindex is active",
        ),
    ],
)
def test_a_handler_that_sends_is_an_exit_and_its_subclasses_are(handler: type, found: str) -> None:
    assert exit_of(handler) == found
    assert exit_of(type("Own", (handler,), {})) == found


def test_a_handler_of_any_other_installed_package_is_an_exit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "observability_vendor.py").write_text("class Handler: pass\n")
    monkeypatch.syspath_prepend(folder)
    handler = importlib.import_module("observability_vendor").Handler
    assert exit_of(handler) == "observability_vendor.Handler is active"
    del sys.modules["observability_vendor"]


@pytest.mark.parametrize(
    ("module", "instrumentor"),
    [
        ("openinference.instrumentation.langchain", "LangChainInstrumentor"),
        ("openinference.instrumentation.llama_index", "LlamaIndexInstrumentor"),
        ("opentelemetry.instrumentation.langchain", "LangchainInstrumentor"),
        ("opentelemetry.instrumentation.llamaindex", "LlamaIndexInstrumentor"),
    ],
)
@MODELS
def test_an_instrumentor_is_an_exit_once_it_is_active(
    monkeypatch: pytest.MonkeyPatch, model: Any, module: str, instrumentor: str
) -> None:
    instance = SimpleNamespace(_is_instrumented_by_opentelemetry=False)
    loaded: Any = ModuleType(module)
    setattr(loaded, instrumentor, SimpleNamespace(_instance=instance))
    monkeypatch.setitem(sys.modules, module, loaded)
    model(model="m", plaintext_egress="error")  # imported, and not active
    instance._is_instrumented_by_opentelemetry = True
    with pytest.raises(ConfigurationError, match=f"^{module} is active: "):
        model(model="m", plaintext_egress="error")


@MODELS
def test_a_langfuse_client_that_traces_is_an_exit(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    clients: dict[str, Any] = {}
    loaded: Any = ModuleType("langfuse._client.resource_manager")
    loaded.LangfuseResourceManager = SimpleNamespace(_instances=clients)
    monkeypatch.setitem(sys.modules, "langfuse", ModuleType("langfuse"))
    monkeypatch.setitem(sys.modules, "langfuse._client.resource_manager", loaded)
    clients["pk-off"] = SimpleNamespace(tracing_enabled=False)
    model(model="m", plaintext_egress="error")
    clients["pk-on"] = SimpleNamespace(tracing_enabled=True)
    with pytest.raises(ConfigurationError, match="^Langfuse is active: "):
        model(model="m", plaintext_egress="error")


@pytest.mark.parametrize("value", ["true", "1", "https://gateway.example.com"])
@MODELS
def test_langsmiths_gateway_for_other_models_is_an_exit(
    monkeypatch: pytest.MonkeyPatch, model: Any, value: str
) -> None:
    monkeypatch.setenv("LANGSMITH_GATEWAY", value)
    with pytest.raises(ConfigurationError, match="^LANGSMITH_GATEWAY sends what other chat models"):
        model(model="m", plaintext_egress="error")


@pytest.mark.parametrize("value", ["", "false", "0", "No"])
def test_langsmiths_gateway_that_is_off_is_no_exit(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("LANGSMITH_GATEWAY", value)
    assert list(process_exits()) == []


def test_both_adapters_warn_with_one_class_once_per_process_and_kind() -> None:
    assert langchain_prem.PlaintextEgressWarning is llama_index_prem.PlaintextEgressWarning
    assert PlaintextEgressWarning is langchain_prem.PlaintextEgressWarning
    with pytest.warns(PlaintextEgressWarning) as warned:
        check("warn", ["A is on", "B is on", "A is on"])
    assert [str(each.message).partition(":")[0] for each in warned] == ["A is on", "B is on"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check("warn", ["A is on", "B is on"])
        check("allow", ["C is on"])
