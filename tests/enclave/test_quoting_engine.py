"""The quoting engine: sentences, values and tool calls out of the prompt, and nothing else."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from support.paths import MEDIA, ROOT
from support.raw_client import validator

from prem_core.enclave import EngineError, EngineRequest, QuotingEngine

CLINIC = "Context:\nThe clinic opens at eight. Parking is free.\n\nQuestion: "
LETTER = "Anna Berg was admitted on 3 March with chest pain. The ECG was normal. She may go home on Friday."


def chunks(prompt: Any, **params: Any) -> list[dict[str, Any]]:
    """The chunks of the engine's answer to a prompt, or to messages."""
    messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]

    async def collect() -> list[dict[str, Any]]:
        engine = QuotingEngine()
        request = EngineRequest("chat", {"model": "m", "messages": messages, **params})
        return [chunk async for chunk in engine.chat(request)]

    return asyncio.run(collect())


def text(prompt: Any, *, part: str = "content", **params: Any) -> str:
    deltas = [choice["delta"] for chunk in chunks(prompt, **params) for choice in chunk["choices"]]
    return "".join(delta.get(part) or "" for delta in deltas)


def calls(prompt: Any, tools: list[Any], choice: Any = "auto", **params: Any) -> list[tuple[str, Any]]:
    found: dict[int, list[str]] = {}
    for chunk in chunks(prompt, tools=tools, tool_choice=choice, **params):
        for piece in chunk["choices"][0]["delta"].get("tool_calls") or () if chunk["choices"] else ():
            function = piece["function"]
            name, arguments = found.get(piece["index"], ["", ""])
            found[piece["index"]] = [name + function.get("name", ""), arguments + function["arguments"]]
    return [(name, json.loads(arguments)) for name, arguments in found.values()]


def structured(prompt: Any, schema: dict[str, Any]) -> Any:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return json.loads(text(prompt, response_format=form))


def tool(name: str, description: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


STRING = {"type": "string"}
INTEGER = {"type": "integer"}
NUMBER = {"type": "number"}
WEATHER = tool("get_weather", "Get the weather at a location.", location=STRING)
TIME = tool("get_time", "Get the local time in a city.", city=STRING)
ADD = tool("add", "Add two integers.", a=INTEGER, b=INTEGER)


# Sentences


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        (f"{CLINIC}When does the clinic open?", "The clinic opens at eight."),
        ("Context: The clinic opens at eight. Question: When does it open?", "The clinic opens at eight."),
        ("The clinic opens at eight. When does the clinic open?", "The clinic opens at eight."),
        (f"{CLINIC}What does parking cost, is it free?", "Parking is free."),
        (f"Context:\n{LETTER}\n\nQuestion: When may Anna Berg go home?", "She may go home on Friday."),
        (
            f"---\n{LETTER}\n---\nAnswer the query.\nQuery: Was the ECG normal?\nAnswer: ",
            "The ECG was normal.",
        ),
        (f"Summarise: {LETTER}", "Anna Berg was admitted on 3 March with chest pain."),
        (f"Summarise this letter.\n\n{LETTER}", "Anna Berg was admitted on 3 March with chest pain."),
        (f"Translate into French: {LETTER}", "Anna Berg was admitted on 3 March with chest pain."),
        (f"{CLINIC}Who won the cup final?", 'Nothing in the given text answers: "Who won the cup final?"'),
    ],
)
def test_a_question_is_answered_with_the_sentence_that_shares_its_words(prompt: str, answer: str) -> None:
    assert text(prompt) == answer


@pytest.mark.parametrize("prompt", ["Hello!", "What is an enclave?", "Answer in French. What is an enclave?"])
def test_with_nothing_to_quote_the_answer_names_what_the_engine_is(prompt: str) -> None:
    assert text(prompt).endswith(
        "The embedded enclave has no language model: it quotes what the prompt holds."
    )


def test_a_chat_without_a_text_is_answered_too() -> None:
    assert text([{"role": "system", "content": ""}])


def test_earlier_messages_can_be_quoted() -> None:
    history = [
        {"role": "system", "content": "Use this context.\n\nContext: The clinic opens at eight."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "When does the clinic open?"},
    ]
    assert text(history) == "The clinic opens at eight."


def test_verbosity_limits_the_number_of_sentences() -> None:
    prompt = (
        "Context:\nThe red bus is late. The red tram is late. The red ship is late.\n\nQuestion: What is red?"
    )
    assert [text(prompt, verbosity=level).count(".") for level in ("low", "medium", "high")] == [1, 2, 3]


# Files and media


