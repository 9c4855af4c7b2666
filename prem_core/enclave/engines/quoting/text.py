# ruff: noqa: RUF001 - typographic quotes and full-width stops are what prompts hold.
"""Sentences and words: which sentences of a text match a question."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

_WORD = re.compile(r"[^\W_]+")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

#: Words too common to distinguish sentences.
STOPWORDS = frozenset(
    _WORD.findall(
        "a about after again all also am an and any are as at be been before but by can could did do does for from "
        "had has have he her him his how i if in into is it its me may might must my no not now of on or our please "
        "shall she should so some such than that the their them then there these they this those to too under up us "
        "use very was we were what when where which who whom whose why will with would you your"
    )
)

#: The end of a sentence, but not of an abbreviation; or of a line.
_BREAK = re.compile(
    r"(?<=[.!?])(?<!\b[A-Za-z]\.)(?<!\b(?:Dr|Mr|Ms|St|No)\.)(?<!\bMrs\.)(?<!\be\.g\.)(?<!\bi\.e\.)\s+(?=[\"'“(\[*]?[^\Wa-z_])"
    r"|(?<=[。！？])|\n+"
)
#: A line that continues on the next one.
_WRAPPED = re.compile(r"^([^\n]{60,}[^\s.!?:;|])\n(?=[a-z0-9(])", re.M)

#: Sentences that score less than this share of the best one are not quoted with it.
_CLOSE_TO_BEST = 0.85
#: The share of a question's words, by weight, that a sentence must have.
_ENOUGH = 0.25
#: The weight of a name in a question: "What does Anna Berg take?" asks for "take".
_NAME_WEIGHT = 0.4


def sentences(text: str) -> list[str]:
    """The sentences of a text. A separate line (a heading, a row) counts as one too."""
    parts = (part.strip() for part in _BREAK.split(_WRAPPED.sub(r"\1 ", text)))
    return [part for part in parts if _WORD.search(part)]


def words(text: str) -> list[str]:
    """The words of a text or of an identifier: ``unitPrice`` and ``unit_price`` have two."""
    return _WORD.findall(_CAMEL.sub(" ", text))


def key(word: str) -> str:
    """What a word is compared by: its first five letters, without a plural's s."""
    word = word.casefold()
    return (word[:-1] if len(word) > 3 and word.endswith("s") else word)[:5]


def keys(text: str) -> set[str]:
    """The keys of a text's words, without stopwords unless there are no others."""
    found = words(text)
    return {key(word) for word in found if word.casefold() not in STOPWORDS} or {key(word) for word in found}


def quote(question: str, texts: Iterable[str], limit: int) -> list[str]:
    """The sentences that match a question best, at most `limit`, in the order of the texts.

    Args:
        question: What is asked.
        texts: Where to look.
        limit: How many sentences to quote.
    """
    found = list(dict.fromkeys(sentence for text in texts for sentence in sentences(text)))
    wanted = _weights(question)
    shared = [wanted.keys() & keys(sentence) for sentence in found]
    frequency = Counter(word for each in shared for word in each)
    rarity = {word: wanted[word] * math.log(1 + len(found) / count) for word, count in frequency.items()}
    numeric = re.search(r"\b(?:when|how (?:many|much|long|old|soon))\b", question, re.I)
    ranked: list[tuple[float, int]] = []
    for position, (sentence, hits) in enumerate(zip(found, shared, strict=True)):
        if sum(wanted[word] for word in sorted(hits)) < _ENOUGH * sum(wanted.values()):
            continue
        score = sum(rarity[word] for word in sorted(hits))  # sorted: the order of a set differs between runs
        if numeric and re.search(r"\d", sentence):
            score *= 1.2
        ranked.append((score, -position))
    ranked.sort(reverse=True)
    close = [-position for score, position in ranked[:limit] if score >= _CLOSE_TO_BEST * ranked[0][0]]
    return [found[position] for position in sorted(close)]


def _weights(question: str) -> dict[str, float]:
    weights: dict[str, float] = {}
    for sentence in sentences(question):
        for position, word in enumerate(words(sentence)):
            if word.casefold() not in STOPWORDS:
                name = position > 0 and word[0].isupper()
                weights[key(word)] = _NAME_WEIGHT if name else 1.0
    return weights


def joined(quoted: Sequence[str]) -> str:
    """Sentences on one line. Text that does not end like a sentence is put on a separate line."""
    return re.sub(r"(?<=[.!?。！？\"”])\n", " ", "\n".join(quoted))
