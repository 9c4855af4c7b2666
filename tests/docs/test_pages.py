"""README.md and the pages: their tables say what the code says, and their links lead somewhere."""

from __future__ import annotations

import ast
import importlib
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from mkdocs.exceptions import PluginError
from support.documentation import (
    DOCS,
    PAGES,
    README,
    ROOT,
    TEXTS,
    blocks,
    first_cells,
    name_of,
    prose_of,
    section,
    text_of,
)

from prem_core import _config, _errors
from prem_core._client.options import DEFAULTS
from prem_core._errors import PremError
from prem_core._protocol import assumptions

#: Whole files, and sections of them, that a page takes.
TAKEN = re.compile(r'^--8<-- "([\w.]+)"(?:, (.+))?$', re.MULTILINE)


# --- the README's tables ----------------------------------------------------------------------------------


def test_the_readme_lists_exactly_the_assumptions_of_the_code() -> None:
    table = section(README, "What we could not check against the live service")
    listed = [name for cell in first_cells(table) for name in re.findall(r"`(\w+)`", cell)]
    defined = {
        name
        for node in ast.parse(Path(assumptions.__file__).read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign | ast.FunctionDef)
        for name in (
            [node.name] if isinstance(node, ast.FunctionDef) else [ast.unparse(t) for t in node.targets]
        )
    }
    assert len(listed) == len(set(listed))
    assert set(listed) == defined


@pytest.mark.parametrize("setting", sorted(_config.VARIABLES))
def test_the_settings_table_lists_the_variables_of_a_setting(setting: str) -> None:
    row = re.search(rf"^\| `{setting}` \| (.*?) \|", section(README, "Settings"), re.MULTILINE)
    assert row is not None
    assert tuple(re.findall(r"`(\w+)`", row[1])) == _config.VARIABLES[setting]


def test_the_settings_table_lists_every_argument_of_a_client() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", section(README, "Settings"), re.MULTILINE)
    # The text below the table names the one that is another name of `gateway_url`.
    assert sorted([*listed, "proxy_url"]) == sorted(DEFAULTS)


def test_the_settings_table_lists_the_defaults_of_a_client() -> None:
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\| ([^|]*) \|", section(README, "Settings"), re.MULTILINE)
    shown = {name: default.strip("` ").split(";")[0] for name, default in rows}
    for name in ("max_retries", "retry_after_send", "request_masking", "max_concurrency", "allow_insecure"):
        assert shown[name].strip("`") == str(DEFAULTS[name])
    assert shown["nonce_reuse"].strip("`") == '"warn"'
    assert shown["max_buffer_size"] == f"{DEFAULTS['max_buffer_size'] // 1024**2} MB"
    assert (shown["gateway_url"], shown["enclave_url"]) == (
        _config.DEFAULT_GATEWAY_URL,
        _config.DEFAULT_ENCLAVE_URL,
    )
    assert {name for name, default in shown.items() if default == "none"} <= {
        name for name, default in DEFAULTS.items() if default is None
    }
    assert dict(rows)["timeout"] == (
        f"{_config.DEFAULT_TIMEOUT:.0f}; {_config.WHOLE_REPLY_TIMEOUT:.0f} to the first byte of a whole answer; "
        f"loaders {_config.AUDIO_TIMEOUT:.0f}"
    )


# --- the pages' tables ------------------------------------------------------------------------------------


def test_the_error_tree_on_the_page_matches_the_code() -> None:
    (drawn,) = blocks(DOCS / "errors.md", "text")
    assert all(line.strip() in (_errors.__doc__ or "") for line in drawn.parsed.splitlines())
    assert {kind.__name__ for kind in _every_error(PremError)} == set(re.findall(r"\w+Error\b", drawn.parsed))


def test_every_error_is_listed_with_whether_it_is_retryable() -> None:
    rows = re.findall(
        r"^\| `(\w+Error)` \| (yes|no) \|", section(DOCS / "errors.md", "What to do"), re.MULTILINE
    )
    expected = {kind: "yes" if kind.is_retryable else "no" for kind in _every_error(PremError)}
    # Those that only have others below them are not raised.
    for base in (_errors.PremError, _errors.APIError, _errors.APIStatusError):
        del expected[base]
    assert rows == [(kind.__name__, again) for kind, again in expected.items()]


