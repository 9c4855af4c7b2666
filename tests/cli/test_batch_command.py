"""prem batch: runs, dry runs, sealed outputs, extraction, Ctrl-C and exit codes."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from support.batch_files import chat_line, ids, objects, text_of, write_input
from support.prem_program import Prem, TerminalProcess, client_environment

from prem_core import BadRequestError
from prem_core.cli.commands import batch as command
from prem_core.enclave import EngineRequest, LocalEnclave, ScriptedEngine, reply

KEK = "0123456789abcdef" * 4


@pytest.fixture
def env(scripted_enclave: tuple[LocalEnclave, ScriptedEngine], engine: ScriptedEngine) -> dict[str, str]:
    engine.respond = lambda request: request.text.upper()
    return client_environment(scripted_enclave[0])


def test_batch_answers_a_file_of_requests(prem: Prem, env: dict[str, str], tmp_path: Path) -> None:
    requests, output = write_input(tmp_path / "in.jsonl", 5), tmp_path / "out.jsonl"
    result = prem("batch", str(requests), "-o", str(output), **env)
    assert (result.status, result.out) == (0, "")
    assert "5 done" in result.err
    assert {text_of(line) for line in objects(output)} == {f"R{number}" for number in range(5)}
    again = prem("batch", "run", str(requests), "-o", str(output), **env)
    assert "5 done in earlier runs" in again.err


def test_batch_without_an_output_is_a_usage_error(prem: Prem, env: dict[str, str], tmp_path: Path) -> None:
    prem("batch", str(write_input(tmp_path / "in", 1)), **env).assert_error(2, "-o OUT.jsonl is missing")


def test_a_missing_input_is_an_error(prem: Prem, env: dict[str, str], tmp_path: Path) -> None:
    prem("batch", str(tmp_path / "none"), "-o", str(tmp_path / "out"), **env).assert_error(1, "No such file")
    assert not (tmp_path / "out").exists()


def test_failed_requests_and_invalid_lines_give_exit_code_1(
    prem: Prem, env: dict[str, str], engine: ScriptedEngine, tmp_path: Path
) -> None:
    engine.respond = lambda request: BadRequestError("no") if request.text == "r1" else "yes"
    requests = write_input(tmp_path / "in.jsonl", 3, "{")
    result = prem("batch", str(requests), "-o", str(tmp_path / "out.jsonl"), **env)
    assert result.status == 1
    assert "2 of 4 failed" in result.err
    assert "out.errors.jsonl" in result.err
    again = prem("batch", str(requests), "-o", str(tmp_path / "out.jsonl"), **env)
    assert "--retry-failed sends the 1 of earlier runs again" in again.err
    assert again.status == 1


def test_a_dry_run_sends_nothing_and_names_invalid_lines(
    prem: Prem, env: dict[str, str], engine: ScriptedEngine, tmp_path: Path
) -> None:
    requests = write_input(tmp_path / "in.jsonl", 3, "{", chat_line("a", temperature=9))
    result = prem("batch", str(requests), "--dry-run", **env)
    assert result.status == 1
    assert "line 4: it is not JSON" in result.err
    assert "line 5: temperature" in result.err
    assert "to send        3" in result.out
    assert engine.requests == []


def test_a_dry_run_needs_no_api_key(prem: Prem, tmp_path: Path) -> None:
    result = prem("batch", str(write_input(tmp_path / "in.jsonl", 3)), "--dry-run")
    assert result.status == 0
    assert "the cost is not estimated: no API key" in result.err


def test_a_sealed_output_is_read_with_open(prem: Prem, env: dict[str, str], tmp_path: Path) -> None:
    requests, output = write_input(tmp_path / "in.jsonl", 3), tmp_path / "out.jsonl"
    assert prem("batch", str(requests), "-o", str(output), "--seal", CLIENT_KEK=KEK, **env).status == 0
    assert b"custom_id" not in output.read_bytes()
    opened = prem("batch", "open", str(output), CLIENT_KEK=KEK)
    assert {json.loads(line)["custom_id"] for line in opened.out.splitlines()} == {"r0", "r1", "r2"}
    prem("batch", "open", str(output)).assert_error(2, "is sealed", "CLIENT_KEK")
    prem("batch", str(requests), "-o", str(output), "--seal", **env).assert_error(2, "--seal needs a KEK")


def test_batch_runs_on_the_embedded_enclave(prem: Prem, tmp_path: Path) -> None:
    requests = write_input(tmp_path / "in.jsonl", 0, chat_line("a", model="openai/gpt-oss-120b"))
    assert prem("--local", "batch", str(requests), "-o", str(tmp_path / "out.jsonl")).status == 0
    assert ids(tmp_path / "out.jsonl") == ["a"]


def test_extract_writes_a_table(
    prem: Prem, env: dict[str, str], engine: ScriptedEngine, tmp_path: Path
) -> None:
    schema = tmp_path / "invoice.py"
    schema.write_text("import pydantic\n\nclass Invoice(pydantic.BaseModel):\n    number: int\n")
    documents = tmp_path / "documents"
    documents.mkdir()
    for number in (1, 2):
        (documents / f"{number}.txt").write_text(f"Invoice {number}")
    engine.respond = lambda request: json.dumps({"number": int(request.text[-1])})
    table = tmp_path / "rows.csv"
    result = prem(
        "batch", "extract", str(documents), "--schema", f"{schema}:Invoice", "-o", str(table), "--ordered", **env
    )  # fmt: skip
    assert result.status == 0, result
    assert table.read_text().splitlines() == [
        "_source,number", f"{documents}/1.txt,1", f"{documents}/2.txt,2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ("none.json", "cannot be read"),
        ("none.py:Invoice", "there is no such file"),
        ("{folder}/a.txt", "is not JSON"),
        ("{folder}/a.py:Missing", "has no Missing"),
        ("{folder}/broken.py:Invoice", "cannot be imported"),
    ],
)
def test_a_schema_that_cannot_be_read_is_a_usage_error(
    schema: str, problem: str, prem: Prem, env: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "a.py").write_text("")
    (tmp_path / "broken.py").write_text("1 / 0")
    given = schema.format(folder=tmp_path)
    result = prem(
        "batch", "extract", str(tmp_path / "a.txt"), "--schema", given, "-o", str(tmp_path / "rows.jsonl"), **env
    )  # fmt: skip
    result.assert_error(2, "--schema", problem)


class Held:
    """An engine's function that answers only when it is released, and counts."""

    def __init__(self) -> None:
        self.started = threading.Semaphore(0)
        self.release = threading.Event()

    def __call__(self, request: EngineRequest) -> Any:
        self.started.release()
        self.release.wait(60)
        return reply("yes")


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_ends_the_requests_in_flight_and_a_second_one_stops_at_once(
    times: int, tmp_path: Path
) -> None:
    held = Held()
    output = tmp_path / "out.jsonl"
    with LocalEnclave(respond=held) as prem:
        process = TerminalProcess(
            "batch", str(write_input(tmp_path / "in.jsonl", 20)), "-o", str(output), "--jobs", "3",
            **client_environment(prem),
        )  # fmt: skip
        for _ in range(3):
            assert held.started.acquire(timeout=60)
        process.process.send_signal(signal.SIGINT)
        process.wait_for("Ctrl-C again stops at once")
        if times == 1:
            held.release.set()
        else:
            process.process.send_signal(signal.SIGINT)
        result = process.end()
        held.release.set()
    assert result.status == 130
    assert len(ids(output)) == (3 if times == 1 else 0)


def test_the_counts_name_what_happened() -> None:
    from prem_core.batch import Progress

    now = 0.0
    progress = Progress(total=100, clock=lambda: now)
    now = 10.0
    progress.skipped, progress.done, progress.failed, progress.in_flight = 30, 18, 2, 5
    progress.prompt_tokens, progress.cost, progress.unpriced = 1200, 0.5, 1
    assert command._counts(progress) == (
        "18 done, 2 failed, 30 done in earlier runs, 2.0/s, 1,200 tokens, "
        "cost 0.5 without 1 answers that have no price, 25 s left"
    )
