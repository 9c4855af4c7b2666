# ruff: noqa: RUF001 - typographic quotes, dashes and full-width stops are what prompts hold.
"""The structure of a text that values are taken from: labelled fields, tables, lists, quotes, names, numbers.

Everything is found by single passes with bounded patterns, so reading stays linear in the length of the text.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from prem_core.enclave.extractive import readings
from prem_core.enclave.extractive.readings import Read
from prem_core.enclave.extractive.words import STOPWORDS, WORD, identifier_words, sentences, stem


@dataclass(frozen=True)
class Field:
    """A label and what stands behind it in [start, end).

    When nothing stands on the label's own line, `text` is the first line below it and `below` that line's number.
    """

    label: frozenset[str]
    text: str
    start: int
    end: int
    below: int | None = None


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header; every row has as many cells as the header."""

    header: tuple[frozenset[str], ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Token:
    """One word of the text, as its key, at [start, end)."""

    key: str
    start: int
    end: int


# What forms call by several names. The first of each row stands for all of it.
_SYNONYMS = {
    stem(word): stem(row.split()[0])
    for row in (
        "vendor supplier seller issuer merchant",
        "customer client buyer bill",
        "quantity qty",
        "number no nr num id",
        "email mail",
        "phone telephone tel mobile",
        "price cost",
        "total amount sum",
        "tax vat",
        "description item product article",
        "zip postcode postal plz",
        "birth birthday born",
        "company organization organisation firm",
    )
    for word in row.split()
}


def key(word: str) -> str:
    """The stem of a word, synonyms of forms joined ("qty" and "quantity")."""
    stemmed = stem(word)
    return _SYNONYMS.get(stemmed, stemmed)


def label_keys(text: str) -> frozenset[str]:
    """The keys that identify a label or a property name: no stopwords unless there is nothing else."""
    words = identifier_words(text)
    telling = [word for word in words if word.casefold() not in STOPWORDS]
    return frozenset(key(word) for word in telling or words)


_CAPITAL = "A-ZÀ-ÖØ-ÞΑ-ΩА-Я"
_NAME = re.compile(
    rf"(?<![\w@./-])[{_CAPITAL}][\w'’&-]{{0,40}}"
    # A full stop goes on only after an initial or a title: "J. Smith", "St. Gallen".
    rf"(?:(?:(?<=\b[{_CAPITAL}])\.|(?<=\bSt)\.|(?<=\b[DM]r)\.)? "
    r"(?:(?:of|de|la|del|da|di|van|von|der|den|the|&) ){0,2}"
    rf"[{_CAPITAL}][\w'’&-]{{0,40}}){{0,6}}"
    rf"(?:, [A-Z]{{2}}\b)?"
)
# What follows a first word that is a name ("Anna is ...") rather than a verb ("Extract the ...").
_AFTER_NAME = re.compile(
    r"\s*(?:[,(:'’&-]|(?:is|was|has|had|lives|works|lived|worked|said|and|will|born|wrote|from|moved|founded|joined)\b)"
)
_SENTENCE_START = re.compile(r"(?:^|[.!?:;\n\"“]\s*|[-*•|]\s+)$")
_QUOTE = re.compile(
    r'"([^"\n]{1,300})"|“([^”\n]{1,300})”|«([^»\n]{1,300})»|「([^」\n]{1,300})」|`([^`\n]{1,300})`'
    r"|(?<!\w)['‘]([^'\n’]{1,300}(?:['’]\w[^'\n’]{0,300})*)['’](?!\w)"
)
_SHORT_QUOTE = 40  # a longer quote is a document of its own
_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})+")
_URI = re.compile(r"\b(?:https?|ftp)://[^\s<>\"')\]]{1,2000}(?<![.,;:!?])")
_COMPANY = re.compile(
    rf"(?<![\w])(?:[{_CAPITAL}0-9][\w'’&.-]{{0,30}} (?:& )?){{1,6}}"
    r"(?:GmbH(?: & Co\. KG)?|AG|KG|SE|Inc\.?|LLC|Ltd\.?|Limited|Corp\.?|Corporation|Company|Co\."
    r"|PLC|S\.?A\.?S?|S\.?r\.?l\.?|BV|B\.V\.|NV|AB|Oy|A/S|Group)(?!\w)"
)
_BULLET = re.compile(r"[ \t]*(?:[-*•+]|\d{1,3}[.)])[ \t]+(\S.*)")
_COLON = re.compile(r'(?<=["*])[ \t]*[:=]|:(?=\s|$)|[=:](?![=/:\d])|(?<=\D)[:=](?=\d)|(?<=\d) ?=(?!=)')
_LABEL_BEGINS = re.compile(r"[,;|{}\t(]|[.!?]\s| {2,}")
_UNIT = re.compile(r"\([^()]*\)\s*$")
_LABEL_TRIM = " \t*_\"'`>#-•|[{("
_MAX_LABEL = 48
_MAX_LABEL_WORDS = 6


