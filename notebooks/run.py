"""Run the notebooks top to bottom: ``python notebooks/run.py [--keep] [NAME …]``.

Without ``--keep`` they must print what is kept in them; with it, what they print is kept. Pictures and what is
random (ciphertext) are not compared. Against the live service (PREM_API_KEY) they are run, and no more.
"""

# ruff: noqa: T201 - it is a command, and says what it finds.
from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

HERE = Path(__file__).parent
HEX = re.compile(r"[0-9a-f]{12,}")


def run(notebook: NotebookNode) -> NotebookNode:
    """A copy with fresh outputs. Raises CellExecutionError where a cell does."""
    fresh = nbformat.from_dict(notebook)
    NotebookClient(
        fresh,
        timeout=300,
        kernel_name="python3",
        coalesce_streams=True,
        record_timing=False,
        resources={"metadata": {"path": str(HERE)}},
    ).execute()
    # What the kernel says of itself is another machine's: its version, for one.
    fresh.metadata = notebook.metadata
    return fresh


def said(notebook: NotebookNode) -> list[str]:
    """What the cells say, line by line, ciphertext masked."""
    lines = []
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            text = output.get("text") or data.get("text/markdown") or data.get("text/plain") or ""
            lines += [f"cell {number}: {line}" for line in HEX.sub("#", text).splitlines()]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keep", action="store_true", help="keep what they print")
    parser.add_argument("names", nargs="*", help="the beginnings of their names; all by default")
    options = parser.parse_args()
    live = "PREM_API_KEY" in os.environ
    differing = 0
    chosen = [
        path for path in sorted(HERE.glob("*.ipynb")) if path.name.startswith(tuple(options.names or [""]))
    ]
    if not chosen:
        parser.error("no notebook's name begins like that")
    for path in chosen:
        kept = nbformat.read(path, as_version=4)
        begun = time.monotonic()
        fresh = run(kept)
        print(f"{path.name}: {time.monotonic() - begun:.0f} s")
        if live:
            continue
        if options.keep:
            nbformat.write(fresh, path)
        elif changes := list(
            difflib.unified_diff(said(kept), said(fresh), "kept", "fresh", lineterm="", n=0)
        ):
            differing += 1
            print("\n".join(changes))
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
