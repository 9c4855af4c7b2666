"""Running `prem` in this process, for the many small cases; `prem_program` runs it as a user does."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import httpx
import pytest
from support.prem_program import Ended, Prem, settings
from typer.testing import CliRunner

from prem_core.cli.app import application
from prem_core.enclave import LocalEnclave


@pytest.fixture
def prem() -> Prem:
    """Run `prem` with these arguments, `stdin` and environment. It never shows a traceback, nor a key."""

    def call(*arguments: str, stdin: str | bytes = b"", **environment: str) -> Ended:
        before = dict(os.environ)
        result = CliRunner().invoke(application(), arguments, input=stdin, env=environment)
        assert dict(os.environ) == before  # --local puts back what it changed
        assert isinstance(result.exception, SystemExit | None), result.exception
        ended = Ended(result.exit_code, result.stdout, result.stderr)
        assert "Traceback" not in ended.err
        for name, value in environment.items():
            if re.search("KEY|KEK|SECRET", name) and value:
                assert value not in ended.out + ended.err
        return ended

    return call


@pytest.fixture
def here(enclave: LocalEnclave) -> dict[str, str]:
    """The environment in which `prem` asks the tests' enclave."""
    return settings(enclave)


@pytest.fixture
def there(upstream_enclave: LocalEnclave) -> dict[str, str]:
    """... and the one with the scripted server behind it."""
    return settings(upstream_enclave)


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, timeout=10) as client:
        yield client
