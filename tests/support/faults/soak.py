"""The soak: many concurrent callers, a fault in every fifth exchange, and a check of every response.

    PYTHONPATH=tests python -m support.faults.soak --requests 10000 --threads 50 --tasks 200 --faults 0.2 --seed 1

The threads share one `PremClient`, one `ChatPremEncrypted` and one `PremEncrypted`, the tasks another set of three.
Each request contains its own code word, streamed or whole. The response must be exactly right, or the error a
`PremError`; the chunks of a stream before an error must be the beginning of the right response.

The service (the embedded enclave behind the fault proxy) is another process, so memory and descriptors are those of the
clients. The exit status is 1 if a response was wrong, belonged to another request, came twice or never, if an exception
was no `PremError`, or if something grew in a run of at least MEASURED requests:

- memory in the last seven tenths of the run, by more than GROWTH and by more than SLACK;
- allocated blocks of Python objects in the last seven tenths, by more than BLOCKS;
- descriptors in the last seven tenths, by more than SWING;
- any descriptor or response that is left after the clients were closed, in a run of any size.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import faulthandler
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
from llama_index.core.base.llms.types import ChatMessage
from tqdm import tqdm

from langchain_prem import ChatPremEncrypted
from llama_index_prem import PremEncrypted
from prem_core import AsyncPremClient, Limits, PremClient, PremError
from prem_core._adapters.client_cache import CLIENTS
from prem_core._client.chat import AsyncChatCompletionStream, ChatCompletionStream
from prem_core._transport.aio import AsyncDriver
from prem_core._transport.sync import SyncDriver
from support.paths import TESTS

MODEL: Final = "openai/gpt-oss-120b"

#: Further settings of the clients. The large events of the fault table exceed this buffer. Every fault that allows a
#: retry gets one, and no warning counts as a failure.
SETTINGS: Final[dict[str, Any]] = {
    "total_timeout": 60.0,
    "max_buffer_size": 8192,
    "retry_after_send": True,
    "nonce_reuse": "allow",
}

#: Concurrent requests, of the threads and of the tasks.
CONCURRENCY: Final = 64

#: Memory may grow by this share, or by this many bytes.
GROWTH: Final = 0.10
SLACK: Final = 16 * 1024 * 1024

#: Allocated blocks may grow by this share. They do not include what the system's allocator keeps.
BLOCKS: Final = 0.05

#: Descriptors may grow by this number: it depends on the requests in flight.
SWING: Final = 32

#: Garbage collections before something counts as left.
PASSES: Final = 5

#: The tenth of the run from which on nothing may grow.
SETTLED: Final = 3

#: Growth is judged in runs of at least this many requests: in smaller ones the first tenths are all warm-up.
MEASURED: Final = 2_000


@dataclass(frozen=True)
class Job:
    """One request.

    Attributes:
        number: Its number.
        word: The code word that the response must contain.
        layer: The client: core, langchain or llama_index.
        streams: Whether the response is streamed.
    """

    number: int
    word: str
    layer: str
    streams: bool

    @property
    def question(self) -> str:
        """The prompt."""
        return f"Context: The code word is {self.word}. Question: What is the code word?"

    @property
    def answer(self) -> str:
        """The right response of the embedded enclave."""
        return f"The code word is {self.word}."


def jobs(count: int, seed: int) -> Iterator[Job]:
    """`count` requests of all kinds."""
    dice = random.Random(seed)
    for number in range(count):
        layer = dice.choices(("core", "langchain", "llama_index"), (6, 2, 2))[0]
        yield Job(number, f"K{number:06d}Z{dice.randrange(16**6):06x}", layer, dice.random() < 0.5)


class Sample(NamedTuple):
    """The resources of the process at one moment.

    Attributes:
        seconds: Since the start.
        memory: Resident bytes.
        blocks: Allocated blocks of Python objects.
        descriptors: Open descriptors.
    """

    seconds: float
    memory: int
    blocks: int
    descriptors: int

    @classmethod
    def now(cls, started: float) -> Sample:
        """The resources now."""
        return cls(time.monotonic() - started, memory(), sys.getallocatedblocks(), descriptors())


@dataclass
class Tally:
    """The results of the requests so far.

    Attributes:
        counts: Right responses, and errors by class.
        wrong: Violations, by kind.
        ended: How often each request ended, by its number.
        samples: The resources at each tenth of the run.
    """

    requests: int
    bar: Any
    counts: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    ended: bytearray = field(init=False)
    finished: int = 0
    samples: list[Sample] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        # Allocated at once: a growing account would look like a leak.
        self.ended = bytearray(self.requests)

    def end(self, job: Job, text: str, error: BaseException | None) -> None:
        """Record the text of a job, and its error if it raised one."""
        with self.lock:
            self.finished += not self.ended[job.number]
            self.ended[job.number] += 1
            if error is not None and not isinstance(error, PremError):
                self.wrong[f"untyped: {type(error).__name__}"] += 1
            elif error is None and text == job.answer:
                self.counts["right response"] += 1
            elif error is not None and job.answer.startswith(text):
                self.counts[type(error).__name__] += 1
            elif error is None and job.answer.startswith(text):
                self.wrong["truncated, returned as complete"] += 1
            elif "K" in text and job.word not in text:
                self.wrong["of another request"] += 1
            else:
                self.wrong["altered"] += 1
            self.bar.update()
            if self.finished * 10 // self.requests > len(self.samples):
                self.samples.append(Sample.now(self.started))


def memory() -> int:
    """Resident bytes of this process; 0 on systems without /proc."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def descriptors() -> int:
    """Open descriptors of this process; 0 on systems without /proc."""
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 0


