"""Who may ask: programs on this machine, and not the web pages that its browsers show.

A page cannot read another origin's answers, but it can send requests, and under a DNS name that its owner turns to
127.0.0.1 it can read the answers too. Both show: in Origin, and in Host.

The rule of this file: refuse first; nothing of the request but these headers is looked at.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from prem_core.proxy.errors import Refusal

#: Names under which programs on this machine ask.
LOOPBACK_NAMES: Final = ("127.0.0.1", "localhost", "[::1]")

#: What browsers call requests that another site's page makes. A navigation by the user himself is "none".
_FOREIGN_SITES: Final = ("cross-site", "same-site")


class Guard:
    """An ASGI application that only those who may ask reach.

    Args:
        app: Behind it.
        port: The port listened on.
        names: Hosts that may be asked for besides loopback's: a name, or a name and a port.
        any_address: Whether every IP address is this machine's: it listens on all of them. A page that is led here by
            a name is still known by the name.
    """

    def __init__(
        self, app: ASGIApp, port: int, names: Collection[str] = (), *, any_address: bool = False
    ) -> None:
        self._app = app
        self._port = port
        self._any_address = any_address
        self._hosts = {host for name in (*LOOPBACK_NAMES, *names) for host in _with_port(name.lower(), port)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._check(scope["path"], Headers(scope=scope))
        except Refusal as refused:
            await send_refusal(refused, send)
        else:
            await self._app(scope, receive, send)

    def _check(self, path: str, headers: Headers) -> None:
        host = headers.get("host", "").lower()
        if host not in self._hosts and not (self._any_address and self._is_address(host)):
            raise Refusal(403, "the Host header does not name this proxy (--allow-host adds a name)")
        # Programs send none. A page may be ours only: its origin is the host it was fetched from.
        if headers.get("origin", f"http://{host}").lower() != f"http://{host}":
            raise Refusal(403, "the proxy does not answer web pages")
        if path.startswith(("/v1/", "/exchanges")) and headers.get("sec-fetch-site") in _FOREIGN_SITES:
            raise Refusal(403, "the proxy does not answer web pages")

    def _is_address(self, host: str) -> bool:
        name, _, port = host.rpartition(":")
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return port == str(self._port)


async def send_refusal(refused: Refusal, send: Send, headers: Collection[tuple[str, str]] = ()) -> None:
    """Send the error as a whole answer, with these headers unless it has its own."""
    all_headers = {"content-type": "application/json", **dict(headers), **refused.headers}
    await send(
        {
            "type": "http.response.start",
            "status": refused.status,
            "headers": [
                *((name.encode(), value.encode("latin-1", "replace")) for name, value in all_headers.items()),
                (b"content-length", str(len(refused.body)).encode()),
            ],
        }
    )
    await send({"type": "http.response.body", "body": refused.body})


def _with_port(name: str, port: int) -> tuple[str, ...]:
    # An IPv6 address has colons of its own, and stands in brackets.
    if name.rpartition("]")[2].count(":"):
        return (name,)
    return (f"{name}:{port}", name) if port == 80 else (f"{name}:{port}",)
