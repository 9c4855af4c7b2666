"""Whether a text mentions a member of an enum, and which mentions only list the choices."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from prem_core.enclave.extractive.words import WORD, sentences

CURRENCY_SIGNS = {"$": "USD", "€": "EUR", "£": "GBP", "¥": "JPY"}


def _mention(member: Any) -> re.Pattern[str] | None:
    words = WORD.findall(str(member).replace("_", " ").replace("-", " "))
    if not words or isinstance(member, bool) or member is None:
        return None
    body = r"[\s_-]+".join(re.escape(word) for word in words)
    symbols = "".join(re.escape(sign) for sign, code in CURRENCY_SIGNS.items() if code == member)
    flags = re.I if len(str(member)) > 1 else re.NOFLAG
    return re.compile(rf"(?<!\w){body}(?!\w)" + (f"|[{symbols}]" if symbols else ""), flags)


def mentioned_at(text: str, member: Any) -> int:
    """Where `text` first mentions `member`, as words in any case or as a currency sign; -1 if nowhere."""
    pattern = _mention(member)
    found = pattern.search(text) if pattern else None
    return found.start() if found else -1


def _mentions(text: str, member: Any) -> bool:
    return mentioned_at(text, member) >= 0


def without_listings(text: str, members: Sequence[Any]) -> str:
    """`text` with sentences blanked that list every member: they say what may be chosen, not what is so."""
    if len(members) < 2 or not all(_mentions(text, member) for member in members):
        return text
    for sentence in sentences(text):
        if all(_mentions(sentence, member) for member in members):
            text = text.replace(sentence, " " * len(sentence))
    return text
