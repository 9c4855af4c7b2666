"""Tool calls: which tools a request asks for, clause by clause, and with which arguments."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from prem_core.enclave.engines.base import EngineError, EngineRequest
from prem_core.enclave.engines.quoting.prompt import Prompt, ToolResult
from prem_core.enclave.engines.quoting.text import key, keys, words
from prem_core.enclave.engines.quoting.values import Values

#: Words that say nothing about what a tool does.
_GENERIC: Final = {
    key(word) for word in words("call fetch find function get input output result return tool use value")
}

#: Where a clause may end. "San Francisco, CA" is one place; "Paris, London and Rome" are three.
_CLAUSE = re.compile(r"(?:[.!?;]|,)\s+(?:and\s+)?(?:then\s+)?(?=[a-z])|[.!?;]\s+|\n+|,?\s+and\s+(?:then\s+)?")
_LIST = re.compile(r"(?:[A-Z]\w+, )+[A-Z]\w+,? and [A-Z]")

#: What the words of a clause must add up to: the whole name of a tool counts 2, a word of its description 0.6.
_THRESHOLD: Final = 1.0

#: A longer request is read for its question alone.
_LONG: Final = 1000


@dataclass(frozen=True)
class Call:
    """A tool call."""

    name: str
    arguments: Mapping[str, Any]


class _Tool:
    def __init__(self, function: Mapping[str, Any]) -> None:
        self.name: str = function["name"]
        self.schema = function.get("parameters") or {"type": "object"}
        self.name_keys = keys(self.name) - _GENERIC or keys(self.name)
        self.other_keys = keys(str(function.get("description") or "")) - _GENERIC - self.name_keys
        self.other_keys |= keys(" ".join(self.schema.get("properties", {}))) - _GENERIC - self.name_keys

    def score(self, text: str) -> float:
        """How much a text asks for this tool."""
        found = keys(text)
        score = 2 * len(self.name_keys & found) / len(self.name_keys) + 0.6 * min(
            3, len(self.other_keys & found)
        )
        # Of two names that are both in the text, the longer one is meant.
        spelled = r"[\s_-]*".join(map(re.escape, words(self.name)))
        named = re.search(rf"(?<!\w){spelled}(?!\w)", text, re.I)
        return score + (10 + len(self.name) / 100 if named else 0)

    def needs(self) -> bool:
        return bool(self.schema.get("required"))

    def complete(self, text: str) -> bool:
        """Whether a text has every required argument."""
        values = Values(self.schema, text, prose=True)
        values.object()
        return values.complete

    def call(self, text: str, prompt: Prompt) -> Call:
        """The call with the arguments in `text`; what is not there is looked for in the whole prompt."""
        values = Values(self.schema, text, prose=True if len(text) <= _LONG else None)
        arguments = values.object()
        if not values.complete and text != prompt.everything:
            around = Values(self.schema, f"{text}\n\n{prompt.everything}")
            fuller = around.object()
            arguments = fuller if around.complete else arguments
        return Call(self.name, arguments)


def choose_calls(request: EngineRequest, prompt: Prompt) -> list[Call]:
    """The calls to make now; none when the answer is a text.

    Raises:
        EngineError: `tools` and `tool_choice` do not go together, or ask for what this engine lacks.
    """
    if any(tool["type"] != "function" for tool in request.tools):
        raise EngineError("tools of type custom are not supported by this engine", param="tools")
    tools = [_Tool(tool["function"]) for tool in request.tools]
    choice = request.params.get("tool_choice", "auto")
    asking = prompt.request if len(prompt.request) <= _LONG else prompt.question
    if isinstance(choice, Mapping):
        tools = [tool for tool in tools if choice.get("function", {}).get("name") == tool.name]
        if not tools:
            raise EngineError("tool_choice names a function that is not in tools", param="tool_choice")
    elif choice == "none" or (choice == "auto" and not tools):
        return []
    elif not tools:
        raise EngineError("tool_choice requires a tool, and tools is empty", param="tool_choice")
    elif choice == "auto" or len(tools) > 1:
        calls = [tool.call(clause, prompt) for tool, clause in _clauses(tools, asking)]
        calls = _unanswered(list({repr(call): call for call in calls}.values()), prompt.results)
        if calls or choice == "auto":
            return calls
    done = {result.name for result in prompt.results}
    best = max(tools, key=lambda tool: (tool.name not in done, tool.score(asking)))
    return [best.call(prompt.request or prompt.everything, prompt)]


def _clauses(tools: list[_Tool], text: str) -> Iterator[tuple[_Tool, str]]:
    """The parts of a request that each ask for one call."""
    current: _Tool | None = None
    held = ""
    for clause in _split(text):
        tool = max(tools, key=lambda tool: tool.score(clause))
        asks = tool.score(clause) >= _THRESHOLD
        if current is not None and (not asks or tool is current):
            # More of the same call, or one more call of the same tool: "and in Tokyo".
            if current.needs() and current.complete(held) and current.complete(clause):
                yield current, held
                held = clause
            else:
                held = f"{held} {clause}"
        elif asks:
            if current is not None:
                yield current, held
            current, held = tool, clause
    if current is not None:
        yield current, held
    elif (tool := max(tools, key=lambda tool: tool.score(text))).score(text) >= _THRESHOLD:
        yield tool, text


def _split(text: str) -> Iterator[str]:
    text = _LIST.sub(lambda places: places[0].replace(", ", " and "), text)
    start = 0
    for cut in _CLAUSE.finditer(text):
        if text.count('"', 0, cut.start()) % 2 == 0:  # not inside a quotation
            yield text[start : cut.start()]
            start = cut.end()
    yield text[start:].rstrip(" .!?")


def _unanswered(calls: list[Call], results: tuple[ToolResult, ...]) -> list[Call]:
    """The calls that have no result yet. A result with other arguments also counts, or a call might never end."""
    for result in results:
        same = [call for call in calls if call.name == result.name]
        exact = [call for call in same if call.arguments == result.arguments]
        for call in (exact or same)[:1]:
            calls.remove(call)
    return calls
