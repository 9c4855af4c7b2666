"""Tool calls: which tools a request asks for, clause by clause, and with which arguments."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from prem_core.enclave.engines.base import EngineError, EngineRequest
from prem_core.enclave.engines.quoting.prompt import Prompt
from prem_core.enclave.engines.quoting.text import STOPWORDS, key, keys, words
from prem_core.enclave.engines.quoting.values import Values

#: Words that do not describe what a tool does.
_GENERIC: Final = {
    key(word) for word in words("call fetch find function get input output result return tool use value")
}

#: Where a clause may end. "San Francisco, CA" is one place; "Paris, London and Rome" are three.
_CLAUSE = re.compile(r",\s+(?:and\s+)?(?=[a-z])|[.!?;]\s+|\n+|,?\s+and\s+")
_LIST = re.compile(r"(?:[A-Z]\w{1,30}, ){1,20}[A-Z]\w{1,30},? and [A-Z]")

#: What the words of a clause must add up to: the whole name of a tool counts 2, a word of its description 0.6.
_THRESHOLD: Final = 1.0

#: Of a longer request, only the question is read for the tools it asks for.
_LONG: Final = 1000


class Call(NamedTuple):
    """A tool call."""

    name: str
    arguments: Mapping[str, Any]


class _Tool:
    def __init__(self, function: Mapping[str, Any]) -> None:
        self.name: str = function["name"]
        self.schema = function.get("parameters") or {"type": "object"}
        self._name_keys = keys(self.name) - _GENERIC or keys(self.name)
        described = f"{function.get('description') or ''} {' '.join(self.schema.get('properties', {}))}"
        self._other_keys = keys(described) - _GENERIC - self._name_keys
        spelled = "[ _-]*".join(map(re.escape, words(self.name)))
        self._spelled = re.compile(rf"(?<!\w){spelled}(?!\w)", re.I)

    def score(self, text: str) -> float:
        """How much a text asks for this tool."""
        found = keys(text)
        score = 2 * len(self._name_keys & found) / len(self._name_keys) + 0.6 * len(self._other_keys & found)
        # Of two names that are both in the text, the longer one is meant.
        return score + (10 + len(self.name) / 100 if self._spelled.search(text) else 0)

    def holds_arguments(self, text: str) -> bool:
        """Whether a text has every argument that is required, and there are any."""
        values = Values(self.schema, text, prose=True)
        values.object()
        return values.complete and bool(self.schema.get("required"))

    def call(self, text: str, prompt: Prompt) -> Call:
        """The call with the arguments in `text`; where one is missing, with those in the whole prompt."""
        values = Values(self.schema, text, prose=len(text) <= _LONG)
        arguments = values.object()
        if not values.complete:
            around = Values(self.schema, f"{text}\n\n{prompt.everything}")
            found = around.object()
            arguments = found if around.complete else arguments
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
    asking = prompt.request if len(prompt.request) <= _LONG else prompt.question[:_LONG]
    if choice == "none" or (choice == "auto" and not tools):
        return []
    if isinstance(choice, Mapping):
        tools = [tool for tool in tools if choice.get("function", {}).get("name") == tool.name]
    if not tools:
        raise EngineError("tool_choice asks for a function that is not in tools", param="tool_choice")
    if choice == "auto" or len(tools) > 1:
        calls: list[Call] = []
        for tool, clause in _clauses(tools, asking):
            if (call := tool.call(clause, prompt)) not in calls:
                calls.append(call)
        for result in prompt.results:
            # A result of a call with other arguments also counts: the calls would never end otherwise.
            same = [call for call in calls if call.name == result.name]
            exact = [call for call in same if call.arguments == result.arguments]
            for call in (exact or same)[:1]:
                calls.remove(call)
        if calls or choice == "auto":
            return calls
    done = {result.name for result in prompt.results}
    best = max(tools, key=lambda tool: (tool.name not in done, tool.score(asking)))
    return [best.call(prompt.request, prompt)]


def _clauses(tools: Sequence[_Tool], text: str) -> Iterator[tuple[_Tool, str]]:
    """The parts of a request that each ask for one call."""
    current: _Tool | None = None
    held = ""
    for clause in _split(text):
        best = max(tools, key=lambda tool: tool.score(clause))
        asks = best.score(clause) >= _THRESHOLD
        if current is None or (asks and best is not current):
            if current is not None:
                yield current, held
            current, held = (best if asks else None), clause
        elif _is_bare(clause) and current.holds_arguments(held) and current.holds_arguments(clause):
            yield current, held  # the clause asks for one more call of the same tool: "and in Tokyo"
            held = clause
        else:
            held = f"{held} {clause}"
    if current is not None:
        yield current, held
    elif (best := max(tools, key=lambda tool: tool.score(text))).score(text) >= _THRESHOLD:
        yield best, text


def _is_bare(clause: str) -> bool:
    """Whether a clause holds nothing but names and numbers, as in "in Tokyo"."""
    found = words(clause)
    return len(found) <= 2 or all(word.casefold() in STOPWORDS or not word[0].islower() for word in found)


def _split(text: str) -> Iterator[str]:
    text = _LIST.sub(lambda places: places[0].replace(", ", " and "), text)
    start = 0
    for cut in _CLAUSE.finditer(text):
        if text.count('"', 0, cut.start()) % 2 == 0:  # not inside a quotation
            yield text[start : cut.start()]
            start = cut.end()
    yield text[start:].rstrip(" .!?")
