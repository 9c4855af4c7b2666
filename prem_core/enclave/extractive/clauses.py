# ruff: noqa: RUF001 - typographic quotes, dashes and full-width stops are what prompts hold.
"""Cutting a request into fragments: at "and", "then", commas and sentence ends, but not inside names and quotes."""

from __future__ import annotations

import re

_CUT = re.compile(
    r"[.!?;]+(?=\s|$)|\n+|,?\s+(?:and(?:\s+(?:then|also))?|then|also|or|as well as)\s+|,\s+",
    re.I,
)
_HELD = re.compile(
    r"\"[^\"\n]{0,300}\"|(?<!\w)'[^'\n]{0,300}'(?!\w)|“[^”\n]{0,300}”|\([^()\n]{0,300}\)|\{[^{}\n]{0,300}\}"
)
_CAPITALS = r"[A-ZÀ-Þ][\w'’-]*(?: [A-ZÀ-Þ][\w'’-]*){0,3}"
_LIST = re.compile(rf"{_CAPITALS}(?:, {_CAPITALS}){{1,20}},? (?:and|or) {_CAPITALS}(?![\w'’-]|, [A-Z])")


def fragments(text: str) -> list[str]:
    """`text` cut wherever a clause may end; the pieces joined are the text. Quotes and brackets stay whole."""
    held = [found.span() for found in _HELD.finditer(text)]
    lists = [found.span() for found in _LIST.finditer(text)]
    cuts: list[int] = []
    at = 0
    for cut in _CUT.finditer(text):
        while at < len(held) and held[at][1] <= cut.start():
            at += 1
        if at < len(held) and held[at][0] < cut.start():
            continue
        after = text[cut.end() : cut.end() + 1]
        # "San Francisco, CA" and "Paris, France" are one place; "Paris, London and Rome" are three.
        comma = cut[0].strip() == ","
        if comma and after.isupper() and not any(start < cut.start() < end for start, end in lists):
            continue
        cuts.append(cut.end())
    starts = [0, *cuts]
    return [text[start:end] for start, end in zip(starts, [*cuts, len(text)], strict=True) if start < end]
