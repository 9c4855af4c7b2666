"""What every test shares: a clean environment, and an embedded enclave whose key the tests hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from support.scripted_upstream import Upstream, delta, finish, usage
from support.wire_schemas import TEST_KEY, problems

from prem_core._adapters.client_cache import CLIENTS
from prem_core._serving.server import Server, listen
from prem_core.enclave import LocalEnclave

#: Variables that would lead a test to another service, or its prompts out of the process.
_FOREIGN = (
    "PREM_API_KEY",
    "PREM_GATEWAY_URL",
    "PREM_PROXY_URL",
    "PROXY_URL",
    "PREM_ENCLAVE_URL",
    "ENCLAVE_URL",
    "CLIENT_KEK",
)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _FOREIGN:
        monkeypatch.delenv(name, raising=False)
    for name in ("LANGSMITH_TRACING", "LANGCHAIN_TRACING_V2", "LANGSMITH_API_KEY", "LANGCHAIN_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def no_shared_clients() -> None:
    """Models share neither a client nor limits with those of earlier tests."""
    CLIENTS.clear()


class Recorder:
    """What the gateway saw, and what the published schemas say of it."""

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
    """One enclave for the whole run. Every body that went through it satisfied the published schemas."""
    with LocalEnclave(private_key=TEST_KEY, on_exchange=gateway_saw) as prem:
        yield prem
    assert gateway_saw.problems == []


@pytest.fixture
def seen(enclave: LocalEnclave, gateway_saw: Recorder) -> Recorder:
    """A recorder that holds this test's exchanges alone."""
    del enclave
    gateway_saw.exchanges.clear()
    return gateway_saw


@pytest.fixture(scope="session")
def upstream_server() -> Iterator[list[Upstream]]:
    """The server's URL is the first upstream's; the last one answers."""
    stubs = [Upstream()]

    async def complete(request: Request) -> Response:
        return await stubs[-1].complete(request)

    async def hear(request: Request) -> Response:
        return await stubs[-1].hear(request)

    async def models(request: Request) -> Response:
        return stubs[-1].models

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", complete, methods=["POST"]),
            Route("/v1/audio/transcriptions", hear, methods=["POST"]),
            Route("/v1/audio/translations", hear, methods=["POST"]),
            Route("/v1/models", models),
        ]
    )
    with Server((app, listen())) as server:
        stubs[0].url = server.urls[0]
        yield stubs


@pytest.fixture(scope="session")
def upstream_enclave(upstream_server: list[Upstream]) -> Iterator[LocalEnclave]:
    """An enclave with the scripted server behind it."""
    with LocalEnclave(upstream=upstream_server[0].url) as prem:
        yield prem


@pytest.fixture
def upstream(upstream_server: list[Upstream]) -> Upstream:
    stub = Upstream(upstream_server[0].url)
    stub.says(delta(content="Hello"), finish(), usage(6, 1))
    upstream_server.append(stub)
    return stub
