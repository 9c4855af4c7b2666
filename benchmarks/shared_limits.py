"""Put the limits that processes share to the test, against the embedded enclave with the BASE tier's limits.

Each mode starts worker processes, counts at the gateway, and prints one line of figures. It ends with status 1 if a
figure misses its goal. All modes but `uncoordinated` start a redis-server (or valkey-server) on a free port.

    python benchmarks/shared_limits.py                            every mode, about ten minutes
    python benchmarks/shared_limits.py --mode kill --seconds 60   one mode

    uncoordinated  8 processes x 12 calls, each with limits of its own: 0 failed
    kill           8 processes; one is killed while it holds a permit, which comes back within the lease and a second
    long           the same with answers twice as long as the lease
    busy           the same while other processes keep both cores busy
    tasks          45 pickled tasks in 2 processes, as a scheduler sends them
    outage         the store is killed for 6 seconds
    tokens         4 processes x 13 prompts of 1,900 tokens
    fair           one caller and 60 waiting callers of another process
    permit         the time of one permit
    monitor        what the store gets to see; what is left after a clean exit
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import multiprocessing
import os
import pickle
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from langchain_prem import ChatPremEncrypted
from prem_core import PremClient, SharedLimits
from prem_core._rate_limit.permits import Permit
from prem_core.enclave import LocalEnclave
from prem_core.enclave.engines.scripted import ScriptedEngine, reply
from prem_core.enclave.quota import BASE, LimitReached, Metered, Tier

MODEL = "openai/gpt-oss-120b"
LEASE = 6.0
#: Characters of a holder's id in the store.
HOLDER = 16
BASE_LIMITS: dict[str, Any] = {
    "name": "acme",
    "max_concurrency": 5,
    "requests_per_second": 1,
    "burst": 4,
    "lease": LEASE,
}
#: A secret that must not appear in the store, as prompt, answer and API key.
MARK = "swordfish"

CONTEXT = multiprocessing.get_context("spawn")


class CountingTier(Tier):
    """The BASE tier, counting what it admits and rejects, and how many are open."""

    def __init__(self) -> None:
        super().__init__(BASE)
        self.admitted = self.rejected = self.most_open = 0
        self.first = self.last = 0.0

    @contextmanager
    def request(self, metered: Metered = "tokens") -> Iterator[None]:
        """As `Tier.request`."""
        try:
            with super().request(metered):
                self.last = time.monotonic()
                self.first = self.first or self.last
                self.admitted += 1
                self.most_open = max(self.most_open, self._open)
                yield
        except LimitReached:
            self.rejected += 1
            raise


class Redis:
    """A redis-server on a free loopback port, which can be killed and started again."""

    def __init__(self) -> None:
        program = shutil.which("redis-server") or shutil.which("valkey-server")
        if program is None:
            raise SystemExit("this mode needs redis-server or valkey-server")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"
        self._command = [
            program,
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
        ]
        self.folder = tempfile.TemporaryDirectory()
        self.start()

    def start(self) -> None:
        """Start it, empty, and wait until it answers."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, cwd=self.folder.name)
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.01)

    def kill(self) -> None:
        """End it with all that it holds."""
        self._process.kill()
        self._process.wait()

    def client(self) -> Any:
        """A redis-py client."""
        import redis

        return redis.Redis(port=self.port, decode_responses=True, protocol=2)


def answering(text: str, delay: float) -> ScriptedEngine:
    """An engine that gives one answer, `delay` seconds after the request."""
    return ScriptedEngine(respond=lambda request: reply(text, delay=delay))


