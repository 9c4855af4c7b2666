"""Proxies in front of embedded enclaves, and clients of them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import openai
import pytest
from support.proxies import StartProxy, headers, proxy_for

from prem_core.enclave import LocalEnclave, ScriptedEngine
from prem_core.proxy import LocalProxy

#: The last release line of npm's `openai` that runs on Node 20. The next one needs 22.
NPM_CLIENT = "openai@6.30.1"

HERE = Path(__file__).parent


@pytest.fixture
def start_proxy() -> Iterator[StartProxy]:
    with ExitStack() as stack:
        yield lambda prem, **options: stack.enter_context(proxy_for(prem, **options))


@pytest.fixture(scope="session")
def proxy(enclave: LocalEnclave) -> Iterator[LocalProxy]:
    """A proxy without options, for tests that do not change it."""
    with proxy_for(enclave) as running:
        yield running


@pytest.fixture(scope="session")
def scripted_enclave() -> Iterator[LocalEnclave]:
    """An enclave whose replies each test sets through `script`."""
    with LocalEnclave(engine=ScriptedEngine()) as prem:
        yield prem


@pytest.fixture(scope="session")
def scripted_proxy(scripted_enclave: LocalEnclave) -> Iterator[LocalProxy]:
    """A proxy in front of `scripted_enclave`. It does not retry."""
    with proxy_for(scripted_enclave, max_retries=0) as running:
        yield running


@pytest.fixture
def script(scripted_enclave: LocalEnclave) -> ScriptedEngine:
    """The engine of `scripted_enclave`. By default it replies "Hello" to every request."""
    engine = scripted_enclave.engine
    assert isinstance(engine, ScriptedEngine)
    engine.replies, engine.respond = [], lambda request: "Hello"
    engine.requests.clear()
    engine.disconnected.clear()
    return engine


def http_client(proxy: LocalProxy, enclave: LocalEnclave) -> httpx.Client:
    return httpx.Client(base_url=proxy.url, headers=headers(enclave), trust_env=False, timeout=20)


@pytest.fixture
def http(proxy: LocalProxy, enclave: LocalEnclave) -> Iterator[httpx.Client]:
    """A plain HTTP client of `proxy`, with a valid API key."""
    with http_client(proxy, enclave) as client:
        yield client


@pytest.fixture
def scripted_http(
    scripted_proxy: LocalProxy, scripted_enclave: LocalEnclave, script: ScriptedEngine
) -> Iterator[httpx.Client]:
    """A plain HTTP client of `scripted_proxy`, with a valid API key."""
    del script
    with http_client(scripted_proxy, scripted_enclave) as client:
        yield client


@pytest.fixture
def client(proxy: LocalProxy, enclave: LocalEnclave) -> Iterator[openai.OpenAI]:
    """The official client of `proxy`. It does not retry."""
    with openai.OpenAI(base_url=proxy.base_url, api_key=enclave.api_key, max_retries=0) as official:
        yield official


@pytest.fixture
def scripted_client(
    scripted_proxy: LocalProxy, scripted_enclave: LocalEnclave, script: ScriptedEngine
) -> Iterator[openai.OpenAI]:
    """The official client of `scripted_proxy`. It does not retry."""
    del script
    with openai.OpenAI(
        base_url=scripted_proxy.base_url, api_key=scripted_enclave.api_key, max_retries=0
    ) as official:
        yield official


@pytest.fixture(scope="session")
def npm_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the official npm client."""
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