def message(question: str, *parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": question}, *parts]}]


def file(content: bytes) -> dict[str, Any]:
    return {"type": "file", "file": {"file_data": "data:;base64," + base64.b64encode(content).decode()}}


def test_the_text_of_a_file_and_of_a_pdf_can_be_quoted() -> None:
    question = "When may Anna Berg go home?"
    assert text(message(question, file(LETTER.encode()))) == "She may go home on Friday."
    assert "Friday, 12 March 2026" in text(message(question, file((MEDIA / "letter.pdf").read_bytes())))


def test_images_and_recordings_are_answered_with_a_note() -> None:
    image = {"type": "image_url", "image_url": {"url": "https://host.example/a.png"}}
    audio = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    for part in (image, audio):
        assert "does not look at images or listen to recordings" in text(message("What is this?", part))


@pytest.mark.parametrize(
    "part",
    [
        file(b"\xff\xfe\x00"),
        file(b"%PDF-broken"),
        {"type": "file", "file": {"file_data": "zebra!"}},
        {"type": "file", "file": {"file_id": "zebra"}},
    ],
)
def test_a_file_that_cannot_be_read_is_an_error_that_names_the_parameter(part: dict[str, Any]) -> None:
    with pytest.raises(EngineError) as caught:
        text(message("Read this.", part))
    assert (caught.value.status, caught.value.param) == (400, "file_data")
    assert "zebra" not in str(caught.value)


def test_a_pdf_without_pypdf_is_an_error_with_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pypdf", None)
    with pytest.raises(EngineError, match=r'pip install "prem-encrypted\[enclave\]"'):
        text(message("Read this.", file(b"%PDF-1.4")))


# Tool calls


@pytest.mark.parametrize(
    ("prompt", "tools", "expected"),
    [
        (
            "What is the weather in San Francisco, CA?",
            [WEATHER],
            [("get_weather", {"location": "San Francisco, CA"})],
        ),
        (
            "What is the weather in Paris and in Tokyo?",
            [WEATHER],
            [("get_weather", {"location": "Paris"}), ("get_weather", {"location": "Tokyo"})],
        ),
        (
            "What is the weather in Paris, London and Rome?",
            [WEATHER],
            [("get_weather", {"location": city}) for city in ("Paris", "London", "Rome")],
        ),
        (
            "Get the weather in Paris and the time in Berlin.",
            [WEATHER, TIME],
            [("get_weather", {"location": "Paris"}), ("get_time", {"city": "Berlin"})],
        ),
        ('Get the weather at "A and B".', [WEATHER], [("get_weather", {"location": "A and B"})]),
        ("Add 3 and 4", [ADD], [("add", {"a": 3, "b": 4})]),
        ("Name: Anna Berg. Age: 63.", [WEATHER], []),
        ("Hello!", [WEATHER, ADD], []),
    ],
)
def test_the_tools_that_a_request_asks_for_are_called(
    prompt: str, tools: list[Any], expected: list[Any]
) -> None:
    assert calls(prompt, tools) == expected


def test_tool_choice_forces_or_forbids_a_call() -> None:
    assert calls("Hello!", [ADD, WEATHER], "required") == [("add", {"a": 0, "b": 0})]
    named = {"type": "function", "function": {"name": "get_weather"}}
    assert calls("Paris", [ADD, WEATHER], named) == [("get_weather", {"location": "Paris"})]
    assert calls("What is the weather in Paris?", [WEATHER], "none") == []


def result(identifier: str, name: str, arguments: dict[str, Any], content: str) -> list[dict[str, Any]]:
    function = {"name": name, "arguments": json.dumps(arguments)}
    call = {"id": identifier, "type": "function", "function": function}
    return [
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": identifier, "content": content},
    ]


def test_results_of_tools_are_repeated_and_only_missing_calls_are_made() -> None:
    asked = [{"role": "user", "content": "Get the weather in Paris and the time in Berlin."}]
    weather = result("c1", "get_weather", {"location": "Paris"}, "It is sunny.")
    time = result("c2", "get_time", {"city": "Berlin"}, "Noon.")
    assert calls([*asked, *weather], [WEATHER, TIME]) == [("get_time", {"city": "Berlin"})]
    assert text([*asked, *weather], tools=[WEATHER]) == "It is sunny."
    both = text([*asked, *weather, *time], tools=[WEATHER, TIME])
    assert both == "get_weather(location: Paris): It is sunny.\nget_time(city: Berlin): Noon."


# Values for a schema


def of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


@pytest.mark.parametrize(
    ("prompt", "schema", "value"),
    [
        ("Name: Anna Berg. Age: 63. She may go home.", of(name=STRING, age=INTEGER), {"name": "Anna Berg", "age": 63}),
        ("Anna Berg is 63 years old.", of(name=STRING, age=INTEGER), {"name": "Anna Berg", "age": 63}),
        ("Invoice no: A. Invoice number: INV-7", of(invoice_number=STRING), {"invoice_number": "INV-7"}),
        ('{"unitPrice": "x", "total": 2.5}', of(unit_price=STRING, total=NUMBER), {"unit_price": "x", "total": 2.5}),
        ("Total: 1,204.50 EUR", of(total=NUMBER, unit={"enum": ["USD", "EUR"]}), {"total": 1204.5, "unit": "EUR"}),
        ("Total: 1.204,50", of(total=NUMBER), {"total": 1204.5}),
        ("Date: 12 March 2026", of(date={"type": "string", "format": "date"}), {"date": "2026-03-12"}),
        ("Date: March 2, 2026", of(date={"type": "string", "format": "date-time"}), {"date": "2026-03-02T00:00:00Z"}),
        ("Paid: yes", of(paid={"type": "boolean"}), {"paid": True}),
        ("Tags: red, blue and green", of(tags={"type": "array", "items": STRING}), {"tags": ["red", "blue", "green"]}),
        ("Tags:\n- red\n- blue", of(tags={"type": "array", "items": STRING}), {"tags": ["red", "blue"]}),
        ("Code: x AB-12 y", of(code={"type": "string", "pattern": "^[A-Z]{2}-[0-9]+$"}), {"code": "AB-12"}),
        ("City: Rome", of(address=of(city=STRING)), {"address": {"city": "Rome"}}),
        ("City: Rome", of(zip={"anyOf": [STRING, {"type": "null"}]}), {"zip": None}),
        ("City: Rome", {"$defs": {"P": of(city=STRING)}, **of(p={"$ref": "#/$defs/P"})}, {"p": {"city": "Rome"}}),
        ("Hello!", of(a={"type": "integer", "exclusiveMinimum": 4}, b={"const": 1}), {"a": 5, "b": 1}),
        ("Tell me a joke.", of(setup=STRING), {"setup": "Tell me a joke."}),
        ("City: Rome", {"type": "object", "properties": {"age": INTEGER}}, {}),
    ],
)  # fmt: skip
def test_values_are_taken_from_labels_and_prose(prompt: str, schema: dict[str, Any], value: Any) -> None:
    assert structured(prompt, schema) == value


def test_an_invoice_with_a_table_is_extracted() -> None:
    invoice = structured(
        (ROOT / "examples" / "invoice.txt").read_text(encoding="utf-8"),
        of(
            invoice_number=STRING,
            items={"type": "array", "items": of(description=STRING, quantity=INTEGER, unit_price=NUMBER)},
            total=NUMBER,
        ),
    )
    assert invoice["invoice_number"] == "INV-1042"
    assert invoice["items"][0] == {"description": "Surgical gloves, L", "quantity": 120, "unit_price": 0.35}
    assert (len(invoice["items"]), invoice["total"]) == (3, 135.5)


@pytest.mark.parametrize(
    ("prompt", "value"),
    [
        (
            "Total: 5 EUR. Answer in JSON with the keys total and date.",
            {"total": "5 EUR", "date": "Total: 5 EUR."},
        ),
        ("Tell me a joke. Return JSON with 'setup' and 'punchline' keys.", ["setup", "punchline"]),
        ("The clinic opens at eight. When does it open?", {"answer": "The clinic opens at eight."}),
    ],
)
def test_json_mode_has_the_keys_that_the_prompt_names(prompt: str, value: Any) -> None:
    answer = json.loads(text(prompt, response_format={"type": "json_object"}))
    assert answer == value if isinstance(value, dict) else list(answer) == value


RECURSIVE = {
    "$defs": {"N": {"type": "object", "properties": {"next": {"$ref": "#/$defs/N"}}}},
    "$ref": "#/$defs/N",
}


def test_a_schema_that_refers_to_itself_is_answered() -> None:
    assert structured("Hello", RECURSIVE) == {}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "zebra"},
        {"$defs": {"N": {"$ref": "#/$defs/N"}}, "$ref": "#/$defs/N"},
        {"$defs": {"N": of(next={"$ref": "#/$defs/N"})}, **of(next={"$ref": "#/$defs/N"})},
        of(code={"type": "string", "pattern": "^[0-9]{7}$"}),
    ],
)
def test_a_schema_that_cannot_be_answered_is_an_error(schema: dict[str, Any]) -> None:
    with pytest.raises(EngineError) as caught:
        structured("Hello", schema)
    assert caught.value.status == 400
    assert "zebra" not in str(caught.value)