def worker(
    number: int, options: dict[str, Any], settings: dict[str, Any], answers: Any, holders: Any, results: Any
) -> None:
    """Ask until the time is over or the calls are made: in threads, in tasks, or with streams."""
    warnings: list[str] = []
    logging.getLogger("prem_core.limits").addHandler(_Collect(warnings))
    url, limits = settings["url"], settings["limits"]
    shared = SharedLimits(url, **limits) if url else None
    if shared is not None:
        holders[HOLDER * number : HOLDER * (number + 1)] = shared._store._holder.encode()
    llm = ChatPremEncrypted(model=MODEL, nonce_reuse="allow", limits=shared, **options)
    end = time.time() + settings["seconds"]
    answered, failed, lock = 0, [], threading.Lock()
    prompt = settings["prompt"]

    def left() -> bool:
        with lock:
            if settings["calls"] is not None:
                settings["calls"] -= 1
                return settings["calls"] >= 0
        return time.time() < end

    def done(error: Exception | None) -> None:
        nonlocal answered
        with lock:
            if error is None:
                answered += 1
                answers[number] = answered
            else:
                failed.append(f"{type(error).__name__}: {error}")

    def in_thread() -> None:
        while left():
            try:
                llm.invoke(prompt)
                done(None)
            except Exception as error:
                done(error)

    async def in_task(*, stream: bool) -> None:
        while left():
            try:
                if stream:
                    async for _ in llm.astream(prompt):
                        pass
                else:
                    await llm.ainvoke(prompt)
                done(None)
            except Exception as error:
                done(error)

    async def in_tasks() -> None:
        await asyncio.gather(*(in_task(stream=n % 2 == 1) for n in range(settings["callers"])))

    if number % 2 == 0:
        threads = [threading.Thread(target=in_thread) for _ in range(settings["callers"])]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    else:
        asyncio.run(in_tasks())
    results.put((number, answered, failed, warnings))


