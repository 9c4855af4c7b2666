# ruff: noqa: RUF001 - typographic quotes are what prompts hold.
"""Values for a JSON schema, taken from a text: labelled values, rows of tables, numbers, names and dates."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from prem_core.enclave.engines.base import EngineError
from prem_core.enclave.engines.quoting.text import keys, quote, sentences, words

Schema = Mapping[str, Any]
#: The keys of a label, and the value behind it.
Field = tuple[set[str], str]

#: What a search returns that finds nothing; None is a value.
MISSING: Final = object()

_LABEL = re.compile(
    r"(?:^|[\n,;|({>\"“]|[.!?]\s)[ \t]*[-*#>\"]*[ \t]*(?P<label>[^\W\d_][\w /.'-]{0,47}?)(?:[ \t]*\([^()\n]*\))?"
    r"[\"*]*[ \t]*(?::(?=[\s*\"])|=)[*\"]*"
)
_NUMBER = re.compile(r"(?<![\w.,-])-?\d+(?:[.,]\d+)*(?!\w)")
_QUOTED = re.compile(r"\"([^\"\n]+)\"|“([^”\n]+)”|(?<!\w)'([^'\n]+)'(?!\w)")
_NAMES = re.compile(r"[^\W\d_a-z][\w'’&-]*(?:,? [^\W\d_a-z][\w'’&-]*)*")
_DATE = re.compile(
    r"\d{4}-\d\d-\d\d|\d{1,2} [A-Z][a-z]+ \d{4}|[A-Z][a-z]+ \d{1,2}, \d{4}|\d{1,2}\.\d{1,2}\.\d{4}"
)
_DATE_FORMATS = ("%Y-%m-%d", "%d %B %Y", "%d %b %Y", "%B %d, %Y", "%b %d, %Y", "%d.%m.%Y")
_CELLS = re.compile(r"\s*\|\s*|\s{2,}|\t")

#: Values without a label are looked for in a text of this length at most. In a longer one they would be chance.
_PROSE: Final = 300


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
            raise EngineError("the request holds a JSON schema that is none") from None

    def object(self) -> dict[str, Any]:
        """An object that is valid under the schema; what the text does not hold is a placeholder."""
        return self._properties(self._root, self._fields)

    def valid(self, value: Any, schema: Schema | None = None) -> bool:
        """Whether `value` satisfies the schema, or a part of it."""
        definitions = {name: self._root[name] for name in ("$defs", "definitions") if name in self._root}
        return Draft202012Validator({**definitions, **(schema or self._root)}).is_valid(value)

    def _resolve(self, schema: Any) -> dict[str, Any]:
        """`schema` with its reference, or its only ``allOf``, put in place."""
        resolved: dict[str, Any] = dict(schema) if isinstance(schema, Mapping) else {}
        while "$ref" in resolved or len(resolved.get("allOf", ())) == 1:
            target: Any = self._root
            if reference := resolved.pop("$ref", None):
                for step in reference.removeprefix("#").strip("/").split("/"):
                    target = target.get(step, {})
            else:
                target = resolved.pop("allOf")[0]
            resolved = {**target, **resolved}
        return resolved

    def _object(self, schema: Schema, fields: Sequence[Field]) -> Any:
        found = self.found
        values = self._properties(schema, fields)
        return values if self.found > found else MISSING

    def _properties(self, schema: Schema, fields: Sequence[Field]) -> dict[str, Any]:
        schema = self._resolve(schema)
        required = set(schema.get("required", ()))
        values: dict[str, Any] = {}
        for name, part in schema.get("properties", {}).items():
            value = self._value(part, name, fields)
            if value is not MISSING:
                values[name] = value
            elif name in required:
                self.complete = False
                values[name] = self.placeholder(part, name)
        return values

    def _value(self, schema: Any, name: str, fields: Sequence[Field]) -> Any:
        schema = self._resolve(schema)
        if "const" in schema:
            return schema["const"]
        for option in schema.get("anyOf", schema.get("oneOf", ())):
            if (value := self._value(option, name, fields)) is not MISSING:
                return value
        kind = schema.get("type", "object" if "properties" in schema else None)
        kind = next((each for each in kind if each != "null"), None) if isinstance(kind, list) else kind
        if kind == "object":
            return self._object(schema, fields)
        if kind == "array" and (rows := self._rows(schema)):
            return rows
        for raw in [
            *_labelled(name, fields),
            *(self._unlabelled(schema, kind, name) if fields is self._fields else ()),
        ]:
            value = self._converted(raw, schema, kind)
            if value is not MISSING and self.valid(value, schema):
                self._used.append(raw)
                self.found += 1
                return value
        return MISSING

    def _unlabelled(self, schema: Schema, kind: Any, name: str) -> Iterator[str]:
        """What the text holds for a value without a label, the likeliest first."""
        if "enum" in schema:
            yield self._text
        if not self._prose or "enum" in schema:
            return
        if kind in ("integer", "number"):
            after = "|".join(map(re.escape, words(name)))
            yield from re.findall(rf"\b(?:{after})\b\W+(?:is |of )?(-?\d[\d.,]*)", self._text, re.I)
            yield from (found for found in _NUMBER.findall(self._text) if found not in self._used)
        elif kind == "string" and "format" in schema:
            yield self._text
        elif kind in ("string", "array"):
            texts = ["".join(found) for found in _QUOTED.findall(self._text)]
            for found in _NAMES.finditer(self._text):
                # The first word of a sentence is no name by its capital alone.
                alone = found[0] == self._text.strip(" .!?")
                if alone or " " in found[0] or re.search(r"[^\s.!?]\s*$", self._text[: found.start()]):
                    texts.append(found[0])
            yield from (
                each for each in texts if not any(each in used or used in each for used in self._used)
            )

    def _converted(self, raw: str, schema: Schema, kind: Any) -> Any:
        """`raw` as a value of the schema's type, or MISSING."""
        if "enum" in schema:
            spelled = [(found.start(), each) for each in schema["enum"] if (found := _word(each, raw))]
            return min(spelled, key=lambda each: each[0])[1] if spelled else MISSING
        if kind in ("integer", "number"):
            digits = _NUMBER.search(raw)
            return _number(digits[0]) if digits else MISSING
        if kind == "boolean":
            answer = re.search(r"\b(?:(yes|true|on)|no|not|none|false|off)\b", raw, re.I)
            return bool(answer[1]) if answer else MISSING
        if kind == "array":
            items = self._resolve(schema.get("items"))
            parts = [part.strip(" -*•\t") for part in re.split(r"[,;\n]| and ", raw)]
            values = [self._converted(part, items, items.get("type")) for part in parts if part]
            return [value for value in values if value is not MISSING] or MISSING
        if kind == "null":
            return None if raw.casefold() in ("none", "null", "-", "n/a") else MISSING
        if (form := schema.get("format")) in ("date", "date-time"):
            day = _date(raw)
            return day if day is MISSING or form == "date" else f"{day}T00:00:00Z"
        if form == "email":
            address = re.search(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+", raw)
            return address[0] if address else MISSING
        if pattern := schema.get("pattern"):
            match = re.search(pattern.removeprefix("^").removesuffix("$"), raw)
            return match[0] if match else MISSING
        return raw

    def _rows(self, schema: Schema) -> list[Any]:
        """The rows of the first table whose header has the names that the items need."""
        items = self._resolve(schema.get("items"))
        names = list(items.get("properties", {}))
        for header, rows in self._tables:
            if names and sum(bool(_best(name, header)) for name in names) * 2 > len(names):
                records = [list(zip(header, row, strict=True)) for row in rows]
                values = [self._object(items, record) for record in records]
                return [value for value in values if value is not MISSING]
        return []

    def placeholder(self, schema: Any, name: str = "") -> Any:
        """A plain value that is valid under a part of the schema: 0, false, a quotation."""
        schema = self._resolve(schema)
        for keyword in ("default", "const"):
            if keyword in schema:
                return schema[keyword]
        if "enum" in schema:
            return schema["enum"][0]
        if options := schema.get("anyOf", schema.get("oneOf")):
            return (
                None
                if any(option.get("type") == "null" for option in options)
                else self.placeholder(options[0], name)
            )
        kind = schema.get("type", "object" if "properties" in schema else "string")
        match next((each for each in kind if each != "null"), "null") if isinstance(kind, list) else kind:
            case "object":
                parts = schema.get("properties", {})
                return {each: self.placeholder(parts.get(each), each) for each in schema.get("required", ())}
            case "array":
                return [self.placeholder(schema.get("items"), name) for _ in range(schema.get("minItems", 0))]
            case "integer" | "number":
                low = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
                return max(0, low) if schema.get("maximum", schema.get("exclusiveMaximum", 1)) > 0 else low
            case "boolean":
                return False
            case "null":
                return None
        if schema.get("format") in ("date", "date-time"):
            return "1970-01-01" if schema["format"] == "date" else "1970-01-01T00:00:00Z"
        said = (
            quote(f"{name} {schema.get('description', '')}", [self._text], 1)
            or sentences(self._text)[:1]
            or ["none"]
        )
        return said[0][: schema.get("maxLength")].ljust(schema.get("minLength", 0), ".")


def _fields(text: str) -> Iterator[Field]:
    """The labelled values of a text in order, each with the keys of its label."""
    labels = list(_LABEL.finditer(text))
    for label, following in zip(labels, [*labels[1:], None], strict=False):
        value = text[label.end() : following.start() if following else len(text)]
        line, _, below = value.strip(" \t").partition("\n")
        # A value may stand below its label.
        value = (sentences(line) or [line])[0] if line.strip(' \t*"') else below.split("\n\n")[0]
        if value := value.strip(' \t\n*"|,;)}').removesuffix("."):
            yield keys(label["label"]), value


def _tables(text: str) -> Iterator[tuple[list[set[str]], list[list[str]]]]:
    """The tables of a text: the keys of each column's name, and the rows."""
    rows: list[list[str]] = []
    for line in [*text.splitlines(), ""]:
        cells = _CELLS.split(line.strip().strip("|").strip())
        if set("".join(cells)) and set("".join(cells)) <= set("-:= "):
            continue
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


def _best(name: str, header: Sequence[set[str]]) -> list[str]:
    return _labelled(name, [(label, "found") for label in header])


def _word(value: Any, text: str) -> re.Match[str] | None:
    return re.search(rf"(?<!\w){re.escape(str(value))}(?!\w)", text, re.I)


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
            try:
                return datetime.strptime(found, form).date().isoformat()
            except ValueError:
                continue
    return MISSING