@dataclass
class Material:
    """A text and, found on first use, what is in it.

    kind: "document"; "clause", one sentence or the part of a request that one tool is asked with; or "item", one
    line of a list.
    taken: the spans of values that have been used already, so that none is used twice.
    """

    text: str
    kind: Literal["document", "clause", "item"] = "document"
    taken: list[tuple[int, int]] = field(default_factory=list)

    def take(self, start: int, end: int) -> None:
        """Mark [start, end) as used."""
        self.taken.append((start, end))

    def free(self, reads: Iterable[Read]) -> Iterator[Read]:
        """Those of `reads` that begin in no used span."""
        return (read for read in reads if not any(start <= read.start < end for start, end in self.taken))

    @cached_property
    def tokens(self) -> list[Token]:
        return [Token(key(found[0]), found.start(), found.end()) for found in WORD.finditer(self.text)]

    @cached_property
    def by_key(self) -> dict[str, list[int]]:
        """Where in `tokens` each key stands."""
        index: dict[str, list[int]] = {}
        for position, token in enumerate(self.tokens):
            index.setdefault(token.key, []).append(position)
        return index

    @cached_property
    def sentences(self) -> list[str]:
        return sentences(self.text)

    @cached_property
    def dates(self) -> list[Read]:
        return readings.dates(self.text)

    @cached_property
    def numbers(self) -> list[Read]:
        """Numbers that are no part of a date or a short quote; number words ("two") only where there are no digits."""
        spans = [*self.dates, *(quote for quote in self.quotes if quote.end - quote.start < _SHORT_QUOTE)]
        inside = sorted((span.start, span.end) for span in spans)
        digits = list(_outside(readings.numbers(self.text), inside))
        return digits or list(_outside(readings.number_words(self.text), inside))

    @cached_property
    def quotes(self) -> list[Read]:
        """Quoted strings in order, without their quotation marks (the span is with them)."""
        return [
            Read(next(group for group in found.groups() if group), found.start(), found.end())
            for found in _QUOTE.finditer(self.text)
        ]

    @cached_property
    def emails(self) -> list[Read]:
        return _reads(_EMAIL, self.text)

    @cached_property
    def uris(self) -> list[Read]:
        return _reads(_URI, self.text)

    @cached_property
    def companies(self) -> list[Read]:
        """Phrases with a legal form at the end ("ACME GmbH"), each at its first mention."""
        first: dict[str, Read] = {}
        for found in _reads(_COMPANY, self.text):
            first.setdefault(str(found.value), found)
        return list(first.values())

    @cached_property
    def names(self) -> list[Read]:
        """Capitalised phrases, but for a capital that only the sentence's beginning explains."""
        found = []
        for match in _NAME.finditer(self.text):
            start, phrase = match.start(), match[0]
            first = WORD.match(phrase)
            if first and _SENTENCE_START.search(self.text[max(0, start - 4) : start]):
                lower, alone = first[0].casefold(), first.end() == len(phrase)
                common = lower in STOPWORDS or lower in IMPERATIVES
                whole = alone and not WORD.search(self.text, match.end())
                if common or (alone and not whole and not _AFTER_NAME.match(self.text, match.end())):
                    phrase = phrase[first.end() :].lstrip(" ,.'’-&")
                    start = match.end() - len(phrase)
            if phrase and phrase.casefold() not in STOPWORDS:
                found.append(Read(phrase.rstrip("'’-"), start, match.end()))
        return found

    @cached_property
    def bullets(self) -> list[str]:
        """The texts of list items, without their markers."""
        return [found[1].strip() for line in self.text.splitlines() if (found := _BULLET.match(line))]

    @cached_property
    def paragraphs(self) -> list[str]:
        return [part.strip() for part in re.split(r"\n[ \t]*\n", self.text) if part.strip()]

    @cached_property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @cached_property
    def fields(self) -> list[Field]:
        """Labelled values in order: "label: value", "label = value", "label<TAB>value", "| label | value |"."""
        found: list[Field] = []
        at = 0
        for number, line in enumerate(self.text.splitlines(keepends=True)):
            found += _line_fields(line.rstrip("\r\n"), at, self.lines, number)
            at += len(line)
        return found

    @cached_property
    def fields_by_key(self) -> dict[str, list[Field]]:
        """The fields whose label has a key."""
        index: dict[str, list[Field]] = {}
        for labelled in self.fields:
            for part in labelled.label:
                index.setdefault(part, []).append(labelled)
        return index

    def block(self, labelled: Field) -> str:
        """The lines below a label that has nothing behind it, up to a blank one; empty for other fields."""
        if labelled.below is None:
            return ""
        end = next(
            (i for i in range(labelled.below, len(self.lines)) if not self.lines[i].strip()), len(self.lines)
        )
        return "\n".join(self.lines[labelled.below : end])

    @cached_property
    def starting(self) -> dict[int, Read]:
        """Quotes, mail addresses and names by where they begin; a quote comes before a name."""
        return {read.start: read for read in [*self.names, *self.emails, *self.quotes]}

    @cached_property
    def tables(self) -> list[Table]:
        """Tables with a header: markdown, tab-separated, CSV, aligned with spaces, or a JSON array of objects."""
        return [*_tables(self.lines), *_json_tables(self.text)]


