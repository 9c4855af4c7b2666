"""A LangSmith on loopback that records what tracers send to it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import langsmith.run_trees
import langsmith.utils
import pytest
from langchain_core.tracers.langchain import wait_for_all_tracers


class LangSmithServer:
    """What has arrived, and the switch of this process's tracing."""

    def __init__(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._url = url
        self._monkeypatch = monkeypatch
        self._bodies: list[bytes] = []

    def trace(self) -> None:
        """Turn tracing on in the environment, as an operator does."""
        self._monkeypatch.setenv("LANGSMITH_TRACING", "true")
        self._monkeypatch.setenv("LANGSMITH_ENDPOINT", self._url)
        self._monkeypatch.setenv("LANGSMITH_API_KEY", "lsv2_test")
        # LangSmith reads the environment once, and keeps its client.
        langsmith.utils.get_env_var.cache_clear()
        self._monkeypatch.setattr(langsmith.run_trees, "_CLIENT", None)

    def received(self) -> bytes:
        """Everything that arrived, after all traces were sent."""
        wait_for_all_tracers()
        return b"\n".join(self._bodies)

    def record(self, body: bytes) -> None:
        self._bodies.append(body)


@contextlib.contextmanager
def langsmith_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LangSmithServer]:
    """Run the server. Tracing is off until `trace` is called, and after the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            # Without compression, so that a prompt is found in what arrives.
            self._answer(b'{"instance_flags": {"zstd_compression_enabled": false}}')

        def do_POST(self) -> None:
            if length := self.headers.get("Content-Length"):
                body = self.rfile.read(int(length))
            else:
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            server.record(body)
            self._answer(b"{}")

        do_PATCH = do_POST  # noqa: N815

        def _answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        server = LangSmithServer(f"http://127.0.0.1:{http.server_port}", monkeypatch)
        try:
            yield server
        finally:
            wait_for_all_tracers()
            if (client := langsmith.run_trees._CLIENT) is not None:
                client.cleanup()
            monkeypatch.undo()
            langsmith.utils.get_env_var.cache_clear()
            http.shutdown()
            thread.join()
