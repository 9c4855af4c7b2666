"""Every past finding of the fuzzer is run again, and each target with some hundred inputs. `make fuzz` runs longer."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from support.fuzzing.fuzzer import CASES, Outcome, Signature, Target, attempt, fuzz, shrunk
from support.fuzzing.known_findings import KNOWN, known_signatures
from support.fuzzing.mutations import mutated
from support.fuzzing.seeds import TARGETS

ALL = [(target, path) for target in TARGETS.values() for path in target.cases()]


def _case(target: Target, path: Path) -> object:
    name = f"{target.name}/{path.name}"
    marks = [pytest.mark.xfail(strict=True, reason=KNOWN[name])] if name in KNOWN else []
    return pytest.param(target, path, marks=marks, id=name)


@pytest.mark.parametrize(("target", "path"), [_case(target, path) for target, path in ALL])
def test_a_past_finding_stays_fixed(target: Target, path: Path) -> None:
    with target.setting():
        first = attempt(target, path.read_bytes())
        assert attempt(target, path.read_bytes()) == first


@pytest.mark.parametrize("name", TARGETS)
def test_the_fuzzer_finds_nothing_new(name: str) -> None:
    target = TARGETS[name]
    # The inputs are the same in every run.
    report = fuzz(
        target, random.Random(1), runs=300 if target.follows else 60, known=known_signatures(target)
    )
    assert {each.signature: each.trace for each in report.findings.values()} == {}
    assert report.runs > len(target.seeds) + len(target.cases())
    assert len(report.kinds) > 1
    assert report.lines > 10 or not target.follows


def test_every_case_belongs_to_a_target_and_every_known_case_exists() -> None:
    assert {path.parent.name for path in CASES.glob("*/*")} <= set(TARGETS)
    assert set(KNOWN) <= {f"{target.name}/{path.name}" for target, path in ALL}


# --- the fuzzer


def _breaks(data: bytes) -> Outcome:
    if b"{{" in data:
        raise ZeroDivisionError
    return Outcome("fine" if data else "empty", data)


@pytest.fixture
def breakable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
    monkeypatch.setattr("support.fuzzing.fuzzer.CASES", tmp_path)
    return Target("breakable", _breaks, [b"one", b"{two}"])


def test_a_failing_input_is_found_and_shrunk(breakable: Target) -> None:
    report = fuzz(breakable, random.Random(1), runs=2000)
    (finding,) = report.findings.values()
    assert finding.signature == Signature("ZeroDivisionError", "elsewhere")
    assert shrunk(breakable, finding) == b"{{"


def test_a_known_finding_is_ignored(breakable: Target) -> None:
    known = {Signature("ZeroDivisionError", "elsewhere")}
    assert fuzz(breakable, random.Random(1), runs=2000, known=known).findings == {}


def test_an_input_with_varying_outcomes_is_a_finding() -> None:
    times = iter(range(1_000_000))
    target = Target("unsteady", lambda data: Outcome("fine", next(times)), [b"a"] * 20)
    found = fuzz(target, random.Random(1), runs=20).findings
    assert [each.kind for each in found] == ["AssertionError"]


def test_the_same_seed_yields_the_same_inputs() -> None:
    one, other = random.Random(7), random.Random(7)
    seeds = TARGETS["completion"].seeds
    for data in seeds * 20:
        assert mutated(data, seeds, one) == mutated(data, seeds, other)
