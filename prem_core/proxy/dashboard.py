"""The proxy's web page: each request live, next to what the gateway saw of it.

The page is the three files of `page/`. Its data is `RequestRecord.as_dict`. It loads nothing from other servers.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Final

from prem_core.proxy.call import Call
from prem_core.proxy.request_log import RequestLog, RequestRecord
from prem_core.proxy.responses import EVENT_STREAM

#: The page's event stream: first ``latest`` with the records so far, the newest first, then each record that changes.
EVENTS_PATH: Final = "/requests"

#: Route, file and content type.
PAGE_FILES: Final = (
    ("/", "index.html", "text/html; charset=utf-8"),
    ("/page.css", "page.css", "text/css; charset=utf-8"),
    ("/page.js", "page.js", "text/javascript; charset=utf-8"),
)

#: Seconds between comments, which keep an idle stream open.
KEEPALIVE_SECONDS: Final = 15.0

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


def serve_file(name: str, content_type: str) -> Callable[[Call], Awaitable[None]]:
    """A handler that sends a file of `page/`."""
    body = files("prem_core.proxy").joinpath("page", name).read_bytes()

    async def send(call: Call) -> None:
        await call.respond(content_type, body, _HEADERS)

    return send


async def stream_records(call: Call, log: RequestLog) -> None:
    """Send the records in `log` and every change, until the page is closed or the proxy stops."""
    await call.start(EVENT_STREAM, _HEADERS)
    with log.subscribe() as changes:
        latest = [record.as_dict() for record in log.latest()]
        await call.write(b"event: latest\ndata: " + json.dumps(latest).encode() + b"\n\n", more=True)
        waiting: asyncio.Task[RequestRecord] | None = None
        try:
            while True:
                waiting = waiting or asyncio.ensure_future(anext(changes))
                await asyncio.wait((waiting,), timeout=KEEPALIVE_SECONDS)
                if waiting.done():
                    record, waiting = waiting.result(), None
                    await call.write(b"data: " + json.dumps(record.as_dict()).encode() + b"\n\n", more=True)
                else:
                    await call.write(b": \n\n", more=True)
        finally:
            if waiting is not None:
                waiting.cancel()
