"""Every fault, through every layer, sync and async, streamed and whole: the error it is, or the answer all the same."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import langchain_core.exceptions as core
import pytest
from support.faults.columns import COLUMNS, TEXT, WORDS, Column, Told
from support.faults.layer import PARTIES, FaultLayer
from support.faults.report import Report
from support.faults.table import MAX_RETRIES, ROWS, Cell, Row
from support.sockets import leaking
from support.waiting import eventually

from prem_core import (
    APIConnectionError,
    APIError,
    APIResponseValidationError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    DecryptionError,
    EnclaveKeyError,
    InternalServerError,
    RateLimitError,
    ResponseTooLargeError,
    StreamInterruptedError,
)
from prem_core.enclave import LocalEnclave

#: What an error of `ChatPremEncrypted` is besides.
CORE = {
    APIConnectionError: core.ModelConnectionError,
    APIError: None,
    APIResponseValidationError: None,
    APIStatusError: None,
    APITimeoutError: core.ModelTimeoutError,
    AuthenticationError: core.ModelAuthenticationError,
    BadRequestError: core.ModelInvalidRequestError,
    DecryptionError: None,
    EnclaveKeyError: None,
    InternalServerError: core.ModelAPIError,
    RateLimitError: core.ModelRateLimitError,
    ResponseTooLargeError: None,
    StreamInterruptedError: core.ModelConnectionError,
}

#: Cells that mostly wait are tried so many at a time, beside the others.
AT_ONCE = 8


@dataclass(frozen=True)
class Stage:
    """What a cell is tried on.

    Attributes:
        enclaves: Those that answer a column in the form it wants, by (enveloped, turned).
        answers: What each column is answered without a fault.
        report: What comes of it is noted here.
    """

    enclaves: dict[tuple[bool, bool], LocalEnclave]
    answers: dict[Column, Any]
    report: Report

    def behind(self, column: Column, *, turned: bool = False) -> LocalEnclave:
        """The enclave for a column."""
        return self.enclaves[column.enveloped, turned]


@dataclass(frozen=True)
class Trial:
    """One cell of the table, tried: struck by the fault each time, or the first time only."""

    row: Row
    column: Column
    cell: Cell

    def always(self, stage: Stage, layer: FaultLayer) -> None:
        """Hold what comes of a fault that stays against the table."""
        row, column, cell = self.row, self.column, self.cell
        right = stage.answers[column]
        fault = row.makes() if row.makes else row.fault
        settings = {**layer.client_options, "max_retries": MAX_RETRIES, **row.settings}
        with column.asking(settings) as ask, ExitStack() as struck:
            if row.refused:
                struck.enter_context(layer.refusing(fault.party))
            layer.strike(fault)
            if row.asked_before:
                assert ask().answer == right
                layer.forget()
            layer.enclave = stage.behind(column, turned=row.turned)
            told = ask()
            seen = {party: len(layer.asked(party)) for party in PARTIES}
            stage.report.note(str(row), column, outcome(told, right, seen[fault.party]))

            self._check(told, right)
            assert seen[fault.party] == cell.requests
            if fault.party == "enclave":
                assert seen["gateway"] == cell.passed
            if column.kind != "models":
                assert told.began == (seen["gateway"] if cell.began is None else cell.began)
            assert eventually(lambda: layer.connections("gateway") == cell.kept)

            # The client is none the worse for it, and a connection that was kept is used.
            struck.close()
            layer.heal()
            accepted = layer.accepted["gateway"]
            layer.enclave = stage.behind(column)
            again = ask()
            assert again.error is None
            assert again.answer == right
            assert layer.accepted["gateway"] - accepted == (not cell.kept)
        # A model has no close: it is forgotten, and what an error hangs on is found by the collector alone.
        if column.layer.name != "prem_core" and not eventually(lambda: _is_left(layer), 0.05):
            gc.collect()
        assert eventually(lambda: _is_left(layer))

    def once(self, stage: Stage, layer: FaultLayer) -> None:
        """Hold what comes of a fault that passes against the right answer."""
        layer.strike(self.row.fault, times=1)
        settings = {**layer.client_options, "max_retries": MAX_RETRIES, **self.row.settings}
        with self.column.asking(settings) as ask:
            told = ask()
        assert told.error is None
        assert told.answer == stage.answers[self.column]
        assert len(layer.asked(self.row.fault.party)) == 2

    def _check(self, told: Told, right: Any) -> None:
        cell = self.cell
        if cell.error is None:
            assert told.error is None
            if cell.text is None:
                assert told.answer == right
            else:
                assert told.text == cell.text
            assert set(told.ended) == ({"end"} if self.has_callbacks else set())
            return
        self._check_error(told.error)
        # What came before a fault was given, in order; nothing of an answer that was wanted whole.
        assert told.text == "".join(WORDS[: cell.words])
        assert told.answer is None
        assert set(told.ended) == ({"error"} if self.has_callbacks else set())

    def _check_error(self, error: BaseException | None) -> None:
        kind = self.cell.error
        assert kind is not None
        theirs = CORE[kind] if self.column.layer.name == "langchain_prem" else None
        if theirs is None:
            assert type(error) is kind
        else:
            assert isinstance(error, kind)
            assert isinstance(error, theirs)
            assert type(error).__name__ == kind.__name__
        if isinstance(error, APIStatusError):
            assert error.status_code == self.cell.status
        for word in ("clinic", "eight"):
            assert word not in f"{error} {error!r} {error.__dict__}"

    @property
    def has_callbacks(self) -> bool:
        """Whether the framework tells callbacks how it ended."""
        return self.column.layer.name in ("langchain_prem", "llama_index_prem")


def _is_left(layer: FaultLayer) -> bool:
    return not any(map(layer.connections, PARTIES))


def outcome(told: Told, right: Any, requests: int) -> str:
    """What came of it, for the table that is printed."""
    if told.error is None:
        if told.answer == right:
            what = "the right answer"
        else:
            what = "the right text" if told.text == TEXT else f"NOT NOTICED: {told.text!r}"
    else:
        status = getattr(told.error, "status_code", None)
        what = type(told.error).__name__ + (f" {status}" if status else "")
        given = len([word for word in told.words if word])
        what += f" after {given} words" if given else ""
    return f"{what} ({requests})"


TRIALS = [
    Trial(row, column, cell) for row in ROWS for column in COLUMNS if (cell := row.cell(column)) is not None
]


def _named(trials: list[Trial]) -> list[Any]:
    return [pytest.param(trial, id=f"{trial.row}-{trial.column}") for trial in trials]


@pytest.fixture(scope="module")
def stage(
    enclave: LocalEnclave,
    enveloping: LocalEnclave,
    turned: LocalEnclave,
    turned_enveloping: LocalEnclave,
    standing_layer: FaultLayer,
    report: Report,
) -> Stage:
    enclaves = {
        (False, False): enclave,
        (False, True): turned,
        (True, False): enveloping,
        (True, True): turned_enveloping,
    }
    answers = {}
    for column in COLUMNS:
        standing_layer.enclave = enclaves[column.enveloped, False]
        with column.asking(standing_layer.client_options) as ask:
            told = ask()
        assert told.error is None
        if column.kind in ("chat", "envelope"):
            assert told.text == TEXT
        answers[column] = told.answer
    standing_layer.forget()
    return Stage(enclaves, answers, report)


@pytest.fixture(scope="module")
def begun(request: pytest.FixtureRequest, stage: Stage) -> Iterator[dict[str, Future[None]]]:
    """The trials of this run that mostly wait, begun beside the others, each on a layer of its own."""

    def run(way: Callable[[Trial, Stage, FaultLayer], None], trial: Trial) -> None:
        with FaultLayer(stage.behind(trial.column)) as layer:
            way(trial, stage, layer)
        assert layer.failures == []

    pool = ThreadPoolExecutor(AT_ONCE)
    futures = {}
    for item in request.session.items:
        callspec = getattr(item, "callspec", None)
        trial = callspec.params.get("trial") if callspec else None
        if isinstance(trial, Trial) and trial.row.waits:
            futures[item.nodeid] = pool.submit(run, WAYS[item.originalname], trial)  # type: ignore[attr-defined]
    yield futures
    pool.shutdown(cancel_futures=True)


@pytest.fixture
def attempt(
    request: pytest.FixtureRequest, begun: dict[str, Future[None]], stage: Stage, layer: FaultLayer
) -> Callable[[Trial], None]:
    """Tries a cell, or says what came of it where it was begun already."""

    def attempt(trial: Trial) -> None:
        if request.node.nodeid in begun:
            begun[request.node.nodeid].result()
        else:
            layer.enclave = stage.behind(trial.column)
            WAYS[request.node.originalname](trial, stage, layer)

    return attempt


@pytest.fixture(scope="module", autouse=True)
def _no_descriptors_left(stage: Stage, standing_layer: FaultLayer) -> Iterator[None]:
    with leaking(standing_layer.ports) as left:
        yield
    assert left() == {}


@pytest.mark.parametrize("trial", _named(TRIALS))
def test_a_fault_is_the_error_or_the_answer_that_the_table_says(
    trial: Trial, attempt: Callable[[Trial], None]
) -> None:
    attempt(trial)


@pytest.mark.parametrize(
    "trial", _named([trial for trial in TRIALS if trial.cell.is_mended and not trial.row.asked_before])
)
def test_a_fault_before_the_first_chunk_that_passes_is_mended_by_one_more_request(
    trial: Trial, attempt: Callable[[Trial], None]
) -> None:
    attempt(trial)


WAYS: dict[str, Callable[[Trial, Stage, FaultLayer], None]] = {
    "test_a_fault_is_the_error_or_the_answer_that_the_table_says": Trial.always,
    "test_a_fault_before_the_first_chunk_that_passes_is_mended_by_one_more_request": Trial.once,
}
