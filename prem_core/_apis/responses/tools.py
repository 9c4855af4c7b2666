"""The tools of a request, and the choice among them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final

from prem_core._apis.responses.reading import (
    invalid,
    name_of,
    read_list,
    read_object,
    read_text,
    unsupported,
)

#: The only parameter of the function that stands for a custom tool.
_INPUT: Final = "input"


@dataclass(slots=True)
class Tools:
    """The tools of a request in both forms.

    Attributes:
        params: `tools` and `tool_choice` of the chat; without those that were not given.
        echo: `tools` as the response repeats them.
        custom: Names of the custom tools. The model is given a function with one string in place of each.
    """

    params: dict[str, Any] = field(default_factory=dict)
    echo: list[dict[str, Any]] = field(default_factory=list)
    custom: set[str] = field(default_factory=set)


def read_tools(tools: Any, choice: Any) -> Tools:
    """The tools and the choice among them.

    Raises:
        ApiError: One is not valid, or is not a function or a custom tool.
    """
    read = Tools()
    functions = []
    for position, value in enumerate(read_list(tools, "tools") if tools is not None else ()):
        param = f"tools.{position}"
        tool = read_object(value, param)
        kind = tool.get("type")
        name = read_text(tool.get("name"), f"{param}.name") if kind in ("function", "custom") else ""
        if kind == "function":
            functions.append(_function(tool, name))
            read.echo.append(
                {
                    "type": "function",
                    "name": name,
                    "description": tool.get("description"),
                    "parameters": tool.get("parameters"),
                    "strict": tool.get("strict"),
                }
            )
        elif kind == "custom":
            functions.append(_custom(tool, name, param))
            read.custom.add(name)
            read.echo.append({**tool, "type": "custom"})
        else:
            raise unsupported(
                f"{param}.type",
                f"Prem's API has no {name_of(kind)} tool: it has tools of type function and custom, "
                "which your program runs. Remove this tool, or write a function for it",
            )
    if choice is not None:
        functions, read.params["tool_choice"] = _choice(functions, choice)
    if functions:
        read.params["tools"] = functions
    elif tools is not None:
        read.params.pop("tool_choice", None)  # without tools there is no choice
    return read


def custom_arguments(text: str) -> str:
    """The arguments of the function that stands for a custom tool."""
    return json.dumps({_INPUT: text}, ensure_ascii=False)


def custom_input(arguments: str) -> str:
    """The text for a custom tool: the inverse of `custom_arguments`, or what the model wrote in its place."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    text = value.get(_INPUT) if isinstance(value, dict) else None
    return text if isinstance(text, str) else arguments


def _function(tool: dict[str, Any], name: str) -> dict[str, Any]:
    given = {key: tool[key] for key in ("description", "parameters", "strict") if tool.get(key) is not None}
    return {"type": "function", "function": {"name": name, **given}}


def _custom(tool: dict[str, Any], name: str, param: str) -> dict[str, Any]:
    form = tool.get("format")
    if form is not None and read_object(form, f"{param}.format").get("type") != "text":
        raise unsupported(f"{param}.format", "Prem's API has no grammars; only the format text is possible")
    schema = {
        "type": "object",
        "properties": {_INPUT: {"type": "string", "description": "The tool's input, as plain text."}},
        "required": [_INPUT],
        "additionalProperties": False,
    }
    return _function({**tool, "parameters": schema, "strict": None}, name)


def _choice(functions: list[dict[str, Any]], value: Any) -> tuple[list[dict[str, Any]], Any]:
    """The functions that may be called, and the choice among them."""
    if isinstance(value, str):
        return functions, value
    choice = read_object(value, "tool_choice")
    kind = choice.get("type")
    if kind in ("function", "custom"):
        name = read_text(choice.get("name"), "tool_choice.name")
        return functions, {"type": "function", "function": {"name": name}}
    if kind == "allowed_tools":
        allowed = set()
        for position, tool in enumerate(read_list(choice.get("tools"), "tool_choice.tools")):
            param = f"tool_choice.tools.{position}"
            allowed.add(read_text(read_object(tool, param).get("name"), f"{param}.name"))
        kept = [tool for tool in functions if tool["function"]["name"] in allowed]
        if not kept:
            raise invalid("tool_choice.tools", "names none of the tools")
        return kept, choice.get("mode") or "auto"
    raise unsupported("tool_choice.type", f"Prem's API has no {name_of(kind)} tool")
