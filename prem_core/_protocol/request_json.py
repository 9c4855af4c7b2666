"""Write request parameters as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from prem_core._errors import InvalidParameterError


def with_extra_body(checked: Mapping[str, Any], extra_body: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """`checked`, with `extra_body` merged over it.

    Raises:
        InvalidParameterError: `extra_body` is not a mapping with string keys.
    """
    if extra_body is None:
        return checked
    if not isinstance(extra_body, Mapping) or not all(isinstance(name, str) for name in extra_body):
        raise InvalidParameterError("extra_body must be a mapping with string keys", param="extra_body")
    return {**checked, **extra_body}


def to_json(params: Mapping[str, Any]) -> bytes:
    """`params` as UTF-8 JSON.

    Raises:
        InvalidParameterError: A value cannot be written as JSON. The message names the parameter.
    """
    try:
        # ensure_ascii=True would make non-ASCII text up to six times as long.
        return json.dumps(params, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        name = _unwritable(params)
        message = f"{name} cannot be written as JSON: {_reason(error)}"
    # Raised outside the handler, because a UnicodeEncodeError contains the text that it could not encode.
    raise InvalidParameterError(message, param=name)


def _unwritable(params: Mapping[str, Any]) -> str:
    for name, value in params.items():
        try:
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError):
            return name
    return "the request"


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeEncodeError):
        # The error's own message would quote the text around the surrogate.
        return "the text contains a lone surrogate"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, ValueError):
        return "it contains NaN, infinity or a circular reference"
    return "it contains a value that JSON cannot represent"
