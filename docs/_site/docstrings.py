"""Make docstrings and signatures readable for the site, where griffe alone does not.

- LangChain's docstrings have headings ``Key init args``, and reStructuredText's ``.. code-block::``.
- Other docstrings put ``::`` before a drawing or an example, or head an example ``Example:``.
- The arguments of a Pydantic class are its fields, which only the imported class shows.
- The arguments of ``**params: Unpack[SomeTypedDict]`` are the keys of the TypedDict.
"""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
import types
import typing
from typing import Any

import griffe
import pydantic
import typing_extensions

#: A directive or a "::", an empty line, and the indented lines below.
_BLOCK = re.compile(
    r"^(?P<indent>[ ]*)(?:\.\. code-block:: *(?P<language>\w+)|(?P<before>\S.*:)?:)\n\n?"
    r"(?P<code>(?:(?P=indent)[ ]+.*\n|[ ]*\n)+)",
    re.MULTILINE,
)

#: LangChain's lists of arguments: a heading, and below it a name with a type above each description.
_INIT_ARGS = re.compile(r"^(?P<heading>Key init args.*):\n(?P<entries>(?:[ ]{4,}.*\n)+)", re.MULTILINE)
_ENTRY = re.compile(r"^(?P<names>[\w, .]+?)(?:: (?P<type>.+))?\n(?P<text>(?:[ ]+.*\n?)+)", re.MULTILINE)

#: A section that griffe knows only in the plural, and reads as a quotation in the singular.
_EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)

#: The heading of a docstring's arguments.
_ARGS = re.compile(r"^Args:\n", re.MULTILINE)


class Reader(griffe.Extension):
    """Rewrites docstrings, and adds the arguments that the source does not spell out."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Replace the forms that griffe does not read by those that it reads."""
        if obj.docstring is not None:
            text = _BLOCK.sub(_fenced, obj.docstring.value + "\n")
            text = _EXAMPLE.sub("Examples:", text)
            obj.docstring.value = _INIT_ARGS.sub(_listed, text).strip()

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """Give a Pydantic class that documents its arguments an ``__init__``, and list the keys of a TypedDict."""
        if cls.docstring is None:
            return
        made = getattr(importlib.import_module(cls.module.path), cls.name, None)
        if typing_extensions.is_typeddict(made):
            cls.docstring.value += f"\n\nAttributes:\n{_entries(cls, mark_optional=True)}"
        elif (
            "\nArgs:\n" in cls.docstring.value
            and isinstance(made, type)
            and issubclass(made, pydantic.BaseModel)
        ):
            cls.set_member("__init__", _initialiser(made))

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """List the keys of an unpacked TypedDict as arguments in the docstring."""
        owner = func.parent if func.name == "__init__" and func.docstring is None else func
        if owner is None or owner.docstring is None:
            return
        for each in func.parameters:
            annotation = each.annotation
            if (
                each.kind is griffe.ParameterKind.var_keyword
                and isinstance(annotation, griffe.ExprSubscript)
                and str(annotation.left).endswith("Unpack")
                and not isinstance(annotation.slice, str)
            ):
                options = func.modules_collection[annotation.slice.canonical_path]
                owner.docstring.value = _with_arguments(owner.docstring.value, each.name, options)


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


def _with_arguments(docstring: str, name: str, options: griffe.Object) -> str:
    """A docstring in which the entry ``**name`` is replaced by an entry for each key of a TypedDict."""
    entries = _entries(options, docstring)
    entry = re.compile(rf"^    \*\*{name}:.*\n?(?:^     +.*\n?)*", re.MULTILINE)
    if entry.search(docstring):
        return entry.sub(lambda _: entries, docstring + "\n", count=1).strip()
    if _ARGS.search(docstring):
        return _ARGS.sub(lambda _: f"Args:\n{entries}", docstring, count=1)
    return f"{docstring}\n\nArgs:\n{entries}".strip()


def _entries(options: griffe.Object, docstring: str = "", *, mark_optional: bool = False) -> str:
    """The keys of a TypedDict as entries of a docstring, without those that `docstring` has already."""
    described = _field_docstrings(options)
    imported = getattr(importlib.import_module(options.module.path), options.name)
    entries = ""
    for key, hint in typing.get_type_hints(imported, include_extras=True).items():
        if not re.search(rf"^    {key}(?: \(.*\))?:", docstring, re.MULTILINE):
            kind, bounds = _type_and_bounds(hint)
            optional = mark_optional and not _is_required(hint, total=imported.__total__)
            words = [
                " ".join(described.get(key, "").split()),
                bounds and f"{bounds}.",
                optional and "Optional.",
            ]
            text = " ".join(filter(None, words))
            entries += f"    {key} ({kind}): {text}\n"
    return entries


def _field_docstrings(options: griffe.Object) -> dict[str, str]:
    """The strings below the keys of a TypedDict, and of those it extends, by key."""
    described: dict[str, str] = {}
    for base in getattr(options, "resolved_bases", ()):
        described |= _field_docstrings(base)
    fields = options.attributes.items()
    return described | {name: field.docstring.value for name, field in fields if field.docstring}


def _is_required(hint: Any, *, total: bool) -> bool:
    # `__required_keys__` is of no use: annotations that are strings hide Required and NotRequired from it.
    origin = typing.get_origin(hint)
    return origin is not typing.NotRequired and (total or origin is typing.Required)


def _type_and_bounds(hint: Any) -> tuple[str, str]:
    """A type as Python writes it without `Annotated`, and in words what `Annotated` adds at the top."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Required, typing.NotRequired):
        return _type_and_bounds(arguments[0])
    if origin is typing.Annotated:
        return _type_and_bounds(arguments[0])[0], _bounds(arguments[1:])
    if origin is typing.Literal:
        return " | ".join(map(repr, arguments)).replace("'", '"'), ""
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_type_and_bounds(each)[0] for each in arguments), ""
    if origin is not None:
        return f"{origin.__name__}[{', '.join(_type_and_bounds(each)[0] for each in arguments)}]", ""
    return getattr(hint, "__name__", str(hint)).replace("NoneType", "None"), ""


def _bounds(metadata: tuple[Any, ...]) -> str:
    found = {
        name: value
        for field in metadata
        for each in (getattr(field, "metadata", None) or [])
        for name in ("ge", "le", "min_length", "max_length", "pattern")
        if (value := getattr(each, name, None)) is not None
    }
    words: list[str] = []
    if "ge" in found:
        words.append(f"From {found['ge']} to {found['le']}" if "le" in found else f"At least {found['ge']}")
    if "min_length" in found:
        words.append(f"at least {found['min_length']} item{'s' if found['min_length'] > 1 else ''}")
    if "max_length" in found:
        words.append(f"at most {found['max_length']} items")
    if "pattern" in found:
        words.append(f"pattern `{found['pattern']}`")
    return ", ".join(words)[:1].upper() + ", ".join(words)[1:]
