"""How the site reads docstrings and signatures, where griffe alone would not do.

LangChain's docstrings have a form of their own, with ``Key init args`` and reStructuredText's ``.. code-block::``; a
``::`` stands before a drawing or an example in others. And the arguments of a Pydantic class are its fields, which is
seen only where it runs.
"""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
from typing import Any

import griffe
import pydantic

#: A directive or a "::", an empty line, and what is indented below.
_BLOCK = re.compile(
    r"^(?P<indent>[ ]*)(?:\.\. code-block:: *(?P<language>\w+)|(?P<before>\S.*:)?:)\n\n?"
    r"(?P<code>(?:(?P=indent)[ ]+.*\n|[ ]*\n)+)",
    re.MULTILINE,
)

#: LangChain's lists of arguments: a heading, and below it a name with a type above each description.
_INIT_ARGS = re.compile(r"^(?P<heading>Key init args.*):\n(?P<entries>(?:[ ]{4,}.*\n)+)", re.MULTILINE)
_ENTRY = re.compile(r"^(?P<names>[\w, .]+?)(?:: (?P<type>.+))?\n(?P<text>(?:[ ]+.*\n?)+)", re.MULTILINE)


class Reader(griffe.Extension):
    """Fences and lists in place of other forms, and fields in the signatures of Pydantic classes."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite an object's docstring when it was read."""
        if obj.docstring is not None:
            text = _BLOCK.sub(_fenced, obj.docstring.value + "\n")
            obj.docstring.value = _INIT_ARGS.sub(_listed, text).strip()

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """Give a Pydantic class that documents its arguments the ``__init__`` that Pydantic makes."""
        if cls.docstring is None or "\nArgs:\n" not in cls.docstring.value:
            return
        made = getattr(importlib.import_module(cls.module.path), cls.name, None)
        if isinstance(made, type) and issubclass(made, pydantic.BaseModel):
            cls.set_member("__init__", _initialiser(made))


def _fenced(block: re.Match[str]) -> str:
    code = textwrap.dedent(block["code"]).strip("\n")
    before = f"{block['before']}\n\n" if block["before"] else ""
    fenced = f"{before}```{block['language'] or 'text'}\n{code}\n```\n\n"
    return textwrap.indent(fenced, block["indent"])


def _listed(section: re.Match[str]) -> str:
    def item(entry: re.Match[str]) -> str:
        names = ", ".join(f"`{name}`" for name in re.split(", *", entry["names"].replace("\n", " ")) if name)
        kind = f" (`{entry['type']}`)" if entry["type"] else ""
        return f"- {names}{kind}: {' '.join(entry['text'].split())}\n"

    return f"**{section['heading']}**\n\n{_ENTRY.sub(item, textwrap.dedent(section['entries']))}\n"


def _initialiser(model: type[pydantic.BaseModel]) -> griffe.Function:
    given = inspect.signature(model).parameters.values()
    arguments = [
        griffe.Parameter(
            each.name,
            annotation=_annotation(model, each.name),
            kind=griffe.ParameterKind.keyword_only,
            default=None if each.default is each.empty else repr(each.default),
        )
        for each in given
        if each.name in model.model_fields
    ]
    return griffe.Function("__init__", parameters=griffe.Parameters(*arguments))


def _annotation(model: type[pydantic.BaseModel], field: str) -> str:
    """A field's annotation, as it was written."""
    owner = next(each for each in model.__mro__ if field in inspect.get_annotations(each))
    written = inspect.get_annotations(owner)[field]
    return written if isinstance(written, str) else inspect.formatannotation(written)
