"""`PremTransport` and `AsyncPremTransport` with real clients: OpenAI's, LangChain's and LlamaIndex's."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import httpx2
import openai
import pytest
from langchain_openai import ChatOpenAI
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from support.openai_session import check_report, each, run_session, settle
from support.proxies import MODEL, chat
from support.scripted_upstream import chunk
from support.waiting import eventually

from prem_core import ConfigurationError
from prem_core.enclave import EngineError, LocalEnclave, ScriptedEngine, reply, tool_call
from prem_core.transport import AsyncPremTransport, PremTransport

URL = "https://prem.invalid/v1"


def urls(prem: LocalEnclave) -> dict[str, Any]:
    return {"gateway_url": prem.gateway_url, "enclave_url": prem.enclave_url}


@pytest.fixture
def scripted() -> Iterator[LocalEnclave]:
    with LocalEnclave(engine=ScriptedEngine()) as prem:
        engine = prem.engine
        assert isinstance(engine, ScriptedEngine)
        engine.respond = lambda request: "Hello"
        yield prem


@pytest.fixture
def script(scripted: LocalEnclave) -> ScriptedEngine:
    assert isinstance(scripted.engine, ScriptedEngine)
    return scripted.engine


@pytest.fixture
def client(scripted: LocalEnclave, script: ScriptedEngine) -> Iterator[openai.OpenAI]:
    """OpenAI's client through a transport that does not retry."""
    del script
    transport = PremTransport(max_retries=0, **urls(scripted))
    with openai.OpenAI(
        api_key=scripted.api_key, base_url=URL, http_client=httpx.Client(transport=transport), max_retries=0
    ) as made:
        yield made


@pytest.mark.parametrize("library", [httpx, httpx2])
@pytest.mark.parametrize("kind", [openai.OpenAI, openai.AsyncOpenAI])
async def test_openais_client_works_with_every_route_without_a_server(
    kind: type[Any], library: Any, enclave: LocalEnclave, scripted: LocalEnclave, script: ScriptedEngine
) -> None:
    script.respond = lambda request: reply("Hello", stalled=True)
    with LocalEnclave(tier="base") as limited:
        clients = []
        for prem in (enclave, limited, scripted):
            options = {"max_retries": 0 if prem is limited else 2, **urls(prem)}
            http: Any = (
                library.Client(transport=PremTransport(**options))
                if kind is openai.OpenAI
                else library.AsyncClient(transport=AsyncPremTransport(**options))
            )
            clients.append(kind(api_key=prem.api_key, base_url=URL, http_client=http, max_retries=0))
        try:
            check_report(await run_session(*clients))
            assert await asyncio.to_thread(script.disconnected.wait, 5), "the request was not cancelled"
        finally:
            for each in clients:
                closed = each.close()
                if closed is not None:
                    await closed


async def test_chat_openai_answers_streams_and_calls_tools(
    scripted: LocalEnclave, script: ScriptedEngine
) -> None:
    options = {"max_retries": 0, **urls(scripted)}
    with httpx.Client(transport=PremTransport(**options)) as http:
        async with httpx.AsyncClient(transport=AsyncPremTransport(**options)) as async_http:
            llm = ChatOpenAI(
                model="m",
                api_key=scripted.api_key,
                base_url=URL,
                http_client=http,
                http_async_client=async_http,
                max_retries=0,
            )
            assert llm.invoke("Hi").content == "Hello"
            assert (await llm.ainvoke("Hi")).content == "Hello"
            assert "".join(str(each.content) for each in llm.stream("Hi")) == "Hello"
            assert "".join([str(each.content) async for each in llm.astream("Hi")]) == "Hello"
            script.respond = lambda request: reply(tool_calls=[tool_call("Person", name="Ada")] * 2)
            schema = {"title": "Person", "description": "A person.", "type": "object",
                      "properties": {"name": {"type": "string"}}}  # fmt: skip
            # It sends parallel_tool_calls=False.
            structured = llm.with_structured_output(schema, method="function_calling")
            assert structured.invoke("Who?") == {"name": "Ada"}


async def test_openai_like_of_llama_index_answers_and_streams(scripted: LocalEnclave) -> None:
    options = {"max_retries": 0, **urls(scripted)}
    with httpx.Client(transport=PremTransport(**options)) as http:
        async with httpx.AsyncClient(transport=AsyncPremTransport(**options)) as async_http:
            llm = OpenAILike(
                model="m",
                api_key=scripted.api_key,
                api_base=URL,
                is_chat_model=True,
                http_client=http,
                async_http_client=async_http,
                max_retries=0,
            )
            messages = [ChatMessage("Hi")]
            assert llm.chat(messages).message.content == "Hello"
            assert (await llm.achat(messages)).message.content == "Hello"
            assert [*llm.stream_chat(messages)][-1].message.content == "Hello"
            assert [each async for each in await llm.astream_chat(messages)][-1].message.content == "Hello"


