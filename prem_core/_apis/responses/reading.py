"""Read values of a request, with errors that name the parameter and never the value."""

from __future__ import annotations

from typing import Any

from prem_core._apis.base import MAX_NAME_LENGTH, ApiError, quote_names


def invalid(param: str, why: str, *, code: str | None = None) -> ApiError:
    """A 400 for `param`."""
    return ApiError(400, f"{param}: {why}", code=code, param=param)


def unsupported(param: str, why: str) -> ApiError:
    """A 400 for something that OpenAI's API has and Prem's does not."""
    return invalid(param, why, code="unsupported_parameter")


def read_object(value: Any, param: str) -> dict[str, Any]:
    """`value`, which must be a JSON object."""
    if not isinstance(value, dict):
        raise invalid(param, "must be a JSON object")
    return value


def read_list(value: Any, param: str) -> list[Any]:
    """`value`, which must be a list."""
    if not isinstance(value, list):
        raise invalid(param, "must be a list")
    return value


def read_text(value: Any, param: str) -> str:
    """`value`, which must be a string."""
    if not isinstance(value, str):
        raise invalid(param, "must be a string")
    return value


def name_of(value: Any) -> str:
    """A type or a name from the request, for an error message: short, in printable ASCII."""
    return quote_names([value[:MAX_NAME_LENGTH]]) if isinstance(value, str) else f"a {type(value).__name__}"
