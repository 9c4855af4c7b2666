"""Parameters of a request: sent unchanged, rejected, or dropped and listed in a header."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from support.proxies import MODEL, StartProxy, chat

from prem_core._protocol.request_schema import PARAM_NAMES
from prem_core.enclave import LocalEnclave, ScriptedEngine

CHAT = "/v1/chat/completions"

#: A valid value for every parameter of the published schema.
EVERYTHING: dict[str, Any] = {
    "model": "scripted",
    "messages": [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk=", "detail": "low"}},
            ],
        },
    ],
    "stream": True,
    "stream_options": {"include_usage": True, "include_obfuscation": False},
    "temperature": 1,
    "top_p": 0.5,
    "max_tokens": 10,
    "max_completion_tokens": 12,
    "tools": [
        {
            "type": "function",
            "function": {"name": "f", "description": "F.", "parameters": {"type": "object"}, "strict": True},
        }
    ],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "response_format": {"type": "json_object"},
    "audio": {"format": "mp3", "voice": "alloy"},
    "frequency_penalty": 0.1,
    "presence_penalty": -0.1,
    "function_call": "auto",
    "functions": [{"name": "g", "parameters": {"type": "object"}}],
    "logit_bias": {"50256": -100},
    "logprobs": True,
    "top_logprobs": 2,
    "metadata": {"case": "7"},
    "modalities": ["text"],
    "n": 2,
    "prediction": {"type": "content", "content": "It is"},
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "reasoning_effort": "low",
    "safety_identifier": "s",
    "seed": 7,
    "service_tier": "auto",
    "stop": ["\n"],
    "store": False,
    "verbosity": "low",
    "web_search_options": {"search_context_size": "low"},
}


def error(reply: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    value: dict[str, Any] = reply.json()["error"]
    return value


def test_every_parameter_of_the_published_schema_reaches_the_service(
    scripted_http: httpx.Client, script: ScriptedEngine
) -> None:
    assert set(EVERYTHING) == PARAM_NAMES
    assert scripted_http.post(CHAT, json=EVERYTHING).status_code == 200
    assert script.requests[-1].params == EVERYTHING


def test_messages_as_openais_clients_write_them_are_converted_to_the_schema(
    scripted_http: httpx.Client, script: ScriptedEngine
) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Hello", "name": None},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "Done."}]},
    ]  # fmt: skip
    given = chat() | {"messages": messages, "parallel_tool_calls": True, "user": None, "temperature": None}
    assert scripted_http.post(CHAT, json=given).status_code == 200
    sent = script.requests[-1].params
    assert [message["role"] for message in sent["messages"]] == ["system", "user", "assistant", "tool"]
    assert "content" not in sent["messages"][2]
    assert "name" not in sent["messages"][1]
    assert not {"parallel_tool_calls", "user", "temperature"} & set(sent)


def test_unsupported_parameters_are_rejected_and_all_named(
    scripted_http: httpx.Client, script: ScriptedEngine
) -> None:
    found = error(scripted_http.post(CHAT, json=chat(user="anna", top_k=3, seed=1)))
    assert "user" in found["message"]
    assert "top_k" in found["message"]
    assert "seed" not in found["message"]
    assert "anna" not in found["message"]
    assert (found["param"], found["code"]) == ("user", "unsupported_parameter")
    assert script.requests == []


def test_drop_unsupported_drops_parameters_and_lists_them_in_a_header(
    start_proxy: StartProxy, scripted_enclave: LocalEnclave, script: ScriptedEngine
) -> None:
    proxy = start_proxy(scripted_enclave, drop_unsupported=True)
    with openai.OpenAI(base_url=proxy.base_url, api_key=scripted_enclave.api_key, max_retries=0) as official:
        create = official.chat.completions.with_raw_response.create
        extra = {"top_k": 3, "naïve, name": 1}
        for streamed in (False, True):
            reply = create(**chat(user="anna", stream=streamed, parallel_tool_calls=False), extra_body=extra)
            reply.parse()
            dropped = reply.headers["x-prem-dropped"].split(", ")
            assert sorted(dropped) == ["na%C3%AFve%2C%20name", "parallel_tool_calls", "top_k", "user"]
            assert set(script.requests[-1].params) == {"model", "messages", "stream"}
        assert "x-prem-dropped" not in create(**chat()).headers
        with pytest.raises(openai.BadRequestError) as caught:
            create(**chat(user="anna"), temperature=9)
        assert caught.value.response.headers["x-prem-dropped"] == "user", "errors have it too"


def test_the_list_of_unsupported_parameters_is_bounded(
    scripted_http: httpx.Client, start_proxy: StartProxy, scripted_enclave: LocalEnclave
) -> None:
    many = {"x" * 500 + str(number): 1 for number in range(500)}
    assert len(scripted_http.post(CHAT, json=chat(**many)).content) < 3000
    proxy = start_proxy(scripted_enclave, drop_unsupported=True)
    reply = httpx.post(
        f"{proxy.url}{CHAT}", json=chat(**many), headers=scripted_http.headers, trust_env=False
    )
    assert reply.status_code == 200
    assert len(reply.headers["x-prem-dropped"]) < 3000


@pytest.mark.parametrize("name", ["extra_body", "timeout", "self", "file"])
def test_a_parameter_cannot_set_an_argument_of_the_client(
    scripted_http: httpx.Client, script: ScriptedEngine, name: str
) -> None:
    # These are arguments of the client's methods.
    assert name in error(scripted_http.post(CHAT, json=chat(**{name: {"user": "anna"}})))["message"]
    assert script.requests == []


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"temperature": 9}, "temperature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role"),
        ({"messages": None}, "messages"),
        ({"model": None}, "model"),
        ({"stream": "yes"}, "stream"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"messages": [{"role": "tool", "tool_call_id": "c", "content": [
            {"type": "image_url", "image_url": {"url": "data:,x"}}]}]}, "messages.0.content"),
    ],
)  # fmt: skip
def test_an_invalid_parameter_is_400_with_its_path(
    scripted_http: httpx.Client, script: ScriptedEngine, params: dict[str, Any], param: str
) -> None:
    found = error(scripted_http.post(CHAT, json={**chat("zebra"), **params}))
    assert found["param"].startswith(param)
    assert "zebra" not in found["message"]
    assert script.requests == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"zebra",
        b'{"model": "zebra"',
        b"[]",
        b'"zebra"',
        b'{"temperature": NaN}',
        b'{"seed": ' + b"9" * 5000 + b"}",
        b"\xff\xfe",
        b"[" * 100_000,
    ],
    ids=["empty", "text", "cut", "list", "string", "NaN", "huge number", "not UTF-8", "deep"],
)
def test_a_body_that_is_not_a_json_object_is_400_without_quoting_it(
    scripted_http: httpx.Client, body: bytes
) -> None:
    reply = scripted_http.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert "zebra" not in error(reply)["message"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_content_type_other_than_json_is_415(scripted_http: httpx.Client, kind: str) -> None:
    error(scripted_http.post(CHAT, content=json.dumps(chat()), headers={"content-type": kind}), 415)


def test_text_with_a_lone_surrogate_is_400(scripted_http: httpx.Client) -> None:
    body = b'{"model": "m", "messages": [{"role": "user", "content": "\\ud800"}]}'
    reply = scripted_http.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert error(reply)["param"] == "messages"


def test_a_large_prompt_reaches_the_service_unchanged(
    scripted_http: httpx.Client, script: ScriptedEngine
) -> None:
    prompt = "Ω" * 2_000_000
    assert scripted_http.post(CHAT, json=chat(prompt)).status_code == 200
    assert script.requests[-1].params["messages"][0]["content"] == prompt


def test_models_can_be_filtered_by_type(http: httpx.Client) -> None:
    def names(query: str) -> list[str]:
        value = http.get(f"/v1/models{query}").json()
        assert value["object"] == "list"
        assert all(each["object"] == "model" for each in value["data"])
        return [each["id"] for each in value["data"]]

    assert MODEL in names("")
    assert names("?type=AUDIO_TRANSCRIPTION") == ["openai/whisper-large-v3"]
    assert error(http.get("/v1/models?type=WIZARD"))["param"] == "type"
    assert error(http.get("/v1/models/no/such"), 404)["code"] == "model_not_found"