def test_a_response_has_the_headers_of_the_proxy(client: openai.OpenAI) -> None:
    answer = client.chat.completions.with_raw_response.create(
        **chat(user="anna"), extra_body={"prompt_cache_options": {}}
    )
    assert "nonce=own" in answer.headers["x-prem-protection"]
    assert answer.headers["x-prem-adjusted"] == "user"
    assert answer.headers["x-prem-dropped"] == "prompt_cache_options"
    assert answer.headers["x-request-id"].startswith("req_")


def test_an_error_has_the_form_of_the_api_its_status_and_headers(
    client: openai.OpenAI, script: ScriptedEngine
) -> None:
    script.respond = lambda request: EngineError("slow down", status=429, retry_after=7)
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(**chat())
    assert caught.value.code == "rate_limit_exceeded"
    assert caught.value.response.headers["retry-after"] == "7"
    with pytest.raises(openai.BadRequestError, match="top_k"):
        client.chat.completions.create(**chat(), extra_body={"top_k": 3})
    with pytest.raises(openai.NotFoundError, match="/v1/chat/completions"):
        client.embeddings.create(model="m", input="text")


def test_callers_are_asked_not_to_retry_what_the_transport_has_retried(
    scripted: LocalEnclave, script: ScriptedEngine
) -> None:
    script.respond = lambda request: EngineError("overloaded", status=503)
    with httpx.Client(transport=PremTransport(max_retries=1, **urls(scripted)), base_url=URL) as http:
        auth = {"authorization": f"Bearer {scripted.api_key}"}
        answer = http.post("/chat/completions", json=chat(), headers=auth)
    assert (answer.status_code, answer.headers["x-should-retry"]) == (503, "false")
    assert len(script.requests) == 2


def test_an_error_in_the_middle_of_a_stream_is_raised_after_its_chunks(
    client: openai.OpenAI, script: ScriptedEngine
) -> None:
    script.respond = lambda request: [chunk("Hel"), EngineError("overloaded", type="overloaded_error")]
    texts = []
    with pytest.raises(openai.APIError, match="overloaded"):
        for each in client.chat.completions.create(**chat(), stream=True):
            texts.append(each.choices[0].delta.content)
    assert texts == ["Hel"]


def test_closing_a_stream_closes_the_request(client: openai.OpenAI, script: ScriptedEngine) -> None:
    script.respond = lambda request: reply("Hel", stalled=True)
    with client.chat.completions.create(**chat(), stream=True) as stream:
        assert next(stream).choices[0].delta.content == "Hel"
        assert not script.disconnected.is_set()
    assert script.disconnected.wait(5)


async def test_cancelling_a_task_closes_the_request(scripted: LocalEnclave, script: ScriptedEngine) -> None:
    script.respond = lambda request: reply(delay=60)
    transport = AsyncPremTransport(**urls(scripted))
    async with httpx.AsyncClient(transport=transport, base_url=URL) as http:
        auth = {"authorization": f"Bearer {scripted.api_key}"}
        task = asyncio.create_task(http.post("/chat/completions", json=chat(), headers=auth, timeout=60))
        assert await asyncio.to_thread(eventually, lambda: script.requests)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await asyncio.to_thread(script.disconnected.wait, 5)


def test_the_timeout_of_a_request_applies(client: openai.OpenAI, script: ScriptedEngine) -> None:
    script.respond = lambda request: reply(delay=60)
    with pytest.raises(openai.APIStatusError) as caught:
        client.with_options(timeout=0.3).chat.completions.create(**chat())
    assert (caught.value.status_code, caught.value.code) == (504, "upstream_timeout")


@pytest.mark.parametrize("name", ["authorization", "x-api-key"])
def test_the_key_of_each_request_is_used(scripted: LocalEnclave, name: str) -> None:
    with httpx.Client(transport=PremTransport(**urls(scripted)), base_url=URL) as http:
        prefix = "Bearer " if name == "authorization" else ""
        for key, status in ((scripted.api_key, 200), ("sk_test_wrong", 401)):
            answer = http.post("/chat/completions", json=chat(), headers={name: prefix + key})
            assert answer.status_code == status
        missing = http.post("/chat/completions", json=chat())
        assert (missing.status_code, missing.json()["error"]["code"]) == (401, "invalid_api_key")


