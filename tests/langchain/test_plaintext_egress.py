"""Tracing and caches that would receive plaintext are warned of, refused or allowed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, ClassVar

import pytest
from langchain_core.caches import BaseCache, InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager
from langchain_core.globals import set_llm_cache
from langchain_core.messages import HumanMessage
from langchain_core.tracers import context
from langchain_core.tracers.langchain import LangChainTracer
from langsmith import Client

from langchain_prem import ChatPremEncrypted, PlaintextEgressWarning
from prem_core import ConfigurationError

Make = Callable[..., ChatPremEncrypted]


class DiskCache(BaseCache):
    """A cache that is not in memory."""

    def __init__(self) -> None:
        self.written: list[Any] = []

    def lookup(self, prompt: str, llm_string: str) -> Any:
        return None

    def update(self, prompt: str, llm_string: str, return_val: Any) -> None:
        self.written.append((prompt, return_val))

    def clear(self, **_: Any) -> None:
        self.written.clear()


@pytest.fixture
def global_cache() -> Iterator[DiskCache]:
    cache = DiskCache()
    set_llm_cache(cache)
    yield cache
    set_llm_cache(None)


@pytest.fixture
def tracing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # On, and with nowhere to send to: the client's background thread would otherwise try.
    import langsmith.utils

    monkeypatch.setenv("LANGSMITH_TRACING", "true")
    monkeypatch.setenv("LANGSMITH_ENDPOINT", "http://127.0.0.1:9")
    langsmith.utils.get_env_var.cache_clear()
    yield
    monkeypatch.delenv("LANGSMITH_TRACING")
    langsmith.utils.get_env_var.cache_clear()


def test_a_cache_outside_memory_is_warned_of_once(llm: Make, global_cache: DiskCache) -> None:
    with pytest.warns(PlaintextEgressWarning, match="DiskCache"):
        llm().invoke("Hello")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        llm().invoke("Hello again")


@pytest.mark.parametrize("way", ["invoke", "stream", "generate", "ainvoke", "astream", "v3"])
async def test_in_error_mode_nothing_is_cached_or_sent(
    llm: Make, global_cache: DiskCache, seen: Any, way: str
) -> None:
    model = llm(plaintext_egress="error")
    with pytest.raises(ConfigurationError, match="DiskCache"):
        match way:
            case "invoke":
                model.invoke("Hello")
            case "stream":
                list(model.stream("Hello"))
            case "generate":
                model.generate([[HumanMessage("Hello")]])
            case "ainvoke":
                await model.ainvoke("Hello")
            case "astream":
                [_ async for _ in model.astream("Hello")]
            case "v3":
                list(model.stream_events("Hello", version="v3"))
    assert global_cache.written == []
    assert seen.exchanges == []


def test_there_is_no_warning_in_allow_mode_or_with_a_cache_in_memory(
    llm: Make, global_cache: DiskCache
) -> None:
    llm(plaintext_egress="allow").invoke("Hello")
    llm(cache=InMemoryCache()).invoke("Hello")
    llm(cache=False).invoke("Hello")


def test_tracing_is_refused_before_the_tracer_receives_the_prompt(
    llm: Make, tracing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[Any] = []
    monkeypatch.setattr(LangChainTracer, "on_chat_model_start", lambda *a, **k: received.append(a))
    with pytest.raises(ConfigurationError, match="LangSmith tracing"):
        llm(plaintext_egress="error").invoke("Hello")
    assert received == []


class RecordingTracer(LangChainTracer):
    """Records what it receives, and sends nothing."""

    received: ClassVar[list[Any]] = []

    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> Any:
        self.received.append(args)
        return super().on_chat_model_start(*args, **kwargs)

    def _persist_run_single(self, run: Any) -> None:
        pass

    def _update_run_single(self, run: Any) -> None:
        pass


@pytest.fixture
def tracer() -> RecordingTracer:
    RecordingTracer.received.clear()
    return RecordingTracer(client=Client(api_url="http://127.0.0.1:9", api_key="x", auto_batch_tracing=False))


@pytest.mark.parametrize("way", ["invoke", "stream", "generate", "ainvoke", "astream", "v3", "av3"])
async def test_a_tracer_of_the_model_is_refused_before_it_receives_the_prompt(
    llm: Make, seen: Any, tracer: RecordingTracer, way: str
) -> None:
    model = llm(plaintext_egress="error", callbacks=[tracer])
    with pytest.raises(ConfigurationError, match="LangSmith tracing"):
        match way:
            case "invoke":
                model.invoke("Hello")
            case "stream":
                list(model.stream("Hello"))
            case "generate":
                model.generate([[HumanMessage("Hello")]])
            case "ainvoke":
                await model.ainvoke("Hello")
            case "astream":
                [_ async for _ in model.astream("Hello")]
            case "v3":
                list(model.stream_events("Hello", version="v3"))
            case "av3":
                [_ async for _ in await model.astream_events("Hello", version="v3")]
    assert tracer.received == []
    assert seen.exchanges == []


def test_a_tracer_passed_to_a_single_call_is_the_callers_decision(llm: Make, tracer: RecordingTracer) -> None:
    assert llm(plaintext_egress="error").invoke("Hello", {"callbacks": [tracer]}).content
    assert len(tracer.received) == 1


class ForeignHandler(BaseCallbackHandler):
    """A handler that records, under the name of a package that sends."""

    __module__ = "langfuse.langchain.CallbackHandler"
    received: ClassVar[list[Any]] = []

    def on_chain_start(self, *args: Any, **kwargs: Any) -> Any:
        self.received.append(args)

    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> Any:
        self.received.append(args)


@pytest.fixture
def foreign() -> list[Any]:
    """What the handler has received."""
    ForeignHandler.received.clear()
    return ForeignHandler.received


def instrument(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the handler to every callback manager, as instrumentation does."""
    original = BaseCallbackManager.__init__

    def init(self: BaseCallbackManager, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if not any(isinstance(handler, ForeignHandler) for handler in self.inheritable_handlers):
            self.add_handler(ForeignHandler(), True)

    monkeypatch.setattr(BaseCallbackManager, "__init__", init)


def set_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make langchain-core construct the handler because of an environment variable."""
    hook = (ContextVar[Any]("foreign", default=None), True, ForeignHandler, "FOREIGN_TRACING")
    monkeypatch.setattr(context, "_configure_hooks", [*context._configure_hooks, hook])
    monkeypatch.setenv("FOREIGN_TRACING", "true")


def set_context_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set a context variable from which langchain-core takes the handler."""
    variable = ContextVar[Any]("foreign", default=None)
    variable.set(ForeignHandler())
    hook = (variable, True, None, None)
    monkeypatch.setattr(context, "_configure_hooks", [*context._configure_hooks, hook])


@pytest.mark.parametrize("register", [instrument, set_variable, set_context_variable])
def test_a_handler_that_langchain_adds_to_every_run_is_refused(
    llm: Make, seen: Any, foreign: list[Any], monkeypatch: pytest.MonkeyPatch, register: Any
) -> None:
    retrying = llm(plaintext_egress="error").with_retry()
    register(monkeypatch)
    with pytest.raises(ConfigurationError, match="^Langfuse is active: "):
        retrying.invoke("Hello")
    with pytest.raises(ConfigurationError, match="^Langfuse is active: "):
        llm(plaintext_egress="error")
    assert foreign == []
    assert seen.exchanges == []
    llm(plaintext_egress="allow").invoke("Hello")
    assert len(foreign) == 1


def test_a_handler_of_another_package_among_the_models_callbacks_is_refused(
    llm: Make, seen: Any, foreign: list[Any]
) -> None:
    model = llm(plaintext_egress="error", callbacks=[ForeignHandler()])
    with pytest.raises(ConfigurationError, match="^Langfuse is active: "):
        model.invoke("Hello")
    assert foreign == []
    assert seen.exchanges == []
