"""The events of OpenAI's Responses API, read and checked with the `openai` package's own types."""

from __future__ import annotations

import json
from typing import Any

from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def read_events(data: bytes) -> list[dict[str, Any]]:
    """The events in a body, each checked: its type, its fields, and that the sequence numbers count up."""
    events = []
    for block in data.decode().split("\n\n")[:-1]:
        if block.startswith(":"):
            continue
        name, line = block.split("\n")
        event = json.loads(line.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == len(events)
        _EVENT.validate_python(event)
        events.append(event)
    return events


def check_stream(data: bytes) -> dict[str, Any]:
    """Check the order of a complete stream's events; return the response at its end.

    What the deltas add up to, what the ``done`` events repeat, and what the last event holds must be the same.
    """
    events = read_events(data)
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    last = events[-1]
    assert last["type"] in ("response.completed", "response.incomplete")
    items: dict[int, dict[str, Any]] = {}
    texts: dict[tuple[Any, ...], str] = {}
    open_items: list[int] = []
    done: dict[int, dict[str, Any]] = {}
    for event in events[2:-1]:
        kind, index = event["type"].removeprefix("response."), event["output_index"]
        if kind == "output_item.added":
            assert not open_items, "an item begins after the one before it has ended"
            assert index == len(items), "items are in order"
            items[index] = event["item"]
            open_items.append(index)
            continue
        assert open_items == [index], "an event belongs to the open item"
        if kind == "output_item.done":
            assert event["item"]["id"] == items[index]["id"]
            assert event["item"]["type"] == items[index]["type"]
            done[index] = event["item"]
            open_items.remove(index)
            continue
        assert event["item_id"] == items[index]["id"]
        subject, _, action = kind.rpartition(".")
        key = (index, event.get("content_index", event.get("summary_index")), subject)
        if action == "delta":
            texts[key] = texts.get(key, "") + event["delta"]
        elif action == "done" and not subject.endswith("_part"):
            whole = next(event[name] for name in ("text", "refusal", "arguments", "input") if name in event)
            assert texts.get(key, "") == whole
    assert not open_items
    response: dict[str, Any] = last["response"]
    assert response["output"] == [done[index] for index in sorted(items)]
    return check_response(response)


def check_response(value: dict[str, Any]) -> dict[str, Any]:
    """`value`, checked to be a response of OpenAI's API."""
    Response.model_validate(value)
    return value
