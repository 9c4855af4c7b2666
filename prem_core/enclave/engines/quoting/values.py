# ruff: noqa: RUF001 - typographic quotes are what prompts hold.
"""Values for a JSON schema, taken from a text: labelled values, rows of tables, numbers, names and dates."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from referencing import Registry

from prem_core.enclave.engines.base import EngineError
from prem_core.enclave.engines.quoting.text import keys, quote, sentences, words

Schema = Mapping[str, Any]
#: The keys of a label, and the value behind it.
Field = tuple[set[str], str]

#: What a search returns that finds nothing; None is a value.
MISSING: Final = object()

_LABEL = re.compile(
    r"(?:^|[\n,;|({>\"“]|[.!?]\s)[ \t]{0,8}[-*#>\"]{0,4} ?(?P<label>[^\W\d_][\w /.'-]{0,47}?)(?: \([^()\n]{0,30}\))?"
    r"[\"*]{0,2} ?(?::(?=[\s*\"])|=)[*\"]{0,2}"
)
_NUMBER = re.compile(r"(?<![\w.,-])-?\d+(?:[.,]\d+)*(?!\w)")
_QUOTED = re.compile(r"\"([^\"\n]+)\"|“([^”\n]+)”|(?<!\w)'([^'\n]+)'(?!\w)")
_NAME = re.compile(r"[^\W\d_a-z][\w'’&-]*(?:,? [^\W\d_a-z][\w'’&-]*)*")
_DATE = re.compile(r"\d{4}-\d\d-\d\d|\d{1,2} [A-Z][a-z]+ \d{4}|[A-Z][a-z]+ \d{1,2}, \d{4}")
_DATE_FORMATS = ("%Y-%m-%d", "%d %B %Y", "%d %b %Y", "%B %d, %Y", "%b %d, %Y")
_CELLS = re.compile(r"\||\s{2,}|\t")

#: Values without a label are looked for in a text of this length at most. In a longer one they would be chance.
_PROSE: Final = 300
#: Objects within objects, at most: a schema may refer to itself.
_MAX_DEPTH: Final = 8


class Values:
    """Values for one schema out of one text.

    Args:
        schema: The schema, with its definitions.
        text: The text to take the values from.
        prose: Whether to look for values without a label: by default in a short text only.

    Attributes:
        found: How many values the text held.
        complete: Whether it held every required one.
    """

    def __init__(self, schema: Schema, text: str, *, prose: bool | None = None) -> None:
        self.found = 0
        self.complete = True
        self._root = schema
        self._text = text
        self._prose = len(text) <= _PROSE if prose is None else prose
        self._used: list[str] = []
        self._fields = list(_fields(text))
        self._tables = list(_tables(text))
        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError:
            raise EngineError("the request holds a JSON schema that is not one") from None

    def object(self) -> dict[str, Any]:
        """An object for the schema. For what the text does not hold, it has placeholders."""
        return self._object(self._root, self._fields)

    def valid(self, value: Any, schema: Schema | None = None) -> bool:
        """Whether `value` satisfies the schema, or a part of it."""
        definitions = {name: self._root[name] for name in ("$defs", "definitions") if name in self._root}
        # With a registry of its own, the validator fetches no remote reference.
        validator = Draft202012Validator({**definitions, **(schema or self._root)}, registry=Registry())
        return validator.is_valid(value)

    def _resolve(self, schema: Any) -> dict[str, Any]:
        """`schema` with what it refers to put in its place."""
        resolved: dict[str, Any] = dict(schema) if isinstance(schema, Mapping) else {}
        for _ in range(_MAX_DEPTH):
            target: Any = self._root
            if reference := resolved.pop("$ref", None):
                for step in reference.removeprefix("#").strip("/").split("/"):
                    target = target.get(step) if isinstance(target, Mapping) else None
            elif len(resolved.get("allOf", ())) == 1:
                target = resolved.pop("allOf")[0]
            else:
                return resolved
            resolved = {**(target or {}), **resolved}
        raise RecursionError

    def _object(self, schema: Any, fields: Sequence[Field], depth: int = 0) -> dict[str, Any]:
        schema = self._resolve(schema)
        values: dict[str, Any] = {}
        for name, part in schema.get("properties", {}).items():
            value = self._value(part, name, fields, depth)
            if value is MISSING and name in schema.get("required", ()):
                self.complete = False
                value = self._placeholder(part, name)
            if value is not MISSING:
                values[name] = value
        return values

    def _value(self, schema: Any, name: str, fields: Sequence[Field], depth: int) -> Any:
        schema = self._resolve(schema)
        if "const" in schema:
            return schema["const"]
        for option in schema.get("anyOf", schema.get("oneOf", ())):
            if (value := self._value(option, name, fields, depth)) is not MISSING:
                return value
        kind = _type(schema)
        if kind == "object":
            found = self.found
            value = self._object(schema, fields, depth + 1) if depth < _MAX_DEPTH else MISSING
            return value if self.found > found else MISSING
        if kind == "array" and (rows := self._rows(schema, depth)):
            return rows
        candidates = _labelled(name, fields)
        if fields is self._fields:
            candidates += self._unlabelled(schema, kind, name)
        for raw in candidates:
            value = self._converted(raw, schema, kind)
            if value is not MISSING and self.valid(value, schema):
                self._used.append(raw)
                self.found += 1
                return value
        return MISSING

    def _unlabelled(self, schema: Schema, kind: Any, name: str) -> Iterator[str]:
        """What the text holds for a value without a label, the likeliest first."""
        if "enum" in schema or ("format" in schema and self._prose):
            yield self._text
        elif kind in ("integer", "number") and self._prose:
            name = "|".join(map(re.escape, words(name)))
            yield from re.findall(rf"\b(?:{name})\b\W+(?:is |of )?(-?\d[\d.,]*)", self._text, re.I)
            yield from (number for number in _NUMBER.findall(self._text) if number not in self._used)
        elif kind in ("string", "array") and self._prose:
            texts = ["".join(quoted) for quoted in _QUOTED.findall(self._text)]
            for found in _NAME.finditer(self._text):
                # The first word of a sentence is no name by its capital alone.
                alone = found[0] == self._text.strip(" .!?")
                if alone or " " in found[0] or re.search(r"[^\s.!?]\s*$", self._text[: found.start()]):
                    texts.append(found[0])
            taken = self._used + [value for _, value in self._fields]
            yield from (text for text in texts if not any(text in each or each in text for each in taken))

    def _converted(self, raw: str, schema: Schema, kind: Any) -> Any:
        """`raw` as a value of the schema's type, or MISSING."""
        if "enum" in schema:
            found = re.search(
                rf"(?<!\w)(?:{'|'.join(map(re.escape, map(str, schema['enum'])))})(?!\w)", raw, re.I
            )
            same = (each for each in schema["enum"] if found and str(each).casefold() == found[0].casefold())
            return next(same, MISSING)
        if kind in ("integer", "number"):
            digits = _NUMBER.search(raw)
            return _number(digits[0]) if digits else MISSING
        if kind == "boolean":
            answer = re.search(r"\b(?:(yes|true)|no|false)\b", raw, re.I)
            return bool(answer[1]) if answer else MISSING
        if kind == "array":
            items = self._resolve(schema.get("items"))
            parts = [part.strip(" -*\t") for part in re.split(r"[,;\n]| and ", raw)]
            values = [self._converted(part, items, _type(items)) for part in parts if part]
            return [value for value in values if value is not MISSING] or MISSING
        if kind == "null":
            return None if raw.casefold() in ("none", "null") else MISSING
        if (form := schema.get("format")) in ("date", "date-time"):
            day = _date(raw)
            return day if day is MISSING or form == "date" else f"{day}T00:00:00Z"
        if pattern := schema.get("pattern"):
            match = re.search(pattern.removeprefix("^").removesuffix("$"), raw)
            return match[0] if match else MISSING
        return raw

    def _rows(self, schema: Schema, depth: int) -> list[Any]:
        """The rows of the first table that has columns for more than half of what the items hold."""
        items = self._resolve(schema.get("items"))
        names = list(items.get("properties", {}))
        for header, rows in self._tables:
            columns = [(label, "a column") for label in header]
            if sum(bool(_labelled(name, columns)) for name in names) * 2 > len(names):
                return [self._object(items, list(zip(header, row, strict=True)), depth + 1) for row in rows]
        return []

    def _placeholder(self, schema: Any, name: str = "") -> Any:
        """A plain value for a part of the schema: 0, false, a quotation."""
        schema = self._resolve(schema)
        for keyword in ("default", "const"):
            if keyword in schema:
                return schema[keyword]
        if "enum" in schema:
            return schema["enum"][0]
        if options := schema.get("anyOf", schema.get("oneOf")):
            return None if {"type": "null"} in options else self._placeholder(options[0], name)
        match _type(schema):
            case "object":
                parts = schema.get("properties", {})
                return {each: self._placeholder(parts.get(each), each) for each in schema.get("required", ())}
            case "array":
                return [self._placeholder(schema.get("items"), name)] * schema.get("minItems", 0)
            case "integer" | "number":
                low = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
                return low if schema.get("maximum", schema.get("exclusiveMaximum", 1)) <= 0 else max(0, low)
            case "boolean":
                return False
            case "null":
                return None
        if schema.get("format") in ("date", "date-time"):
            return "1970-01-01" if schema["format"] == "date" else "1970-01-01T00:00:00Z"
        wanted = f"{name} {schema.get('description', '')}"
        quoted = quote(wanted, [self._text], 1) or sentences(self._text) or ["none"]
        return quoted[0][: schema.get("maxLength")].ljust(schema.get("minLength", 0), ".")


