"""Tool choice, the form of an answer, and the arguments of tool calls, for both adapters.

What the model left unfinished is an error; it is never completed on the model's behalf.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from prem_core._errors import InvalidParameterError, LengthFinishReasonError

#: Characters that the name of a function or a schema may not have.
_NOT_IN_A_NAME = re.compile(r"[^a-zA-Z0-9_-]")


def tool_choice(
    choice: Mapping[str, Any] | str | bool, tools: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | str:
    """The request's ``tool_choice``.

    Args:
        choice: "auto", "none"; "any", "required" or True for at least one call; the name of one tool; or a dict that
            names it, in the form of OpenAI's Chat Completions or Responses API.
        tools: The tools offered, in the request's form.

    Raises:
        InvalidParameterError: It does not name one of these tools.
    """
    if choice is True or choice in ("any", "required"):
        return "required"
    if isinstance(choice, str) and choice in ("auto", "none"):
        return choice
    kind, name = "function", cast("Any", choice)
    if isinstance(choice, Mapping):
        kind = "custom" if "custom" in choice or choice.get("type") == "custom" else "function"
        # The Responses API has the name next to the type, the Chat Completions API one level deeper.
        named = choice.get(kind, choice)
        name = named.get("name") if isinstance(named, Mapping) else None
    names = [(tool.get("function") or tool.get("custom") or {}).get("name") for tool in tools]
    if name not in names:
        problem = (
            f"must name one of the tools: {', '.join(map(str, names))}" if names else "no tools were given"
        )
        raise InvalidParameterError(f"tool_choice: {problem}", param="tool_choice")
    return {"type": kind, kind: {"name": name}}


def as_response_format(schema: Any) -> dict[str, Any] | None:
    """`schema` as ``response_format`` if it is a dict in one of OpenAI's forms already, otherwise None."""
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
        name: Name of the schema; characters that a name may not have become underscores.
        schema: The JSON Schema.
        description: What the schema is for.
        strict: Whether the answer must match the schema exactly; None leaves that to the service.
    """
    form: dict[str, Any] = {"name": _NOT_IN_A_NAME.sub("_", name), "schema": schema}
    if description:
        form["description"] = description
    if strict is not None:
        form["strict"] = strict
    return {"type": "json_schema", "json_schema": form}


def requests_json(request: Mapping[str, Any]) -> bool:
    """Whether the request asks for JSON, in which case a truncated answer is unusable."""
    form = request.get("response_format")
    return isinstance(form, Mapping) and form.get("type") in ("json_object", "json_schema")


def raise_if_truncated(arguments: Iterable[str], text: str | None) -> None:
    """Check an answer that reached its token limit.

    Args:
        arguments: The arguments of its tool calls.
        text: Its text if JSON was requested, otherwise None.

    Raises:
        LengthFinishReasonError: A tool call's arguments, or the JSON, are incomplete.
    """
    calls = list(arguments)
    if not all(map(_is_json, calls)) or (text is not None and not calls and not _is_json(text)):
        raise LengthFinishReasonError


def are_truncated(arguments: str) -> bool:
    """Whether a tool call's arguments start as a JSON object and are not a complete one.

    Parsers for streamed JSON would close the open brackets, and a tool would run on arguments that the model did not
    finish. Arguments that do not even start as an object cannot be mistaken for one.
    """
    return arguments.lstrip().startswith("{") and not _is_json(arguments)


def read_arguments(text: str) -> dict[str, Any] | None:
    """A tool call's arguments, or None if they are not a JSON object."""
    try:
        # Some models write "no arguments" as an empty string.
        arguments = json.loads(text, strict=False) if text.strip() else {}
    except (ValueError, RecursionError):
        return None
    return arguments if isinstance(arguments, dict) else None


def _is_json(text: str) -> bool:
    try:
        # Not strict: a raw line break inside a string does not make JSON incomplete.
        json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return False
    return True


def format_findings(name: str, findings: Sequence[Mapping[str, Any]]) -> str:
    """The message for an answer that does not validate as `name`: which fields, and never their values.

    Args:
        name: The requested Pydantic class.
        findings: Pydantic's errors, without inputs and contexts.
    """
    where = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'the value'}: {e['msg']}" for e in findings[:5])
    return f"the answer does not fit {name}: {where}"
