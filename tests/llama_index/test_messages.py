"""LlamaIndex's messages as the request's messages: sent in the schema's forms, or an error that names their place."""

from __future__ import annotations

import base64
import copy
import io
from types import SimpleNamespace
from typing import Any

import pytest
from llama_index.core.base.llms.types import (
    AudioBlock,
    CacheControl,
    CachePoint,
    ChatMessage,
    CitableBlock,
    DocumentBlock,
    ImageBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    VideoBlock,
)
from support.paths import MEDIA
from support.scripted_upstream import delta, finish
from support.wire_schemas import PARAMS

from llama_index_prem._messages import wire_messages
from prem_core import InvalidParameterError
from prem_core.enclave import ScriptedEngine

PNG = (MEDIA / "pixels.png").read_bytes()
WAV = (MEDIA / "tone.wav").read_bytes()
PDF = (MEDIA / "letter.pdf").read_bytes()

CACHE = CachePoint(cache_control=CacheControl(type="ephemeral"))
CALL = ToolCallBlock(tool_call_id="1", tool_name="f", tool_kwargs={"x": "ü"})
WIRE_CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x":"ü"}'}}


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def image(**more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded(PNG)}", **more}}


AUDIO = {"type": "input_audio", "input_audio": {"data": encoded(WAV), "format": "wav"}}


def file(name: str, data: bytes = PDF, kind: str = "application/pdf") -> dict[str, Any]:
    return {
        "type": "file",
        "file": {"file_data": f"data:{kind};base64,{encoded(data)}", "filename": name},
    }


def chat_message(role: str, content: Any = "Hi", **kwargs: Any) -> ChatMessage:
    return ChatMessage(content, role=MessageRole(role), additional_kwargs=kwargs)


def wire(*messages: ChatMessage) -> list[dict[str, Any]]:
    made = wire_messages(messages)
    assert list(PARAMS.iter_errors({"model": "m", "messages": made})) == []
    return made


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (chat_message("user"), {"role": "user", "content": "Hi"}),
        (chat_message("user", name="ann"), {"role": "user", "content": "Hi", "name": "ann"}),
        (ChatMessage(role="user"), {"role": "user", "content": ""}),
        (chat_message("system"), {"role": "system", "content": "Hi"}),
        (chat_message("developer"), {"role": "system", "content": "Hi"}),
        (chat_message("assistant"), {"role": "assistant", "content": "Hi"}),
        (chat_message("chatbot"), {"role": "assistant", "content": "Hi"}),
        (chat_message("model"), {"role": "assistant", "content": "Hi"}),
        (ChatMessage(role="assistant"), {"role": "assistant", "content": ""}),
        (chat_message("assistant", refusal="No."), {"role": "assistant", "content": "Hi", "refusal": "No."}),
        (chat_message("tool", tool_call_id="1"), {"role": "tool", "content": "Hi", "tool_call_id": "1"}),
        (
            ChatMessage(role="tool", additional_kwargs={"tool_call_id": "1"}),
            {"role": "tool", "content": "", "tool_call_id": "1"},
        ),
        (chat_message("function", name="f"), {"role": "function", "content": "Hi", "name": "f"}),
        (
            chat_message("system", [TextBlock(text="a"), CACHE, TextBlock(text="b")]),
            {"role": "system", "content": "a\nb"},
        ),
        (
            chat_message("user", [TextBlock(text="a"), CACHE, TextBlock(text="b")]),
            {"role": "user", "content": [{"type": "text", "text": t} for t in "ab"]},
        ),
    ],
)
def test_each_message_is_sent_in_the_schemas_form(message: ChatMessage, expected: dict[str, Any]) -> None:
    assert wire(message) == [expected]


