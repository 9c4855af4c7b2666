"""What the gateway and the enclave do for every request, before and after their routes."""

from __future__ import annotations

import asyncio
import logging

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prem_core._serving.request import (
    MAX_BODIES,
    AllowedHosts,
    BodyMemory,
    BodyTooLarge,
    Overloaded,
    RequestBody,
    cancel_on_disconnect,
    check_connection,
)
from prem_core.enclave.envelope import EnvelopeError

_log = logging.getLogger("prem_core.enclave")


class ErrorAndHostMiddleware:
    """Reject foreign hosts and large bodies, write every error as an envelope, and cancel work on a disconnect.

    A foreign Host is answered with 403: 421 would fit better, but the published error envelope does not have it.

    Args:
        app: The application behind it.
        port: The port it is served on.
        body_limit: Bytes of one request body.
    """

    def __init__(self, app: ASGIApp, port: int, body_limit: int) -> None:
        self._app = app
        self._hosts = AllowedHosts(port)
        self._body_limit = body_limit
        self._body_memory = BodyMemory(MAX_BODIES * body_limit)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self  # with an app in the scope, the router raises its 404 and 405
        with RequestBody(scope, receive, self._body_limit, self._body_memory) as body:
            work = asyncio.create_task(self._respond(scope, body.receive, send))
            await cancel_on_disconnect(work, body)
        if not work.cancelled():
            work.result()

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            check_connection(scope)
            if Headers(scope=scope).get("host", "") not in self._hosts:
                raise EnvelopeError(403, "The Host header does not name this machine")
            await self._app(scope, receive, watched_send)
            return
        except ClientDisconnect:
            return
        except EnvelopeError as error:
            failure = error
        except BodyTooLarge as error:
            failure = EnvelopeError(
                413, f"The request body exceeds the maximum allowed size of {error.limit} bytes"
            )
        except Overloaded as error:
            failure = EnvelopeError(503, str(error), headers=error.headers)
        except HTTPException as error:
            failure = EnvelopeError(error.status_code, error.detail, headers=error.headers)
        except Exception as error:
            # The text of the error may hold request content; its type does not.
            _log.error("a request failed: %s", type(error).__name__)
            failure = EnvelopeError(500, "Internal server error")
        if not started:
            response = JSONResponse(failure.envelope(), failure.status, failure.headers)
            await response(scope, receive, send)
        # A response that has started stays incomplete, and the server closes the connection.
