"""The table's columns: the ways of asking, and what each of them gave.

The rule of this file: the clients and models are the real ones, made with their own arguments; a column only asks, and
writes down what it was given.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import wave
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from langchain_core.callbacks import BaseCallbackHandler
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.callbacks import CallbackManager
from llama_index.core.callbacks.base_handler import BaseCallbackHandler as LlamaHandler
from llama_index.core.callbacks.schema import EventPayload

from langchain_prem import ChatPremEncrypted
from llama_index_prem import PremEncrypted
from prem_core import AsyncPremClient, PremClient
from prem_core._adapters.client_cache import CLIENTS
from support.paths import CLINIC_NOTE

MODEL: Final = "openai/gpt-oss-120b"
QUESTION: Final = "Context: The clinic opens at eight. Question: When does the clinic open?"

#: What the embedded enclave answers, chunk by chunk.
WORDS: Final = ("Context", ":", " The", " clinic", " opens", " at", " eight", ".")
TEXT: Final = "".join(WORDS)

PARAMS: Final[dict[str, Any]] = {"model": MODEL, "reasoning_effort": "none"}

Way = Literal["sync", "async"]
Form = Literal["stream", "whole"]


@dataclass
class Told:
    """What one question was answered with.

    Attributes:
        words: The text of each item, as it came; of a whole answer its whole text.
        answer: All of the answer that is the same in every run, where it ended well.
        error: What was raised instead, without its traceback.
        ended: How the framework's callbacks heard of the end: "end" or "error", each time they did.
        began: How many requests the client says to have sent for it; `models.list()` is not counted.
    """

    words: list[str] = field(default_factory=list)
    answer: Any = None
    error: BaseException | None = None
    ended: list[str] = field(default_factory=list)
    began: int = 0

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self.words)


def _without(value: Any, *names: str) -> Any:
    if isinstance(value, dict):
        return {name: _without(each, *names) for name, each in value.items() if name not in names}
    return [_without(each, *names) for each in value] if isinstance(value, list) else value


def _constant(items: list[Any]) -> Any:
    return _without([item.model_dump() for item in items], "created")


class Core:
    """`prem_core`'s clients."""

    name = "prem_core"

    def client(self, settings: dict[str, Any], told: list[str]) -> PremClient:
        return PremClient(**settings)

    def aclient(self, settings: dict[str, Any], told: list[str]) -> AsyncPremClient:
        return AsyncPremClient(**settings)

    def ask(self, client: PremClient, form: Form) -> Iterator[Any]:
        messages = [{"role": "user", "content": QUESTION}]
        if form == "stream":
            yield from client.chat.completions.create(messages=messages, stream=True, **PARAMS)
        else:
            yield client.chat.completions.create(messages=messages, **PARAMS)

    async def aask(self, client: AsyncPremClient, form: Form) -> AsyncIterator[Any]:
        messages = [{"role": "user", "content": QUESTION}]
        if form == "stream":
            async for chunk in await client.chat.completions.create(messages=messages, stream=True, **PARAMS):
                yield chunk
        else:
            yield await client.chat.completions.create(messages=messages, **PARAMS)

    def text(self, item: Any) -> str:
        said = [getattr(choice, "delta", None) or choice.message for choice in item.choices]
        return "".join(each.content or "" for each in said)

    def answer(self, items: list[Any]) -> Any:
        return _constant(items)


class Audio(Core):
    """`client.audio.transcriptions`."""

    name = "audio"

    def ask(self, client: PremClient, form: Form) -> Iterator[Any]:
        yield client.audio.transcriptions.create(file=_recording(), response_format="verbose_json")

    async def aask(self, client: AsyncPremClient, form: Form) -> AsyncIterator[Any]:
        yield await client.audio.transcriptions.create(file=_recording(), response_format="verbose_json")

    def text(self, item: Any) -> str:
        return str(item.text)


class Models(Core):
    """`client.models.list()`."""

    name = "models"

    def ask(self, client: PremClient, form: Form) -> Iterator[Any]:
        yield from client.models.list()

    async def aask(self, client: AsyncPremClient, form: Form) -> AsyncIterator[Any]:
        for model in await client.models.list():
            yield model

    def text(self, item: Any) -> str:
        return str(item.model)


class _Ends(BaseCallbackHandler):
    """LangChain's callbacks."""

    def __init__(self, told: list[str]) -> None:
        self.told = told

    def on_llm_end(self, *args: Any, **kwargs: Any) -> None:
        self.told.append("end")

    def on_llm_error(self, *args: Any, **kwargs: Any) -> None:
        self.told.append("error")


class LangChain:
    """`ChatPremEncrypted`."""

    name = "langchain_prem"

    def client(self, settings: dict[str, Any], told: list[str]) -> ChatPremEncrypted:
        return ChatPremEncrypted(**PARAMS, **settings, callbacks=[_Ends(told)])

    aclient = client

    def ask(self, llm: ChatPremEncrypted, form: Form) -> Iterator[Any]:
        if form == "stream":
            yield from llm.stream(QUESTION)
        else:
            yield llm.invoke(QUESTION)

    async def aask(self, llm: ChatPremEncrypted, form: Form) -> AsyncIterator[Any]:
        if form == "stream":
            async for chunk in llm.astream(QUESTION):
                yield chunk
        else:
            yield await llm.ainvoke(QUESTION)

    def text(self, item: Any) -> str:
        return str(item.text)

    def answer(self, items: list[Any]) -> Any:
        message = items[0]
        for item in items[1:]:
            message = message + item
        return message.content, message.response_metadata, message.usage_metadata


