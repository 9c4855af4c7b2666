"""The session that every official client holds with the proxy, in Python; `session.mjs` is the same for npm's.

What it gives is JSON, the same for both, and `check` looks at it.
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
    """What an async client's call gives when awaited; what a sync one's gives."""
    return await value if inspect.isawaitable(value) else value


async def each(stream: Any) -> AsyncIterator[Any]:
    """The items of either kind of stream."""
    if hasattr(stream, "__aiter__"):
        async for item in stream:
            yield item
    else:
        for item in stream:
            yield item


def said(content: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


async def session(client: Any, limited: Any, slow: Any) -> dict[str, Any]:
    """What happened at each step.

    Args:
        client: An official client, sync or async, of a proxy in front of the embedded enclave.
        limited: ... in front of one with BASE's limits.
        slow: ... in front of one that sends a chunk and then nothing.
    """
    report: dict[str, Any] = {}
    create = client.chat.completions.create

    whole = await settle(create(model=MODEL, messages=said(QUESTION)))
    report["chat"] = [
        whole.choices[0].message.content,
        whole.choices[0].finish_reason,
        whole.usage.total_tokens > 0,
    ]

    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = [
        chunk async for chunk in each(await settle(create(model=MODEL, messages=said(QUESTION), **options)))
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
            create(model=MODEL, messages=said(ERRANDS), tools=TOOLS, stream=True, parallel_tool_calls=True)
        )
    ):
        for piece in chunk.choices[0].delta.tool_calls or []:
            call = calls.setdefault(piece.index, ["", "", ""])
            call[0] += piece.id or ""
            call[1] += piece.function.name or ""
            call[2] += piece.function.arguments or ""
    report["tools"] = [[name, json.loads(arguments)] for _, name, arguments in calls.values()]
    asked = [
        {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}
        for id_, name, arguments in calls.values()
    ]
    told = [
        {"role": "tool", "tool_call_id": id_, "content": RESULTS[name]} for id_, name, _ in calls.values()
    ]
    messages = [*said(ERRANDS), {"role": "assistant", "content": None, "tool_calls": asked}, *told]
    answer = await settle(create(model=MODEL, messages=messages, tools=TOOLS))
    report["answer"] = answer.choices[0].message.content

    form = {"type": "json_schema", "json_schema": {"name": "invoice", "strict": True, "schema": SCHEMA}}
    invoice = await settle(create(model=MODEL, messages=said(INVOICE), response_format=form))
    report["json_schema"] = json.loads(invoice.choices[0].message.content)

    transcribe = client.audio.transcriptions.create
    heard = await settle(
        transcribe(
            model=WHISPER,
            file=RECORDING,
            response_format="verbose_json",
            timestamp_granularities=["segment", "word"],
        )
    )
    report["transcription"] = [heard.text, len(heard.segments), bool(heard.words)]
    report["text"] = await settle(transcribe(model=WHISPER, file=RECORDING, response_format="text"))

    listed = await settle(client.models.list())
    shown = await settle(client.models.retrieve(MODEL))
    report["models"] = [MODEL in [model.id for model in listed.data], shown.id]

    try:
        stranger = client.with_options(api_key="sk_test_of_nobody")
        await settle(stranger.chat.completions.create(model=MODEL, messages=said(QUESTION)))
    except openai.AuthenticationError as error:
        report["stranger"] = [error.status_code, error.code, str(error.request_id)[:8]]

    try:
        for _ in range(8):
            await settle(limited.chat.completions.create(model=MODEL, messages=said(QUESTION)))
    except openai.RateLimitError as error:
        report["limit"] = [error.status_code, error.code, int(error.response.headers["retry-after"]) >= 1]

    stream = await settle(
        slow.chat.completions.create(model="scripted", messages=said("Hello?"), stream=True)
    )
    async for chunk in each(stream):
        report["hang-up"] = chunk.choices[0].delta.content
        break
    await settle(stream.close())
    return report


def check(report: dict[str, Any]) -> None:
    """Hold a session's report against what should have happened."""
    spoken = "doctor will see the patient again on friday"
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
    assert spoken in text
    assert rest == [2, True]
    assert spoken in report["text"]
    assert report["models"] == [True, MODEL]
    assert report["stranger"] == [401, "invalid_api_key", "support_"]
    assert report["limit"] == [429, "rate_limit_exceeded", True]
    assert report["hang-up"] == "Hello"
