"""JSON Schema, as much of it as tools and response formats use: references, merging and validity.

Not read: patternProperties, if/then/else, dependent*, contains, $dynamicRef and remote references.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeAlias

Schema: TypeAlias = Mapping[str, Any]

_LARGEST = ("minimum", "exclusiveMinimum", "minLength", "minItems")
_SMALLEST = ("maximum", "exclusiveMaximum", "maxLength", "maxItems")


class Schemas:
    """The schemas below one root, which local references ("#/$defs/Item") point into."""

    def __init__(self, root: Schema) -> None:
        self.root = root

    def resolve(self, schema: Schema | bool) -> tuple[Schema, tuple[str, ...]]:
        """`schema` with its references followed and allOf merged, and the references that were followed.

        A reference that leads nowhere or to itself constrains nothing.
        """
        followed: list[str] = []
        return self._resolve(schema, followed), tuple(followed)

    def _resolve(self, schema: Schema | bool, followed: list[str]) -> Schema:
        if isinstance(schema, bool):
            return {} if schema else {"not": {}}
        merged: dict[str, Any] = {key: value for key, value in schema.items() if key not in ("$ref", "allOf")}
        if isinstance(merged.get("items"), list):  # how drafts before 2020-12 write tuples
            merged["prefixItems"] = merged.pop("items")
            merged["items"] = merged.pop("additionalItems", True)
        parts: list[Schema | bool] = list(schema.get("allOf", ()))
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference not in followed:
            followed.append(reference)
            parts.append(self._target(reference))
        for part in parts:
            merged = _merge(self._resolve(part, followed), merged)
        return merged

    def _target(self, reference: str) -> Schema | bool:
        target: Any = self.root
        if not reference.startswith("#"):
            return {}
        for step in reference[1:].split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and step.isdigit() and int(step) < len(target):
                target = target[int(step)]
            elif isinstance(target, Mapping) and step in target:
                target = target[step]
            else:
                return {}
        return target if isinstance(target, (Mapping, bool)) else {}

    def valid(self, value: Any, schema: Schema | bool) -> bool:
        """Whether `value` satisfies `schema` (of the formats, only those the engine writes are checked)."""
        schema, _ = self.resolve(schema)
        if "const" in schema and not _same(value, schema["const"]):
            return False
        if "enum" in schema and not any(_same(value, member) for member in schema["enum"]):
            return False
        if "type" in schema and not any(is_type(value, kind) for kind in types(schema)):
            return False
        if "not" in schema and self.valid(value, schema["not"]):
            return False
        if "anyOf" in schema and not any(self.valid(value, branch) for branch in schema["anyOf"]):
            return False
        if "oneOf" in schema and sum(self.valid(value, branch) for branch in schema["oneOf"]) != 1:
            return False
        if isinstance(value, str):
            return _valid_string(value, schema)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return _valid_number(value, schema)
        if isinstance(value, list):
            return self._valid_array(value, schema)
        if isinstance(value, dict):
            return self._valid_object(value, schema)
        return True

    def _valid_array(self, value: list[Any], schema: Schema) -> bool:
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            return False
        if schema.get("uniqueItems") and any(_same(a, b) for i, a in enumerate(value) for b in value[:i]):
            return False
        leading = schema.get("prefixItems", [])
        rest = schema.get("items", True)
        return all(self.valid(item, leading[i] if i < len(leading) else rest) for i, item in enumerate(value))

    def _valid_object(self, value: dict[str, Any], schema: Schema) -> bool:
        properties = schema.get("properties", {})
        if any(name not in value for name in schema.get("required", ())):
            return False
        if not schema.get("minProperties", 0) <= len(value) <= schema.get("maxProperties", len(value)):
            return False
        others = schema.get("additionalProperties", True)
        return all(self.valid(inner, properties.get(name, others)) for name, inner in value.items())


def kinds(schema: Schema) -> list[str]:
    """The type names of a resolved schema, or else those its other keywords imply; empty if anything will do."""
    if declared := types(schema):
        return declared
    if "properties" in schema or "required" in schema:
        return ["object"]
    return ["array"] if "items" in schema or "prefixItems" in schema else []


def readable(schema: Any) -> bool:
    """Whether a JSON value is a schema in shape, so that reading it cannot fail half-way."""
    if not isinstance(schema, dict):
        return isinstance(schema, bool)
    for name, part in schema.items():
        if name in _SCHEMA:
            right = readable(part) or (
                name == "items" and isinstance(part, list) and all(map(readable, part))
            )
        elif name in _SCHEMAS:
            right = isinstance(part, list) and all(map(readable, part))
        elif name in _NAMED_SCHEMAS:
            right = isinstance(part, dict) and all(map(readable, part.values()))
        elif name in _NUMBERS:
            right = is_type(part, "number")
        elif name in _COUNTS:
            right = is_type(part, "integer") and part >= 0
        elif name == "required":
            right = isinstance(part, list) and all(isinstance(member, str) for member in part)
        elif name == "type":
            right = isinstance(part, str) or (
                isinstance(part, list) and all(isinstance(kind, str) for kind in part)
            )
        else:
            right = name != "enum" or isinstance(part, list)
        if not right:
            return False
    return True


_SCHEMA = {"items", "additionalProperties", "additionalItems", "not"}
_SCHEMAS = {"anyOf", "oneOf", "allOf", "prefixItems"}
_NAMED_SCHEMAS = {"properties", "$defs", "definitions"}
_NUMBERS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
_COUNTS = {"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"}


def types(schema: Schema) -> list[str]:
    """The type names a resolved schema allows; empty when it does not say."""
    declared = schema.get("type", [])
    return [declared] if isinstance(declared, str) else list(declared)


def is_type(value: Any, kind: str) -> bool:
    """Whether a JSON value is of the JSON Schema type `kind`."""
    match kind:
        case "null":
            return value is None
        case "boolean":
            return isinstance(value, bool)
        case "string":
            return isinstance(value, str)
        case "array":
            return isinstance(value, list)
        case "object":
            return isinstance(value, dict)
        case "integer":
            return not isinstance(value, bool) and (
                isinstance(value, int) or (isinstance(value, float) and value.is_integer())
            )
        case "number":
            return isinstance(value, (int, float)) and not isinstance(value, bool)
    return False


def _same(a: Any, b: Any) -> bool:
    # In Python True == 1; in JSON they differ.
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


def _merge(under: Schema, over: Schema) -> dict[str, Any]:
    merged = {**under, **over}
    for key in under.keys() & over.keys():
        if key == "properties":
            merged[key] = {**under[key], **over[key]}
            for name in under[key].keys() & over[key].keys():
                merged[key][name] = {"allOf": [under[key][name], over[key][name]]}
        elif key == "required":
            merged[key] = [*under[key], *(name for name in over[key] if name not in under[key])]
        elif key in _LARGEST:
            merged[key] = max(under[key], over[key])
        elif key in _SMALLEST:
            merged[key] = min(under[key], over[key])
        elif key == "enum":
            merged[key] = [
                member for member in over[key] if any(_same(member, other) for other in under[key])
            ]
    return merged


# Shapes of the formats that readers of the output (pydantic above all) insist on.
_FORMATS = {
    "date": re.compile(r"\d{4}-\d\d-\d\d"),
    "date-time": re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)"),
    "time": re.compile(r"\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)?"),
    "email": re.compile(r"[^@\s]+@[^@\s]+\.[^@\s.]+"),
    "uri": re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:\S+"),
    "uuid": re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"),
    "ipv4": re.compile(r"(?:\d{1,3}\.){3}\d{1,3}"),
}


def _valid_string(value: str, schema: Schema) -> bool:
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
        return False
    shape = _FORMATS.get(schema.get("format", ""))
    if shape and not shape.fullmatch(value):
        return False
    return matches_pattern(value, schema.get("pattern"))


def matches_pattern(value: str, pattern: Any) -> bool:
    """Whether `pattern` is absent, not readable as a Python regular expression, or found in `value`."""
    if not isinstance(pattern, str):
        return True
    try:
        return re.search(pattern, value) is not None
    except re.error:
        return True  # ECMA syntax that Python lacks cannot be checked here


def _valid_number(value: float, schema: Schema) -> bool:
    step = schema.get("multipleOf")
    return (
        value >= schema.get("minimum", value)
        and value <= schema.get("maximum", value)
        and ("exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"])
        and ("exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"])
        and (not step or abs(value / step - round(value / step)) < 1e-9)
    )