IMPERATIVES = frozenset(
    [
        "add",
        "book",
        "buy",
        "calculate",
        "call",
        "compare",
        "convert",
        "create",
        "delete",
        "email",
        "extract",
        "fetch",
        "find",
        "generate",
        "get",
        "give",
        "list",
        "look",
        "make",
        "multiply",
        "name",
        "open",
        "order",
        "parse",
        "play",
        "read",
        "remind",
        "schedule",
        "search",
        "send",
        "set",
        "show",
        "subtract",
        "summarize",
        "tell",
        "translate",
        "update",
        "use",
        "write",
    ]
)


def _outside(reads: Iterable[Read], spans: Sequence[tuple[int, int]]) -> Iterator[Read]:
    """Those of `reads` (in order) that begin in none of the sorted `spans`."""
    at, covered = 0, 0
    for read in reads:
        while at < len(spans) and spans[at][0] <= read.start:
            covered = max(covered, spans[at][1])
            at += 1
        if read.start >= covered:
            yield read


def _reads(pattern: re.Pattern[str], text: str) -> list[Read]:
    return [Read(found[0], found.start(), found.end()) for found in pattern.finditer(text)]


def _line_fields(line: str, at: int, lines: Sequence[str], number: int) -> Iterator[Field]:
    colons: list[tuple[str, int, int]] = []  # label, where it begins, where its value begins
    floor = 0
    for colon in _COLON.finditer(line):
        low = max(floor, colon.start() - _MAX_LABEL)
        segment = line[low : colon.start()]
        segment = _UNIT.sub("", segment)  # "Amount (EUR)": the unit does not name the field
        cuts = [cut.end() for cut in _LABEL_BEGINS.finditer(segment)]
        low += cuts[-1] if cuts else 0
        label = segment[cuts[-1] if cuts else 0 :].strip(_LABEL_TRIM)
        if label[:1].isalpha() and len(label.split()) <= _MAX_LABEL_WORDS:
            colons.append((label, low, colon.end()))
            floor = colon.end()
    for i, (label, _, begin) in enumerate(colons):
        end = colons[i + 1][1] if i + 1 < len(colons) else len(line)
        value = _value_text(line[begin:end])
        if value:
            yield Field(label_keys(label), value, at + begin, at + end)
            continue
        # "Vendor:" alone: the value is below, one blank line may come between.
        below = next((n for n in (number + 1, number + 2) if n < len(lines) and lines[n].strip()), None)
        if below is not None:
            first = lines[below].strip()
            yield Field(label_keys(label), first, at + begin, at + len(line) + len(first) + 2, below)
    if not colons:
        cells = _cells(line)
        if len(cells) == 2 and cells[0][:1].isalpha() and len(cells[0].split()) <= _MAX_LABEL_WORDS:
            yield Field(label_keys(cells[0]), cells[1], at + line.rfind(cells[1]), at + len(line))


