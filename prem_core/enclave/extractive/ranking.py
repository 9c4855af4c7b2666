"""Ranking sentences against a question by BM25."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prem_core.enclave.extractive.words import is_question, sentences, terms

_K1, _B = 1.2, 0.5
# A question that asks for a quantity or a time is better served by a sentence with digits.
_ASKS_FOR_NUMBER = re.compile(
    r"\b(?:how (?:many|much|long|old|far|often|big|tall)|when|what (?:year|date|time))\b", re.I
)
_NUMBER_BONUS = 1.25
# A sentence that matches far worse than the best one says something else.
_WORTH_QUOTING = 0.3


@dataclass(frozen=True)
class Ranked:
    """A sentence, its place in the document order of all passages, and its score (higher is better, above 0)."""

    text: str
    position: int
    score: float


def rank(question: str, passages: Iterable[str]) -> list[Ranked]:
    """The sentences of `passages` that share a word with `question`, best first; ties keep document order.

    A question or a heading in the passages is no answer: its words count for the sentence after it instead.
    """
    wanted = set(terms(question))
    asked = question.strip().casefold()
    candidates: list[tuple[str, Counter[str]]] = []
    for passage in passages:
        lent: list[str] = []
        for sentence in sentences(passage):
            own = list(terms(sentence))
            if is_question(sentence) or sentence.startswith("#"):
                lent = own
                continue
            if sentence.casefold() != asked:
                candidates.append((sentence, Counter(own + lent)))
            lent = []
    if not wanted or not candidates:
        return []
    frequency = Counter(term for _, counts in candidates for term in counts.keys() & wanted)
    mean = sum(counts.total() for _, counts in candidates) / len(candidates) or 1.0
    numeric = bool(_ASKS_FOR_NUMBER.search(question))
    ranked: dict[str, Ranked] = {}
    for position, (sentence, counts) in enumerate(candidates):
        length = 1 - _B + _B * counts.total() / mean
        score = 0.0
        # Sorted: a set's order differs between processes, and so would the last bit of the sum.
        for term in sorted(counts.keys() & wanted):
            rarity = math.log(1 + (len(candidates) - frequency[term] + 0.5) / (frequency[term] + 0.5))
            score += rarity * counts[term] * (_K1 + 1) / (counts[term] + _K1 * length)
        if numeric and any(character.isdigit() for character in sentence):
            score *= _NUMBER_BONUS
        if score > 0 and sentence not in ranked:
            ranked[sentence] = Ranked(sentence, position, score)
    return sorted(ranked.values(), key=lambda found: (-found.score, found.position))


def best(ranked: Sequence[Ranked], limit: int) -> list[str]:
    """The texts of the first `limit` sentences of a ranking, in document order, without those far behind."""
    if not ranked:
        return []
    worthy = [found for found in ranked[:limit] if found.score >= _WORTH_QUOTING * ranked[0].score]
    return [found.text for found in sorted(worthy, key=lambda found: found.position)]
