"""The smallest valid value of a schema, for required properties that the prompt says nothing about.

Placeholders are plainly that: 0, false, 1970-01-01, a quote of the prompt. They keep the output valid.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from prem_core.enclave.extractive.patterns import shortest_match
from prem_core.enclave.extractive.schemas import Schema, Schemas, kinds

MISSING: Any = object()  # "there is no value", told apart from null, which is one

_FORMATS = {
    "date": "1970-01-01",
    "date-time": "1970-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "duration": "PT0S",
    "email": "unknown@example.invalid",
    "idn-email": "unknown@example.invalid",
    "uri": "about:blank",
    "url": "about:blank",
    "uuid": "00000000-0000-0000-0000-000000000000",
    "ipv4": "192.0.2.0",  # from the block that is kept for documentation
    "ipv6": "::",
    "hostname": "example.invalid",
}
# Members of an enum that say "not known" are the honest choice when nothing was found.
_UNKNOWN = ("unknown", "none", "n/a", "other", "unspecified", "neutral", "undefined")


def placeholder(
    schemas: Schemas, schema: Schema | bool, quote: Callable[[], str], seen: tuple[str, ...] = ()
) -> Any:
    """The smallest value valid under `schema`; MISSING where there is none (a schema that requires itself).

    `quote` gives a string of the prompt, a new one at each call as long as there are any.
    """
    resolved, followed = schemas.resolve(schema)
    if any(reference in seen for reference in followed):
        return MISSING
    seen += followed
    for value in _declared(resolved):
        if schemas.valid(value, schema):
            return value
    branches = [*resolved.get("anyOf", ()), *resolved.get("oneOf", ())]
    for branch in branches:
        outer = {name: part for name, part in resolved.items() if name not in ("anyOf", "oneOf")}
        value = placeholder(schemas, {"allOf": [outer, branch]}, quote, seen)
        if value is not MISSING and schemas.valid(value, schema):
            return value
    if branches:
        return MISSING
    for kind in sorted(kinds(resolved) or ["string"], key=lambda kind: kind != "null"):
        match kind:
            case "null":
                value = None
            case "boolean":
                value = False
            case "integer" | "number":
                value = _number(resolved, kind)
            case "string":
                value = _string(resolved, quote)
            case "array":
                value = _array(schemas, resolved, quote, seen)
            case _:
                value = _object(schemas, resolved, quote, seen)
        if value is not MISSING:
            return value
    return MISSING


def _declared(schema: Schema) -> list[Any]:
    values = [schema[name] for name in ("const", "default") if name in schema]
    members = list(schema.get("enum", ()))
    return values + sorted(members, key=lambda member: str(member).casefold() not in _UNKNOWN)


def _number(schema: Schema, kind: str) -> float:
    """Zero if it is allowed, else a number at or next to a bound."""
    low = max(schema.get("minimum", -math.inf), schema.get("exclusiveMinimum", -math.inf))
    high = min(schema.get("maximum", math.inf), schema.get("exclusiveMaximum", math.inf))
    step = schema.get("multipleOf") or (1 if kind == "integer" else None)
    candidates: list[float] = [0]
    for bound in (low, high):
        if math.isfinite(bound):
            around = range(-1, 3)
            candidates += [math.floor(bound / step) * step + i * step for i in around] if step else [bound]
            candidates += [] if step else [bound + 1, bound - 1]
    if math.isfinite(low) and math.isfinite(high):
        candidates.append((low + high) / 2)
    plain = Schemas({})
    value = next((value for value in candidates if plain.valid(value, {**schema, "type": kind})), 0)
    return int(value) if float(value).is_integer() else value


def _string(schema: Schema, quote: Callable[[], str]) -> str:
    if (shape := _FORMATS.get(schema.get("format", ""))) is not None:
        return shape
    if isinstance(schema.get("pattern"), str):
        return fit(shortest_match(schema["pattern"]), schema)
    return fit(quote(), schema)


def fit(text: str, schema: Schema) -> str:
    """`text` cut at a word to maxLength, or followed by dots up to minLength."""
    longest = schema.get("maxLength")
    if isinstance(longest, int) and len(text) > longest:
        cut = text[:longest]
        if not text[longest].isspace() and " " in cut:
            cut = cut[: cut.rindex(" ")]
        text = cut.rstrip() if len(cut.rstrip()) >= schema.get("minLength", 0) else text[:longest]
    return text.ljust(schema.get("minLength", 0), ".")


def _array(schemas: Schemas, schema: Schema, quote: Callable[[], str], seen: tuple[str, ...]) -> Any:
    leading = schema.get("prefixItems", [])
    items: list[Any] = []
    for i in range(schema.get("minItems", 0)):
        member = leading[i] if i < len(leading) else schema.get("items", True)
        value = placeholder(schemas, member, quote, seen)
        if schema.get("uniqueItems") and value in items:
            value = _another(schemas, member, value, items)
        if value is MISSING:
            return MISSING
        items.append(value)
    return items


def _another(schemas: Schemas, member: Schema | bool, value: Any, items: list[Any]) -> Any:
    """A valid value like `value` that is not among `items`: uniqueItems asks for it."""
    resolved, _ = schemas.resolve(member)
    others: list[Any] = list(resolved.get("enum", ()))
    if isinstance(value, bool):
        others.append(not value)
    elif isinstance(value, (int, float)):
        others += [value + i * resolved.get("multipleOf", 1) for i in range(1, len(items) + 1)]
    elif isinstance(value, str):
        others += [f"{value} {i}" for i in range(2, len(items) + 2)]
    return next((other for other in others if other not in items and schemas.valid(other, member)), value)


def _object(schemas: Schemas, schema: Schema, quote: Callable[[], str], seen: tuple[str, ...]) -> Any:
    properties = schema.get("properties", {})
    result: dict[str, Any] = {}
    for name in schema.get("required", ()):
        value = placeholder(
            schemas, properties.get(name, schema.get("additionalProperties", True)), quote, seen
        )
        if value is MISSING:
            return MISSING
        result[name] = value
    return result
