"""The layout of a text: labelled fields and tables, whichever way people and programs write them."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from prem_core.enclave.extractive.keys import label_keys


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


_COLON = re.compile(r'(?<=["*])[ \t]*[:=]|:(?=\s|$)|[=:](?![=/:\d])|(?<=\D)[:=](?=\d)|(?<=\d) ?=(?!=)')
_LABEL_BEGINS = re.compile(r"[,;|{}\t(]|[.!?]\s| {2,}")
_UNIT = re.compile(r"\([^()]*\)\s*$")
_LABEL_TRIM = " \t*_\"'`>#-•|[{("
_MAX_LABEL = 48
_MAX_LABEL_WORDS = 6


def fields(text: str) -> Iterator[Field]:
    """Labelled values in order: "label: value", "label = value", "label<TAB>value", "| label | value |"."""
    lines = text.splitlines()
    at = 0
    for number, line in enumerate(text.splitlines(keepends=True)):
        yield from _line_fields(line.rstrip("\r\n"), at, lines, number)
        at += len(line)


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


def tables(text: str) -> Iterator[Table]:
    """Tables with a header: markdown, tab-separated, CSV, aligned with spaces, or a JSON array of objects."""
    yield from _line_tables(text.splitlines())
    yield from _json_tables(text)


def _line_tables(lines: Sequence[str]) -> Iterator[Table]:
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
