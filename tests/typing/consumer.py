"""The public API as a typed program uses it; checked by mypy --strict, never run."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, assert_type

from langchain_core.documents import Document
from langchain_core.messages import AIMessage

from langchain_prem import ChatPremEncrypted, PremWhisperLoader
from llama_index_prem import PremEncrypted, PremWhisperReader
from prem_core import (
    AsyncChatCompletionStream,
    AsyncPremClient,
    ChatCompletion,
    ChatCompletionStream,
    EncryptionKeys,
    Model,
    PremClient,
    RateLimitError,
    Transcription,
    generate_encryption_keys,
)
from prem_core.enclave import Engine, EngineRequest, LocalEnclave, reply, tool_call


def synchronous() -> None:
    keys = generate_encryption_keys()
    assert_type(keys, EncryptionKeys)
    with PremClient(api_key="sk_test_x", encryption_keys=keys, timeout=5.0) as client:
        messages = [{"role": "user", "content": "Hello!"}]
        answer = client.chat.completions.create(model="m", messages=messages, temperature=0.5)
        assert_type(answer, ChatCompletion)
        stream = client.chat.completions.create(model="m", messages=messages, stream=True)
        assert_type(stream, ChatCompletionStream)
        assert_type([chunk.choices[0].delta.content for chunk in stream], list[str | None])
        assert_type(client.models.list("CHAT"), list[Model])


async def asynchronous() -> None:
    async with AsyncPremClient() as client:
        messages = [{"role": "user", "content": "Hello!"}]
        assert_type(await client.chat.completions.create(model="m", messages=messages), ChatCompletion)
        stream = await client.chat.completions.create(model="m", messages=messages, stream=True)
        assert_type(stream, AsyncChatCompletionStream)
        async for chunk in stream:
            assert_type(chunk.model, str)


def langchain() -> None:
    with LocalEnclave(tier="base") as prem:
        llm = ChatPremEncrypted(
            model="m", api_key=prem.api_key, gateway_url=prem.gateway_url, enclave_url=prem.enclave_url
        )
        assert_type(llm.invoke("Hello!"), AIMessage)


class Echo(Engine):
    async def chat(self, request: EngineRequest) -> AsyncGenerator[dict[str, Any], None]:
        yield {"choices": [{"index": 0, "delta": {"content": request.text}, "finish_reason": "stop"}]}


def scripted() -> None:
    error = RateLimitError(retry_after=1)
    with LocalEnclave(replies=["Hello", tool_call("f", a=1), reply("a", usage=(1, 2)), error]) as prem:
        prem.reply("Hello", [tool_call("f"), tool_call("g", {"in": 1})])
        prem.replies = [reply(["a", "b"], error=error), {"text": "Hello."}]
        assert_type(prem.requests, list[EngineRequest])
    LocalEnclave(respond=lambda request: request.text)
    LocalEnclave(engine=Echo())


def recordings(client: PremClient) -> None:
    assert_type(client.audio.transcriptions.create(file=b"", language="en"), Transcription)
    assert_type(client.audio.translations.create(file="a.wav", response_format="text"), str)
    assert_type(list(PremWhisperLoader("a.wav", mode="segments").lazy_load()), list[Document])
    for document in PremWhisperReader().lazy_load_data("a.wav"):
        assert_type(document.text, str)


def llama_index() -> None:
    llm = PremEncrypted(model="m", context_window=8000)
    assert_type(llm.metadata.context_window, int)


def errors(error: RateLimitError) -> float | None:
    return error.retry_after
