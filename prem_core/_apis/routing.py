"""Which API answers a request: by its route, and by its headers where two APIs share one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, cast, get_args

from prem_core._apis.base import Api, ApiError, Family, Route
from prem_core._apis.messages import MessagesApi
from prem_core._apis.openai.audio import Audio
from prem_core._apis.openai.chat import ChatCompletions
from prem_core._apis.openai.completions import Completions
from prem_core._apis.openai.models import Models
from prem_core._apis.responses.api import Responses
from prem_core._apis.responses.store import ResponseStore
from prem_core._errors import ConfigurationError

#: Which APIs are served.
Compat = Literal["openai", "anthropic", "both"]

#: The header that only Anthropic's clients send.
_ANTHROPIC_HEADER: Final = "anthropic-version"

_PREFIX: Final = re.compile(r"/(?:(?P<family>openai|anthropic)/)?v1(?P<path>/.*)", re.DOTALL)


def all_apis(*, store_responses: bool = False) -> list[Api]:
    """Every API. Where two have the same route, the first one answers it.

    Args:
        store_responses: Keep the responses of the Responses API in memory.
    """
    store = ResponseStore() if store_responses else None
    return [ChatCompletions(), Responses(store), Completions(), Models(), Audio(), MessagesApi()]


@dataclass(frozen=True, slots=True)
class Match:
    """The API and the route of a request.

    Attributes:
        api: The API.
        route: Its route.
        path: The request's path up to the first name in the route, for a log.
        path_params: The values of the names in the route.
    """

    api: Api
    route: Route
    path: str
    path_params: Mapping[str, str] = field(repr=False)


class Apis:
    """The APIs that one proxy or transport serves.

    Args:
        compat: Which of them: under ``/v1``, and under ``/openai/v1`` and ``/anthropic/v1``.
        apis: All APIs.

    Raises:
        ConfigurationError: `compat` is not one of the three.
    """

    def __init__(self, compat: Compat = "both", apis: Iterable[Api] | None = None) -> None:
        if compat not in get_args(Compat):
            raise ConfigurationError(f"compat must be openai, anthropic or both, not {compat!r}")
        made = [api for api in (all_apis() if apis is None else apis) if compat in ("both", api.family)]
        patterns = [(api, route, _pattern(route.path)) for api in made for route in api.routes]
        #: For each kind of client all routes, those of its own API first.
        self._patterns = {
            family: sorted(patterns, key=lambda each: each[0].family != family) for family in get_args(Family)
        }

    @property
    def routes(self) -> list[str]:
        """Every route with its method, such as ``GET /v1/models``."""
        patterns = self._patterns["openai"]
        return list(dict.fromkeys(f"{route.method} /v1{route.path}" for _, route, _ in patterns))

    def find(self, method: str, path: str, headers: Mapping[str, str]) -> Match:
        """The API and the route of a request.

        Args:
            method: The HTTP method.
            path: The path, decoded.
            headers: The headers, by lower-case name.

        Raises:
            ApiError: 404 or 405, there is none.
        """
        family, below = _split(path)
        methods: list[str] = []
        for api, route, pattern in self._patterns[family or _family_of(headers)]:
            if family in (None, api.family) and (values := pattern.fullmatch(below)):
                if route.method == method:
                    return Match(api, route, f"/v1{route.path}", values.groupdict())
                methods.append(route.method)
        served = f"the routes are {', '.join(self.routes)}"
        if methods:
            raise ApiError(
                405,
                f"the route does not accept this method; {served}",
                headers={"allow": ", ".join(dict.fromkeys(methods))},
            )
        raise ApiError(404, f"no such route; {served}")

    def error_body(self, error: ApiError, path: str, headers: Mapping[str, str]) -> bytes:
        """The body of an error for a request that matches no route."""
        api, *_ = self._patterns[_split(path)[0] or _family_of(headers)][0]
        return api.error_body(error)


def _split(path: str) -> tuple[Family | None, str]:
    """The kind of client that the path names, and the path below the version; empty for another path."""
    found = _PREFIX.fullmatch(path)
    return (cast("Family | None", found["family"]), found["path"]) if found else (None, "")


def _family_of(headers: Mapping[str, str]) -> Family:
    return "anthropic" if _ANTHROPIC_HEADER in headers else "openai"


def _pattern(path: str) -> re.Pattern[str]:
    """A route's path as a pattern. Its last name matches slashes too: the names of models have them."""
    parts = re.split(r"\{(\w+)\}", path)
    pattern = ""
    for position, part in enumerate(parts):
        if position % 2 == 0:
            pattern += re.escape(part)
        else:
            last = position == len(parts) - 2 and not parts[-1]
            pattern += f"(?P<{part}>{'.+' if last else '[^/]+'})"
    return re.compile(pattern, re.DOTALL)
