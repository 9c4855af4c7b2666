"""Every fault, in every client and model, sync and async, streamed and whole: the documented error or response.

A test covers a row of the table, and a subtest each of its cells.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import langchain_core.exceptions as core
import pytest
from support.faults.columns import COLUMNS, TEXT, WORDS, CallResult, Column
from support.faults.fault_proxy import PARTIES, FaultProxy
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

#: The class of langchain-core that an error of `ChatPremEncrypted` has as well.
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

#: The number of cells tested at a time in rows where the service stalls.
CONCURRENCY = 12


@dataclass(frozen=True)
class Context:
    """What all cells share.

    Attributes:
        enclaves: The enclaves by (enveloped, rotated).
        responses: The response without a fault, by column.
        report: Records the outcomes.
    """

    enclaves: dict[tuple[bool, bool], LocalEnclave]
    responses: dict[Column, Any]
    report: Report

    def enclave(self, column: Column, *, rotated: bool = False) -> LocalEnclave:
        """The enclave for a column."""
        return self.enclaves[column.enveloped, rotated]


@dataclass(frozen=True)
class CellTest:
    """Tests a cell of the table: with the fault in every response, or in the first one only."""

    row: Row
    column: Column
    cell: Cell

    def __str__(self) -> str:
        return f"{self.row}, {self.column}"

    def persistent_fault(self, context: Context, proxy: FaultProxy) -> None:
        """Check the outcome of a fault in every response, and that the client works once it is gone."""
        row, column, cell = self.row, self.column, self.cell
        expected = context.responses[column]
        fault = row.make_fault() if row.make_fault else row.fault
        with column.calls(self.settings(proxy)) as call, ExitStack() as refusing:
            if row.connection_refused:
                refusing.enter_context(proxy.refusing_connections(fault.party))
            proxy.inject(fault)
            if row.after_a_request:
                assert call().answer == expected
                proxy.clear_requests()
            proxy.enclave = context.enclave(column, rotated=row.rotated)
            result = call()
            seen = {party: len(proxy.requests_to(party)) for party in PARTIES}
            context.report.note(str(row), column, outcome(result, expected, seen[fault.party]))

            self._check(result, expected)
            assert seen[fault.party] == cell.requests
            if fault.party == "enclave":
                assert seen["gateway"] == cell.gateway_requests
            if column.kind != "models":
                assert result.counted == (seen["gateway"] if cell.counted is None else cell.counted)
            assert eventually(lambda: proxy.connections("gateway") == cell.connection_reused)

            # The client works again once the fault is gone.
            refusing.close()
            proxy.clear_fault()
            accepted = proxy.accepted["gateway"]
            proxy.enclave = context.enclave(column)
            again = call()
            assert again.error is None
            assert again.answer == expected
            assert proxy.accepted["gateway"] - accepted == (not cell.connection_reused)
        # A model has no close(): its connections are closed when it is freed, after an error by the collector alone.
        if column.layer.name != "prem_core" and not eventually(lambda: _all_disconnected(proxy), 0.05):
            gc.collect()
        assert eventually(lambda: _all_disconnected(proxy))

    def transient_fault(self, context: Context, proxy: FaultProxy) -> None:
        """Check that a second attempt succeeds if only the first response has the fault."""
        proxy.inject(self.row.fault, times=1)
        with self.column.calls(self.settings(proxy)) as call:
            result = call()
        assert result.error is None
        assert result.answer == context.responses[self.column]
        assert len(proxy.requests_to(self.row.fault.party)) == 2

    def fault_after_the_request_was_sent(self, context: Context, proxy: FaultProxy) -> None:
        """Check that without `retry_after_send` there is no second attempt, even if it would succeed."""
        proxy.inject(self.row.fault, times=1)
        with self.column.calls(self.settings(proxy, retry_after_send=False)) as call:
            result = call()
        self._check(result, context.responses[self.column])
        assert len(proxy.requests_to("gateway")) == 1

    def settings(self, proxy: FaultProxy, *, retry_after_send: bool = True) -> dict[str, Any]:
        """The arguments of the client."""
        fixed = {"max_retries": MAX_RETRIES, "retry_after_send": retry_after_send}
        return {**proxy.client_options, **fixed, **self.row.settings}

    def _check(self, result: CallResult, expected: Any) -> None:
        cell = self.cell
        if cell.error is None:
            assert result.error is None
            if cell.text is None:
                assert result.answer == expected
            else:
                assert result.text == cell.text
            assert set(result.ended) == ({"end"} if self.has_callbacks else set())
            return
        self._check_error(result.error)
        # The chunks before a fault are yielded, in order; a whole response is never returned in part.
        assert result.text == "".join(WORDS[: cell.words])
        assert result.answer is None
        assert set(result.ended) == ({"error"} if self.has_callbacks else set())

    def _check_error(self, error: BaseException | None) -> None:
        kind = self.cell.error
        assert kind is not None
        core_class = CORE[kind] if self.column.layer.name == "langchain_prem" else None
        if core_class is None:
            assert type(error) is kind
        else:
            assert isinstance(error, kind)
            assert isinstance(error, core_class)
            assert type(error).__name__ == kind.__name__
        if isinstance(error, APIStatusError):
            assert error.status_code == self.cell.status
        for word in ("clinic", "eight"):
            assert word not in f"{error} {error!r} {error.__dict__}"

    @property
    def has_callbacks(self) -> bool:
        """Whether the framework reports the end to callbacks."""
        return self.column.layer.name in ("langchain_prem", "llama_index_prem")


def _all_disconnected(proxy: FaultProxy) -> bool:
    return not any(map(proxy.connections, PARTIES))


def outcome(result: CallResult, expected: Any, requests: int) -> str:
    """The outcome of a cell, for the printed table."""
    if result.error is None:
        if result.answer == expected:
            text = "the right response"
        else:
            text = "the right text" if result.text == TEXT else f"NOT DETECTED: {result.text!r}"
    else:
        status = getattr(result.error, "status_code", None)
        text = type(result.error).__name__ + (f" {status}" if status else "")
        words = len([word for word in result.words if word])
        text += f" after {words} words" if words else ""
    return f"{text} ({requests})"


def cell_tests(row: Row) -> list[CellTest]:
    """The cells of a row."""
    return [CellTest(row, column, cell) for column in COLUMNS if (cell := row.cell(column)) is not None]


STALLING = [row for row in ROWS if row.stalls]
IMMEDIATE = [row for row in ROWS if not row.stalls]


def retried_cell_tests(row: Row) -> list[CellTest]:
    """The cells of a row in which a second attempt succeeds."""
    return [test for test in cell_tests(row) if test.cell.is_retried and not row.after_a_request]


def unsent_cell_tests(row: Row) -> list[CellTest]:
    """The cells of a row in which the service may have accepted the first attempt."""
    return [
        test
        for test in retried_cell_tests(row)
        if test.cell.error is not None
        and issubclass(test.cell.error, APIConnectionError)
        and row.fault.party == "gateway"
        and not row.connection_refused
        and test.column.kind != "models"
    ]


@pytest.fixture(scope="module")
def context(
    enclave: LocalEnclave,
    enveloping: LocalEnclave,
    rotated: LocalEnclave,
    rotated_enveloping: LocalEnclave,
    shared_proxy: FaultProxy,
    report: Report,
) -> Context:
    enclaves = {
        (False, False): enclave,
        (False, True): rotated,
        (True, False): enveloping,
        (True, True): rotated_enveloping,
    }
    responses = {}
    for column in COLUMNS:
        shared_proxy.enclave = enclaves[column.enveloped, False]
        with column.calls(shared_proxy.client_options) as call:
            result = call()
        assert result.error is None
        if column.kind in ("chat", "envelope"):
            assert result.text == TEXT
        responses[column] = result.answer
    shared_proxy.clear_requests()
    return Context(enclaves, responses, report)


@pytest.fixture(scope="module", autouse=True)
def _no_descriptor_leaked(context: Context, shared_proxy: FaultProxy) -> Iterator[None]:
    with leaking(shared_proxy.ports) as leaked:
        yield
    assert leaked() == {}


Check = Callable[[CellTest, Context, FaultProxy], None]


def run(check: Check, tests: list[CellTest], context: Context, proxy: FaultProxy, subtests: Any) -> None:
    """Test cells one after another on the shared proxy."""
    for test in tests:
        with subtests.test(str(test)):
            proxy.enclave = context.enclave(test.column)
            try:
                check(test, context, proxy)
            finally:
                proxy.clear_fault()
                proxy.clear_requests()


def run_concurrently(check: Check, tests: list[CellTest], context: Context, subtests: Any) -> None:
    """Test cells that mostly wait, several at a time, each on its own proxy."""

    def test_cell(test: CellTest) -> None:
        with FaultProxy(context.enclave(test.column)) as proxy:
            check(test, context, proxy)
        assert proxy.failures == []

    with ThreadPoolExecutor(CONCURRENCY) as pool:
        futures = {str(test): pool.submit(test_cell, test) for test in tests}
        for name, future in futures.items():
            with subtests.test(name):
                future.result()


@pytest.mark.parametrize("row", IMMEDIATE, ids=str)
def test_a_fault_has_the_documented_outcome(
    row: Row, context: Context, proxy: FaultProxy, subtests: pytest.Subtests
) -> None:
    run(CellTest.persistent_fault, cell_tests(row), context, proxy, subtests)


@pytest.mark.parametrize("row", [*filter(retried_cell_tests, IMMEDIATE)], ids=str)
def test_a_transient_fault_before_the_first_chunk_is_retried(
    row: Row, context: Context, proxy: FaultProxy, subtests: pytest.Subtests
) -> None:
    run(CellTest.transient_fault, retried_cell_tests(row), context, proxy, subtests)


def test_a_stalled_service_has_the_documented_outcome(context: Context, subtests: pytest.Subtests) -> None:
    tests = [test for row in STALLING for test in cell_tests(row)]
    run_concurrently(CellTest.persistent_fault, tests, context, subtests)


def test_a_transient_stall_before_the_first_chunk_is_retried(
    context: Context, subtests: pytest.Subtests
) -> None:
    tests = [test for row in STALLING for test in retried_cell_tests(row)]
    run_concurrently(CellTest.transient_fault, tests, context, subtests)


@pytest.mark.parametrize("row", [*filter(unsent_cell_tests, IMMEDIATE)], ids=str)
def test_a_request_that_may_have_been_accepted_is_not_sent_again_by_default(
    row: Row, context: Context, proxy: FaultProxy, subtests: pytest.Subtests
) -> None:
    run(CellTest.fault_after_the_request_was_sent, unsent_cell_tests(row), context, proxy, subtests)


def test_a_request_to_a_stalled_service_is_not_sent_again_by_default(
    context: Context, subtests: pytest.Subtests
) -> None:
    tests = [test for row in STALLING for test in unsent_cell_tests(row)]
    run_concurrently(CellTest.fault_after_the_request_was_sent, tests, context, subtests)


def test_every_row_of_the_table_has_cells() -> None:
    assert [str(row) for row in ROWS if not cell_tests(row)] == []
    assert sum(len(cell_tests(row)) for row in ROWS) >= 1298
