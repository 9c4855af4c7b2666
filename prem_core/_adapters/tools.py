"""Tool choice, the form of an answer, and whether an answer is whole; for both adapters.

The rule of this file: what a framework's user writes becomes what the published schema says, and what the
model did not finish is never completed for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prem_core._adapters.content import is_whole_json
from prem_core._errors import InvalidParameterError, LengthFinishReasonError

#: What a function's or a schema's name may not hold.
_NOT_IN_A_NAME = re.compile(r"[^a-zA-Z0-9_-]")


def tool_choice(
    choice: Mapping[str, Any] | str | bool, tools: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | str:
    """The request's ``tool_choice``.

    Args:
        choice: "auto", "none"; "any", "required" or True for at least one call; a tool's name for that one,
            or a dict of OpenAI's that names it.
        tools: The tools offered, in the request's form.

    Raises:
        InvalidParameterError: It names no tool of these.
    """
    if choice is True or choice in ("any", "required"):
        return "required"
    if isinstance(choice, str) and choice in ("auto", "none"):
        return choice
    if isinstance(choice, Mapping):
        named = (choice.get("function") or choice.get("custom") or choice).get("name")
        whole = "type" in choice and len(choice) > 1
        wire = dict(choice) if whole else {"type": "function", "function": {"name": named}}
    else:
        named = choice
        wire = {"type": "function", "function": {"name": named}}
    names = [(tool.get("function") or tool.get("custom") or {}).get("name") for tool in tools]
    if named not in names:
        raise InvalidParameterError(
            f"tool_choice: no tool of that name was given; there are {', '.join(map(str, names)) or 'none'}",
            param="tool_choice",
        )
    return wire


def as_response_format(schema: Any) -> dict[str, Any] | None:
    """`schema` as ``response_format``, where it is a dict of OpenAI's already; else None."""
    if isinstance(schema, dict):
        if schema.get("type") in ("json_schema", "json_object", "text"):
            return schema
        if "name" in schema and isinstance(schema.get("schema"), dict):
            return {"type": "json_schema", "json_schema": schema}
    return None


def json_schema_format(
    name: str, schema: Mapping[str, Any], *, description: str | None = None, strict: bool | None = None
) -> dict[str, Any]:
    """The ``response_format`` that asks for JSON of this JSON Schema.

    Args:
        name: What the schema is called; characters that a name may not hold become underscores.
        schema: The JSON Schema.
        description: What it is for.
        strict: Whether the service must follow it to the letter; None leaves that to the service.
    """
    form: dict[str, Any] = {"name": _NOT_IN_A_NAME.sub("_", name), "schema": schema}
    if description:
        form["description"] = description
    if strict is not None:
        form["strict"] = strict
    return {"type": "json_schema", "json_schema": form}


def wants_json(request: Mapping[str, Any]) -> bool:
    """Whether the request asks for JSON, so that an answer cut short is of no use even without tool calls."""
    form = request.get("response_format")
    return isinstance(form, Mapping) and form.get("type") in ("json_object", "json_schema")


def raise_if_truncated(arguments: Iterable[str], text: str | None) -> None:
    """Look at an answer that reached its token limit.

    Args:
        arguments: The arguments of its tool calls.
        text: Its text, where JSON was asked for; else None.

    Raises:
        LengthFinishReasonError: The limit cut a tool call, or the JSON that was asked for.
    """
    calls = list(arguments)
    if not all(map(is_whole_json, calls)) or (text is not None and not calls and not is_whole_json(text)):
        raise LengthFinishReasonError


def read_arguments(text: str) -> dict[str, Any] | None:
    """A tool call's arguments, as the model wrote them; None where they are not a JSON object."""
    try:
        # An empty string is how some models write "no arguments".
        arguments = json.loads(text, strict=False) if text.strip() else {}
    except (ValueError, RecursionError):
        return None
    return arguments if isinstance(arguments, dict) else None


def format_findings(name: str, findings: Sequence[Mapping[str, Any]]) -> str:
    """What to say of an answer that is not a `name`: which fields, and never their values.

    Args:
        name: The Pydantic class that was wanted.
        findings: Pydantic's, without inputs and contexts.
    """
    where = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'the value'}: {e['msg']}" for e in findings[:5])
    return f"the answer does not fit {name}: {where}"
