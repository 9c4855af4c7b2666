"""The soak, small: the program runs, counts, and finds what it is there to find."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from support.faults import soak
from support.paths import TESTS

from prem_core import StreamInterruptedError


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "support.faults.soak", "--minutes", "1", *arguments]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
    }
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)


def test_a_small_soak_ends_with_every_answer_accounted_for() -> None:
    ran = run("--requests", "200", "--threads", "10", "--tasks", "30", "--timeout", "1.5", "--seed", "3")
    assert (ran.returncode, ran.stderr) == (0, "")
    lines = ran.stdout.splitlines()
    assert lines[-1] == "nothing that must not be"
    counted = {
        name: int(line.split()[2]) for line in lines for name in ("right", "typed") if line.startswith(name)
    }
    assert counted["right"] + counted["typed"] == 200
    assert counted["typed"] > 0


def test_without_faults_every_answer_is_right() -> None:
    ran = run("--requests", "60", "--threads", "4", "--tasks", "8", "--faults", "0")
    assert ran.returncode == 0
    assert "right answers    60\n" in ran.stdout


@pytest.fixture
def tally() -> soak.Tally:
    return soak.Tally(100, SimpleNamespace(update=lambda: None))


JOB, OTHER = soak.jobs(2, seed=1)


@pytest.mark.parametrize(
    ("text", "error", "found"),
    [
        (JOB.answer, None, {}),
        (JOB.answer[:20], StreamInterruptedError("cut"), {}),
        ("", StreamInterruptedError("cut"), {}),
        (JOB.answer[:20], None, {"cut, and returned as whole": 1}),
        ("", None, {"cut, and returned as whole": 1}),
        (OTHER.answer, None, {"somebody else's": 1}),
        (OTHER.answer, StreamInterruptedError("cut"), {"somebody else's": 1}),
        (JOB.answer + JOB.answer, None, {"altered": 1}),
        (JOB.answer[20:], StreamInterruptedError("cut"), {"altered": 1}),
        ("", ValueError("x"), {"untyped: ValueError": 1}),
    ],
)
def test_what_must_not_be_is_counted(text: str, error: Any, found: dict[str, int], tally: soak.Tally) -> None:
    tally.end(JOB, text, error)
    assert dict(tally.wrong) == found


def test_an_answer_that_comes_twice_is_counted(tally: soak.Tally) -> None:
    for _ in range(2):
        tally.end(JOB, JOB.answer, None)
    assert tally.ended[JOB.number] == 2


def samples(memory: int = 0, blocks: int = 0, descriptors: int = 0) -> list[soak.Sample]:
    """A run in which so much more is used at each tenth."""
    return [
        soak.Sample(float(n), 200_000_000 + n * memory, 800_000 + n * blocks, 100 + n * descriptors)
        for n in range(10)
    ]


@pytest.mark.parametrize(
    ("samples", "grown"),
    [
        (samples(), set()),
        (samples(memory=1_000_000, blocks=2_000, descriptors=2), set()),
        (samples(memory=10_000_000), {"memory"}),
        (samples(blocks=20_000), {"blocks"}),
        (samples(descriptors=10), {"descriptors"}),
        ([], set()),
    ],
)
def test_what_grows_is_found(samples: list[soak.Sample], grown: set[str]) -> None:
    assert set(soak.growth(samples)) == grown
