"""The items of a request's input, as the messages of a chat."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from prem_core._apis.responses.reading import (
    invalid,
    name_of,
    read_list,
    read_object,
    read_text,
    unsupported,
)
from prem_core._apis.responses.tools import custom_arguments

#: `encrypted_content` of the reasoning in an answer. Clients that keep no state on the server send reasoning back only
#: with this field. The reasoning itself is in the summary, which they send back with it.
REASONING_MARK: Final = "prem:the-summary-is-the-reasoning"

#: How the ids of reasoning items begin.
REASONING_PREFIX: Final = "rs_"

_ROLES: Final = ("user", "system", "developer", "assistant")


class Conversation:
    """The messages of a chat, made from items. Items of the model that follow each other become one message.

    Args:
        find: Returns the stored item for an id, or None.
        strict: Refuse what cannot be passed on, instead of dropping it.

    Attributes:
        messages: The messages so far.
        dropped: Names of what was left out.
    """

    def __init__(self, find: Callable[[str], dict[str, Any] | None], *, strict: bool) -> None:
        self.messages: list[dict[str, Any]] = []
        self.dropped: list[str] = []
        self._find = find
        self._strict = strict

    def add_all(self, items: Iterable[Any], param: str) -> None:
        """Add items in order. Their names in errors are ``{param}.{position}``."""
        for position, item in enumerate(items):
            self.add(item, f"{param}.{position}")

    def add(self, value: Any, param: str) -> None:
        """Add an item.

        Raises:
            ApiError: It is not valid, or of a kind that Prem's API does not have.
        """
        item = read_object(value, param)
        kind = item.get("type") or ("message" if "role" in item else "item_reference")
        if kind == "message":
            self._message(item, param)
        elif kind == "reasoning":
            self._reasoning(item, param)
        elif kind == "function_call":
            arguments = read_text(item.get("arguments"), f"{param}.arguments")
            self._call(item, param, arguments)
        elif kind == "custom_tool_call":
            self._call(item, param, custom_arguments(read_text(item.get("input"), f"{param}.input")))
        elif kind in ("function_call_output", "custom_tool_call_output"):
            output = item.get("output")
            call_id = read_text(item.get("call_id"), f"{param}.call_id")
            content = output if isinstance(output, str) else _content(output, f"{param}.output")
            self.messages.append({"role": "tool", "tool_call_id": call_id, "content": content})
        elif kind == "item_reference":
            self._reference(item, param)
        else:
            raise unsupported(f"{param}.type", f"Prem's API has no items of type {name_of(kind)}")

    def _message(self, item: dict[str, Any], param: str) -> None:
        role = item.get("role")
        if role not in _ROLES:
            raise invalid(f"{param}.role", f"must be one of {', '.join(_ROLES)}")
        content = item.get("content")
        if role != "assistant":
            given = content if isinstance(content, str) else _content(content, f"{param}.content")
            self.messages.append({"role": "user" if role == "user" else "system", "content": given})
            return
        text, refusal = _answer(content, f"{param}.content")
        last = self._assistant()
        if last.get("content") is not None and "tool_calls" not in last:
            self.messages.append(last := {"role": "assistant"})
        if text is not None:
            _join(last, "content", text)
        if refusal is not None:
            _join(last, "refusal", refusal)

    def _reasoning(self, item: dict[str, Any], param: str) -> None:
        # `content` has all of the reasoning, where a server sends it.
        parts = _texts(item.get("content"), f"{param}.content") or _texts(
            item.get("summary"), f"{param}.summary"
        )
        if parts:
            last = self._assistant()
            if last.get("content") is not None and "tool_calls" not in last:
                self.messages.append(last := {"role": "assistant"})
            _join(last, "reasoning_content", "\n\n".join(parts))
        elif item.get("encrypted_content") not in (None, REASONING_MARK):
            self._drop(f"{param}.encrypted_content", "only OpenAI can read it; remove the item")

    def _call(self, item: dict[str, Any], param: str, arguments: str) -> None:
        call = {
            "id": read_text(item.get("call_id"), f"{param}.call_id"),
            "type": "function",
            "function": {"name": read_text(item.get("name"), f"{param}.name"), "arguments": arguments},
        }
        self._assistant().setdefault("tool_calls", []).append(call)

    def _reference(self, item: dict[str, Any], param: str) -> None:
        reference = read_text(item.get("id"), f"{param}.id")
        found = self._find(reference)
        if found is not None:
            self.add(found, param)
        elif reference.startswith(REASONING_PREFIX):
            # Vercel's AI SDK refers to reasoning by its id unless it is set to store=false. A tool loop goes on
            # without it.
            self._drop(param, NOT_STORED)
        else:
            raise invalid(param, NOT_STORED, code="response_not_stored")

    def _drop(self, param: str, why: str) -> None:
        if self._strict:
            raise unsupported(param, why)
        self.dropped.append(param)

    def _assistant(self) -> dict[str, Any]:
        """The model's message that is being made."""
        if not self.messages or self.messages[-1]["role"] != "assistant":
            self.messages.append({"role": "assistant"})
        return self.messages[-1]


