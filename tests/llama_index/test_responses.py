"""How answers come out: cumulative streams, whose last response is the whole answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.tools import FunctionTool
from support.scripted_upstream import delta, finish, tool_call, usage
from support.wire_schemas import Opened

from llama_index_prem import PremEncrypted
from llama_index_prem._responses import chat_response
from prem_core import APIError, APIResponseValidationError, ChatCompletion, InvalidParameterError
from prem_core.enclave import ScriptedEngine, reply

Make = Callable[..., PremEncrypted]
Ask = Callable[..., Any]

#: Thinking, text and two parallel calls, their arguments interleaved, as the hardest streams have them.
MIXED = [
    delta(role="assistant", content=None),
    delta(reasoning_content="Two "),
    delta(reasoning_content="cities."),
    delta(content="Let me "),
    delta(content="look."),
    delta(tool_calls=[tool_call(0, "call_a", "get_weather", "")]),
    delta(tool_calls=[tool_call(1, "call_b", "get_weather", "")]),
    delta(tool_calls=[tool_call(0, arguments='{"location": '), tool_call(1, arguments='{"loc')]),
    delta(tool_calls=[tool_call(1, arguments='ation": "Tokyo"}'), tool_call(0, arguments='"Paris"}')]),
    finish("tool_calls"),
    usage(11, 7, reasoning=2),
]
BLOCKS = [
    ThinkingBlock(content="Two cities.", num_tokens=2),
    TextBlock(text="Let me look."),
    ToolCallBlock(tool_call_id="call_a", tool_name="get_weather", tool_kwargs='{"location": "Paris"}'),
    ToolCallBlock(tool_call_id="call_b", tool_name="get_weather", tool_kwargs='{"location": "Tokyo"}'),
]
CALLS = [("call_a", "get_weather", {"location": "Paris"}), ("call_b", "get_weather", {"location": "Tokyo"})]


def calls_of(model: PremEncrypted, response: ChatResponse, **kwargs: Any) -> list[Any]:
    found = model.get_tool_calls_from_response(response, **kwargs)
    return [(call.tool_id, call.tool_name, call.tool_kwargs) for call in found]


@pytest.mark.parametrize("way", ["chat", "achat", "stream_chat", "astream_chat"])
async def test_the_last_response_has_every_block_and_the_usage(scripted: Make, asked: Ask, way: str) -> None:
    model = scripted(*MIXED)
    last = (await asked(model, way))[-1]
    assert last.message.role == MessageRole.ASSISTANT
    assert last.message.blocks == BLOCKS
    assert [call["id"] for call in last.message.additional_kwargs["tool_calls"]] == ["call_a", "call_b"]
    assert calls_of(model, last) == CALLS
    assert last.raw["usage"] == {
        "prompt_tokens": 11,
        "completion_tokens": 7,
        "total_tokens": 18,
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    assert last.raw["choices"][0]["finish_reason"] == "tool_calls"
    assert last.additional_kwargs == {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


@pytest.mark.parametrize("way", ["stream_chat", "astream_chat"])
async def test_a_stream_is_cumulative_and_its_deltas_add_up(scripted: Make, asked: Ask, way: str) -> None:
    responses = await asked(scripted(*MIXED), way)
    assert [r.delta for r in responses] == ["", "", "Let me ", "look.", "", "", "", "", ""]
    assert [r.additional_kwargs.get("thinking_delta") for r in responses[:3]] == ["Two ", "cities.", None]
    assert [r.message.content or "" for r in responses[:4]] == ["", "", "Let me ", "Let me look."]
    kinds = [[block.block_type for block in r.message.blocks] for r in responses]
    assert kinds[3] == ["thinking", "text"]
    assert kinds[5] == kinds[-1] == ["thinking", "text", "tool_call", "tool_call"]


async def test_a_changed_response_does_not_change_the_next_one(scripted: Make) -> None:
    last = None
    for response in scripted(*MIXED).stream_chat([ChatMessage("?")]):
        last = response.model_copy(deep=True)
        for block in response.message.blocks:
            if isinstance(block, TextBlock):
                block.text = "changed"
        response.message.blocks.clear()
        for call in response.message.additional_kwargs.pop("tool_calls", []):
            call["function"]["arguments"] = "changed"
    assert last is not None
    assert last.message.blocks == BLOCKS


@pytest.mark.parametrize("way", ["stream_chat", "astream_chat"])
async def test_partial_arguments_are_parsed_while_they_are_streamed(
    scripted: Make, asked: Ask, way: str
) -> None:
    pieces = ["", '{"lo', 'cation": "San ', 'Fran", "days": [1, ', "2]}"]
    chunks = [delta(tool_calls=[tool_call(0, "a", "f", piece)]) for piece in pieces]
    model = scripted(*chunks, finish("tool_calls"))
    read = [calls_of(model, response)[0][2] for response in await asked(model, way)]
    assert read == [
        {},
        {},
        {"location": "San "},
        {"location": "San Fran", "days": [1]},
        {"location": "San Fran", "days": [1, 2]},
        {"location": "San Fran", "days": [1, 2]},
    ]


def test_an_answer_without_tool_calls_is_an_error_only_if_one_was_expected(llm: Make) -> None:
    model = llm()
    response = model.chat([ChatMessage("Hello")])
    assert calls_of(model, response, error_on_no_tool_call=False) == []
    with pytest.raises(ValueError, match="did not call a tool"):
        calls_of(model, response)


@pytest.mark.parametrize("way", ["chat", "stream_chat"])
@pytest.mark.parametrize("arguments", ["no json", "[1]"])
async def test_arguments_that_are_no_json_object_are_an_error_once_the_answer_is_complete(
    scripted: Make, asked: Ask, way: str, arguments: str
) -> None:
    model = scripted(delta(tool_calls=[tool_call(0, "a", "f", arguments)]), finish("tool_calls"))
    last = (await asked(model, way))[-1]
    with pytest.raises(APIResponseValidationError, match="not a JSON object"):
        calls_of(model, last)


@pytest.mark.parametrize("way", ["chat", "stream_chat", "astream_chat"])
@pytest.mark.parametrize("reason", ["stop", "tool_calls", "content_filter"])
async def test_truncated_arguments_are_an_error_whatever_the_finish_reason(
    scripted: Make, asked: Ask, way: str, reason: str
) -> None:
    truncated = delta(tool_calls=[tool_call(0, "a", "pay", '{"amount": 10')])
    model = scripted(truncated, finish(reason))
    with pytest.raises(APIResponseValidationError, match="arguments of a tool call are") as caught:
        calls_of(model, (await asked(model, way))[-1])  # a stream raises by itself, at its end
    assert "amount" not in str(caught.value)


def test_arguments_that_are_not_an_object_yet_are_empty(llm: Make) -> None:
    for written in ("[1", "no json"):
        block = ToolCallBlock(tool_call_id="1", tool_name="f", tool_kwargs=written)
        response = ChatResponse(message=ChatMessage([block], role=MessageRole.ASSISTANT))
        assert calls_of(llm(), response) == [("1", "f", {})]


def test_tool_calls_are_read_from_messages_of_other_packages(llm: Make) -> None:
    wire = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    kwargs = ChatMessage(role=MessageRole.ASSISTANT, additional_kwargs={"tool_calls": [wire]})
    block = ToolCallBlock(tool_call_id="1", tool_name="f", tool_kwargs={"x": 1})
    for message in (kwargs, ChatMessage([block], role=MessageRole.ASSISTANT)):
        assert calls_of(llm(), ChatResponse(message=message)) == [("1", "f", {"x": 1})]


@pytest.mark.parametrize(
    "way", ["chat_with_tools", "achat_with_tools", "stream_chat_with_tools", "astream_chat_with_tools"]
)
@pytest.mark.parametrize("parallel", [True, False])
async def test_without_parallel_tool_calls_the_first_one_is_kept(
    scripted: Make, engine: ScriptedEngine, way: str, parallel: bool
) -> None:
    model = scripted(*MIXED)
    tool = FunctionTool.from_defaults(lambda location: location, name="get_weather", description="?")
    answer = getattr(model, way)([tool], "?", allow_parallel_tool_calls=parallel)
    if way.startswith("a"):
        answer = await answer
    if way.startswith("astream"):
        answer = [response async for response in answer][-1]
    elif way.startswith("stream"):
        answer = list(answer)[-1]
    assert calls_of(model, answer) == (CALLS if parallel else CALLS[:1])
    assert len(answer.message.additional_kwargs["tool_calls"]) == (2 if parallel else 1)
    assert "parallel_tool_calls" not in engine.requests[-1].params


def test_parallel_tool_calls_false_keeps_the_first_call(scripted: Make, engine: ScriptedEngine) -> None:
    model = scripted(*MIXED)
    assert calls_of(model, model.chat([ChatMessage("?")], parallel_tool_calls=False)) == CALLS[:1]
    assert "parallel_tool_calls" not in engine.requests[-1].params


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({}, None),
        ({"tool_required": True}, "required"),
        ({"tool_choice": "any"}, "required"),
        ({"tool_choice": "required"}, "required"),
        ({"tool_choice": "auto", "tool_required": True}, "auto"),
        ({"tool_choice": "none"}, "none"),
        ({"tool_choice": "get_weather"}, {"type": "function", "function": {"name": "get_weather"}}),
        ({"tool_choice": {"name": "get_weather"}}, {"type": "function", "function": {"name": "get_weather"}}),
    ],
)
def test_every_form_of_tool_choice_is_sent_in_the_schemas_form(
    llm: Make, seen: Any, given: dict[str, Any], sent: Any
) -> None:
    tool = FunctionTool.from_defaults(lambda location: location, name="get_weather", description="?")
    llm().chat_with_tools([tool], "Get the weather in Paris.", **given)
    params = Opened.request(seen.chats[-1].request_body).params
    assert params.get("tool_choice") == sent
    assert [t["function"]["name"] for t in params["tools"]] == ["get_weather"]


def test_a_tool_choice_that_names_no_tool_is_an_error(llm: Make) -> None:
    tool = FunctionTool.from_defaults(lambda location: location, name="get_weather", description="?")
    with pytest.raises(InvalidParameterError, match="tool_choice"):
        llm().chat_with_tools([tool], "?", tool_choice="get_time")


def test_without_tools_no_tool_parameters_are_sent(llm: Make, seen: Any) -> None:
    llm().chat_with_tools([], "Hello", tool_required=True, tool_choice="any")
    params = Opened.request(seen.chats[-1].request_body).params
    assert set(params) == {"model", "messages"}


@pytest.mark.parametrize("way", ["chat", "achat", "complete", "acomplete"])
async def test_logprobs_are_returned_for_each_token(llm: Make, asked: Ask, way: str) -> None:
    response = (await asked(llm(logprobs=True, reasoning_effort="none"), way, "Hello"))[-1]
    text = response.message.content if "chat" in way else response.text
    assert "".join(token[0].token for token in response.logprobs) == text
    several = (await asked(llm(logprobs=True, top_logprobs=2), way, "Hello"))[-1]
    assert several.logprobs[0][0].logprob <= 0


@pytest.mark.parametrize("way", ["stream_chat", "astream_chat", "stream_complete", "astream_complete"])
async def test_a_streams_logprobs_are_those_of_its_deltas(llm: Make, asked: Ask, way: str) -> None:
    responses = await asked(llm(logprobs=True, reasoning_effort="none"), way, "Hello")
    for response in responses:
        assert "".join(token[0].token for token in response.logprobs or []) == response.delta


@pytest.mark.parametrize("way", ["complete", "acomplete", "stream_complete", "astream_complete"])
async def test_a_completion_is_the_chats_text(scripted: Make, asked: Ask, way: str) -> None:
    responses = await asked(scripted(*MIXED), way)
    assert responses[-1].text == "Let me look."
    assert len(responses[-1].additional_kwargs["tool_calls"]) == 2
    if "stream" in way:
        assert "".join(response.delta for response in responses) == "Let me look."
        assert [r.text for r in responses[2:4]] == ["Let me ", "Let me look."]


def test_a_completions_prompt_is_formatted_unless_it_is_already(llm: Make, seen: Any) -> None:
    model = llm(completion_to_prompt=lambda prompt: f"<{prompt}>")
    model.complete("Hello")
    model.complete("Hello", formatted=True)
    sent = [Opened.request(e.request_body).params["messages"][0]["content"] for e in seen.chats]
    assert sent == ["<Hello>", "Hello"]


def test_predict_prepends_the_system_prompt_and_chat_does_not(llm: Make, seen: Any) -> None:
    from llama_index.core.prompts import PromptTemplate

    model = llm(system_prompt="Be brief.")
    model.chat([ChatMessage("Hello")])
    model.predict(PromptTemplate("Hello"))
    sent = [Opened.request(e.request_body).params["messages"] for e in seen.chats]
    assert [[m["role"] for m in messages] for messages in sent] == [["user"], ["system", "user"]]


async def test_of_several_answers_the_first_is_the_message_and_all_are_in_raw(llm: Make) -> None:
    response = llm(n=2).chat([ChatMessage("Hello")])
    texts = [choice["message"]["content"] for choice in response.raw["choices"]]
    assert len(texts) == 2
    assert response.message.content == texts[0]
    with pytest.raises(InvalidParameterError, match="^n: a streamed answer can have one choice only"):
        llm(n=2).stream_chat([ChatMessage("Hello")])


@pytest.mark.parametrize("way", ["stream_chat", "astream_chat", "stream_complete", "astream_complete"])
async def test_a_truncated_stream_raises_after_the_responses_that_arrived(scripted: Make, way: str) -> None:
    model = scripted(delta(content="Once upon a time"), truncated=True)
    asking: Any = [ChatMessage("?")] if "chat" in way else "?"
    got = []
    with pytest.raises(APIError):
        if way.startswith("a"):
            async for response in await getattr(model, way)(asking):
                got.append(response.delta)
        else:
            for response in getattr(model, way)(asking):
                got.append(response.delta)
    assert got == ["Once upon a time"]


def test_text_truncated_by_the_token_limit_has_the_finish_reason_length(scripted: Make) -> None:
    response = scripted(delta(content="Once upon"), finish("length")).chat([ChatMessage("?")])
    assert response.message.content == "Once upon"
    assert response.raw["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("way", ["stream_chat", "astream_chat", "stream_complete", "astream_complete"])
async def test_closing_a_stream_early_disconnects(
    engine: ScriptedEngine, scripted_options: dict[str, Any], way: str
) -> None:
    engine.replies = [reply("a", stalled=True)]
    model = PremEncrypted(model="m", **scripted_options)
    asking: Any = [ChatMessage("?")] if "chat" in way else "?"
    if way.startswith("a"):
        stream = await getattr(model, way)(asking)
        await anext(stream)
        await stream.aclose()
    else:
        stream = getattr(model, way)(asking)
        next(stream)
        stream.close()
    # Core does not close the stream that it wraps: the event loop does, and has to run for it.
    assert await asyncio.to_thread(engine.disconnected.wait, 5)


@pytest.mark.parametrize(
    ("way", "begun", "ended"),
    [
        ("chat", "LLMChatStartEvent", "LLMChatEndEvent"),
        ("astream_chat", "LLMChatStartEvent", "LLMChatEndEvent"),
        ("acomplete", "LLMCompletionStartEvent", "LLMCompletionEndEvent"),
        ("stream_complete", "LLMCompletionStartEvent", "LLMCompletionEndEvent"),
    ],
)
async def test_instrumentation_has_one_start_and_one_end_event(
    llm: Make, asked: Ask, events: list[str], way: str, begun: str, ended: str
) -> None:
    await asked(llm(), way, "Hello")
    assert events.count(begun) == events.count(ended) == 1
    assert ("InProgress" in "".join(events)) is ("stream" in way)


def test_an_answer_without_a_choice_is_an_error() -> None:
    with pytest.raises(APIResponseValidationError, match="no choice"):
        chat_response(ChatCompletion(), json_requested=False)
