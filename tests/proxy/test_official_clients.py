"""The same session with each official client, through a proxy in front of an embedded enclave."""

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
    check_report,
    run_session,
)
from support.proxies import proxy_for

from prem_core.enclave import LocalEnclave, ScriptedEngine, reply
from prem_core.proxy import LocalProxy


@pytest.fixture
def limited() -> Iterator[dict[str, str]]:
    """A proxy in front of an enclave with the BASE tier's limits. It does not retry."""
    with LocalEnclave(tier="base") as prem, proxy_for(prem, max_retries=0) as proxy:
        yield {"base_url": proxy.base_url, "api_key": prem.api_key}


@pytest.fixture
def proxies(
    proxy: LocalProxy,
    enclave: LocalEnclave,
    limited: dict[str, str],
    scripted_proxy: LocalProxy,
    scripted_enclave: LocalEnclave,
    script: ScriptedEngine,
) -> list[dict[str, str]]:
    """The proxies of a session. The last one sends one chunk and then nothing."""
    script.respond = lambda request: reply("Hello", stalled=True)
    return [
        {"base_url": proxy.base_url, "api_key": enclave.api_key},
        limited,
        {"base_url": scripted_proxy.base_url, "api_key": scripted_enclave.api_key},
    ]


@pytest.mark.parametrize("kind", [openai.OpenAI, openai.AsyncOpenAI])
async def test_the_official_python_client_works_with_every_route(
    kind: type[Any], proxies: list[dict[str, str]], script: ScriptedEngine
) -> None:
    clients = [kind(**proxy, max_retries=0) for proxy in proxies]
    try:
        check_report(await run_session(*clients))
    finally:
        for client in clients:
            closed = client.close()
            if closed is not None:
                await closed
    assert script.disconnected.wait(5)


def test_the_official_npm_client_works_with_every_route(
    npm_client: Path, proxies: list[dict[str, str]], script: ScriptedEngine
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
    for name, proxy in zip(("BASE", "LIMITED", "SLOW"), proxies, strict=True):
        variables |= {f"{name}_URL": proxy["base_url"], f"{name}_KEY": proxy["api_key"]}
    ended = subprocess.run(
        ["node", "session.mjs"],
        cwd=npm_client,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    check_report(json.loads(ended.stdout))
    assert script.disconnected.wait(5)
