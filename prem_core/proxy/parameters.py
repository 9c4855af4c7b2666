"""The parameters of a request: a JSON object, filtered by the names that Prem's API has."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from prem_core._protocol.flow import OFFLOAD_BYTES
from prem_core._serving.request import MAX_JSON_VALUES, RequestBody, has_too_many_values
from prem_core.proxy.errors import MAX_NAME_LENGTH, ErrorResponse, quote_names


async def read_json(body: RequestBody) -> dict[str, Any]:
    """The JSON object in the body.

    Raises:
        ErrorResponse: 415 or 400, the body is not one; 413, it has too many values.
        BodyTooLarge: The body is over the limit.
        Overloaded: The server has no memory for the body.
        ClientDisconnect: The client disconnected.
    """
    if body.content_type.partition(";")[0].strip().lower() != "application/json":
        raise ErrorResponse(415, "the request needs the header Content-Type: application/json")
    data = await body.read()
    value = _parse(data) if len(data) < OFFLOAD_BYTES else await asyncio.to_thread(_parse, data)
    if not isinstance(value, dict):
        raise ErrorResponse(400, "the request body must be a JSON object")
    return value


def _parse(data: bytes) -> Any:
    if has_too_many_values(data):
        raise ErrorResponse(
            413, f"the request has more than {MAX_JSON_VALUES:,} JSON values", code="request_too_large"
        )
    try:
        return json.loads(data, parse_constant=_reject_constant)
    except (ValueError, RecursionError):
        pass
    # Raised outside the handler: the error of `json` holds the text.
    raise ErrorResponse(400, "the request body is not valid JSON")


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(name)  # Python reads NaN and Infinity; JSON has neither


def split_parameters(
    params: Mapping[str, Any], known: Collection[str], *, drop: bool
) -> tuple[dict[str, Any], list[str]]:
    """The parameters with a known name, and the names of those that were dropped. None counts as not given.

    Args:
        params: The parameters of the request.
        known: The names that Prem's API has.
        drop: Whether to drop other parameters instead of rejecting them.

    Raises:
        ErrorResponse: 400, naming every unknown parameter.
    """
    given = {name: value for name, value in params.items() if value is not None}
    unknown = [name for name in given if name not in known]
    if unknown and not drop:
        raise ErrorResponse(
            400,
            f"Prem's API does not have these parameters: {quote_names(unknown)}. Remove them, or start the proxy with "
            "--drop-unsupported",
            code="unsupported_parameter",
            param=unknown[0][:MAX_NAME_LENGTH],
        )
    return {name: value for name, value in given.items() if name in known}, unknown
