"""Reject requests from web pages and under foreign host names.

A web page cannot read the responses of another origin, but it can send requests. Under a DNS name that its owner points
to 127.0.0.1 it can read the responses too. The Origin and Host headers show both.
"""

from __future__ import annotations

from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from prem_core._apis.base import ApiError, quote_names
from prem_core._apis.openai.form import error_body
from prem_core._serving.request import AllowedHosts
from prem_core.proxy.call import send_error
from prem_core.proxy.dashboard import EVENTS

#: Sec-Fetch-Site values of requests that a page of another site makes. A navigation by the user is "none".
_FOREIGN_SITES: Final = ("cross-site", "same-site")


class HostOriginGuard:
    """ASGI middleware that rejects foreign hosts and web pages, before anything else of a request is read.

    Args:
        app: The application behind it.
        hosts: The accepted Host headers.
    """

    def __init__(self, app: ASGIApp, hosts: AllowedHosts) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._check(scope["path"], Headers(scope=scope))
        except ApiError as error:
            await send_error(send, error, error_body(error))
        else:
            await self._app(scope, receive, send)

    def _check(self, path: str, headers: Headers) -> None:
        host = headers.get("host", "")
        if host not in self._hosts:
            raise ApiError(403, f'the host "{quote_names([host])}" is not allowed: add it with --allow-host')
        # Programs send no Origin. The proxy's own page sends the host it was loaded from.
        foreign = headers.get("origin", f"http://{host}").lower() != f"http://{host}".lower()
        if path.startswith(("/v1/", "/openai/", "/anthropic/")) or path.endswith("/" + EVENTS):
            foreign = foreign or headers.get("sec-fetch-site") in _FOREIGN_SITES
        if foreign:
            raise ApiError(403, "the proxy does not accept requests from web pages")
