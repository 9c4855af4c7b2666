"""The index of ids."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prem_core.batch.index import ANSWERED, FAILED, SEEN, IdIndex


def test_the_flags_of_an_id_add_up() -> None:
    index = IdIndex()
    assert [index.add("a", ANSWERED), index.add("a", SEEN), index.add("b", FAILED), index.add("a", 0)] == [
        0,
        ANSWERED,
        0,
        ANSWERED | SEEN,
    ]
    assert index.add("c", 0) == 0
    assert len(index) == 2


def test_text_and_its_bytes_are_one_id() -> None:
    index = IdIndex()
    index.add("ä\ud800", SEEN)
    assert index.add("ä\ud800".encode("utf-8", "surrogatepass"), 0) == SEEN


@given(st.lists(st.text(max_size=3)))
def test_the_index_agrees_with_a_set(names: list[str]) -> None:
    index, seen = IdIndex(), set[str]()
    for name in names:
        assert bool(index.add(name, SEEN)) == (name in seen)
        seen.add(name)
    assert len(index) == len(seen)


@pytest.mark.parametrize("count", [50_000])
def test_growth_loses_no_id(count: int) -> None:
    index = IdIndex()
    for number in range(count):
        assert index.add(str(number), SEEN) == 0
    assert all(index.add(str(number), 0) == SEEN for number in range(count))
