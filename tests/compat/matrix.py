"""Try real clients, each in an environment of its own, and print what works: ``make compat``.

The environments are made in ``build/compat`` with the newest versions, once. A client that cannot be installed here is
skipped with the reason. The exit code is 1 if a feature fails.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from service import Service
from support.openai_session import ERRANDS, INVOICE, MODEL, QUESTION, RESULTS, TOOLS
from support.proxies import proxy_for

from prem_core.enclave import LocalEnclave, ScriptedEngine, reply

HERE: Final = Path(__file__).parent
BUILD: Final = HERE.parents[1] / "build" / "compat"

#: Seconds for an installation, and for all features of one client.
INSTALL_LIMIT: Final = 300
RUN_LIMIT: Final = 180

FEATURES: Final = ("text", "stream", "tools", "structured", "reasoning", "error", "stored")


@dataclass(frozen=True, slots=True)
class Client:
    """A client, the packages it needs, and the program that tries it.

    The program may try further features, and leaves out those of `FEATURES` that are in `without`. It gets `variant` as
    a setting.
    """

    name: str
    program: str
    packages: tuple[str, ...]
    without: tuple[str, ...] = ()
    variant: str = ""

    @property
    def place(self) -> Path:
        return BUILD / (Path(self.program).stem + self.variant)

    @property
    def is_python(self) -> bool:
        return self.program.endswith(".py")


CLIENTS: Final = (
    Client("openai-agents", "openai_agents.py", ("openai-agents",)),
    Client("pydantic-ai", "pydantic_ai_openai.py", ("pydantic-ai-slim[openai]",)),
    Client("openai (npm), Responses", "openai_npm_responses.mjs", ("openai@6.30.1", "zod@4")),
    Client("ai + @ai-sdk/openai", "vercel_ai_openai.mjs", ("ai", "@ai-sdk/openai", "zod@4")),
    Client("anthropic", "anthropic_python.py", ("anthropic",), ("stored",)),
    Client(
        "anthropic, PremTransport",
        "anthropic_python.py",
        ("anthropic", "-e", str(HERE.parents[1])),
        ("stored",),
        variant="_transport",
    ),
    Client("anthropic (npm)", "anthropic_npm.mjs", ("@anthropic-ai/sdk",), ("structured", "stored")),
    Client(
        "ai + @ai-sdk/anthropic",
        "vercel_ai_anthropic.mjs",
        ("ai", "@ai-sdk/anthropic", "zod@4"),
        ("structured", "stored"),
    ),
)


def install(client: Client) -> str | None:
    """Make the client's environment, if there is none. Returns the reason why it cannot be made."""
    done = client.place / ".installed"
    if done.exists():
        return None
    client.place.mkdir(parents=True, exist_ok=True)
    if client.is_python:
        commands = [
            [sys.executable, "-m", "venv", "."],
            ["bin/python", "-m", "pip", "install", "--quiet", *client.packages],
        ]
    else:
        npm = shutil.which("npm")
        if npm is None or shutil.which("node") is None:
            return "needs node and npm"
        options = ["--no-save", "--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund"]
        (client.place / "package.json").write_text("{}")
        commands = [[npm, "install", *options, *client.packages]]
    for command in commands:
        try:
            ended = subprocess.run(
                command, cwd=client.place, capture_output=True, text=True, timeout=INSTALL_LIMIT, check=False
            )
        except subprocess.TimeoutExpired:
            return "the installation takes too long"
        if ended.returncode:
            return "its packages cannot be installed here"
    done.touch()
    return None


def run(client: Client, settings: dict[str, Any]) -> dict[str, str | None]:
    """The error of each feature, or None: those of `FEATURES` that the client has, then the program's further ones."""
    if client.is_python:
        command = ["bin/python", str(HERE / client.program)]
    else:
        for name in (client.program, "report.mjs"):  # node looks for packages from where a program is
            shutil.copy(HERE / name, client.place)
        command = ["node", client.program]
    try:
        ended = subprocess.run(
            command,
            cwd=client.place,
            env={
                **os.environ,
                "COMPAT": json.dumps({**settings, "variant": client.variant}),
                "PYTHONPATH": "",
            },
            capture_output=True,
            text=True,
            timeout=RUN_LIMIT,
            check=False,
        )
        output, failed = ended.stdout, ended.stderr[-500:] if ended.returncode else ""
    except subprocess.TimeoutExpired as error:
        output, failed = (error.stdout or b"").decode(), "no answer in time"
    lines = [json.loads(line) for line in output.splitlines() if line.startswith('{"feature"')]
    tried: dict[str, str | None] = {line["feature"]: line["error"] for line in lines}
    missing = failed or "it was not tried"
    expected = {name: tried.get(name, missing) for name in FEATURES if name not in client.without}
    return {**expected, **tried, **({"end": failed} if failed else {})}


@contextmanager
def proxies() -> Iterator[dict[str, Any]]:
    """Proxies in front of embedded enclaves, as the settings of the programs."""
    with ExitStack() as stack:
        prem = stack.enter_context(LocalEnclave())
        engine = ScriptedEngine(respond=lambda request: reply("Hello", truncated=True))
        broken = stack.enter_context(LocalEnclave(engine=engine, api_key=prem.api_key))
        start = [
            proxy_for(prem, nonce_reuse="allow"),
            proxy_for(prem, nonce_reuse="allow", store_responses=True),
            proxy_for(broken, nonce_reuse="allow", max_retries=0),
        ]
        urls = [stack.enter_context(proxy).base_url for proxy in start]
        scripted = stack.enter_context(
            LocalEnclave(engine=ScriptedEngine(respond=Service()), api_key=prem.api_key)
        )
        scripted_proxy = stack.enter_context(proxy_for(scripted, nonce_reuse="allow", max_retries=0))
        yield {
            **dict(zip(("base_url", "stored_url", "broken_url"), urls, strict=True)),
            "scripted_url": scripted_proxy.url,
            "scripted_gateway_url": scripted.gateway_url,
            "scripted_enclave_url": scripted.enclave_url,
            "api_key": prem.api_key,
            "model": MODEL,
            "question": QUESTION,
            "answer": "The clinic opens at eight.",
            "errands": ERRANDS,
            "results": RESULTS,
            "invoice": INVOICE,
            "tools": [{"type": "function", "strict": False, **tool["function"]} for tool in TOOLS],
        }


def main(names: list[str]) -> int:
    """Try the clients whose names contain one of `names`; without names, all."""
    chosen = [each for each in CLIENTS if not names or any(name in each.name for name in names)]
    errors = []
    print(f"{'':26}{''.join(f'{feature:12}' for feature in (*FEATURES, 'others'))}")
    with proxies() as settings:
        for client in chosen:
            if (reason := install(client)) is not None:
                print(f"{client.name:26}skipped: {reason}", flush=True)
                continue
            found = run(client, settings)
            marks = ["-" if name in client.without else "✗" if found[name] else "✓" for name in FEATURES]
            others = [error for name, error in found.items() if name not in FEATURES]
            if others:
                marks.append("✗" if any(others) else f"✓ {len(others)}")
            print(f"{client.name:26}{''.join(f'{mark:12}' for mark in marks)}".rstrip(), flush=True)
            errors += [f"{client.name}, {name}: {error}" for name, error in found.items() if error]
    print("\n".join(errors))
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
