# ruff: noqa: RUF001 - full-width punctuation is part of what is tested.
"""The built-in engine: what it quotes, calls, extracts, streams and refuses.

Every chunk of every reply here is held against the published chunk schema.
"""

from __future__ import annotations

import base64
import datetime
import json
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field
from support.paths import ROOT, SCHEMAS

from prem_core.enclave.engines.base import EngineError
from prem_core.enclave.extractive import complete
from prem_core.enclave.extractive.material import Material
from prem_core.enclave.extractive.pieces import count, pieces
from prem_core.enclave.extractive.readings import date_times, dates, numbers
from prem_core.enclave.extractive.schemas import Schemas
from prem_core.enclave.extractive.values import extract

CHUNK = Draft202012Validator(json.loads((SCHEMAS / "chat-chunk.schema.json").read_text()))
PARAMS = Draft202012Validator(json.loads((SCHEMAS / "chat-inference-params.schema.json").read_text()))

CONTEXT = (
    "Prem was founded in 2021 in Lugano. The company builds confidential inference. "
    "Its gateway never sees a prompt in clear. Dr. Rossi leads the cryptography team. "
    "The cafeteria serves lunch at noon."
)


@dataclass
class Said:
    """One choice, put together from its chunks."""

    content: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    finish_reason: str | None = None
    matched_stop: str | None = None

    @property
    def arguments(self) -> list[tuple[str, Any]]:
        return [(name, json.loads(text)) for name, text in self.calls]


