"""The answers that the compatibility checks expect, chosen by a word in the first user message."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

from prem_core.enclave import EngineError, EngineRequest, reply, tool_call


class Service:
    """`ScriptedEngine.respond` for all checks."""

    def __init__(self) -> None:
        self._counts = {"flaky": itertools.count()}

    def __call__(self, request: EngineRequest) -> Any:
        first = next(message for message in request.messages if message["role"] == "user")
        text = json.dumps(first)
        answers: dict[str, Callable[[EngineRequest], Any]] = {
            "screenshot": self._screenshot,
            "parallel": lambda _: [tool_call("look", at="a"), tool_call("look", at="b")],
            "structured": lambda _: '{"name": "Ada", "age": 36}',
            "limited": lambda _: EngineError("slow down", status=429, retry_after=1),
            "flaky": self._flaky,
            "broken": lambda _: reply(["Half ", "an answer"], truncated=True),
            "long": lambda _: reply("A long answer", finish_reason="length"),
            "media": lambda _: ", ".join(part["type"] for part in first["content"]),
            "hello": lambda _: reply("Hello, world.", reasoning="A greeting.", usage=(12, 5)),
        }
        for word, answer in answers.items():
            if word in text:
                return answer(request)
        raise EngineError("no answer is scripted for this request")

    def _flaky(self, _: EngineRequest) -> Any:
        if next(self._counts["flaky"]) % 2 == 0:
            return EngineError("not yet", status=503)
        return "Recovered"

    def _screenshot(self, request: EngineRequest) -> Any:
        """A coding agent's loop: two calls at once, then an answer that shows what arrived."""
        results = [message for message in request.messages if message["role"] == "tool"]
        if not results:
            calls = [tool_call("screenshot", region="left"), tool_call("read_file", path="a.txt")]
            return reply("I look.", tool_calls=calls)
        called = next(m["tool_calls"] for m in request.messages if m.get("tool_calls"))
        if [each["id"] for each in called] != [each["tool_call_id"] for each in results]:
            raise EngineError("the results do not have the ids of the calls, in their order")
        last = request.messages[-1]
        content = last["content"] if isinstance(last["content"], list) else []
        images = sum(part["type"] == "image_url" for part in content)
        return reply(["The page ", f"has {images} image; the file says ", results[1]["content"]])