# --- the reference ----------------------------------------------------------------------------------------

REFERENCE = {
    "prem_core": "prem_core",
    "langchain_prem": "langchain_prem",
    "llama_index_prem": "llama_index_prem",
    "attestation": "prem_core.attestation",
    "batch": "prem_core.batch",
    "enclave": "prem_core.enclave",
    "proxy": "prem_core.proxy",
}


@pytest.mark.parametrize(("page", "package"), REFERENCE.items())
def test_every_public_name_is_in_the_reference(page: str, package: str) -> None:
    text = text_of(DOCS / "reference" / f"{page}.md")
    described = re.findall(rf"^::: {re.escape(package)}\.(\w+)$", text, re.MULTILINE)
    # A name that another package has too is described there, and linked to.
    linked = re.findall(rf"^`{re.escape(package)}\.(\w+)` is \[.*?\]\[([\w.]+)\]", text, re.MULTILINE)
    module = importlib.import_module(package)
    assert sorted([*described, *dict(linked)]) == sorted(set(module.__all__) - {"__version__"})
    for name, target in linked:
        other, _, same = target.rpartition(".")
        assert getattr(importlib.import_module(other), same) is getattr(module, name)


# --- links and paths --------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_every_relative_link_has_a_target(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.is_file(), target
        assert not anchor or anchor in anchors(there), target


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_every_file_named_in_the_text_exists(page: Path) -> None:
    for path in re.findall(r"`((?:\w+/)+[\w.-]*\.(?:py|md|ipynb|wav|json|txt|yaml))`", prose_of(page)):
        assert (ROOT / path).is_file() or (page.parent / path).is_file(), path


def test_the_map_of_the_code_names_existing_files() -> None:
    drawn = section(ROOT / "CONTRIBUTING.md", "Where things live").split("```")[1]
    for line in filter(None, drawn.splitlines()):
        package, _, names = re.split(r"\s{2,}", line)[0].partition("/")
        for name in names.split():
            assert (ROOT / package / f"{name}.py").is_file(), line


@pytest.mark.parametrize("page", [page for page in PAGES if TAKEN.search(text_of(page))], ids=name_of)
def test_every_included_section_exists(page: Path) -> None:
    for file, title in TAKEN.findall(text_of(page)):
        assert section(ROOT / file, title) if title else text_of(ROOT / file)


def test_every_page_is_in_the_navigation_and_has_a_title() -> None:
    # Read as YAML alone: what is built from it is the command's matter.
    listed = re.findall(
        r"^ +- (?:\w+: )?([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))
    for page in DOCS.rglob("*.md"):
        assert re.match(r'# |--8<-- "[\w.]+"\n', text_of(page)), name_of(page)


def test_the_site_loads_nothing_from_another_host() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert config["theme"]["font"] is False
    assert config["use_directory_urls"] is False
    assert not re.search(r"https?:", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    for shim in config["extra"]["polyfills"]:
        assert (DOCS / shim).is_file()


@pytest.mark.parametrize(
    "fetched", ['<script src="https://else.where/a.js">', "<link rel=stylesheet href=//else.where/a.css>"]
)
def test_a_page_that_loads_from_another_host_fails_the_build(fetched: str) -> None:
    hooks = runpy.run_path(str(DOCS / "_site" / "hooks.py"))
    page = SimpleNamespace(file=SimpleNamespace(src_uri="page.md"))
    here = '<script src="a.js"></script><a href="https://else.where">read it there</a>'
    assert hooks["on_post_page"](here, page=page) == here
    with pytest.raises(PluginError, match=r"page\.md fetches from elsewhere"):
        hooks["on_post_page"](here + fetched, page=page)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, those of what it takes from elsewhere left out."""
    headings = re.findall(r"^#+ (.+)$", prose_of(page), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def _every_error(kind: type[PremError]) -> list[type[PremError]]:
    # The adapters make subclasses with the same name and module.
    below = [each for each in kind.__subclasses__() if vars(_errors).get(each.__name__) is each]
    return [kind, *(found for each in below for found in _every_error(each))]
