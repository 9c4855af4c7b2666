"""One session of an official client with the proxy, in Python. `session.mjs` is the same for the npm client.

Both produce the same report, as JSON values. `check_report` checks it.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import AsyncIterator
from typing import Any

import openai

from support.paths import CLINIC_NOTE

RECORDING = CLINIC_NOTE
MODEL = "openai/gpt-oss-120b"
WHISPER = "openai/whisper-large-v3"
QUESTION = "Context: The clinic opens at eight. Question: When does the clinic open?"
ERRANDS = "Get the weather in Paris and the time in Berlin."
INVOICE = "Invoice number: INV-7. Total: 12.50 EUR."
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": text,
            "parameters": {"type": "object", "properties": {of: {"type": "string"}}, "required": [of]},
        },
    }
    for name, text, of in (
        ("get_weather", "Get the weather at a location.", "location"),
        ("get_time", "Get the local time in a city.", "city"),
    )
]
RESULTS = {"get_weather": "It is sunny in Paris.", "get_time": "It is noon in Berlin."}
SCHEMA = {
    "type": "object",
    "properties": {
        "invoice_number": {"type": "string"},
        "total": {"type": "number"},
        "currency": {"type": "string", "enum": ["EUR", "USD"]},
    },
    "required": ["invoice_number", "total", "currency"],
    "additionalProperties": False,
}


async def settle(value: Any) -> Any:
    """The result of a call of a sync or an async client."""
    return await value if inspect.isawaitable(value) else value


async def each(stream: Any) -> AsyncIterator[Any]:
    """The items of a sync or an async stream."""
    if hasattr(stream, "__aiter__"):
        async for item in stream:
            yield item
    else:
        for item in stream:
            yield item


def messages_of(content: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


async def run_session(client: Any, limited: Any, slow: Any) -> dict[str, Any]:
    """The result of each step.

    Args:
        client: An official client, sync or async, of a proxy in front of an embedded enclave.
        limited: The same, with the BASE tier's limits.
        slow: The same, with an enclave that sends one chunk and then nothing.
    """
    report: dict[str, Any] = {}
    create = client.chat.completions.create

    whole = await settle(create(model=MODEL, messages=messages_of(QUESTION)))
    report["chat"] = [
        whole.choices[0].message.content,
        whole.choices[0].finish_reason,
        whole.usage.total_tokens > 0,
    ]

    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = [
        chunk
        async for chunk in each(await settle(create(model=MODEL, messages=messages_of(QUESTION), **options)))
    ]
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    report["stream"] = [
        "".join(delta.content or "" for delta in deltas),
        any(getattr(delta, "reasoning_content", None) for delta in deltas),
        chunks[-1].usage.total_tokens > 0,
    ]

    calls: dict[int, list[str]] = {}
    async for chunk in each(
        await settle(
            create(
                model=MODEL, messages=messages_of(ERRANDS), tools=TOOLS, stream=True, parallel_tool_calls=True
            )
        )
    ):
        for piece in chunk.choices[0].delta.tool_calls or []:
            call = calls.setdefault(piece.index, ["", "", ""])
            call[0] += piece.id or ""
            call[1] += piece.function.name or ""
            call[2] += piece.function.arguments or ""
    report["tools"] = [[name, json.loads(arguments)] for _, name, arguments in calls.values()]
    tool_calls = [
        {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}
        for id_, name, arguments in calls.values()
    ]
    tool_results = [
        {"role": "tool", "tool_call_id": id_, "content": RESULTS[name]} for id_, name, _ in calls.values()
    ]
    messages = [
        *messages_of(ERRANDS),
        {"role": "assistant", "content": None, "tool_calls": tool_calls},
        *tool_results,
    ]
    answer = await settle(create(model=MODEL, messages=messages, tools=TOOLS))
    report["answer"] = answer.choices[0].message.content

    form = {"type": "json_schema", "json_schema": {"name": "invoice", "strict": True, "schema": SCHEMA}}
    invoice = await settle(create(model=MODEL, messages=messages_of(INVOICE), response_format=form))
    report["json_schema"] = json.loads(invoice.choices[0].message.content)

    transcribe = client.audio.transcriptions.create
    transcription = await settle(
        transcribe(
            model=WHISPER,
            file=RECORDING,
            response_format="verbose_json",
            timestamp_granularities=["segment", "word"],
        )
    )
    report["transcription"] = [
        transcription.text,
        len(transcription.segments),
        bool(transcription.words),
    ]
    report["text"] = await settle(transcribe(model=WHISPER, file=RECORDING, response_format="text"))

    listed = await settle(client.models.list())
    shown = await settle(client.models.retrieve(MODEL))
    report["models"] = [MODEL in [model.id for model in listed.data], shown.id]

    try:
        wrong_key = client.with_options(api_key="sk_test_wrong")
        await settle(wrong_key.chat.completions.create(model=MODEL, messages=messages_of(QUESTION)))
    except openai.AuthenticationError as error:
        report["wrong key"] = [error.status_code, error.code, str(error.request_id)[:8]]

    try:
        for _ in range(8):
            await settle(limited.chat.completions.create(model=MODEL, messages=messages_of(QUESTION)))
    except openai.RateLimitError as error:
        report["limit"] = [error.status_code, error.code, int(error.response.headers["retry-after"]) >= 1]

    stream = await settle(
        slow.chat.completions.create(model="scripted", messages=messages_of("Hello?"), stream=True)
    )
    async for chunk in each(stream):
        report["disconnect"] = chunk.choices[0].delta.content
        break
    await settle(stream.close())
    return report


def check_report(report: dict[str, Any]) -> None:
    """Check the report of a session."""
    transcript = "doctor will see the patient again on friday"
    quoted = "The clinic opens at eight."
    text, *rest = report["chat"]
    assert quoted in text
    assert rest == ["stop", True]
    text, *rest = report["stream"]
    assert quoted in text
    assert rest == [True, True]
    assert report["tools"] == [["get_weather", {"location": "Paris"}], ["get_time", {"city": "Berlin"}]]
    assert "sunny in Paris" in report["answer"]
    assert "noon in Berlin" in report["answer"]
    assert report["json_schema"] == {"invoice_number": "INV-7", "total": 12.5, "currency": "EUR"}
    text, *rest = report["transcription"]
    assert transcript in text
    assert rest == [2, True]
    assert transcript in report["text"]
    assert report["models"] == [True, MODEL]
    assert report["wrong key"] == [401, "invalid_api_key", "support_"]
    assert report["limit"] == [429, "rate_limit_exceeded", True]
    assert report["disconnect"] == "Hello"
