"""The table as it is printed: a line for each fault, with equal cells joined."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from support.faults.columns import COLUMNS, Column
from support.faults.table import ROWS

#: What the columns of one kind are called together, in this order.
_KINDS = ("stream", "whole", "envelope", "audio", "models")


def _kind(column: Column) -> str:
    return column.form if column.kind == "chat" else column.kind


_FULL = {kind: frozenset(column for column in COLUMNS if _kind(column) == kind) for kind in _KINDS}


class Report:
    """What came of every fault in every column it was tried in; its lines stand in the table's own order."""

    def __init__(self) -> None:
        self._outcomes: dict[str, dict[Column, str]] = {str(row): {} for row in ROWS}

    def note(self, fault: str, column: Column, outcome: str) -> None:
        """`fault` came to `outcome` there."""
        self._outcomes[fault][column] = outcome

    def lines(self) -> Iterator[str]:
        """The table."""
        tried = {fault: cells for fault, cells in self._outcomes.items() if cells}
        width = max(map(len, tried), default=0)
        for fault, cells in tried.items():
            columns: dict[str, set[Column]] = defaultdict(set)
            for column in filter(cells.get, COLUMNS):
                columns[cells[column]].add(column)
            told = "; ".join(f"{_named(found)}: {outcome}" for outcome, found in columns.items())
            yield f"{fault:{width}} | {told}"
        yield f"{len(tried)} faults, {sum(map(len, tried.values()))} cells; in brackets, the requests that were made"


def _named(columns: set[Column]) -> str:
    """The fewest words for some columns."""
    if len(columns) == len(COLUMNS):
        return "everywhere"
    whole_kinds = [kind for kind in _KINDS if _FULL[kind] <= columns]
    rest = columns.difference(*(_FULL[kind] for kind in whole_kinds))
    if whole_kinds[:2] == ["stream", "whole"]:
        whole_kinds[:2] = ["chat"]
    return ", ".join([*whole_kinds, *sorted(map(str, rest))])
