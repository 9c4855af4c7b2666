"""Handlers that would receive plaintext are warned of, refused before their span opens, or allowed."""

from __future__ import annotations

import importlib
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llama_index.core
import pytest
from llama_index.core import Settings
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler, TokenCountingHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel

from llama_index_prem import PlaintextEgressWarning, PremEncrypted
from prem_core import ConfigurationError

PROMPT = "Anna Berg takes 5 mg of ramipril."

Make = Callable[..., PremEncrypted]

_VENDOR = """
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.span_handlers import BaseSpanHandler

received = []

class EventHandler(BaseEventHandler):
    def handle(self, event, **_):
        received.append(str(event.model_dump(exclude={"output_cls", "template"})))

class SpanHandler(BaseSpanHandler):
    def new_span(self, id_, bound_args, **_):
        received.append(str(bound_args.arguments))
    def prepare_to_exit_span(self, *_, **__):
        return None
    def prepare_to_drop_span(self, *_, **__):
        return None

class CallbackHandler(BaseCallbackHandler):
    def __init__(self):
        super().__init__([], [])
    def on_event_start(self, event_type, payload=None, event_id="", **_):
        received.append(str(payload))
        return event_id
    def on_event_end(self, event_type, payload=None, event_id="", **_):
        received.append(str(payload))
    def start_trace(self, trace_id=None):
        pass
    def end_trace(self, trace_id=None, trace_map=None):
        pass
"""


@pytest.fixture
def vendor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An installed package whose handlers record what they receive."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "observability_vendor.py").write_text(_VENDOR)
    monkeypatch.syspath_prepend(folder)
    yield importlib.import_module("observability_vendor")
    del sys.modules["observability_vendor"]


@contextmanager
def added(handlers: list[Any], handler: Any) -> Iterator[None]:
    handlers.append(handler)
    try:
        yield
    finally:
        handlers.remove(handler)


def on_root_events(vendor: Any) -> Any:
    return added(get_dispatcher().event_handlers, vendor.EventHandler())


def on_root_spans(vendor: Any) -> Any:
    return added(get_dispatcher().span_handlers, vendor.SpanHandler())


def on_core_events(vendor: Any) -> Any:
    return added(get_dispatcher("llama_index.core.llms.callbacks").event_handlers, vendor.EventHandler())


@contextmanager
def in_settings(vendor: Any) -> Iterator[None]:
    Settings.callback_manager = CallbackManager([vendor.CallbackHandler()])
    try:
        yield
    finally:
        Settings._callback_manager = None


@contextmanager
def as_global_handler(vendor: Any) -> Iterator[None]:
    # What `set_global_handler` does for an integration that is installed.
    llama_index.core.global_handler = vendor.CallbackHandler()
    try:
        yield
    finally:
        llama_index.core.global_handler = None


PLACES = [on_root_events, on_root_spans, on_core_events, in_settings, as_global_handler]


class Answer(BaseModel):
    name: str = ""


def look_up(name: str) -> str:
    """Look a patient up."""
    return name


async def call(model: PremEncrypted, way: str) -> Any:
    """Call the model in one of the ways that open a span."""
    template = PromptTemplate("{text}")
    tool = FunctionTool.from_defaults(look_up)
    method = getattr(
        model.as_structured_llm(Answer) if way.startswith("structured_llm") else model, way.split()[-1]
    )
    match way.split()[-1]:
        case "chat" | "achat" | "stream_chat" | "astream_chat":
            result = method([ChatMessage(PROMPT)])
        case "complete" | "acomplete" | "stream_complete" | "astream_complete":
            result = method(PROMPT)
        case "chat_with_tools" | "achat_with_tools":
            result = method([tool], PROMPT)
        case "predict_and_call" | "apredict_and_call":
            result = method([tool], PROMPT, error_on_no_tool_call=False)
        case "predict" | "apredict" | "stream" | "astream":
            result = method(template, text=PROMPT)
        case _:
            result = method(Answer, template, text=PROMPT)
    if hasattr(result, "__await__"):
        result = await result
    if hasattr(result, "__aiter__"):
        return [each async for each in result]
    return list(result) if hasattr(result, "__next__") else result