def _type(schema: Schema) -> Any:
    kind = schema.get("type", "object" if "properties" in schema else "string")
    return next((each for each in kind if each != "null"), "null") if isinstance(kind, list) else kind


def _fields(text: str) -> Iterator[Field]:
    """The labelled values of a text in order, each with the keys of its label."""
    labels = list(_LABEL.finditer(text))
    for label, following in zip(labels, [*labels[1:], None], strict=False):
        value = text[label.end() : following.start() if following else len(text)]
        line, _, below = value.strip(" \t").partition("\n")
        # A value may be on the line below its label.
        value = (sentences(line) or [line])[0] if line.strip(' \t*"') else below.split("\n\n")[0]
        if value := value.strip(' \t\n*"|,;)}').removesuffix("."):
            yield keys(label["label"]), value


def _tables(text: str) -> Iterator[tuple[list[set[str]], list[list[str]]]]:
    """The tables of a text: the keys of each column's name, and the rows."""
    rows: list[list[str]] = []
    for line in [*text.splitlines(), ""]:
        cells = [cell for each in _CELLS.split(line.strip(" \t|")) if (cell := each.strip())]
        if line and not line.strip(" \t|:-="):
            continue  # the rule below a header
        if rows and len(cells) != len(rows[0]):
            if len(rows) > 1:
                yield [keys(cell) for cell in rows[0]], rows[1:]
            rows = []
        if len(cells) > 1:
            rows.append(cells)


def _labelled(name: str, fields: Sequence[Field]) -> list[str]:
    """The values whose labels fit a property's name, the best one first."""
    wanted = keys(name)
    fits = [(len(label & wanted) / len(label | wanted), value) for label, value in fields if label]
    return [value for fit, value in sorted(fits, key=lambda each: -each[0]) if fit >= 0.5]


def _number(text: str) -> int | float:
    """A number as it is written, with a point or a comma before its decimals."""
    whole, mark, decimals = text.rpartition("." if text.rfind(".") > text.rfind(",") else ",")
    if not mark or (len(decimals) == 3 and (mark == "," or text.count(".") > 1 or "," in text)):
        return int(re.sub("[.,]", "", text))
    value = float(f"{re.sub('[.,]', '', whole)}.{decimals}")
    return int(value) if value.is_integer() else value


def _date(text: str) -> Any:
    for found in _DATE.findall(text):
        for form in _DATE_FORMATS:
            with suppress(ValueError):
                return datetime.strptime(found, form).date().isoformat()
    return MISSING
