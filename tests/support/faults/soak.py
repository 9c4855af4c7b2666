"""The soak: many callers at once, a service that fails one time in five, and an account of every single answer.

    PYTHONPATH=tests python -m support.faults.soak --requests 10000 --threads 50 --tasks 200 --faults 0.2 --seed 1

The threads share one `PremClient`, one `ChatPremEncrypted` and one `PremEncrypted`, the tasks another set of three.
Each request asks for a code word of its own, streamed or whole. Its answer has to be the right one, word for word, or
an error of `PremError`'s tree; of a stream that fails, what came before has to be the beginning of the right one.

The service (the embedded enclave, and the fault layer before it) is another process: memory and descriptors are the
clients' alone. The exit status is 1 if an answer was wrong, belonged to somebody else, came twice or not at all, if an
exception was not of the tree, or if something grew:

- memory, over the last seven tenths of the run, by more than GROWTH of what it was, and by more than SLACK;
- the pieces of memory that Python's objects hold, in the last seven tenths, by more than BLOCKS;
- descriptors, in the last seven tenths, by more than SWING above the most there were before;
- anything at all, a descriptor or a reply, that is left when the clients are closed.
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
from prem_core._client.chat import AsyncChatCompletionStream, ChatCompletionStream
from prem_core._transport.aio import AsyncDriver
from prem_core._transport.sync import SyncDriver
from support.paths import TESTS

MODEL: Final = "openai/gpt-oss-120b"

#: What the clients are made with besides. The buffer is the one the table's large events do not fit into.
SETTINGS: Final[dict[str, Any]] = {"total_timeout": 60.0, "max_buffer_size": 8192}

#: Requests on their way at once, of the threads and of the tasks.
CONCURRENCY: Final = 64

#: How much more memory is no growth: a share of it, or bytes.
GROWTH: Final = 0.10
SLACK: Final = 16 * 1024 * 1024

#: What share more of Python's pieces of memory is no growth. What the system's allocator keeps is not in them, so this
#: is the finer measure.
BLOCKS: Final = 0.05

#: How many more descriptors are no growth: what is open depends on what is just being asked.
SWING: Final = 32

#: Collections that are made before something counts as left.
PASSES: Final = 5

#: The tenth of the run from which on nothing may grow.
SETTLED: Final = 3


@dataclass(frozen=True)
class Job:
    """One request.

    Attributes:
        number: Which one.
        word: The code word that its answer has to hold, and no other one.
        layer: Who asks: core, langchain or llama_index.
        streams: Whether the answer is streamed.
    """

    number: int
    word: str
    layer: str
    streams: bool

    @property
    def question(self) -> str:
        """What is asked."""
        return f"Context: The code word is {self.word}. Question: What is the code word?"

    @property
    def answer(self) -> str:
        """What the embedded enclave answers."""
        return f"Context: The code word is {self.word}."


def jobs(count: int, seed: int) -> Iterator[Job]:
    """So many requests, of every kind."""
    dice = random.Random(seed)
    for number in range(count):
        layer = dice.choices(("core", "langchain", "llama_index"), (6, 2, 2))[0]
        yield Job(number, f"K{number:06d}Z{dice.randrange(16**6):06x}", layer, dice.random() < 0.5)


class Sample(NamedTuple):
    """What the process uses at one moment.

    Attributes:
        seconds: Since the beginning.
        memory: Bytes in memory.
        blocks: Pieces of memory that Python's objects hold; what the system's allocator keeps is not in them.
        descriptors: Open ones.
    """

    seconds: float
    memory: int
    blocks: int
    descriptors: int

    @classmethod
    def now(cls, begun: float) -> Sample:
        """What it uses now."""
        return cls(time.monotonic() - begun, memory(), sys.getallocatedblocks(), descriptors())


@dataclass
class Tally:
    """What came of the requests, so far.

    Attributes:
        counts: By what it was: "right answer", an error's class, or what must not be.
        wrong: What must not be.
        ended: How often each request ended, by its number.
        samples: What was used at each tenth of the run.
    """

    requests: int
    bar: Any
    counts: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    ended: bytearray = field(init=False)
    asked: int = 0
    samples: list[Sample] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        # Made at once: an account that grew would look like a leak.
        self.ended = bytearray(self.requests)

    def end(self, job: Job, text: str, error: BaseException | None) -> None:
        """`job` was given this text, and then ended, or raised `error`."""
        with self.lock:
            self.asked += not self.ended[job.number]
            self.ended[job.number] += 1
            if error is not None and not isinstance(error, PremError):
                self.wrong[f"untyped: {type(error).__name__}"] += 1
            elif error is None and text == job.answer:
                self.counts["right answer"] += 1
            elif error is not None and job.answer.startswith(text):
                self.counts[type(error).__name__] += 1
            elif error is None and job.answer.startswith(text):
                self.wrong["cut, and returned as whole"] += 1
            elif "K" in text and job.word not in text:
                self.wrong["somebody else's"] += 1
            else:
                self.wrong["altered"] += 1
            self.bar.update()
            if self.asked * 10 // self.requests > len(self.samples):
                self.samples.append(Sample.now(self.begun))


def memory() -> int:
    """Bytes of this process in memory; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def descriptors() -> int:
    """Open descriptors of this process; 0 where the system does not say."""
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 0


# --- asking -------------------------------------------------------------------------------------------