class _LlamaEnds(LlamaHandler):
    """LlamaIndex's callbacks."""

    def __init__(self, told: list[str]) -> None:
        super().__init__([], [])
        self.told = told

    def on_event_start(
        self, event_type: Any, payload: Any = None, event_id: str = "", *_: Any, **__: Any
    ) -> str:
        return event_id

    def on_event_end(self, event_type: Any, payload: Any = None, event_id: str = "", **_: Any) -> None:
        self.told.append("error" if EventPayload.EXCEPTION in (payload or {}) else "end")

    def start_trace(self, trace_id: str | None = None) -> None:
        pass

    def end_trace(self, trace_id: str | None = None, trace_map: Any = None) -> None:
        pass


class LlamaIndex:
    """`PremEncrypted`."""

    name = "llama_index_prem"

    def client(self, settings: dict[str, Any], told: list[str]) -> PremEncrypted:
        return PremEncrypted(**PARAMS, **settings, callback_manager=CallbackManager([_LlamaEnds(told)]))

    aclient = client

    def ask(self, llm: PremEncrypted, form: Form) -> Iterator[Any]:
        if form == "stream":
            yield from llm.stream_chat([ChatMessage(QUESTION)])
        else:
            yield llm.chat([ChatMessage(QUESTION)])

    async def aask(self, llm: PremEncrypted, form: Form) -> AsyncIterator[Any]:
        if form == "stream":
            async for response in await llm.astream_chat([ChatMessage(QUESTION)]):
                yield response
        else:
            yield await llm.achat([ChatMessage(QUESTION)])

    def text(self, item: Any) -> str:
        return str(item.message.content if item.delta is None else item.delta)

    def answer(self, items: list[Any]) -> Any:
        return _constant(items)


Ask = Callable[[], Told]


@dataclass(frozen=True)
class Column:
    """One way of asking.

    Attributes:
        layer: What asks.
        way: Sync or async.
        form: Streamed or whole.
        enveloped: Whether the enclave answers in the JSON envelope instead of events.
    """

    layer: Any
    way: Way
    form: Form
    enveloped: bool = False

    @property
    def kind(self) -> str:
        """What the table calls the answers of this column: chat, envelope, audio or models."""
        if self.enveloped:
            return "envelope"
        return str(self.layer.name) if self.layer.name in ("audio", "models") else "chat"

    def __str__(self) -> str:
        names = (self.layer.name, self.way, "envelope" if self.enveloped else self.form)
        return "-".join(names[:2] if self.kind in ("audio", "models") else names)

    @contextlib.contextmanager
    def asking(self, settings: dict[str, Any]) -> Iterator[Ask]:
        """A function that asks the question, each time with the same client; its connections are closed in the end."""
        ended: list[str] = []
        with self._asking(settings, ended) as (client, ask):

            def telling() -> Told:
                ended.clear()
                told = Told()
                began = client().stats.requests
                try:
                    items = ask(told)
                    told.answer = self.layer.answer(items)
                except Exception as error:
                    told.error = _bare(error)
                told.ended, told.began = [*ended], client().stats.requests - began
                return told

            yield telling

    @contextlib.contextmanager
    def _asking(
        self, settings: dict[str, Any], ended: list[str]
    ) -> Iterator[tuple[Callable[[], Any], Callable[[Told], list[Any]]]]:
        layer: Any = self.layer
        if self.way == "sync":
            # Held here alone: the models close their connections when they are forgotten.
            held = [layer.client(settings, ended)]

            def ask(told: Told) -> list[Any]:
                items = []
                for item in layer.ask(held[0], self.form):
                    told.words.append(layer.text(item))
                    items.append(item)
                return items

            try:
                yield lambda: held[0], ask
            finally:
                if isinstance(held[0], PremClient):
                    held[0].close()
                held.clear()
                CLIENTS.clear()
            return
        with asyncio.Runner() as runner:
            aclient = layer.aclient(settings, ended)

            async def aask(told: Told) -> list[Any]:
                items = []
                async for item in layer.aask(aclient, self.form):
                    told.words.append(layer.text(item))
                    items.append(item)
                return items

            try:
                yield lambda: aclient, lambda told: runner.run(aask(told))
            finally:
                if isinstance(aclient, AsyncPremClient):
                    runner.run(aclient.close())
                CLIENTS.clear()


def _bare(error: BaseException) -> BaseException:
    """`error` without the frames that would keep its client alive."""
    pending: list[BaseException | None] = [error]
    while pending:
        each = pending.pop()
        if each is not None and each.__traceback__ is not None:
            each.__traceback__ = None
            pending += [each.__cause__, each.__context__]
    return error


def _recording() -> tuple[str, bytes]:
    """The first quarter of a second of a doctor's note."""
    with wave.open(str(CLINIC_NOTE)) as note:
        rate, frames = note.getframerate(), note.readframes(note.getframerate() // 4)
    written = io.BytesIO()
    with wave.open(written, "wb") as wav:
        wav.setnchannels(1)
        wav.setsampwidth(2)
        wav.setframerate(rate)
        wav.writeframes(frames)
    return "note.wav", written.getvalue()


LAYERS: Final = (Core(), LangChain(), LlamaIndex())
WAYS: Final[tuple[Way, ...]] = ("sync", "async")
FORMS: Final[tuple[Form, ...]] = ("stream", "whole")

COLUMNS: Final = (
    *(Column(layer, way, form) for layer in LAYERS for form in FORMS for way in WAYS),
    *(Column(LAYERS[0], way, "whole", enveloped=True) for way in WAYS),
    *(Column(layer, way, "whole") for layer in (Audio(), Models()) for way in WAYS),
)
