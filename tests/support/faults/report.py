"""The printed fault table: a line per fault, equal cells joined."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from support.faults.columns import COLUMNS, Column
from support.faults.table import ROWS

#: The names of groups of columns, in this order.
_KINDS = ("stream", "whole", "envelope", "audio", "models")


def _kind(column: Column) -> str:
    return column.form if column.kind == "chat" else column.kind


_FULL = {kind: frozenset(column for column in COLUMNS if _kind(column) == kind) for kind in _KINDS}


class Report:
    """The outcome of every fault in every column, in the order of the table."""

    def __init__(self) -> None:
        self._outcomes: dict[str, dict[Column, str]] = {str(row): {} for row in ROWS}

    def note(self, fault: str, column: Column, outcome: str) -> None:
        """Record the outcome of `fault` in `column`."""
        self._outcomes[fault][column] = outcome

    def lines(self) -> Iterator[str]:
        """The table."""
        tested = {fault: cells for fault, cells in self._outcomes.items() if cells}
        width = max(map(len, tested), default=0)
        for fault, cells in tested.items():
            columns: dict[str, set[Column]] = defaultdict(set)
            for column in filter(cells.get, COLUMNS):
                columns[cells[column]].add(column)
            outcomes = "; ".join(f"{_named(found)}: {outcome}" for outcome, found in columns.items())
            yield f"{fault:{width}} | {outcomes}"
        yield f"{len(tested)} faults, {sum(map(len, tested.values()))} cells; in brackets, the number of requests"


def _named(columns: set[Column]) -> str:
    """The shortest name for a set of columns."""
    if len(columns) == len(COLUMNS):
        return "everywhere"
    whole_kinds = [kind for kind in _KINDS if _FULL[kind] <= columns]
    rest = columns.difference(*(_FULL[kind] for kind in whole_kinds))
    if whole_kinds[:2] == ["stream", "whole"]:
        whole_kinds[:2] = ["chat"]
    return ", ".join([*whole_kinds, *sorted(map(str, rest))])
