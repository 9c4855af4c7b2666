"""A coverage-guided fuzzer: inputs that reach new lines, or have a new kind of outcome, are mutated further.

The outcome of an input must be the same each time. Any exception but the target's documented errors is a finding, as
is an input that takes too long or too much memory.
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

#: Seconds that one input may take. Most take less than a thousandth of that on an idle machine.
TIMEOUT: Final = 10.0

#: Bytes that one input may allocate, in addition to `TIMES` its own size.
MEMORY: Final = 32 * 1024 * 1024
TIMES: Final = 100


class Outcome(NamedTuple):
    """The outcome of an input.

    Attributes:
        kind: The kind of outcome, in a word or two.
        detail: Everything that must be the same when the input is run again.
    """

    kind: str
    detail: Any = None


class TooSlow(BaseException):
    """An input took longer than `TIMEOUT`."""


@dataclass(frozen=True)
class Target:
    """The code under test.

    Args:
        name: Its name.
        run: Runs one input. Raises every exception that the code under test must not raise.
        seeds: The first inputs.
        tokens: Bytes with a meaning in its input.
        follows: Whether coverage guides the fuzzer; False if the code runs in other threads.
        setting: A context around all runs, for servers and folders.
    """

    name: str
    run: Callable[[bytes], Outcome]
    seeds: Sequence[bytes]
    tokens: Sequence[bytes] = ()
    follows: bool = True
    setting: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext

    @property
    def folder(self) -> Path:
        """The folder of its cases."""
        return CASES / self.name

    def cases(self) -> list[Path]:
        """Inputs that found something once."""
        return sorted(path for path in self.folder.glob("*") if path.is_file())


class Signature(NamedTuple):
    """Identifies a finding: the error, and the place in this project that raised it."""

    kind: str
    place: str


@dataclass(frozen=True)
class Finding:
    """An input with a wrong outcome."""

    signature: Signature
    data: bytes = field(repr=False)
    trace: str = field(repr=False)


@dataclass
class Report:
    """The results of fuzzing one target."""

    target: str
    runs: int = 0
    seconds: float = 0.0
    lines: int = 0
    corpus: list[bytes] = field(default_factory=list)
    kinds: dict[str, bytes] = field(default_factory=dict)
    findings: dict[Signature, Finding] = field(default_factory=dict)


def fuzz(
    target: Target,
    rng: random.Random,
    *,
    seconds: float = 0.0,
    runs: int = 0,
    known: Collection[Signature] = (),
) -> Report:
    """Run `target` on its seeds, its cases and mutations of them.

    Args:
        target: The code under test.
        rng: The source of randomness. The same state yields the same inputs.
        seconds: Mutate for at least this long.
        runs: Run at least this many inputs.
        known: Findings to ignore.
    """
    report = Report(target.name)
    covered = _Lines() if target.follows else None
    started = time.monotonic()
    waiting = [*target.seeds, *(path.read_bytes() for path in target.cases())]
    with target.setting():
        while waiting or report.runs < runs or time.monotonic() - started < seconds:
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
    report.seconds = time.monotonic() - started
    report.lines = covered.count() if covered is not None else 0
    return report


def _next(target: Target, report: Report, rng: random.Random) -> bytes:
    corpus = report.corpus
    # The latest inputs as often as all the others.
    parent = rng.choice(corpus[-8:] if rng.random() < 0.5 else corpus)
    return mutated(parent, corpus, rng, target.tokens)


def attempt(target: Target, data: bytes, covered: _Lines | None = None) -> Outcome:
    """Run one input.

    Raises:
        TooSlow: It took too long.
        Exception: The input is a finding.
    """
    if covered is not None:
        with contextlib.suppress(Exception), _timeout():
            return covered.following(lambda: target.run(data))
        # Tracing takes stack and time: only a finding without it counts.
    with _timeout():
        return target.run(data)


def _check_again(target: Target, data: bytes) -> None:
    if attempt(target, data) != attempt(target, data):
        raise AssertionError("the same input has another outcome when it is run again")


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
    """The innermost frame of the packages in the traceback; for a failed check, its message.

    For a recursion the outermost frame: it can end in any of the inner ones.
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
def _timeout() -> Iterator[None]:
    """Interrupt what takes longer than `TIMEOUT`, on systems with the signal for it."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def interrupt(*_: object) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, TIMEOUT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class _Lines:
    """The transitions between lines of the packages that were executed."""

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
