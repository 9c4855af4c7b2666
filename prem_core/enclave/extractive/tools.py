# ruff: noqa: RUF001 - typographic quotes, dashes and full-width stops are what prompts hold.
"""Choosing tools and their arguments: which tool each clause of a request asks for, by name or description.

A request is cut into clauses at "and", "then", commas and sentence ends; a clause belongs to the tool its words
fit best, or goes on with the one before. Each clause is then read by the schema of its tool.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prem_core.enclave.engines.base import EngineError
from prem_core.enclave.extractive.clauses import fragments
from prem_core.enclave.extractive.material import Material
from prem_core.enclave.extractive.prompt import Answered, Prompt
from prem_core.enclave.extractive.schemas import Schema, Schemas, readable, types
from prem_core.enclave.extractive.values import Found, extract
from prem_core.enclave.extractive.words import STOPWORDS, WORD, identifier_words, stem


@dataclass(frozen=True)
class Call:
    """A tool call: the tool's name and its arguments."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Tool:
    """A function tool and the words that ask for it."""

    name: str
    parameters: Schema
    name_words: frozenset[str]
    description_words: frozenset[str]
    parameter_words: frozenset[str]
    mention: re.Pattern[str]


# Words that say nothing about what a tool does, beside the stopwords.
_GENERIC_WORDS = """call fetch find function get input lookup make my obtain output parameter perform result
retrieve return run string tool value useful provide integer int str take two number
name default true false"""
_GENERIC = frozenset(stem(word) for word in _GENERIC_WORDS.split())
# The operators of arithmetic, by the names of the tools that do it.
_OPERATORS = {
    "+": "add", "plus": "add", "sum": "add", "total": "add", "addition": "add", "adder": "add",
    "-": "subtract", "minus": "subtract", "difference": "subtract",
    "*": "multiply", "×": "multiply", "times": "multiply", "product": "multiply", "multiplication": "multiply",
    "/": "divide", "÷": "divide", "divided": "divide", "division": "divide",
}  # fmt: skip
_SAME = {stem(word): stem(name) for word, name in _OPERATORS.items() if word.isalpha()}
_OPERATOR = re.compile(r"(?<=[\d)])\s*([-+*/×÷])\s*(?=[\d(-])")

_MENTIONED = 10.0  # the tool's very name is in the text
# What words must add up to under "auto": a whole name counts 2, a word of the description 0.6.
_THRESHOLD = 1.0


def _terms(text: str) -> frozenset[str]:
    words = (word for word in WORD.findall(text) if word.casefold() not in STOPWORDS)
    found = {_SAME.get(stem(word), stem(word)) for word in words}
    return frozenset(found | {stem(_OPERATORS[sign]) for sign in _OPERATOR.findall(text)})


def read_tools(params: Mapping[str, Any]) -> list[Tool]:
    """The function tools of schema-valid params, in order. Raises EngineError 400 for custom tools."""
    tools = []
    for tool in params.get("tools") or ():
        if tool["type"] != "function":
            raise EngineError("tools of type custom are not supported by this engine", param="tools")
        function = tool["function"]
        parameters = function.get("parameters") or {"type": "object"}
        if not readable(parameters):
            raise EngineError("tools hold parameters that are no JSON schema", param="tools")
        properties = Schemas(parameters).resolve(parameters)[0].get("properties", {})
        spoken = r"[\s_-]*".join(re.escape(word) for word in identifier_words(function["name"]))
        name_words = _terms(" ".join(identifier_words(function["name"])))
        spelled = " ".join(word for name in properties for word in identifier_words(name))
        tools.append(
            Tool(
                name=function["name"],
                parameters=parameters,
                name_words=name_words - _GENERIC or name_words,
                description_words=_terms(str(function.get("description") or "")) - _GENERIC,
                parameter_words=_terms(spelled) - _GENERIC,
                mention=re.compile(rf"(?<!\w){spoken or re.escape(function['name'])}(?!\w)", re.I),
            )
        )
    return tools


