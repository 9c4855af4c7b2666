# ruff: noqa: RUF001 - typographic quotes, dashes and full-width stops are what prompts hold.
"""Words, stems and sentences: how the engine reads plain text.

Matching is by light stems, so "invoices" meets "invoice" and "generator" meets "generate". The stemmer errs
on the side of joining; a collision costs a worse ranking, never a wrong quote.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")

_STOPWORDS = """a about above after again all also am an and any are as at be because been before being between both
but by can could did do does doing down during each few for from further get give had has have having he hello her
here hers hi him his how i if in into is it its just know let's like many me more most much my no nor not now of off
on once only or other our out over own per please same say she should show so some such tell than thank thanks that
the their them then there these they this those through to too under until up us use using very was we were what when
where which while who whom whose why will with would you your what's it's i'm i'd i'll don't doesn't isn't who's
where's how's that's there's
answer ask context follow following given information prior provide provided query question respond"""
# The last row says that there is a question, not what it is about.
STOPWORDS = frozenset(_STOPWORDS.split())
_IMPERATIVES = """add book buy calculate call compare convert create delete email extract fetch find
generate get give list look make multiply name open order parse play read remind schedule
search send set show subtract summarize tell translate update use write"""
# Verbs that requests begin with: capitalised there, they are no names.
IMPERATIVES = frozenset(_IMPERATIVES.split())

_VOWEL = re.compile(r"[aeiouy]")
_SUFFIXES = (("ing", 3), ("ion", 5), ("ed", 3), ("er", 3), ("or", 3))


def stem(word: str) -> str:
    """The light stem of one word, case folded: plural, verb and agent endings removed."""
    word = word.casefold().replace("’", "'")
    if word.endswith("'s"):
        word = word[:-2]
    if len(word) > 4 and word.endswith("ies"):
        word = word[:-3] + "y"
    elif len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for suffix, kept in _SUFFIXES:
        rest = word[: -len(suffix)]
        if word.endswith(suffix) and len(rest) >= kept and _VOWEL.search(rest):
            word = rest
            break
    if len(word) > 3 and word.endswith("e"):
        word = word[:-1]
    if len(word) > 2 and word.endswith("y"):
        word = word[:-1] + "i"
    # "running" and "run", "adder" and "add": one letter of a final pair goes, from every word alike.
    if len(word) > 2 and word[-1] == word[-2] and word[-1].isalpha():
        word = word[:-1]
    return word


def terms(text: str) -> Iterator[str]:
    """The stems of `text` in order, stopwords left out. Unspaced scripts are read as overlapping character pairs."""
    for word in WORD.findall(text):
        if _CJK.search(word):
            yield from (word[i : i + 2] for i in range(max(1, len(word) - 1)))
        elif word.casefold() not in STOPWORDS:
            yield stem(word)


def identifier_words(name: str) -> list[str]:
    """The words of a snake_case, kebab-case or camelCase identifier, as written."""
    return [word for part in WORD.findall(name.replace("_", " ")) for word in _CAMEL.split(part) if word]


_QUESTION_MARKS = ("?", "？")
_STOPS = tuple('.!?…。！？"”')
_END = re.compile(r"[.!?]{1,8}[\"'”’)\]]{0,4}\s+|[。！？]{1,8}\s*")
_ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|Sr|Jr|St|No|Nr|vs|etc|approx|Inc|Ltd|Corp|Co|e\.g|i\.e|U\.S|Fig|Art|Str)"
    r"|(?:^|[\s.])[A-Za-z])\.\s+$"
)
_RULE = re.compile(r"[\W_]*")
_WRAPPED = 40  # a shorter line ends where its author ended it
_BULLET = re.compile(r"\s*(?:[-*•]|\d{1,3}[.)])\s+")


def split_sentences(line: str) -> list[str]:
    """The sentences of one line, stripped. Abbreviations, initials and a lower-case next word do not end one."""
    found, start = [], 0
    for end in _END.finditer(line):
        following = line[end.end() : end.end() + 1]
        if following.islower() or _ABBREVIATION.search(line[max(start, end.start() - 8) : end.end()]):
            continue
        found.append(line[start : end.end()].strip())
        start = end.end()
    found.append(line[start:].strip())
    return [sentence for sentence in found if sentence]


def sentences(text: str) -> list[str]:
    """The sentences of `text` in order, as written but for bullets and line wraps.

    A line break ends a sentence unless the next line goes on in lower case; rules such as "-----" are dropped.
    """
    lines: list[str] = []
    wrapped = False
    for raw in text.splitlines():
        line = raw.strip()
        if _RULE.fullmatch(line):
            wrapped = False
            continue
        if wrapped and line[:1].islower():
            lines[-1] += " " + line
        else:
            lines.append(_BULLET.sub("", line, count=1) if _BULLET.match(line) else line)
        wrapped = len(line) >= _WRAPPED and not line.endswith((".", "!", "?", ":", ";", "|"))
    return [sentence for line in lines for sentence in split_sentences(line)]


def is_question(sentence: str) -> bool:
    """Whether a sentence ends in a question mark."""
    return sentence.endswith(_QUESTION_MARKS)


def is_closed(sentence: str) -> bool:
    """Whether a sentence ends as sentences do; a heading or a table row does not."""
    return sentence.endswith(_STOPS)
