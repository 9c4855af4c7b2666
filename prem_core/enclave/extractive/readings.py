# ruff: noqa: RUF001 - typographic quotes, dashes and full-width stops are what prompts hold.
"""Reading numbers, dates and yes/no as people write them."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from dataclasses import dataclass

_NUMBER = re.compile(
    r"""(?<![\w.])(?<!\d:)(?<![^\W\d_]-)     # not inside a word, another number, a time or a code (INV-1042)
    (?P<sign>[-−])?(?:[$€£¥]\s?)?
    (?P<digits>\d{1,3}(?:[,.'\u00a0\u202f]\d{3})+(?:[.,]\d+)?(?!\d)|\d{1,3}(?:\ \d{3})+[.,]\d{2}(?!\d)
        |\d+\.\d+|(?<!\d,)\d+,\d+(?![,\d])|\d+)   # a decimal comma, unless it is a list: 1,2,3
    (?P<exponent>[eE][-+]?\d{1,3}\b)?
    (?![.:]\d|[^\W_]*\d)                # nor the start of a version, a time or a code
    (?:\s?(?P<scale>thousand|million|billion|bn|mn|k)\b)?""",
    re.X,
)
_SCALES = {"k": 10**3, "thousand": 10**3, "mn": 10**6, "million": 10**6, "bn": 10**9, "billion": 10**9}
_NUMBER_WORDS = {
    word: value
    for value, word in enumerate(
        [
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
        ]
    )
}
_NUMBER_WORD = re.compile(rf"\b(?:{'|'.join(_NUMBER_WORDS)})\b", re.I)

_MONTHS = {
    name: number
    for number, name in enumerate(
        ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"], start=1
    )
}
_MONTH = r"(?P<month>(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]{0,6})\.?"
_DATES = tuple(
    re.compile(pattern, re.I)
    for pattern in (
        r"(?<![\d-])(?P<year>\d{4})[-/.](?P<m>\d{1,2})[-/.](?P<d>\d{1,2})(?!\d)",
        rf"\b(?P<d>\d{{1,2}})(?:st|nd|rd|th|\.)?\s+(?:of\s+)?{_MONTH},?\s+(?P<year>\d{{4}})\b",
        rf"\b{_MONTH}\s+(?P<d>\d{{1,2}})(?:st|nd|rd|th)?,?\s+(?P<year>\d{{4}})\b",
        r"(?<![\d./])(?P<d>\d{1,2})\.(?P<m>\d{1,2})\.(?P<year>\d{4}|\d{2})(?!\.?\d)",
        r"(?<![\d/-])(?P<first>\d{1,2})(?P<sep>[/-])(?P<second>\d{1,2})(?P=sep)(?P<year>\d{4}|\d{2})(?![\d/-])",
    )
)
_TIME = re.compile(
    r"(?<!\d)(?P<h>\d{1,2})(?::(?P<min>\d{2})(?::(?P<s>\d{2})(?:\.\d+)?)?)?\s?(?P<half>[ap]\.?m\b\.?)?"
    r"(?P<zone>Z|UTC|GMT|[+-]\d{2}:?\d{2})?",
    re.I,
)


@dataclass(frozen=True)
class Read:
    """A value read at [start, end) of a text."""

    value: float | int | str
    start: int
    end: int


def numbers(text: str) -> Iterator[Read]:
    """Numbers in order: thousands separators, decimal commas, currency signs, "2.5 million". Whole ones are int."""
    for found in _NUMBER.finditer(text):
        value = _number(found["digits"], found["exponent"] or "") * _SCALES.get(found["scale"] or "", 1)
        value = -value if found["sign"] else value
        whole = abs(value) < 2**53 and float(value).is_integer()
        yield Read(int(value) if whole else value, found.start(), found.end())


def number_words(text: str) -> Iterator[Read]:
    """The words "zero" to "twelve" in order."""
    for found in _NUMBER_WORD.finditer(text):
        yield Read(_NUMBER_WORDS[found[0].lower()], found.start(), found.end())


def _number(digits: str, exponent: str) -> float:
    digits = re.sub(r"['\u00a0\u202f ]", "", digits)
    comma, point = digits.rfind(","), digits.rfind(".")
    if comma >= 0 and point >= 0:  # both: the last one is the decimal sign
        thousands = "," if point > comma else "."
        digits = digits.replace(thousands, "")
    elif digits.count(",") > 1 or (comma >= 0 and len(digits) - comma == 4):
        digits = digits.replace(",", "")  # "1,234" is English thousands
    elif digits.count(".") > 1:
        digits = digits.replace(".", "")
    return float(digits.replace(",", ".") + exponent)


def dates(text: str) -> list[Read]:
    """Dates in order as ISO "YYYY-MM-DD". "03/12/2026" is read month first unless that is no month."""
    matches = [match for pattern in _DATES for match in pattern.finditer(text)]
    found: list[Read] = []
    for match in sorted(matches, key=lambda match: (match.start(), -match.end())):
        if (not found or match.start() >= found[-1].end) and (iso := _iso_date(match)):
            found.append(Read(iso, match.start(), match.end()))
    return found


def _iso_date(match: re.Match[str]) -> str | None:
    parts = match.groupdict()
    year = int(parts["year"])
    if parts.get("month"):
        month, day = _MONTHS[parts["month"][:3].lower()], int(parts["d"])
    elif parts.get("first"):
        month, day = int(parts["first"]), int(parts["second"])
        if month > 12:
            month, day = day, month
    else:
        month, day = int(parts["m"]), int(parts["d"])
    try:
        return datetime.date(year + 2000 if year < 100 else year, month, day).isoformat()
    except ValueError:
        return None


def date_times(text: str) -> list[Read]:
    """Dates with the time that follows them as RFC 3339. Without a time it is midnight, without a zone "Z".

    RFC 3339 requires an offset; "Z" is the only one that adds nothing but that.
    """
    found = []
    for day in dates(text):
        head = re.match(r"[T\s,]*(?:at\s+)?", text[day.end :])
        start = day.end + (head.end() if head else 0)
        clock = _TIME.match(text, start)
        time = clock_time(clock) if clock else None
        zone = (clock["zone"] or "Z") if clock and time else "Z"
        zone = "Z" if zone.upper() in ("Z", "UTC", "GMT") else f"{zone[:3]}:{zone[-2:]}"
        end = clock.end() if clock and time else day.end
        found.append(Read(f"{day.value}T{time or '00:00:00'}{zone}", day.start, end))
    return found


def times(text: str) -> Iterator[Read]:
    """Times of day in order as "HH:MM:SS"."""
    for match in _TIME.finditer(text):
        if time := clock_time(match):
            yield Read(time, match.start(), match.end())


def clock_time(match: re.Match[str]) -> str | None:
    """ "HH:MM:SS" of a time match; None when it is a bare number or no time of day."""
    if not (match["min"] or match["half"]):
        return None
    hour = int(match["h"])
    if match["half"]:
        hour = hour % 12 + (12 if match["half"][0] in "pP" else 0)
    minute, second = int(match["min"] or 0), int(match["s"] or 0)
    return f"{hour:02}:{minute:02}:{second:02}" if hour < 24 and minute < 60 and second < 60 else None


_TRUE = re.compile(r"(?:yes|true|on|enabled|ja|oui|si|✓|✔|✅|\[x\]|x)", re.I)
_FALSE = re.compile(r"(?:no|false|off|none|disabled|nein|non|✗|✘|❌|\[ \])", re.I)


def yes_or_no(text: str) -> bool | None:
    """The boolean that a label's value such as "yes" or "✓" states; None when it states none."""
    text = text.strip().rstrip(".")
    if _FALSE.fullmatch(text) or re.match(r"(?:no|not)\b", text, re.I):
        return False
    return True if _TRUE.fullmatch(text) or re.match(r"yes\b", text, re.I) else None
