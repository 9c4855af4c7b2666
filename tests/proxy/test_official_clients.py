"""One scripted session, held by each official client with a proxy in front of an embedded enclave."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from support.openai_session import (
    ERRANDS,
    INVOICE,
    MODEL,
    QUESTION,
    RECORDING,
    RESULTS,
    SCHEMA,
    TOOLS,
    WHISPER,
    check,
    session,
)
from support.proxies import in_front_of
from support.scripted_upstream import Upstream, chunk

from prem_core.enclave import LocalEnclave
from prem_core.proxy import LocalProxy


@pytest.fixture
def limited() -> Iterator[dict[str, str]]:
    """A proxy before the BASE tier's limits, which it passes on."""
    with LocalEnclave(tier="base") as prem, in_front_of(prem, max_retries=0) as proxy:
        yield {"base_url": proxy.base_url, "api_key": prem.api_key}


@pytest.fixture
def places(
    proxy: LocalProxy,
    enclave: LocalEnclave,
    limited: dict[str, str],
    upstream_proxy: LocalProxy,
    upstream_enclave: LocalEnclave,
    upstream: Upstream,
) -> list[dict[str, str]]:
    """Where to hold a session; the last one sends a chunk and then nothing."""
    upstream.stalls(chunk("Hello"))
    return [
        {"base_url": proxy.base_url, "api_key": enclave.api_key},
        limited,
        {"base_url": upstream_proxy.base_url, "api_key": upstream_enclave.api_key},
    ]


@pytest.mark.parametrize("kind", [openai.OpenAI, openai.AsyncOpenAI])
async def test_the_official_python_client_works_with_every_route(
    kind: type[Any], places: list[dict[str, str]], upstream: Upstream
) -> None:
    clients = [kind(**place, max_retries=0) for place in places]
    try:
        check(await session(*clients))
    finally:
        for client in clients:
            closed = client.close()
            if closed is not None:
                await closed
    assert upstream.left.wait(5)


def test_the_official_npm_client_works_with_every_route(
    npm_client: Path, places: list[dict[str, str]], upstream: Upstream
) -> None:
    asked = {
        "model": MODEL,
        "whisper": WHISPER,
        "recording": str(RECORDING),
        "question": QUESTION,
        "errands": ERRANDS,
        "invoice": INVOICE,
        "tools": TOOLS,
        "results": RESULTS,
        "schema": SCHEMA,
    }
    variables = {"SESSION": json.dumps(asked)}
    for name, place in zip(("BASE", "LIMITED", "SLOW"), places, strict=True):
        variables |= {f"{name}_URL": place["base_url"], f"{name}_KEY": place["api_key"]}
    held = subprocess.run(
        ["node", "session.mjs"],
        cwd=npm_client,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert held.returncode == 0, held.stderr
    check(json.loads(held.stdout))
    assert upstream.left.wait(5)