def test_the_transports_own_key_wins_over_the_requests(scripted: LocalEnclave) -> None:
    transport = PremTransport(api_key=scripted.api_key, **urls(scripted))
    with openai.OpenAI(
        api_key="unused", base_url=URL, http_client=httpx.Client(transport=transport), max_retries=0
    ) as made:
        assert made.chat.completions.create(**chat()).choices[0].message.content == "Hello"


def test_nothing_is_sent_to_the_host_of_the_base_url(client: openai.OpenAI) -> None:
    moved = client.with_options(base_url="https://api.openai.com/openai/v1")
    assert moved.chat.completions.create(**chat()).choices[0].message.content == "Hello"


def test_nonce_reuse_error_sends_the_whole_answer_to_a_caller_of_a_stream(enclave: LocalEnclave) -> None:
    transport = PremTransport(nonce_reuse="error", **urls(enclave))
    with openai.OpenAI(
        api_key=enclave.api_key, base_url=URL, http_client=httpx.Client(transport=transport), max_retries=0
    ) as made:
        answer = made.chat.completions.with_raw_response.create(**chat(), stream=True)
        assert "nonce=own" in answer.headers["x-prem-protection"]
        assert len(list(answer.parse())) <= 3


def test_threads_share_a_transport(client: openai.OpenAI, script: ScriptedEngine) -> None:
    script.respond = lambda request: request.text
    found: dict[int, str | None] = {}

    def ask(number: int) -> None:
        stream = client.chat.completions.create(**chat(f"number {number}"), stream=True)
        found[number] = "".join(each.choices[0].delta.content or "" for each in stream)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: f"number {number}" for number in range(20)}


@pytest.mark.parametrize("kind", [PremTransport, AsyncPremTransport])
def test_a_transport_cannot_be_pickled_or_copied_and_its_repr_has_no_key(
    kind: type[Any], enclave: LocalEnclave
) -> None:
    transport = kind(api_key=enclave.api_key)
    for copied in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled"):
            copied(transport)
    assert enclave.api_key not in repr(transport)


@pytest.mark.parametrize(
    "options",
    [{"compat": "cohere"}, {"gateway_url": "ftp://x"}, {"nonce_reuse": "never"}, {"http_client": object()}],
)
@pytest.mark.parametrize("kind", [PremTransport, AsyncPremTransport])
def test_an_option_that_cannot_work_is_an_error_at_once(kind: type[Any], options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        kind(**options)


def test_a_closed_transport_answers_with_an_error(scripted: LocalEnclave) -> None:
    transport = PremTransport(**urls(scripted))
    transport.close()
    request = httpx.Request(
        "POST",
        URL + "/chat/completions",
        json=chat(),
        headers={"authorization": f"Bearer {scripted.api_key}"},
    )
    answer = transport.handle_request(request)
    assert (answer.status_code, json.loads(answer.read())["error"]["message"]) == (
        500,
        "the transport is closed",
    )


def test_a_model_is_listed_and_found_by_the_name_to_request_it_by(enclave: LocalEnclave) -> None:
    transport = PremTransport(**urls(enclave))
    with openai.OpenAI(
        api_key=enclave.api_key, base_url=URL, http_client=httpx.Client(transport=transport)
    ) as made:
        assert MODEL in [each.id for each in made.models.list()]
        assert made.models.retrieve(MODEL).id == MODEL


@pytest.mark.parametrize("kind", [openai.OpenAI, openai.AsyncOpenAI])
async def test_the_responses_api_stores_responses_only_where_asked_for(
    kind: type[Any], scripted: LocalEnclave
) -> None:
    for store in (False, True):
        options = {"store_responses": store, "max_retries": 0, **urls(scripted)}
        http: Any = (
            httpx.Client(transport=PremTransport(**options))
            if kind is openai.OpenAI
            else httpx.AsyncClient(transport=AsyncPremTransport(**options))
        )
        client = kind(api_key=scripted.api_key, base_url=URL, http_client=http, max_retries=0)
        streamed = await settle(client.responses.create(model=MODEL, input="Hi.", stream=True))
        response = [event async for event in each(streamed)][-1].response
        assert response.output_text == "Hello"
        if store:
            assert (await settle(client.responses.retrieve(response.id))).output == response.output
        else:
            with pytest.raises(openai.NotFoundError, match="store_responses=True"):
                await settle(client.responses.retrieve(response.id))
        await settle(client.close())
