# ruff: noqa: RUF001 - typographic quotes, dashes and full-width stops are what prompts hold.
"""Values for a JSON Schema from a text: the engine's extraction, shared by tools and response formats.

Labelled fields are matched to properties first, all at once and best match first; then each property looks for
a value of its type near its words; what is required and not found becomes a placeholder (see placeholders.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from prem_core.enclave.extractive import readings
from prem_core.enclave.extractive.material import Field, Material, Table, key, label_keys
from prem_core.enclave.extractive.mentions import mentioned_at, without_listings
from prem_core.enclave.extractive.nearest import clusters, nearest_number
from prem_core.enclave.extractive.placeholders import MISSING, placeholder
from prem_core.enclave.extractive.ranking import rank
from prem_core.enclave.extractive.readings import Read
from prem_core.enclave.extractive.schemas import Schema, Schemas, types
from prem_core.enclave.extractive.strings import asks_for_text, currency_finder, find_string
from prem_core.enclave.extractive.wants import Want, match
from prem_core.enclave.extractive.words import STOPWORDS, WORD, sentences


@dataclass(frozen=True)
class Found:
    """A value, how many of its leaves were read from the text, and whether none is a placeholder."""

    value: Any
    count: int
    complete: bool


_NOTHING = Found(MISSING, 0, False)


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
        self._topic = topic
        self._quoted: set[str] = set()

    def run(self) -> Found:
        want = self._want(self._root)
        found = self._find(want, self._material)
        value = self._completed(found, want)
        if value is not MISSING and self._schemas.valid(value, self._root):
            return Found(value, found.count, found.complete)
        minimal = placeholder(self._schemas, self._root, lambda: self._quote(want))
        return Found(None if minimal is MISSING else minimal, 0, False)

    # -- what is wanted

    def _want(
        self, schema: Schema | bool, name: str = "", parent: Want | None = None, required: bool = True
    ) -> Want:
        resolved, followed = self._schemas.resolve(schema)
        seen = parent.seen if parent else ()
        if any(reference in seen for reference in followed):
            resolved = {"not": {}}  # a schema inside itself: one level is read, so that reading ends
        words = label_keys(name) if name else parent.words if parent else frozenset()
        title = "" if name and label_keys(name) else str(resolved.get("title", ""))
        return Want(
            schema=resolved,
            words=words | (label_keys(title) if title and not words else frozenset()),
            hints=frozenset(
                key(word)
                for word in WORD.findall(str(resolved.get("description", "")))
                if word.casefold() not in STOPWORDS
            ),
            prefix=(parent.words | parent.prefix)
            if parent and name
            else parent.prefix
            if parent
            else frozenset(),
            required=required,
            seen=seen + followed,
        )

    def _branches(self, want: Want) -> list[Want]:
        """The alternatives of anyOf, oneOf or a list of types, each merged with what stands beside them."""
        schema = want.schema
        beside = {name: part for name, part in schema.items() if name not in ("anyOf", "oneOf")}
        branches: list[Schema] = [
            {"allOf": [beside, branch]} for branch in (*schema.get("anyOf", ()), *schema.get("oneOf", ()))
        ]
        if not branches and len(types(schema)) > 1:
            branches = [{**schema, "type": kind} for kind in types(schema)]
        wants = []
        for branch in branches:
            resolved, followed = self._schemas.resolve(branch)
            if types(resolved) != ["null"] and not any(reference in want.seen for reference in followed):
                wants.append(
                    Want(resolved, want.words, want.hints, want.prefix, want.required, want.seen + followed)
                )
        return wants

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
            return max((self._find(branch, material) for branch in branches), key=lambda found: found.count)
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
        wants = {name: self._want(part, name, want, name in required) for name, part in properties.items()}
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
                result[name] = None if self._nullable(part.schema) else MISSING
                complete &= result[name] is not MISSING
        others = want.schema.get("additionalProperties")
        if isinstance(others, dict) and others:
            result |= self._open_fields(others, properties, material)
        count = sum(read.count for read in found.values()) + len(result.keys() - properties.keys())
        return Found(result, count, complete)

    def _open_fields(self, others: Schema, properties: Schema, material: Material) -> dict[str, Any]:
        """Fields of an object with free keys: every labelled value that can be read by the schema of its values."""
        want = self._want(others)
        result: dict[str, Any] = {}
        for labelled in material.fields:
            label = _label_text(material.text, labelled)
            if label and label not in properties and label not in result:
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
            items = [self._find(self._want(part, "", want), material) for part in want.schema["prefixItems"]]
            return (
                self._array(want, [item for item in items if item.count])
                if all(i.count for i in items)
                else _NOTHING
            )
        item = self._want(want.schema.get("items", True), "", want)
        kinds = item.kind
        if kinds == ["object"]:
            return self._array(want, self._rows(item, material))
        if "enum" in item.schema:
            text = without_listings(material.text, item.schema["enum"])
            places = sorted((mentioned_at(text, member), i) for i, member in enumerate(item.schema["enum"]))
            return self._array(
                want, [Found(item.schema["enum"][i], 1, True) for place, i in places if place >= 0]
            )
        if kinds in (["integer"], ["number"]):
            reads = list(material.free(material.numbers)) if want.required else []
            values = [
                Found(read.value, 1, True) for read in reads if self._schemas.valid(read.value, item.schema)
            ]
            return self._array(want, values)
        return self._array(want, self._strings(item, want, material))

    def _strings(self, item: Want, want: Want, material: Material) -> list[Found]:
        for _, _, end in clusters(material, want.words):
            line = material.text[end : end + 300].split("\n")[0]
            if listed := _LISTED.match(line):
                if parts := self._parts(item, _up_to_clause(line[listed.end() :])):
                    return parts
        texts = [str(quote.value) for quote in material.quotes] if want.required else []
        if not texts and want.required:
            texts = material.bullets
        if not texts and want.required and want.words & _NAMES:
            texts = [str(name.value) for name in material.names]
        reads = [
            self._as_string(text, item.schema) for text in texts if types(item.schema) in ([], ["string"])
        ]
        return [Found(value, 1, True) for value in reads if value is not MISSING]

    def _read_list(self, want: Want, text: str, block: str) -> Found:
        item = self._want(want.schema.get("items", True), "", want)
        if (item.kind) == ["object"]:
            return self._array(want, self._rows(item, Material(block or text)))
        lines = Material(block).bullets or block.splitlines()
        return self._array(
            want, [self._read(item, line.strip()) for line in lines] if block else self._parts(item, text)
        )

    def _parts(self, item: Want, text: str) -> list[Found]:
        return [
            self._read(item, part.strip(" .\"'[]"))
            for part in _SEPARATORS.split(text)
            if part.strip(" .\"'[]")
        ]

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
        wants = {name: self._want(part, name, item, name in required) for name, part in properties.items()}
        columns = self._columns(wants, table)
        if not columns or any(name in required and name not in columns for name in wants):
            return
        for row in table.rows:
            reads = {name: self._read(wants[name], row[column]) for name, column in columns.items()}
            result = {name: reads[name].value for name in wants if name in reads}
            result = {
                name: value for name, value in result.items() if value is not MISSING or name in required
            }
            for name in required:
                if (
                    result.get(name, MISSING) is MISSING
                    and name in wants
                    and self._nullable(wants[name].schema)
                ):
                    result[name] = None
            if all(result.get(name, MISSING) is not MISSING for name in required):
                yield Found(result, len(result), True)

    def _columns(self, wants: dict[str, Want], table: Table) -> dict[str, int]:
        """Which column holds which property: by header, then by type for required properties left over."""
        readable = {
            (name, column): any(self._read(want, row[column]).value is not MISSING for row in table.rows[:3])
            for name, want in wants.items()
            for column in range(len(table.header))
        }
        pairs = sorted(
            (-score, order, column, name)
            for order, (name, want) in enumerate(wants.items())
            for column, label in enumerate(table.header)
            if (score := match(label, want)) and readable[name, column]
        )
        columns: dict[str, int] = {}
        for _, _, column, name in pairs:
            if name not in columns and column not in columns.values():
                columns[name] = column
        if not columns:
            return {}
        for name, want in wants.items():
            numeric = types(want.schema) in (["integer"], ["number"])
            for column in range(len(table.header)):
                digits = all(_DIGITS.search(row[column]) for row in table.rows)
                fits = readable[name, column] and column not in columns.values() and numeric == digits
                if name not in columns and want.required and fits:
                    columns[name] = column
        return columns

    # -- what is missing

    def _completed(self, found: Found, want: Want) -> Any:
        """The found value with placeholders put in for MISSING parts."""
        if found.value is MISSING:
            if self._nullable(want.schema):
                return None
            return placeholder(self._schemas, want.schema, lambda: self._quote(want))
        return self._filled(found.value, want)

    def _filled(self, value: Any, want: Want) -> Any:
        if not isinstance(value, dict):
            return value
        properties = want.schema.get("properties", {})
        for name, inner in list(value.items()):
            part = self._want(properties.get(name, True), name, want)
            if inner is MISSING:
                value[name] = placeholder(self._schemas, part.schema, lambda part=part: self._quote(part))  # type: ignore[misc]
            elif isinstance(inner, dict):
                value[name] = self._filled(inner, part)
        for name in want.schema.get("required", ()):
            if name not in value:
                part = self._want(want.schema.get("additionalProperties", True), name, want)
                value[name] = placeholder(self._schemas, part.schema, lambda part=part: self._quote(part))  # type: ignore[misc]
        return value

    def _quote(self, want: Want) -> str:
        """The sentence of the prompt closest to the property and the topic, a new one at each call while there are."""
        about = " ".join([*want.words, *want.hints, self._topic])
        texts = [self._material.text[:_QUOTABLE], self._background.text[:_QUOTABLE]]
        candidates = [ranked.text for ranked in rank(about, texts)[:20]]
        candidates += [sentence for text in texts for sentence in sentences(text)[:20]]
        candidates += [phrase for text in texts for phrase in reversed(_phrases(text[:2000]))]
        chosen = next(
            (text for text in candidates if text not in self._quoted), candidates[0] if candidates else ""
        )
        self._quoted.add(chosen)
        return chosen


# An array of this name may be a list of whatever names the text has.
_NAMES = frozenset(
    key(word) for word in ("names", "people", "persons", "cities", "places", "countries", "companies")
)
_DECLARING = {"anyOf", "oneOf", "enum", "const"}
_NO_VALUE = ("", "-", "–", "n/a", "none", "null", "unknown")
_NUMBER_LEAD = 12  # "approx. EUR 1,234.50": a number further in is not what the label states
_SHORT = 400  # in a text this short, a number without a label is likely the one that is asked for
_MAX_ITEMS = 500  # lines, paragraphs or sentences that are tried as objects; tables have no such limit
_QUOTABLE = 20_000
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


def _phrases(text: str) -> list[str]:
    """Runs of words that are no stopwords."""
    runs = re.split(rf"\b(?:{'|'.join(sorted(STOPWORDS))})\b|[^\w\s'’-]", text, flags=re.I)
    return [run.strip() for run in runs if run.strip(" '’-\n")]
