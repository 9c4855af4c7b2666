"""pydantic-ai, whose "openai:" models call the Responses API."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.messages import ThinkingPart
from pydantic_ai.models.openai import OpenAIResponsesModel, OpenAIResponsesModelSettings
from pydantic_ai.output import NativeOutput
from pydantic_ai.providers.openai import OpenAIProvider
from report import SETTINGS, raises, run

os.environ |= {"OPENAI_BASE_URL": SETTINGS["base_url"], "OPENAI_API_KEY": SETTINGS["api_key"]}


class Invoice(BaseModel):
    invoice_number: str
    total: float


def get_weather(location: str) -> str:
    """Get the weather at a location."""
    return str(SETTINGS["results"]["get_weather"])


def get_time(city: str) -> str:
    """Get the local time in a city."""
    return str(SETTINGS["results"]["get_time"])


def agent(url: str | None = None, **options: Any) -> Agent[Any, Any]:
    if url is None:
        return Agent(f"openai:{SETTINGS['model']}", **options)
    provider = OpenAIProvider(base_url=url, api_key=SETTINGS["api_key"])
    return Agent(OpenAIResponsesModel(SETTINGS["model"], provider=provider), **options)


async def text() -> None:
    answer = await agent(instructions="Be brief.").run(SETTINGS["question"])
    assert SETTINGS["answer"] in answer.output
    assert answer.usage.total_tokens > 0


async def stream() -> None:
    async with agent().run_stream(SETTINGS["question"]) as streamed:
        texts = [part async for part in streamed.stream_text(delta=True, debounce_by=None)]
    assert SETTINGS["answer"] in "".join(texts)
    assert len(texts) > 1


async def tools() -> None:
    answer = await agent(tools=[get_weather, get_time]).run(SETTINGS["errands"])
    assert all(result in answer.output for result in SETTINGS["results"].values())
    async with agent(tools=[get_weather, get_time]).run_stream(SETTINGS["errands"]) as streamed:
        output = await streamed.get_output()
    assert all(result in output for result in SETTINGS["results"].values())


async def structured() -> None:
    for kind in (Invoice, NativeOutput(Invoice)):
        answer = await agent(output_type=kind).run(SETTINGS["invoice"])
        assert answer.output == Invoice(invoice_number="INV-7", total=12.5)


async def reasoning() -> None:
    settings = OpenAIResponsesModelSettings(openai_reasoning_effort="low", openai_reasoning_summary="auto")
    answer = await agent(model_settings=settings).run(SETTINGS["question"])
    assert any(isinstance(part, ThinkingPart) for part in answer.all_messages()[-1].parts)
    later = await agent().run(SETTINGS["question"], message_history=answer.all_messages())
    assert SETTINGS["answer"] in later.output


async def error() -> None:
    async def consume() -> None:
        async with agent(SETTINGS["broken_url"]).run_stream(SETTINGS["question"]) as streamed:
            async for _ in streamed.stream_text():
                pass

    assert "truncated" in await raises(consume())
    assert "truncated" in await raises(agent(SETTINGS["broken_url"]).run(SETTINGS["question"]))


async def stored() -> None:
    settings = OpenAIResponsesModelSettings(openai_previous_response_id="auto")
    asked = agent(SETTINGS["stored_url"], tools=[get_weather, get_time], model_settings=settings)
    answer = await asked.run(SETTINGS["errands"])
    assert all(result in answer.output for result in SETTINGS["results"].values())


asyncio.run(
    run(
        text=text,
        stream=stream,
        tools=tools,
        structured=structured,
        reasoning=reasoning,
        error=error,
        stored=stored,
    )
)
