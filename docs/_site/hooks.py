"""Include sections of other files in pages, and refuse pages that load anything from another host.

A line ``--8<-- "README.md", Speed`` in a page is replaced by the text below that heading: each table exists once.
(`pymdownx.snippets` includes whole files with such a line, but sections only between markers.)
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

_SECTION = re.compile(r'^--8<-- "(\w+\.md)", (.+)$', re.MULTILINE)

#: The pages of the site for links to files outside of it.
_PAGES = {"SECURITY.md": "security.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "architecture.md"}

#: Elements that a browser loads automatically; a link is not one of them.
_REMOTE = re.compile(
    r"""<(?:script|img|iframe|source|link)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//""", re.IGNORECASE
)


def section_of(text: str, heading: str) -> str:
    """Return the text below a heading, up to the next heading of any level. A ``#`` in a block is not a heading.

    Raises:
        KeyError: There is no such heading.
    """
    _, found, below = text.partition(f"# {heading}\n")
    if not found:
        raise KeyError(heading)
    taken, inside = [], False
    for line in below.splitlines():
        inside ^= line.startswith("```")
        if line.startswith("#") and not inside:
            break
        taken.append(line)
    return "\n".join(taken).strip()


def on_page_markdown(markdown: str, *, config: Any, **_: Any) -> str:
    """Replace each include line by the section that it names."""
    root = Path(config.config_file_path).parent

    def taken(line: re.Match[str]) -> str:
        try:
            text = section_of((root / line[1]).read_text(encoding="utf-8"), line[2])
        except (OSError, KeyError):
            raise PluginError(f"{line[1]} has no section {line[2]!r}") from None
        for file, page in _PAGES.items():
            text = text.replace(f"]({file})", f"]({page})")
        return text

    return _SECTION.sub(taken, markdown)


def on_post_page(output: str, *, page: Any, **_: Any) -> str:
    """Refuse a page that loads anything from another host: the site is read without a network."""
    if (found := _REMOTE.search(output)) is not None:
        raise PluginError(
            f"{page.file.src_uri} fetches from elsewhere: {output[found.start() : found.end() + 80]}"
        )
    return output
