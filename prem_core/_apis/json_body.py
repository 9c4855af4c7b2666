"""Read the JSON object in a request's body."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from prem_core._apis.base import JSON, ApiError
from prem_core._serving.json_values import MAX_JSON_VALUES, has_too_many_values


def check_content_type(content_type: str) -> None:
    """Check that a body is JSON.

    Raises:
        ApiError: 415, it is not.
    """
    if content_type.partition(";")[0].strip().lower() != JSON:
        raise ApiError(415, "the request needs the header Content-Type: application/json")


def parse_object(data: bytes) -> dict[str, Any]:
    """The JSON object in `data`.

    Raises:
        ApiError: 400, there is none; 413, it has too many values.
    """
    if has_too_many_values(data):
        raise ApiError(
            413, f"the request has more than {MAX_JSON_VALUES:,} JSON values", code="request_too_large"
        )
    value: Any = None
    try:
        value = json.loads(data, parse_constant=_reject_constant)
    except (ValueError, RecursionError):
        why = "is not valid JSON"
    else:
        if isinstance(value, dict):
            return value
        why = "must be a JSON object"
    # Raised outside the handler: the error of `json` holds the text.
    raise ApiError(400, f"the request body {why}")


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(name)  # Python reads NaN and Infinity; JSON has neither
