"""A small soak: the program runs, counts, and finds wrong responses and growth."""

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
    command = [sys.executable, "-W", "error", "-m", "support.faults.soak", "--minutes", "5", *arguments]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
    }
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=environment)


def test_a_small_soak_accounts_for_every_response() -> None:
    ran = run("--requests", "120", "--threads", "8", "--tasks", "16", "--timeout", "1.5", "--seed", "3")
    assert (ran.returncode, ran.stderr) == (0, "")
    lines = ran.stdout.splitlines()
    assert lines[-1] == "no violation"
    counted = {
        name: int(line.split()[2]) for line in lines for name in ("right", "typed") if line.startswith(name)
    }
    assert counted["right"] + counted["typed"] == 120
    assert counted["right"] > 0
    assert counted["typed"] > 0


@pytest.fixture
def tally() -> soak.Tally:
    return soak.Tally(100, SimpleNamespace(update=lambda: None))


JOB, OTHER = soak.jobs(2, seed=1)


@pytest.mark.parametrize(
    ("text", "error", "found"),
    [
        (JOB.answer, None, {}),
        (JOB.answer[:20], StreamInterruptedError("truncated"), {}),
        ("", StreamInterruptedError("truncated"), {}),
        (JOB.answer[:20], None, {"truncated, returned as complete": 1}),
        ("", None, {"truncated, returned as complete": 1}),
        (OTHER.answer, None, {"of another request": 1}),
        (OTHER.answer, StreamInterruptedError("truncated"), {"of another request": 1}),
        (JOB.answer + JOB.answer, None, {"altered": 1}),
        (JOB.answer[20:], StreamInterruptedError("truncated"), {"altered": 1}),
        ("", ValueError("x"), {"untyped: ValueError": 1}),
    ],
)
def test_wrong_responses_are_counted(text: str, error: Any, found: dict[str, int], tally: soak.Tally) -> None:
    tally.end(JOB, text, error)
    assert dict(tally.wrong) == found


def test_a_request_that_ends_twice_is_counted(tally: soak.Tally) -> None:
    for _ in range(2):
        tally.end(JOB, JOB.answer, None)
    assert tally.ended[JOB.number] == 2


def samples(memory: int = 0, blocks: int = 0, descriptors: int = 0) -> list[soak.Sample]:
    """Samples of a run that uses so much more in each tenth."""
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
def test_growth_is_found(samples: list[soak.Sample], grown: set[str]) -> None:
    assert set(soak.growth(samples)) == grown
