"""openai-agents, which calls the Responses API by default."""

from __future__ import annotations

import asyncio
from typing import Any

from agents import (
    Agent,
    ModelSettings,
    OpenAIResponsesModel,
    Runner,
    SQLiteSession,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from openai.types.shared import Reasoning
from pydantic import BaseModel
from report import SETTINGS, raises, run

set_tracing_disabled(True)  # traces go to OpenAI


@function_tool
def get_weather(location: str) -> str:
    """Get the weather at a location."""
    return str(SETTINGS["results"]["get_weather"])


@function_tool
def get_time(city: str) -> str:
    """Get the local time in a city."""
    return str(SETTINGS["results"]["get_time"])


class Invoice(BaseModel):
    invoice_number: str
    total: float


def agent(url: str = SETTINGS["base_url"], **options: Any) -> Agent:
    client = AsyncOpenAI(base_url=url, api_key=SETTINGS["api_key"], max_retries=0)
    model = OpenAIResponsesModel(SETTINGS["model"], client)
    return Agent("assistant", model=model, **options)


async def text() -> None:
    answer = await Runner.run(agent(instructions="Be brief."), SETTINGS["question"])
    assert SETTINGS["answer"] in answer.final_output
    assert answer.context_wrapper.usage.total_tokens > 0


async def stream() -> None:
    streamed = Runner.run_streamed(agent(), SETTINGS["question"])
    texts = [
        event.data.delta
        async for event in streamed.stream_events()
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
    ]
    assert SETTINGS["answer"] in "".join(texts)
    assert len(texts) > 1


async def tools() -> None:
    for settings in (ModelSettings(), ModelSettings(parallel_tool_calls=True, store=False)):
        asked = agent(tools=[get_weather, get_time], model_settings=settings)
        answer = await Runner.run(asked, SETTINGS["errands"])
        assert all(result in answer.final_output for result in SETTINGS["results"].values())
    streamed = Runner.run_streamed(agent(tools=[get_weather, get_time]), SETTINGS["errands"])
    async for _ in streamed.stream_events():
        pass
    assert all(result in streamed.final_output for result in SETTINGS["results"].values())


async def structured() -> None:
    answer = await Runner.run(agent(output_type=Invoice), SETTINGS["invoice"])
    assert answer.final_output == Invoice(invoice_number="INV-7", total=12.5)


async def reasoning() -> None:
    settings = ModelSettings(reasoning=Reasoning(effort="low", summary="auto"))
    answer = await Runner.run(agent(model_settings=settings), SETTINGS["question"])
    assert any(item.type == "reasoning_item" for item in answer.new_items)
    session = SQLiteSession("conversation")  # sends everything back, reasoning too
    for _ in range(2):
        answer = await Runner.run(agent(), SETTINGS["question"], session=session)
    assert SETTINGS["answer"] in answer.final_output


async def error() -> None:
    async def consume() -> None:
        streamed = Runner.run_streamed(agent(SETTINGS["broken_url"]), SETTINGS["question"])
        async for _ in streamed.stream_events():
            pass

    assert "truncated" in await raises(consume())
    assert "truncated" in await raises(Runner.run(agent(SETTINGS["broken_url"]), SETTINGS["question"]))


async def stored() -> None:
    asked = agent(SETTINGS["stored_url"], tools=[get_weather, get_time])
    answer = await Runner.run(asked, SETTINGS["errands"], auto_previous_response_id=True)
    assert all(result in answer.final_output for result in SETTINGS["results"].values())
    later = await Runner.run(asked, SETTINGS["question"], previous_response_id=answer.last_response_id)
    assert SETTINGS["answer"] in later.final_output


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