def _params(job: Job) -> dict[str, Any]:
    messages = [{"role": "user", "content": job.question}]
    return {"model": MODEL, "messages": messages, "reasoning_effort": "none"}


def _core_text(item: Any) -> str:
    said = [getattr(choice, "delta", None) or choice.message for choice in item.choices]
    return "".join(each.content or "" for each in said)


def _llama_text(item: Any) -> str:
    return str((item.message.content if item.delta is None else item.delta) or "")


def ask(clients: dict[str, Any], job: Job) -> Iterator[str]:
    """The answer's text, piece by piece or whole."""
    client = clients[job.layer]
    if job.layer == "core":
        answer = client.chat.completions.create(**_params(job), stream=job.streams)
        yield from map(_core_text, answer if job.streams else [answer])
    elif job.layer == "langchain":
        messages = client.stream(job.question) if job.streams else [client.invoke(job.question)]
        yield from (str(message.text) for message in messages)
    else:
        asked = [ChatMessage(job.question)]
        yield from map(_llama_text, client.stream_chat(asked) if job.streams else [client.chat(asked)])


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
        asked = [ChatMessage(job.question)]
        if not job.streams:
            yield _llama_text(await client.achat(asked))
            return
        async for response in await client.astream_chat(asked):
            yield _llama_text(response)


def clients(core: type[Any], settings: dict[str, Any]) -> dict[str, Any]:
    """One of each."""
    said = {"model": MODEL, "reasoning_effort": "none"}
    return {
        "core": core(**settings),
        "langchain": ChatPremEncrypted(**said, **settings),
        "llama_index": PremEncrypted(**said, **settings),
    }


class Queue:
    """Jobs for many callers, until there are no more or the time is over."""

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
    """A thread with threads that share one set of clients; it ends with the queue."""
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
        shared.clear()  # the models close what is theirs when they are forgotten

    return threading.Thread(target=all_of_them)


def by_tasks(count: int, queue: Queue, settings: dict[str, Any], tally: Tally) -> threading.Thread:
    """A thread with an event loop whose tasks share one set of clients; it ends with the queue."""

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
    """The service's settings for clients; and, when it has ended, what it did."""
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
    """Run it, print the figures, and give the exit status."""
    deadline = time.monotonic() + arguments.minutes * 60
    # A run that hangs says where, and ends.
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
        seconds = time.monotonic() - tally.begun
        retries = sum(each.stats.retries for each in limits)
        in_flight = sum(each.stats.in_flight + each.stats.waiting for each in limits)
        del sides, settings
        left = leftovers(before)
    faulthandler.cancel_dump_traceback_later()
    return report(arguments, tally, did, seconds, retries, in_flight, left)


def leftovers(before: int) -> dict[str, int]:
    """What there is of the requests when their clients are closed."""
    kinds = (SyncDriver, AsyncDriver, httpx.Response, ChatCompletionStream, AsyncChatCompletionStream)
    left: dict[str, int] = {}
    for _ in range(PASSES):  # what a finaliser lets go of is found by the next one
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
    """Print the figures; 1 if one of them must not be."""
    asked = tally.asked
    twice = sum(count > 1 for count in tally.ended)
    errors = {name: count for name, count in tally.counts.most_common() if name != "right answer"}
    grown = growth(tally.samples)
    print(f"{arguments.threads} threads and {arguments.tasks} tasks, seed {arguments.seed}")
    print(
        f"requests         {asked:,} in {seconds:.0f} s: {asked / seconds:.0f} a second, {retries:,} retries"
    )
    exchanges = did["asked"].get("gateway", 0)
    share = sum(did["struck"].values()) / max(1, sum(did["asked"].values()))
    print(
        f"exchanges        {exchanges:,} at the gateway, {did['asked'].get('enclave', 0)} fetches of the key"
    )
    print(
        f"faults           {sum(did['struck'].values()):,} ({share:.1%}), {len(did['struck'])} kinds of {did['kinds']}"
    )
    print(f"right answers    {tally.counts['right answer']:,}")
    print(f"typed errors     {sum(errors.values()):,}")
    for name, count in errors.items():
        print(f"  {name:30} {count:,}")
    for name in ("somebody else's", "altered", "cut, and returned as whole"):
        print(f"{name:30}   {tally.wrong[name]}")
    untyped = sum(count for name, count in tally.wrong.items() if name.startswith("untyped"))
    print(f"{'answered twice':30}   {twice}")
    print(f"{'not of the error tree':30}   {untyped}")
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
        wrong |= {"answered twice": twice, "in flight": in_flight}
    if asked < arguments.requests:
        print(f"{arguments.requests - asked:,} requests were not sent, or not answered")
        if seconds < arguments.minutes * 60:  # there was time for them
            wrong["not answered"] = arguments.requests - asked
    if did["failures"]:
        wrong["failures of the layer"] = did["failures"]
    print(f"WRONG: {wrong}" if wrong else "nothing that must not be")
    return 1 if wrong else 0


def growth(samples: Sequence[Sample]) -> dict[str, str]:
    """What grew, in words."""
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
    """Read the command line, and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=50)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--faults", type=float, default=0.2, help="the share of exchanges that are struck")
    parser.add_argument("--minutes", type=float, default=8.0, help="no request is begun after these")
    parser.add_argument(
        "--timeout", type=float, default=4.0, help="seconds each client waits for the next bytes"
    )
    parser.add_argument("--seed", type=int, default=1)
    return soak(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
