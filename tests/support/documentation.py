"""Read README.md and the pages of the site: text, sections, tables and code blocks."""

from __future__ import annotations

import re
from pathlib import Path

from sybil import Example, Region, Sybil
from sybil.parsers.markdown.codeblock import CodeBlockParser

from support.paths import ROOT

README = ROOT / "README.md"
DOCS = ROOT / "docs"

#: README.md and the pages of the site, whose code blocks are run.
PAGES = (README, *sorted(DOCS.rglob("*.md")))

#: These and all other Markdown files, whose links and commands are checked.
TEXTS = (*PAGES, *sorted(set(ROOT.glob("*.md")) - {README}), *sorted(ROOT.glob("*/README.md")))

#: The first line of a code block that is not run, followed by the reason.
NOT_RUN = "# Not run in the tests: "

#: The kinds of code blocks. `output` follows a Python block and is what it prints.
KINDS = ("bash", "json", "output", "python", "text", "toml", "typescript")


def name_of(page: Path) -> str:
    """A page's path from the project's root."""
    return page.relative_to(ROOT).as_posix()


def text_of(page: Path) -> str:
    """The source of a page."""
    return page.read_text(encoding="utf-8")


def prose_of(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^( *)```.*?^\1```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)


def blocks(page: Path, *kinds: str) -> list[Example]:
    """The code blocks of these kinds, in order. Python blocks can be run."""
    parsers = [CodeBlockParser(kind, _run if kind == "python" else _nothing) for kind in kinds]
    return list(Sybil(parsers=parsers, path=str(page.parent)).parse(page).examples())


def kind_of(block: Example) -> str:
    """The language of a code block."""
    return _region(block).lexemes["arguments"]


def section(page: Path, title: str) -> str:
    """The text below a heading, up to the next one of the same level or above."""
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*)", text_of(page), re.MULTILINE | re.DOTALL)
    assert found is not None, f"{name_of(page)} has no section {title!r}"
    return re.split(rf"^#{{1,{len(found[1])}}} ", found[2], maxsplit=1, flags=re.MULTILINE)[0]


def first_cells(table: str) -> list[str]:
    """The first cell of every row of the tables in a text, without the header rows."""
    rows = re.findall(r"^\|(.*)\|$", table, re.MULTILINE)
    ruled = [i for i, row in enumerate(rows) if re.fullmatch(r"[\s:|-]+", row)]
    heads = {i - 1 for i in ruled} | set(ruled)
    return [row.split(" | ")[0].strip() for i, row in enumerate(rows) if i not in heads]


def _region(block: Example) -> Region:
    return block.region


def _run(block: Example) -> None:
    # The code keeps its line numbers of the page, for tracebacks.
    source = "\n" * (block.line + block.parsed.line_offset) + block.parsed
    exec(compile(source, block.path, "exec", dont_inherit=True), block.namespace)


def _nothing(block: Example) -> None:
    pass