def chunks(messages: str | Sequence[Mapping[str, Any]], **params: Any) -> list[dict[str, Any]]:
    """The chunks of one request, each valid, and the request too."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    request = {"model": "m", "messages": list(messages), **params}
    PARAMS.validate(request)
    found = list(complete(request, created=1_764_004_858))
    for chunk in found:
        CHUNK.validate(chunk)
    return found


def choices(messages: str | Sequence[Mapping[str, Any]], **params: Any) -> list[Said]:
    said: dict[int, Said] = {}
    for chunk in chunks(messages, **params):
        for choice in chunk["choices"]:
            into = said.setdefault(choice["index"], Said())
            assert into.finish_reason is None, "nothing comes after the end"
            delta = choice["delta"]
            into.content += delta.get("content") or ""
            into.reasoning += delta.get("reasoning_content") or ""
            for call in delta.get("tool_calls") or ():
                if "id" in call:
                    assert call["index"] == len(into.calls)
                    assert call["function"]["arguments"] == ""
                    into.calls.append((call["function"]["name"], ""))
                    into.ids.append(call["id"])
                else:
                    name, text = into.calls[call["index"]]
                    into.calls[call["index"]] = (name, text + call["function"]["arguments"])
            into.finish_reason = choice["finish_reason"]
            into.matched_stop = choice["matched_stop"]
    return [said[index] for index in sorted(said)]


def ask(messages: str | Sequence[Mapping[str, Any]], **params: Any) -> Said:
    return choices(messages, **params)[0]


def tool(
    name: str, description: str = "", required: Sequence[str] | None = None, /, **properties: Any
) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else list(required),
    }
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def json_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "reply", "schema": schema}}


def called(*results: tuple[str, Mapping[str, Any], str]) -> list[dict[str, Any]]:
    """An assistant message with tool calls and the tool messages that answer them."""
    calls = [
        {"id": f"c{i}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for i, (name, arguments, _) in enumerate(results)
    ]
    answers = [
        {"role": "tool", "tool_call_id": f"c{i}", "content": text} for i, (_, _, text) in enumerate(results)
    ]
    return [{"role": "assistant", "content": "", "tool_calls": calls}, *answers]


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


STRING, INTEGER, NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
WEATHER = tool("get_weather", "Get the weather at a location.", location=STRING)
CLOCK = tool("get_time", "Get the current time in a city.", city=STRING)
ADD = tool("add", "Add two numbers.", a=INTEGER, b=INTEGER)
MULTIPLY = tool("multiply", "Multiply two numbers.", a=INTEGER, b=INTEGER)
ADDER = tool("my_adder_tool", "Takes two integers, a and b, and returns their sum.", a=INTEGER, b=INTEGER)
MAGIC = tool(
    "magic_function",
    "Applies a magic function to an input.",
    input={"type": "integer", "exclusiveMinimum": -1000, "exclusiveMaximum": 1000},
)
MAGIC_NO_ARGS = tool("magic_function_no_args", "Calculate a magic function.")
CUSTOMER = tool(
    "unicode_customer",
    "Tool for creating a customer with Unicode name.",
    customer_name=STRING,
    description=STRING,
)
GREETING = tool(
    "greeting_generator", "Generate a greeting in a particular style of speaking.", answer_style=STRING
)
SEARCH = tool("search", "Search the web for information.", query=STRING)


# -- questions


@pytest.mark.parametrize(
    ("question", "quote"),
    [
        ("When was Prem founded?", "Prem was founded in 2021 in Lugano."),
        ("Who leads the cryptography team?", "Dr. Rossi leads the cryptography team."),
        ("Does the gateway see prompts?", "Its gateway never sees a prompt in clear."),
    ],
)
@pytest.mark.parametrize(
    "template",
    [
        "Answer from the context:\n{context}\nQuestion: {question}",
        "Question: {question}\nContext: {context}\nAnswer:",
        "Context:\n{context}\n\n{question}",
        "{context}\n\n{question}",
        "{context} {question}",
        "{question}\n\n{context}",
        "<context>\n{context}\n</context>\n{question}",
        "Context information is below.\n---------------------\n{context}\n---------------------\n"
        "Given the context information and not prior knowledge, answer the query.\nQuery: {question}\nAnswer: ",
    ],
)
def test_the_best_matching_sentence_of_the_context_is_quoted(
    template: str, question: str, quote: str
) -> None:
    prompt = template.format(context=CONTEXT, question=question)
    assert ask(prompt, verbosity="low").content == quote


def test_verbosity_sets_how_many_sentences_are_quoted_in_document_order() -> None:
    text = "Ships carry tea. Ships carry coal. Nobody came. Ships carry salt. Ships carry rice."
    prompt = f"{text}\n\nWhat do ships carry?"
    replies = {level: ask(prompt, verbosity=level).content for level in ("low", "medium", "high")}
    assert replies == {
        "low": "Ships carry tea.",
        "medium": "Ships carry tea. Ships carry coal.",
        "high": "Ships carry tea. Ships carry coal. Ships carry salt.",
    }
    assert ask(prompt).content == replies["medium"]


def test_earlier_messages_are_context() -> None:
    history = [
        {"role": "system", "content": "The office door code is 4711."},
        user("My name is Bob."),
        {"role": "assistant", "content": "Hello Bob!"},
    ]
    assert ask([*history, user("What is my name?")]).content == "My name is Bob."
    assert ask([*history, user("What is the door code?")]).content == "The office door code is 4711."


def test_a_question_in_the_context_lends_its_words_to_the_sentence_after_it() -> None:
    text = "What is the refund period?\nThirty days.\nWho pays for shipping?\nThe buyer."
    assert (
        ask(f"Context: {text}\nQuestion: How long is the refund period?", verbosity="low").content
        == "Thirty days."
    )


def test_a_context_without_an_answer_is_said_to_have_none() -> None:
    reply = ask(f"Context: {CONTEXT}\nQuestion: Which king ruled Spain?").content
    assert reply == 'Nothing in the given text answers: "Which king ruled Spain?"'


@pytest.mark.parametrize("text", ["Hello", "how are you", "Tell me a joke about cats."])
def test_without_anything_to_quote_the_question_is_echoed(text: str) -> None:
    assert ask(text).content == f'You said: "{text}"'


def test_a_prompt_without_text_is_answered_too() -> None:
    assert ask([user("")]).content == "Nothing was asked."


def test_a_summary_is_the_beginning_of_the_material() -> None:
    reply = ask(f"Summarize the following text:\n\n{CONTEXT}", verbosity="low").content
    assert reply == "Prem was founded in 2021 in Lugano."


def test_unspaced_scripts_are_matched() -> None:
    assert (
        ask("上下文很长。公司在卢加诺成立。午餐很好吃。\n公司在哪里成立？", verbosity="low").content
        == "公司在卢加诺成立。"
    )


# -- files, images, sounds


def data_url(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def file_part(file_data: str) -> dict[str, Any]:
    return {"type": "file", "file": {"filename": "a", "file_data": file_data}}


@pytest.mark.parametrize(
    ("file_data", "answer"),
    [
        (data_url("text/plain", CONTEXT.encode()), "Prem was founded in 2021 in Lugano."),
        (base64.b64encode(CONTEXT.encode()).decode(), "Prem was founded in 2021 in Lugano."),
        (
            data_url("application/json", b'{"company": {"founded": 2021, "staff": 40}}'),
            "company founded: 2021",
        ),
    ],
)
def test_text_files_are_read_as_context(file_data: str, answer: str) -> None:
    question = {"type": "text", "text": "When was the company or Prem founded?"}
    assert ask([user([question, file_part(file_data)])], verbosity="low").content == answer


def pdf(text: str) -> bytes:
    stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R"
        b" /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    body, offsets = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, start=1):
        offsets.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    trailer = b"trailer\n<< /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % len(body)
    return body + b"xref\n0 6\n0000000000 65535 f \n" + table + trailer


def test_the_text_of_a_pdf_is_read_with_pypdf() -> None:
    pytest.importorskip("pypdf")
    parts = [
        {"type": "text", "text": "Who won the race?"},
        file_part(data_url("application/pdf", pdf("Ada won the race."))),
    ]
    assert ask([user(parts)]).content == "Ada won the race."


def test_a_pdf_without_pypdf_is_refused_with_the_way_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pypdf", None)
    with pytest.raises(EngineError, match=r"pip install 'prem-encrypted\[enclave\]'") as refusal:
        ask([user([file_part(data_url("application/pdf", pdf("x")))])])
    assert (refusal.value.status, refusal.value.param) == (400, "file_data")


def png(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


IMAGES = {
    "image/png": png(640, 480),
    "image/gif": b"GIF89a" + struct.pack("<HH", 640, 480) + b"\0" * 8,
    "image/jpeg": b"\xff\xd8\xff\xe0\x00\x04ab\xff\xc0\x00\x11\x08"
    + struct.pack(">HH", 480, 640)
    + b"\0" * 8,
    "image/webp": b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0"
    + (639).to_bytes(3, "little")
    + (479).to_bytes(3, "little"),
}


@pytest.mark.parametrize("media_type", IMAGES)
def test_of_an_image_only_its_header_is_told(media_type: str) -> None:
    image = IMAGES[media_type]
    part = {"type": "image_url", "image_url": {"url": data_url("", image)}}
    reply = ask([user([{"type": "text", "text": "Describe this image."}, part])]).content
    assert (
        reply
        == f"The image is {media_type}, 640 x 480 pixels, {len(image)} bytes; its content is not understood."
    )


def test_a_remote_image_is_not_fetched() -> None:
    part = {"type": "image_url", "image_url": {"url": "https://example.invalid/a.png"}}
    assert "not fetched" in ask([user([{"type": "text", "text": "What is in this image?"}, part])]).content


def test_of_a_sound_only_format_and_duration_are_told() -> None:
    samples = b"\0" * 16_000
    header = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 16_000, 2, 16)
    wav = (
        b"RIFF"
        + struct.pack("<I", 36 + len(samples))
        + b"WAVE"
        + header
        + b"data"
        + struct.pack("<I", len(samples))
        + samples
    )
    part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(wav).decode(), "format": "wav"}}
    reply = ask([user([{"type": "text", "text": "Describe this audio:"}, part])]).content
    assert reply == f"The audio is wav, 1.00 seconds, {len(wav)} bytes; it is not transcribed."


# -- tools


@pytest.mark.parametrize(
    ("request_", "tools", "calls"),
    [
        (
            "What is the value of magic_function(3)? Use the tool.",
            [MAGIC],
            [("magic_function", {"input": 3})],
        ),
        (
            "What is the value of magic_function_no_args()? Use the tool.",
            [MAGIC, MAGIC_NO_ARGS],
            [("magic_function_no_args", {})],
        ),
        ("Please use get weather for Rome", [WEATHER, CLOCK], [("get_weather", {"location": "Rome"})]),
        (
            "What is the weather in San Francisco, CA?",
            [CLOCK, WEATHER, SEARCH],
            [("get_weather", {"location": "San Francisco, CA"})],
        ),
        ("What is 1 + 2", [ADDER], [("my_adder_tool", {"a": 1, "b": 2})]),
        (
            "Search for the latest news about AI",
            [WEATHER, SEARCH],
            [("search", {"query": "the latest news about AI"})],
        ),
        (
            "Create a customer named '你好啊集团' (Hello Group) - a Chinese technology company",
            [CUSTOMER],
            [
                (
                    "unicode_customer",
                    {"customer_name": "你好啊集团", "description": "a Chinese technology company"},
                )
            ],
        ),
        (
            "Using the tool, generate a Pirate greeting.",
            [GREETING],
            [("greeting_generator", {"answer_style": "Pirate"})],
        ),
        (
            "I am in Paris. What's the weather?",
            [WEATHER],
            [("get_weather", {"location": "Paris"})],
        ),
    ],
)
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_the_tool_that_is_asked_for_is_called_with_the_prompts_values(
    request_: str, tools: list[Any], calls: list[Any], choice: str
) -> None:
    reply = ask(request_, tools=tools, tool_choice=choice)
    assert reply.arguments == calls
    assert reply.finish_reason == "tool_calls"
    assert reply.content == ""


@pytest.mark.parametrize(
    ("request_", "calls"),
    [
        ("What's the weather in Paris and in Tokyo?", [("get_weather", "Paris"), ("get_weather", "Tokyo")]),
        (
            "What's the weather in Paris, London and Tokyo?",
            [("get_weather", "Paris"), ("get_weather", "London"), ("get_weather", "Tokyo")],
        ),
        (
            "Weather in Paris, France and Berlin, Germany please",
            [("get_weather", "Paris, France"), ("get_weather", "Berlin, Germany")],
        ),
        (
            "Get the weather in Paris and the time in Berlin",
            [("get_weather", "Paris"), ("get_time", "Berlin")],
        ),
        ("what's the weather in sf and nyc?", [("get_weather", "sf"), ("get_weather", "nyc")]),
    ],
)
def test_several_things_asked_for_become_parallel_calls(request_: str, calls: list[tuple[str, str]]) -> None:
    reply = ask(request_, tools=[WEATHER, CLOCK])
    assert [(name, *arguments.values()) for name, arguments in reply.arguments] == calls
    assert len(set(reply.ids)) == len(calls)


def test_clauses_keep_their_numbers() -> None:
    reply = ask("add 2 and 3, and multiply 4 by 5", tools=[ADD, MULTIPLY])
    assert reply.arguments == [("add", {"a": 2, "b": 3}), ("multiply", {"a": 4, "b": 5})]


def test_arguments_are_taken_by_type_format_and_preposition() -> None:
    flight = tool(
        "book_flight",
        "Book a flight.",
        origin=STRING,
        destination=STRING,
        date={"type": "string", "format": "date"},
        passengers=INTEGER,
        seat={"enum": ["aisle", "window"]},
    )
    reply = ask(
        "Book a flight from Berlin to San Francisco on 12 March 2026 for 2 passengers, window seat",
        tools=[flight],
    )
    assert reply.arguments == [
        (
            "book_flight",
            {
                "origin": "Berlin",
                "destination": "San Francisco",
                "date": "2026-03-12",
                "passengers": 2,
                "seat": "window",
            },
        )
    ]


def test_quoted_strings_and_mail_addresses_go_where_the_words_point() -> None:
    mail = tool("send_email", "Send an email.", to=STRING, subject=STRING, body=STRING)
    reply = ask("Send an email to bob@example.com with subject 'Hi' saying 'Hello there'", tools=[mail])
    assert reply.arguments == [
        ("send_email", {"to": "bob@example.com", "subject": "Hi", "body": "Hello there"})
    ]


def test_directions_in_property_names_are_followed() -> None:
    transfer = tool(
        "transfer_money", "Transfer money.", from_account=STRING, to_account=STRING, amount=NUMBER
    )
    reply = ask("Transfer $250.75 to savings from checking", tools=[transfer])
    expected = {"from_account": "checking", "to_account": "savings", "amount": 250.75}
    assert reply.arguments == [("transfer_money", expected)]


def test_a_list_goes_into_an_array_argument_of_one_call() -> None:
    total = tool("sum_numbers", "Sum a list of numbers.", numbers={"type": "array", "items": NUMBER})
    assert ask("Sum the numbers 1, 2 and 3", tools=[total]).arguments == [
        ("sum_numbers", {"numbers": [1, 2, 3]})
    ]


def test_optional_arguments_that_are_not_in_the_prompt_are_left_out() -> None:
    forecast = tool(
        "forecast", "Weather forecast.", ["city"], city=STRING, days=INTEGER, unit={"enum": ["C", "F"]}
    )
    assert ask("Forecast for Oslo", tools=[forecast]).arguments == [("forecast", {"city": "Oslo"})]
    assert ask("Forecast for Oslo for 3 days", tools=[forecast]).arguments == [
        ("forecast", {"city": "Oslo", "days": 3})
    ]


@pytest.mark.parametrize("text", ["Hello!", "The weather is nice today", "What is the capital of France?"])
def test_auto_calls_nothing_that_is_not_asked_for(text: str) -> None:
    reply = ask(text, tools=[WEATHER, MAGIC, SEARCH], tool_choice="auto")
    assert reply.calls == []
    assert reply.content


def test_none_never_calls() -> None:
    reply = ask("What is the weather in Rome?", tools=[WEATHER], tool_choice="none")
    assert (reply.calls, reply.finish_reason) == ([], "stop")


def test_a_tool_that_must_not_be_used_is_not_called() -> None:
    assert ask("Don't call get_weather.", tools=[WEATHER]).calls == []


@pytest.mark.parametrize("tools", [[MAGIC, WEATHER], [WEATHER, MAGIC], [SEARCH]])
def test_required_calls_a_tool_with_valid_arguments_even_for_a_greeting(tools: list[dict[str, Any]]) -> None:
    reply = ask("Hello!", tools=tools, tool_choice="required")
    [(name, arguments)] = reply.arguments
    parameters = next(each["function"]["parameters"] for each in tools if each["function"]["name"] == name)
    Draft202012Validator(parameters).validate(arguments)


@pytest.mark.parametrize("text", ["Hello!", "What is the weather in Rome and in Oslo?"])
def test_a_named_tool_is_called_exactly_once(text: str) -> None:
    reply = ask(text, tools=[WEATHER, MAGIC], tool_choice=named("magic_function"))
    [(name, arguments)] = reply.arguments
    assert name == "magic_function"
    assert -1000 < arguments["input"] < 1000


def test_after_a_result_the_answer_is_the_result() -> None:
    messages = [
        user("What is the weather in Rome?"),
        *called(("get_weather", {"location": "Rome"}, "It's sunny.")),
    ]
    reply = ask(messages, tools=[WEATHER])
    assert (reply.content, reply.calls, reply.finish_reason) == ("It's sunny.", [], "stop")


def test_json_results_are_made_readable() -> None:
    result = '{"temp": 12, "sky": ["clear", "blue"]}'
    messages = [user("What is the weather in Rome?"), *called(("get_weather", {"location": "Rome"}, result))]
    assert ask(messages, tools=[WEATHER]).content == "temp: 12\nsky: clear, blue"


def test_several_results_are_told_apart() -> None:
    results = called(
        ("get_weather", {"location": "Rome"}, "Sunny."), ("get_weather", {"location": "Oslo"}, "Snow.")
    )
    reply = ask([user("What is the weather in Rome and in Oslo?"), *results], tools=[WEATHER])
    assert reply.content == "get_weather(location: Rome): Sunny.\nget_weather(location: Oslo): Snow."


def test_of_a_long_result_the_best_sentences_are_quoted() -> None:
    messages = [user("search: when was Prem founded?"), *called(("search", {"query": "x"}, CONTEXT))]
    assert ask(messages, tools=[SEARCH], verbosity="low").content == "Prem was founded in 2021 in Lugano."


def test_a_result_that_is_an_error_is_reported() -> None:
    failed = called(("my_adder_tool", {"a": 1}, "Error: Missing required argument 'b'."))
    reply = ask([user("What is 1 + 2"), *failed], tools=[ADDER])
    assert reply.content == "my_adder_tool reported: Error: Missing required argument 'b'."
    assert reply.calls == []


def test_a_tool_asked_for_and_not_called_yet_is_called_after_a_result() -> None:
    request = user("Get the weather in Paris and the time in Berlin")
    once = called(("get_weather", {"location": "Paris"}, "Sunny."))
    assert ask([request, *once], tools=[WEATHER, CLOCK]).arguments == [("get_time", {"city": "Berlin"})]
    twice = [*once, *called(("get_time", {"city": "Berlin"}, "Noon."))]
    assert ask([request, *twice], tools=[WEATHER, CLOCK]).calls == []


def test_required_after_a_result_prefers_a_tool_not_called_yet_and_fills_it_from_the_result() -> None:
    report = tool("WeatherReport", "The reply.", temperature=NUMBER, sky={"enum": ["clear", "cloudy"]})
    messages = [
        user("What is the weather in Rome?"),
        *called(("get_weather", {"location": "Rome"}, "Temperature: 21.5, sky: clear")),
    ]
    reply = ask(messages, tools=[WEATHER, report], tool_choice="required")
    assert reply.arguments == [("WeatherReport", {"temperature": 21.5, "sky": "clear"})]


def test_results_of_an_earlier_turn_do_not_answer_this_one() -> None:
    earlier = [
        user("What is 1 + 2"),
        *called(("my_adder_tool", {"a": 1, "b": 2}, "3")),
        {"role": "assistant", "content": "3"},
    ]
    assert ask([*earlier, user("What is 3 + 4")], tools=[ADDER]).arguments == [
        ("my_adder_tool", {"a": 3, "b": 4})
    ]


# -- response formats


class Item(BaseModel):
    description: str
    quantity: int
    unit_price: float
    amount: float


class Invoice(BaseModel):
    """An invoice."""

    invoice_number: str
    date: datetime.date
    due_date: datetime.date | None = None
    vendor: str = Field(description="Name of the company that sends the invoice")
    customer: str | None = None
    items: list[Item]
    subtotal: float | None = None
    tax: float | None = None
    total: float
    currency: Literal["USD", "EUR", "GBP"]
    iban: str | None = None
    purchase_order: str | None = None


INVOICE = Invoice(
    invoice_number="INV-1042",
    date=datetime.date(2026, 3, 12),
    due_date=datetime.date(2026, 4, 11),
    vendor="ACME Tools GmbH",
    customer="Hello Group",
    items=[
        Item(description="Steel hammer", quantity=2, unit_price=12.5, amount=25),
        Item(description="Cordless drill, 18 V", quantity=10, unit_price=120.95, amount=1209.5),
    ],
    subtotal=1234.5,
    tax=234.56,
    total=1469.06,
    currency="EUR",
    iban="DE89 3704 0044 0532 0130 00",
)

MARKDOWN_INVOICE = """Extract the invoice from this text.

