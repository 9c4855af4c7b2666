"""Writes extracted rows as CSV or Parquet."""

from __future__ import annotations

import csv
import importlib
import io
import json
import os
from collections.abc import Iterable, Sequence
from typing import Any, Final

from prem_core._crypto.files import write_atomically

#: The column that names the document.
SOURCE: Final = "_source"

#: What a table can be written as, by the end of its name.
TABLES: Final = (".csv", ".parquet")


def check_table(path: str) -> None:
    """Check that a table can be written here.

    Raises:
        ImportError: Parquet needs pyarrow.
    """
    if path.endswith(".parquet"):
        _pyarrow()


def write_table(path: str, rows: Iterable[dict[str, Any]], columns: Sequence[str]) -> None:
    """Write all rows to a file that appears complete or not at all. They are held in memory.

    Nested values become JSON text. A CSV file has the values as they are: a spreadsheet program would run a cell that
    begins with "=" as a formula.

    Raises:
        ImportError: Parquet needs pyarrow.
        OSError: The file cannot be written.
    """
    names = [SOURCE, *columns]
    flat = [{name: _cell(row.get(name)) for name in names} for row in rows]
    if path.endswith(".parquet"):
        data = _parquet(flat, names)
    else:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, names)
        writer.writeheader()
        writer.writerows(flat)
        data = text.getvalue().encode("utf-8", "backslashreplace")
    write_atomically(path, data, overwrite=os.path.exists(path))


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=True) if isinstance(value, dict | list) else value


def _pyarrow() -> Any:
    try:
        return importlib.import_module("pyarrow")
    except ImportError:
        raise ImportError("a .parquet output needs pyarrow: pip install pyarrow") from None


def _parquet(rows: list[dict[str, Any]], names: list[str]) -> bytes:
    pyarrow = _pyarrow()
    parquet = importlib.import_module("pyarrow.parquet")
    columns = {}
    for name in names:
        values = [row[name] for row in rows]
        kinds = {type(value) for value in values if value is not None}
        if kinds == {int, float}:
            values = [None if value is None else float(value) for value in values]
        elif len(kinds) > 1:
            values = [None if value is None else json.dumps(value) for value in values]
        columns[name] = pyarrow.array(values)
    sink = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), sink)
    return sink.getvalue()
