"""Every representation of an object or an error: displayed or serialised."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import pickle
import pprint
import reprlib
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final

from langchain_core.load import dumpd, dumps
from langchain_core.load.serializable import Serializable
from llama_index.core.schema import BaseComponent
from pydantic import BaseModel, ValidationError

import langchain_prem
import llama_index_prem
import prem_core

Form = tuple[str, str | bytes]

PACKAGE_FILES: Final = tuple(
    f"{Path(str(package.__file__)).parent}/" for package in (prem_core, langchain_prem, llama_index_prem)
)


def displayed(thing: Any) -> Iterator[Form]:
    """What a print, a log, a debugger or an error report displays of `thing`."""
    yield "repr", repr(thing)
    yield "str", str(thing)
    yield "format", format(thing)
    yield "f-string", f"{thing!r} {thing!s} {thing!a}"
    yield "percent", "%r %s" % (thing, thing)  # noqa: UP031 - as logging formats
    yield "in a list", repr([thing])
    yield "pprint", pprint.pformat(thing)
    yield "reprlib", reprlib.repr(thing)
    yield "json default=str", json.dumps([thing], default=str)
    yield "log", logging.Formatter().format(logging.LogRecord("", 0, "", 0, "%s %r", (thing, thing), None))
    yield "public attributes", repr({name: value for name, value in _attributes(thing) if name[0] != "_"})
    if hasattr(thing, "__rich_repr__"):
        yield "rich", repr(list(thing.__rich_repr__()))
    if isinstance(thing, BaseException):
        yield from _displayed_error(thing)


def serialised(thing: Any) -> Iterator[Form]:
    """What a pickle or another dump of `thing` contains, and what its copies display."""
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        try:
            pickled = pickle.dumps(thing, protocol)
        except (TypeError, AttributeError, pickle.PicklingError):
            continue
        yield f"pickle {protocol}", pickled
    for make in (copy.copy, copy.deepcopy):
        try:
            made = make(thing)
        except TypeError:
            continue
        yield make.__name__, repr(made) + str(made)
    yield from _framework_dumps(thing)


def _framework_dumps(thing: Any) -> Iterator[Form]:
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        yield "asdict", repr(dataclasses.asdict(thing))
    if isinstance(thing, BaseModel):
        yield "model_dump", repr(thing.model_dump())
        yield "model_dump json mode", repr(thing.model_dump(mode="json", fallback=str))
        yield "model_dump_json", thing.model_dump_json(fallback=str)
    yield "dumps", dumps(thing)
    yield "dumpd", repr(dumpd(thing))
    if isinstance(thing, Serializable):
        yield "to_json", repr(thing.to_json())
        yield "to_json_not_implemented", repr(thing.to_json_not_implemented())
        yield "lc_attributes", repr((thing.lc_attributes, thing.lc_secrets, type(thing).lc_id()))
    for name in (
        "_identifying_params",
        "_llm_type",
        "_get_ls_params",
        "_get_invocation_params",
        "asdict",
        "metadata",
    ):
        value = getattr(thing, name, None)
        yield name, repr(value() if callable(value) else value)
    if isinstance(thing, BaseComponent):
        yield "to_dict", repr(thing.to_dict())
        yield "LlamaIndex to_json", thing.to_json()
        yield "class_name", thing.class_name()


def _attributes(thing: Any) -> Iterable[tuple[str, Any]]:
    yield from getattr(thing, "__dict__", {}).items()
    for kind in type(thing).__mro__:
        for name in getattr(kind, "__slots__", ()):
            if isinstance(name, str) and not name.startswith("_") and hasattr(thing, name):
                yield name, getattr(thing, name)


# --- errors


def error_chain(error: BaseException) -> list[BaseException]:
    """`error`, its causes, its contexts and the errors that they group."""
    find_secrets: list[BaseException] = []
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop()
        if current is None or any(current is each for each in find_secrets):
            continue
        find_secrets.append(current)
        pending += [current.__cause__, current.__context__, *getattr(current, "exceptions", ())]
        if isinstance(current, ValidationError):
            pending += [each.get("ctx", {}).get("error") for each in current.errors()]
    return find_secrets


def _displayed_error(error: BaseException) -> Iterator[Form]:
    for each in error_chain(error):
        kind = type(each).__name__
        yield f"{kind} text", f"{each} {each!r}"
        yield f"{kind} args", repr(each.args)
        yield f"{kind} attributes", repr(getattr(each, "__dict__", None))
        yield f"{kind} notes", repr(getattr(each, "__notes__", None))
        # Where well-known errors keep the value that caused them.
        kept_there = ("object", "doc", "request", "response", "input", "filename", "obj")
        yield f"{kind} well-known attributes", repr([getattr(each, name, None) for name in kept_there])
        if isinstance(each, ValidationError):
            yield "errors()", repr(each.errors())
            yield "json()", each.json()
    yield "traceback", "".join(traceback.format_exception(error))
    yield "log with exc_info", logging.Formatter().formatException((type(error), error, error.__traceback__))


def package_locals(error: BaseException) -> Iterator[Form]:
    """The local variables of this package's frames in the tracebacks of `error` and its chain."""
    for each in error_chain(error):
        for frame, _ in traceback.walk_tb(each.__traceback__):
            if frame.f_code.co_filename.startswith(PACKAGE_FILES):
                for name, value in frame.f_locals.items():
                    yield f"{_place(frame)}: {name}", _safe_repr(value)


def _place(frame: FrameType) -> str:
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_qualname}"


def _safe_repr(value: Any) -> str:
    try:
        return repr(value)
    except Exception as error:  # of a half-initialised object; `traceback` does the same
        return f"<{type(error).__name__}>"