class _Collect(logging.Handler):
    def __init__(self, found: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._found = found

    def emit(self, record: logging.LogRecord) -> None:
        self._found.append(record.getMessage())


class Run:
    """Worker processes against an enclave, and what came of them."""

    def __init__(
        self,
        processes: int,
        *,
        url: str | None,
        seconds: float = 60.0,
        calls: int | None = None,
        callers: int = 3,
        delay: float = 1.0,
        prompt: str = "Hello!",
        limits: dict[str, Any] | None = None,
        during: Callable[[Run], None] | None = None,
    ) -> None:
        self.tier = CountingTier()
        with LocalEnclave(engine=answering("Hello there.", delay), tier=self.tier) as prem:
            results, self.answers = CONTEXT.Queue(), CONTEXT.Array("i", processes)
            self.holders = CONTEXT.Array("c", HOLDER * processes)
            settings = {
                "url": url, "limits": limits or BASE_LIMITS, "seconds": seconds, "calls": calls,
                "callers": callers, "prompt": prompt,
            }  # fmt: skip
            self.processes = [
                CONTEXT.Process(
                    target=worker,
                    args=(n, dict(prem.client_options), dict(settings), self.answers, self.holders, results),
                )
                for n in range(processes)
            ]
            start = time.monotonic()
            for process in self.processes:
                process.start()
            self.killed: set[int] = set()
            if during is not None:
                during(self)
            self.failed: list[str] = []
            self.warnings: list[list[str]] = []
            self.answered = {}
            for _ in range(processes - len(self.killed)):
                number, answered, failed, warnings = results.get()
                self.answered[number] = answered
                self.failed += failed
                self.warnings.append(warnings)
            self.took = time.monotonic() - start
            for process in self.processes:
                process.join()

    @property
    def rate(self) -> float:
        """Admissions per second, from the first to the last."""
        return (self.tier.admitted - 1) / max(0.001, self.tier.last - self.tier.first)

    def line(self) -> str:
        """The figures as text."""
        share = self.tier.rejected / max(1, self.tier.admitted + self.tier.rejected)
        return (
            f"{sum(self.answered.values())} answered, {len(self.failed)} failed {sorted(set(self.failed))[:3]}, "
            f"{self.tier.rejected} answers of 429 ({share:.1%}), at most {self.tier.most_open} open, "
            f"{self.took:.1f} s, {self.rate:.2f} admissions/s; by process {sorted(self.answered.values())}"
        )


def uncoordinated(_seconds: float) -> tuple[str, bool]:
    run = Run(8, url=None, calls=12, callers=10)
    return run.line(), not run.failed and sum(run.answered.values()) == 96


def kill(
    seconds: float, *, delay: float = 1.0, busy: int = 0, limits: dict[str, Any] | None = None
) -> tuple[str, bool]:
    redis = Redis()
    returned: list[float] = []

    def during(run: Run) -> None:
        client = redis.client()
        until = time.monotonic() + seconds / 3
        while time.monotonic() < until or sum(run.answers) < 8:
            time.sleep(0.05)
        record = f"holder:{run.holders[:HOLDER].decode()}"
        while not json.loads(client.hget("prem:{acme}:limits", record) or '{"held": 0}')["held"]:
            time.sleep(0.001)
        run.processes[0].kill()
        killed = time.monotonic()
        run.killed.add(0)
        while client.hexists("prem:{acme}:limits", record):
            time.sleep(0.01)
        returned.append(time.monotonic() - killed)

    burners = [CONTEXT.Process(target=_burn, daemon=True) for _ in range(busy)]
    for burner in burners:
        burner.start()
    try:
        run = Run(8, url=redis.url, seconds=seconds, delay=delay, during=during, limits=limits)
    finally:
        for burner in burners:
            burner.kill()
        redis.kill()
    counts = list(run.answered.values())
    mean = statistics.mean(counts)
    good = not run.failed and run.tier.most_open <= 5 and returned[0] <= LEASE + 1
    if not busy:
        good &= run.tier.rejected <= 0.02 * (run.tier.admitted + run.tier.rejected)
    if not busy and delay <= 1:
        good &= all(0.6 * mean <= count <= 1.4 * mean for count in counts) and run.rate >= 0.95
    return f"{run.line()}; permits of the killed process back after {returned[0]:.2f} s", good


def long(seconds: float) -> tuple[str, bool]:
    return kill(seconds, delay=2 * LEASE)


def busy(seconds: float) -> tuple[str, bool]:
    return kill(seconds, busy=os.cpu_count() or 2)


def _burn() -> None:
    while True:
        pass


def _task(data: bytes, prompt: str) -> tuple[str, int, int]:
    llm = pickle.loads(data)
    text = str(llm.invoke(prompt).content)
    from prem_core._adapters.client_cache import CLIENTS

    return text, os.getpid(), len(CLIENTS._clients)


def tasks(_seconds: float) -> tuple[str, bool]:
    redis, tier = Redis(), CountingTier()
    with LocalEnclave(engine=answering("Hello there.", 1), tier=tier) as prem:
        os.environ["PREM_API_KEY"] = prem.client_options["api_key"]
        urls = {name: value for name, value in prem.client_options.items() if name != "api_key"}
        llm = ChatPremEncrypted(
            model=MODEL, nonce_reuse="allow", limits=SharedLimits(redis.url, **BASE_LIMITS), **urls
        )
        data = pickle.dumps(llm)
        start = time.monotonic()
        with CONTEXT.Pool(2) as pool, ThreadPoolExecutor(8) as threads:
            jobs = [threads.submit(pool.apply, _task, (data, f"Hello, {n}!")) for n in range(45)]
            answers = [job.result() for job in jobs]
            pool.close()
            pool.join()
        took = time.monotonic() - start
    redis.kill()
    clients = max(count for _, _, count in answers)
    return (
        f"{len(answers)} of 45 answered in {took:.1f} s, {tier.rejected} answers of 429, "
        f"at most {clients} clients in each of {len({pid for _, pid, _ in answers})} processes",
        tier.rejected <= 1 and clients == 1,
    )


def outage(seconds: float) -> tuple[str, bool]:
    redis = Redis()
    waited: list[float] = []

    def during(run: Run) -> None:
        until = time.monotonic() + seconds / 4
        while time.monotonic() < until or sum(run.answers) < 8:
            time.sleep(0.05)
        redis.kill()
        time.sleep(6)
        before = run.tier.admitted
        redis.start()
        back = time.monotonic()
        while run.tier.admitted == before:
            time.sleep(0.01)
        waited.append(time.monotonic() - back)

    run = Run(8, url=redis.url, seconds=seconds, during=during)
    redis.kill()
    warnings = max(map(len, run.warnings))
    good = not run.failed and warnings == 1 and waited[0] <= 3
    return f"{run.line()}; on after {waited[0]:.2f} s; at most {warnings} warnings a process", good


def tokens(_seconds: float) -> tuple[str, bool]:
    redis = Redis()
    limits = {**BASE_LIMITS, "tokens_per_minute": 38_000}
    run = Run(4, url=redis.url, calls=13, limits=limits, prompt="word " * 1_895, delay=0.2)
    redis.kill()
    return run.line(), not run.failed and sum(run.answered.values()) == 52 and run.tier.rejected <= 1


def fair(seconds: float) -> tuple[str, bool]:
    redis = Redis()
    times: list[float] = []

    def during(run: Run) -> None:
        limits = SharedLimits(redis.url, **BASE_LIMITS)
        while sum(run.answers) < 5:
            time.sleep(0.05)
        until = time.monotonic() + seconds / 2
        while time.monotonic() < until:
            permit, start = Permit(limits), time.monotonic()
            permit.acquire()
            times.append(time.monotonic() - start)
            time.sleep(0.2)
            permit.release()

    run = Run(1, url=redis.url, seconds=seconds, callers=60, during=during, delay=0.5)
    redis.kill()
    return (
        f"{len(times)} permits in {statistics.median(times):.2f} s (median), {max(times):.2f} s at most, "
        f"beside 60 waiting callers; {run.line()}",
        max(times) <= 5 and not run.failed,
    )


def permit(_seconds: float) -> tuple[str, bool]:
    redis = Redis()
    limits = SharedLimits(redis.url, name="acme", max_concurrency=5)
    times = []
    for _ in range(5_000):
        one, start = Permit(limits), time.perf_counter()
        one.acquire()
        times.append(time.perf_counter() - start)
        one.release()
    redis.kill()
    times.sort()
    p50, p99 = times[len(times) // 2] * 1e6, times[len(times) * 99 // 100] * 1e6
    return f"p50 {p50:.0f} us, p99 {p99:.0f} us", p50 <= 300


def _ask(options: dict[str, Any], url: str) -> None:
    limits = SharedLimits(url, name="acme", tokens_per_minute=38_000)
    with PremClient(nonce_reuse="allow", limits=limits, **options) as client:
        messages = [{"role": "user", "content": f"What is {MARK}?"}]
        for _ in range(5):
            client.chat.completions.create(model=MODEL, messages=messages)
            list(client.chat.completions.create(model=MODEL, messages=messages, stream=True))


def monitor(_seconds: float) -> tuple[str, bool]:
    redis = Redis()
    seen: list[str] = []
    with redis.client().monitor() as commands:

        def watch() -> None:
            with contextlib.suppress(Exception):  # the monitor is closed
                for command in commands.listen():
                    seen.append(command["command"])

        threading.Thread(target=watch, daemon=True).start()
        with LocalEnclave(
            engine=answering(f"The answer is {MARK}.", 0.01), api_key=f"sk_test_{MARK}"
        ) as prem:
            process = CONTEXT.Process(target=_ask, args=(dict(prem.client_options), redis.url))
            process.start()
            process.join()
        time.sleep(0.3)
    client = redis.client()
    left = client.zcard("prem:{acme}:leases")
    unlimited = [key for key in client.keys("*") if client.ttl(key) < 0]
    redis.kill()
    leaks = sum(MARK in command or MARK.encode().hex() in command for command in seen)
    return (
        f"{len(seen)} commands, {leaks} with a prompt, an answer or the key; {left} leases left; "
        f"{len(unlimited)} keys without an expiry",
        bool(seen) and not leaks and not left and not unlimited,
    )


MODES: dict[str, Callable[[float], tuple[str, bool]]] = {
    each.__name__: each
    for each in (uncoordinated, kill, long, busy, tasks, outage, tokens, fair, permit, monitor)
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mode", choices=MODES, action="append")
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    good = True
    for name in options.mode or MODES:
        text, met = MODES[name](options.seconds)
        good &= met
        print(f"{name}: {text}{'' if met else '  <- MISSED'}", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
