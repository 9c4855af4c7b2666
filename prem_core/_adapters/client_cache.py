"""The clients of a model, made when they are first needed."""

from __future__ import annotations

import threading
from typing import Any

from prem_core._client.client import AsyncPremClient, PremClient
from prem_core._config import (
    DEFAULT_MAX_CONCURRENCY,
)
from prem_core._crypto.redaction import without_traceback
from prem_core._rate_limit.limits import Limits


class Clients:
    """The two clients of one model, parser or loader. Each is made at the first call, and anew when the settings have
    changed.

    Both have the same limits. Copies and pickles hold none: connections, locks and counts belong to their process and
    their model.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sync: tuple[dict[str, Any], PremClient] | None = None
        self._async: tuple[dict[str, Any], AsyncPremClient] | None = None
        self._limits: Limits | None = None

    @without_traceback
    def sync(self, options: dict[str, Any]) -> PremClient:
        """A client made with these arguments."""
        with self._lock:
            if self._sync is None or self._sync[0] != options:
                self._sync = (options, PremClient(**self._limited(options)))
            return self._sync[1]

    @without_traceback
    def asynchronous(self, options: dict[str, Any]) -> AsyncPremClient:
        """An asynchronous client made with these arguments."""
        with self._lock:
            if self._async is None or self._async[0] != options:
                self._async = (options, AsyncPremClient(**self._limited(options)))
            return self._async[1]

    def limits(self, options: dict[str, Any]) -> Limits:
        """The limits of clients made with these arguments."""
        with self._lock:
            limits: Limits = self._limited(options)["limits"]
            return limits

    def _limited(self, options: dict[str, Any]) -> dict[str, Any]:
        options = dict(options)
        figures = (
            options.pop("max_concurrency", DEFAULT_MAX_CONCURRENCY),
            options.pop("requests_per_second", None),
        )
        if options.get("limits") is None:
            if self._limits is None or figures != (
                self._limits.max_concurrency,
                self._limits.requests_per_second,
            ):
                self._limits = Limits(*figures)
            options["limits"] = self._limits
        return options

    def __reduce__(self) -> tuple[type[Clients], tuple[()]]:
        return type(self), ()
