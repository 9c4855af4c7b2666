"""LangChain's messages as the request's messages: sent in the schema's forms, or an error that names their place."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from support.scripted_upstream import delta, finish
from support.wire_schemas import PARAMS

from langchain_prem import _messages
from langchain_prem._messages import wire_messages
from prem_core import InvalidParameterError
from prem_core.enclave import ScriptedEngine

PNG = "iVBORw0KGgo="
IMAGE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
AUDIO = {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}
FILE = {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBERg=="}}
CALL = {"type": "tool_call", "id": "1", "name": "f", "args": {"x": "ü"}}
WIRE_CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x":"ü"}'}}


def wire(*messages: BaseMessage) -> list[dict[str, Any]]:
    made = wire_messages(messages)
    assert list(PARAMS.iter_errors({"model": "m", "messages": made})) == []
    return made


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (HumanMessage("Hi", name="ann"), {"role": "user", "content": "Hi", "name": "ann"}),
        (SystemMessage("Be brief"), {"role": "system", "content": "Be brief"}),
        (ChatMessage("Be brief", role="developer"), {"role": "system", "content": "Be brief"}),
        (ChatMessage("Hi", role="user"), {"role": "user", "content": "Hi"}),
        (ChatMessage("Hi", role="assistant"), {"role": "assistant", "content": "Hi"}),
        (AIMessage("Hi"), {"role": "assistant", "content": "Hi"}),
        (AIMessage(""), {"role": "assistant", "content": ""}),
        (FunctionMessage("7", name="f"), {"role": "function", "content": "7", "name": "f"}),
        (ToolMessage("7", tool_call_id="1", name="f"), {"role": "tool", "content": "7", "tool_call_id": "1"}),
        (
            ToolMessage([{"type": "text", "text": "7"}], tool_call_id="1"),
            {"role": "tool", "content": [{"type": "text", "text": "7"}], "tool_call_id": "1"},
        ),
        (
            SystemMessage(["a", "b"]),
            {"role": "system", "content": [{"type": "text", "text": t} for t in "ab"]},
        ),
    ],
)
def test_each_message_is_sent_in_the_schemas_form(message: BaseMessage, expected: dict[str, Any]) -> None:
    assert wire(message) == [expected]


@pytest.mark.parametrize(
    ("block", "part"),
    [
        ({"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "a"}),
        ({"type": "text-plain", "text": "a", "mime_type": "text/plain"}, {"type": "text", "text": "a"}),
        (IMAGE, IMAGE),
        ({"type": "image_url", "image_url": "https://a.example/b.png"},
         {"type": "image_url", "image_url": {"url": "https://a.example/b.png"}}),
        ({"type": "image_url", "image_url": {"url": "https://a.example/b.png", "detail": "low"}},
         {"type": "image_url", "image_url": {"url": "https://a.example/b.png", "detail": "low"}}),
        ({"type": "image", "base64": PNG, "mime_type": "image/png"}, IMAGE),
        ({"type": "image", "url": "https://a.example/b.png"},
         {"type": "image_url", "image_url": {"url": "https://a.example/b.png"}}),
        ({"type": "image", "source_type": "base64", "data": PNG, "mime_type": "image/png"}, IMAGE),
        ({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}, IMAGE),
        ({"type": "audio", "base64": "UklGRg==", "mime_type": "audio/x-wav"}, AUDIO),
        ({"type": "audio", "url": "data:audio/wav;base64,UklGRg=="}, AUDIO),
        (AUDIO, AUDIO),
        ({"type": "audio", "base64": "SUQz", "mime_type": "audio/mpeg"},
         {"type": "input_audio", "input_audio": {"data": "SUQz", "format": "mp3"}}),
        (FILE, FILE),
        ({"type": "file", "base64": "JVBERg==", "mime_type": "application/pdf"}, FILE),
        ({"type": "file", "base64": "JVBERg==", "mime_type": "application/pdf", "filename": "a.pdf"},
         {"type": "file", "file": {**FILE["file"], "filename": "a.pdf"}}),
        ({"type": "file", "file_id": "file_1"}, {"type": "file", "file": {"file_id": "file_1"}}),
        ({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Hello"}},
         {"type": "text", "text": "Hello"}),
        ({"type": "document", "source": {"type": "file", "file_id": "file_1"}},
         {"type": "file", "file": {"file_id": "file_1"}}),
        ({"type": "image", "url": "https://a.example/b.png", "text": "a caption"},
         {"type": "image_url", "image_url": {"url": "https://a.example/b.png"}}),
        ({"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERg=="}},
         FILE),
    ],
)  # fmt: skip
def test_every_form_of_a_user_block_becomes_a_content_part(
    block: dict[str, Any], part: dict[str, Any]
) -> None:
    assert wire(HumanMessage([block])) == [{"role": "user", "content": [part]}]


@pytest.mark.parametrize(
    ("message", "path", "why"),
    [
        (
            HumanMessage(["a", {"type": "video", "base64": "AA==", "mime_type": "video/mp4"}]),
            "0.content.1",
            "'video'",
        ),
        (HumanMessage([{"type": "image", "file_id": "f"}]), "0.content.0", "file id"),
        (HumanMessage([{"type": "image", "base64": PNG}]), "0.content.0", "media type"),
        (HumanMessage([{"type": "image"}]), "0.content.0", "URL or base64"),
        (
            HumanMessage([{"type": "audio", "base64": "AA==", "mime_type": "audio/flac"}]),
            "0.content.0",
            "wav or mp3",
        ),
        (HumanMessage([{"type": "audio", "url": "https://a.example/b.wav"}]), "0.content.0", "by URL"),
        (HumanMessage([{"type": "file", "url": "https://a.example/b.pdf"}]), "0.content.0", "by URL"),
        (HumanMessage([{"type": "file"}]), "0.content.0", "base64 data or the id"),
        (HumanMessage([{"type": "tool_result", "content": "x"}]), "0.content.0", "ToolMessage"),
        (HumanMessage([{"no": "type"}]), "0.content.0", "without a type"),
        (HumanMessage([{"type": "image", "url": 5}]), "0.content.0", "url must be text, not int"),
        (
            HumanMessage([{"type": "image", "base64": PNG, "mime_type": 5}]),
            "0.content.0",
            "mime_type must be",
        ),
        (
            HumanMessage([{"type": "input_audio", "input_audio": {"data": "AA==", "format": 5}}]),
            "0.content.0",
            "format must be",
        ),
        (HumanMessage([{"type": "file", "file": {"file_data": 5}}]), "0.content.0", "file_data must be"),
        (HumanMessage([{"type": "text-plain", "text": 5}]), "0.content.0", "text must be"),
        (HumanMessage([{"type": ["text"]}]), "0.content.0", "without a type"),
        (AIMessage([{"type": ["text"]}]), "0.content.0", "type must be"),
        (AIMessage([{"type": "reasoning", "reasoning": ["Hm."]}]), "0.content.0", "reasoning must be"),
        (
            AIMessage([{"type": "reasoning", "summary": [{"text": 5}]}]),
            "0.content.0",
            "text must be text, not int",
        ),
        (AIMessage([{"type": "tool_use", "name": "f", "id": [5]}]), "0.content.0", "id must be"),
        (AIMessage("", tool_calls=[{**CALL, "args": {"x": {5}}}]), "0.tool_calls", "must be JSON"),
        (
            HumanMessage([{"type": "document", "source": {"type": "content", "content": []}}]),
            "0.content.0",
            "source",
        ),
        (AIMessage([{"type": "text"}]), "0.content.0", "text only"),
        (AIMessage([{"type": "tool_use", "id": "1"}]), "0.content.0", "text only"),
        (AIMessage([{"type": "non_standard", "value": None}]), "0.content.0", "text only"),
        (AIMessage([{"type": "tool_call", "id": "9", "name": "f", "args": {}}]), "0.content.0", "text only"),
        (SystemMessage([IMAGE]), "0.content.0", "text only"),
        (AIMessage([{"type": "image", "base64": PNG, "mime_type": "image/png"}]), "0.content.0", "text only"),
        (ChatMessage("x", role="narrator"), "0", "ChatMessage"),
        (RemoveMessage(id="1"), "0", "RemoveMessage"),
    ],
)
def test_unsupported_content_is_an_error_that_names_its_place(
    message: BaseMessage, path: str, why: str
) -> None:
    with pytest.raises(InvalidParameterError, match=why) as caught:
        wire_messages([message])
    assert caught.value.param == f"messages.{path}"
    assert PNG not in str(caught.value)


def test_a_defect_of_this_package_is_not_reported_as_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_messages, "text_part", lambda text: text + None)
    with pytest.raises(TypeError):
        wire_messages([HumanMessage(["a"])])


def test_an_assistants_tool_calls_are_sent_once_and_its_empty_content_left_out() -> None:
    loop = [AIMessage("", tool_calls=[CALL]), ToolMessage("7", tool_call_id="1")]
    assert wire(HumanMessage("?"), *loop)[1] == {"role": "assistant", "tool_calls": [WIRE_CALL]}


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": "a"}, CALL],
        [{"type": "text", "text": "a"}, {"type": "tool_use", "id": "1", "name": "f", "input": {"x": "ü"}}],
        [{"type": "text", "text": "a"}, {"type": "redacted_thinking", "data": "…"}],
    ],
)
def test_blocks_that_repeat_the_tool_calls_are_not_sent_twice(content: list[Any]) -> None:
    sent = wire(AIMessage(content, tool_calls=[CALL]))
    assert sent == [{"role": "assistant", "content": "a", "tool_calls": [WIRE_CALL]}]


def test_a_tool_call_that_is_only_in_the_blocks_is_sent() -> None:
    block = {"type": "tool_use", "id": "1", "name": "f", "input": {"x": "ü"}}
    assert wire(AIMessage([block])) == [{"role": "assistant", "tool_calls": [WIRE_CALL]}]


def test_a_tool_call_whose_arguments_are_not_json_is_sent_unchanged() -> None:
    bad = {"type": "invalid_tool_call", "id": "1", "name": "f", "args": "no json", "error": None}
    sent = wire(AIMessage("", invalid_tool_calls=[bad]))
    assert sent[0]["tool_calls"][0]["function"] == {"name": "f", "arguments": "no json"}


@pytest.mark.parametrize(
    "thinking",
    [
        AIMessage("", tool_calls=[CALL], additional_kwargs={"reasoning_content": "Hm."}),
        AIMessage([{"type": "reasoning", "reasoning": "Hm."}], tool_calls=[CALL]),
        AIMessage([{"type": "thinking", "thinking": "Hm.", "signature": "s"}], tool_calls=[CALL]),
        AIMessage(
            [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]}], tool_calls=[CALL]
        ),
        AIMessage(
            [{"type": "reasoning", "reasoning": "Hm."}],
            tool_calls=[CALL],
            additional_kwargs={"reasoning_content": "Hm."},
        ),
    ],
)
def test_reasoning_is_sent_back_in_the_tool_loop_it_belongs_to(thinking: AIMessage) -> None:
    loop = [HumanMessage("?"), thinking, ToolMessage("7", tool_call_id="1")]
    assert wire(*loop)[1]["reasoning_content"] == "Hm."
    later = wire(*loop, AIMessage("Seven."), HumanMessage("And now?"))
    assert "reasoning_content" not in later[1]


def test_reasoning_before_a_users_chat_message_is_left_out() -> None:
    thinking = AIMessage("", tool_calls=[CALL], additional_kwargs={"reasoning_content": "Hm."})
    loop = [HumanMessage("?"), thinking, ToolMessage("7", tool_call_id="1")]
    assert "reasoning_content" not in wire(*loop, ChatMessage("And now?", role="user"))[1]


def test_an_older_function_call_and_an_audio_answer_are_sent_back() -> None:
    called = {"name": "f", "arguments": "{}"}
    sent = wire(
        AIMessage("", additional_kwargs={"function_call": called, "audio": {"id": "audio_1", "data": "AA"}})
    )
    assert sent[0]["function_call"] == called
    assert sent[0]["audio"] == {"id": "audio_1"}


@pytest.mark.parametrize(
    "refusing",
    [
        AIMessage("", additional_kwargs={"refusal": "No."}),
        AIMessage([{"type": "refusal", "refusal": "No."}]),
        AIMessage([{"type": "non_standard", "value": {"type": "refusal", "refusal": "No."}}]),
    ],
)
def test_a_refusal_is_sent_back(refusing: AIMessage) -> None:
    assert wire(refusing)[0]["refusal"] == "No."


def test_the_callers_messages_are_not_changed() -> None:
    messages = [
        HumanMessage(["a", IMAGE]),
        AIMessage([{"type": "reasoning", "reasoning": "Hm."}, CALL], tool_calls=[CALL]),
        ToolMessage("7", tool_call_id="1"),
    ]
    before = [message.model_copy(deep=True) for message in messages]
    wire(*messages)
    assert messages == before


async def test_an_image_in_a_tool_message_moves_to_a_user_message_and_the_agent_goes_on(
    engine: ScriptedEngine, scripted: Any
) -> None:
    calls = [{**CALL, "id": "1"}, {**CALL, "id": "2"}]
    screenshot = {"type": "image", "base64": PNG, "mime_type": "image/png"}
    messages: list[BaseMessage] = [
        HumanMessage("Look."),
        AIMessage("", tool_calls=calls),
        ToolMessage([{"type": "text", "text": "Here:"}, screenshot], tool_call_id="1"),
        ToolMessage("Nothing.", tool_call_id="2"),
    ]
    model = scripted(delta(content="A cat."), finish())
    assert model.invoke(messages).text == (await model.ainvoke(messages)).text == "A cat."
    sent = engine.requests[-1].params["messages"]
    assert [each["role"] for each in sent] == ["user", "assistant", "tool", "tool", "user"]
    assert [each["tool_call_id"] for each in sent[2:4]] == ["1", "2"]
    assert {part["type"] for part in sent[2]["content"]} == {"text"}
    assert [part["type"] for part in sent[4]["content"]] == ["text", "image_url"]
    assert sent[4]["content"][1] == IMAGE
