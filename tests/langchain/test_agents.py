"""Agents: `create_agent` loops with two tools, a Pydantic extraction, sync, async and streamed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel
from support.wire_schemas import Opened

from langchain_prem import ChatPremEncrypted

Make = Callable[..., ChatPremEncrypted]


@tool
def get_weather(location: str) -> str:
    """Get the weather at a location."""
    return f"It is sunny in {location}."


@tool
def get_time(city: str) -> str:
    """Get the local time in a city."""
    return f"It is noon in {city}."


QUESTION = {"messages": [("human", "Get the weather in Paris and the time in Berlin.")]}


def check(messages: list[Any]) -> None:
    calls = [(c["name"], c["args"]) for m in messages if isinstance(m, AIMessage) for c in m.tool_calls]
    assert calls == [("get_weather", {"location": "Paris"}), ("get_time", {"city": "Berlin"})]
    results = [m.text for m in messages if isinstance(m, ToolMessage)]
    assert results == ["It is sunny in Paris.", "It is noon in Berlin."]
    assert "sunny in Paris" in messages[-1].text
    assert "noon in Berlin" in messages[-1].text


@pytest.mark.parametrize("output_version", [None, "v1"])
async def test_an_agent_calls_two_tools_and_answers_from_both(llm: Make, output_version: str | None) -> None:
    options = {"output_version": output_version} if output_version else {}
    agent = create_agent(llm(**options), [get_weather, get_time])
    check(agent.invoke(QUESTION)["messages"])
    check((await agent.ainvoke(QUESTION))["messages"])


@pytest.mark.parametrize("mode", ["messages", "updates"])
async def test_a_streamed_agent_calls_two_tools_and_answers_from_both(llm: Make, mode: Any) -> None:
    agent = create_agent(llm(), [get_weather, get_time])
    values = [state async for state in agent.astream(QUESTION, stream_mode=["values", mode])]
    final = [state for kind, state in values if kind == "values"][-1]
    check(final["messages"])
    final = [
        state for kind, state in agent.stream(QUESTION, stream_mode=["values", mode]) if kind == "values"
    ][-1]
    check(final["messages"])


def test_reasoning_is_sent_back_within_the_loop(llm: Make, seen: Any) -> None:
    create_agent(llm(), [get_weather, get_time]).invoke(QUESTION)
    first, second = [Opened.request(exchange.request_body).params for exchange in seen.chats]
    assert [message["role"] for message in first["messages"]] == ["user"]
    assistant = second["messages"][1]
    assert assistant["role"] == "assistant"
    assert assistant["reasoning_content"]


class Patient(BaseModel):
    """A patient."""

    name: str
    age: int


@pytest.mark.parametrize("strategy", [Patient, ProviderStrategy(Patient), ToolStrategy(Patient)])
async def test_an_agents_answer_can_be_pydantic(llm: Make, strategy: Any) -> None:
    agent: Any = create_agent(llm(), [], response_format=strategy)
    letter = {"messages": [("human", "Name: Anna Berg. Age: 63. She may go home.")]}
    expected = Patient(name="Anna Berg", age=63)
    assert agent.invoke(letter)["structured_response"] == expected
    assert (await agent.ainvoke(letter))["structured_response"] == expected


def test_an_agent_requests_structured_output_by_json_schema_and_not_by_a_tool(llm: Make, seen: Any) -> None:
    agent: Any = create_agent(llm(), [], response_format=Patient)
    agent.invoke({"messages": [("human", "Name: Anna Berg. Age: 63.")]})
    params = Opened.request(seen.chats[0].request_body).params
    assert params["response_format"]["json_schema"]["name"] == "Patient"
    assert "tools" not in params
