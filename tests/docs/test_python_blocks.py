"""The Python of README.md and of the pages runs, and prints what stands below it.

A page's blocks run one after the other, as a reader runs them; the README's each by itself. When what they print has
changed and is right, ``PREM_KEEP=1 pytest tests/docs/test_python_blocks.py`` writes it into the pages.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.documentation import DOCS, KINDS, NOT_RUN, PAGES, README, ROOT, blocks, kind_of, name_of, text_of
from sybil import Example

from prem_core import PremClient
from prem_core.enclave import LocalEnclave

KEEP = os.environ.get("PREM_KEEP") == "1"

#: Every block that does not run, by page, with its reason: a page cannot add one by itself.
REASONS = {"docs/install.md": ["it asks Prem's dashboard."]}

#: A block that begins with such a line is a file of a test suite.
FILE = re.compile(r"# (conftest|test_\w+)\.py\n")

WITH_PYTHON = [page for page in PAGES if page != README and blocks(page, "python")]

# LlamaIndex's agents read an attribute that pydantic deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")


def is_run(block: Example) -> bool:
    return not block.parsed.startswith(NOT_RUN) and FILE.match(block.parsed) is None


@pytest.mark.usefixtures("as_a_reader")
@pytest.mark.parametrize("number", range(len(blocks(README, "python"))))
def test_each_code_block_of_the_readme_runs_by_itself(
    number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    block = blocks(README, "python")[number]
    block.namespace["__name__"] = "readme"
    block.evaluate()
    assert "print(" not in block.parsed or capsys.readouterr().out.strip()


@pytest.mark.usefixtures("as_a_reader")
@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_the_code_blocks_of_a_page_run_with_the_shown_output(
    page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = blocks(page, "python", "output")
    printed: list[tuple[Example, str]] = []
    for block, following in zip(found, [*found[1:], None], strict=True):
        if kind_of(block) == "output" or not is_run(block):
            continue
        block.namespace["__name__"] = "page"
        block.evaluate()
        text = "\n".join(line.rstrip() for line in capsys.readouterr().out.strip().splitlines())
        if following is not None and kind_of(following) == "output":
            printed.append((following, text))
        else:
            assert not text, f"{name_of(page)}:{block.line} prints, and nothing below it says what: {text}"
    if KEEP:
        keep(page, printed)
        return
    for shown, text in printed:
        assert text == shown.parsed.strip(), f"{name_of(page)}:{shown.line} (PREM_KEEP=1 keeps it)"


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_every_shown_output_follows_its_code_block(page: Path) -> None:
    found = blocks(page, "python", "output")
    for before, shown in zip([None, *found], found, strict=False):
        if kind_of(shown) == "output":
            assert before is not None
            assert kind_of(before) == "python"
            assert is_run(before)


def test_the_example_test_suite_passes(tmp_path: Path) -> None:
    page = DOCS / "testing.md"
    files = [(found[1], block) for block in blocks(page, "python") if (found := FILE.match(block.parsed))]
    assert [name for name, _ in files] == ["test_weather"]
    for name, block in files:
        (tmp_path / f"{name}.py").write_text(block.parsed, encoding="utf-8")
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "prem_core.enclave.pytest_plugin",
            ".",
        ],
        cwd=tmp_path,
        # The plugin is named above: its entry point is there only once the package is installed.
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout
    assert "3 passed" in run.stdout


@pytest.mark.usefixtures("as_a_reader")
def test_the_code_block_of_security_md_runs(enclave: LocalEnclave) -> None:
    (block,) = blocks(ROOT / "SECURITY.md", "python")
    assert block.parsed.count("…") == 1
    code = block.parsed.replace("…", bytes(enclave.public_key).hex())
    exec(compile(code, "SECURITY.md", "exec"), {"PremClient": PremClient})


def test_every_skipped_code_block_has_a_reason_and_is_counted() -> None:
    reasons: dict[str, list[str]] = {}
    for page in PAGES:
        for block in blocks(page, "python"):
            if block.parsed.startswith(NOT_RUN):
                first = block.parsed.splitlines()[0]
                reasons.setdefault(name_of(page), []).append(first.removeprefix(NOT_RUN))
                compile(block.parsed, name_of(page), "exec")
    assert reasons == REASONS


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_code_block_is_of_a_known_kind(page: Path) -> None:
    fences = re.findall(r"^[ >]*(```+|~~~+)(.*)$", text_of(page), re.MULTILINE)
    opening = [info.strip() for _, info in fences[::2]]
    assert set(opening) <= set(KINDS)
    assert len(blocks(page, *KINDS)) == len(opening)


def keep(page: Path, printed: list[tuple[Example, str]]) -> None:
    text = text_of(page)
    for shown, said in reversed(printed):
        text = f"{text[: shown.start]}```output\n{said}\n```{text[shown.end :]}"
    page.write_text(text, encoding="utf-8")
