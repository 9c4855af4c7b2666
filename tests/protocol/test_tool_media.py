"""Media in tool messages: moved to a user message, with the order and the ids of the tool messages kept."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from prem_core._protocol.request_schema import chat_plaintext
from prem_core._protocol.tool_media import move_tool_media

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
AUDIO = {"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}}
FILE = {"type": "file", "file": {"file_id": "f"}}
TEXT = {"type": "text", "text": "Here:"}


def tool(call_id: str, content: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def test_media_of_several_results_follow_the_last_of_them_in_order() -> None:
    messages = [tool("a", [IMAGE, TEXT, FILE]), tool("b", "text"), tool("c", [AUDIO])]
    before = copy.deepcopy(messages)
    *tools, user = move_tool_media(messages)
    assert messages == before
    assert [each["tool_call_id"] for each in tools] == ["a", "b", "c"]
    assert [part["text"] for part in tools[0]["content"]] == [
        "[image 1 of this result is in the next user message]",
        "Here:",
        "[file 2 of this result is in the next user message]",
    ]
    assert user["role"] == "user"
    assert user["content"] == [
        {"type": "text", "text": "[image 1 of the result of tool call a]"}, IMAGE,
        {"type": "text", "text": "[file 2 of the result of tool call a]"}, FILE,
        {"type": "text", "text": "[recording 1 of the result of tool call c]"}, AUDIO,
    ]  # fmt: skip
    chat_plaintext({"model": "m", "messages": [*tools, user]})  # the published schema allows it


def test_each_group_of_results_has_its_media_behind_it() -> None:
    assistant = {"role": "assistant", "content": "?"}
    messages = [tool("a", [IMAGE]), assistant, tool("b", [IMAGE]), assistant]
    assert [each["role"] for each in move_tool_media(messages)] == [
        "tool", "user", "assistant", "tool", "user", "assistant",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "messages", [[tool("a", "text")], [tool("a", [TEXT])], [{"role": "user", "content": [IMAGE]}], [None], []]
)
def test_messages_without_media_in_results_stay_the_same(messages: list[Any]) -> None:
    assert move_tool_media(messages) is messages