def test_a_remote_reference_is_not_fetched() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/schema.json"
        with pytest.raises(EngineError):
            structured("Name: Anna", {"type": "object", "allOf": [{"$ref": url}, {"$ref": url}]})
        with pytest.raises(BlockingIOError):
            server.accept()


SCHEMAS = st.recursive(
    st.sampled_from(
        [STRING, INTEGER, NUMBER, {"type": "boolean"}, {"type": "null"}, {"enum": ["a", "b"]}, {}]
    ),
    lambda inner: st.one_of(
        inner.map(lambda item: {"type": "array", "items": item}),
        st.dictionaries(st.sampled_from(["name", "age", "items", "date"]), inner).map(
            lambda parts: of(**parts)
        ),
    ),
    max_leaves=6,
)


@given(SCHEMAS.map(lambda schema: of(value=schema)), st.text(max_size=80))
def test_values_are_valid_for_any_schema_and_any_text(schema: dict[str, Any], prompt: str) -> None:
    assert Draft202012Validator(schema).is_valid(structured(prompt, schema))


# Streams


def test_every_chunk_satisfies_the_published_schema() -> None:
    for params in (
        {},
        {"tools": [WEATHER], "tool_choice": "required"},
        {"n": 2},
        {"logprobs": True, "top_logprobs": 1},
    ):
        for chunk in chunks(f"{CLINIC}When does the clinic open?", **params):
            validator("chat-chunk").validate(chunk)


