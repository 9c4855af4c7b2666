"""The proxy's web page: each request live, next to what the gateway saw of it.

The page is the files of `page/`. Its data is `RequestRecord.as_dict`. It loads nothing from other servers.
"""

from __future__ import annotations

import json
import secrets
from importlib.resources import files
from typing import Final

from starlette.exceptions import HTTPException

from prem_core._apis.base import EVENT_STREAM
from prem_core.proxy.call import Call
from prem_core.proxy.request_log import RequestLog

#: The page is at ``/page/TOKEN/``, with its files and its event stream below it.
PAGE_PATH: Final = "/page"

#: The page's event stream: first ``latest`` with the records so far, the newest first, then each record that changes.
EVENTS: Final = "requests"

#: Files and their content types, by their path below the page's.
_FILES: Final = {
    "": ("index.html", "text/html; charset=utf-8"),
    "page.css": ("page.css", "text/css; charset=utf-8"),
    "page.js": ("page.js", "text/javascript; charset=utf-8"),
}

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


class Dashboard:
    """The page's routes.

    Args:
        log: The records to show.
        token: A part of the page's URL. Other users of this machine can reach the port, but do not have the token.
    """

    def __init__(self, log: RequestLog, token: str) -> None:
        self._log = log
        self._token = token.encode()
        page = files("prem_core.proxy").joinpath("page")
        self._files = {
            path: (kind, page.joinpath(name).read_bytes()) for path, (name, kind) in _FILES.items()
        }
        self._denied = page.joinpath("denied.html").read_bytes()

    async def serve(self, call: Call) -> None:
        """Send a file or the event stream; without the token, 403 and where its URL is printed."""
        path: str = call.scope["path"]
        token, _, rest = path.removeprefix(PAGE_PATH).removeprefix("/").partition("/")
        if not secrets.compare_digest(token.encode("utf-8", "replace"), self._token):
            await call.respond("text/html; charset=utf-8", self._denied, _HEADERS, status=403)
        elif rest == EVENTS:
            await self._stream_records(call)
        elif rest in self._files:
            kind, body = self._files[rest]
            await call.respond(kind, body, _HEADERS)
        else:
            raise HTTPException(404)

    async def _stream_records(self, call: Call) -> None:
        """Send the records and every change, until the page is closed or the proxy stops."""
        await call.start(EVENT_STREAM, _HEADERS)
        with self._log.subscribe() as changes:
            latest = [record.as_dict() for record in self._log.latest()]
            await call.write(b"event: latest\ndata: " + json.dumps(latest).encode() + b"\n\n", more=True)
            while True:
                record = await call.keep_alive(anext(changes))
                await call.write(b"data: " + json.dumps(record.as_dict()).encode() + b"\n\n", more=True)
