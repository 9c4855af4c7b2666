"""What callers send: bodies up to a limit, in memory, and the parameters in them.

The rule of this file: only names that the published schema has go on, and an error names a parameter, never its value.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Collection, Mapping
from typing import Any, Final, NoReturn
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope

from prem_core._protocol.flow import OFFLOAD_BYTES
from prem_core.proxy.errors import Refusal

#: Names that one answer lists, and characters of each.
MAX_NAMES: Final = 20
MAX_NAME: Final = 64


class Left(Exception):
    """The caller hung up."""


class RequestBody:
    """A request's body: counted while it is read, and then watched for the caller's leaving.

    Attributes:
        size: Bytes read so far.
    """

    def __init__(self, scope: Scope, receive: Receive, limit: int) -> None:
        headers = Headers(scope=scope)
        declared = headers.get("content-length", "")
        #: The content type, as it was sent.
        self.content_type = headers.get("content-type", "")
        self.size = 0
        self._declared = int(declared) if declared.isdecimal() else 0
        self._receive = receive
        self._limit = limit
        self._complete = asyncio.Event()
        if not self._declared and "transfer-encoding" not in headers:
            self._complete.set()  # there is none (RFC 9112, 6.3)

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body, as it comes.

        Raises:
            Refusal: 413, it is longer than the limit; at once, where its length was declared.
            Left: The caller hung up in the middle of it.
        """
        self._check(self._declared)
        while not self._complete.is_set():
            message: Message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Left
            piece: bytes = message.get("body", b"")
            self.size += len(piece)
            self._check(self.size)
            if not message.get("more_body", False):
                self._complete.set()
            yield piece

    async def whole(self) -> bytes:
        """All of it; see `pieces`."""
        return b"".join([piece async for piece in self.pieces()])

    async def left(self) -> None:
        """Wait until the caller hangs up. Until the body is read, its reader is told instead."""
        await self._complete.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def _check(self, size: int) -> None:
        if size > self._limit:
            raise Refusal(
                413,
                f"the request's body is longer than the proxy takes ({self._limit:,} bytes; --body-limit)",
                code="request_too_large",
            )


async def read_json(body: RequestBody) -> dict[str, Any]:
    """The body's JSON object.

    Raises:
        Refusal: 415 or 400, it is none; 413.
        Left: The caller hung up.
    """
    if body.content_type.partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "the request's content type must be application/json")
    data = await body.whole()
    value = _json(data) if len(data) < OFFLOAD_BYTES else await asyncio.to_thread(_json, data)
    if not isinstance(value, dict):
        raise Refusal(400, "the request's body is not a JSON object")
    return value


def _json(data: bytes) -> Any:
    try:
        return json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        pass
    # Raised outside the handler: json's error holds the text.
    raise Refusal(400, "the request's body is not JSON")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)  # NaN and the infinities, which JSON does not have


def supported(
    params: Mapping[str, Any], known: Collection[str], *, drop: bool
) -> tuple[dict[str, Any], list[str]]:
    """The parameters whose names are `known`, and the names of those left out. A None means "not given".

    Args:
        params: As the caller sent them.
        known: What the published schema has.
        drop: Whether to leave the others out; otherwise they are refused.

    Raises:
        Refusal: 400, which names all that are not known.
    """
    given = {name: value for name, value in params.items() if value is not None}
    unknown = [name for name in given if name not in known]
    if unknown and not drop:
        raise Refusal(
            400,
            f"unsupported: {listed(unknown)} (not in Prem's published schema; "
            "prem proxy --drop-unsupported leaves out what is not)",
            code="unsupported_parameter",
            param=unknown[0][:MAX_NAME],
        )
    return {name: value for name, value in given.items() if name in known}, unknown


def listed(names: Collection[str]) -> str:
    """Names for a message or a header: the first `MAX_NAMES`, shortened, in printable ASCII."""
    shown = [quote(name[:MAX_NAME], safe="[]", errors="replace") for name in list(names)[:MAX_NAMES]]
    return ", ".join([*shown, "..."] if len(names) > MAX_NAMES else shown)