def test_usage_counts_the_tokens_that_were_streamed() -> None:
    *answer, last = chunks(f"{CLINIC}When does the clinic open?")
    counted = len(answer) - 1  # the finish reason
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == counted
    assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + counted
    reasoning = sum(bool(chunk["choices"][0]["delta"].get("reasoning_content")) for chunk in answer)
    assert last["usage"]["completion_tokens_details"] == {"reasoning_tokens": reasoning}


@pytest.mark.parametrize(
    ("params", "content", "reason", "matched"),
    [
        ({"max_tokens": 3}, "The clinic opens", "length", None),
        ({"max_completion_tokens": 6}, "The clinic opens at eight.", "stop", None),
        ({"stop": "eight"}, "The clinic opens at ", "stop", "eight"),
        ({"stop": ["zebra", "opens at"]}, "The clinic ", "stop", "opens at"),
        ({"max_tokens": 2, "stop": ["eight"]}, "The clinic", "length", None),
    ],
)
def test_a_token_limit_and_a_stop_sequence_cut_the_answer(
    params: dict[str, Any], content: str, reason: str, matched: str | None
) -> None:
    found = chunks(f"{CLINIC}When does the clinic open?", reasoning_effort="none", **params)
    assert "".join(c["choices"][0]["delta"].get("content") or "" for c in found[:-1]) == content
    choice = found[-2]["choices"][0]
    assert (choice["finish_reason"], choice["matched_stop"]) == (reason, matched)


def test_log_probabilities_are_those_of_the_content() -> None:
    for chunk in chunks("Hello", logprobs=True, top_logprobs=2, reasoning_effort="none"):
        for choice in chunk["choices"]:
            if token := choice["delta"].get("content"):
                assert [each["token"] for each in choice["logprobs"]["content"]] == [token]


def test_reasoning_effort_none_has_no_reasoning() -> None:
    assert text("Hello", part="reasoning_content")
    assert not text("Hello", part="reasoning_content", reasoning_effort="none")


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"functions": [{"name": "a"}]}, "functions"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"n": 129}, "n"),
        ({"tools": [{"type": "custom", "custom": {"name": "a"}}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": {"type": "function", "function": {"name": "b"}}}, "tool_choice"),
    ],
)
def test_what_the_engine_cannot_do_is_an_error_that_names_the_parameter(
    params: dict[str, Any], param: str
) -> None:
    with pytest.raises(EngineError) as caught:
        chunks("Hello", **params)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_the_same_request_has_the_same_answer_in_every_process() -> None:
    asked = {"model": "m", "messages": [{"role": "user", "content": f"{CLINIC}{LETTER} What is free?"}]}
    program = (
        "import asyncio\nfrom prem_core.enclave import EngineRequest, QuotingEngine\n"
        f"params = {asked!r}\n"
        "async def main():\n"
        "    async for chunk in QuotingEngine().chat(EngineRequest('chat', params)):\n"
        "        print(chunk['id'], chunk['choices'])\n"
        "asyncio.run(main())"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1
