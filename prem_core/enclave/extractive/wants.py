"""What is to be found for one place in a schema, and how well a label names it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from prem_core.enclave.extractive.keys import keys
from prem_core.enclave.extractive.layout import Table
from prem_core.enclave.extractive.schemas import Schema, kinds


@dataclass(frozen=True)
class Want:
    """One value to find.

    schema: resolved. words: the keys of its name. hints: those of its description. prefix: those of the names that
    enclose it. seen: the references followed on the way to it, by which recursive schemas are cut.
    """

    schema: Schema
    words: frozenset[str] = frozenset()
    hints: frozenset[str] = frozenset()
    prefix: frozenset[str] = frozenset()
    required: bool = True
    seen: tuple[str, ...] = ()

    @property
    def about(self) -> str:
        """Words to look for a quote by."""
        return " ".join(sorted(self.words | self.hints))

    @property
    def impossible(self) -> bool:
        """Whether no value satisfies the schema: {"not": {}}, which `false` resolves to."""
        return self.schema.get("not") == {}

    @property
    def kind(self) -> list[str]:
        """The types of the value: as declared, else as its other keywords imply; empty if anything will do."""
        return kinds(self.schema)


_NAME = keys("name")
# Words that make a label more certain, not more special: "Grand total" is the total.
_GRAND = keys("grand overall final gross")
_LEAST = 0.45


def match(label: frozenset[str], want: Want) -> float:
    """How well the keys of a label name what is wanted: 0 for not at all, 1 for exactly, a bit more with context."""
    if not label or not want.words:
        return 0.0
    own = label & want.words
    if not own:
        if label == want.prefix and want.words == _NAME:
            return 0.6  # "Customer: Hello Group" gives the customer's name
        return 0.42 if label <= want.hints and len(label) > 1 else 0.0
    extra = label - want.words - want.prefix - _GRAND
    penalty = len(extra - want.hints) + 0.5 * len(extra & want.hints)
    score = len(own) / (len(want.words) + penalty) + (0.2 if label & want.prefix - want.words else 0.0)
    return score if score >= _LEAST else 0.0


def assign_columns(
    wants: Mapping[str, Want], table: Table, reads: Callable[[Want, str], bool]
) -> dict[str, int]:
    """Which column of `table` holds which property: by header, then by type for required ones left over.

    `reads` tells whether a cell can be read as what is wanted. Empty unless every required property has a column.
    """
    readable = {
        (name, column): any(reads(want, row[column]) for row in table.rows[:3])
        for name, want in wants.items()
        for column in range(len(table.header))
    }
    pairs = sorted(
        (-score, order, column, name)
        for order, (name, want) in enumerate(wants.items())
        for column, label in enumerate(table.header)
        if (score := match(label, want)) and readable[name, column]
    )
    columns: dict[str, int] = {}
    for _, _, column, name in pairs:
        if name not in columns and column not in columns.values():
            columns[name] = column
    if not columns:
        return {}
    digits = [
        all(any(map(str.isdigit, row[column])) for row in table.rows) for column in range(len(table.header))
    ]
    for name, want in wants.items():
        numeric = want.kind in (["integer"], ["number"])
        left = [column for column in range(len(table.header)) if column not in columns.values()]
        if want.required and name not in columns:
            fitting = (column for column in left if readable[name, column] and digits[column] == numeric)
            chosen = next(fitting, None)
            if chosen is None:
                return {}
            columns[name] = chosen
    return columns
