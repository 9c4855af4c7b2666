"""The table of attacks in SECURITY.md has the figures that the attack programs achieve."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from support.attacks.programs import run
from support.attacks.world import ERROR, UNMASKED, WARN, WHOLE, Mode, World
from support.documentation import ROOT, section

#: The columns of the table.
MODES = (WARN, UNMASKED, WHOLE, ERROR)

#: Rows with figures, by the beginning of their first cell: an attack, and the text that it reads.
FIGURES = {
    "passive reading: the reply": ("passive reading", "reply"),
    "passive reading: the user's message": ("passive reading", "question"),
    "passive reading with a chunk longer": ("passive reading, long chunk", "question"),
    "re-opening": ("re-opening", "question"),
}

#: Rows with an outcome, and their attacks.
OUTCOMES = {
    "forged text": ("forged text", "forged tool call"),
    "a JSON envelope": ("forged envelope",),
    "the request, file name or parameters": ("reflected chat", "reflected file name", "reflected parameters"),
    "with `encryption_keys`: an earlier transcript": ("replayed transcript", "replayed file name"),
    "with `encryption_keys`: an earlier reply": ("replayed chat",),
    "an endless repetition": ("endless chunk",),
}


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World("envelope") as world:
        yield world


def cell(row: str, mode: Mode) -> str:
    """The cell of the row that begins with these words."""
    table = section(ROOT / "SECURITY.md", "Weaknesses of the documented protocol")
    (line,) = re.findall(rf"^\| {re.escape(row)}.*$", table, re.MULTILINE)
    return str(line).strip("| ").split(" | ")[1 + MODES.index(mode)]


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("row", FIGURES)
def test_the_figures_are_those_of_the_attack(row: str, mode: Mode, world: World) -> None:
    attack, text = FIGURES[row]
    read, of = run(attack, mode, world).read[text]
    expected = f"{read:,} of {of:,}" if read or mode in (WARN, UNMASKED) else "0"
    assert re.match(r"[\d,]+( of [\d,]+)?", cell(row, mode))[0] == expected  # type: ignore[index]


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("row", OUTCOMES)
def test_a_reply_is_accepted_where_the_table_states_it(row: str, mode: Mode, world: World) -> None:
    accepted = {run(attack, mode, world).forged for attack in OUTCOMES[row]}
    assert accepted == {cell(row, mode) == "accepted"}


def test_every_row_of_the_table_is_checked() -> None:
    table = section(ROOT / "SECURITY.md", "Weaknesses of the documented protocol")
    assert len(re.findall(r"^\|", table, re.MULTILINE)) == 2 + len(FIGURES) + len(OUTCOMES)
