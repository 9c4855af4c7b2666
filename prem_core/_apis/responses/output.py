"""The items of an answer while they arrive, each with its events."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal, Protocol

from prem_core._apis.responses.items import REASONING_MARK, REASONING_PREFIX
from prem_core._apis.responses.tools import custom_input

ItemStatus = Literal["completed", "incomplete"]


class Emit(Protocol):
    """Emits one event."""

    def __call__(self, kind: str, /, **fields: Any) -> None: ...


class OutputItem(ABC):
    """One item. It emits its first event when it is made.

    Args:
        emit: Emits an event.
        token: What the ids of one response have in common.
        index: The position in the output.
    """

    prefix: str

    def __init__(self, emit: Emit, token: str, index: int) -> None:
        self._emit = emit
        self.index = index
        self._id = f"{self.prefix}{token}{index:04x}"

    @abstractmethod
    def close(self, status: ItemStatus) -> dict[str, Any]:
        """Emit the last events; return the whole item."""

    def _added(self, item: dict[str, Any]) -> None:
        self._emit("response.output_item.added", output_index=self.index, item=item)

    def _done(self, item: dict[str, Any]) -> dict[str, Any]:
        self._emit("response.output_item.done", output_index=self.index, item=item)
        return item

    def _event(self, kind: str, **fields: Any) -> None:
        self._emit(kind, item_id=self._id, output_index=self.index, **fields)


class Reasoning(OutputItem):
    """The model's reasoning, as a summary: the form that every client shows.

    Args:
        emit: See `OutputItem`.
        token: See `OutputItem`.
        index: See `OutputItem`.
        marked: Whether the item needs an `encrypted_content`.
    """

    prefix = REASONING_PREFIX

    def __init__(self, emit: Emit, token: str, index: int, *, marked: bool) -> None:
        super().__init__(emit, token, index)
        self._marked = marked
        self._texts: list[str] = []
        self._added(self._item([]))
        self._event(
            "response.reasoning_summary_part.added",
            summary_index=0,
            part={"type": "summary_text", "text": ""},
        )

    def add(self, text: str) -> None:
        """Add a part of the text."""
        self._texts.append(text)
        self._event("response.reasoning_summary_text.delta", summary_index=0, delta=text)

    def close(self, status: ItemStatus) -> dict[str, Any]:
        """See `OutputItem.close`."""
        text = "".join(self._texts)
        part = {"type": "summary_text", "text": text}
        self._event("response.reasoning_summary_text.done", summary_index=0, text=text)
        self._event("response.reasoning_summary_part.done", summary_index=0, part=part)
        return self._done(self._item([part]))

    def _item(self, summary: list[dict[str, Any]]) -> dict[str, Any]:
        mark = {"encrypted_content": REASONING_MARK} if self._marked else {}
        return {"id": self._id, "type": "reasoning", "summary": summary, **mark}


class Message(OutputItem):
    """The model's text, or its refusal."""

    prefix = "msg_"

    def __init__(self, emit: Emit, token: str, index: int) -> None:
        super().__init__(emit, token, index)
        self._content: list[dict[str, Any]] = []
        self._kind: Literal["output_text", "refusal"] | None = None
        self._texts: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._added(self._item("in_progress"))

    def add(self, text: str, logprobs: list[dict[str, Any]]) -> None:
        """Add a part of the text."""
        self._start_part("output_text")
        self._texts.append(text)
        self._logprobs += logprobs
        position = len(self._content)
        self._event("response.output_text.delta", content_index=position, delta=text, logprobs=logprobs)

    def refuse(self, text: str) -> None:
        """Add a part of the refusal."""
        self._start_part("refusal")
        self._texts.append(text)
        self._event("response.refusal.delta", content_index=len(self._content), delta=text)

    def close(self, status: ItemStatus) -> dict[str, Any]:
        """See `OutputItem.close`."""
        if self._kind is None:
            self._start_part("output_text")
        self._end_part()
        return self._done(self._item(status))

    def _item(self, status: str) -> dict[str, Any]:
        # A copy: an event must not change after it was emitted.
        content = list(self._content)
        return {"id": self._id, "type": "message", "status": status, "role": "assistant", "content": content}

    def _start_part(self, kind: Literal["output_text", "refusal"]) -> None:
        if self._kind == kind:
            return
        self._end_part()
        self._kind = kind
        self._event("response.content_part.added", content_index=len(self._content), part=self._part())

    def _end_part(self) -> None:
        if self._kind is None:
            return
        part, position = self._part(), len(self._content)
        if self._kind == "refusal":
            self._event("response.refusal.done", content_index=position, refusal=part["refusal"])
        else:
            logprobs = self._logprobs
            self._event(
                "response.output_text.done", content_index=position, text=part["text"], logprobs=logprobs
            )
        self._event("response.content_part.done", content_index=position, part=part)
        self._content.append(part)
        self._kind, self._texts, self._logprobs = None, [], []

    def _part(self) -> dict[str, Any]:
        text = "".join(self._texts)
        if self._kind == "refusal":
            return {"type": "refusal", "refusal": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self._logprobs}


class FunctionCall(OutputItem):
    """A call of a function.

    Args:
        emit: See `OutputItem`.
        token: See `OutputItem`.
        index: See `OutputItem`.
        call_id: The id that the result has to name.
        name: The function.
    """

    prefix = "fc_"

    def __init__(self, emit: Emit, token: str, index: int, call_id: str, name: str) -> None:
        super().__init__(emit, token, index)
        self._call_id = call_id
        self._name = name
        self._texts: list[str] = []
        self._added(self._item("in_progress", ""))

    def add(self, text: str) -> None:
        """Add a part of the arguments."""
        self._texts.append(text)
        self._delta(text)

    def close(self, status: ItemStatus) -> dict[str, Any]:
        """See `OutputItem.close`."""
        if status == "completed" and not "".join(self._texts).strip():
            self.add("{}")  # some models write nothing for a function without parameters
        arguments = "".join(self._texts)
        self._finish(arguments)
        return self._done(self._item(status, arguments))

    def _delta(self, text: str) -> None:
        self._event("response.function_call_arguments.delta", delta=text)

    def _finish(self, arguments: str) -> None:
        self._event("response.function_call_arguments.done", name=self._name, arguments=arguments)

    def _item(self, status: str, arguments: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "function_call",
            "status": status,
            "arguments": arguments,
            "call_id": self._call_id,
            "name": self._name,
        }


class CustomCall(FunctionCall):
    """A call of a custom tool. Its text is inside the arguments of a function, and is emitted when they are whole."""

    prefix = "ctc_"

    def _delta(self, text: str) -> None:
        pass

    def _finish(self, arguments: str) -> None:
        text = custom_input(arguments)
        self._event("response.custom_tool_call_input.delta", delta=text)
        self._event("response.custom_tool_call_input.done", input=text)

    def _item(self, status: str, arguments: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "custom_tool_call",
            "status": status,
            "call_id": self._call_id,
            "input": custom_input(arguments),
            "name": self._name,
        }