@pytest.mark.parametrize(
    ("block", "part"),
    [
        (ImageBlock(image=PNG), image()),
        (ImageBlock(image=PNG, detail="low"), image(detail="low")),
        (ImageBlock(image=base64.b64encode(PNG), image_mimetype="image/png"), image()),
        (ImageBlock(image=io.BytesIO(PNG)), image()),
        (ImageBlock(path=MEDIA / "pixels.png"), image()),
        (ImageBlock(url=f"data:image/png;base64,{encoded(PNG)}"), image()),
        (ImageBlock(url="https://a.example/b.png", detail="high"),
         {"type": "image_url", "image_url": {"url": "https://a.example/b.png", "detail": "high"}}),
        (AudioBlock(audio=WAV), AUDIO),
        (AudioBlock(audio=io.BytesIO(WAV)), AUDIO),
        (AudioBlock(path=MEDIA / "tone.wav"), AUDIO),
        (AudioBlock(url=f"data:audio/wav;base64,{encoded(WAV)}"), AUDIO),
        (AudioBlock(audio=b"ID3\x04", format="mp3"),
         {"type": "input_audio", "input_audio": {"data": encoded(b"ID3\x04"), "format": "mp3"}}),
        (DocumentBlock(data=PDF), file("input_document")),
        (DocumentBlock(data=PDF, title="A letter"), file("A letter")),
        (DocumentBlock(data=io.BytesIO(PDF), document_mimetype="application/pdf"), file("input_document")),
        (DocumentBlock(path=MEDIA / "letter.pdf"), file("letter.pdf")),
        (DocumentBlock(path=str(MEDIA / "letter.pdf"), title="x.pdf"), file("x.pdf")),
        (DocumentBlock(url=f"data:application/pdf;base64,{encoded(PDF)}"), file("input_document")),
        (DocumentBlock(data=b"a;b", title="t.csv"), file("t.csv", b"a;b", "text/csv")),
    ],
)  # fmt: skip
def test_every_form_of_a_user_block_becomes_a_content_part(block: Any, part: dict[str, Any]) -> None:
    for _ in range(2):  # a file object is read from its beginning each time
        assert wire(chat_message("user", [block])) == [{"role": "user", "content": [part]}]


def test_a_file_object_keeps_its_position() -> None:
    held = io.BytesIO(PNG)
    held.seek(3)
    wire(chat_message("user", [ImageBlock(image=held)]))
    assert held.tell() == 3


@pytest.mark.parametrize(
    ("message", "path", "why"),
    [
        (chat_message("user", [TextBlock(text="a"), VideoBlock(video=b"x", video_mimetype="video/mp4")]),
         "blocks.1", "'video'"),
        (chat_message("user", [CitableBlock(title="t", source="s", content="c")]), "blocks.0", "'citable'"),
        (chat_message("user", [CALL]), "blocks.0", "assistant message"),
        (chat_message("user", [ThinkingBlock(content="Hm.")]), "blocks.0", "assistant message"),
        (chat_message("user", [ImageBlock(image=b"no image")]), "blocks.0", "media type"),
        (chat_message("user", [ImageBlock()]), "blocks.0", "cannot be read"),
        (chat_message("user", [AudioBlock()]), "blocks.0", "cannot be read"),
        (chat_message("user", [DocumentBlock()]), "blocks.0", "cannot be read"),
        (chat_message("user", [ImageBlock(image=b"")]), "blocks.0", "zero bytes"),
        (chat_message("user", [AudioBlock(audio=b"fLaC\0\0", format="flac")]), "blocks.0", "wav or mp3"),
        (chat_message("user", [AudioBlock(audio=b"what?")]), "blocks.0", "wav or mp3"),
        (chat_message("user", [AudioBlock(url="https://a.example/b.wav")]), "blocks.0", "by URL"),
        (chat_message("user", [DocumentBlock(url="https://a.example/b.pdf")]), "blocks.0", "by URL"),
        (chat_message("user", [DocumentBlock(path="/no/such/file.pdf")]), "blocks.0", "No such file"),
        (chat_message("user", [DocumentBlock(data=b"what?")]), "blocks.0", "media type"),
        (chat_message("system", [ImageBlock(image=PNG)]), "blocks.0", "text only"),
        (chat_message("assistant", [ToolCallBlock(tool_name="f", tool_kwargs={"x": {5}})]), "blocks.0", "must be JSON"),
        (chat_message("tool"), "tool_call_id", "needs the id of its tool call"),
        (chat_message("assistant", [TextBlock(text="a"), ImageBlock(image=PNG)]), "blocks.1", "tool calls only"),
    ],
)  # fmt: skip
def test_unsupported_content_is_an_error_that_names_its_place(
    message: ChatMessage, path: str, why: str
) -> None:
    with pytest.raises(InvalidParameterError, match=why) as caught:
        wire_messages([message])
    assert caught.value.param == f"messages.0.{path}"
    assert encoded(PNG) not in str(caught.value)


