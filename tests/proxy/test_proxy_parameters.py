"""Parameters of a request: sent unchanged, rejected, or dropped and listed in a header."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase
from support.proxies import MODEL, StartProxy, chat, headers
from support.scripted_upstream import chunk, delta
from support.scripted_upstream import tool_call as wire_call

from prem_core._apis.openai.parameters import DROPPED
from prem_core._protocol.request_schema import PARAM_NAMES
from prem_core.enclave import LocalEnclave, ScriptedEngine, reply, tool_call

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


def test_unsupported_parameters_that_change_the_answer_are_rejected_and_all_named(
    scripted_http: httpx.Client, script: ScriptedEngine
) -> None:
    found = error(scripted_http.post(CHAT, json=chat(top_k=3, min_p=0.5, user="anna", seed=1)))
    assert "top_k" in found["message"]
    assert "min_p" in found["message"]
    assert "seed" not in found["message"]
    assert "anna" not in found["message"]
    assert (found["param"], found["code"]) == ("top_k", "unsupported_parameter")
    assert script.requests == []


def test_every_parameter_of_openais_client_is_sent_replaced_dropped_or_known_to_change_the_answer() -> None:
    theirs = set(CompletionCreateParamsBase.__annotations__)
    assert theirs - PARAM_NAMES - DROPPED - {"parallel_tool_calls"} == {"moderation"}


def test_unsupported_parameters_that_change_nothing_are_dropped_and_listed(
    scripted_client: openai.OpenAI, script: ScriptedEngine
) -> None:
    create = scripted_client.chat.completions.with_raw_response.create
    extra = {"prompt_cache_options": {"ttl": "24h"}}
    for streamed in (False, True):
        reply = create(**chat(user="anna", safety_identifier="bo", stream=streamed), extra_body=extra)
        reply.parse()
        assert sorted(reply.headers["x-prem-dropped"].split(", ")) == ["prompt_cache_options", "user"]
        assert set(script.requests[-1].params) == {"model", "messages", "stream", "safety_identifier"}
    assert "x-prem-dropped" not in create(**chat()).headers
    with pytest.raises(openai.BadRequestError) as caught:
        create(**chat(temperature=9), extra_body=extra)
    assert caught.value.response.headers["x-prem-dropped"] == "prompt_cache_options", "errors have it too"


def test_user_is_sent_as_safety_identifier(scripted_client: openai.OpenAI, script: ScriptedEngine) -> None:
    reply = scripted_client.chat.completions.with_raw_response.create(**chat(user="anna"))
    assert script.requests[-1].params["safety_identifier"] == "anna"
    assert reply.headers["x-prem-adjusted"] == "user"


@pytest.mark.parametrize(
    "given", [{"user": "anna"}, {"parallel_tool_calls": False}, {"prompt_cache_options": {}}]
)
def test_strict_rejects_every_unsupported_parameter(
    start_proxy: StartProxy, scripted_enclave: LocalEnclave, script: ScriptedEngine, given: dict[str, Any]
) -> None:
    proxy = start_proxy(scripted_enclave, strict=True)
    auth = headers(scripted_enclave)
    reply = httpx.post(proxy.url + CHAT, json=chat(**given), headers=auth, trust_env=False)
    assert error(reply)["param"] in given
    assert script.requests == []
    usual = httpx.post(
        proxy.url + CHAT, json=chat(parallel_tool_calls=True, seed=1), headers=auth, trust_env=False
    )
    assert usual.status_code == 200


def test_the_list_of_unsupported_parameters_is_bounded(scripted_http: httpx.Client) -> None:
    many = {"x" * 500 + str(number): 1 for number in range(500)}
    assert len(scripted_http.post(CHAT, json=chat(**many)).content) < 3000


# Tool calls


TWO_CALLS = [tool_call("look", at="here"), tool_call("look", at="there")]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("parallel", [False, True])
def test_without_parallel_tool_calls_the_first_one_is_passed_on_and_the_others_are_counted(
    scripted_http: httpx.Client, script: ScriptedEngine, streamed: bool, parallel: bool
) -> None:
    script.respond = lambda request: reply("Looking.", tool_calls=TWO_CALLS)
    answer = scripted_http.post(CHAT, json=chat(parallel_tool_calls=parallel, stream=streamed))
    assert "parallel_tool_calls" not in script.requests[-1].params
    if streamed:
        *parts, done = answer.text.removesuffix("\n\n").split("\n\n")
        assert done == "data: [DONE]"
        note = "".join(part.removeprefix(": x-prem-adjusted: ") for part in parts if part[0] == ":")
        choices = [json.loads(part.removeprefix("data: "))["choices"][0] for part in parts if part[0] != ":"]
        calls = {part["index"] for choice in choices for part in choice["delta"].get("tool_calls") or ()}
        finish = choices[-1]["finish_reason"]
    else:
        choice = answer.json()["choices"][0]
        calls = {call["function"]["arguments"] for call in choice["message"]["tool_calls"]}
        finish, note = choice["finish_reason"], answer.headers.get("x-prem-adjusted", "")
    assert finish == "tool_calls"
    assert len(calls) == (2 if parallel else 1)
    assert note == ("" if parallel else "parallel_tool_calls (tool calls left out: 1)")


def test_the_first_of_interleaved_tool_calls_is_whole_and_alone(
    scripted_client: openai.OpenAI, script: ScriptedEngine
) -> None:
    script.respond = lambda request: [
        delta(tool_calls=[wire_call(0, "c0", "f", '{"a":'), wire_call(1, "c1", "g", "{")]),
        delta(tool_calls=[wire_call(1, arguments="}")]),
        delta(tool_calls=[wire_call(0, arguments="1}")]),
        chunk(choices=[{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]),
    ]
    stream = scripted_client.chat.completions.create(**chat(), stream=True, parallel_tool_calls=False)
    parts = [part for each in stream for part in each.choices[0].delta.tool_calls or ()]
    assert "".join(part.function.arguments or "" for part in parts if part.function) == '{"a":1}'
    assert {part.index for part in parts} == {0}


PNG = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}


def test_an_image_in_a_tool_result_moves_into_the_next_user_message(
    scripted_http: httpx.Client, script: ScriptedEngine
) -> None:
    calls = [
        {"id": name, "type": "function", "function": {"name": "look", "arguments": "{}"}} for name in "ab"
    ]
    messages = [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "Here:"}, PNG]},
        {"role": "tool", "tool_call_id": "b", "content": "Nothing."},
        {"role": "user", "content": "And now?"},
    ]
    answer = scripted_http.post(CHAT, json=chat() | {"messages": messages})
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-prem-adjusted"] == "messages"
    sent = script.requests[-1].params["messages"]
    assert [each["role"] for each in sent] == ["user", "assistant", "tool", "tool", "user", "user"]
    assert [each.get("tool_call_id") for each in sent[2:4]] == ["a", "b"]
    assert sent[2]["content"][0] == {"type": "text", "text": "Here:"}
    assert {part["type"] for part in sent[2]["content"]} == {"text"}
    assert sent[4]["content"][1] == PNG
    assert "tool call a]" in sent[4]["content"][0]["text"]
    assert sent[5]["content"] == "And now?"


# Completions


def test_a_text_completion_is_answered_through_a_chat(
    scripted_client: openai.OpenAI, script: ScriptedEngine
) -> None:
    create = scripted_client.completions.create
    whole = create(model="m", prompt="Once", max_tokens=9, stop=["."], echo=False, best_of=1, user="anna")
    assert (whole.object, whole.choices[0].text, whole.choices[0].finish_reason) == (
        "text_completion", "Hello", "stop",
    )  # fmt: skip
    assert whole.usage is not None
    assert script.requests[-1].params == {
        "model": "m", "messages": [{"role": "user", "content": "Once"}], "max_tokens": 9, "stop": ["."],
        "safety_identifier": "anna",
    }  # fmt: skip
    chunks = list(create(model="m", prompt=["Once"], stream=True))
    assert "".join(each.choices[0].text for each in chunks) == "Hello"
    assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({}, "prompt"),
        ({"prompt": "a", "echo": True}, "echo"),
        ({"prompt": "a", "logprobs": 1}, "logprobs"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
    ],
)
def test_a_text_completion_that_a_chat_cannot_answer_is_400(
    scripted_http: httpx.Client, script: ScriptedEngine, given: dict[str, Any], param: str
) -> None:
    assert error(scripted_http.post("/v1/completions", json={"model": "m", **given}))["param"] == param
    assert script.requests == []


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
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"messages": [{"role": "system", "content": [
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
