"""Reading a conversation: what is asked, what may be quoted, which tools have already answered."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prem_core.enclave.engines.base import EngineError
from prem_core.enclave.extractive import pieces
from prem_core.enclave.extractive.media import audio_note, file_text, flatten, image_note
from prem_core.enclave.extractive.words import is_question, sentences

_SHORT_REQUEST = 1000


@dataclass(frozen=True)
class Answered:
    """A tool call of the current turn that has its result."""

    name: str
    arguments: Mapping[str, Any]
    text: str


@dataclass(frozen=True)
class Prompt:
    """One request as the engine reads it.

    request: everything the last user message says in text parts, as written.
    question: the part of `request` that asks; `material` is the rest of it and the text of its files.
    earlier: the texts of the other messages in order, system messages included.
    notes: one sentence per image or sound in the last user message.
    answered: results of tool calls made after the last user message.
    tokens: the size of the whole prompt, tool and response schemas included.
    """

    request: str
    question: str
    material: tuple[str, ...]
    earlier: tuple[str, ...]
    notes: tuple[str, ...]
    answered: tuple[Answered, ...]
    tokens: int

    @property
    def asking(self) -> str:
        """What may ask for tools: a short request whole; of a long one only the question, as the rest is matter."""
        return self.request if len(self.request) <= _SHORT_REQUEST else self.question[:_SHORT_REQUEST]

    @property
    def passages(self) -> tuple[str, ...]:
        """Everything that may be quoted in answer to the question, in conversation order."""
        return self.earlier + self.material


@dataclass
class _Content:
    """The parts of one message by what they are."""

    typed: list[str]
    documents: list[str]
    notes: list[str]

    @property
    def everything(self) -> list[str]:
        return self.typed + self.documents + self.notes


def read_prompt(params: Mapping[str, Any]) -> Prompt:
    """Read the messages of schema-valid inference params. Raises EngineError 400 for parts it cannot take."""
    messages: Sequence[Mapping[str, Any]] = params["messages"]
    contents = [_content(message) for message in messages]
    last = max(
        (i for i, message in enumerate(messages) if message["role"] == "user"), default=len(messages) - 1
    )
    asked = contents[last] if messages else _Content([], [], [])
    question, material = "", list(asked.typed[:-1])
    if asked.typed:
        question, rest = split_question(asked.typed[-1])
        material += rest
    earlier = [text for i, content in enumerate(contents) if i < last for text in content.everything]
    schemas = [params[name] for name in ("tools", "response_format") if name in params]
    read = [text for content in contents for text in content.everything]
    read += [json.dumps(schema, ensure_ascii=False) for schema in schemas]
    return Prompt(
        request="\n".join(asked.typed),
        question=question,
        material=tuple(material + asked.documents),
        earlier=tuple(earlier),
        notes=tuple(asked.notes),
        answered=tuple(_answered(messages[last + 1 :], contents[last + 1 :])),
        tokens=sum(pieces.count(text) for text in read),
    )


def _content(message: Mapping[str, Any]) -> _Content:
    if message.get("audio"):
        raise EngineError("audio replies cannot be referred to: this engine has none", param="audio")
    content = message.get("content")
    if isinstance(content, str):
        return _Content([content] if content.strip() else [], [], [])
    read = _Content([], [], [])
    for part in content or ():
        kind = part["type"]
        if kind == "text":
            read.typed += [part["text"]] if part["text"].strip() else []
        elif kind == "file":
            read.documents.append(file_text(part["file"]))
        elif kind == "image_url":
            read.notes.append(image_note(part["image_url"]["url"]))
        elif kind == "input_audio":
            read.notes.append(audio_note(part["input_audio"]))
        else:
            raise EngineError("messages hold a content part of an unknown type", param="messages")
    return read


def _answered(messages: Sequence[Mapping[str, Any]], contents: Sequence[_Content]) -> Iterator[Answered]:
    calls: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for message, content in zip(messages, contents, strict=True):
        for call in message.get("tool_calls") or ():
            calls[call["id"]] = (call["function"]["name"], _arguments(call["function"]["arguments"]))
        if message["role"] in ("tool", "function"):
            name, arguments = calls.get(message.get("tool_call_id", ""), (message.get("name", "tool"), {}))
            yield Answered(name, arguments, "\n".join(flatten(text) for text in content.everything))


def _arguments(text: str) -> Mapping[str, Any]:
    try:
        arguments = json.loads(text or "{}")
    except ValueError:
        return {}
    return arguments if isinstance(arguments, dict) else {}


# Labels that prompts put before their parts, as in "Context: ..." and "Question: ...".
_LABEL = re.compile(
    r"^[ \t]*(?:[#*]+[ \t]*)?(?:(?P<question>(?:user )?(?:question|query)|q)"
    r"|(?P<context>context|documents?|passages?|sources?|text|article|excerpts?|background)"
    r"|(?P<answer>(?:helpful )?answer|a|response))(?:[ \t]*\*+)?[ \t]*:(?:\*+)?[ \t]*",
    re.I | re.M,
)
_FENCE = re.compile(r"[ \t]*(-{3,}|={3,}|```|\"\"\")\w*[ \t]*$")
_TAG = re.compile(r"<(context|documents?|text)>")
_INSTRUCTION = re.compile(
    r"(?:please |now )?(?:answer|classify|compare|count|describe|explain|extract|find|generate|get|give|identify|list"
    r"|name|quote|read|return|rewrite|say|show|state|summari[sz]e|tell|translate|use|write)\b",
    re.I,
)


def split_question(text: str) -> tuple[str, list[str]]:
    """Split a message into the question it asks and the rest of it, the material to answer from.

    Labels decide ("Context: ...", "Question: ..."); then a question mark, a first line that ends in a colon or
    begins with an instruction; else the last line or, of a single line, the last sentence is the question.
    """
    parts = [(label.lastgroup, label.end(), label.start()) for label in _LABEL.finditer(text)]
    ends = [start for _, _, start in parts[1:]] + [len(text)]
    sections = [(kind, text[start:end].strip()) for (kind, start, _), end in zip(parts, ends, strict=False)]
    preface = text[: parts[0][2]].strip() if parts else text.strip()
    context = [section for kind, section in sections if kind == "context" and section]
    around, fenced = _fenced(text)
    questions = [section for kind, section in sections if kind == "question" and section]
    if questions:
        question, _, rest = questions[-1].partition("\n\n")
        others = context or fenced or [preface, *questions[:-1], rest]
        return question.strip(), [other for other in others if other.strip()]
    if context:
        *above, below = context
        head, _, tail = below.rpartition("\n")
        if is_question(tail.strip()) and head.strip():
            return tail.strip(), [*above, head.strip()]
        if preface:
            return preface, context
    if fenced and around:
        return around, fenced
    return _unlabelled(text.strip())


def _fenced(text: str) -> tuple[str, list[str]]:
    """The text outside of fences ("---", "```", <context>) as one line, and what each pair of fences holds."""
    if (tag := _TAG.search(text)) and (end := text.rfind(f"</{tag[1]}>")) > tag.end():
        around = text[: tag.start()] + " " + text[end + len(tag[0]) + 1 :]
        return " ".join(around.split()), [text[tag.end() : end].strip()]
    outside: list[str] = []
    blocks: list[list[str]] = []
    fence = ""
    for line in text.splitlines():
        mark = _FENCE.match(line)
        if mark and not fence:
            fence = mark[1]
            blocks.append([])
        elif mark and mark[1] == fence:
            fence = ""
        else:
            (blocks[-1] if fence else outside).append(line)
    if fence:  # a rule that nothing closes is no fence
        return "", []
    inside = ["\n".join(block).strip() for block in blocks]
    return " ".join(" ".join(outside).split()), [block for block in inside if block]


def _unlabelled(text: str) -> tuple[str, list[str]]:
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) <= 1:
        said = sentences(text)
        asking = [i for i, sentence in enumerate(said) if is_question(sentence)]
        chosen = asking[-1] if asking else len(said) - 1
        # Other instructions in the same line are part of what is asked, nothing to answer from.
        rest = [part for i, part in enumerate(said) if i != chosen and not _INSTRUCTION.match(part)]
        return (said[chosen], [" ".join(rest)]) if rest else (text, [])
    first, last = lines[0].strip(), lines[-1].strip()
    above, below = text[: text.rindex(last)].strip(), text[text.index(first) + len(first) :].strip()
    if is_question(last):
        *before, question = sentences(last)
        return question, [above, " ".join(before)]
    if (
        first.endswith(":")
        or is_question(first)
        or (_INSTRUCTION.match(first) and not _INSTRUCTION.match(last))
    ):
        return first, [below]
    return last, [above]
