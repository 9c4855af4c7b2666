"""Runs jobs with bounded concurrency, and writes each result as soon as it is there.

What is held in memory does not grow with the number of jobs, except for the index of ids.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from prem_core._errors import (
    APIError,
    APIStatusError,
    AttestationError,
    AuthenticationError,
    ConfigurationError,
    DecryptionError,
    EnclaveKeyError,
    NonceReuseError,
    PermissionDeniedError,
    PremError,
)
from prem_core.batch.cost import CostMeter
from prem_core.batch.errors_file import ErrorsFile
from prem_core.batch.index import ANSWERED, FAILED, SEEN, IdIndex
from prem_core.batch.journal import Journal
from prem_core.batch.lines import InvalidLineError, error_line
from prem_core.batch.progress import Progress

if TYPE_CHECKING:
    from prem_core import AsyncPremClient, Usage

#: Requests in a row that fail before a run stops. Then it is the service that fails, and not a request.
DEFAULT_MAX_FAILURES: Final = 20

#: Errors that every request would have. They end the run.
_FATAL: Final = (
    ConfigurationError,
    AuthenticationError,
    PermissionDeniedError,
    EnclaveKeyError,
    AttestationError,
    NonceReuseError,
)
_PAYMENT_REQUIRED: Final = 402

#: A line of more bytes is parsed in a thread.
_OFFLOAD_BYTES: Final = 1 << 20

#: Lines that are skipped before other tasks get their turn.
_LINES_AT_ONCE: Final = 2000

#: Seconds between two reports of the progress, and reports between two writes to the disk.
_REPORT_INTERVAL: Final = 0.25
_REPORTS_PER_SYNC: Final = 4


class BatchStoppedError(PremError):
    """The run stopped because many requests in a row failed. A further run resumes it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a job returns: its line of the output, and whether the token limit truncated the answer."""

    line: bytes = field(repr=False)
    truncated: bool = False


#: Called with the token counts of each answer of the service; None for an answer without them.
OnUsage = Callable[["Usage | None"], object]


@dataclass(frozen=True, slots=True)
class Job:
    """One request, or several that make one line of the output.

    Attributes:
        name: Its id.
        model: The model that is asked.
        size: Bytes of the prompt, about.
        max_tokens: The limit of the answer, if there is one.
        perform: Sends it, and reports its usage. Raises `PremError`.
    """

    name: str
    model: str
    size: int
    max_tokens: int | None
    perform: Callable[[AsyncPremClient, OnUsage], Awaitable[Answer]] = field(repr=False)


class Item(NamedTuple):
    """One entry of the input, which may not be a job.

    Attributes:
        number: Its number, from 1.
        name: Its id, if that is known before `make`.
        size: Bytes that `make` reads.
        make: Makes the job. Raises `InvalidLineError`.
    """

    number: int
    name: str | bytes | None
    size: int
    make: Callable[[], Job]


@dataclass(slots=True)
class Runner:
    """One run.

    Args:
        items: The input.
        client: Sends the requests.
        output: The open journal.
        errors: The errors file, compacted.
        index: The ids in both.
        meter: Adds up the cost.
        progress: The counts, updated while the run lasts.
        concurrency: Requests in flight at most.
        ordered: Write the answers in the order of the input.
        limit: Requests to send at most.
        max_failures: Failed requests in a row after which the run stops; None for no limit.
        stop: Set it to send no further requests and end when those in flight have ended.
        on_progress: Called several times a second.
    """

    items: Iterator[Item]
    client: AsyncPremClient
    output: Journal
    errors: ErrorsFile
    index: IdIndex
    meter: CostMeter
    progress: Progress
    concurrency: int
    ordered: bool = False
    limit: int | None = None
    max_failures: int | None = DEFAULT_MAX_FAILURES
    stop: asyncio.Event | None = None
    on_progress: Callable[[Progress], object] = lambda progress: None
    _taking: asyncio.Lock = field(default_factory=asyncio.Lock)
    _settled: asyncio.Event = field(default_factory=asyncio.Event)
    _over: asyncio.Event = field(default_factory=asyncio.Event)
    _taken: int = 0
    _failures_in_row: int = 0
    _fatal: PremError | None = None
    #: With `ordered`: lines that wait for an earlier one, by their job's place; None for a job without one.
    _waiting: dict[int, bytes | None] = field(default_factory=dict)
    _written: int = 0

    async def run(self) -> None:
        """Run all jobs.

        Raises:
            PremError: An error that every request would have, or `BatchStoppedError`.
            OSError: The output cannot be written. What it holds is complete, and a further run resumes it.
        """
        ticker = asyncio.create_task(self._tick())
        workers = [asyncio.create_task(self._work()) for _ in range(self.concurrency)]
        try:
            remaining: set[asyncio.Task[None]] = {*workers, ticker}
            while remaining - {ticker}:
                done, remaining = await asyncio.wait(remaining, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            for task in workers:
                task.cancel()
            self._over.set()
            await asyncio.gather(*workers, ticker, return_exceptions=True)
            # Answers that were waiting for an earlier one which was not answered. The file may be what failed.
            with contextlib.suppress(OSError):
                for place in sorted(self._waiting):
                    self._write(self._waiting[place])
            self.on_progress(self.progress)
        if self._fatal is not None:
            raise self._fatal

    async def _work(self) -> None:
        while (taken := await self._take()) is not None:
            place, job, estimate = taken
            self.progress.in_flight += 1
            try:
                answer = await job.perform(self.client, functools.partial(self._count, job.model))
                self._failures_in_row = 0
                self._finish(place, answer.line)
                self.progress.done += 1
                self.progress.truncated += answer.truncated
            except PremError as error:
                self._fail(job, error)
                self._finish(place, None)
            finally:
                self.progress.in_flight -= 1
                self.meter.release(estimate)
                self._settled.set()

    async def _take(self) -> tuple[int, Job, float] | None:
        """The next job, its place in the order, and its estimated price."""
        async with self._taking:
            skipped = 0
            while not self._is_stopping():
                if (skipped := skipped + 1) % _LINES_AT_ONCE == 0:
                    await asyncio.sleep(0)
                if (item := next(self.items, None)) is None:
                    return None
                if (job := await self._job(item)) is None:
                    continue
                try:
                    estimate = self.meter.estimate(job.model, job.size, job.max_tokens)
                except ConfigurationError as error:
                    self._fatal = self._fatal or error
                    return None
                while not self.meter.reserve(estimate):
                    if not self.progress.in_flight:
                        self.progress.stopped = "max_cost"
                        return None
                    await self._wait_for_settled()
                # Answers that wait for an earlier one are in memory.
                while self.ordered and self._taken - self._written >= 2 * self.concurrency:
                    await self._wait_for_settled()
                if self._is_stopping():
                    return None
                self._taken += 1
                return self._taken - 1, job, estimate
        return None

    async def _wait_for_settled(self) -> None:
        self._settled.clear()
        await self._settled.wait()

    async def _job(self, item: Item) -> Job | None:
        """The job of an item; None if it has an answer or an error already."""
        name = item.name
        before = 0 if name is None else self.index.add(name, SEEN)
        if self._is_skipped(before):
            return None
        try:
            make = item.make
            job = await asyncio.to_thread(make) if item.size > _OFFLOAD_BYTES else make()
            if name is None:
                before = self.index.add(job.name, SEEN)
                if self._is_skipped(before):
                    return None
            if before & SEEN:
                raise InvalidLineError(
                    item.number,
                    "an earlier line has the same custom_id",
                    custom_id=job.name,
                    code="duplicate_id",
                )
        except InvalidLineError as error:
            self.progress.failed += 1
            self.errors.append(error_line(error.custom_id, error))
            return None
        return job

    def _is_skipped(self, before: int) -> bool:
        if before & SEEN:
            return False
        self.progress.skipped += bool(before & ANSWERED)
        self.progress.failed_before += before & (ANSWERED | FAILED) == FAILED
        return bool(before & (ANSWERED | FAILED))

    def _is_stopping(self) -> bool:
        progress = self.progress
        if progress.stopped is None:
            if self.stop is not None and self.stop.is_set():
                progress.stopped = "interrupted"
            elif self.limit is not None and self._taken >= self.limit:
                progress.stopped = "limit"
        return progress.stopped is not None or self._fatal is not None

    def _fail(self, job: Job, error: PremError) -> None:
        is_payment = isinstance(error, APIStatusError) and error.status_code == _PAYMENT_REQUIRED
        if isinstance(error, _FATAL) or is_payment:
            self._fatal = self._fatal or error
            return
        self.progress.failed += 1
        self.errors.append(error_line(job.name, error))
        if not isinstance(error, APIError | DecryptionError):  # it is about this request only
            return
        self._failures_in_row += 1
        if (
            self.max_failures is not None
            and self._failures_in_row >= self.max_failures
            and self._fatal is None
        ):
            self._fatal = BatchStoppedError(
                f"stopped after {self._failures_in_row} failed requests in a row; the last error: {error}"
            )
            self._fatal.__cause__ = error

    def _finish(self, place: int, line: bytes | None) -> None:
        if not self.ordered:
            self._write(line)
            return
        self._waiting[place] = line
        while self._written in self._waiting:
            self._write(self._waiting.pop(self._written))
            self._written += 1

    def _write(self, line: bytes | None) -> None:
        if line is not None:
            self.output.append(line)

    def _count(self, model: str, usage: Usage | None) -> None:
        progress = self.progress
        if usage is not None:
            progress.prompt_tokens += usage.prompt_tokens
            progress.completion_tokens += usage.completion_tokens
        progress.unpriced += not self.meter.spend(model, usage)
        if self.meter.has_prices:
            progress.cost = self.meter.spent

    async def _tick(self) -> None:
        for count in range(1, 1 << 62):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), _REPORT_INTERVAL)
            if self._over.is_set():
                return
            self.on_progress(self.progress)
            if count % _REPORTS_PER_SYNC == 0:
                await asyncio.to_thread(self.output.sync)
                await asyncio.to_thread(self.errors.sync)
