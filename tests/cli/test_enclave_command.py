"""``prem enclave`` as a user runs it: a process of its own."""

from __future__ import annotations

import os
import queue
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from support.prem_program import PREM
from support.raw_client import Wire, params
from support.scripted_upstream import Upstream, chunk

from prem_core._crypto.xwing import PublicKey


class Prem:
    """A running ``prem enclave``, its output read line by line."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [*PREM, "enclave", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.output = ""
        self.exports: dict[str, str] = {}

    def wait_until_ready(self) -> None:
        while "PREM_ENCLAVE_URL" not in self.output:
            self.output += self._lines.get(timeout=20)
        self.exports = dict(re.findall(r"^export (\w+)=(.*)$", self.output, re.M))

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(10)
        self._reader.join(5)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdout.close()
        with self.process.stderr as stderr:
            self.errors = stderr.read()
        return code


@pytest.fixture
def prem() -> Iterator[Callable[..., Prem]]:
    running: list[Prem] = []

    def start(*arguments: str, **environment: str) -> Prem:
        running.append(Prem("--port", "0", "--enclave-port", "0", *arguments, **environment))
        running[-1].wait_until_ready()
        return running[-1]

    yield start
    for each in running:
        if each.process.returncode is None:
            each.end(signal.SIGKILL)


def wire(prem: Prem, http: httpx.Client) -> Wire:
    key = http.get(f"{prem.exports['PREM_ENCLAVE_URL']}/publicKey").json()["publicKey"]
    local: Any = SimpleNamespace(
        api_key=prem.exports["PREM_API_KEY"],
        gateway_url=prem.exports["PREM_GATEWAY_URL"],
        public_key=PublicKey(bytes.fromhex(key)),
    )
    return Wire(local, http)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PREM, *arguments], capture_output=True, text=True, env={**os.environ, **environment}, timeout=30
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_prints_what_a_client_needs_and_ends_cleanly(
    prem: Callable[..., Prem], http: httpx.Client, number: int
) -> None:
    started = prem()
    client = wire(started, http)
    sealed, response = client.chat(params())
    assert sealed.chunks(response)
    assert client.prem.public_key.fingerprint() in started.output
    assert client.prem.api_key in started.output
    assert "\x1b" not in started.output
    assert started.end(number) == 0
    assert started.errors == ""


def test_the_key_to_accept_comes_from_a_named_variable(prem: Callable[..., Prem]) -> None:
    assert prem("--api-key-env", "MY_KEY", MY_KEY="sk_test_mine").exports["PREM_API_KEY"] == "sk_test_mine"


def test_it_ends_cleanly_with_a_stream_open(
    prem: Callable[..., Prem], http: httpx.Client, upstream: Upstream
) -> None:
    upstream.stalls(chunk("hi"))
    started = prem("--upstream", upstream.url, "--upstream-api-key-env", "UP", UP="sk-up")
    client = wire(started, http)
    with client.stream(params()) as (_, response):
        pieces = response.iter_raw()
        assert next(pieces)
        assert started.end() == 0
        with pytest.raises(httpx.TransportError):
            list(pieces)
    assert started.errors == ""
    assert upstream.requests[0][0]["authorization"] == "Bearer sk-up"


def test_models_and_the_tier_can_be_chosen(prem: Callable[..., Prem], http: httpx.Client) -> None:
    client = wire(prem("--model", "a/one", "--model", "b/two", "--tier", "base"), http)
    assert [entry["model"] for entry in client.get("/models").json()["data"]] == ["a/one", "b/two"]
    statuses = [client.chat(params(model="a/one"))[1].status_code for _ in range(8)]
    assert statuses[:5] == [200] * 5
    assert 429 in statuses


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tier", "gold"], "gold"),
        (["--port", "70000"], "65535"),
        (["--host", "0.0.0.0"], "--host"),
        (["--upstream", "localhost:11434", "--port", "0"], "http or https"),
        (["--api-key-env", "NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE"),
    ],
)
def test_an_option_that_cannot_work_is_said_in_short_with_status_2(arguments: list[str], said: str) -> None:
    result = run("enclave", *arguments)
    assert result.returncode == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_a_port_in_use_is_said_in_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = run("enclave", "--port", str(taken.getsockname()[1]))
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert str(taken) not in result.stderr
