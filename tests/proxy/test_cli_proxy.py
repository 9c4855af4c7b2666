"""``prem proxy`` as a user runs it: a process of its own."""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import httpx
import openai
import pytest
from support.proxies import chat
from support.scripted_upstream import Upstream, chunk

from prem_core.cli.commands.proxy import _size
from prem_core.enclave import LocalEnclave

PREM = [sys.executable, "-W", "error::ResourceWarning", "-m", "prem_core.cli"]


class Prem:
    """A running ``prem proxy``, its output read line by line."""

    def __init__(self, *arguments: str, before: tuple[str, ...] = (), **environment: str) -> None:
        self.process = subprocess.Popen(
            [*PREM, *before, "proxy", "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.output = self._lines.get(timeout=30)
        self.base_url = self.output.split()[2]

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
        while not self._lines.empty():
            self.output += self._lines.get()
        with self.process.stderr as stderr:
            self.errors = stderr.read()
        return code


Start = Callable[..., Prem]


@pytest.fixture
def prem() -> Iterator[Start]:
    running: list[Prem] = []

    def start(*arguments: str, **options: str) -> Prem:
        running.append(Prem(*arguments, **options))  # type: ignore[arg-type]
        return running[-1]

    yield start
    for each in running:
        if each.process.returncode is None:
            each.end(signal.SIGKILL)


def places(enclave: LocalEnclave) -> dict[str, str]:
    return {"PREM_GATEWAY_URL": enclave.gateway_url, "PREM_ENCLAVE_URL": enclave.enclave_url}


def refused(*arguments: str, **environment: str) -> str:
    """The one line of a command that cannot run."""
    ended = subprocess.run(
        [*PREM, "proxy", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=30,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("prem proxy: ")
    return line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_prints_its_url_in_one_line_serves_and_ends_cleanly(
    prem: Start, enclave: LocalEnclave, number: int
) -> None:
    running = prem(**places(enclave))
    with openai.OpenAI(base_url=running.base_url, api_key=enclave.api_key) as client:
        assert client.chat.completions.create(**chat()).choices
    assert running.end(number) == 0
    assert running.errors == ""
    assert len(running.output.splitlines()) == 1
    assert "their own API keys" in running.output


def test_it_ends_cleanly_with_a_stream_open(
    prem: Start, upstream_enclave: LocalEnclave, upstream: Upstream
) -> None:
    upstream.stalls(chunk("Hel"))
    running = prem(**places(upstream_enclave))
    with openai.OpenAI(base_url=running.base_url, api_key=upstream_enclave.api_key, max_retries=0) as client:
        stream = client.chat.completions.create(**chat(), stream=True)
        next(stream)
        assert running.end() == 0
        with pytest.raises(openai.APIError):
            next(stream)
    assert running.errors == ""
    assert upstream.left.wait(5)


def test_the_key_of_the_environment_is_used_when_that_was_said(prem: Start, enclave: LocalEnclave) -> None:
    running = prem("--api-key-from-env", "--api-key-env", "MINE", MINE=enclave.api_key, **places(enclave))
    assert httpx.get(f"{running.base_url}/models", trust_env=False).status_code == 200
    assert "your API key" in running.output
    assert enclave.api_key not in running.output
    ours = prem(PREM_API_KEY=enclave.api_key, **places(enclave))
    assert httpx.get(f"{ours.base_url}/models", trust_env=False).status_code == 401


def test_the_options_reach_the_proxy(prem: Start, enclave: LocalEnclave) -> None:
    running = prem(
        "--drop-unsupported", "--body-limit", "1kb", "--allow-host", "proxy.local:1", **places(enclave)
    )
    headers = {"authorization": f"Bearer {enclave.api_key}", "host": "proxy.local:1"}
    url = f"{running.base_url}/chat/completions"
    reply = httpx.post(url, json=chat(user="anna"), headers=headers, trust_env=False)
    assert (reply.status_code, reply.headers["x-prem-dropped"]) == (200, "user")
    assert httpx.post(url, json=chat("a" * 1024), headers=headers, trust_env=False).status_code == 413


def test_local_needs_no_account(prem: Start) -> None:
    running = prem(before=("--local",))  # type: ignore[arg-type]
    assert "embedded enclave" in running.output
    assert httpx.post(f"{running.base_url}/chat/completions", json=chat(), trust_env=False).json()["choices"]
    assert running.end() == 0
    assert running.errors == ""


def test_other_machines_are_let_in_with_a_warning(prem: Start, enclave: LocalEnclave) -> None:
    running = prem("--host", "0.0.0.0", "--allow-remote", **places(enclave))
    assert httpx.get(running.base_url.replace("/v1", "/health"), trust_env=False).status_code == 200
    assert running.end() == 0
    (line,) = running.errors.splitlines()
    assert "unencrypted" in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "--allow-remote"),
        (["--host", "no.such.host.invalid", "--allow-remote"], "no address"),
        (["--port", "70000"], "65535"),
        (["--body-limit", "much"], "--body-limit"),
        (["--body-limit", "0"], "--body-limit"),
        (["--timeout", "0"], "timeout"),
        (["--audio-timeout", "0"], "audio_timeout"),
        (["--enclave-public-key", "abc"], "1216 bytes"),
        (["--gateway-url", "http://gateway.example"], "plain http"),
        (["--api-key-from-env"], "PREM_API_KEY"),
        (["--api-key-env", "MINE"], "--api-key-from-env"),
        (["--keys", "/no/such/file"], "KEK"),
    ],
)
def test_an_option_that_cannot_work_is_said_in_one_line_with_status_2(
    arguments: list[str], said: str
) -> None:
    assert said in refused(*arguments)


def test_a_port_in_use_is_said_in_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert port in refused("--port", port)


@pytest.mark.parametrize("absent", ["starlette", "uvicorn", "python_multipart"])
def test_a_missing_part_is_one_line_with_the_install_command(absent: str) -> None:
    program = f"import sys; sys.modules[{absent!r}] = None; sys.argv[1:] = ['proxy']\n"
    program += "from prem_core.cli import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False
    )
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert absent in line
    assert 'pip install "prem-encrypted[proxy]"' in line


@pytest.mark.parametrize(
    ("text", "size"), [("7", 7), ("500kb", 512_000), ("32MB", 32 << 20), ("1 GiB", 1 << 30), ("2m", 2 << 20)]
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert _size(text) == size
