# ruff: noqa: RUF001 - typographic apostrophes are what prompts hold.
"""Quotes of a prompt for required strings that it does not state: its own words instead of invented ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property

from prem_core.enclave.extractive.ranking import rank
from prem_core.enclave.extractive.words import STOPWORDS, sentences

_READ = 20_000  # characters of each text that are quoted from
_BEST = 20
_PHRASE_ENDS = re.compile(rf"\b(?:{'|'.join(sorted(STOPWORDS))})\b|[^\w\s'’-]", re.I)


class Quotes:
    """Hands out quotes of `texts`, a new one each time while there are any."""

    def __init__(self, texts: Sequence[str], topic: str) -> None:
        self._texts = [text[:_READ] for text in texts]
        self._topic = topic
        self._given: set[str] = set()

    def next(self, about: str) -> str:
        """The sentence closest to `about` and the topic; then any sentence, then a phrase; "" of an empty prompt."""
        ranked = [found.text for found in rank(f"{about} {self._topic}", self._texts)[:_BEST]]
        candidates = ranked + self._others
        chosen = next((text for text in candidates if text not in self._given), (candidates or [""])[0])
        self._given.add(chosen)
        return chosen

    @cached_property
    def _others(self) -> list[str]:
        said = [sentence for text in self._texts for sentence in sentences(text)[:_BEST]]
        runs = [run.strip(" '’-\n") for text in self._texts for run in _PHRASE_ENDS.split(text[:2000])]
        return said + [run for run in reversed(runs) if run]
