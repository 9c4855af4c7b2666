# ruff: noqa: RUF001 - typographic quotes, dashes and full-width stops are what prompts hold.
"""Values for a JSON Schema from a text: the engine's extraction, shared by tools and response formats.

Labelled fields are matched to properties first, all at once and best match first; then each property looks for
a value of its type near its words; what is required and not found becomes a placeholder (see placeholders.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from prem_core.enclave.extractive import readings
from prem_core.enclave.extractive.keys import key, keys, label_keys, property_keys
from prem_core.enclave.extractive.layout import Field, Table
from prem_core.enclave.extractive.material import Material
from prem_core.enclave.extractive.mentions import mentioned_at, without_listings
from prem_core.enclave.extractive.nearest import clusters, nearest_number
from prem_core.enclave.extractive.placeholders import MISSING, placeholder
from prem_core.enclave.extractive.quotes import Quotes
from prem_core.enclave.extractive.readings import Read
from prem_core.enclave.extractive.schemas import Schema, Schemas, types
from prem_core.enclave.extractive.strings import asks_for_text, currency_finder, find_string
from prem_core.enclave.extractive.wants import Want, assign_columns, match
from prem_core.enclave.extractive.words import STOPWORDS, WORD, sentences


@dataclass(frozen=True)
class Found:
    """A value, how many of its leaves were read from the text, and whether none is a placeholder."""

    value: Any
    count: int
    complete: bool


_NOTHING = Found(MISSING, 0, False)


@dataclass(frozen=True)
class _Hole:
    """Stands in a found object for a required value that the text does not have, until all is found."""

    want: Want


def extract(schema: Schema, material: Material, *, background: str = "", topic: str = "") -> Found:
    """A value for `schema` from `material`; valid wherever the schema can be satisfied at all.

    background: text searched for what `material` does not hold. topic: the question, to choose quotes by.
    """
    return _Extraction(schema, material, Material(background), topic).run()


class _Extraction:
    def __init__(self, schema: Schema, material: Material, background: Material, topic: str) -> None:
        self._schemas = Schemas(schema)
        self._root = schema
        self._material = material
        self._background = background
        self._quotes = Quotes([material.text, background.text], topic)

    def run(self) -> Found:
        want = self._want(self._root)
        found = self._find(want, self._material)
        value = self._filled(_Hole(want) if found.value is MISSING else found.value)
        if not self._schemas.valid(value, self._root):
            value = self._repaired(value, want)
        return Found(value, found.count, found.complete)

    # -- what is wanted

    def _want(self, schema: Schema | bool) -> Want:
        resolved, followed = self._schemas.resolve(schema)
        return Want(resolved, words=label_keys(str(resolved.get("title", ""))), seen=followed)

    def _property(self, schema: Schema | bool, name: str, parent: Want, required: bool = True) -> Want:
        inner = self._inside(schema, parent)
        return replace(
            inner, words=property_keys(name), prefix=parent.words | parent.prefix, required=required
        )

    def _inside(self, schema: Schema | bool, parent: Want) -> Want:
        """A part without a name of its own: an array's item, a branch of anyOf."""
        resolved, followed = self._schemas.resolve(schema)
        if any(reference in parent.seen for reference in followed):
            resolved = {"not": {}}  # a schema inside itself: one level is read, so that reading ends
        description = WORD.findall(str(resolved.get("description", "")))
        hints = frozenset(key(word) for word in description if word.casefold() not in STOPWORDS)
        return replace(parent, schema=resolved, hints=hints, seen=parent.seen + followed)

    def _branches(self, want: Want) -> list[Want]:
        """The alternatives of anyOf, oneOf or a list of types, each merged with what stands beside them."""
        schema = want.schema
        beside = {name: part for name, part in schema.items() if name not in ("anyOf", "oneOf")}
        branches: list[Schema] = [
            {"allOf": [beside, branch]} for branch in (*schema.get("anyOf", ()), *schema.get("oneOf", ()))
        ]
        if not branches and len(types(schema)) > 1:
            branches = [{**schema, "type": kind} for kind in types(schema)]
        wants = (replace(self._inside(branch, want), hints=want.hints) for branch in branches)
        return [branch for branch in wants if branch.kind != ["null"] and not branch.impossible]

    def _nullable(self, schema: Schema) -> bool:
        """Whether null is a declared choice; a schema that says nothing allows null, but does not mean it."""
        return bool(types(schema) or schema.keys() & _DECLARING) and self._schemas.valid(None, schema)

    # -- finding in running text

    def _find(self, want: Want, material: Material) -> Found:
        schema = want.schema
        if want.impossible:
            return _NOTHING
        if "const" in schema:
            return Found(schema["const"], int(mentioned_at(material.text, schema["const"]) >= 0), True)
        if "enum" in schema:
            return self._find_member(want, material)
        if branches := self._branches(want):
            return self._find_branch(branches, material)
        match want.kind:
            case ["object"]:
                return self._find_object(want, material)
            case ["array"]:
                return self._find_array(want, material)
            case ["boolean"]:
                return self._find_boolean(want, material)
            case ["integer"] | ["number"]:
                return self._find_number(want, material)
            case ["string"]:
                return self._find_string(want, material)
            case []:
                return self._find_untyped(want, material)
        return _NOTHING

    def _find_branch(self, branches: Sequence[Want], material: Material) -> Found:
        """The branch that finds most; what the others used is free again."""
        best, before = _NOTHING, list(material.taken)
        after = before
        for branch in branches:
            material.taken = list(before)
            found = self._find(branch, material)
            if found.count > best.count:
                best, after = found, material.taken
        material.taken = after
        return best

    def _find_member(self, want: Want, material: Material) -> Found:
        members = [member for member in want.schema["enum"] if self._schemas.valid(member, want.schema)]
        text = without_listings(material.text, members)
        places = [(place, member) for member in members if (place := mentioned_at(text, member)) >= 0]
        if not places:
            return _NOTHING
        near = [start for share, start, _ in clusters(material, want.words) if share >= 0.5][:1]
        # Close to the property's own words, if they are there; else the first mention.
        place, member = min(places, key=lambda found: abs(found[0] - near[0]) if near else found[0])
        return Found(member, 1, True)

    def _find_boolean(self, want: Want, material: Material) -> Found:
        for share, start, end in clusters(material, want.words):
            if share >= 0.5:
                before, after = material.text[max(0, start - 20) : start], material.text[end : end + 12]
                denied = _DENIED_BEFORE.search(before) or _DENIED_AFTER.match(after)
                return Found(not denied, 1, True)
        return _NOTHING

    def _find_number(self, want: Want, material: Material) -> Found:
        def fits(value: Any) -> bool:
            return self._schemas.valid(value, want.schema)

        free = list(material.free(material.numbers))
        read = nearest_number(free, material, want.words, fits)
        if read is None and want.required and (material.kind != "document" or len(material.text) < _SHORT):
            read = next((read for read in free if fits(read.value)), None)
        if read is None:
            return _NOTHING
        material.take(read.start, read.end)
        return Found(read.value, 1, True)

    def _find_untyped(self, want: Want, material: Material) -> Found:
        free = list(material.free(material.numbers))
        if number := nearest_number(free, material, want.words, lambda _: True):
            material.take(number.start, number.end)
            return Found(number.value, 1, True)
        return self._find_string(want, material)

    def _find_string(self, want: Want, material: Material) -> Found:
        currencies = currency_finder(want.words)
        kind = str(want.schema.get("format", ""))
        reads: Iterable[Read] = currencies(material) if currencies else ()
        read = next(material.free(reads), None)
        read = read or find_string(material, want.words, kind, want.required)
        value = MISSING if read is None else self._as_string(str(read.value), want.schema)
        if value is MISSING and isinstance(want.schema.get("pattern"), str):
            value, read = self._matching_pattern(want.schema, material)
        if read is None or value is MISSING:
            return _NOTHING
        material.take(read.start, read.end)
        return Found(value, 1, True)

    def _matching_pattern(self, schema: Schema, material: Material) -> tuple[Any, Read | None]:
        tokens = (Read(token[0], token.start(), token.end()) for token in _CHUNK.finditer(material.text))
        for token in material.free(tokens):
            text = str(token.value).strip(".,;:()\"'")
            if text and self._schemas.valid(text, schema):
                return text, token
        return MISSING, None

    def _as_string(self, text: str, schema: Schema) -> Any:
        for candidate in (text, text.replace(" ", ""), text.upper(), text.lower()):
            if self._schemas.valid(candidate, schema):
                return candidate
        return MISSING

    # -- objects

    def _find_object(self, want: Want, material: Material) -> Found:
        properties = want.schema.get("properties", {})
        required = want.schema.get("required", ())
        wants = {
            name: self._property(part, name, want, name in required) for name, part in properties.items()
        }
        found = self._labelled(wants, material)
        for name, part in wants.items():
            if name not in found and (read := self._find(part, material)).count:
                found[name] = read
        if material is self._material and self._background.text:
            missing = {name: part for name, part in wants.items() if name not in found}
            found |= self._labelled(missing, self._background)
            for name, part in missing.items():
                if name not in found and part.required and (read := self._find(part, self._background)).count:
                    found[name] = read
        result: dict[str, Any] = {}
        complete = True
        for name, part in wants.items():
            if name in found:
                result[name] = found[name].value
                complete &= found[name].complete
            elif part.required:
                nullable = self._nullable(part.schema)
                result[name] = None if nullable else _Hole(part)
                complete &= nullable
        others = want.schema.get("additionalProperties")
        if isinstance(others, dict) and others:
            result |= self._open_fields(others, want, material)
        for name in required:
            if name not in result:
                result[name] = _Hole(self._property(others if isinstance(others, dict) else True, name, want))
                complete = False
        count = sum(read.count for read in found.values())
        count += sum(not isinstance(result[name], _Hole) for name in result.keys() - wants.keys())
        return Found(result, count, complete)

    def _open_fields(self, others: Schema, parent: Want, material: Material) -> dict[str, Any]:
        """Fields of an object with free keys: every labelled value that can be read by the schema of its values."""
        want = self._inside(others, parent)
        result: dict[str, Any] = {}
        for labelled in material.fields:
            label = _label_text(material.text, labelled)
            if label and label not in parent.schema.get("properties", ()) and label not in result:
                value = self._read(want, labelled.text)
                if value.value is not MISSING:
                    result[label] = value.value
        return result

    def _labelled(self, wants: dict[str, Want], material: Material) -> dict[str, Found]:
        """Properties whose label is in the text: best matches first, no field and no property used twice."""
        pairs: list[tuple[float, int, int, str, Field]] = []
        for position, (name, want) in enumerate(wants.items()):
            keys = want.words | want.prefix | want.hints
            candidates = {labelled for part in keys for labelled in material.fields_by_key.get(part, ())}
            for labelled in candidates:
                if score := match(labelled.label, want):
                    pairs.append((-score, labelled.start, position, name, labelled))
        found: dict[str, Found] = {}
        used: set[int] = set()
        for _, start, _, name, labelled in sorted(pairs, key=lambda pair: pair[:3]):
            if name in found or start in used:
                continue
            value = self._read(wants[name], labelled.text, material.block(labelled))
            if value.value is not MISSING:
                found[name] = value
                used.add(start)
                material.take(start, labelled.end)
        return found

    # -- reading the text of one label or cell

    def _read(self, want: Want, text: str, block: str = "") -> Found:
        """The value that a label's text states, by the schema; MISSING if it states none."""
        schema = want.schema
        if want.impossible:
            return _NOTHING
        if text.strip().casefold() in _NO_VALUE and self._nullable(schema):
            return Found(None, 1, True)
        if "const" in schema or "enum" in schema:
            found = self._find(want, Material(text))
            return found if found.count else _NOTHING
        if branches := self._branches(want):
            reads = [self._read(branch, text, block) for branch in branches]
            return max(reads, key=lambda found: (found.value is not MISSING, found.count))
        match want.kind:
            case ["object"]:
                inner = self._find_object(want, Material(block or text, "item"))
                return inner if inner.count and inner.complete else _NOTHING
            case ["array"]:
                return self._read_list(want, text, block)
            case ["boolean"]:
                answer = readings.yes_or_no(text)
                return _NOTHING if answer is None else Found(answer, 1, True)
            case ["integer"] | ["number"]:
                return self._read_number(text, schema)
            case ["string"]:
                return self._read_string(text, want)
            case []:
                return self._read_untyped(text, want)
        return _NOTHING

    def _read_number(self, text: str, schema: Schema) -> Found:
        for read in readings.numbers(text):
            if read.start <= _NUMBER_LEAD and self._schemas.valid(read.value, schema):
                return Found(read.value, 1, True)
        return _NOTHING

    def _read_untyped(self, text: str, want: Want) -> Found:
        """A number or a boolean where the text is nothing else, else the text."""
        number = next(readings.numbers(text), None)
        if number and (number.start, number.end) == (0, len(text)):
            return Found(number.value, 1, True)
        if text.casefold() in ("true", "false"):
            return Found(text.casefold() == "true", 1, True)
        return self._read_string(text, want)

    def _read_string(self, text: str, want: Want) -> Found:
        if "format" in want.schema or currency_finder(want.words):
            return self._find_string(want, Material(text))
        said = sentences(text)
        if len(said) > 1 and not asks_for_text(want.words):
            text = said[0]
        if text.endswith(".") and "." not in text[:-1] and len(text.split()) <= 5:
            text = text[:-1]
        value = self._as_string(text, want.schema) if text else MISSING
        return _NOTHING if value is MISSING else Found(value, 1, True)

    # -- arrays

    def _find_array(self, want: Want, material: Material) -> Found:
        if "prefixItems" in want.schema:
            items = [self._find(self._inside(part, want), material) for part in want.schema["prefixItems"]]
            return self._array(want, items) if all(item.count for item in items) else _NOTHING
        item = self._inside(want.schema.get("items", True), want)
        if item.kind == ["object"]:
            return self._array(want, self._rows(item, material))
        if "enum" in item.schema:
            members = item.schema["enum"]
            text = without_listings(material.text, members)
            places = sorted((mentioned_at(text, member), i) for i, member in enumerate(members))
            return self._array(want, [Found(members[i], 1, True) for place, i in places if place >= 0])
        if item.kind in (["integer"], ["number"]):
            values = [read.value for read in material.free(material.numbers)] if want.required else []
            fitting = [value for value in values if self._schemas.valid(value, item.schema)]
            return self._array(want, [Found(value, 1, True) for value in fitting])
        return self._array(want, self._strings(item, want, material))

    def _strings(self, item: Want, want: Want, material: Material) -> list[Found]:
        for _, _, end in clusters(material, want.words):
            line = material.text[end : end + 300].split("\n")[0]
            listed = _LISTED.match(line)
            if listed and (parts := self._parts(item, _up_to_clause(line[listed.end() :]))):
                return parts
        texts = [str(quote.value) for quote in material.quotes] if want.required else []
        if not texts and want.required:
            texts = material.bullets
        if not texts and want.required and want.words & _NAMES:
            texts = [str(name.value) for name in material.names]
        if item.kind not in ([], ["string"]):
            return []
        reads = [self._as_string(text, item.schema) for text in texts]
        return [Found(value, 1, True) for value in reads if value is not MISSING]

    def _read_list(self, want: Want, text: str, block: str) -> Found:
        item = self._inside(want.schema.get("items", True), want)
        if item.kind == ["object"]:
            return self._array(want, self._rows(item, Material(block or text)))
        if not block:
            return self._array(want, self._parts(item, text))
        lines = Material(block).bullets or block.splitlines()
        return self._array(want, [self._read(item, line.strip()) for line in lines])

    def _parts(self, item: Want, text: str) -> list[Found]:
        parts = (part.strip(" .\"'[]") for part in _SEPARATORS.split(text))
        return [self._read(item, part) for part in parts if part]

    def _array(self, want: Want, items: Sequence[Found]) -> Found:
        values: list[Any] = []
        read = [item for item in items if item.value is not MISSING]
        for item in read[: want.schema.get("maxItems", len(read))]:
            if not (want.schema.get("uniqueItems") and item.value in values):
                values.append(item.value)
        enough = len(values) >= want.schema.get("minItems", 0)
        if not values or not enough:
            return _NOTHING
        return Found(values, sum(item.count for item in read), all(item.complete for item in read))

    def _rows(self, item: Want, material: Material) -> list[Found]:
        """Objects from the first of these that gives any: a table, list items, lines with numbers, paragraphs with
        labels, sentences. Only objects with all that is required count."""
        for table in material.tables:
            if rows := list(self._table_rows(item, table)):
                return rows
        lines = [line for line in material.text.splitlines() if len(_DIGITS.findall(line)) >= 2]
        lines = [line for line in lines if not line.rstrip().endswith(".")]  # that is prose
        said = material.sentences
        blocks = material.paragraphs if len(material.paragraphs) > 1 else []
        for parts in (material.bullets, lines, blocks, said):
            kind: Literal["clause", "item"] = "clause" if parts is said else "item"
            inner = [self._find_object(item, Material(part, kind)) for part in parts[:_MAX_ITEMS]]
            if rows := [found for found in inner if found.complete and found.count]:
                return rows
        return []

    def _table_rows(self, item: Want, table: Table) -> Iterator[Found]:
        properties = item.schema.get("properties", {})
        required = item.schema.get("required", ())
        wants = {
            name: self._property(part, name, item, name in required) for name, part in properties.items()
        }
        columns = assign_columns(wants, table, lambda want, cell: self._read(want, cell).value is not MISSING)
        for row in table.rows if columns else ():
            result: dict[str, Any] = {}
            for name, want in wants.items():
                value = self._read(want, row[columns[name]]).value if name in columns else MISSING
                if value is MISSING and want.required and self._nullable(want.schema):
                    value = None
                if value is not MISSING:
                    result[name] = value
            if all(name in result for name in required):
                yield Found(result, len(result), True)

    # -- what is missing

    def _filled(self, value: Any) -> Any:
        """`value` with a placeholder in every hole; MISSING where a schema cannot be satisfied."""
        if isinstance(value, _Hole):
            if self._nullable(value.want.schema):
                return None
            return placeholder(self._schemas, value.want.schema, lambda: self._quotes.next(value.want.about))
        if isinstance(value, dict):
            return {name: self._filled(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [self._filled(inner) for inner in value]
        return value

    def _repaired(self, value: Any, want: Want) -> Any:
        """A value valid under the root schema: the invalid properties of `value` replaced, or all of it."""
        if isinstance(value, dict):
            properties = want.schema.get("properties", {})
            for name in [name for name, part in properties.items() if name in value]:
                if not self._schemas.valid(value[name], properties[name]):
                    part = self._property(properties[name], name, want)
                    del value[name]
                    if name in want.schema.get("required", ()):
                        value[name] = self._filled(_Hole(part))
            if self._schemas.valid(value, self._root):
                return value
        minimal = placeholder(self._schemas, self._root, lambda: self._quotes.next(want.about))
        return None if minimal is MISSING else minimal


# An array of this name may be a list of whatever names the text has.
_NAMES = keys("names people persons cities places countries companies")
_DECLARING = {"anyOf", "oneOf", "enum", "const"}
_NO_VALUE = ("", "-", "–", "n/a", "none", "null", "unknown")
_NUMBER_LEAD = 12  # "approx. EUR 1,234.50": a number further in is not what the label states
_SHORT = 400  # in a text this short, a number without a label is likely the one that is asked for
_MAX_ITEMS = 500  # lines, paragraphs or sentences that are tried as objects; tables have no such limit
_DIGITS = re.compile(r"\d+")
_CHUNK = re.compile(r"\S{1,64}")
_DENIED_BEFORE = re.compile(r"\b(?:not|no|without|never|isn't|aren't|doesn't|don't|non)\W+(?:\w+\W+)?$", re.I)
_DENIED_AFTER = re.compile(r"\s*(?:is|was|are)?\s*(?::\s*)?(?:not|no|false)\b", re.I)
_SEPARATORS = re.compile(r"\s*[,;|]\s*(?:and\s+|or\s+)?|\s+(?:and|or|&)\s+|\n")
_LISTED = re.compile(r"\s*(?:[:=]|are|is|include|including|of|such as|like)\s*", re.I)


def _up_to_clause(text: str) -> str:
    return re.split(r"[.!?](?:\s|$)|\s(?:to|from|with|for|on|at)\s", text, maxsplit=1)[0]


def _label_text(text: str, labelled: Field) -> str:
    line = text[text.rfind("\n", 0, labelled.start) + 1 : labelled.start]
    return re.split(r"[,;|{]\s*", line.rstrip(':= \t|"'))[-1].strip(" \t*-•\"'|{")