def choose_calls(params: Mapping[str, Any], prompt: Prompt) -> list[Call]:
    """The tool calls to make now, in the order asked for; empty when the reply is text.

    auto: what the request asks for and this turn has not answered yet. required: the same, but at least one.
    A named function: exactly one call of it. none: no call. Raises EngineError 400 for a choice that cannot be met.
    """
    tools = read_tools(params)
    choice = params.get("tool_choice", "auto")
    if isinstance(choice, Mapping):
        if choice["type"] != "function":
            raise EngineError(
                "tool_choice of type custom is not supported by this engine", param="tool_choice"
            )
        named = [tool for tool in tools if tool.name == choice["function"]["name"]]
        if not named:
            raise EngineError("tool_choice names a function that is not in tools", param="tool_choice")
        return [_forced(named, prompt)]
    if choice == "required" and not tools:
        raise EngineError("tool_choice requires a tool, but tools is empty", param="tool_choice")
    if choice == "none" or not tools:
        return []
    asked = list(_asked(tools, prompt))
    calls = _unanswered(asked, prompt.answered)
    return calls or ([_forced(tools, prompt)] if choice == "required" else [])


def _forced(tools: Sequence[Tool], prompt: Prompt) -> Call:
    """A call of the best tool for the whole request, one that this turn has not called before if there is any."""
    called = {answered.name for answered in prompt.answered}
    fresh = [tool for tool in tools if tool.name not in called] or list(tools)
    wanted = _terms(prompt.asking)
    tool = max(fresh, key=lambda tool: _score(tool, prompt.asking, wanted))
    clauses = [clause for chosen, clause in _clauses([tool], prompt.asking) if chosen]
    text = clauses[0] if clauses and not prompt.answered else prompt.asking
    return Call(tool.name, _arguments(tool, text, prompt).value)


def _unanswered(asked: Sequence[Call], answered: Sequence[Answered]) -> list[Call]:
    """Those of `asked` without a result: first exact matches go, then one call per result of the same tool.

    A result of the same tool with other arguments counts, or a client that words them differently would be asked
    for the same call for ever.
    """
    left = list(asked)
    inexact = []
    for result in answered:
        exact = next((call for call in left if call == Call(result.name, result.arguments)), None)
        if exact:
            left.remove(exact)
        else:
            inexact.append(result.name)
    for name in inexact:
        same = next((call for call in left if call.name == name), None)
        if same:
            left.remove(same)
    return left


def _asked(tools: Sequence[Tool], prompt: Prompt) -> Iterator[Call]:
    made: list[Call] = []
    for tool, clause in _clauses(tools, prompt.asking):
        if tool is None or _refused(tool, clause):
            continue
        for arguments in _each(tool, clause, prompt):
            call = Call(tool.name, arguments)
            if call not in made:
                made.append(call)
                yield call


def _refused(tool: Tool, clause: str) -> bool:
    """Whether the clause says not to use the tool."""
    mention = tool.mention.search(clause)
    return bool(mention and _NEGATION.search(clause[max(0, mention.start() - 40) : mention.start()]))


_NEGATION = re.compile(r"\b(?:don't|do not|never|without)\s+(?:\w+\s+){0,3}$", re.I)


def _score(tool: Tool, text: str, wanted: frozenset[str]) -> float:
    """How strongly `text`, with the terms `wanted`, asks for the tool."""
    score = 2.0 * len(tool.name_words & wanted) / len(tool.name_words) if tool.name_words else 0.0
    score += 0.6 * min(3, len((tool.description_words - tool.name_words) & wanted))
    score += 0.4 * min(2, len((tool.parameter_words - tool.name_words - tool.description_words) & wanted))
    capitals = {stem(word) for word in WORD.findall(text) if word[:1].isupper()}
    score += 0.4 * bool(tool.description_words & capitals & wanted)
    if tool.mention.search(text):
        # The longer of two names that both match is the one meant: magic_function_no_args, not magic_function.
        score += _MENTIONED + len(tool.name) / 100
    return score


# -- clauses


def _clauses(tools: Sequence[Tool], text: str) -> list[tuple[Tool | None, str]]:
    """The clauses of a request with the tool each asks for; None for a leading clause that asks for none."""
    clauses: list[tuple[Tool | None, str]] = []
    for fragment in fragments(text):
        wanted = _terms(fragment)
        scored = [(_score(tool, fragment, wanted), -position) for position, tool in enumerate(tools)]
        best, position = max(scored)
        tool = tools[-position] if best >= _THRESHOLD else None
        previous = clauses[-1] if clauses else None
        if previous and (tool is None or (tool is previous[0] and not _complete(tool, fragment))):
            clauses[-1] = (previous[0], previous[1] + fragment)
        else:
            clauses.append((tool, fragment))
    if not any(tool for tool, _ in clauses):
        # No clause alone asks for a tool, but the whole may: "It is late. What is the value of f(3)?"
        wanted = _terms(text)
        best, position = max((_score(tool, text, wanted), -position) for position, tool in enumerate(tools))
        if best >= _THRESHOLD:
            return [(tools[-position], text)]
    return clauses


