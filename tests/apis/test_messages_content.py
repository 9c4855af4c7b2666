"""Messages and content blocks of the Messages API as the messages of a chat."""

from __future__ import annotations

from typing import Any

import pytest
from support.messages_api import body, messages, translate

from prem_core._apis.base import ApiError

PNG = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0K"}}
PNG_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0K"}}


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def call(call_id: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": call_id, "name": "look", "input": arguments}


def result(call_id: str, content: Any = None, **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": call_id, "content": content, **more}


def conversation(*contents: Any) -> dict[str, Any]:
    """A request whose messages alternate, from the user's on."""
    given = [{"role": ("user", "assistant")[i % 2], "content": each} for i, each in enumerate(contents)]
    return body() | {"messages": given}


# User messages


def test_text_and_images_keep_their_order() -> None:
    url = {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}
    assert messages(body([text("Compare"), PNG, text("with"), url])) == [
        {
            "role": "user",
            "content": [
                text("Compare"),
                PNG_PART,
                text("with"),
                {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
            ],
        }
    ]


def test_a_pdf_document_is_a_file_with_its_title_as_the_name() -> None:
    source = {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}
    blocks = [{"type": "document", "source": source, "title": "a.pdf", "context": "A report."}]
    assert messages(body(blocks))[0]["content"] == [
        text("A report."),
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBERi0=", "filename": "a.pdf"}},
    ]


def test_a_text_document_is_text_with_its_title() -> None:
    source = {"type": "text", "media_type": "text/plain", "data": "The text."}
    assert messages(body([{"type": "document", "source": source, "title": "Notes"}])) == [
        {"role": "user", "content": "Notes\n\nThe text."}
    ]


def test_a_document_of_blocks_is_these_blocks() -> None:
    source = {"type": "content", "content": [text("one"), PNG]}
    assert messages(body([{"type": "document", "source": source}]))[0]["content"] == [text("one"), PNG_PART]


def test_citations_are_dropped_and_listed() -> None:
    source = {"type": "text", "media_type": "text/plain", "data": "x"}
    adjusted = translate(body([{"type": "document", "source": source, "citations": {"enabled": True}}]))
    assert adjusted.dropped == ["citations"]


def test_a_search_result_is_text_with_its_source() -> None:
    block = {"type": "search_result", "title": "T", "source": "https://e.com", "content": [text("found")]}
    assert messages(body([block]))[0]["content"] == "T\nhttps://e.com\n\nfound"


def test_a_system_message_may_stand_between_the_others() -> None:
    request = conversation("a", "b", "c")
    request["messages"].insert(2, {"role": "system", "content": "Now be brief."})
    assert messages(request)[2] == {"role": "system", "content": "Now be brief."}


# The tool loop


def test_parallel_tool_calls_and_their_results_keep_order_and_ids() -> None:
    chat = messages(
        conversation(
            "Look twice",
            [text("I look."), call("t1", at="a"), call("t2")],
            [result("t1", "one"), result("t2", [text("two"), text("three")]), text("Continue")],
        )
    )
    assert chat[1:] == [
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [
                {"id": "t1", "type": "function", "function": {"name": "look", "arguments": '{"at":"a"}'}},
                {"id": "t2", "type": "function", "function": {"name": "look", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "one"},
        {"role": "tool", "tool_call_id": "t2", "content": "two\nthree"},
        {"role": "user", "content": "Continue"},
    ]


def test_a_screenshot_in_a_tool_result_moves_into_the_user_message_after_all_results() -> None:
    adjusted = translate(
        conversation(
            "Look",
            [call("t1"), call("t2")],
            [result("t1", [text("seen"), PNG]), result("t2", "two"), text("And now?")],
        )
    )
    first, second, user = adjusted.params["messages"][2:]
    assert first["tool_call_id"] == "t1"
    assert first["content"].startswith("seen\n")
    assert second == {"role": "tool", "tool_call_id": "t2", "content": "two"}
    label, image, question = user["content"]
    assert "t1" in label["text"]
    assert (image, question) == (PNG_PART, text("And now?"))
    assert adjusted.adjusted == ["tool_result.content"]


def test_a_failed_tool_call_starts_with_error() -> None:
    chat = messages(conversation("Look", [call("t1")], [result("t1", "no camera", is_error=True)]))
    assert chat[-1]["content"] == "Error:\nno camera"


def test_a_result_without_content_is_empty_text() -> None:
    assert messages(conversation("Look", [call("t1")], [result("t1")]))[-1]["content"] == ""


def test_thinking_is_sent_back_in_the_tool_loop_that_it_belongs_to() -> None:
    def thinking(value: str) -> dict[str, Any]:
        return {"type": "thinking", "thinking": value, "signature": "unsigned"}

    chat = messages(
        conversation(
            "first",
            [thinking("old"), text("answer")],
            "second",
            [thinking("new"), call("t1")],
            [result("t1", "one"), text("a reminder")],
            [thinking("newer"), call("t2")],
            [result("t2", "two")],
        )
    )
    assistants = [message for message in chat if message["role"] == "assistant"]
    assert [each.get("reasoning_content") for each in assistants] == [None, "new", "newer"]


def test_redacted_thinking_is_dropped_and_listed() -> None:
    adjusted = translate(conversation("a", [{"type": "redacted_thinking", "data": "x"}, text("b")], "c"))
    assert adjusted.params["messages"][1] == {"role": "assistant", "content": "b"}
    assert adjusted.dropped == ["redacted_thinking"]


# Refused


def test_a_prefilled_answer_is_refused() -> None:
    with pytest.raises(ApiError, match=r"messages\.1: .*prefill"):
        translate(conversation("a", "{"))


@pytest.mark.parametrize(
    ("block", "param"),
    [
        ({"type": "image"}, "messages.0.content.0.source"),
        ({"type": "image", "source": {"type": "file", "file_id": "f"}}, "messages.0.content.0.source"),
        (
            {"type": "image", "source": {"type": "base64", "data": "x"}},
            "messages.0.content.0.source.media_type",
        ),
        ({"type": "document", "source": {"type": "url", "url": "u"}}, "messages.0.content.0.source"),
        ({"type": "container_upload", "file_id": "f"}, "messages.0.content.0"),
        ({"type": "tool_use", "id": "t", "name": "n", "input": {}}, "messages.0.content.0"),
        ({"type": "text"}, "messages.0.content.0.text"),
        ({"type": ["text"]}, "messages.0.content.0"),
        ({"type": "tool_result"}, "messages.0.content.0.tool_use_id"),
        ({"type": "tool_result", "tool_use_id": "t", "content": 5}, "messages.0.content.0.content"),
        ("text", "messages.0.content.0"),
    ],
)
def test_a_block_that_a_chat_cannot_carry_is_a_400_that_names_its_path(block: Any, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        translate(body([block]))
    assert caught.value.status == 400
    assert caught.value.param == param


@pytest.mark.parametrize("content", [[call("t") | {"input": "{}"}], [PNG], [{"type": "server_tool_use"}], 5])
def test_an_assistant_message_that_a_chat_cannot_carry_is_a_400(content: Any) -> None:
    with pytest.raises(ApiError, match=r"^messages\.1\.content"):
        translate(conversation("a", content, "b"))


@pytest.mark.parametrize("value", [None, [], "hello", [5], [{"role": "tool", "content": "x"}]])
def test_messages_that_are_none_are_a_400(value: Any) -> None:
    with pytest.raises(ApiError, match="^messages"):
        translate(body() | {"messages": value})
