"""The columns of the fault table: real clients and models, and the result of a call of each."""

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
QUESTION: Final = "Context: The new clinic opens daily at eight. Question: When does the clinic open?"

#: The response of the embedded enclave to `QUESTION`, chunk by chunk.
WORDS: Final = ("The", " new", " clinic", " opens", " daily", " at", " eight", ".")
TEXT: Final = "".join(WORDS)

PARAMS: Final[dict[str, Any]] = {"model": MODEL, "reasoning_effort": "none"}

Way = Literal["sync", "async"]
Form = Literal["stream", "whole"]


@dataclass
class CallResult:
    """The result of one call.

    Attributes:
        words: The text of each chunk, or the text of a whole response.
        answer: The parts of the response that are equal in every run; None after an error.
        error: The exception, without its traceback.
        ended: The end as reported to the framework's callbacks: "end" or "error", once per call.
        counted: The requests in the client's `stats`, which do not count `models.list()`.
    """

    words: list[str] = field(default_factory=list)
    answer: Any = None
    error: BaseException | None = None
    ended: list[str] = field(default_factory=list)
    counted: int = 0

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self.words)


def _without(value: Any, *names: str) -> Any:
    if isinstance(value, dict):
        return {name: _without(each, *names) for name, each in value.items() if name not in names}
    return [_without(each, *names) for each in value] if isinstance(value, list) else value


def _constant(items: list[Any]) -> Any:
    # `prem` names the key, which differs between rows.
    return _without([item.model_dump() for item in items], "created", "prem")


class Core:
    """`prem_core`'s clients."""

    name = "prem_core"

    def client(self, settings: dict[str, Any], ends: list[str]) -> PremClient:
        return PremClient(**settings)

    def aclient(self, settings: dict[str, Any], ends: list[str]) -> AsyncPremClient:
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
        parts = [getattr(choice, "delta", None) or choice.message for choice in item.choices]
        return "".join(each.content or "" for each in parts)

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

    def __init__(self, ends: list[str]) -> None:
        self.ends = ends

    def on_llm_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append("end")

    def on_llm_error(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append("error")


class LangChain:
    """`ChatPremEncrypted`."""

    name = "langchain_prem"

    def client(self, settings: dict[str, Any], ends: list[str]) -> ChatPremEncrypted:
        return ChatPremEncrypted(**PARAMS, **settings, callbacks=[_Ends(ends)])

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
        return message.content, _without(message.response_metadata, "prem"), message.usage_metadata


class _LlamaEnds(LlamaHandler):
    """LlamaIndex's callbacks."""

    def __init__(self, ends: list[str]) -> None:
        super().__init__([], [])
        self.ends = ends

    def on_event_start(
        self, event_type: Any, payload: Any = None, event_id: str = "", *_: Any, **__: Any
    ) -> str:
        return event_id

    def on_event_end(self, event_type: Any, payload: Any = None, event_id: str = "", **_: Any) -> None:
        self.ends.append("error" if EventPayload.EXCEPTION in (payload or {}) else "end")

    def start_trace(self, trace_id: str | None = None) -> None:
        pass

    def end_trace(self, trace_id: str | None = None, trace_map: Any = None) -> None:
        pass


class LlamaIndex:
    """`PremEncrypted`."""

    name = "llama_index_prem"

    def client(self, settings: dict[str, Any], ends: list[str]) -> PremEncrypted:
        return PremEncrypted(**PARAMS, **settings, callback_manager=CallbackManager([_LlamaEnds(ends)]))

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


Ask = Callable[[], CallResult]


@dataclass(frozen=True)
class Column:
    """One kind of call.

    Attributes:
        layer: The client or model.
        way: Sync or async.
        form: Streamed or whole.
        enveloped: Whether the enclave responds with the JSON envelope instead of events.
    """

    layer: Any
    way: Way
    form: Form
    enveloped: bool = False

    @property
    def kind(self) -> str:
        """The kind of response in the table: chat, envelope, audio or models."""
        if self.enveloped:
            return "envelope"
        return str(self.layer.name) if self.layer.name in ("audio", "models") else "chat"

    def __str__(self) -> str:
        names = (self.layer.name, self.way, "envelope" if self.enveloped else self.form)
        return "-".join(names[:2] if self.kind in ("audio", "models") else names)

    @contextlib.contextmanager
    def calls(self, settings: dict[str, Any]) -> Iterator[Ask]:
        """A function that makes a call, always with the same client, whose connections are closed at the end."""
        ended: list[str] = []
        with self._asking(settings, ended) as (client, ask):

            def call() -> CallResult:
                ended.clear()
                result = CallResult()
                before = client().stats.requests
                try:
                    items = ask(result)
                    result.answer = self.layer.answer(items)
                except Exception as error:
                    result.error = _bare(error)
                result.ended, result.counted = [*ended], client().stats.requests - before
                return result

            yield call

    @contextlib.contextmanager
    def _asking(
        self, settings: dict[str, Any], ended: list[str]
    ) -> Iterator[tuple[Callable[[], Any], Callable[[CallResult], list[Any]]]]:
        layer: Any = self.layer
        if self.way == "sync":
            # This is the only reference: the models close their connections when they are freed.
            held = [layer.client(settings, ended)]

            def ask(result: CallResult) -> list[Any]:
                items = []
                for item in layer.ask(held[0], self.form):
                    result.words.append(layer.text(item))
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

            async def aask(result: CallResult) -> list[Any]:
                items = []
                async for item in layer.aask(aclient, self.form):
                    result.words.append(layer.text(item))
                    items.append(item)
                return items

            try:
                yield lambda: aclient, lambda result: runner.run(aask(result))
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
    """The first quarter second of the example recording."""
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
