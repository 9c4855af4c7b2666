"""Reading a chat: what is asked, what may be quoted in answer, and what the tools have returned."""

from __future__ import annotations

import base64
import binascii
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prem_core.enclave.engines.base import EngineError
from prem_core.enclave.engines.quoting.text import sentences


@dataclass(frozen=True)
class ToolResult:
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
        earlier: The texts of the other messages.
        notes: One sentence for each image or recording in the last user message.
        results: What tools returned since then.
    """

    request: str = ""
    question: str = ""
    material: tuple[str, ...] = ()
    earlier: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    results: tuple[ToolResult, ...] = ()

    @property
    def everything(self) -> str:
        """All that values may be taken from, the last message first."""
        results = [result.text for result in self.results]
        return "\n\n".join(filter(None, [*self.material, self.question, *results, *self.earlier]))


def read_prompt(messages: Sequence[Mapping[str, Any]]) -> Prompt:
    """Take the messages of a chat apart.

    Raises:
        EngineError: A part of a message cannot be read.
    """
    users = [position for position, message in enumerate(messages) if message["role"] == "user"]
    last = users[-1] if users else len(messages)
    earlier = [text for message in messages[:last] for text in _content(message)[0]]
    texts, notes = _content(messages[last]) if users else ([], [])
    request = "\n".join(_texts(messages[last])) if users else ""
    question, material = split_question(request)
    files = texts[len(list(_texts(messages[last]))) :] if users else []
    return Prompt(
        request=request,
        question=question,
        material=(*material, *files),
        earlier=tuple(_LABEL.sub("\n", text) for text in earlier),
        notes=tuple(notes),
        results=tuple(_results(messages[last + 1 :])),
    )


def _texts(message: Mapping[str, Any]) -> Iterator[str]:
    content = message.get("content") or ()
    if isinstance(content, str):
        yield content
    else:
        yield from (part["text"] for part in content if part["type"] == "text")


def _content(message: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The texts of a message, those of its files last; and a sentence for each part that is no text."""
    texts, notes = list(_texts(message)), []
    content = message.get("content") or ()
    for part in () if isinstance(content, str) else content:
        match part["type"]:
            case "file":
                texts.append(_file_text(part["file"]))
            case "image_url":
                url = part["image_url"]["url"]
                if url.lower().startswith(("http://", "https://")):
                    notes.append("The image has a remote URL, which is not fetched.")
                else:
                    media_type, data = _decode(url, "image_url")
                    notes.append(
                        f"The image is {media_type or 'of unknown type'}, {len(data):,} bytes; it is not looked at."
                    )
            case "input_audio":
                _, data = _decode(part["input_audio"]["data"], "input_audio")
                notes.append(
                    f"The recording is {part['input_audio']['format']}, {len(data):,} bytes; it is not transcribed."
                )
    return texts, notes


def _decode(data: str, param: str) -> tuple[str, bytes]:
    """The media type and the bytes of a data URL, or of bare base64."""
    head, comma, rest = data.partition(",")
    media_type = head.removeprefix("data:").partition(";")[0].lower() if comma else ""
    try:
        return media_type, base64.b64decode("".join((rest if comma else data).split()), validate=True)
    except (binascii.Error, ValueError):
        raise EngineError(f"{param} is not valid base64", param=param) from None


def _file_text(file: Mapping[str, Any]) -> str:
    if not isinstance(file.get("file_data"), str):
        raise EngineError("a file part needs file_data: file_id is not supported", param="file_data")
    _, content = _decode(file["file_data"], "file_data")
    if content.startswith(b"%PDF-"):
        return _pdf_text(content)
    try:
        return flat(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise EngineError("file_data is neither UTF-8 text nor a PDF", param="file_data") from None


def _pdf_text(content: bytes) -> str:
    try:
        from pypdf import PdfReader
    except ImportError:
        raise EngineError(
            'file_data is a PDF, which needs pypdf: pip install "prem-encrypted[enclave]"', param="file_data"
        ) from None
    try:
        return "\n\n".join(page.extract_text() for page in PdfReader(io.BytesIO(content)).pages)
    except Exception:  # on damaged files, pypdf raises errors of many kinds
        raise EngineError("file_data is a PDF that cannot be read", param="file_data") from None


def flat(text: str) -> str:
    """A JSON object or array as "key: value" lines; any other text unchanged."""
    try:
        value = json.loads(text) if text.lstrip()[:1] in ("{", "[") else None
    except (ValueError, RecursionError):
        value = None
    return text if value is None else "\n".join(_lines(value, ""))


def _lines(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _lines(inner, f"{path} {name}".strip())
    elif isinstance(value, list):
        for inner in value:
            yield from _lines(inner, path)
    else:
        shown = value if isinstance(value, str) else json.dumps(value)
        yield f"{path}: {shown}" if path else shown


def _results(messages: Sequence[Mapping[str, Any]]) -> Iterator[ToolResult]:
    calls: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for message in messages:
        for call in message.get("tool_calls") or ():
            try:
                arguments = json.loads(call["function"]["arguments"] or "{}")
            except ValueError:
                arguments = {}
            calls[call["id"]] = (call["function"]["name"], arguments if isinstance(arguments, dict) else {})
        if message["role"] == "tool":
            name, arguments = calls.get(message["tool_call_id"], ("tool", {}))
            yield ToolResult(name, arguments, flat("\n".join(_texts(message)).strip()))


#: Labels that prompts put before their parts, as in "Context: …" and "Question: …".
_LABEL = re.compile(
    r"(?:^|\n|(?<=[.!?] ))[ \t]*[#*]*[ \t]*(?:(?P<question>question|query|q)"
    r"|(?P<context>context|documents?|text|article)|(?P<answer>(?:helpful )?answer))[ \t]*\**:\**[ \t]*",
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
        labelled = [
            (label.lastgroup, text[label.end() : end].strip())
            for label, end in zip(labels, ends, strict=True)
        ]
        preface = text[: labels[0].start()].strip()
        questions = [part for kind, part in labelled if kind == "question" and part]
        context = [part for kind, part in labelled if kind == "context" and part]
        if questions:
            return questions[-1], context or [part for part in [preface, *questions[:-1]] if part]
        if preface:
            return preface, context
        text = "\n".join(context)
    head, colon, rest = text.partition(":")
    if colon and rest.strip() and _INSTRUCTION.match(head.strip()) and not re.search(r"[\n.?!]", head):
        return head.strip(), [rest.strip()]
    parts = sentences(text)
    asking = [part for part in parts if part.endswith("?")][-1:]
    asking = asking or [part for part in parts[:1] + parts[-1:] if _INSTRUCTION.match(part)]
    if asking and len(parts) > 1:
        before, _, after = text.rpartition(asking[0])
        material = [part.strip() for part in (before, after) if part.strip()]
        # Instructions are no material.
        if all(_INSTRUCTION.match(sentence) for part in material for sentence in sentences(part)):
            material = []
        return asking[0], material
    return ("", [text]) if labels and text else (text.strip(), [])
