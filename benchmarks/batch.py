"""Kill a batch ten times in 3,000 requests, and measure the memory and the resume of a million lines.

    python benchmarks/batch.py [--requests 3000] [--kills 10] [--lines 1000000] [--only kills,resume,answers]

The embedded enclave runs in this process, and each batch in one of its own. `resume` is a run over a million lines of
which all but the last 1,000 are answered: the time to its first request, and its memory. `answers` is the memory of a
run that answers 20,000 requests.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from prem_core import batch
from prem_core.batch.lines import answer_line
from prem_core.enclave import EngineRequest, LocalEnclave

CONCURRENCY = 20


def write_requests(path: Path, count: int) -> None:
    with path.open("w") as file:
        for number in range(count):
            body = {
                "model": "openai/gpt-oss-120b",
                "messages": [{"role": "user", "content": f"{number:07d} " + "words " * 40}],
            }
            line = {"custom_id": f"request-{number:07d}", "method": "POST", "url": "/v1/chat/completions"}
            file.write(json.dumps({**line, "body": body}) + "\n")


def write_answers(path: Path, count: int) -> None:
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "openai/gpt-oss-120b",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "words " * 30}}],
        "usage": {"prompt_tokens": 50, "completion_tokens": 30, "total_tokens": 80},
    }
    with path.open("wb") as file:
        for number in range(count):
            file.write(answer_line(f"request-{number:07d}", body, None) + b"\n")


def worker(requests: str, output: str) -> None:
    """One batch, in a process of its own: its figures on standard output."""
    started = time.monotonic()
    first: list[float] = []

    def on_progress(progress: batch.Progress) -> None:
        if not first and progress.done + progress.in_flight:
            first.append(time.monotonic() - started)

    progress = asyncio.run(batch.arun(requests, output, max_concurrency=CONCURRENCY, on_progress=on_progress))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    figures = {
        "done": progress.done,
        "skipped": progress.skipped,
        "seconds": time.monotonic() - started,
        "first": first[0] if first else None,
        "megabytes": memory,
    }
    print(json.dumps(figures))


def start(requests: Path, output: Path, prem: LocalEnclave) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, __file__, "--worker", str(requests), str(output)],
        env={**os.environ, **prem.environment},
        stdout=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a batch failed with exit code {process.returncode}")
    found: dict[str, Any] = json.loads(out)
    return found


def kills(folder: Path, count: int, times: int) -> bool:
    requests, output = folder / "in.jsonl", folder / "out.jsonl"
    write_requests(requests, count)
    asked: collections.Counter[str] = collections.Counter()
    lock, reached = threading.Lock(), threading.Event()
    kills_at = sorted(random.sample(range(count // 20, count * 9 // 10), times))

    def respond(request: EngineRequest) -> str:
        with lock:
            asked[request.text[:7]] += 1
            if kills_at and asked.total() >= kills_at[0]:
                reached.set()
        return "yes"

    with LocalEnclave(respond=respond) as prem:
        while kills_at:
            process = start(requests, output, prem)
            reached.wait()
            process.send_signal(signal.SIGKILL)
            process.communicate()
            with lock:
                kills_at = [each for each in kills_at if each > asked.total()]
                reached.clear()
        figures = finish(start(requests, output, prem))
    names = [line["custom_id"] for line in batch.read_results(output)]
    twice = asked.total() - count
    good = len(names) == len(set(names)) == count and twice <= times * CONCURRENCY
    print(
        f"kills: {count} requests, {times} kills: {len(set(names))} answered once each, {twice} asked twice "
        f"(at most {times * CONCURRENCY}), {figures['megabytes']:.0f} MB",
        flush=True,
    )
    return good


def million(folder: Path, lines: int) -> bool:
    requests, output = folder / "many.jsonl", folder / "many.out.jsonl"
    write_requests(requests, lines)
    write_answers(output, lines - 1000)
    with LocalEnclave(respond=lambda request: "yes") as prem:
        figures = finish(start(requests, output, prem))
    good = figures["done"] == 1000 and figures["megabytes"] <= 150 and figures["first"] <= 10
    print(
        f"resume: {lines:,} lines, {figures['skipped']:,} answered: first request after {figures['first']:.1f} s, "
        f"{figures['megabytes']:.0f} MB",
        flush=True,
    )
    return bool(good)


def answers(folder: Path, count: int) -> bool:
    requests, output = folder / "answers.jsonl", folder / "answers.out.jsonl"
    write_requests(requests, count)
    with LocalEnclave(respond=lambda request: "yes") as prem:
        figures = finish(start(requests, output, prem))
    print(
        f"answers: {count:,} requests in {figures['seconds']:.0f} s, {figures['done'] / figures['seconds']:.0f}/s, "
        f"{figures['megabytes']:.0f} MB",
        flush=True,
    )
    return figures["done"] == count and figures["megabytes"] <= 150


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--answers", type=int, default=20_000)
    parser.add_argument("--only", default="kills,resume,answers")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(*options.worker)
        return 0
    only = options.only.split(",")
    good = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "kills" in only:
            good &= kills(folder, options.requests, options.kills)
        if "resume" in only:
            good &= million(folder, options.lines)
        if "answers" in only:
            good &= answers(folder, options.answers)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