# --- requests -------------------------------------------------------------------------------------------


def _params(job: Job) -> dict[str, Any]:
    messages = [{"role": "user", "content": job.question}]
    return {"model": MODEL, "messages": messages, "reasoning_effort": "none"}


def _core_text(item: Any) -> str:
    parts = [getattr(choice, "delta", None) or choice.message for choice in item.choices]
    return "".join(each.content or "" for each in parts)


def _llama_text(item: Any) -> str:
    return str((item.message.content if item.delta is None else item.delta) or "")


def ask(clients: dict[str, Any], job: Job) -> Iterator[str]:
    """The text of the response, chunk by chunk or whole."""
    client = clients[job.layer]
    if job.layer == "core":
        answer = client.chat.completions.create(**_params(job), stream=job.streams)
        yield from map(_core_text, answer if job.streams else [answer])
    elif job.layer == "langchain":
        messages = client.stream(job.question) if job.streams else [client.invoke(job.question)]
        yield from (str(message.text) for message in messages)
    else:
        messages = [ChatMessage(job.question)]
        yield from map(_llama_text, client.stream_chat(messages) if job.streams else [client.chat(messages)])


async def aask(clients: dict[str, Any], job: Job) -> AsyncIterator[str]:
    """`ask`, awaited."""
    client = clients[job.layer]
    if job.layer == "core":
        answer = await client.chat.completions.create(**_params(job), stream=job.streams)
        if not job.streams:
            yield _core_text(answer)
            return
        async for chunk in answer:
            yield _core_text(chunk)
    elif job.layer == "langchain":
        if not job.streams:
            yield str((await client.ainvoke(job.question)).text)
            return
        async for message in client.astream(job.question):
            yield str(message.text)
    else:
        messages = [ChatMessage(job.question)]
        if not job.streams:
            yield _llama_text(await client.achat(messages))
            return
        async for response in await client.astream_chat(messages):
            yield _llama_text(response)


def clients(core: type[Any], settings: dict[str, Any]) -> dict[str, Any]:
    """One client and one model of each adapter."""
    settings_of_models = {"model": MODEL, "reasoning_effort": "none"}
    return {
        "core": core(**settings),
        "langchain": ChatPremEncrypted(**settings_of_models, **settings),
        "llama_index": PremEncrypted(**settings_of_models, **settings),
    }


class Queue:
    """Jobs for many callers, until all are taken or the time is up."""

    def __init__(self, waiting: Iterator[Job], deadline: float) -> None:
        self._waiting = waiting
        self._deadline = deadline
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Job]:
        while time.monotonic() < self._deadline:
            with self._lock:
                job = next(self._waiting, None)
            if job is None:
                return
            yield job


