"""Fixtures of the LlamaIndex tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.llms import ChatMessage
from pydantic import Field
from support.scripted_enclave import always

from llama_index_prem import PremEncrypted
from prem_core.enclave import LocalEnclave, ScriptedEngine

MODEL = "openai/gpt-oss-120b"


@pytest.fixture
def llm(enclave: LocalEnclave) -> Callable[..., PremEncrypted]:
    """Constructs models that use the test enclave."""

    def make(**kwargs: Any) -> PremEncrypted:
        return PremEncrypted(**{"model": MODEL, **enclave.client_options, **kwargs})

    return make


@pytest.fixture
def scripted(engine: ScriptedEngine, scripted_options: dict[str, Any]) -> Callable[..., PremEncrypted]:
    """Constructs models whose enclave answers with the given chunks."""

    def make(*chunks: Any, truncated: bool = False, **kwargs: Any) -> PremEncrypted:
        engine.respond = always(*chunks, truncated=truncated)
        return PremEncrypted(**{"model": MODEL, **scripted_options, **kwargs})

    return make


async def _asked(model: PremEncrypted, way: str, prompt: str = "?", /, **kwargs: Any) -> list[Any]:
    """Every response of one of the eight ways of calling a model."""
    asking: Any = [ChatMessage(prompt)] if "chat" in way else prompt
    method = getattr(model, way)
    if way.startswith("astream"):
        return [response async for response in await method(asking, **kwargs)]
    if way.startswith("stream"):
        return list(method(asking, **kwargs))
    return [await method(asking, **kwargs) if way.startswith("a") else method(asking, **kwargs)]


@pytest.fixture
def asked() -> Callable[..., Any]:
    """`await asked(model, way, prompt, **kwargs)` returns every response of that way of calling."""
    return _asked


class _Events(BaseEventHandler):
    names: list[str] = Field(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "_Events"

    def handle(self, event: Any, **_: Any) -> None:
        self.names.append(event.class_name())


@pytest.fixture
def events() -> Iterator[list[str]]:
    """The names of the instrumentation events of this test, in order."""
    handler, dispatcher = _Events(), get_dispatcher()
    dispatcher.add_event_handler(handler)
    yield handler.names
    dispatcher.event_handlers.remove(handler)
