"""`prem` as a user runs it: a process of its own, its output in pipes or on a terminal."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from prem_core.enclave import LocalEnclave

PREM = [sys.executable, "-W", "error", "-m", "prem_core.cli"]

#: Variables that would change how a terminal is written to.
_STYLE_VARIABLES = (
    "NO_COLOR",
    "FORCE_COLOR",
    "CLICOLOR_FORCE",
    "PY_COLORS",
    "COLUMNS",
    "LINES",
    "TERM",
    "COLORTERM",
)


def client_environment(prem: LocalEnclave) -> dict[str, str]:
    """The environment in which `prem` asks this enclave."""
    return {
        "PREM_API_KEY": prem.api_key,
        "PREM_GATEWAY_URL": prem.gateway_url,
        "PREM_ENCLAVE_URL": prem.enclave_url,
    }


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """This process's environment, without what would change the looks."""
    return {**{name: value for name, value in os.environ.items() if name not in _STYLE_VARIABLES}, **more}


def run(*arguments: str, stdin: str | bytes = b"", **more: str) -> subprocess.CompletedProcess[bytes]:
    """Run `prem` with everything in pipes."""
    return subprocess.run(
        [*PREM, *arguments],
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        env=environment(more),
        timeout=60,
    )


@dataclass
class Result:
    """How a call result."""

    status: int
    out: str
    err: str

    def assert_error(self, status: int, *said: str) -> None:
        """It result so, and standard error has nothing but a line with all of this."""
        assert self.status == status, self
        (line,) = self.err.splitlines()
        assert line.startswith("prem")
        for words in said:
            assert words in line, line


#: `prem` in this process: its arguments, `stdin=` and the environment.
Prem = Callable[..., Result]


@dataclass
class TerminalOutput:
    """What a terminal got, its line ends as they were written, and what went into the pipe beside it."""

    status: int
    terminal: str
    piped: bytes = b""


class TerminalProcess:
    """`prem` on a terminal of its own.

    Args:
        piped: "stdout" or "stderr": that one goes into a pipe instead.
        stdin: What is piped in; the terminal where None.
    """

    def __init__(
        self,
        *arguments: str,
        piped: str | None = None,
        stdin: str | None = None,
        columns: int = 100,
        **more: str,
    ) -> None:
        pty, fcntl, termios = map(pytest.importorskip, ("pty", "fcntl", "termios"))
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        streams: dict[str, Any] = {"stdin": slave, "stdout": slave, "stderr": slave}
        if piped:
            streams[piped] = subprocess.PIPE
        if stdin is not None:
            streams["stdin"] = subprocess.PIPE
        # A child inherits what is ignored, as Ctrl-C is in a shell's background; what is caught it does not.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.process = subprocess.Popen(
            [*PREM, *arguments],
            env=environment({"TERM": "xterm-256color", **more}),
            start_new_session=True,
            **streams,
        )
        signal.signal(signal.SIGINT, before)
        os.close(slave)
        self._terminal = bytearray()
        self._piped = bytearray()
        self._readers = [threading.Thread(target=self._read, args=(self._master, self._terminal))]
        if piped:
            pipe = getattr(self.process, piped)
            self._readers.append(threading.Thread(target=self._read, args=(pipe.fileno(), self._piped)))
        for reader in self._readers:
            reader.start()
        if stdin is not None:
            assert self.process.stdin is not None
            self.process.stdin.write(stdin.encode())
            self.process.stdin.close()

    @staticmethod
    def _read(descriptor: int, into: bytearray) -> None:
        with contextlib.suppress(OSError):  # a terminal that nobody has open any more
            while data := os.read(descriptor, 65536):
                into += data

    def wait_for(self, text: str, seconds: float = 30) -> None:
        """Until the terminal has got `text`."""
        end = time.monotonic() + seconds
        while text.encode() not in self._terminal:
            assert time.monotonic() < end, bytes(self._terminal)
            time.sleep(0.01)

    def end(self) -> TerminalOutput:
        """Wait for the program's own end."""
        status = self.process.wait(60)
        for reader in self._readers:
            reader.join(10)
        os.close(self._master)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
        return TerminalOutput(status, self._terminal.decode().replace("\r\n", "\n"), bytes(self._piped))


def run_on_terminal(*arguments: str, **options: Any) -> TerminalOutput:
    """Run `prem` on a terminal until it ends."""
    return TerminalProcess(*arguments, **options).end()