def test_nothing_is_fetched_for_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("requests.get", lambda *_, **__: pytest.fail("fetched"))
    wire(chat_message("user", [ImageBlock(url="https://a.example/b.png")]))
    with pytest.raises(InvalidParameterError):
        wire(chat_message("user", [AudioBlock(url="https://a.example/b.wav")]))


def test_an_assistants_tool_calls_are_sent_and_its_empty_content_left_out() -> None:
    loop = [
        chat_message("user"),
        chat_message("assistant", [CALL, CACHE]),
        chat_message("tool", tool_call_id="1"),
    ]
    assert wire(*loop)[1] == {"role": "assistant", "tool_calls": [WIRE_CALL]}


@pytest.mark.parametrize(
    "call",
    [
        WIRE_CALL,
        SimpleNamespace(id="1", function=SimpleNamespace(name="f", arguments='{"x":"ü"}')),
    ],
)
def test_tool_calls_in_additional_kwargs_are_sent_once(call: Any) -> None:
    alone = chat_message("assistant", [], tool_calls=[call])
    both = chat_message("assistant", [CALL], tool_calls=[call])
    assert wire(alone) == wire(both) == [{"role": "assistant", "tool_calls": [WIRE_CALL]}]


def test_arguments_are_sent_back_unchanged() -> None:
    for written in ('{ "x":  1 }', "no json"):
        block = ToolCallBlock(tool_call_id="1", tool_name="f", tool_kwargs=written)
        assert (
            wire(chat_message("assistant", [block]))[0]["tool_calls"][0]["function"]["arguments"] == written
        )


@pytest.mark.parametrize(
    "thinking",
    [
        chat_message("assistant", [ThinkingBlock(content="Hm."), CALL]),
        chat_message("assistant", [ThinkingBlock(content="H"), ThinkingBlock(content="m."), CALL]),
        chat_message("assistant", [CALL], reasoning_content="Hm."),
        chat_message("assistant", [ThinkingBlock(content="Hm."), CALL], reasoning_content="Hm."),
    ],
)
def test_reasoning_is_sent_back_in_the_tool_loop_it_belongs_to(thinking: ChatMessage) -> None:
    loop = [chat_message("user"), thinking, chat_message("tool", tool_call_id="1")]
    assert wire(*loop)[1]["reasoning_content"] == "Hm."
    later = wire(*loop, chat_message("assistant"), chat_message("user"))
    assert "reasoning_content" not in later[1]


def test_the_callers_messages_are_not_changed() -> None:
    messages = [
        chat_message("user", [TextBlock(text="a"), ImageBlock(image=PNG), CACHE]),
        chat_message("assistant", [ThinkingBlock(content="Hm."), CALL], tool_calls=[WIRE_CALL]),
        chat_message("tool", tool_call_id="1"),
    ]
    before = copy.deepcopy(messages)
    wire(*messages)
    assert messages == before


async def test_an_image_in_a_tool_message_moves_to_a_user_message_and_the_agent_goes_on(
    engine: ScriptedEngine, scripted: Any
) -> None:
    messages = [
        chat_message("user", [TextBlock(text="Look.")]),
        chat_message("assistant", [CALL]),
        chat_message("tool", [TextBlock(text="Here:"), ImageBlock(image=PNG)], tool_call_id="1"),
    ]
    model = scripted(delta(content="A cat."), finish())
    assert model.chat(messages).message.content == (await model.achat(messages)).message.content == "A cat."
    sent = engine.requests[-1].params["messages"]
    assert [each["role"] for each in sent] == ["user", "assistant", "tool", "user"]
    assert sent[2]["tool_call_id"] == "1"
    assert {part["type"] for part in sent[2]["content"]} == {"text"}
    assert [part["type"] for part in sent[3]["content"]] == ["text", "image_url"]
