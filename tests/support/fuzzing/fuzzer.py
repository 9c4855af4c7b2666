"""A random fuzzer that follows coverage: inputs that reach new lines, or end in a new way, are changed further.

An input is run for what it does (its outcome), which must not depend on when it is run; what it raises beyond its
target's own errors is a finding. So is an input that takes too long or too much memory.
"""

from __future__ import annotations

import contextlib
import random
import signal
import sys
import threading
import time
import traceback
import tracemalloc
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final, NamedTuple

import langchain_prem
import llama_index_prem
import prem_core
from support.fuzzing.mutations import mutated
from support.paths import TESTS

CASES: Final = TESTS / "fuzz" / "cases"
PACKAGES: Final = tuple(
    f"{Path(str(package.__file__)).parent}/" for package in (prem_core, langchain_prem, llama_index_prem)
)

#: Seconds that one input may take. Most take less than a thousandth of that, on a machine with nothing else to do.
PATIENCE: Final = 10.0

#: Bytes that one input may need at its worst, besides this many times its own size.
MEMORY: Final = 32 * 1024 * 1024
TIMES: Final = 100


class Outcome(NamedTuple):
    """What an input did.

    Attributes:
        kind: In a word or two: ways of ending are told apart by it.
        detail: All that must be the same when it is run again.
    """

    kind: str
    detail: Any = None


class TooSlow(BaseException):
    """An input took longer than `PATIENCE`."""


@dataclass(frozen=True)
class Target:
    """What is fuzzed.

    Args:
        name: What it is called.
        run: Runs one input. Raises whatever is no error that the code under test may raise.
        seeds: Inputs to begin with.
        tokens: Bytes that mean something to it.
        follows: Whether coverage is followed; not where the code under test runs in other threads.
        setting: Around all runs: servers, folders.
    """

    name: str
    run: Callable[[bytes], Outcome]
    seeds: Sequence[bytes]
    tokens: Sequence[bytes] = ()
    follows: bool = True
    setting: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext

    @property
    def folder(self) -> Path:
        """Where its cases are kept."""
        return CASES / self.name

    def cases(self) -> list[Path]:
        """Inputs that found something once, or that are worth being run again."""
        return sorted(path for path in self.folder.glob("*") if path.is_file())


class Signature(NamedTuple):
    """What tells one finding from another: the error, and where in this project it was raised."""

    kind: str
    place: str


@dataclass(frozen=True)
class Finding:
    """An input that should not have done what it did."""

    signature: Signature
    data: bytes = field(repr=False)
    trace: str = field(repr=False)


@dataclass
class Report:
    """What came of fuzzing one target."""

    target: str
    runs: int = 0
    seconds: float = 0.0
    lines: int = 0
    corpus: list[bytes] = field(default_factory=list)
    kinds: dict[str, bytes] = field(default_factory=dict)
    findings: dict[Signature, Finding] = field(default_factory=dict)


def fuzz(target: Target, seconds: float, rng: random.Random, known: Collection[Signature] = ()) -> Report:
    """Run `target` for so many seconds.

    Args:
        target: What to run.
        seconds: How long; its seeds and cases are run in any case.
        rng: Where chance comes from. The same one gives the same inputs, in as far as there is time for them.
        known: Findings that are none.
    """
    report = Report(target.name)
    covered = _Lines() if target.follows else None
    begun = time.monotonic()
    waiting = [*target.seeds, *(path.read_bytes() for path in target.cases())]
    with target.setting():
        while waiting or time.monotonic() - begun < seconds:
            data = waiting.pop(0) if waiting else _next(target, report, rng)
            report.runs += 1
            try:
                outcome = attempt(target, data, covered)
                if target.follows and report.runs % 16 == 0:
                    _check_again(target, data)
                if target.follows and report.runs % 256 == 0:
                    _check_memory(target, data)
            except (Exception, TooSlow) as error:
                outcome = Outcome(f"finding {type(error).__name__}")
                signature = signature_of(error)
                if signature not in known and signature not in report.findings:
                    trace = "".join(traceback.format_exception(error))
                    report.findings[signature] = Finding(signature, data, trace)
            new = covered is not None and covered.has_new()
            if new or outcome.kind not in report.kinds:
                report.kinds.setdefault(outcome.kind, data)
                report.corpus.append(data)
            elif len(data) < len(report.kinds[outcome.kind]):
                report.kinds[outcome.kind] = data
    report.seconds = time.monotonic() - begun
    report.lines = covered.count() if covered is not None else 0
    return report


