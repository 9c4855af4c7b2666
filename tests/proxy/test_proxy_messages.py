"""Anthropic's Messages API through the proxy, on real sockets."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import pytest
from support.messages_api import accumulate, body, events
from support.proxies import MODEL
from support.waiting import eventually

from prem_core.enclave import EngineError, LocalEnclave, ScriptedEngine, reply, tool_call
from prem_core.proxy import LocalProxy

MESSAGES = "/v1/messages"
TOOL = {"name": "look", "input_schema": {"type": "object"}}


@pytest.fixture
def http(scripted_proxy: LocalProxy, scripted_enclave: LocalEnclave, script: ScriptedEngine) -> Any:
    """A client that sends what Anthropic's clients send."""
    del script
    headers = {"x-api-key": scripted_enclave.api_key, "anthropic-version": "2023-06-01"}
    with httpx.Client(base_url=scripted_proxy.url, headers=headers, trust_env=False, timeout=20) as client:
        yield client


def test_an_answer_with_its_headers(http: httpx.Client, script: ScriptedEngine) -> None:
    script.respond = lambda request: reply("Hello", usage=(12, 5))
    response = http.post(MESSAGES, json=body(top_k=5, thinking={"type": "enabled", "budget_tokens": 2_000}))
    assert response.status_code == 200
    answer = response.json()
    assert answer["content"] == [{"type": "text", "text": "Hello"}]
    assert (answer["usage"]["input_tokens"], answer["usage"]["output_tokens"]) == (12, 5)
    assert response.headers["x-prem-dropped"] == "top_k"
    assert response.headers["x-prem-adjusted"] == "thinking.budget_tokens"
    assert response.headers["request-id"] == response.headers["x-request-id"]
    assert script.requests[0].params["reasoning_effort"] == "low"


