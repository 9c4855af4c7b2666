"""Run the compatibility checks: each client in an environment of its own, against one proxy.

    python tests/compat/run.py [CLIENT …]

An environment is made in ``build/compat`` once and kept. A client that cannot be installed is skipped, with the reason.
A check is a program. Its arguments are the URL of a proxy, an API key, the URLs of the gateway and the enclave behind
that proxy, and the client's own. It prints a line of JSON for each feature: ``{"feature": …, "ok": …, "why": …}``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from service import Service

from prem_core.enclave import LocalEnclave, ScriptedEngine
from prem_core.proxy import LocalProxy

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parent.parent
ENVIRONMENTS: Final = ROOT / "build" / "compat"

INSTALL_SECONDS: Final = 300
CHECK_SECONDS: Final = 120


@dataclass(frozen=True)
class Client:
    """A client to check: its check, the packages that the check imports, and its arguments."""

    check: str
    packages: tuple[str, ...]
    arguments: tuple[str, ...] = ()


CLIENTS: Final = {
    "anthropic (Python)": Client("anthropic_python.py", ("anthropic",)),
    "anthropic (Python), PremTransport": Client(
        "anthropic_python.py", ("anthropic", "-e", str(ROOT)), ("transport",)
    ),
    "anthropic (npm)": Client("anthropic_npm.mjs", ("@anthropic-ai/sdk",)),
    "ai with @ai-sdk/anthropic": Client("ai_sdk_anthropic.mjs", ("ai", "@ai-sdk/anthropic", "zod")),
}


class SkippedError(Exception):
    """A client cannot be checked here."""


def prepare(client: Client) -> list[str]:
    """Make the client's environment, and return the command that runs its check.

    Raises:
        SkippedError: The packages cannot be installed.
    """
    place = ENVIRONMENTS / "-".join([Path(client.check).stem, *client.arguments])
    if client.check.endswith(".mjs"):
        node, npm = shutil.which("node"), shutil.which("npm")
        if node is None or npm is None:
            raise SkippedError("needs node and npm")
        if not (place / "node_modules").exists():
            place.mkdir(parents=True, exist_ok=True)
            (place / "package.json").write_text('{"private": true, "type": "module"}')
            install([npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", *client.packages], place)
        # A module is resolved from the folder of the program.
        return [node, shutil.copy(HERE / client.check, place)]
    python = place / "bin" / "python"
    if not (place / "installed").exists():
        install([sys.executable, "-m", "venv", "--clear", str(place)], HERE)
        install([str(python), "-m", "pip", "install", "--quiet", "--upgrade", *client.packages], HERE)
        (place / "installed").touch()
    return [str(python), str(HERE / client.check)]


def install(command: list[str], place: Path) -> None:
    """Run a command that installs something.

    Raises:
        SkippedError: It failed.
    """
    try:
        subprocess.run(command, cwd=place, check=True, capture_output=True, timeout=INSTALL_SECONDS)
    except (subprocess.SubprocessError, OSError) as error:
        raise SkippedError(f"cannot be installed here: {type(error).__name__}") from None


def check(client: Client, urls: list[str]) -> list[dict[str, Any]]:
    """The features of one client."""
    command = [*prepare(client), *urls, *client.arguments]
    # The environment has only the client, and no variable that configures it.
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CHECK_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [{"feature": "in time", "ok": False, "why": f"it took more than {CHECK_SECONDS} seconds"}]
    features = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not features:
        lines = done.stderr.strip().splitlines() or [""]
        features.append({"feature": "runs to its end", "ok": False, "why": lines[-1]})
    return features


def main(names: list[str]) -> int:
    """Print the matrix. Return 1 if a feature fails."""
    failed = False
    with (
        LocalEnclave(engine=ScriptedEngine(respond=Service())) as prem,
        LocalProxy(
            gateway_url=prem.gateway_url, enclave_url=prem.enclave_url, max_retries=0, nonce_reuse="allow"
        ) as proxy,
    ):
        for name, client in CLIENTS.items():
            if names and not any(each in name for each in names):
                continue
            try:
                features = check(client, [proxy.url, prem.api_key, prem.gateway_url, prem.enclave_url])
            except SkippedError as why:
                print(f"- {name}: skipped, {why}")
                continue
            for each in features:
                mark = "✓" if each["ok"] else "✗"
                print(f"{mark} {name}: {each['feature']}" + (f": {each['why']}" if each["why"] else ""))
                failed = failed or not each["ok"]
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
