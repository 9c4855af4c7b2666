"""Agents and retrieval: two tools, parallel calls, streams, and answers from real text."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core import Document, Settings, VectorStoreIndex
from llama_index.core.agent.workflow import (
    AgentStream,
    AgentWorkflow,
    FunctionAgent,
    ToolCallResult,
)
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from pydantic import BaseModel
from support.paths import ROOT
from support.wire_schemas import Opened

from llama_index_prem import PremEncrypted, PremWhisperReader
from prem_core import ConfigurationError
from prem_core.enclave import LocalEnclave

Make = Callable[..., PremEncrypted]

# Core looks at every attribute of an agent, pydantic's deprecated ones too.
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")

QUESTION = "Get the weather in Paris and the time in Berlin."


def get_weather(location: str) -> str:
    """Get the weather at a location."""
    return f"It is sunny in {location}."


async def get_time(city: str) -> str:
    """Get the local time in a city."""
    return f"It is noon in {city}."


async def run(agent: Any, question: str) -> tuple[list[Any], Any]:
    handler = agent.run(question)
    events = [event async for event in handler.stream_events()]
    return events, await handler


def check(events: list[Any], answer: Any) -> None:
    results = [event for event in events if isinstance(event, ToolCallResult)]
    assert {(r.tool_name, r.tool_output.content) for r in results} == {
        ("get_weather", "It is sunny in Paris."),
        ("get_time", "It is noon in Berlin."),
    }
    assert "sunny in Paris" in str(answer)
    assert "noon in Berlin" in str(answer)


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_function_agent_makes_two_tool_calls_at_once_and_answers_from_both(
    llm: Make, seen: Any, streaming: bool
) -> None:
    agent = FunctionAgent(tools=[get_weather, get_time], llm=llm(), streaming=streaming)
    events, answer = await run(agent, QUESTION)
    check(events, answer)
    first, second = [Opened.request(exchange.request_body).params for exchange in seen.chats]
    assert first.get("stream", False) is streaming
    assert [m["role"] for m in second["messages"]] == ["user", "assistant", "tool", "tool"]
    calls = {call["id"] for call in second["messages"][1]["tool_calls"]}
    assert {m["tool_call_id"] for m in second["messages"][2:]} == calls  # in the order the tools finished


async def test_a_streaming_agent_yields_text_and_reasoning(llm: Make) -> None:
    events, answer = await run(FunctionAgent(tools=[get_weather, get_time], llm=llm()), QUESTION)
    streamed = [event for event in events if isinstance(event, AgentStream)]
    assert "".join(event.delta for event in streamed) == str(answer)
    assert "".join(event.thinking_delta or "" for event in streamed)
    assert streamed[-1].raw["usage"]["total_tokens"] > 0


async def test_an_agent_without_parallel_calls_makes_one_tool_call_per_step(llm: Make, seen: Any) -> None:
    agent = FunctionAgent(tools=[get_weather, get_time], llm=llm(), allow_parallel_tool_calls=False)
    events, _ = await run(agent, QUESTION)
    called = [event for event in events if isinstance(event, ToolCallResult)]
    assert called[0].tool_name == "get_weather"
    for exchange in seen.chats:
        for message in Opened.request(exchange.request_body).params["messages"]:
            assert len(message.get("tool_calls", [])) <= 1


@pytest.mark.parametrize("streaming", [True, False])
async def test_an_agent_workflow_makes_two_tool_calls_and_answers_from_both(
    llm: Make, streaming: bool
) -> None:
    workflow = AgentWorkflow.from_tools_or_functions([get_weather, get_time], llm=llm())
    for agent in workflow.agents.values():
        agent.streaming = streaming
    check(*await run(workflow, QUESTION))


async def test_an_agent_with_an_unknown_model_names_the_missing_context_window(llm: Make, seen: Any) -> None:
    agent = FunctionAgent(tools=[get_weather, get_time], llm=llm(model="prem-local/quoting"))
    with pytest.raises(ConfigurationError, match="context_window="):
        await agent.run(QUESTION)
    # Core's own memory reads the context window. With another memory nothing reads it, nor the models list.
    seen.exchanges.clear()
    handler = agent.run(QUESTION, memory=ChatMemoryBuffer.from_defaults(token_limit=2000))
    check([event async for event in handler.stream_events()], await handler)
    assert {exchange.method for exchange in seen.exchanges} == {"POST"}


class Patient(BaseModel):
    """A patient."""

    name: str
    age: int


async def test_an_agents_answer_can_be_pydantic(llm: Make) -> None:
    agent = FunctionAgent(tools=[get_weather], llm=llm(), output_cls=Patient)
    _, answer = await run(agent, "Name: Anna Berg. Age: 63. She may go home.")
    assert answer.get_pydantic_model(Patient) == Patient(name="Anna Berg", age=63)


# --- retrieval ------------------------------------------------------------------------------------------


class HashedWords(BaseEmbedding):
    """Each word counts in one of 512 places: no model, and the same vector on every machine."""

    def _vector(self, text: str) -> list[float]:
        vector = [0.0] * 512
        for word in re.findall(r"[a-z]{4,}", text.lower()):
            vector[zlib.crc32(word.encode()) % 512] += 1.0
        return vector

    _get_text_embedding = _get_query_embedding = _vector

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._vector(query)


#: Questions, the article of the GDPR that answers each, and words of the answer.
QUESTIONS = [
    (
        "How soon is a personal data breach notified to the supervisory authority?",
        "article_33.txt",
        "72 hours",
    ),
    (
        "May data be transmitted directly from one controller to another?",
        "article_20.txt",
        "technically feasible",
    ),
]


def nodes() -> list[Any]:
    documents = [
        Document(text=path.read_text(encoding="utf-8"), metadata={"file": path.name})
        for path in sorted((ROOT / "notebooks" / "data" / "gdpr").glob("*.txt"))
    ]
    return SentenceSplitter(chunk_size=256, chunk_overlap=0).get_nodes_from_documents(documents)


@pytest.mark.parametrize(("question", "file", "words"), QUESTIONS)
@pytest.mark.parametrize("way", ["query", "aquery", "streamed"])
async def test_a_vector_index_over_documents_answers(
    llm: Make, question: str, file: str, words: str, way: str
) -> None:
    index = VectorStoreIndex(nodes(), embed_model=HashedWords())
    engine = index.as_query_engine(llm=llm(), similarity_top_k=3, streaming=way == "streamed")
    answer = await engine.aquery(question) if way == "aquery" else engine.query(question)
    text = "".join(answer.response_gen) if way == "streamed" else str(answer)
    assert words in text.lower()
    assert file in {node.metadata["file"] for node in answer.source_nodes}


@pytest.mark.parametrize(("question", "file", "words"), QUESTIONS)
async def test_a_bm25_retriever_over_documents_answers(
    llm: Make, question: str, file: str, words: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        # bm25s shows progress bars on the terminal.
        patch.setenv("TQDM_DISABLE", "1")
        from llama_index.retrievers.bm25 import BM25Retriever

        retriever = BM25Retriever.from_defaults(nodes=nodes(), similarity_top_k=3)
        model = llm()
        engine = RetrieverQueryEngine(retriever, get_response_synthesizer(llm=model))
        answer = engine.query(question)
    assert words in str(answer).lower()
    assert file in {node.metadata["file"] for node in answer.source_nodes}


def test_a_chat_engine_remembers_and_streams(llm: Make, seen: Any) -> None:
    memory = ChatMemoryBuffer.from_defaults(llm=llm())
    engine = SimpleChatEngine.from_defaults(llm=llm(), memory=memory)
    engine.chat("Context: The clinic opens at eight.")
    streamed = engine.stream_chat("When does the clinic open?")
    assert "eight" in "".join(streamed.response_gen)
    messages = Opened.request(seen.chats[-1].request_body).params["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant", "user"]


def test_the_global_settings_accept_the_model(llm: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llm()
    monkeypatch.setattr(Settings, "_llm", model)
    assert Settings.llm is model


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_question_is_answered_from_a_recording(
    llm: Make, enclave: LocalEnclave, asynchronous: bool
) -> None:
    reader = PremWhisperReader(mode="segments", **enclave.client_options)
    recording = ROOT / "examples" / "clinic_note.wav"
    documents = await reader.aload_data(recording) if asynchronous else reader.load_data(recording)
    index = VectorStoreIndex.from_documents(documents, embed_model=HashedWords())
    engine = index.as_query_engine(llm=llm(), similarity_top_k=1)
    question = "When will the doctor see the patient again?"
    answer = await engine.aquery(question) if asynchronous else engine.query(question)
    assert "friday" in str(answer).lower()
    assert answer.source_nodes[0].metadata["source"].endswith("clinic_note.wav")
    assert answer.source_nodes[0].metadata["end"] > 0