def _next(target: Target, report: Report, rng: random.Random) -> bytes:
    corpus = report.corpus
    # The latest ones as often as all the others.
    parent = rng.choice(corpus[-8:] if rng.random() < 0.5 else corpus)
    return mutated(parent, corpus, rng, target.tokens)


def attempt(target: Target, data: bytes, covered: _Lines | None = None) -> Outcome:
    """Run one input.

    Raises:
        TooSlow: It took too long.
        Exception: Whatever is a finding.
    """
    if covered is not None:
        with contextlib.suppress(Exception), _patience():
            return covered.following(lambda: target.run(data))
        # Following takes stack and time of its own: only what is found without it counts.
    with _patience():
        return target.run(data)


def _check_again(target: Target, data: bytes) -> None:
    if attempt(target, data) != attempt(target, data):
        raise AssertionError("the same input did something else when it was run again")


def _check_memory(target: Target, data: bytes) -> None:
    tracemalloc.start()
    try:
        attempt(target, data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    if peak > MEMORY + TIMES * len(data):
        raise AssertionError("an input took too much memory")


def shrunk(target: Target, finding: Finding, seconds: float = 5.0) -> bytes:
    """A smaller input with the same finding."""
    data, end = finding.data, time.monotonic() + seconds
    size = max(1, len(data) // 2)
    while size and time.monotonic() < end:
        for at in range(0, len(data), size):
            smaller = data[:at] + data[at + size :]
            if _finds(target, smaller, finding.signature):
                data = smaller
                break
            if time.monotonic() > end:
                break
        else:
            size //= 2
    return data


def _finds(target: Target, data: bytes, signature: Signature) -> bool:
    try:
        attempt(target, data)
    except (Exception, TooSlow) as error:
        return signature_of(error) == signature
    return False


def signature_of(error: BaseException) -> Signature:
    """Of the frames of the packages that an error passed the innermost one; of an oracle's error, its text.

    A recursion can end in any of its frames, so that the outermost one names it.
    """
    if isinstance(error, AssertionError) and error.args:
        return Signature("AssertionError", str(error.args[0]).partition(":")[0])
    passed = [
        f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}"
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename.startswith(PACKAGES)
    ]
    place = passed[0 if isinstance(error, RecursionError) else -1] if passed else "elsewhere"
    return Signature(type(error).__name__, place)


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    """Ends what takes longer than `PATIENCE`, where signals can do that."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def bark(*_: object) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, bark)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class _Lines:
    """Which steps from line to line were taken, in the packages."""

    def __init__(self) -> None:
        self._seen: set[tuple[CodeType, int, int]] = set()
        self._before = 0

    def following(self, call: Callable[[], Outcome]) -> Outcome:
        before = sys.gettrace()  # coverage's, or a debugger's
        sys.settrace(self._enter)
        try:
            return call()
        finally:
            sys.settrace(before)

    def has_new(self) -> bool:
        new = len(self._seen) > self._before
        self._before = len(self._seen)
        return new

    def count(self) -> int:
        return len({(code, line) for code, _, line in self._seen})

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(PACKAGES):
            return None
        add, last = self._seen.add, 0

        def step(frame: FrameType, event: str, arg: Any) -> Any:
            nonlocal last
            if event == "line":
                add((code, last, frame.f_lineno))
                last = frame.f_lineno
            return step

        return step
