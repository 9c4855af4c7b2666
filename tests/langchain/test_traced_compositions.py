"""With `plaintext_egress="error"`, no composition sends a prompt to LangSmith, which is a real server here."""

from __future__ import annotations

import pickle
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.load import dumpd, load
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableBinding, RunnableLambda
from langsmith import tracing_context
from pydantic import BaseModel
from support.langsmith_server import LangSmithServer, langsmith_server

from langchain_prem import ChatPremEncrypted
from prem_core import ConfigurationError

PROMPT = "Anna Berg takes 5 mg of ramipril."

Make = Callable[..., ChatPremEncrypted]
Call = Callable[[], Awaitable[Any]]


@pytest.fixture
def langsmith() -> Iterator[LangSmithServer]:
    with pytest.MonkeyPatch.context() as monkeypatch, langsmith_server(monkeypatch) as server:
        yield server


class Answer(BaseModel):
    name: str = ""


def look_up(name: str) -> str:
    """Look a patient up."""
    return name


def template() -> Any:
    return ChatPromptTemplate([("human", "{input}")])


#: Compositions that begin with the model. Each takes a model and returns a runnable.
OF_THE_MODEL: dict[str, Callable[[ChatPremEncrypted], Any]] = {
    "model": lambda llm: llm,
    "bind_tools": lambda llm: llm.bind_tools([look_up]),
    "bind_tools with_retry": lambda llm: llm.bind_tools([look_up]).with_retry(stop_after_attempt=1),
    "bind_tools | function": lambda llm: llm.bind_tools([look_up]) | (lambda message: message),
    "with_structured_output": lambda llm: llm.with_structured_output(Answer),
    "with_structured_output function_calling": lambda llm: llm.with_structured_output(
        Answer, method="function_calling"
    ),
    "with_structured_output json_mode": lambda llm: llm.with_structured_output(None, method="json_mode"),
    "with_structured_output include_raw": lambda llm: llm.with_structured_output(Answer, include_raw=True),
    "with_structured_output with_retry": lambda llm: llm.with_structured_output(Answer).with_retry(
        stop_after_attempt=1
    ),
    "with_structured_output | function": lambda llm: (
        llm.with_structured_output(Answer) | (lambda value: value)
    ),
    "with_retry": lambda llm: llm.with_retry(stop_after_attempt=1),
    "with_fallbacks": lambda llm: llm.with_fallbacks([llm]),
    "with_config | function": lambda llm: llm.with_config(tags=["ward"]) | (lambda message: message),
    "| function": lambda llm: llm | (lambda message: message),
    "function |": lambda llm: (lambda prompt: prompt) | llm,
    "pipe": lambda llm: llm.pipe(RunnableLambda(lambda message: message)),
}

#: Compositions that begin with something else, which opens its run before the model is called.
OF_OTHERS: dict[str, Callable[[ChatPremEncrypted], Any]] = {
    "prompt | model": lambda llm: template() | llm,
    "prompt | with_structured_output": lambda llm: template() | llm.with_structured_output(Answer),
    "prompt | bind_tools": lambda llm: template() | llm.bind_tools([look_up]),
}


async def call(runnable: Any, way: str) -> Any:
    match way:
        case "invoke":
            return runnable.invoke(PROMPT)
        case "ainvoke":
            return await runnable.ainvoke(PROMPT)
        case "batch":
            return runnable.batch([PROMPT, PROMPT])
        case "abatch":
            return await runnable.abatch([PROMPT, PROMPT])
        case "stream":
            return list(runnable.stream(PROMPT))
        case "astream":
            return [chunk async for chunk in runnable.astream(PROMPT)]
        case "astream_events":
            return [event async for event in runnable.astream_events(PROMPT, version="v2")]
        case "map":
            return runnable.map().invoke([PROMPT])


WAYS = ["invoke", "ainvoke", "batch", "abatch", "stream", "astream", "astream_events", "map"]
ALL = OF_THE_MODEL | OF_OTHERS


@pytest.mark.parametrize(
    ("composition", "way"),
    [*((composition, "invoke") for composition in ALL), *(("prompt | model", way) for way in WAYS[1:])],
)
async def test_a_model_in_error_mode_is_not_constructed_while_the_environment_is_traced(
    llm: Make, langsmith: LangSmithServer, composition: str, way: str
) -> None:
    langsmith.trace()
    with pytest.raises(ConfigurationError, match="LangSmith tracing is on"):
        await call(ALL[composition](llm(plaintext_egress="error")), way)
    assert b"ramipril" not in langsmith.received()