def by_threads(count: int, queue: Queue, settings: dict[str, Any], tally: Tally) -> threading.Thread:
    """A thread that runs the jobs in threads with one set of clients."""
    shared = clients(PremClient, settings)

    def work() -> None:
        for job in queue:
            words: list[str] = []
            failure: BaseException | None = None
            try:
                for word in ask(shared, job):
                    words.append(word)
            except Exception as error:
                failure = error
            tally.end(job, "".join(words), failure)
            del failure

    def all_of_them() -> None:
        workers = [threading.Thread(target=work) for _ in range(count)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        shared["core"].close()
        shared.clear()  # the cache of clients closes those of the models

    return threading.Thread(target=all_of_them)


def by_tasks(count: int, queue: Queue, settings: dict[str, Any], tally: Tally) -> threading.Thread:
    """A thread that runs the jobs in the tasks of an event loop with one set of clients."""

    async def work(shared: dict[str, Any], mine: Iterator[Job]) -> None:
        for job in mine:
            words: list[str] = []
            failure: BaseException | None = None
            try:
                async for word in aask(shared, job):
                    words.append(word)
            except Exception as error:
                failure = error
            tally.end(job, "".join(words), failure)
            del failure

    async def all_of_them() -> None:
        shared = clients(AsyncPremClient, settings)
        await asyncio.gather(*(work(shared, iter(queue)) for _ in range(count)))
        await shared["core"].close()

    return threading.Thread(target=lambda: asyncio.run(all_of_them()))


# --- the run ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def service(seed: int, share: float) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    """Settings for clients of the service; and its statistics, filled in when it has ended."""
    path = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "support.faults.soak_service", str(seed), str(share)]
    did: dict[str, Any] = {}
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield json.loads(process.stdout.readline()), did
        process.stdin.close()
        did.update(json.loads(process.stdout.readline()))


def soak(arguments: argparse.Namespace) -> int:
    """Run the soak, print the figures, and return the exit status."""
    deadline = time.monotonic() + arguments.minutes * 60
    # A run that hangs prints its stacks and exits.
    faulthandler.dump_traceback_later(arguments.minutes * 60 + 2 * SETTINGS["total_timeout"], exit=True)
    with service(arguments.seed, arguments.faults) as (options, did):
        before = descriptors()
        queue = Queue(jobs(arguments.requests, arguments.seed), deadline)
        limits = [Limits(max_concurrency=CONCURRENCY) for _ in range(2)]
        with tqdm(total=arguments.requests, unit="requests", disable=None) as bar:
            tally = Tally(arguments.requests, bar)
            settings = [
                {**options, **SETTINGS, "timeout": arguments.timeout, "limits": each} for each in limits
            ]
            sides = [
                by_threads(arguments.threads, queue, settings[0], tally),
                by_tasks(arguments.tasks, queue, settings[1], tally),
            ]
            for side in sides:
                side.start()
            for side in sides:
                side.join()
        seconds = time.monotonic() - tally.started
        retries = sum(each.stats.retries for each in limits)
        in_flight = sum(each.stats.in_flight + each.stats.waiting for each in limits)
        del sides, settings
        CLIENTS.clear()  # it keeps idle clients of models open
        left = leftovers(before)
    faulthandler.cancel_dump_traceback_later()
    return report(arguments, tally, did, seconds, retries, in_flight, left)


def leftovers(before: int) -> dict[str, int]:
    """What is left of the requests after their clients were closed."""
    kinds = (SyncDriver, AsyncDriver, httpx.Response, ChatCompletionStream, AsyncChatCompletionStream)
    left: dict[str, int] = {}
    for _ in range(PASSES):  # what a finaliser frees is found by the next collection
        gc.collect()
        left = Counter(type(each).__name__ for each in gc.get_objects() if isinstance(each, kinds))
        left["descriptors"] = descriptors() - before
        left = {name: count for name, count in left.items() if count}
        if not left:
            break
        time.sleep(0.2)
    return left


