"""OpenAI's Responses API through the proxy, with the official client and ChatOpenAI."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import openai
import pytest
from langchain.agents import create_agent
from langchain_openai import ChatOpenAI
from pydantic import BaseModel
from support.openai_session import ERRANDS, INVOICE, MODEL, QUESTION, RESULTS, SCHEMA, TOOLS, each, settle
from support.proxies import StartProxy, headers
from support.proxy_process import ProxyProcess
from support.response_events import check_response, check_stream, read_events
from support.waiting import eventually

from prem_core import RateLimitError
from prem_core.enclave import LocalEnclave, ScriptedEngine, reply, tool_call
from prem_core.proxy import LocalProxy

ANSWER = "The clinic opens at eight."
FUNCTIONS = [{"type": "function", "strict": None, **tool["function"]} for tool in TOOLS]
HELLO = {"model": "scripted", "input": "Hello?"}


class Invoice(BaseModel):
    invoice_number: str
    total: float


def get_weather(location: str) -> str:
    """Get the weather at a location."""
    return RESULTS["get_weather"]


def get_time(city: str) -> str:
    """Get the local time in a city."""
    return RESULTS["get_time"]


@pytest.fixture(params=[openai.OpenAI, openai.AsyncOpenAI], ids=["sync", "async"])
async def make_client(request: pytest.FixtureRequest) -> AsyncIterator[Callable[..., Any]]:
    """Makes an official client of a proxy. It does not retry."""
    made = []

    def make(proxy: LocalProxy, prem: LocalEnclave) -> Any:
        made.append(request.param(base_url=proxy.base_url, api_key=prem.api_key, max_retries=0))
        return made[-1]

    yield make
    for client in made:
        await settle(client.close())


@pytest.fixture
def storing(enclave: LocalEnclave, start_proxy: StartProxy) -> LocalProxy:
    """A proxy that stores responses."""
    return start_proxy(enclave, store_responses=True)


async def test_the_official_client_gets_text_whole_and_streamed(
    make_client: Callable[..., Any], proxy: LocalProxy, enclave: LocalEnclave
) -> None:
    responses = make_client(proxy, enclave).responses
    whole = await settle(responses.create(model=MODEL, input=QUESTION, instructions="Be brief."))
    assert ANSWER in whole.output_text
    assert [item.type for item in whole.output] == ["reasoning", "message"]
    assert whole.usage.total_tokens > 0
    streamed = await settle(responses.create(model=MODEL, input=QUESTION, stream=True))
    events = [event async for event in each(streamed)]
    texts = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(texts) == events[-1].response.output_text
    assert events[-1].type == "response.completed"


async def test_the_official_client_runs_a_loop_of_parallel_tool_calls(
    make_client: Callable[..., Any], proxy: LocalProxy, enclave: LocalEnclave
) -> None:
    responses = make_client(proxy, enclave).responses
    items: list[Any] = [{"role": "user", "content": ERRANDS}]
    asked = await settle(responses.create(model=MODEL, input=items, tools=FUNCTIONS))
    calls = [item for item in asked.output if item.type == "function_call"]
    assert [(call.name, json.loads(call.arguments)) for call in calls] == [
        ("get_weather", {"location": "Paris"}),
        ("get_time", {"city": "Berlin"}),
    ]
    items += asked.output
    items += [
        {"type": "function_call_output", "call_id": call.call_id, "output": RESULTS[call.name]}
        for call in calls
    ]
    answer = await settle(responses.create(model=MODEL, input=items, tools=FUNCTIONS))
    assert all(result in answer.output_text for result in RESULTS.values())


def test_the_official_client_parses_structured_output_from_its_stream_helper(client: openai.OpenAI) -> None:
    with client.responses.stream(model=MODEL, input=INVOICE, text_format=Invoice) as stream:
        parsed = stream.get_final_response().output_parsed
    assert parsed == Invoice(invoice_number="INV-7", total=12.5)
    form: Any = {"type": "json_schema", "name": "invoice", "strict": True, "schema": SCHEMA}
    answer = client.responses.create(model=MODEL, input=INVOICE, text={"format": form})
    assert json.loads(answer.output_text)["currency"] == "EUR"


def test_every_event_has_the_form_and_the_order_of_openai(
    scripted_http: httpx.Client, script: ScriptedEngine
) -> None:
    calls = [tool_call("get_weather", location="Paris"), tool_call("get_time", city="Berlin")]
    script.respond = lambda request: reply("One moment.", reasoning="Two calls.", tool_calls=calls)
    body = {**HELLO, "tools": FUNCTIONS}
    streamed = scripted_http.post("/v1/responses", json={**body, "stream": True})
    assert streamed.headers["content-type"] == "text/event-stream; charset=utf-8"
    output = check_stream(streamed.content)["output"]
    assert [item["type"] for item in output] == ["reasoning", "message", "function_call", "function_call"]
    whole = check_response(scripted_http.post("/v1/responses", json=body).json())
    assert [item["type"] for item in whole["output"]] == [item["type"] for item in output]
    assert "[DONE]" not in streamed.text


def test_a_stream_is_made_from_a_whole_answer_where_nonces_must_not_be_reused(
    start_proxy: StartProxy, enclave: LocalEnclave
) -> None:
    proxy = start_proxy(enclave, nonce_reuse="error")
    body = {"model": MODEL, "input": QUESTION, "stream": True}
    response = httpx.post(f"{proxy.base_url}/responses", json=body, headers=headers(enclave), timeout=20)
    assert "nonce=own" in response.headers["x-prem-protection"]
    assert ANSWER in check_stream(response.content)["output"][-1]["content"][0]["text"]


def test_the_route_is_below_openai_too(scripted_http: httpx.Client) -> None:
    assert scripted_http.post("/openai/v1/responses", json=HELLO).json()["status"] == "completed"


def test_only_the_first_tool_call_is_passed_on_without_parallel_tool_calls(
    scripted_http: httpx.Client, script: ScriptedEngine
) -> None:
    script.respond = lambda request: [tool_call("get_time", city="Rome"), tool_call("get_time", city="Oslo")]
    for stream in (False, True):
        body = {**HELLO, "tools": FUNCTIONS, "parallel_tool_calls": False, "stream": stream}
        response = scripted_http.post("/v1/responses", json=body)
        assert "parallel_tool_calls" in response.headers["x-prem-adjusted"]
        value = check_stream(response.content) if stream else response.json()
        assert [json.loads(item["arguments"]) for item in value["output"]] == [{"city": "Rome"}]
        assert value["parallel_tool_calls"] is False


def test_an_image_in_a_tool_output_reaches_the_model(
    scripted_http: httpx.Client, script: ScriptedEngine
) -> None:
    image = {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo="}
    items = [
        {"role": "user", "content": "Look."},
        {"type": "function_call", "call_id": "call_1", "name": "screenshot", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": [image]},
    ]
    assert scripted_http.post("/v1/responses", json={**HELLO, "input": items}).status_code == 200
    messages = script.requests[-1].params["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "user"]
    assert messages[-1]["content"][-1]["image_url"]["url"] == image["image_url"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_rate_limit_has_its_status_and_retry_after(
    make_client: Callable[..., Any],
    stream: bool,
    start_proxy: StartProxy,
    scripted_enclave: LocalEnclave,
    script: ScriptedEngine,
) -> None:
    script.respond = lambda request: RateLimitError(retry_after=3)
    proxy = start_proxy(scripted_enclave, max_retries=0)  # its own: later requests wait
    with pytest.raises(openai.RateLimitError) as caught:
        await settle(make_client(proxy, scripted_enclave).responses.create(**HELLO, stream=stream))
    assert caught.value.response.headers["retry-after"] == "3"


async def test_a_truncated_answer_is_an_error_and_never_completed(
    make_client: Callable[..., Any],
    scripted_proxy: LocalProxy,
    scripted_enclave: LocalEnclave,
    script: ScriptedEngine,
) -> None:
    script.respond = lambda request: reply("Hel", truncated=True)
    responses = make_client(scripted_proxy, scripted_enclave).responses
    with pytest.raises(openai.APIError, match="truncated"):
        await settle(responses.create(**HELLO))
    with pytest.raises(openai.APIError, match="truncated"):
        [event async for event in each(await settle(responses.create(**HELLO, stream=True)))]


def test_the_events_of_a_truncated_answer_end_with_an_error_and_a_failed_response(
    scripted_http: httpx.Client, script: ScriptedEngine
) -> None:
    script.respond = lambda request: reply("Hel", truncated=True)
    data = scripted_http.post("/v1/responses", json={**HELLO, "stream": True}).content
    assert [event["type"] for event in read_events(data)][-2:] == ["error", "response.failed"]
    assert b"response.completed" not in data


def test_an_answer_that_reached_its_token_limit_is_incomplete(
    scripted_client: openai.OpenAI, script: ScriptedEngine
) -> None:
    script.respond = lambda request: reply("Hel", finish_reason="length")
    whole = scripted_client.responses.create(**HELLO)
    assert (whole.status, whole.output_text) == ("incomplete", "Hel")
    assert whole.incomplete_details is not None
    assert whole.incomplete_details.reason == "max_output_tokens"
    assert [event.type for event in scripted_client.responses.create(**HELLO, stream=True)][
        -1
    ] == "response.incomplete"


def test_a_disconnect_cancels_the_request(
    scripted_http: httpx.Client, scripted_proxy: LocalProxy, script: ScriptedEngine
) -> None:
    script.respond = lambda request: reply("Hello", stalled=True)
    with scripted_http.stream("POST", "/v1/responses", json={**HELLO, "stream": True}) as response:
        chunks = response.iter_raw()  # kept: httpx disconnects when the iterator is garbage-collected
        assert b"response.created" in next(chunks)
    assert script.disconnected.wait(5)
    assert eventually(lambda: scripted_proxy.log.latest()[0].state == "disconnected")


def test_a_stored_response_continues_a_conversation_until_it_is_deleted(
    storing: LocalProxy, enclave: LocalEnclave
) -> None:
    with openai.OpenAI(base_url=storing.base_url, api_key=enclave.api_key, max_retries=0) as client:
        asked = client.responses.create(model=MODEL, input=ERRANDS, tools=FUNCTIONS)  # type: ignore[arg-type]
        outputs: Any = [
            {"type": "function_call_output", "call_id": item.call_id, "output": RESULTS[item.name]}
            for item in asked.output
            if item.type == "function_call"
        ]
        answer = client.responses.create(
            model=MODEL,
            input=outputs,
            previous_response_id=asked.id,
            tools=FUNCTIONS,
            stream=True,  # type: ignore[arg-type]
        )
        final = list(answer)[-1]
        assert final.type == "response.completed"
        assert all(result in final.response.output_text for result in RESULTS.values())
        assert client.responses.retrieve(asked.id).output == asked.output
        client.responses.delete(asked.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(asked.id)


def test_a_stored_response_belongs_to_its_api_key(storing: LocalProxy, enclave: LocalEnclave) -> None:
    with openai.OpenAI(base_url=storing.base_url, api_key=enclave.api_key, max_retries=0) as client:
        response = client.responses.create(model=MODEL, input=QUESTION)
        with pytest.raises(openai.NotFoundError):
            client.with_options(api_key="sk_test_another").responses.retrieve(response.id)
        with pytest.raises(openai.NotFoundError):
            client.with_options(api_key="sk_test_another").responses.delete(response.id)
        assert client.responses.retrieve(response.id).id == response.id


def test_a_response_that_failed_is_not_stored(
    scripted_enclave: LocalEnclave, script: ScriptedEngine, start_proxy: StartProxy
) -> None:
    script.respond = lambda request: reply("Hel", truncated=True)
    proxy = start_proxy(scripted_enclave, store_responses=True, max_retries=0)
    with openai.OpenAI(base_url=proxy.base_url, api_key=scripted_enclave.api_key, max_retries=0) as client:
        raw = client.responses.with_raw_response.create(**HELLO, stream=True)
        created = read_events(raw.http_response.read())[0]
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(created["response"]["id"])


def test_by_default_nothing_is_stored_and_an_error_names_the_option(client: openai.OpenAI) -> None:
    response = client.responses.create(model=MODEL, input=QUESTION)
    with pytest.raises(openai.NotFoundError, match="--store-responses"):
        client.responses.retrieve(response.id)
    with pytest.raises(openai.BadRequestError, match="--store-responses"):
        client.responses.create(model=MODEL, input=QUESTION, previous_response_id=response.id)
    with pytest.raises(openai.BadRequestError, match="--store-responses"):
        client.responses.create(model=MODEL, input=QUESTION, store=True)


def test_the_process_holds_a_conversation_only_while_it_is_stored_and_the_api_key_never() -> None:
    mark = secrets.token_hex(8)
    with LocalEnclave(api_key=f"sk_test_{mark}") as prem:
        urls = {"gateway_url": prem.gateway_url, "enclave_url": prem.enclave_url}
        for stored in (False, True):
            with (
                ProxyProcess(**urls, store_responses=stored, nonce_reuse="allow") as proxy,
                openai.OpenAI(base_url=proxy.base_url, api_key=prem.api_key, max_retries=0) as official,
            ):
                asked: Any = {"model": MODEL, "input": "The word is zebra. What is the word?"}
                whole = official.responses.create(**asked)
                streamed = list(official.responses.create(**asked, stream=True))[-1].response
                assert eventually(lambda kept=stored: bool(proxy.holders("zebra")) == kept)
                assert eventually(lambda: proxy.holders(mark) == [])
                if stored:
                    for response in (whole, streamed):
                        official.responses.delete(response.id)
                    assert eventually(lambda: proxy.holders("zebra") == [])


@pytest.mark.parametrize("options", [{}, {"store": False, "include": ["reasoning.encrypted_content"]}])
@pytest.mark.parametrize("streaming", [False, True])
def test_chat_openai_runs_an_agent_with_the_responses_api(
    proxy: LocalProxy, enclave: LocalEnclave, streaming: bool, options: dict[str, Any]
) -> None:
    model = ChatOpenAI(
        model=MODEL,
        base_url=proxy.base_url,
        api_key=enclave.api_key,  # type: ignore[arg-type]
        use_responses_api=True,
        streaming=streaming,
        **options,
    )
    ended = create_agent(model, [get_weather, get_time]).invoke({"messages": [("user", ERRANDS)]})
    assert all(result in ended["messages"][-1].text for result in RESULTS.values())


def test_chat_openai_uses_the_responses_api_for_reasoning_and_structured_output(
    proxy: LocalProxy, enclave: LocalEnclave
) -> None:
    model = ChatOpenAI(
        model=MODEL,
        base_url=proxy.base_url,
        api_key=enclave.api_key,  # type: ignore[arg-type]
        reasoning={"effort": "low", "summary": "auto"},
    )
    answer = model.invoke(QUESTION)
    assert {"reasoning", "text"} <= {block["type"] for block in answer.content_blocks}
    assert answer.usage_metadata is not None
    assert proxy.log.latest()[0].route == "/v1/responses"
    for method in ("json_schema", "function_calling"):
        parsed = model.with_structured_output(Invoice, method=method).invoke(INVOICE)
        assert parsed == Invoice(invoice_number="INV-7", total=12.5)
