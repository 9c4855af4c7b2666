"""Share clients and limits between all models, parsers and loaders of this process that have equal settings.

Frameworks copy models often: LangChain's `configurable_fields` builds one for each call, agents copy and unpickle
them, and web handlers construct one for each request. Without this cache each copy would open its own connections,
fetch the enclave's key again and count its requests separately.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from typing import Any, Final, TypeVar

import httpx
from pydantic import SecretStr

from prem_core import _config
from prem_core._client.client import AsyncPremClient, PremClient
from prem_core._crypto.redaction import without_traceback
from prem_core._protocol.attestation.settings import hashable
from prem_core._rate_limit.permits import Limits, default_limits

#: How many recently used clients stay open when no model refers to them. A model that is constructed for each call then
#: reuses an open client. An idle client keeps a few sockets and its API key.
MAX_IDLE_CLIENTS: Final = 8

#: Options that `_service` resolves.
_SERVICE: Final = frozenset({"api_key", "gateway_url", "enclave_url"})

C = TypeVar("C", PremClient, AsyncPremClient)


class ClientCache:
    """Returns the client or the limits for given settings, and creates them if there are none.

    References to entries are weak: a client is closed when neither a model nor the list of recently used clients refers
    to it.
    """

    def __init__(self) -> None:
        self._clients: weakref.WeakValueDictionary[Any, Any] = weakref.WeakValueDictionary()
        self._limits: weakref.WeakValueDictionary[Any, Limits] = weakref.WeakValueDictionary()
        self._recent: OrderedDict[PremClient | AsyncPremClient, None] = OrderedDict()
        self.renew_lock()

    def renew_lock(self) -> None:
        """Replace the lock, because after a fork, a lock that another thread held is never released."""
        # Reentrant, because the garbage collector may run a finalizer that uses a model.
        self._lock = threading.RLock()

    @without_traceback
    def client(self, kind: type[C], options: dict[str, Any]) -> C:
        """The client of class `kind` with the arguments `options`, in which `api_key` is a `SecretStr` or None.

        Raises:
            ConfigurationError: An option is invalid; the message names it.
        """
        service = _service(options)
        key = (kind, service, *(_hashable(options[name]) for name in sorted(options.keys() - _SERVICE)))
        with self._lock:
            client: C | None = self._clients.get(key)
            if client is None:
                client = self._clients[key] = kind(
                    **{
                        **options,
                        "api_key": service[0].get_secret_value(),
                        "limits": self._limits_of(service, options),
                        "max_concurrency": _config.DEFAULT_MAX_CONCURRENCY,
                        "requests_per_second": None,
                    }
                )
            self._recent[client] = None
            self._recent.move_to_end(client)
            if len(self._recent) > MAX_IDLE_CLIENTS:
                self._recent.popitem(last=False)
        return client

    @without_traceback
    def limits(self, options: dict[str, Any]) -> Limits:
        """The limits of the clients for `options`.

        Raises:
            ConfigurationError: An option is invalid; the message names it.
        """
        with self._lock:
            return self._limits_of(_service(options), options)

    def clear(self) -> None:
        """Remove all clients and limits from the cache. A model that already has a client keeps it."""
        with self._lock:
            self._clients.clear()
            self._limits.clear()
            self._recent.clear()

    def _limits_of(self, service: tuple[SecretStr, str, str], options: dict[str, Any]) -> Limits:
        if options["limits"] is not None:
            given: Limits = options["limits"]
            return given
        # The service limits per organisation, so limits are keyed by API key and gateway only.
        shared = _config.from_environment("limits")
        key = (*service[:2], options["max_concurrency"], options["requests_per_second"], shared)
        limits = self._limits.get(key)
        if limits is None:
            limits = self._limits[key] = default_limits(
                options["max_concurrency"], options["requests_per_second"]
            )
        return limits


def _service(options: dict[str, Any]) -> tuple[SecretStr, str, str]:
    """The API key and the URLs of gateway and enclave for `options`.

    They are resolved now, because the environment may have changed since the last model was made.
    """
    given, insecure = options["api_key"], options["allow_insecure"]
    return (
        SecretStr(_config.resolve_api_key(None if given is None else given.get_secret_value())),
        _config.resolve_url("gateway_url", options["gateway_url"], allow_insecure=insecure),
        _config.resolve_url("enclave_url", options["enclave_url"], allow_insecure=insecure),
    )


def _hashable(value: Any) -> Any:
    return tuple(value.as_dict().items()) if isinstance(value, httpx.Timeout) else hashable(value)


CLIENTS: Final = ClientCache()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=CLIENTS.renew_lock)
