"""CONTRIBUTING.md describes the code as it is."""

from __future__ import annotations

import re

from support.documentation import ROOT, section

CONTRIBUTING = ROOT / "CONTRIBUTING.md"


def folders(parent: str, prefix: str = "") -> set[str]:
    """The packages in a folder, by path from the project's root."""
    return {
        path.parent.relative_to(ROOT).as_posix() for path in (ROOT / parent).glob(f"{prefix}*/__init__.py")
    }


def test_the_table_of_folders_lists_every_folder() -> None:
    table = section(CONTRIBUTING, "Where things live").split("```")[2]
    rows = re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE)
    listed = {path for row in rows for path in re.findall(r"`([\w/]+)/`", row)}
    assert listed == folders("prem_core") | {"langchain_prem", "llama_index_prem"}


def test_every_folder_of_tests_is_named() -> None:
    text = section(CONTRIBUTING, "Where things live")
    named = set(re.findall(r"`(?:tests/)?([a-z_]+)`", text))
    present = {path.name for path in (ROOT / "tests").iterdir() if any(path.glob("test_*.py"))}
    assert present <= named
