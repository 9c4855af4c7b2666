"""Real servers for the enclave's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from support.clock import Clock
from support.raw_client import RawClient

from prem_core.enclave import LocalEnclave


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, timeout=60) as client:
        yield client


@pytest.fixture
def run(http: httpx.Client) -> Iterator[Callable[..., RawClient]]:
    """Start an enclave with the options given; it is stopped after the test."""
    with ExitStack() as stack:

        def start(**options: Any) -> RawClient:
            return RawClient(stack.enter_context(LocalEnclave(**options)), http)

        yield start


@pytest.fixture(scope="session")
def shared() -> Iterator[RawClient]:
    """An enclave with no options, for tests that leave it as it was."""
    with LocalEnclave() as prem, httpx.Client(trust_env=False, timeout=60) as client:
        yield RawClient(prem, client)
