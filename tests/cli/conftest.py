"""Fixtures that run `prem` in this process. `support.prem_program` runs it as a program of its own."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import httpx
import pytest
from support.prem_program import Prem, Result, client_environment
from typer.testing import CliRunner

from prem_core.cli.app import application
from prem_core.enclave import LocalEnclave


@pytest.fixture
def prem() -> Prem:
    """Run `prem` in this process. It never prints a traceback or the value of a secret variable."""

    def call(*arguments: str, stdin: str | bytes = b"", **environment: str) -> Result:
        before = dict(os.environ)
        ran = CliRunner().invoke(application(), arguments, input=stdin, env=environment)
        assert dict(os.environ) == before  # --local restores what it changed
        assert isinstance(ran.exception, SystemExit | None), ran.exception
        result = Result(ran.exit_code, ran.stdout, ran.stderr)
        assert "Traceback" not in result.err
        for name, value in environment.items():
            if re.search("KEY|KEK|SECRET", name) and value:
                assert value not in result.out + result.err
        return result

    return call


@pytest.fixture
def enclave_env(enclave: LocalEnclave) -> dict[str, str]:
    """The variables with which `prem` uses the tests' enclave."""
    return client_environment(enclave)


@pytest.fixture
def upstream_env(upstream_enclave: LocalEnclave) -> dict[str, str]:
    """The variables with which `prem` uses an enclave whose answers come from `upstream`."""
    return client_environment(upstream_enclave)


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, timeout=10) as client:
        yield client
