"""Real servers for the enclave's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from raw_wire import Upstream, Wire, chunk, usage_chunk
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from prem_core.enclave import LocalEnclave
from prem_core.enclave._local import _listening_socket, _Servers


@pytest.fixture(scope="session")
def upstream_server() -> Iterator[list[Upstream]]:
    """The server's URL is the first upstream's; the last one answers."""
    stubs = [Upstream()]

    async def complete(request: Request) -> Response:
        return await stubs[-1].complete(request)

    app = Starlette(routes=[Route("/v1/chat/completions", complete, methods=["POST"])])
    servers = _Servers([(app, _listening_socket(0))], closers=[])
    stubs[0].url = servers.urls[0]
    yield stubs
    servers.stop()


@pytest.fixture
def upstream(upstream_server: list[Upstream]) -> Upstream:
    stub = Upstream(upstream_server[0].url)
    stub.says(chunk("Hello"), chunk(finish="stop"), usage_chunk(7))
    upstream_server.append(stub)
    return stub


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, timeout=10) as client:
        yield client


@pytest.fixture
def run(http: httpx.Client) -> Iterator[Callable[..., Wire]]:
    """Start an enclave with the options given; it is stopped after the test."""
    with ExitStack() as stack:

        def start(**options: Any) -> Wire:
            return Wire(stack.enter_context(LocalEnclave(**options)), http)

        yield start


@pytest.fixture(scope="session")
def shared() -> Iterator[Wire]:
    """An enclave with no options, for tests that leave it as it was."""
    with LocalEnclave() as prem, httpx.Client(trust_env=False, timeout=10) as client:
        yield Wire(prem, client)