#: What is wrong with a reference to something that is not stored, and what to do.
NOT_STORED: Final = (
    "responses are not stored. Send the whole conversation (clients that refer to earlier items: store=false), "
    "or start the proxy with --store-responses (PremTransport: store_responses=True), which keeps them in memory"
)


def _join(message: dict[str, Any], name: str, text: str) -> None:
    before = message.get(name)
    message[name] = text if before is None else f"{before}\n\n{text}"


def _texts(value: Any, param: str) -> list[str]:
    return (
        []
        if value is None
        else [read_text(read_object(p, param).get("text"), param) for p in read_list(value, param)]
    )


def _answer(content: Any, param: str) -> tuple[str | None, str | None]:
    """The text and the refusal of an earlier answer."""
    if isinstance(content, str):
        return content, None
    texts, refusals = [], []
    for position, part in enumerate(read_list(content, param)):
        where = f"{param}.{position}"
        kind = read_object(part, where).get("type")
        if kind == "refusal":
            refusals.append(read_text(part.get("refusal"), f"{where}.refusal"))
        elif kind in ("output_text", "input_text", "text"):
            texts.append(read_text(part.get("text"), f"{where}.text"))
        else:
            raise unsupported(f"{where}.type", f"an assistant message has no parts of type {name_of(kind)}")
    return "".join(texts) if texts or not refusals else None, "".join(refusals) if refusals else None


def _content(value: Any, param: str) -> str | list[dict[str, Any]]:
    """The parts of a message or of a tool's output."""
    parts = [
        _part(read_object(part, f"{param}.{position}"), f"{param}.{position}")
        for position, part in enumerate(read_list(value, param))
    ]
    if len(parts) == 1 and parts[0]["type"] == "text":
        return str(parts[0]["text"])
    return parts


def _part(part: dict[str, Any], param: str) -> dict[str, Any]:
    kind = part.get("type")
    if kind in ("input_text", "output_text", "text"):
        return {"type": "text", "text": read_text(part.get("text"), f"{param}.text")}
    if kind == "input_image":
        if part.get("image_url") is None:
            raise unsupported(f"{param}.file_id", "Prem's API stores no files; send the image in image_url")
        image = {"url": read_text(part["image_url"], f"{param}.image_url")}
        detail = part.get("detail")
        if detail is not None:
            # "original" asks for more than the most that Prem's API has.
            image["detail"] = "high" if detail == "original" else detail
        return {"type": "image_url", "image_url": image}
    if kind == "input_file":
        if part.get("file_data") is None:
            name = "file_url" if part.get("file_url") is not None else "file_id"
            raise unsupported(f"{param}.{name}", "Prem's API fetches and stores no files; send file_data")
        file = {"file_data": read_text(part["file_data"], f"{param}.file_data")}
        if part.get("filename") is not None:
            file["filename"] = read_text(part["filename"], f"{param}.filename")
        return {"type": "file", "file": file}
    if kind == "input_audio":
        return {
            "type": "input_audio",
            "input_audio": read_object(part.get("input_audio"), f"{param}.input_audio"),
        }
    raise unsupported(f"{param}.type", f"Prem's API has no content of type {name_of(kind)}")
