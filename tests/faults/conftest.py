"""The enclaves and the fault proxy that the tests share, and the fault table printed at the end of the run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.faults.fault_proxy import FaultProxy
from support.faults.report import Report
from support.wire_schemas import TEST_KEY

from prem_core._protocol import retry
from prem_core.enclave import LocalEnclave

REPORT = pytest.StashKey[Report]()


@pytest.fixture(scope="session")
def enclave() -> Iterator[LocalEnclave]:
    """An enclave of these tests alone, which always responds with events.

    Its requests are not checked against the schemas, as some are broken.
    """
    with LocalEnclave(private_key=TEST_KEY, whole_replies="stream") as prem:
        yield prem


@pytest.fixture(scope="session")
def enveloping(enclave: LocalEnclave) -> Iterator[LocalEnclave]:
    """The same enclave, which responds with the JSON envelope."""
    with LocalEnclave(api_key=enclave.api_key, private_key=TEST_KEY, whole_replies="envelope") as prem:
        yield prem


@pytest.fixture(scope="session")
def rotated(enclave: LocalEnclave) -> Iterator[LocalEnclave]:
    """The same enclave after a key rotation."""
    with LocalEnclave(api_key=enclave.api_key, whole_replies="stream") as prem:
        yield prem


@pytest.fixture(scope="session")
def rotated_enveloping(enclave: LocalEnclave) -> Iterator[LocalEnclave]:
    """The same enclave after a key rotation, which responds with the JSON envelope."""
    with LocalEnclave(api_key=enclave.api_key, whole_replies="envelope") as prem:
        yield prem


@pytest.fixture(scope="session")
def shared_proxy(enclave: LocalEnclave) -> Iterator[FaultProxy]:
    with FaultProxy(enclave) as proxy:
        yield proxy
    assert proxy.failures == []


@pytest.fixture
def proxy(shared_proxy: FaultProxy, enclave: LocalEnclave) -> Iterator[FaultProxy]:
    """The fault proxy before the enclave, without a fault."""
    yield shared_proxy
    shared_proxy.clear_fault()
    shared_proxy.clear_requests()
    shared_proxy.enclave = enclave
    failures, shared_proxy.failures = shared_proxy.failures, []
    assert failures == []


@pytest.fixture(scope="module", autouse=True)
def short_backoff() -> Iterator[None]:
    # Backoff is tested elsewhere; here it would be most of the run.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retry, "FIRST_DELAY", 0.001)
        yield


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> Report:
    """The outcome of every fault, printed at the end of the run."""
    return request.config.stash.setdefault(REPORT, Report())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if REPORT in config.stash:
        terminalreporter.section("the outcome of every fault")
        for line in config.stash[REPORT].lines():
            terminalreporter.line(line)
