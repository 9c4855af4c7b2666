"""Proxies in front of the embedded enclaves, and the sessions that official clients hold with them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import openai
import pytest
from support.proxies import Run, in_front_of

from prem_core.enclave import LocalEnclave
from prem_core.proxy import LocalProxy

#: Of npm's `openai`: the last line that runs on Node 20; the next one wants 22.
NPM_CLIENT = "openai@6.30.1"

HERE = Path(__file__).parent


@pytest.fixture
def run() -> Iterator[Run]:
    with ExitStack() as stack:
        yield lambda prem, **options: stack.enter_context(in_front_of(prem, **options))


@pytest.fixture(scope="session")
def proxy(enclave: LocalEnclave) -> Iterator[LocalProxy]:
    """A proxy with no options, for tests that leave it as it was."""
    with in_front_of(enclave) as running:
        yield running


@pytest.fixture(scope="session")
def upstream_proxy(upstream_enclave: LocalEnclave) -> Iterator[LocalProxy]:
    """A proxy in front of the enclave whose answers each test writes down. It tries nothing again."""
    with in_front_of(upstream_enclave, max_retries=0) as running:
        yield running


@pytest.fixture
def http(proxy: LocalProxy, enclave: LocalEnclave) -> Iterator[httpx.Client]:
    """A bare HTTP client of `proxy`, with the right key."""
    headers = {"authorization": f"Bearer {enclave.api_key}"}
    with httpx.Client(base_url=proxy.url, headers=headers, trust_env=False, timeout=20) as client:
        yield client


@pytest.fixture
def client(proxy: LocalProxy, enclave: LocalEnclave) -> Iterator[openai.OpenAI]:
    """The official client of `proxy`."""
    with openai.OpenAI(base_url=proxy.base_url, api_key=enclave.api_key, max_retries=0) as official:
        yield official


@pytest.fixture
def upstream_client(upstream_proxy: LocalProxy, upstream_enclave: LocalEnclave) -> Iterator[openai.OpenAI]:
    """The official client of `upstream_proxy`."""
    with openai.OpenAI(
        base_url=upstream_proxy.base_url, api_key=upstream_enclave.api_key, max_retries=0
    ) as official:
        yield official


@pytest.fixture(scope="session")
def npm_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with npm's official client."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("needs node and npm")
    place = tmp_path_factory.mktemp("npm")
    options = [
        "--no-save",
        "--no-package-lock",
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        "--prefer-offline",
    ]
    installed = subprocess.run(
        [npm, "install", *options, NPM_CLIENT],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if installed.returncode:
        pytest.skip(f"{NPM_CLIENT} cannot be installed here")
    shutil.copy(HERE / "session.mjs", place)
    return place