async def test_an_agent_in_error_mode_is_not_constructed_while_the_environment_is_traced(
    llm: Make, langsmith: LangSmithServer
) -> None:
    langsmith.trace()
    with pytest.raises(ConfigurationError, match="LangSmith tracing is on"):
        create_agent(llm(plaintext_egress="error"), [look_up]).invoke({"messages": [("human", PROMPT)]})
    assert b"ramipril" not in langsmith.received()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("composition", OF_THE_MODEL)
async def test_a_composition_that_begins_with_the_model_refuses_tracing_that_was_turned_on_later(
    llm: Make, seen: Any, langsmith: LangSmithServer, composition: str, way: str
) -> None:
    runnable = OF_THE_MODEL[composition](llm(plaintext_egress="error"))
    if way == "map" and composition == "model":
        runnable = runnable.map()
    langsmith.trace()
    with pytest.raises(ConfigurationError, match="LangSmith tracing is on"):
        await call(runnable, "invoke" if way == "map" and composition == "model" else way)
    assert b"ramipril" not in langsmith.received()
    assert seen.exchanges == []


def test_a_tracing_context_that_is_entered_later_is_refused_before_the_run_opens(
    llm: Make, langsmith: LangSmithServer
) -> None:
    structured = llm(plaintext_egress="error").with_structured_output(Answer)
    langsmith.trace()
    with (
        tracing_context(enabled=True),
        pytest.raises(ConfigurationError, match="LangSmith tracing is on"),
    ):
        structured.invoke(PROMPT)
    assert b"ramipril" not in langsmith.received()


@pytest.mark.parametrize("composition", ALL)
async def test_the_prompt_arrives_in_allow_mode(
    llm: Make, langsmith: LangSmithServer, composition: str
) -> None:
    # The server records; without this, the tests above would prove nothing.
    langsmith.trace()
    runnable = ALL[composition](llm(plaintext_egress="allow"))
    await call(runnable, "invoke")
    assert b"ramipril" in langsmith.received()


def test_a_prompt_template_that_is_traced_later_has_sent_the_prompt_before_the_call_is_refused(
    llm: Make, seen: Any, langsmith: LangSmithServer
) -> None:
    # The limit that docs/security.md states: no model sees the chain that will call it.
    chain = template() | llm(plaintext_egress="error")
    langsmith.trace()
    with pytest.raises(ConfigurationError, match="LangSmith tracing is on"):
        chain.invoke(PROMPT)
    assert b"ramipril" in langsmith.received()
    assert seen.exchanges == []


def test_setting_error_mode_and_unpickling_are_refused_while_the_environment_is_traced(
    llm: Make, langsmith: LangSmithServer
) -> None:
    pickled = pickle.dumps(llm(plaintext_egress="error"))
    langsmith.trace()
    with pytest.raises(ConfigurationError, match="LangSmith tracing is on"):
        pickle.loads(pickled)
    model = llm()
    with pytest.raises(ConfigurationError, match="LangSmith tracing is on"):
        model.plaintext_egress = "error"


@pytest.mark.parametrize("composition", OF_THE_MODEL)
async def test_compositions_in_error_mode_answer_as_those_of_other_modes(llm: Make, composition: str) -> None:
    compose = OF_THE_MODEL[composition]
    checked, plain = compose(llm(plaintext_egress="error")), compose(llm())
    assert _value(checked.invoke(PROMPT)) == _value(plain.invoke(PROMPT))
    assert _value((await checked.abatch([PROMPT]))[0]) == _value(plain.invoke(PROMPT))
    assert checked.get_name() == plain.get_name()


@pytest.mark.parametrize(
    "composition", ["bind_tools", "with_structured_output", "with_retry", "with_fallbacks"]
)
def test_an_unpickled_composition_still_refuses_tracing(
    llm: Make, langsmith: LangSmithServer, composition: str
) -> None:
    pickled = pickle.dumps(OF_THE_MODEL[composition](llm(plaintext_egress="error")))
    runnable = pickle.loads(pickled)
    langsmith.trace()
    with pytest.raises(ConfigurationError, match="LangSmith tracing is on"):
        runnable.invoke(PROMPT)
    assert b"ramipril" not in langsmith.received()


def test_a_bound_model_in_error_mode_is_serialised_as_a_plain_binding(llm: Make) -> None:
    restored = load(
        dumpd(llm(plaintext_egress="error").bind(seed=7)),
        allowed_objects=[ChatPremEncrypted, RunnableBinding],
        valid_namespaces=["langchain_prem"],
        secrets_map={"PREM_API_KEY": "sk_test_1"},
    )
    assert type(restored) is RunnableBinding
    assert restored.kwargs == {"seed": 7}
    assert restored.bound.plaintext_egress == "error"


def _value(result: Any) -> Any:
    if isinstance(result, dict) and "raw" in result:
        result = result["parsed"]
    return getattr(result, "content", result)