def _complete(tool: Tool, clause: str) -> bool:
    """Whether a clause has every required argument by itself."""
    return extract(tool.parameters, Material(clause, "clause")).complete


# -- arguments


def _each(tool: Tool, clause: str, prompt: Prompt) -> Iterator[Mapping[str, Any]]:
    """The arguments of every call a clause asks for: "the weather in Paris and in Rome" asks for two."""
    called = _calls_in_code(tool, clause)
    if called:
        yield from called
        return
    whole = _arguments(tool, clause, prompt)
    if not whole.complete and not tool.mention.search(clause):
        return  # asked for in passing at most, and nothing to call it with
    parts = fragments(clause)
    first = next((i for i in range(1, len(parts)) if _complete(tool, "".join(parts[:i]))), len(parts))
    properties = Schemas(tool.parameters).resolve(tool.parameters)[0].get("properties", {})
    has_array = any("array" in types(part) for part in properties.values() if isinstance(part, Mapping))
    if first == len(parts) or has_array or not properties:
        yield whole.value
        return
    base = _arguments(tool, "".join(parts[:first]), prompt).value
    more = [_varied(tool, base, fragment) for fragment in parts[first:]]
    if not any(more):
        yield whole.value
        return
    yield base
    yield from (arguments for arguments in more if arguments)


def _varied(tool: Tool, base: Mapping[str, Any], fragment: str) -> Mapping[str, Any] | None:
    """The arguments of one more call, if `fragment` alone gives what the tool requires, and gives it anew."""
    resolved, _ = Schemas(tool.parameters).resolve(tool.parameters)
    required = resolved.get("required") or list(resolved.get("properties", {}))[:1]
    schema = {**tool.parameters, **resolved, "required": required}
    found = extract(schema, Material(fragment.rstrip(" .,;!?\n"), "clause"))
    new = found.complete and found.count and any(found.value[name] != base.get(name) for name in required)
    return {**base, **found.value} if new and len(fragment.split()) <= _MAX_ITEM_WORDS else None


_MAX_ITEM_WORDS = 8  # "and in Tokyo", "and for Rome tomorrow": a longer fragment says something else


def _arguments(tool: Tool, clause: str, prompt: Prompt) -> Found:
    if called := _calls_in_code(tool, clause):
        return Found(called[0], 1, True)
    around = [prompt.request, *(result.text for result in prompt.answered), *prompt.material]
    background = "\n".join(text for text in around if text != clause)
    material = Material(tool.mention.sub(lambda found: " " * len(found[0]), clause), "clause")
    found = extract(tool.parameters, material, background=background, topic=clause)
    return found if isinstance(found.value, dict) else Found({}, 0, False)


def _calls_in_code(tool: Tool, clause: str) -> list[Mapping[str, Any]]:
    """Arguments written as a call, "f(3)" or "f(a=1, b='x')", where they are valid."""
    resolved, _ = Schemas(tool.parameters).resolve(tool.parameters)
    schemas = Schemas(tool.parameters)
    names = list(resolved.get("properties", {}))
    calls: list[Mapping[str, Any]] = []
    for found in re.finditer(rf"(?<!\w){re.escape(tool.name)}\(([^()\n]{{0,1000}})\)", clause):
        arguments: dict[str, Any] = {}
        for position, written in enumerate(_ARGUMENT.finditer(found[1])):
            name = written["name"] or (names[position] if position < len(names) else "")
            arguments[name] = _literal(written["value"].strip())
        if schemas.valid(arguments, tool.parameters) and "" not in arguments:
            calls.append(arguments)
    return calls


_ARGUMENT = re.compile(
    r"\s*(?:(?P<name>\w+)\s*[=:]\s*)?(?P<value>\"[^\"]*\"|'[^']*'|\[[^\]]*\]|[^,\s][^,]*)\s*(?:,|$)"
)


def _literal(text: str) -> Any:
    if len(text) > 1 and text[0] == text[-1] == "'":
        return text[1:-1]
    try:
        return json.loads({"True": "true", "False": "false", "None": "null"}.get(text, text))
    except ValueError:
        return text
