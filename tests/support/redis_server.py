"""A real ``redis-server`` on a free loopback port, which a test starts and ends."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from typing import Any, Self

from support.waiting import SOON, eventually

#: The program; None where it is not installed.
PROGRAM = shutil.which("redis-server") or shutil.which("valkey-server")


class RedisServer:
    """A server without persistence.

    Args:
        options: Further options of the command line.
    """

    def __init__(self, *options: str) -> None:
        self._options = options
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"
        self._folder = tempfile.TemporaryDirectory(prefix="redis-")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._folder.cleanup()

    def start(self) -> None:
        """Start the server, empty, and wait until it answers."""
        assert PROGRAM is not None
        self._process = subprocess.Popen(
            [
                PROGRAM, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
                "--dir", self._folder.name, *self._options,
            ],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        assert eventually(self._answers, SOON)

    def kill(self) -> None:
        """End the server with all that it holds."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def client(self) -> Any:
        """A redis-py client."""
        import redis

        return redis.Redis(port=self.port, decode_responses=True, protocol=2)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False
