"""The parameters of a request that Prem's API does not have: adjusted, dropped or refused, by their meaning."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from prem_core._apis.base import MAX_NAME_LENGTH, Adjusted, ApiError, quote_names

#: OpenAI's names that Prem's API does not have and that change nothing in an answer. They are dropped and listed.
DROPPED: Final = frozenset({"prompt_cache_options", "user"})


def adjust(
    given: Mapping[str, Any], known: Collection[str], *, strict: bool, droppable: Collection[str] = DROPPED
) -> Adjusted:
    """The parameters that Prem's API has. None counts as not given.

    ``user`` becomes ``safety_identifier``. With ``parallel_tool_calls: false`` only the first tool call of the answer
    is passed on. Both are listed in `Adjusted.adjusted`.

    Args:
        given: The parameters of the request.
        known: The names that Prem's API has.
        strict: Refuse all others, also those without meaning.
        droppable: Names without meaning, which are dropped otherwise.

    Raises:
        ApiError: 400, naming every refused parameter.
    """
    params = {name: value for name, value in given.items() if value is not None}
    made = Adjusted(params={})
    if not strict and isinstance(params.get("user"), str) and "safety_identifier" in known - params.keys():
        params["safety_identifier"] = params.pop("user")
        made.adjusted.append("user")
    parallel = params.get("parallel_tool_calls")
    if isinstance(parallel, bool) and (parallel or not strict):
        # True is what the service does anyway.
        del params["parallel_tool_calls"]
        if not parallel:
            made.first_call_only = True
            made.adjusted.append("parallel_tool_calls")
    unknown = [name for name in params if name not in known]
    made.dropped = [] if strict else [name for name in unknown if name in droppable]
    refused = [name for name in unknown if name not in made.dropped]
    if refused:
        raise ApiError(
            400,
            f"Prem's API does not have these parameters: {quote_names(refused)}. Remove them from the request",
            code="unsupported_parameter",
            param=refused[0][:MAX_NAME_LENGTH],
        )
    made.params = {name: value for name, value in params.items() if name in known}
    return made
