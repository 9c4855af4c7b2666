"""Answers in words: sentences quoted for a question, the results of tools, what is known of an image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from prem_core.enclave.extractive.pieces import compact
from prem_core.enclave.extractive.prompt import Answered, Prompt
from prem_core.enclave.extractive.ranking import best, rank
from prem_core.enclave.extractive.words import is_closed, sentences

SENTENCES = {"low": 1, "medium": 2, "high": 3}
_SHORT_RESULT = 3  # a tool result of up to so many sentences is quoted whole
_ERROR = re.compile(r"\s*(?:\w*Error|Exception|Traceback|Failed|Failure)\b|.{0,20}\berror\s*:", re.I)
_SUMMARY = re.compile(
    r"\b(?:summar\w+|tl;?dr|overview|gist|key points|main (?:points?|ideas?)|describe|about)\b", re.I
)
_MEDIA = re.compile(
    r"\b(?:image|picture|photo|screenshot|diagram|audio|sound|recording|voice|hear|see|describe)\b", re.I
)
_MAX_ECHO = 300


@dataclass(frozen=True)
class Answer:
    """An answer and, for the reasoning, how it was come by."""

    text: str
    why: str


def answer(prompt: Prompt, limit: int, skip: int = 0) -> Answer:
    """The answer to the question: at most `limit` sentences, from the best after the first `skip`.

    After tool calls it is their results; with nothing to quote, an echo that says so. Never empty.
    """
    if prompt.answered:
        return _from_results(prompt, limit, skip)
    ranked = rank(prompt.question, prompt.passages)
    chosen = best(ranked[skip:] or ranked, limit)
    if prompt.notes and (not chosen or _MEDIA.search(prompt.question)):
        return Answer(
            " ".join(prompt.notes), "The question comes with media, of which only the headers are read."
        )
    said = [sentence for passage in prompt.material for sentence in sentences(passage)]
    if said and (not chosen or _SUMMARY.match(prompt.question)) and _SUMMARY.search(prompt.question):
        return Answer(
            joined(said[skip : skip + limit] or said[:limit]), "The material is summed up by its beginning."
        )
    if chosen:
        return Answer(
            joined(chosen), f"Sentences that match the question: {len(ranked)}; quoted: {len(chosen)}."
        )
    echo = " ".join(prompt.question.split())
    echo = echo if len(echo) <= _MAX_ECHO else echo[:_MAX_ECHO] + "…"
    if said:
        return Answer(
            f'Nothing in the given text answers: "{echo}"',
            "No sentence of the material matches the question.",
        )
    if not echo:
        return Answer("Nothing was asked.", "There is no user message with text.")
    return Answer(f'You said: "{echo}"', "Nothing in the conversation answers this; it is echoed.")


def _from_results(prompt: Prompt, limit: int, skip: int) -> Answer:
    names = sorted({result.name for result in prompt.answered})
    why = f"Results of {', '.join(names)} are at hand; they answer the request."
    if len(prompt.answered) == 1:
        result = prompt.answered[0]
        text = _result(result, prompt.question, limit, skip)
        return Answer(f"{result.name} reported: {text}" if _ERROR.match(result.text) else text, why)
    lines = [
        f"{_call(result)}: {_result(result, prompt.question, limit, skip)}" for result in prompt.answered
    ]
    return Answer("\n".join(lines), why)


def _call(result: Answered) -> str:
    arguments = ", ".join(
        f"{name}: {value if isinstance(value, str) else compact(value)}"
        for name, value in result.arguments.items()
    )
    return f"{result.name}({arguments})"


def _result(result: Answered, question: str, limit: int, skip: int) -> str:
    text = result.text.strip()
    if not text:
        return f"{result.name} returned nothing."
    said = sentences(text)
    if len(said) <= max(_SHORT_RESULT, limit):
        return text
    ranked = rank(question, [text])
    return joined(best(ranked[skip:] or ranked, limit) or said[:limit])


def joined(texts: Sequence[str]) -> str:
    """Sentences on one line; what does not end like a sentence (a row, a heading) gets a line of its own."""
    text = ""
    for part in texts:
        separator = "" if not text else " " if is_closed(text) else "\n"
        text += separator + part
    return text
