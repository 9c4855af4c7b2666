"""Reading a chat: what is asked, what may be quoted in answer, and what the tools have returned."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from prem_core.enclave.engines.base import EngineError, texts_of
from prem_core.enclave.engines.quoting.text import sentences


class ToolResult(NamedTuple):
    """A tool call since the last user message, and what it returned."""

    name: str
    arguments: Mapping[str, Any]
    text: str


@dataclass(frozen=True)
class Prompt:
    """A chat, taken apart.

    Attributes:
        request: The text of the last user message.
        question: The part of `request` that asks.
        material: The rest of `request`, and the text of the message's files.
        earlier: The texts of the messages before it.
        has_media: Whether the last user message holds images or recordings.
        results: What tools returned since then.
    """

    request: str
    question: str
    material: tuple[str, ...]
    earlier: tuple[str, ...]
    has_media: bool
    results: tuple[ToolResult, ...]

    @property
    def everything(self) -> str:
        """All that values may be taken from, the last message first."""
        results = [result.text for result in self.results]
        return "\n\n".join(filter(None, [*self.material, self.question, *results, *self.earlier]))


def read_prompt(messages: Sequence[Mapping[str, Any]]) -> Prompt:
    """Take the messages of a chat apart.

    Raises:
        EngineError: A file in a message cannot be read.
    """
    last = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=len(messages))
    user: Mapping[str, Any] = messages[last] if last < len(messages) else {}
    request = "\n".join(texts_of(user))
    question, material = split_question(request)
    return Prompt(
        request=request,
        question=question,
        material=(*material, *_files(user)),
        earlier=tuple(
            _LABEL.sub("\n", text)
            for message in messages[:last]
            for text in (*texts_of(message), *_files(message))
        ),
        has_media=any(part["type"] in ("image_url", "input_audio") for part in _parts(user)),
        results=tuple(_results(messages[last + 1 :])),
    )


def _parts(message: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    content = message.get("content") or ()
    return () if isinstance(content, str) else content


def _files(message: Mapping[str, Any]) -> Iterator[str]:
    """The text of each file in a message."""
    for part in _parts(message):
        if part["type"] == "file":
            data = part["file"].get("file_data")
            if not isinstance(data, str):
                raise EngineError("a file part needs file_data: file_id is not supported", param="file_data")
            try:
                content = base64.b64decode("".join(data.rpartition(",")[2].split()), validate=True)
                yield (_pdf_text(content) if content.startswith(b"%PDF-") else content.decode("utf-8-sig"))
            except ValueError:
                why = "file_data must be base64 of UTF-8 text or of a PDF"
                raise EngineError(why, param="file_data") from None


def _pdf_text(content: bytes) -> str:
    try:
        from pypdf import PdfReader
    except ImportError:
        message = 'file_data is a PDF, which needs pypdf: pip install "prem-encrypted[enclave]"'
        raise EngineError(message, param="file_data") from None
    try:
        return "\n\n".join(page.extract_text() for page in PdfReader(io.BytesIO(content)).pages)
    except Exception:  # on damaged files, pypdf raises errors of many kinds
        raise EngineError("file_data is a PDF that cannot be read", param="file_data") from None


def _results(messages: Sequence[Mapping[str, Any]]) -> Iterator[ToolResult]:
    calls: dict[str, tuple[str, Any]] = {}
    for message in messages:
        for call in message.get("tool_calls") or ():
            try:
                arguments = json.loads(call["function"]["arguments"])
            except ValueError:
                arguments = {}
            calls[call["id"]] = (call["function"]["name"], arguments if isinstance(arguments, dict) else {})
        if message["role"] == "tool":
            name, arguments = calls.get(message["tool_call_id"], ("tool", {}))
            yield ToolResult(name, arguments, "\n".join(texts_of(message)).strip())


#: Labels that prompts put before their parts, as in "Context: …" and "Question: …".
_LABEL = re.compile(
    r"(?:^|\n|(?<=[.!?] ))[ \t]{0,8}[#*]{0,4} ?(?:(?P<question>question|query|q)"
    r"|(?P<context>context|documents?|text|article)|(?P<answer>(?:helpful )?answer)) ?\*{0,2}:\*{0,2}[ \t]*",
    re.I,
)
_FENCE = re.compile(r"^[ \t]*(-{3,}|={3,}|```|\"\"\")\w*[ \t]*\n(.*)\n[ \t]*\1[ \t]*$", re.M | re.S)
_INSTRUCTION = re.compile(
    r"(?:please )?(?:answer|classify|compare|describe|explain|extract|find|give|identify|list|quote|read|return|"
    r"rewrite|say|show|summari[sz]e|tell|translate|write)\b",
    re.I,
)


def split_question(text: str) -> tuple[str, list[str]]:
    """The part of a message that asks, and the other parts.

    Fences and labels decide ("Question: …"); then an instruction before a colon; then the last question mark; then
    an instruction at the beginning or at the end.
    """
    if fence := _FENCE.search(text):
        question, more = split_question(text[: fence.start()] + "\n" + text[fence.end() :])
        return question, [fence[2], *more]
    labels = list(_LABEL.finditer(text))
    if labels:
        ends = [label.start() for label in labels[1:]] + [len(text)]
        parts: dict[str | None, list[str]] = {"question": [], "context": []}
        for label, end in zip(labels, ends, strict=True):
            parts.setdefault(label.lastgroup, []).append(text[label.end() : end].strip())
        preface = text[: labels[0].start()].strip()
        if questions := [part for part in parts["question"] if part]:
            return questions[-1], parts["context"] or [part for part in [preface, *questions[:-1]] if part]
        if preface:
            return preface, parts["context"]
        text = "\n".join(parts["context"])
    head, _, rest = text.partition(":")
    if rest.strip() and _INSTRUCTION.match(head.strip()) and not re.search(r"[\n.?!]", head):
        return head.strip(), [rest.strip()]
    found = sentences(text)
    asking = [part for part in found if part.endswith("?")][-1:]
    asking = asking or [part for part in found[:1] + found[-1:] if _INSTRUCTION.match(part)]
    if asking and len(found) > 1:
        before, _, after = text.rpartition(asking[0])
        material = [part.strip() for part in (before, after) if part.strip()]
        # Instructions are no material.
        if all(_INSTRUCTION.match(sentence) for part in material for sentence in sentences(part)):
            material = []
        return asking[0], material
    return ("", [text]) if labels and text else (text.strip(), [])