def report(
    arguments: argparse.Namespace,
    tally: Tally,
    did: dict[str, Any],
    seconds: float,
    retries: int,
    in_flight: int,
    left: dict[str, int],
) -> int:
    """Print the figures; return 1 if there was a violation."""
    requests = tally.finished
    twice = sum(count > 1 for count in tally.ended)
    errors = {name: count for name, count in tally.counts.most_common() if name != "right response"}
    grown = growth(tally.samples) if requests >= MEASURED else {}
    print(f"{arguments.threads} threads and {arguments.tasks} tasks, seed {arguments.seed}")
    print(
        f"requests         {requests:,} in {seconds:.0f} s: {requests / seconds:.0f} a second, {retries:,} retries"
    )
    exchanges = did["requests"].get("gateway", 0)
    share = sum(did["faults"].values()) / max(1, sum(did["requests"].values()))
    print(
        f"exchanges        {exchanges:,} at the gateway, {did['requests'].get('enclave', 0)} fetches of the key"
    )
    print(
        f"faults           {sum(did['faults'].values()):,} ({share:.1%}), {len(did['faults'])} kinds of {did['kinds']}"
    )
    print(f"right responses  {tally.counts['right response']:,}")
    print(f"typed errors     {sum(errors.values()):,}")
    for name, count in errors.items():
        print(f"  {name:30} {count:,}")
    for name in ("of another request", "altered", "truncated, returned as complete"):
        print(f"{name:30}   {tally.wrong[name]}")
    untyped = sum(count for name, count in tally.wrong.items() if name.startswith("untyped"))
    print(f"{'ended twice':30}   {twice}")
    print(f"{'not a PremError':30}   {untyped}")
    print("tenth of the run  " + " ".join(f"{tenth:>6}" for tenth, _ in enumerate(tally.samples, 1)))
    rows = {
        "seconds": [f"{each.seconds:6.0f}" for each in tally.samples],
        "memory, MB": [f"{each.memory / 1e6:6.1f}" for each in tally.samples],
        "thousand blocks": [f"{each.blocks / 1e3:6.0f}" for each in tally.samples],
        "descriptors": [f"{each.descriptors:6}" for each in tally.samples],
    }
    for name, figures in rows.items():
        print(f"{name:17} {' '.join(figures)}")
    print(f"left at the end  {left or 'nothing'}")
    wrong = {**tally.wrong, **grown, **left}
    if twice or in_flight:
        wrong |= {"ended twice": twice, "in flight": in_flight}
    if requests < arguments.requests:
        print(f"{arguments.requests - requests:,} requests were not sent, or did not end")
        if seconds < arguments.minutes * 60:  # there was time for all
            wrong["not ended"] = arguments.requests - requests
    if did["failures"]:
        wrong["failures of the proxy"] = did["failures"]
    print(f"VIOLATIONS: {wrong}" if wrong else "no violation")
    return 1 if wrong else 0


def growth(samples: Sequence[Sample]) -> dict[str, str]:
    """What grew, with figures."""
    early, late = samples[:SETTLED], samples[SETTLED:]
    if not late:
        return {}
    grown = {}
    settled, used = early[-1].memory, max(each.memory for each in late)
    if used - settled > max(GROWTH * settled, SLACK):
        grown["memory"] = f"{settled / 1e6:.1f} to {used / 1e6:.1f} MB"
    blocks, held = max(each.blocks for each in early), statistics.median(each.blocks for each in late)
    if held - blocks > BLOCKS * blocks:
        grown["blocks"] = f"{blocks:,} to {held:,.0f}"
    most, now = max(each.descriptors for each in early), max(each.descriptors for each in late)
    if now > most + SWING:
        grown["descriptors"] = f"{most} to {now}"
    return grown


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the soak with command-line arguments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=50)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--faults", type=float, default=0.2, help="the share of exchanges with a fault")
    parser.add_argument("--minutes", type=float, default=8.0, help="no request starts after this time")
    parser.add_argument(
        "--timeout", type=float, default=4.0, help="seconds each client waits for the next bytes"
    )
    parser.add_argument("--seed", type=int, default=1)
    return soak(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
