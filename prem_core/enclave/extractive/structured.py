"""Replies for response_format: values for a JSON schema, or for the keys that a prompt asks a JSON object for."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from prem_core.enclave.extractive.answers import answer
from prem_core.enclave.extractive.material import Material
from prem_core.enclave.extractive.prompt import Prompt
from prem_core.enclave.extractive.schemas import readable
from prem_core.enclave.extractive.values import Found, extract

# A word that announces the shape of the reply, before an embedded object.
_ANNOUNCED = re.compile(
    r"\b(?:schema|format|example|like|shape|structure|template|form|return|output|respond)\b", re.I
)
_KEY_WORD = re.compile(r"\b(?:keys?|fields?|properties|property|attributes?|members?)\b", re.I)
_QUOTED = re.compile(r"[\"'`“]([A-Za-z_][\w -]{0,60})[\"'`”]")
_BARE_KEYS = re.compile(
    r"\s*(?::|are|named|called)?\s*((?:\w+\s*,\s*)*\w+(?:\s*,?\s*(?:and|or|&)\s+\w+)?)", re.I
)
_MAX_SCANNED = 20_000  # of each message: a prompt asks for keys near its beginning or its end
_MAX_OBJECTS = 50


def schema_reply(schema: Mapping[str, Any], prompt: Prompt) -> Found:
    """A value valid under `schema`, taken from the conversation: the last message and tool results first."""
    results = [result.text for result in prompt.answered]
    files = [part for part in prompt.material if part not in prompt.request]
    own = Material("\n\n".join([prompt.request, *files, *results, *prompt.notes]))
    return extract(schema, own, background="\n\n".join(prompt.earlier), topic=prompt.question)


def object_reply(prompt: Prompt, limit: int) -> Found:
    """A JSON object with the keys that the prompt asks for, or {"answer": ...} when it asks for none."""
    asked_in = [prompt.request, *reversed(prompt.earlier)]
    for text in asked_in:
        schema, rest = _asked_schema(text)
        if schema:
            # What says how to reply is no material to take values from.
            request = rest if text is prompt.request else prompt.request
            material = tuple(part for part in prompt.material if part not in prompt.request)
            return schema_reply(schema, replace(prompt, request=request, material=material))
    return Found({"answer": answer(prompt, limit).text}, 1, True)


def _asked_schema(text: str) -> tuple[dict[str, Any] | None, str]:
    """The schema that `text` asks for, and `text` without it: an embedded schema, named keys or an example."""
    scanned = text if len(text) <= 2 * _MAX_SCANNED else text[:_MAX_SCANNED] + "\n" + text[-_MAX_SCANNED:]
    objects = _objects(scanned)
    for start, end, value in reversed(objects):
        if isinstance(value.get("properties"), dict) and readable(value):
            return value, text.replace(scanned[start:end], "")
    keys, sentence = _named_keys(scanned)
    if keys:
        schema = {"type": "object", "properties": {name: {} for name in keys}, "required": keys}
        return schema, text.replace(sentence, "")
    for start, end, value in objects:
        if _ANNOUNCED.search(scanned[max(0, start - 120) : start]):
            return _like(value), text.replace(scanned[start:end], "")
    return None, text


def _objects(text: str) -> list[tuple[int, int, dict[str, Any]]]:
    """The outermost JSON objects in `text`: (start, end, value)."""
    decoder = json.JSONDecoder()
    found: list[tuple[int, int, dict[str, Any]]] = []
    at = text.find("{")
    for _ in range(_MAX_OBJECTS):
        if at < 0:
            break
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            at = text.find("{", at + 1)
            continue
        if value:
            found.append((at, end, value))
        at = text.find("{", end)
    return found


def _named_keys(text: str) -> tuple[list[str], str]:
    """Keys named in one sentence with a word for keys, quoted or as "keys a, b and c"; and that sentence."""
    for sentence in re.split(r"(?<=[.!?])\s|\n", text):
        word = _KEY_WORD.search(sentence)
        if not word:
            continue
        if quoted := _QUOTED.findall(sentence):
            return list(dict.fromkeys(quoted)), sentence
        bare = _BARE_KEYS.match(sentence, word.end())
        names = re.split(r"\s*,\s*(?:and\s+|or\s+)?|\s+(?:and|or|&)\s+", bare[1]) if bare else []
        if names and all(re.fullmatch(r"[^\W\d]\w*", name) for name in names):
            return list(dict.fromkeys(names)), sentence
    return [], ""


def _like(example: Any) -> dict[str, Any]:
    """A schema for values of the shape of `example`."""
    if isinstance(example, dict):
        properties = {name: _like(value) for name, value in example.items()}
        return {"type": "object", "properties": properties, "required": list(example)}
    if isinstance(example, list):
        return {"type": "array", "items": _like(example[0]) if example else {}}
    if isinstance(example, bool):
        return {"type": "boolean"}
    if isinstance(example, (int, float)):
        return {"type": "number"}
    return {"type": "string"}