def _value_text(text: str) -> str:
    text = text.strip().rstrip(",;|({").strip(" \t*")
    if text.count("}") > text.count("{") or text.count("]") > text.count("["):
        text = text.rstrip("}], ")
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'`":
        text = text[1:-1]
    return text.strip()


_SPACED = re.compile(r"\t+| {2,}")
_JSON_ROWS = re.compile(r"\[\s{0,40}\{")
_MAX_JSON = 20  # arrays tried; each try may read to the end of the text
_SEPARATOR = re.compile(r"[\s|:+=-]+")


def _cells(line: str) -> list[str]:
    """The cells of a line by pipes, tabs or runs of spaces; one cell when there are none."""
    line = line.strip()
    if line.count("|") > 1 or " | " in line:
        return [cell.strip(" *") for cell in line.strip("|").split("|")]
    return [cell.strip() for cell in _SPACED.split(line)]


def _comma_cells(line: str) -> list[str]:
    for delimiter in (",", ";"):
        if line.count(delimiter) >= 1:
            cells = [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]
            if len(cells) >= 2:
                return cells
    return [line]


def _tables(lines: Sequence[str]) -> Iterator[Table]:
    for split in (_cells, _comma_cells):
        group: list[tuple[str, ...]] = []
        for line in [*lines, ""]:
            if line.strip() and _SEPARATOR.fullmatch(line):
                continue
            cells = tuple(split(line))
            if group and len(cells) != len(group[0]):
                yield from _table(group)
                group = []
            if len(cells) >= 2:
                group.append(cells)
        yield from _table(group)


def _json_tables(text: str) -> Iterator[Table]:
    decoder = json.JSONDecoder()
    at = 0
    for _ in range(_MAX_JSON):
        start = _JSON_ROWS.search(text, at)
        if not start:
            return
        try:
            rows, at = decoder.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            at = start.end()
            continue
        names = list(dict.fromkeys(name for row in rows if isinstance(row, dict) for name in row))
        cells = (tuple(_json_cell(row.get(name)) for name in names) for row in rows if isinstance(row, dict))
        yield Table(tuple(label_keys(name) for name in names), tuple(cells))


def _json_cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _table(group: Sequence[tuple[str, ...]]) -> Iterator[Table]:
    # A header names its columns: no cell of it is empty, long or a number.
    if len(group) >= 2 and all(
        cell and len(cell) <= 40 and not cell[0].isdigit() and not cell.endswith(".") for cell in group[0]
    ):
        yield Table(tuple(label_keys(cell) for cell in group[0]), tuple(group[1:]))
