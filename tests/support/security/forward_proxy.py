"""A forward HTTP proxy on loopback that records every byte."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from typing import Self
from urllib.parse import urlsplit


class ForwardProxy:
    """Forwards plain requests and tunnels CONNECT requests. Every host name leads to this machine.

    Args:
        impostor: Respond to CONNECT with this TLS context instead of a tunnel.
    """

    def __init__(self, impostor: ssl.SSLContext | None = None) -> None:
        self._impostor = impostor
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.settimeout(0.1)
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        #: The first line of each request.
        self.request_lines: list[str] = []
        #: Every byte in both directions.
        self.bytes_seen = bytearray()

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        self._listening.close()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(TimeoutError):
                client, _ = self._listening.accept()
                thread = threading.Thread(target=self._serve, args=(client,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.settimeout(60)
            head = b""
            while b"\r\n\r\n" not in head:
                if not (piece := client.recv(65536)):
                    return
                head += piece
            self.bytes_seen += head
            line, _, rest = head.partition(b"\r\n")
            self.request_lines.append(line.decode())
            method, target, version = line.decode().split()
            if method == "CONNECT":
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                if self._impostor is not None:
                    with self._impostor.wrap_socket(client, server_side=True) as tls:
                        self.bytes_seen += tls.recv(65536)
                    return
                port = int(target.rpartition(":")[2])
                first = b""
            else:
                url = urlsplit(target)
                port = url.port or 80
                # One request per connection: the next one may be for another server.
                rest = rest.replace(b"\r\nConnection: keep-alive", b"")
                first = f"{method} {url.path} {version}\r\nConnection: close\r\n".encode() + rest
            with socket.create_connection(("127.0.0.1", port)) as server:
                server.sendall(first)
                self._pass_on(client, server)

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        ends = {client: server, server: client}
        while not self._stopped.is_set():
            for end in select.select(list(ends), [], [], 0.1)[0]:
                piece = end.recv(65536)
                if not piece:
                    return
                self.bytes_seen += piece
                ends[end].sendall(piece)
