"""A batch that is killed, as a process of its own."""

from __future__ import annotations

import collections
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.batch_files import ids, write_input
from support.prem_program import TIMEOUT, client_environment, environment

from prem_core.enclave import EngineRequest, LocalEnclave

pytestmark = pytest.mark.skipif(os.name == "nt", reason="kills a process with SIGKILL")

CONCURRENCY = 8
REQUESTS = 150


def test_a_killed_batch_goes_on_and_asks_only_what_was_in_flight_again(tmp_path: Path) -> None:
    requests, output = write_input(tmp_path / "in.jsonl", REQUESTS), tmp_path / "out.jsonl"
    asked: collections.Counter[str] = collections.Counter()
    kills_at = [20, 60, 90]
    reached = threading.Event()
    lock = threading.Lock()

    def respond(request: EngineRequest) -> str:
        with lock:
            asked[request.text] += 1
            if kills_at and asked.total() >= kills_at[0]:
                reached.set()
        return request.text.upper()

    command = [sys.executable, "-m", "prem_core.cli", "batch", str(requests), "-o", str(output)]
    command += ["--jobs", str(CONCURRENCY)]
    with LocalEnclave(respond=respond) as prem:
        kills = 0
        while kills_at:
            process = subprocess.Popen(
                command, env=environment(client_environment(prem)), stderr=subprocess.DEVNULL
            )
            assert reached.wait(TIMEOUT)
            process.kill()
            process.wait(TIMEOUT)
            kills += 1
            with lock:
                reached.clear()
                kills_at.pop(0)
        status = subprocess.run(
            command, env=environment(client_environment(prem)), stderr=subprocess.DEVNULL, timeout=TIMEOUT
        ).returncode
    assert status == 0
    assert sorted(ids(output)) == sorted(f"r{number}" for number in range(REQUESTS))
    assert asked.total() - REQUESTS <= kills * CONCURRENCY