INVOICE
ACME Tools GmbH
Hauptstr. 1, 10115 Berlin
Invoice number: INV-1042
Date: 12 March 2026
Due date: 11 April 2026
Bill to: Hello Group

| Description | Quantity | Unit price | Amount |
|---|---:|---:|---:|
| Steel hammer | 2 | 12.50 | 25.00 |
| Cordless drill, 18 V | 10 | 120.95 | 1,209.50 |

Subtotal: 1,234.50
VAT (19 %): 234.56
Total: 1,469.06 EUR
IBAN: DE89 3704 0044 0532 0130 00
"""
ALIGNED_INVOICE = """Supplier\tACME Tools GmbH
Invoice No.\tINV-1042
Invoice date\t2026-03-12
Due date\t2026-04-11
Customer\tHello Group
Item                   Qty   Price     Total
Steel hammer           2     12.50     25.00
Cordless drill, 18 V   10    120.95    1,209.50
Subtotal   1,234.50 €
Tax   234.56 €
Grand total   1,469.06 €
IBAN   DE89 3704 0044 0532 0130 00
"""
LISTED_INVOICE = """Invoice INV-1042 dated 03/12/2026 from ACME Tools GmbH to Hello Group, due date 04/11/2026.
- 2 x Steel hammer at 12.50 = 25.00
- 10 x Cordless drill, 18 V at 120.95 = 1,209.50
The subtotal is €1,234.50 and the VAT is €234.56. The total is €1,469.06.
Please pay to IBAN DE89 3704 0044 0532 0130 00.
"""


@pytest.mark.parametrize("text", [MARKDOWN_INVOICE, ALIGNED_INVOICE], ids=["markdown", "aligned"])
def test_an_invoice_is_extracted_in_full(text: str) -> None:
    reply = ask(text, response_format=json_schema(Invoice.model_json_schema()))
    assert Invoice.model_validate_json(reply.content) == INVOICE
    assert "purchase_order" not in json.loads(reply.content)


def test_an_invoice_in_prose_and_bullets_is_extracted() -> None:
    text = LISTED_INVOICE.replace(", 18 V", "")
    reply = ask(text, response_format=json_schema(Invoice.model_json_schema()))
    expected = INVOICE.model_copy(deep=True)
    expected.items[1].description = "Cordless drill"
    assert Invoice.model_validate_json(reply.content) == expected


class Person(BaseModel):
    name: str
    age: int | None
    city: str | None = None


class People(BaseModel):
    people: list[Person]


@pytest.mark.parametrize(
    "text",
    [
        "Anna is 34 years old and lives in Berlin. Ben Carter is 29 and lives in Paris. Nobody else came.",
        "Name: Anna\nAge: 34\nCity: Berlin\n\nName: Ben Carter\nAge: 29\nCity: Paris",
        "name,age,city\nAnna,34,Berlin\nBen Carter,29,Paris",
        '[{"name": "Anna", "age": 34, "city": "Berlin"}, {"name": "Ben Carter", "age": 29, "city": "Paris"}]',
    ],
    ids=["prose", "labels", "csv", "json"],
)
def test_a_list_of_objects_is_read_from_prose_labels_and_tables(text: str) -> None:
    reply = ask(text, response_format=json_schema(People.model_json_schema()))
    expected = People(
        people=[Person(name="Anna", age=34, city="Berlin"), Person(name="Ben Carter", age=29, city="Paris")]
    )
    assert People.model_validate_json(reply.content) == expected


def test_what_is_required_and_nullable_is_null_when_it_is_not_there() -> None:
    reply = ask("Anna lives in Berlin.", response_format=json_schema(Person.model_json_schema()))
    assert json.loads(reply.content) == {"name": "Anna", "age": None, "city": "Berlin"}


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"enum": ["positive", "negative", "neutral"]}, "Mood: clearly negative, sadly.", "negative"),
        (
            {"enum": ["positive", "negative"]},
            "Classify as positive or negative.\nThis was a positive experience.",
            "positive",
        ),
        ({"enum": ["in_progress", "done"]}, "It is still in progress.", "in_progress"),
        ({"enum": ["EUR", "USD"]}, "It costs $5.", "USD"),
        ({"type": "boolean"}, "Paid: yes", True),
        ({"type": "boolean"}, "The bill is not paid yet.", False),
        ({"type": "boolean"}, "The bill is paid.", True),
        ({"type": "number"}, "Paid: EUR 1.234,50", 1234.5),
        ({"type": "integer", "minimum": 10}, "Paid 3 of 12", 12),
        ({"type": "string", "format": "email"}, "Paid by bob@example.com.", "bob@example.com"),
        (
            {"type": "string", "format": "uri"},
            "Paid at https://example.com/a?b=1.",
            "https://example.com/a?b=1",
        ),
        ({"type": "string", "format": "date"}, "Paid: 13/12/2026", "2026-12-13"),
        (
            {"type": "string", "format": "date-time"},
            "Paid on March 12, 2026 at 3:30 pm",
            "2026-03-12T15:30:00Z",
        ),
        (
            {"type": "string", "pattern": r"^[A-Z]{3}-\d{4}$"},
            "It was paid with ABC-1234, thanks.",
            "ABC-1234",
        ),
        (
            {"type": "array", "items": {"type": "string"}},
            "Paid: cash, card and cheque",
            ["cash", "card", "cheque"],
        ),
        ({"type": "array", "items": {"type": "string"}}, "Paid:\n- cash\n- card", ["cash", "card"]),
        ({"type": "array", "items": {"enum": ["a1", "b2", "c3"]}}, "Paid b2, then a1.", ["b2", "a1"]),
        ({"type": "array", "prefixItems": [NUMBER, NUMBER]}, "Paid 4.5, 6", [4.5, 6]),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "Paid: n/a", None),
        (
            {"type": "object", "additionalProperties": NUMBER},
            "Rent: 700\nFood: 200.5",
            {"Rent": 700, "Food": 200.5},
        ),
    ],
)
def test_values_are_found_by_type(schema: dict[str, Any], text: str, value: Any) -> None:
    wanted = {"type": "object", "properties": {"paid": schema}, "required": ["paid"]}
    assert extract(wanted, Material(text)).value == {"paid": value}


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("customer_name", "The customer name is Ada Byron, of London.", "Ada Byron"),
        ("status", "Its status is on hold, sadly.", "on hold"),
        ("title", "Open the book called 'Emma'", "Emma"),
        ("order_code", "Look up order A-77 please", "A-77"),
        ("author", "Find books by Jane Austen", "Jane Austen"),
        ("topic", "Tell me a joke about black cats.", "black cats"),
        ("target_language", "Translate it to French", "French"),
        ("recipient", "Send 5 euros to Bob", "Bob"),
        ("recipient", "Send it to the finance team, please", "finance team"),
        ("city", "weather in tokyo", "tokyo"),
        ("city", "天气 in 北京", "北京"),
        ("day", "Remind me tomorrow evening", "tomorrow evening"),
        ("day", "Remind me on 12 March 2026", "12 March 2026"),
        ("meeting_time", "Meet Bob at 3:30 pm", "3:30 pm"),
        ("phone", "Call +49 30 1234567 now", "+49 30 1234567"),
        ("website", "Open https://example.com/x.", "https://example.com/x"),
        ("expression", "What is 2 + 3 * (4 - 1)?", "2 + 3 * (4 - 1)"),
        ("currency", "It costs 5 €", "EUR"),
        ("query", "What did Ada write?", "What did Ada write?"),
        ("query", "Search for old ships.", "old ships"),
        ("description", "New task: paint the fence.", "paint the fence"),
        ("employer", "She joined Blue Ocean Ltd. in May", "Blue Ocean Ltd."),
    ],
)
def test_strings_of_a_request_are_found_by_what_the_property_asks_for(
    name: str, text: str, value: str
) -> None:
    schema = {"type": "object", "properties": {name: STRING}, "required": [name]}
    found = extract(schema, Material(text, "clause"))
    assert found.value == {name: value}
    assert found.complete


def test_labels_inside_a_section_belong_to_its_object() -> None:
    party = {"type": "object", "properties": {"name": STRING, "city": STRING}, "required": ["name", "city"]}
    schema = {
        "type": "object",
        "properties": {"seller": party, "buyer": party},
        "required": ["seller", "buyer"],
    }
    text = "Seller:\n  Name: Ada\n  City: Rome\n\nBuyer:\n  Name: Bob\n  City: Oslo"
    assert extract(schema, Material(text)).value == {
        "seller": {"name": "Ada", "city": "Rome"},
        "buyer": {"name": "Bob", "city": "Oslo"},
    }


def test_a_tagged_union_takes_the_branch_that_finds_most() -> None:
    def branch(kind: str, **properties: Any) -> dict[str, Any]:
        own = {"kind": {"const": kind}, **properties}
        return {"type": "object", "properties": own, "required": list(own)}

    schema = {"oneOf": [branch("card", number=STRING), branch("transfer", iban=STRING, amount=NUMBER)]}
    found = extract(schema, Material("IBAN: DE89 3704 0044 0532 0130 00\nAmount: 5"))
    assert found.value == {"kind": "transfer", "iban": "DE89 3704 0044 0532 0130 00", "amount": 5}


def test_a_required_string_that_is_not_there_is_a_quote_of_the_prompt() -> None:
    joke = {
        "type": "object",
        "properties": {"setup": STRING, "punchline": STRING},
        "required": ["setup", "punchline"],
    }
    text = "Tell me a joke about cats."
    reply = json.loads(ask(text, response_format=json_schema(joke)).content)
    assert set(reply) == {"setup", "punchline"}
    assert all(value and value in text for value in reply.values())


NODE = {
    "$defs": {
        "Node": {
            "type": "object",
            "properties": {"name": STRING, "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}},
            "required": ["name", "next"],
        }
    },
    "$ref": "#/$defs/Node",
}
SATISFIABLE: list[dict[str, Any]] = [
    {},
    {"type": "object"},
    NODE,
    {"type": "object", "properties": {"tree": {"$ref": "#"}}},
    {"type": "array", "items": {"$ref": "#"}, "minItems": 0},
    {"type": "string", "minLength": 40},
    {"type": "string", "maxLength": 3},
    {"type": "string", "pattern": r"^(?:foo|bar)-[A-F]{2,}\d+$"},
    {"type": "string", "pattern": "^[^a-z]{3}$"},
    {"type": "string", "format": "uuid"},
    {"type": "integer", "exclusiveMinimum": 5, "maximum": 6},
    {"type": "integer", "multipleOf": 7, "minimum": 30},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    {"type": "array", "items": {"enum": ["x", "y"]}, "minItems": 2, "uniqueItems": True},
    {"type": "array", "prefixItems": [INTEGER, STRING], "items": False, "minItems": 2},
    {
        "type": "object",
        "properties": {"a": {"const": None}},
        "required": ["a"],
        "additionalProperties": False,
    },
    {"type": "object", "required": ["unlisted"]},
    {"allOf": [{"properties": {"a": INTEGER}, "required": ["a"]}, {"properties": {"a": {"minimum": 3}}}]},
    {"oneOf": [{"type": "null"}, {"type": "object", "properties": {"a": STRING}, "required": ["a"]}]},
    {"type": ["integer", "null"]},
    {"type": "string", "default": "as given"},
    {"type": "object", "minProperties": 1, "required": ["a"], "additionalProperties": {"type": "integer"}},
    {"type": "integer", "not": {"const": 0}, "minimum": 0},
]
VALUES: list[Any] = [
    None, True, 0, 1, 5.5, 6, 35, 0.5, "", "abc", "foo-AB1", "ABC", "x" * 40, [], [1], [1, "a"], [1, 2, 3],
    ["x", "y"], ["x", "x"], {},
    {"a": None}, {"a": 1}, {"a": 5}, {"a": "x"}, {"unlisted": 1}, {"name": "n", "next": None},
    {"name": "n", "next": {"name": 1}},
]  # fmt: skip


@pytest.mark.parametrize("schema", SATISFIABLE, ids=[json.dumps(schema)[:60] for schema in SATISFIABLE])
def test_the_engines_idea_of_validity_is_json_schemas(schema: dict[str, Any]) -> None:
    # jsonschema takes formats for annotations, the engine does not: it writes them.
    values = [value for value in VALUES if "format" not in schema or not isinstance(value, str)]
    judged = [Schemas(schema).valid(value, schema) for value in values]
    assert judged == [Draft202012Validator(schema).is_valid(value) for value in values]


@pytest.mark.parametrize("schema", SATISFIABLE, ids=[json.dumps(schema)[:60] for schema in SATISFIABLE])
@pytest.mark.parametrize(
    "text", ["", "Hello", CONTEXT, MARKDOWN_INVOICE], ids=["empty", "greeting", "prose", "invoice"]
)
def test_values_are_valid_under_every_schema_that_can_be_satisfied(schema: dict[str, Any], text: str) -> None:
    Draft202012Validator(schema).validate(extract(schema, Material(text)).value)


def test_a_schema_that_requires_itself_ends() -> None:
    schema = {"type": "object", "properties": {"self": {"$ref": "#"}}, "required": ["self"]}
    assert extract(schema, Material("Hello")).value is None


LEAVES = st.sampled_from(
    [
        STRING,
        INTEGER,
        {"type": "number", "minimum": 2.5},
        {"type": "boolean"},
        {"type": "string", "format": "date"},
        {"type": "string", "minLength": 2, "maxLength": 9},
        {"enum": ["red", "green", 3, None]},
        {"anyOf": [INTEGER, {"type": "null"}]},
    ]
)
NAMES = st.sampled_from(["name", "age", "total", "date", "items", "color", "is_valid", "answer"])


def objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    def build(properties: dict[str, Any], strict: bool, nested: bool) -> dict[str, Any]:
        required = sorted(properties) if strict else sorted(properties)[::2]
        schema = {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": not strict,
        }
        return {"type": "array", "items": schema} if nested else schema

    return st.builds(build, st.dictionaries(NAMES, inner, max_size=4), st.booleans(), st.booleans())


@given(
    st.recursive(LEAVES, objects, max_leaves=8),
    st.text("ab 12.,:|\n-\"'€Ä(){}", max_size=60) | st.sampled_from([CONTEXT, MARKDOWN_INVOICE]),
)
@settings(max_examples=150, deadline=None)
def test_extraction_is_valid_for_any_schema_and_any_text(schema: dict[str, Any], text: str) -> None:
    Draft202012Validator(schema).validate(extract(schema, Material(text)).value)


@pytest.mark.parametrize(
    ("prompt", "value"),
    [
        ("Anna is 34 years old. Return JSON with keys name, age.", {"name": "Anna", "age": 34}),
        ("Anna is 34 years old. Answer as JSON with the keys 'name' and 'age'.", {"name": "Anna", "age": 34}),
        ('Anna is 34 years old. Reply in JSON like {"name": "x", "age": 1}', {"name": "Anna", "age": 34}),
        (
            'City: Rome\nFollow this JSON schema: {"type": "object", "properties": {"city": {"type": "string"}}}',
            {"city": "Rome"},
        ),
        ("Say hello as JSON", {"answer": 'You said: "Say hello as JSON"'}),
    ],
)
def test_a_json_object_has_the_keys_that_are_asked_for(prompt: str, value: Any) -> None:
    assert json.loads(ask(prompt, response_format={"type": "json_object"}).content) == value


def test_json_mode_gives_exactly_the_keys_of_a_joke() -> None:
    prompt = (
        "Tell me a joke about cats. Return the result as a JSON with 'setup' and 'punchline' keys. "
        "Return nothing other than JSON."
    )
    value = json.loads(ask(prompt, response_format={"type": "json_object"}).content)
    assert set(value) == {"setup", "punchline"}
    assert all(isinstance(text, str) and text for text in value.values())


def test_tool_results_are_material_for_a_schema() -> None:
    messages = [
        user("What is the weather in Rome?"),
        *called(("get_weather", {"location": "Rome"}, '{"temp": 21.5}')),
    ]
    schema = {
        "type": "object",
        "properties": {"temp": NUMBER, "location": STRING},
        "required": ["temp", "location"],
    }
    reply = ask(messages, tools=[WEATHER], response_format=json_schema(schema))
    assert json.loads(reply.content) == {"temp": 21.5, "location": "Rome"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1,234.50 EUR", [1234.5]),
        ("1.234,50", [1234.5]),
        ("1 234,50", [1234.5]),
        ("$5 and -3", [5, -3]),
        ("1,2,3", [1, 2, 3]),
        ("2.5 million", [2_500_000]),
        ("5kg, 3rd, 10%", [5, 3, 10]),
        ("4-1", [4, 1]),
        ("INV-1042 at 10:30, v1.2.3", []),
    ],
)
def test_numbers_are_read_as_people_write_them(text: str, found: list[float]) -> None:
    assert [read.value for read in numbers(text)] == found


@pytest.mark.parametrize(
    ("text", "iso"),
    [
        ("12 March 2026", "2026-03-12"),
        ("March 12th, 2026", "2026-03-12"),
        ("03/12/2026", "2026-03-12"),
        ("13/12/2026", "2026-12-13"),
        ("12.03.2026", "2026-03-12"),
        ("2026-03-12", "2026-03-12"),
    ],
)
def test_dates_are_read_as_people_write_them(text: str, iso: str) -> None:
    assert [read.value for read in dates(f"on {text}.")] == [iso]


def test_a_date_time_keeps_its_offset_and_impossible_dates_are_none() -> None:
    assert [read.value for read in date_times("2026-03-12T15:00:00+01:00")] == ["2026-03-12T15:00:00+01:00"]
    assert dates("31.02.2026") == []


# -- the stream


def test_chunks_share_their_head_and_end_with_an_empty_delta() -> None:
    found = chunks("Hello", stream=True)
    heads = {
        (chunk["id"], chunk["object"], chunk["created"], chunk["model"], chunk["system_fingerprint"])
        for chunk in found
    }
    [(id_, object_, created, model, fingerprint)] = heads
    assert id_.startswith("chatcmpl-")
    assert (object_, created, model, fingerprint) == (
        "chat.completion.chunk",
        1_764_004_858,
        "m",
        "extractive-1",
    )
    assert found[0]["choices"][0]["delta"]["role"] == "assistant"
    assert {chunk["choices"][0]["delta"].get("role") for chunk in found[1:]} == {None}
    assert found[-1]["choices"][0] == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": "stop",
        "matched_stop": None,
    }


def test_reasoning_comes_first_and_is_short() -> None:
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks("Hello", stream=True)][:-1]
    kinds = ["reasoning" if delta["reasoning_content"] else "content" for delta in deltas]
    assert kinds == sorted(kinds, reverse=True)
    lengths = {
        effort: len(ask("Hello", reasoning_effort=effort).reasoning.split())
        for effort in ("none", "minimal", "low", "medium", "high")
    }
    assert (
        lengths["none"]
        == 0
        < lengths["minimal"]
        == lengths["low"]
        < lengths["medium"]
        == lengths["high"]
        <= 40
    )


@pytest.mark.parametrize(
    ("params", "present"),
    [
        ({}, True),
        ({"stream": False}, True),
        ({"stream": True}, False),
        ({"stream": True, "stream_options": {"include_usage": True}}, True),
    ],
)
def test_usage_comes_last_and_only_when_it_is_wanted(params: dict[str, Any], present: bool) -> None:
    found = chunks("Hello", **params)
    assert [chunk["usage"] is not None for chunk in found] == [False] * (len(found) - present) + [
        True
    ] * present
    if present:
        assert found[-1]["choices"] == []


def test_usage_counts_what_was_streamed() -> None:
    reply, usage = ask("Hello"), chunks("Hello")[-1]["usage"]
    reasoning = count(reply.reasoning)
    completion = reasoning + count(reply.content)
    assert usage == {
        "prompt_tokens": count("Hello"),
        "completion_tokens": completion,
        "total_tokens": count("Hello") + completion,
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


@given(st.text(max_size=200))
def test_pieces_joined_are_the_text(text: str) -> None:
    assert "".join(pieces(text)) == text
    assert len(pieces(text)) == count(text)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_token_limit_cuts_the_content(name: str) -> None:
    whole = ask("Hello", reasoning_effort="none").content
    for limit in range(1, count(whole)):
        reply = ask("Hello", reasoning_effort="none", **{name: limit})
        assert reply.content == "".join(pieces(whole)[:limit])
        assert reply.finish_reason == "length"
    exact = ask("Hello", reasoning_effort="none", **{name: count(whole)})
    assert (exact.content, exact.finish_reason) == (whole, "stop")


def test_the_smaller_of_two_limits_counts_and_reasoning_counts_too() -> None:
    found = chunks("Hello", max_tokens=5, max_completion_tokens=3)
    assert found[-1]["usage"]["completion_tokens"] == 3
    assert found[-1]["usage"]["completion_tokens_details"] == {"reasoning_tokens": 3}
    assert ask("Hello", max_tokens=5, max_completion_tokens=3).content == ""


def test_a_token_limit_cuts_tool_arguments_in_the_middle() -> None:
    reply = ask("Weather in Paris and in Rome", tools=[WEATHER], reasoning_effort="none", max_tokens=4)
    [(name, text)] = reply.calls
    assert (name, reply.finish_reason) == ("get_weather", "length")
    assert '{"location":"Paris"}'.startswith(text)
    assert text != '{"location":"Paris"}'


@pytest.mark.parametrize(
    ("stop", "content", "matched"),
    [
        ("lo", 'You said: "Hel', "lo"),
        (["zzz", "said", "Hello"], "You ", "said"),
        (["You"], "", "You"),
        (["you"], 'You said: "Hello"', None),
        ([], 'You said: "Hello"', None),
        ("", 'You said: "Hello"', None),
        (None, 'You said: "Hello"', None),
    ],
)
def test_content_ends_before_a_stop_sequence(stop: Any, content: str, matched: str | None) -> None:
    reply = ask("Hello", stop=stop)
    assert (reply.content, reply.finish_reason, reply.matched_stop) == (content, "stop", matched)


def test_n_choices_start_from_the_next_best_sentence() -> None:
    text = "Ships carry tea. Ships carry coal. Ships carry salt.\n\nWhat do ships carry?"
    replies = [choice.content for choice in choices(text, n=4, verbosity="low")]
    assert replies == ["Ships carry tea.", "Ships carry coal.", "Ships carry salt.", "Ships carry tea."]


def test_tool_call_ids_are_unique_within_a_response_and_the_same_every_time() -> None:
    first = choices("Weather in Paris and in Rome", tools=[WEATHER], n=2)
    ids = [id_ for choice in first for id_ in choice.ids]
    assert len(set(ids)) == 4
    assert [
        id_ for choice in choices("Weather in Paris and in Rome", tools=[WEATHER], n=2) for id_ in choice.ids
    ] == ids


def test_log_probabilities_come_with_content_only() -> None:
    found = chunks("Hello", stream=True, logprobs=True, top_logprobs=5)
    for choice in (chunk["choices"][0] for chunk in found):
        content = choice["delta"].get("content")
        if not content:
            assert choice["logprobs"] is None
            continue
        token = {"token": content, "logprob": 0.0, "bytes": list(content.encode())}
        assert choice["logprobs"] == {"content": [{**token, "top_logprobs": [token]}]}
    plain = chunks("Hello", stream=True, logprobs=True, reasoning_effort="none")
    assert plain[0]["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


def test_the_same_request_gets_the_same_chunks_whatever_the_sampling() -> None:
    text = f"{CONTEXT}\n\nWhen was Prem founded?"
    sampling = {"temperature": 1.5, "top_p": 0.1, "seed": 7, "frequency_penalty": 1, "logit_bias": {"5": 1}}
    kept = {
        "store": True,
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "prompt_cache_key": "k",
        "safety_identifier": "u",
    }
    prediction = {"prediction": {"type": "content", "content": "x"}}
    assert chunks(text) == chunks(text)
    assert ask(text) == ask(text, **sampling, **kept, **prediction)


def test_the_reply_does_not_depend_on_the_hash_seed() -> None:
    script = (
        "import json, sys; from prem_core.enclave.extractive import complete\n"
        "print(json.dumps(list(complete(json.load(sys.stdin), created=1))))"
    )
    schema = json_schema(Invoice.model_json_schema())
    request = {"model": "m", "messages": [user(MARKDOWN_INVOICE)], "response_format": schema}
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            input=json.dumps(request),
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(outputs) == 1


# -- refusals


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools"),
        ({"tools": [WEATHER], "tool_choice": {"type": "custom", "custom": {"name": "f"}}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": named("secret")}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"format": "wav", "voice": "alloy"}}, "audio"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"n": 1000}, "n"),
    ],
)
def test_what_the_engine_cannot_do_is_refused_by_name_before_the_first_chunk(
    params: dict[str, Any], param: str
) -> None:
    request = {"model": "m", "messages": [user("A secret prompt")], **params}
    PARAMS.validate(request)
    with pytest.raises(EngineError) as refusal:
        complete(request, created=1)
    assert (refusal.value.status, refusal.value.param, refusal.value.type) == (
        400,
        param,
        "invalid_request_error",
    )
    assert param in refusal.value.message
    assert "secret" not in refusal.value.message


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"type": "file", "file": {"file_id": "secret"}}, "file_id"),
        ({"type": "file", "file": {"filename": "secret"}}, "file_data"),
        (file_part("secret!"), "file_data"),
        (file_part(data_url("application/octet-stream", b"\xff\xfe\x00secret")), "file_data"),
        (file_part(data_url("application/pdf", b"%PDF-secret")), "file_data"),
        ({"type": "image_url", "image_url": {"url": "data:image/png,secret"}}, "image_url"),
        ({"type": "input_audio", "input_audio": {"data": "secret!", "format": "wav"}}, "input_audio"),
    ],
)
def test_parts_that_cannot_be_read_are_refused_without_quoting_them(part: dict[str, Any], param: str) -> None:
    with pytest.raises(EngineError) as refusal:
        ask([user([part])])
    assert (refusal.value.status, refusal.value.param) == (400, param)
    assert "secret" not in refusal.value.message


@pytest.mark.parametrize(
    "schema",
    [{"properties": []}, {"type": 5}, {"enum": "abc"}, {"minimum": "1"}, {"anyOf": {}}, {"items": 3}],
)
def test_what_is_no_json_schema_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(EngineError) as refusal:
        ask("Hello", response_format=json_schema(schema))
    assert (refusal.value.status, refusal.value.param) == (400, "response_format")
    function = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", **schema}}}
    with pytest.raises(EngineError) as refusal:
        ask("Hello", tools=[function])
    assert (refusal.value.status, refusal.value.param) == (400, "tools")


def test_a_schema_nested_beyond_reason_is_refused() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(400):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    with pytest.raises(EngineError, match="nested too deeply"):
        ask("Hello", response_format=json_schema(schema))


# -- size


def large_prompts() -> Iterator[tuple[str, str]]:
    prose = " ".join(f"Sentence number {i} speaks of thing {i * 7 % 1000} and of Paris." for i in range(2200))
    yield "prose", prose
    rows = "\n".join(f"| thing {i} | {i} | {i}.50 | {i}.00 |" for i in range(3500))
    yield "table", f"| Description | Quantity | Unit price | Amount |\n|---|---|---|---|\n{rows}"
    yield "labels", "\n".join(f"label {i % 97}: {i}" for i in range(7000))
    for name, unit in {
        "spaces": " ",
        "quotes": "'",
        "stops": "!",
        "letters": "a",
        "capitals": "Aa",
        "tags": "<text>",
    }.items():
        yield name, unit * (100_000 // len(unit))


OFFLOAD_BYTES = dict(large_prompts())


@pytest.mark.parametrize("name", OFFLOAD_BYTES)
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"tools": [WEATHER, ADD, SEARCH]},
        {"response_format": json_schema(Invoice.model_json_schema())},
        {"response_format": {"type": "json_object"}},
    ],
    ids=["answer", "tools", "schema", "object"],
)
def test_a_prompt_of_100_kb_is_answered_in_about_a_second(name: str, params: dict[str, Any]) -> None:
    request = {
        "model": "m",
        "messages": [user(OFFLOAD_BYTES[name] + "\nWhat is the total of thing 5?")],
        **params,
    }
    began = time.perf_counter()
    list(complete(request, created=1))
    # Well below a second on a desktop; the bound leaves room for a busy test machine.
    assert time.perf_counter() - began < 4
