"""The page that a person can look at: each exchange live, and the same exchange as the gateway saw it.

The rule of this file: what leaves is `Exchange.as_dict`, which has no place for a prompt, a reply or a key. The page is
three files of `page/`, served as they are; they ask nobody but this proxy.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from prem_core.proxy.request_log import Exchange, Exchanges
from prem_core.proxy.responses import EVENT_STREAM

if TYPE_CHECKING:
    from prem_core.proxy.app import Call

#: The page's event stream: first ``latest``, the exchanges remembered, newest first; then each as it changes.
FOLLOW: Final = "/exchanges"

#: Route, file and type.
FILES: Final = (
    ("/", "index.html", "text/html; charset=utf-8"),
    ("/page.css", "page.css", "text/css; charset=utf-8"),
    ("/page.js", "page.js", "text/javascript; charset=utf-8"),
)

#: Seconds between comments, which keep a quiet stream open.
QUIET: Final = 15.0

_HEADERS: Final = (
    ("cache-control", "no-store"),
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("cross-origin-resource-policy", "same-origin"),
    ("referrer-policy", "no-referrer"),
    ("x-content-type-options", "nosniff"),
)


def sent(name: str, content_type: str) -> Callable[[Call], Awaitable[None]]:
    """A handler that sends a file of `page/`."""
    body = files("prem_core.proxy").joinpath("page", name).read_bytes()

    async def send(call: Call) -> None:
        await call.begin(content_type, [*_HEADERS, ("content-length", str(len(body)))])
        await call.write(body, more=False)

    return send


async def follow(call: Call, exchanges: Exchanges) -> None:
    """Send the exchanges, and go on until the page is closed or the proxy stops."""
    await call.begin(EVENT_STREAM, _HEADERS)
    with exchanges.changes() as changes:
        latest = [each.as_dict() for each in exchanges.latest()]
        await call.write(b"event: latest\ndata: " + json.dumps(latest).encode() + b"\n\n", more=True)
        coming: asyncio.Task[Exchange] | None = None
        try:
            while True:
                coming = coming or asyncio.ensure_future(anext(changes))
                await asyncio.wait((coming,), timeout=QUIET)
                if coming.done():
                    changed, coming = coming.result(), None
                    await call.write(b"data: " + json.dumps(changed.as_dict()).encode() + b"\n\n", more=True)
                else:
                    await call.write(b": \n\n", more=True)
        finally:
            if coming is not None:
                coming.cancel()
