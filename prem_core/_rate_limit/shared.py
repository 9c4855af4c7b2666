"""`SharedLimits`: one organisation's limits for all of its processes, kept in Redis or Valkey."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, TypedDict, Unpack, get_args
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from prem_core import _config
from prem_core._errors import ConfigurationError
from prem_core._protocol.steps import Release
from prem_core._rate_limit.admission import Stats, Waiter
from prem_core._rate_limit.permits import Limits
from prem_core._rate_limit.store import LimitsStore, StoreSettings

OnUnreachable = Literal["wait", "local", "error"]


class SharedLimitsOptions(TypedDict, total=False):
    """What `SharedLimits` counts."""

    name: str
    """The organisation's name: letters, digits, ``.``, ``_`` and ``-``. Processes with the same store and name share
    the limits. It is readable in the store."""
    max_concurrency: int | None
    """Requests that all processes may have open at once. Default: 5, as the BASE tier allows."""
    requests_per_second: float | None
    """Requests that all processes may start per second, in the long run. None, the default, for no limit except the
    service's, which is learned from its answers."""
    burst: float | None
    """Requests that may start at once after a pause. Default: ``max(1, requests_per_second)``. The BASE tier allows 5;
    4 leaves room for requests that start late."""
    max_streams: int | None
    """Streams that all processes may have open at once. None, the default, to learn it."""
    tokens_per_minute: float | None
    """Tokens of prompts and answers in a minute. None, the default, for no limit."""
    audio_seconds_per_minute: float | None
    """Seconds of recordings in a minute. None, the default, for no limit."""
    lease: float
    """Seconds after which the permits of a process that was killed are granted to others. Default: 15."""
    on_unreachable: OnUnreachable
    """While the store cannot be reached: "wait" (the default) starts no request, "local" applies `max_concurrency` and
    `requests_per_second` in each process, "error" raises `APIConnectionError`."""
    allow_insecure: bool
    """Allow ``redis://`` to another machine, where its password and the counts can be read and changed on the way."""


_DEFAULTS: Final[Mapping[str, Any]] = {
    **dict.fromkeys(SharedLimitsOptions.__annotations__),
    "max_concurrency": _config.DEFAULT_MAX_CONCURRENCY,
    "lease": 15.0,
    "on_unreachable": "wait",
    "allow_insecure": False,
}

_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,100}")


class SharedLimits(Limits):
    """`Limits` for all processes of an organisation, on any number of machines.

    Requests, tokens and seconds of audio are counted in Redis or Valkey, with its clock. Pass it as ``limits=``, or set
    PREM_LIMITS_URL for all clients and models that are given no limits of their own::

        limits = SharedLimits("redis://localhost", name="acme", requests_per_second=1, burst=4)

    Permits go round between the processes, one to each, so that a web server does not wait behind a batch. Tokens are
    reserved when a request starts, by an estimate, and corrected by the usage in its answer. A 429 pauses all
    processes. What the store holds: counts, times and random ids; no API key, prompt or answer.

    A background thread exchanges the permits. It is shared by all objects with equal settings in a process. A pickle
    does not contain the password of `url`: where it is unpickled, PREM_LIMITS_URL supplies it.

    Needs the extra ``redis``: ``pip install "prem-encrypted[redis]"``.

    Args:
        url: ``redis://``, ``rediss://`` (TLS) or ``unix://``. Options may be in its query: ``?name=acme&burst=4``.
            Default: PREM_LIMITS_URL.
        **options: See `SharedLimitsOptions`. Only `name` is required.

    Raises:
        ConfigurationError: A value is invalid; the message names it. Or the extra is not installed.
    """

    def __init__(self, url: str | None = None, **options: Unpack[SharedLimitsOptions]) -> None:
        unknown = options.keys() - _DEFAULTS.keys()
        if unknown:
            raise TypeError(f"SharedLimits() got an unexpected keyword argument {min(unknown)!r}")
        source = "the url of SharedLimits" if url is not None else "PREM_LIMITS_URL"
        url = url if url is not None else _config.from_environment("limits")
        if url is None:
            raise ConfigurationError("SharedLimits needs a url, or the variable PREM_LIMITS_URL")
        self._url, queried = _split(url, source)
        self._options: dict[str, Any] = {**_DEFAULTS, **queried, **options}
        self._settings = (
            self._options["max_concurrency"],
            self._options["requests_per_second"],
            self._options["max_streams"],
        )
        _check(self._options)
        _check_url(self._url, source, allow_insecure=self._options["allow_insecure"])
        self._store = _store_of(self._url, self._options)

    @property
    def name(self) -> str:
        """The organisation's name."""
        name: str = self._options["name"]
        return name

    @property
    def stats(self) -> Stats:
        """The counts of this process."""
        return self._store.stats

    def __repr__(self) -> str:
        given = {name: value for name, value in self._options.items() if value != _DEFAULTS[name]}
        shown = "".join(f", {name}={value!r}" for name, value in given.items())
        return f"SharedLimits({_without_password(self._url)!r}{shown})"

    def __eq__(self, other: object) -> bool:
        # Equal limits are one holder, so that models with equal limits share a client.
        return isinstance(other, SharedLimits) and self._store is other._store

    def __hash__(self) -> int:
        return id(self._store)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (_without_password(self._url), self._options)

    def _request(self, waiter: Waiter) -> None:
        self._store.request(waiter)

    def _wake_when_granted(self, waiter: Waiter, wake: Callable[[], object]) -> None:
        self._store.wake_when_granted(waiter, wake)

    def _release(self, waiter: Waiter, outcome: Release) -> None:
        self._store.release(waiter, outcome)


