"""Run the `prem` program: in pipes, on a pseudo-terminal, or as a server that keeps running."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from prem_core.enclave import LocalEnclave

PREM = [sys.executable, "-W", "error", "-m", "prem_core.cli"]

#: Seconds that a program may take before a test fails. No test passes because of it.
TIMEOUT = 60

#: Variables that change how a program writes to a terminal.
_STYLE_VARIABLES = (
    "NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "PY_COLORS", "COLUMNS", "LINES", "TERM", "COLORTERM",
)  # fmt: skip


def client_environment(prem: LocalEnclave) -> dict[str, str]:
    """The variables with which `prem` uses this enclave."""
    return {
        "PREM_API_KEY": prem.api_key,
        "PREM_GATEWAY_URL": prem.gateway_url,
        "PREM_ENCLAVE_URL": prem.enclave_url,
    }


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without style variables, and `more`."""
    return {**{name: value for name, value in os.environ.items() if name not in _STYLE_VARIABLES}, **more}


def run(*arguments: str, stdin: str | bytes = b"", **more: str) -> subprocess.CompletedProcess[bytes]:
    """Run `prem` with all streams in pipes."""
    return subprocess.run(
        [*PREM, *arguments],
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        env=environment(more),
        timeout=TIMEOUT,
    )


@dataclass
class Result:
    """The exit code and output of `prem`."""

    status: int
    out: str
    err: str

    def assert_error(self, status: int, *parts: str) -> None:
        """It exited with `status` and wrote one line to standard error that contains all `parts`."""
        assert self.status == status, self
        (line,) = self.err.splitlines()
        assert line.startswith("prem")
        for part in parts:
            assert part in line, line


#: Runs `prem` in this process: arguments, `stdin=` and environment variables.
Prem = Callable[..., Result]


@dataclass
class TerminalOutput:
    """The exit code, and what was written to the terminal and to the pipe."""

    status: int
    terminal: str
    piped: bytes = b""


class TerminalProcess:
    """`prem` on a pseudo-terminal.

    Args:
        piped: "stdout" or "stderr", to connect that stream to a pipe.
        stdout: A file for standard output.
        stdin: Text to pipe in; standard input is the terminal if None.
    """

    def __init__(
        self,
        *arguments: str,
        piped: str | None = None,
        stdout: Path | None = None,
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
        file = None if stdout is None else stdout.open("wb")
        if file is not None:
            streams["stdout"] = file
        # A child process inherits an ignored SIGINT, which background jobs of a shell have, but not a handler.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.process = subprocess.Popen(
            [*PREM, *arguments],
            env=environment({"TERM": "xterm-256color", **more}),
            start_new_session=True,
            **streams,
        )
        signal.signal(signal.SIGINT, before)
        os.close(slave)
        if file is not None:
            file.close()
        self._changed = threading.Condition()
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

    def _read(self, descriptor: int, into: bytearray) -> None:
        with contextlib.suppress(OSError):  # the program has closed the terminal
            while data := os.read(descriptor, 65536):
                with self._changed:
                    into += data
                    self._changed.notify_all()

    def wait_for(self, text: str) -> None:
        """Wait until `text` is on the terminal."""
        with self._changed:
            assert self._changed.wait_for(lambda: text.encode() in self._terminal, TIMEOUT), self._terminal

    def end(self) -> TerminalOutput:
        """Wait for the program to exit."""
        status = self.process.wait(TIMEOUT)
        for reader in self._readers:
            reader.join(TIMEOUT)
        os.close(self._master)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
        return TerminalOutput(status, self._terminal.decode().replace("\r\n", "\n"), bytes(self._piped))


def run_on_terminal(*arguments: str, **options: Any) -> TerminalOutput:
    """Run `prem` on a pseudo-terminal until it exits."""
    return TerminalProcess(*arguments, **options).end()


class ServerProcess:
    """``prem enclave`` or ``prem proxy``, running.

    Args:
        arguments: The command line.
        ready: What the server writes when it accepts connections.
    """

    def __init__(self, *arguments: str, ready: str, **more: str) -> None:
        self.process = subprocess.Popen(
            [*PREM, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(more),
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.output = ""
        self.errors = ""
        while ready not in self.output:
            self.output += self._lines.get(timeout=TIMEOUT)

    @property
    def exports(self) -> dict[str, str]:
        """The variables in its `export` lines."""
        return dict(re.findall(r"^export (\w+)=(.*)$", self.output, re.MULTILINE))

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the exit code."""
        self.process.send_signal(number)
        code = self.process.wait(TIMEOUT)
        self._reader.join(TIMEOUT)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdout.close()
        while not self._lines.empty():
            self.output += self._lines.get()
        with self.process.stderr as stderr:
            self.errors = stderr.read()
        return code

    def kill(self) -> None:
        """End the process if it still runs."""
        if self.process.returncode is None:
            self.stop(signal.SIGKILL)
