"""Run a server until Ctrl-C, for ``prem enclave`` and ``prem proxy``."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Protocol

from prem_core._errors import ConfigurationError


class Server(Protocol):
    """A `LocalEnclave` or a `LocalProxy`."""

    def start(self) -> object:
        """Listen."""

    def stop(self) -> None:
        """Stop listening."""


def serve_until_stopped(server: Server, announce: Callable[[], None]) -> None:
    """Start the server, call `announce`, and stop the server at Ctrl-C or SIGTERM.

    Raises:
        ConfigurationError: The server cannot listen, for example because the port is in use.
    """
    stopped = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stopped.set()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        try:
            server.start()
        except OSError as error:
            raise ConfigurationError(str(error)) from error
        try:
            announce()
            # A timeout, because on Windows Ctrl-C does not interrupt a wait without one.
            while not stopped.wait(0.5):
                pass
        finally:
            server.stop()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