def test_a_stream_has_the_same_answer(http: httpx.Client, script: ScriptedEngine) -> None:
    script.respond = lambda request: reply(
        "I look.", reasoning="Hm.", tool_calls=[tool_call("look", at="a"), tool_call("look")], usage=(12, 5)
    )
    request = body(tools=[TOOL], thinking={"type": "adaptive"})
    whole = http.post(MESSAGES, json=request).json()
    response = http.post(MESSAGES, json=request | {"stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    streamed = accumulate(events(response.content))
    for message in (whole, streamed):
        del message["id"]
        for block in message["content"]:
            block.pop("id", None)
    assert streamed == whole
    assert whole["stop_reason"] == "tool_use"


def test_only_the_first_tool_call_is_passed_on_where_parallel_use_is_disabled(
    http: httpx.Client, script: ScriptedEngine
) -> None:
    script.respond = lambda request: [tool_call("look", at="a"), tool_call("look", at="b")]
    choice = {"type": "any", "disable_parallel_tool_use": True}
    response = http.post(MESSAGES, json=body(tools=[TOOL], tool_choice=choice))
    assert [block["input"] for block in response.json()["content"]] == [{"at": "a"}]
    assert response.headers["x-prem-adjusted"].startswith("tool_choice.disable_parallel_tool_use")


def test_a_screenshot_in_a_tool_result_reaches_the_model(http: httpx.Client, script: ScriptedEngine) -> None:
    data = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}
    messages = [
        {"role": "user", "content": "Look"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "look", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": [image]}]},
    ]
    assert http.post(MESSAGES, json=body() | {"messages": messages}).status_code == 200
    tool, user = script.requests[0].messages[2:]
    assert (tool["role"], tool["tool_call_id"]) == ("tool", "t1")
    assert user["content"][-1]["image_url"]["url"] == f"data:image/png;base64,{data}"


def sent_by(response: httpx.Response) -> bytes:
    """The body of a response, also of one without an end."""
    sent = b""
    try:
        for part in response.iter_raw():
            sent += part
    except httpx.RemoteProtocolError:
        pass
    return sent


def test_a_broken_stream_ends_with_an_error_event_and_no_message_stop(
    http: httpx.Client, script: ScriptedEngine
) -> None:
    script.respond = lambda request: reply(["Half ", "an answer"], truncated=True)
    with http.stream("POST", MESSAGES, json=body(stream=True)) as response:
        found = events(sent_by(response))
    assert found[-1]["type"] == "error"
    assert found[-1]["error"]["type"] == "api_error"
    assert {event["type"] for event in found[:-1]} == {
        "message_start",
        "content_block_start",
        "content_block_delta",
    }


def test_a_tool_call_that_the_token_limit_truncates_is_an_error(
    http: httpx.Client, script: ScriptedEngine
) -> None:
    script.respond = lambda request: reply(tool_calls=tool_call("look", '{"at": '), finish_reason="length")
    response = http.post(MESSAGES, json=body(tools=[TOOL]))
    assert (response.status_code, response.json()["type"]) == (502, "error")
    with http.stream("POST", MESSAGES, json=body(tools=[TOOL], stream=True)) as streamed:
        found = events(sent_by(streamed))
    assert found[-1]["type"] == "error"
    assert not {"content_block_stop", "message_stop"} & {event["type"] for event in found}


def test_errors_have_anthropics_form(http: httpx.Client, script: ScriptedEngine) -> None:
    script.respond = lambda request: EngineError("slow down", status=429, retry_after=3)
    limited = http.post(MESSAGES, json=body())
    assert (limited.status_code, limited.headers["retry-after"]) == (429, "3")
    for response, status, kind in (
        (limited, 429, "rate_limit_error"),
        (http.post(MESSAGES, json=body(container="c")), 400, "invalid_request_error"),
        (
            http.post(MESSAGES, content=b"{", headers={"content-type": "application/json"}),
            400,
            "invalid_request_error",
        ),
        (http.post(MESSAGES, json=body(), headers={"x-api-key": "wrong"}), 401, "authentication_error"),
        (http.get("/v1/models/no-such-model"), 404, "not_found_error"),
        (http.post("/v1/no-such-route", json={}), 404, "not_found_error"),
        (http.get(MESSAGES), 405, "invalid_request_error"),
    ):
        assert response.status_code == status
        assert response.json()["type"] == "error"
        assert response.json()["error"]["type"] == kind
        assert response.json()["error"]["message"]


def test_a_disconnect_cancels_the_request(http: httpx.Client, script: ScriptedEngine) -> None:
    script.respond = lambda request: reply("Hello", stalled=True)
    with http.stream("POST", MESSAGES, json=body(stream=True)) as response:
        assert next(response.iter_raw())
    assert eventually(script.disconnected.is_set)


def test_tokens_are_counted_without_the_service(http: httpx.Client, script: ScriptedEngine) -> None:
    request = {"model": MODEL, "messages": [{"role": "user", "content": "x" * 3_500}]}
    response = http.post(f"{MESSAGES}/count_tokens", json=request)
    assert 1_000 <= response.json()["input_tokens"] <= 1_010
    assert response.headers["x-prem-adjusted"] == "input_tokens=estimate"
    assert script.requests == []


def test_models_have_the_form_that_the_client_asks_for(http: httpx.Client) -> None:
    page = http.get("/v1/models").json()
    assert page["data"][0]["type"] == "model"
    assert page["has_more"] is False
    name = page["data"][0]["id"]
    assert http.get(f"/v1/models/{name}").json()["id"] == name
    assert http.get("/openai/v1/models").json()["object"] == "list"
    del http.headers["anthropic-version"]
    assert http.get("/v1/models").json()["object"] == "list"
    assert http.get("/anthropic/v1/models").json()["has_more"] is False


@pytest.mark.parametrize("path", [MESSAGES, "/anthropic/v1/messages"])
def test_both_kinds_of_key_are_accepted_with_and_without_a_version(
    path: str, http: httpx.Client, scripted_enclave: LocalEnclave
) -> None:
    assert http.post(path, json=body()).status_code == 200
    del http.headers["x-api-key"], http.headers["anthropic-version"]
    http.headers["authorization"] = f"Bearer {scripted_enclave.api_key}"
    assert http.post(path, json=body()).status_code == 200
