"""Fixtures for all tests: a clean environment, and embedded enclaves whose private key is known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from support.scripted_upstream import Upstream, delta, finish, usage
from support.wire_schemas import TEST_KEY, problems

from prem_core._adapters import plaintext_egress
from prem_core._adapters.client_cache import CLIENTS
from prem_core._protocol.nonce_reuse import REPLY_FORMS
from prem_core._serving.server import Server, listen
from prem_core.enclave import LocalEnclave, ScriptedEngine

# By default each run has the same examples, and no time limit for one: `make test` passes or fails for a reason in the
# code. `make test-random` draws new examples.
settings.register_profile(
    "fixed", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("random", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fixed")

#: Variables that configure clients, or send prompts to a tracing service.
_VARIABLES = (
    "PREM_API_KEY",
    "PREM_API_KEY_FILE",
    "PREM_LIMITS_URL",
    "PREM_GATEWAY_URL",
    "PREM_PROXY_URL",
    "PROXY_URL",
    "PREM_ENCLAVE_URL",
    "ENCLAVE_URL",
    "PREM_NONCE_REUSE",
    "CLIENT_KEK",
    "LANGSMITH_TRACING",
    "LANGCHAIN_TRACING_V2",
    "LANGSMITH_API_KEY",
    "LANGCHAIN_API_KEY",
    "LANGSMITH_GATEWAY",
)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the developer's environment configures a client."""
    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def no_shared_clients() -> None:
    """Models share neither a client nor limits nor the outcomes of probes with those of earlier tests."""
    CLIENTS.clear()
    REPLY_FORMS.clear()


@pytest.fixture(autouse=True)
def forget_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warnings that are given once per process are given once per test."""
    monkeypatch.setattr(plaintext_egress, "_warned", set())


class Recorder:
    """Records the exchanges of the gateway, and the violations of the published schemas by their requests."""

    def __init__(self) -> None:
        self.exchanges: list[Any] = []
        self.problems: list[str] = []

    def __call__(self, exchange: Any) -> None:
        self.exchanges.append(exchange)
        if exchange.path == "/rvenc/chat/completions" and exchange.method == "POST":
            self.problems += problems(exchange.request_body)

    @property
    def chats(self) -> list[Any]:
        return [e for e in self.exchanges if e.path == "/rvenc/chat/completions"]


@pytest.fixture(scope="session")
def gateway_saw() -> Recorder:
    return Recorder()


@pytest.fixture(scope="session")
def enclave(gateway_saw: Recorder) -> Iterator[LocalEnclave]:
    """One enclave for the whole run. Every request to it must satisfy the published schemas."""
    with LocalEnclave(private_key=TEST_KEY, on_exchange=gateway_saw) as prem:
        yield prem
    assert gateway_saw.problems == []


@pytest.fixture
def seen(enclave: LocalEnclave, gateway_saw: Recorder) -> Recorder:
    """A recorder of this test's exchanges only."""
    del enclave
    gateway_saw.exchanges.clear()
    return gateway_saw


@pytest.fixture(scope="session")
def upstream_server() -> Iterator[list[Upstream]]:
    """A model server. Its URL is that of the first upstream; the last upstream responds."""
    stubs = [Upstream()]
    _respond_hello(stubs[0])

    async def complete(request: Request) -> Response:
        return await stubs[-1].complete(request)

    async def transcribe(request: Request) -> Response:
        return await stubs[-1].receive_recording(request)

    async def models(request: Request) -> Response:
        return stubs[-1].models

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", complete, methods=["POST"]),
            Route("/v1/audio/transcriptions", transcribe, methods=["POST"]),
            Route("/v1/audio/translations", transcribe, methods=["POST"]),
            Route("/v1/models", models),
        ]
    )
    with Server((app, listen())) as server:
        stubs[0].url = server.urls[0]
        yield stubs


@pytest.fixture(scope="session")
def upstream_enclave(upstream_server: list[Upstream]) -> Iterator[LocalEnclave]:
    """An enclave that uses the scripted model server."""
    with LocalEnclave(upstream=upstream_server[0].url) as prem:
        yield prem


@pytest.fixture
def upstream(upstream_server: list[Upstream]) -> Iterator[Upstream]:
    """The scripted model server of this test; it responds "Hello" until the test changes it."""
    stub = Upstream(upstream_server[0].url)
    _respond_hello(stub)
    upstream_server.append(stub)
    yield stub
    upstream_server[:] = [each for each in upstream_server if each is not stub]


def _respond_hello(stub: Upstream) -> None:
    stub.respond_with(delta(content="Hello"), finish(), usage(6, 1))


@pytest.fixture(scope="session")
def scripted_enclave() -> Iterator[tuple[LocalEnclave, ScriptedEngine]]:
    """One enclave for all scripted answers, and its engine."""
    engine = ScriptedEngine()
    with LocalEnclave(engine=engine) as prem:
        yield prem, engine


@pytest.fixture
def engine(scripted_enclave: tuple[LocalEnclave, ScriptedEngine]) -> ScriptedEngine:
    """The engine, without replies and requests of earlier tests."""
    engine = scripted_enclave[1]
    engine.replies, engine.respond = [], None
    engine.requests.clear()
    engine.disconnected.clear()
    return engine


@pytest.fixture
def scripted_options(
    scripted_enclave: tuple[LocalEnclave, ScriptedEngine], engine: ScriptedEngine
) -> dict[str, Any]:
    """The settings of a client of that enclave."""
    return {**scripted_enclave[0].client_options, "max_retries": 0}
