"""Reads values out of a request, with errors that name the path, and notes what the chat cannot carry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prem_core._apis.base import ApiError

Block = Mapping[str, Any]

#: Characters of a type or a name that an error quotes.
_QUOTED = 40


@dataclass(slots=True)
class Notes:
    """The names of parameters that were left out, and of those that have another form. Each is listed once."""

    dropped: list[str] = field(default_factory=list)
    adjusted: list[str] = field(default_factory=list)

    def drop(self, values: Block, *names: str, prefix: str = "") -> None:
        """Note the `names` that `values` has. ``cache_control`` and the like are known by their name alone."""
        for name in names:
            if values.get(name) is not None and prefix + name not in self.dropped:
                self.dropped.append(prefix + name)

    def adjust(self, name: str) -> None:
        """Note that a parameter has another form."""
        if name not in self.adjusted:
            self.adjusted.append(name)


def invalid(path: str, why: str, *, code: str | None = None) -> ApiError:
    """The error for the parameter at `path`."""
    return ApiError(400, f"{path}: {why}", code=code, param=path)


def unsupported(path: str, why: str) -> ApiError:
    """The error for something at `path` that Prem's API does not have."""
    return invalid(path, why, code="unsupported_parameter")


def text_at(values: Block, name: str, path: str) -> str:
    """The string `values` has under `name`.

    Raises:
        ApiError: It has none.
    """
    value = values.get(name)
    if isinstance(value, str):
        return value
    raise invalid(f"{path}.{name}" if path else name, "must be a string")


def object_at(values: Block, name: str, path: str) -> dict[str, Any]:
    """The JSON object `values` has under `name`.

    Raises:
        ApiError: It has none.
    """
    value = values.get(name)
    if isinstance(value, dict):
        return value
    raise invalid(f"{path}.{name}" if path else name, "must be a JSON object")


def blocks_at(content: Any, path: str) -> list[dict[str, Any]]:
    """Content as blocks. A string is one text block.

    Raises:
        ApiError: It is neither a string nor a list of blocks.
    """
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise invalid(path, "must be a string or a list of content blocks")
    for position, block in enumerate(content):
        if not isinstance(block, dict):
            raise invalid(f"{path}.{position}", "must be a content block")
    return content


def kind_of(block: Block) -> str:
    """The type of a block, for an error."""
    kind = block.get("type")
    return repr(kind[:_QUOTED]) if isinstance(kind, str) else "no type"
