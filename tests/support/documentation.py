"""What is written in README.md and on the site's pages, for the tests that hold it to the code."""

from __future__ import annotations

import re
from pathlib import Path

from sybil import Example, Region, Sybil
from sybil.parsers.markdown.codeblock import CodeBlockParser

from support.paths import ROOT

README = ROOT / "README.md"
DOCS = ROOT / "docs"

#: What is run and read by the tests: README.md, and the site's pages.
PAGES = (README, *sorted(DOCS.rglob("*.md")))

#: These, and the other texts beside the code: their links and commands are to be right as well.
TEXTS = (*PAGES, *sorted(set(ROOT.glob("*.md")) - {README}), *sorted(ROOT.glob("*/README.md")))

#: How a block begins that no test runs. What follows is the reason, which its reader sees too.
NOT_RUN = "# Not run in the tests: "

#: The kinds of blocks there are. `output` stands behind a Python block, and is what that prints.
KINDS = ("bash", "json", "output", "python", "text", "toml", "typescript")


def name_of(page: Path) -> str:
    """A page's path from the project's root."""
    return page.relative_to(ROOT).as_posix()


def text_of(page: Path) -> str:
    """A page as it is written."""
    return page.read_text(encoding="utf-8")


def prose_of(page: Path) -> str:
    """A page without its blocks."""
    return re.sub(r"^( *)```.*?^\1```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)


def blocks(page: Path, *kinds: str) -> list[Example]:
    """A page's blocks of these kinds, in their order. Python blocks know how to be run."""
    parsers = [CodeBlockParser(kind, _run if kind == "python" else _nothing) for kind in kinds]
    return list(Sybil(parsers=parsers, path=str(page.parent)).parse(page).examples())


def kind_of(block: Example) -> str:
    """The language a block is marked with."""
    return _region(block).lexemes["arguments"]


def section(page: Path, title: str) -> str:
    """What stands below a heading, until the next one of its level or above."""
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*)", text_of(page), re.MULTILINE | re.DOTALL)
    assert found is not None, f"{name_of(page)} has no section {title!r}"
    return re.split(rf"^#{{1,{len(found[1])}}} ", found[2], maxsplit=1, flags=re.MULTILINE)[0]


def first_cells(table: str) -> list[str]:
    """The first cell of every row of the tables in a text, heads left out."""
    rows = re.findall(r"^\|(.*)\|$", table, re.MULTILINE)
    ruled = [i for i, row in enumerate(rows) if re.fullmatch(r"[\s:|-]+", row)]
    heads = {i - 1 for i in ruled} | set(ruled)
    return [row.split(" | ")[0].strip() for i, row in enumerate(rows) if i not in heads]


def _region(block: Example) -> Region:
    return block.region


def _run(block: Example) -> None:
    # Lines of the page are the code's lines: a traceback leads there.
    source = "\n" * (block.line + block.parsed.line_offset) + block.parsed
    exec(compile(source, block.path, "exec", dont_inherit=True), block.namespace)


def _nothing(block: Example) -> None:
    pass