WAYS = [
    "chat", "achat", "stream_chat", "astream_chat", "complete", "acomplete", "stream_complete", "astream_complete",
    "predict", "apredict", "stream", "astream", "chat_with_tools", "achat_with_tools", "predict_and_call",
    "apredict_and_call", "structured_predict", "astructured_predict", "stream_structured_predict",
    "astream_structured_predict", "structured_llm chat", "structured_llm achat", "structured_llm complete",
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_a_model_in_error_mode_is_not_constructed_where_a_handler_is_registered(
    llm: Make, vendor: Any, place: Any
) -> None:
    pickled = pickle.dumps(llm(plaintext_egress="error"))
    with place(vendor):
        with pytest.raises(ConfigurationError, match="observability_vendor.*Handler is active"):
            llm(plaintext_egress="error")
        with pytest.raises(ConfigurationError, match="observability_vendor.*Handler is active"):
            pickle.loads(pickled)
    assert vendor.received == []


def test_a_handler_of_a_query_engines_dispatcher_refuses_construction(llm: Make, vendor: Any) -> None:
    handlers = get_dispatcher("llama_index.core.base.base_query_engine").event_handlers
    with (
        added(handlers, vendor.EventHandler()),
        pytest.raises(ConfigurationError, match="observability_vendor.EventHandler is active"),
    ):
        llm(plaintext_egress="error")


@pytest.mark.parametrize("way", WAYS)
async def test_a_call_is_refused_before_a_handler_that_was_added_later_receives_the_prompt(
    llm: Make, seen: Any, vendor: Any, way: str
) -> None:
    model = llm(plaintext_egress="error")
    with (
        on_root_events(vendor),
        on_root_spans(vendor),
        pytest.raises(ConfigurationError, match="observability_vendor.*Handler is active"),
    ):
        await call(model, way)
    assert "ramipril" not in str(vendor.received)
    assert seen.exchanges == []


@pytest.mark.parametrize("place", PLACES)
async def test_a_call_is_refused_wherever_the_handler_was_added(
    llm: Make, seen: Any, vendor: Any, place: Any
) -> None:
    model = llm(plaintext_egress="error")
    with (
        place(vendor),
        pytest.raises(ConfigurationError, match="observability_vendor.*Handler is active"),
    ):
        model.chat([ChatMessage(PROMPT)])
    assert vendor.received == []
    assert seen.exchanges == []


def test_a_handler_of_the_models_own_callback_manager_is_refused(llm: Make, seen: Any, vendor: Any) -> None:
    model = llm(plaintext_egress="error", callback_manager=CallbackManager([vendor.CallbackHandler()]))
    with pytest.raises(ConfigurationError, match="observability_vendor.CallbackHandler is active"):
        model.complete(PROMPT)
    assert vendor.received == []
    assert seen.exchanges == []


@pytest.mark.parametrize("way", WAYS)
async def test_the_handlers_receive_the_prompt_in_allow_mode(llm: Make, vendor: Any, way: str) -> None:
    # They record; without this, the tests above would prove nothing.
    model = llm(plaintext_egress="allow")
    with on_root_events(vendor), on_root_spans(vendor):
        await call(model, way)
    assert "ramipril" in str(vendor.received)


def test_handlers_are_warned_of_once_by_default(llm: Make, vendor: Any) -> None:
    with on_root_events(vendor):
        with pytest.warns(PlaintextEgressWarning, match="^observability_vendor.EventHandler is active"):
            llm().chat([ChatMessage("Hello")])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            llm().chat([ChatMessage("Hello again")])


def test_handlers_in_memory_and_the_applications_own_are_allowed_in_error_mode(
    llm: Make, events: list[str]
) -> None:
    manager = CallbackManager([LlamaDebugHandler(print_trace_on_end=False), TokenCountingHandler()])
    model = llm(plaintext_egress="error", callback_manager=manager)
    assert model.chat([ChatMessage("Hello")]).message.content
    assert "LLMChatStartEvent" in events


def test_a_structured_llm_answers_as_cores_own(llm: Make) -> None:
    structured = llm(plaintext_egress="error").as_structured_llm(Answer)
    assert isinstance(structured.complete(PROMPT).raw, Answer)
    assert structured.class_name() == "structured_llm"
