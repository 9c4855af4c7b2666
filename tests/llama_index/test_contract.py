"""Defects of llama-index-llms-openai that this package does not have, one by one."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ThinkingBlock
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.llms import ChatMessage, MessageRole
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel
from support.scripted_upstream import delta, finish, tool_call, usage
from support.wire_schemas import Opened

from llama_index_prem import PremEncrypted, RefusalError
from prem_core import InternalServerError, LengthFinishReasonError, PremError
from prem_core.enclave import LocalEnclave, ScriptedEngine

Make = Callable[..., PremEncrypted]
Ask = Callable[..., Any]

CHATS = ["chat", "achat", "stream_chat", "astream_chat"]
WAYS = [*CHATS, "complete", "acomplete", "stream_complete", "astream_complete"]
STREAMS = [way for way in WAYS if "stream" in way]

# Core looks at every attribute of an agent, pydantic's deprecated ones too.
agents = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")


def params_of(exchange: Any) -> dict[str, Any]:
    return Opened.request(exchange.request_body).params


class Payment(BaseModel):
    """A payment."""

    amount: int


def pay(amount: int) -> str:
    """Pay an amount."""
    return f"paid {amount}"


PAY = FunctionTool.from_defaults(pay)
CUT = [delta(tool_calls=[tool_call(0, "a", "pay", '{"amount": 10')]), finish("length"), usage(5, 5)]


# --- two tool calls in one chunk lose the second ------------------------------------------------------


@pytest.mark.parametrize("way", CHATS)
async def test_two_tool_calls_in_one_chunk_are_two_tool_calls(scripted: Make, asked: Ask, way: str) -> None:
    both = [tool_call(0, "a", "f", '{"x": 1}'), tool_call(1, "b", "g", '{"y": 2}')]
    model = scripted(delta(tool_calls=both), finish("tool_calls"), usage(5, 5))
    last = (await asked(model, way))[-1]
    calls = model.get_tool_calls_from_response(last)
    assert [(c.tool_id, c.tool_name, c.tool_kwargs) for c in calls] == [
        ("a", "f", {"x": 1}),
        ("b", "g", {"y": 2}),
    ]
    assert len(last.message.additional_kwargs["tool_calls"]) == 2


# --- truncated arguments are "repaired" and returned -------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_arguments_truncated_by_the_token_limit_are_an_error_and_not_repaired(
    scripted: Make, asked: Ask, way: str
) -> None:
    with pytest.raises(LengthFinishReasonError):
        await asked(scripted(*CUT), way)


@agents
@pytest.mark.parametrize("streaming", [True, False])
async def test_an_agent_does_not_run_a_tool_on_truncated_arguments(scripted: Make, streaming: bool) -> None:
    paid = []
    agent = FunctionAgent(tools=[paid.append], llm=scripted(*CUT), streaming=streaming)
    with pytest.raises(LengthFinishReasonError):
        await agent.run("Pay 1000.")
    assert paid == []


# --- async streams lose a first chunk with reasoning and null content ----------------------------------


@pytest.mark.parametrize("way", STREAMS)
async def test_a_first_chunk_with_reasoning_and_null_content_is_kept(
    scripted: Make, asked: Ask, way: str
) -> None:
    first = delta(role="assistant", content=None, reasoning_content="Hm.")
    responses = await asked(scripted(first, delta(content="Yes."), finish()), way)
    assert responses[0].additional_kwargs["thinking_delta"] == "Hm."
    if "chat" in way:
        assert responses[-1].message.blocks[0] == ThinkingBlock(content="Hm.")


# --- constructor values override per-call ones ----------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_parameters_of_the_call_replace_those_of_the_model(
    llm: Make, asked: Ask, seen: Any, way: str
) -> None:
    model = llm(
        temperature=0.1,
        max_tokens=900,
        stop=["zebra"],
        model="no/such",
        seed=1,
        top_p=0.5,
    )
    given = {"temperature": 0.9, "max_tokens": 800, "stop": ["lion"], "seed": 2}
    await asked(model, way, "Hello", model="openai/gpt-oss-120b", **given)
    params = params_of(seen.chats[-1])
    assert {name: params[name] for name in given} == given
    assert params["model"] == "openai/gpt-oss-120b"
    assert params["top_p"] == 0.5


async def test_none_in_the_call_removes_the_models_parameter(llm: Make, seen: Any) -> None:
    llm(temperature=0.1).complete("Hello", temperature=None)
    assert "temperature" not in params_of(seen.chats[-1])


# --- chat_history mutated ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "way", ["chat_with_tools", "achat_with_tools", "stream_chat_with_tools", "astream_chat_with_tools"]
)
async def test_the_chat_history_is_not_changed(llm: Make, way: str) -> None:
    history = [ChatMessage("Hello"), ChatMessage("Hi.", role=MessageRole.ASSISTANT)]
    before = copy.deepcopy(history)
    answer = getattr(llm(), way)([PAY], user_msg="Pay 10.", chat_history=history)
    if way.startswith("a"):
        answer = await answer
    if way.startswith("astream"):
        [_ async for _ in answer]
    elif way.startswith("stream"):
        list(answer)
    assert history == before


# --- retries multiply (3 → 12 requests) ---------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_three_retries_are_four_requests(
    engine: ScriptedEngine,
    scripted_options: dict[str, Any],
    asked: Ask,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    monkeypatch.setattr("prem_core._protocol.retry.FIRST_DELAY", 0.01)
    engine.replies = [InternalServerError()] * 5
    model = PremEncrypted(model="m", **{**scripted_options, "max_retries": 3})
    with pytest.raises(InternalServerError):
        await asked(model, way)
    assert len(engine.requests) == 4


# --- usage off by default in streams ------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_usage_is_reported_by_default(llm: Make, asked: Ask, seen: Any, way: str) -> None:
    last = (await asked(llm(), way, "Hello"))[-1]
    counts = last.raw["usage"]
    assert counts["prompt_tokens"] > 0
    assert counts["total_tokens"] == counts["prompt_tokens"] + counts["completion_tokens"]
    streamed = {"include_usage": True} if "stream" in way else None
    assert params_of(seen.chats[-1]).get("stream_options") == streamed


@pytest.mark.parametrize("way", WAYS)
async def test_the_token_counting_handler_uses_the_services_counts(
    scripted: Make, asked: Ask, way: str
) -> None:
    # Far from what its own tokenizer would count.
    counter = TokenCountingHandler(tokenizer=lambda text: [0] * 7)
    model = scripted(
        delta(content="a"), finish(), usage(1111, 222), callback_manager=CallbackManager([counter])
    )
    await asked(model, way)
    assert (counter.prompt_llm_token_count, counter.completion_llm_token_count) == (1111, 222)


def test_usage_in_streams_can_be_turned_off(llm: Make, seen: Any) -> None:
    last = list(llm(stream_usage=False).stream_complete("Hello"))[-1]
    assert last.raw["usage"] is None
    assert "stream_options" not in params_of(seen.chats[-1])


# --- key in to_dict and repr --------------------------------------------------------------------------


def test_the_key_is_in_no_repr_and_no_serialised_form(llm: Make, enclave: LocalEnclave) -> None:
    model = llm()
    model.complete("Hello")
    for shown in (
        repr(model),
        str(model),
        str(model.to_dict()),
        model.to_json(),
        str(model.model_dump()),
        model.model_dump_json(),
        str(model.to_payload()),
        repr(pickle.dumps(model)),
    ):
        assert enclave.api_key not in shown


def test_a_construction_error_names_the_setting_and_not_its_value() -> None:
    with pytest.raises(ValueError, match="api_key") as caught:
        PremEncrypted(model="m", api_key={"key": "sk_live_secret"})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sk_live_key") as misnamed:
        PremEncrypted(model="m", sk_live_key="sk_live_secret")  # type: ignore[call-arg]
    assert "sk_live_secret" not in str(caught.value) + str(misnamed.value)


# --- custom http client lost by pickle ----------------------------------------------------------------


def test_a_model_with_the_callers_http_client_cannot_be_pickled(llm: Make) -> None:
    with httpx.Client() as client:
        model = llm(http_client=client)
        with pytest.raises(TypeError, match="http client"):
            pickle.dumps(model)
    with pytest.raises(TypeError, match="http client"):
        pickle.dumps(llm(async_http_client=httpx.AsyncClient()))


def test_the_callers_http_client_is_used_and_shared_by_copies(llm: Make) -> None:
    sent = []
    with httpx.Client(event_hooks={"request": [sent.append]}) as client:
        model = llm(http_client=client)
        for each in (model, copy.copy(model), copy.deepcopy(model)):
            sent.clear()
            each.complete("Hello")
            assert sent


# --- one object over five asyncio.run calls: "Event loop is closed" ------------------------------------


@pytest.mark.parametrize("way", ["achat", "astream_chat", "acomplete", "astream_complete"])
def test_one_model_works_in_several_event_loops(llm: Make, asked: Ask, way: str) -> None:
    model = llm()
    answers = {str(asyncio.run(asked(model, way, "Hello"))[-1]) for _ in range(5)}
    assert len(answers) == 1


# --- a refusal becomes a ValidationError on 'None' ----------------------------------------------------


@pytest.mark.parametrize("way", ["", "a", "stream_", "astream_"])
async def test_a_refusal_is_a_refusal_error(scripted: Make, way: str) -> None:
    model = scripted(delta(refusal="I can"), delta(refusal="not."), finish())
    predict, prompt = getattr(model, f"{way}structured_predict"), PromptTemplate("Pay.")
    with pytest.raises(RefusalError) as caught:
        match way:
            case "":
                predict(Payment, prompt)
            case "a":
                await predict(Payment, prompt)
            case "stream_":
                list(predict(Payment, prompt))
            case "astream_":
                [_ async for _ in await predict(Payment, prompt)]
    assert isinstance(caught.value, PremError)
    assert "cannot" not in str(caught.value)


@pytest.mark.parametrize("way", CHATS)
async def test_a_refusal_outside_structured_prediction_is_in_the_message(
    scripted: Make, asked: Ask, way: str
) -> None:
    model = scripted(delta(refusal="I can"), delta(refusal="not."), finish())
    message = (await asked(model, way))[-1].message
    assert message.additional_kwargs["refusal"] == "I cannot."
    assert message.content == ""


# --- thinking, and images in tool results, dropped in silence -------------------------------------------


@agents
async def test_reasoning_is_sent_back_within_the_tool_loop(llm: Make, seen: Any) -> None:
    await FunctionAgent(tools=[PAY], llm=llm()).run("Pay an amount of 10.")
    messages = params_of(seen.chats[-1])["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant", "tool"]
    assert messages[1]["reasoning_content"]
    assert json.loads(messages[1]["tool_calls"][0]["function"]["arguments"]) == {"amount": 10}
