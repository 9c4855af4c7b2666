"""A short string that a regular expression matches, for `pattern` in schemas: best effort, common syntax only."""

from __future__ import annotations

_CLASSES = {"d": "0", "w": "a", "s": " ", "D": "a", "W": "-", "S": "a", "n": "\n", "t": "\t", "r": "\r"}
_EMPTY_ESCAPES = "bBAZz"
_CANDIDATES = "a0A-_ .:/@#"


def shortest_match(pattern: str) -> str:
    """A short string built along `pattern`: first alternatives, least repetitions. It need not match
    (look-around and back-references are passed over), so callers check."""
    try:
        text, _ = _alternatives(pattern, 0)
    except (IndexError, ValueError, RecursionError):
        return ""
    return text


def _alternatives(pattern: str, at: int) -> tuple[str, int]:
    """The first alternative from `at` on, and where the group ends (at its parenthesis or the pattern's end)."""
    first: str | None = None
    text = ""
    while at < len(pattern) and pattern[at] != ")":
        if pattern[at] == "|":
            first = text if first is None else first
            text, at = "", at + 1
            continue
        atom, at = _atom(pattern, at)
        least, at = _least(pattern, at)
        text += atom * least
    return (text if first is None else first), at


def _atom(pattern: str, at: int) -> tuple[str, int]:
    character = pattern[at]
    if character in "^$":
        return "", at + 1
    if character == ".":
        return "a", at + 1
    if character == "\\":
        escaped = pattern[at + 1]
        return ("" if escaped in _EMPTY_ESCAPES else _CLASSES.get(escaped, escaped)), at + 2
    if character == "[":
        return _set(pattern, at + 1)
    if character == "(":
        return _group(pattern, at + 1)
    return character, at + 1


def _group(pattern: str, at: int) -> tuple[str, int]:
    silent = False
    if pattern[at] == "?":
        silent = pattern.startswith(("?=", "?!", "?<=", "?<!"), at)
        if pattern.startswith(("?P<", "?<"), at) and not silent:
            at = pattern.index(">", at) + 1
        else:
            at += 3 if pattern.startswith("?<", at) else 2
    text, at = _alternatives(pattern, at)
    return ("" if silent else text), at + 1


def _set(pattern: str, at: int) -> tuple[str, int]:
    negated = pattern[at] == "^"
    at += negated
    members: list[tuple[str, str]] = []
    first = True
    while first or pattern[at] != "]":
        first = False
        low, at = (
            (_CLASSES.get(pattern[at + 1], pattern[at + 1]), at + 2)
            if pattern[at] == "\\"
            else (pattern[at], at + 1)
        )
        high = low
        if pattern[at] == "-" and pattern[at + 1] != "]":
            high, at = pattern[at + 1], at + 2
        members.append((low, high))
    if not negated:
        return members[0][0], at + 1
    allowed = (c for c in _CANDIDATES if not any(low <= c <= high for low, high in members))
    return next(allowed, "a"), at + 1


def _least(pattern: str, at: int) -> tuple[int, int]:
    """How often the atom before `at` must occur at least, and where its quantifier ends."""
    if at >= len(pattern):
        return 1, at
    least = 1
    if pattern[at] in "*?+":
        least, at = int(pattern[at] == "+"), at + 1
    elif pattern[at] == "{" and (end := pattern.find("}", at)) > 0 and pattern[at + 1 : at + 2].isdigit():
        least, at = int(pattern[at + 1 : end].split(",")[0]), end + 1
    else:
        return 1, at
    return min(least, 1000), at + (pattern[at : at + 1] in ("?", "+"))
