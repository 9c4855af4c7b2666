# ruff: noqa: RUF001 - typographic quotes, dashes and full-width stops are what prompts hold.
"""The structure of a text that values are taken from: labelled fields, tables, lists, quotes, names, numbers.

Everything is found by single passes with bounded patterns, so reading stays linear in the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from prem_core.enclave.extractive import layout, readings
from prem_core.enclave.extractive.keys import key
from prem_core.enclave.extractive.layout import Field, Table
from prem_core.enclave.extractive.readings import Read
from prem_core.enclave.extractive.words import IMPERATIVES, STOPWORDS, WORD, sentences


@dataclass(frozen=True)
class Token:
    """One word of the text, as its key, at [start, end)."""

    key: str
    start: int
    end: int


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
        """The words in order."""
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
        """The sentences in order."""
        return sentences(self.text)

    @cached_property
    def dates(self) -> list[Read]:
        """Dates in order, as ISO."""
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
        """Mail addresses in order."""
        return _reads(_EMAIL, self.text)

    @cached_property
    def uris(self) -> list[Read]:
        """Web addresses in order."""
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
        return [found[1].strip() for line in self.lines if (found := _BULLET.match(line))]

    @cached_property
    def paragraphs(self) -> list[str]:
        """What blank lines separate."""
        return [part.strip() for part in re.split(r"\n[ \t]*\n", self.text) if part.strip()]

    @cached_property
    def lines(self) -> list[str]:
        """The lines in order."""
        return self.text.splitlines()

    @cached_property
    def fields(self) -> list[Field]:
        """Labelled values in order."""
        return list(layout.fields(self.text))

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
        """Tables with a header."""
        return list(layout.tables(self.text))


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
