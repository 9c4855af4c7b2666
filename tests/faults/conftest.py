"""What the faults' tests share: the enclaves, the layer before them, and the table at the end of the run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.faults.layer import FaultLayer
from support.faults.report import Report
from support.wire_schemas import TEST_KEY

from prem_core._protocol import retry
from prem_core.enclave import LocalEnclave

REPORT = pytest.StashKey[Report]()


@pytest.fixture(scope="session")
def enclave() -> Iterator[LocalEnclave]:
    """One enclave for all of them. Nothing holds its exchanges against the schemas: some are broken on purpose."""
    with LocalEnclave(private_key=TEST_KEY) as prem:
        yield prem


@pytest.fixture(scope="session")
def enveloping(enclave: LocalEnclave) -> Iterator[LocalEnclave]:
    """The same enclave, as it would answer in the JSON envelope."""
    with LocalEnclave(api_key=enclave.api_key, private_key=TEST_KEY, response_form="envelope") as prem:
        yield prem


@pytest.fixture(scope="session")
def turned(enclave: LocalEnclave) -> Iterator[LocalEnclave]:
    """The same enclave, with another key."""
    with LocalEnclave(api_key=enclave.api_key) as prem:
        yield prem


@pytest.fixture(scope="session")
def turned_enveloping(enclave: LocalEnclave) -> Iterator[LocalEnclave]:
    """The same enclave, with another key, as it would answer in the JSON envelope."""
    with LocalEnclave(api_key=enclave.api_key, response_form="envelope") as prem:
        yield prem


@pytest.fixture(scope="session")
def standing_layer(enclave: LocalEnclave) -> Iterator[FaultLayer]:
    with FaultLayer(enclave) as layer:
        yield layer
    assert layer.failures == []


@pytest.fixture
def layer(standing_layer: FaultLayer, enclave: LocalEnclave) -> Iterator[FaultLayer]:
    """The fault layer, before the enclave, with nothing to strike."""
    yield standing_layer
    standing_layer.heal()
    standing_layer.forget()
    standing_layer.enclave = enclave
    failures, standing_layer.failures = standing_layer.failures, []
    assert failures == []


@pytest.fixture(scope="module", autouse=True)
def short_pauses() -> Iterator[None]:
    # How long a client waits before it tries again is tested elsewhere; here it would be most of the run.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retry, "FIRST_DELAY", 0.001)
        yield


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> Report:
    """What came of every fault; printed at the end of the run."""
    return request.config.stash.setdefault(REPORT, Report())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if REPORT in config.stash:
        terminalreporter.section("what comes of every fault")
        for line in config.stash[REPORT].lines():
            terminalreporter.line(line)