def _unpickled(url: str, options: dict[str, Any]) -> SharedLimits:
    own = _config.from_environment("limits")
    known = [_split(own, "PREM_LIMITS_URL")[0]] if own is not None else []
    known += [store_url for store_url, *_ in list(_stores)]
    return SharedLimits(next((each for each in known if _without_password(each) == url), url), **options)


def _split(url: str, source: str) -> tuple[str, dict[str, Any]]:
    """The URL without the options in its query, and these options."""
    try:
        parts = urlsplit(url)
        pairs = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError:
        raise ConfigurationError(f"{source} is not a URL") from None
    options: dict[str, Any] = {}
    for name, value in pairs:
        if name not in _DEFAULTS:
            continue
        if name in ("name", "on_unreachable"):
            options[name] = value
            continue
        try:
            options[name] = (
                {"true": True, "false": False}[value.lower()]
                if name == "allow_insecure"
                else int(value)
                if name in ("max_concurrency", "max_streams")
                else float(value)
            )
        except (ValueError, KeyError):
            raise ConfigurationError(f"{source} has an invalid value for {name}: {value!r}") from None
    others = urlencode([pair for pair in pairs if pair[0] not in _DEFAULTS])
    return urlunsplit(parts._replace(query=others)), options


def _check(options: dict[str, Any]) -> None:
    if not isinstance(options["name"], str) or not _NAME.fullmatch(options["name"]):
        raise ConfigurationError(
            "name must be the organisation's: 1 to 100 letters, digits, '.', '_' and '-', "
            f"not {options['name']!r}"
        )
    for name in ("max_concurrency", "max_streams"):
        if options[name] is not None:
            _config.positive(name, _config.not_negative(name, options[name]))
    for name in ("requests_per_second", "burst", "tokens_per_minute", "audio_seconds_per_minute"):
        if options[name] is not None:
            _config.positive(name, options[name])
    if options["burst"] is not None and not options["burst"] >= 1:
        raise ConfigurationError(f"burst must be at least 1, not {options['burst']!r}")
    _config.positive("lease", options["lease"])
    if options["on_unreachable"] not in get_args(OnUnreachable):
        raise ConfigurationError(
            f'on_unreachable must be "wait", "local" or "error", not {options["on_unreachable"]!r}'
        )
    if not isinstance(options["allow_insecure"], bool):
        raise ConfigurationError(f"allow_insecure must be True or False, not {options['allow_insecure']!r}")


def _check_url(url: str, source: str, *, allow_insecure: bool) -> None:
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname or "", parts.port
    except ValueError:
        raise ConfigurationError(f"{source} is not a URL") from None
    if parts.scheme not in ("redis", "rediss", "unix") or not (host or parts.scheme == "unix"):
        raise ConfigurationError(f"{source} must be a redis://, rediss:// or unix:// URL")
    if parts.scheme == "redis" and not _config.is_loopback(host) and not allow_insecure:
        raise ConfigurationError(
            f"{source} is plain redis:// to another machine, where its password and the counts could be read and "
            "changed on the way; use rediss://, or pass allow_insecure=True if you accept that"
        )


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    name = user.partition(":")[0]
    query = urlencode([pair for pair in parse_qsl(parts.query) if "password" not in pair[0]])
    return urlunsplit(parts._replace(netloc=f"{name}@{host}" if name else host, query=query))


_stores: dict[tuple[Any, ...], LimitsStore] = {}
_stores_lock = threading.RLock()


def _store_of(url: str, options: dict[str, Any]) -> LimitsStore:
    """The connection for these settings: one in a process, so that it is one holder with one thread."""
    key = (url, *(options[name] for name in sorted(options)))
    with _stores_lock:
        if key not in _stores:
            rate = options["requests_per_second"]
            config = {
                "slots": options["max_concurrency"],
                "streams": options["max_streams"],
                "rate": rate,
                "burst": options["burst"] or max(1.0, rate or 0.0),
                "tokens": options["tokens_per_minute"],
                "audio": options["audio_seconds_per_minute"],
                "lease": options["lease"],
            }
            _stores[key] = LimitsStore(
                StoreSettings(
                    url=url,
                    shown_url=_without_password(url),
                    name=options["name"],
                    config={name: value for name, value in config.items() if value is not None},
                    on_unreachable=options["on_unreachable"],
                )
            )
        return _stores[key]


def _renew_after_fork() -> None:
    global _stores_lock
    _stores_lock = threading.RLock()
    for store in _stores.values():
        store.reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_after_fork)
