"""Exchange permits with the store of `SharedLimits`, on one background thread.

Callers queue operations and return. The thread runs them, calls the script `shared.lua` with the state of this process,
and wakes the waiters that it grants. Between calls it waits for operations, for a message that another process's call
granted something, and for the time that the script named. Nothing here takes a lock that a finalizer could wait for.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import heapq
import itertools
import json
import logging
import math
import os
import select
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final, Literal

from prem_core._errors import APIConnectionError, ConfigurationError
from prem_core._protocol.steps import Release
from prem_core._rate_limit.admission import AdmissionQueue, Stats, Waiter

if TYPE_CHECKING:
    import redis

#: How many waiting requests the store gets to see of each process. It grants these; the others follow.
OFFERED: Final = 16

#: Seconds after which a state that no process uses is deleted.
STATE_TTL: Final = 600

#: Seconds to wait for a connection, and for a response of the store.
CONNECT_TIMEOUT: Final = 2.0
RESPONSE_TIMEOUT: Final = 5.0

#: The first and the longest wait before the store is asked again after a failure, in seconds.
FIRST_RECONNECT: Final = 0.1
LONGEST_RECONNECT: Final = 1.0

#: Seconds that the end of the process waits for the last release.
EXIT_TIMEOUT: Final = 2.0

#: Seconds between calls if no socket for messages can be waited on.
POLL: Final = 0.05

_log = logging.getLogger("prem_core.limits")


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """The settings of a store.

    Attributes:
        url: The store's URL, with its password.
        shown_url: The URL for logs and errors, without it.
        name: The organisation's name.
        config: What the script gets as `config`.
        on_unreachable: See `SharedLimitsOptions`.
    """

    url: str = field(repr=False)
    shown_url: str
    name: str
    config: Mapping[str, Any]
    on_unreachable: Literal["wait", "local", "error"]


class LimitsStore:
    """The permits of this process.

    Args:
        settings: See `StoreSettings`.

    Raises:
        ConfigurationError: redis-py is not installed.
    """

    def __init__(self, settings: StoreSettings) -> None:
        try:
            import redis
        except ImportError:
            raise ConfigurationError(
                'SharedLimits needs redis-py: pip install "prem-encrypted[redis]"'
            ) from None
        self._redis = redis
        self._settings = settings
        self._keys = [f"prem:{{{settings.name}}}:{part}" for part in ("limits", "leases", "line")]
        self._script_text = files("prem_core._rate_limit").joinpath("shared.lua").read_text("utf-8")
        self._wakeup: tuple[socket.socket, socket.socket] | None = None
        self.reset()

    def reset(self) -> None:
        """Start anew, as another holder: after a fork, threads, connections and permits are the parent's."""
        self._holder = os.urandom(8).hex()
        self._operations: deque[Callable[[], object]] = deque()
        self._signalled = False
        self._running = False
        self._starting = threading.Lock()
        self._left: threading.Lock | None = None
        if self._wakeup is not None:
            for end in self._wakeup:
                end.close()
        self._wakeup = None
        # The rest is used by the thread only.
        self._positions = itertools.count()
        self._numbers = itertools.count()
        self._waiting: set[Waiter] = set()
        self._heap: list[tuple[int, int, Waiter]] = []
        self._offered: dict[int, Waiter] = {}
        self._number_of: dict[Waiter, int] = {}
        self._open: dict[Waiter, float] = {}  # and the tokens that are reserved for it
        self._open_streams = 0
        self._done: list[dict[str, Any]] = []
        self._requests = self._retries = self._rate_limited = 0
        self._last_exchange = -math.inf
        self._changed = False
        self._due = math.inf
        self._client: redis.Redis | None = None
        self._messages: Any = None
        self._message_socket: socket.socket | None = None
        self._failures = 0
        self._local: AdmissionQueue | None = None

    @property
    def stats(self) -> Stats:
        """The counts of this process."""
        return Stats(self._requests, self._retries, self._rate_limited, len(self._open), len(self._waiting))

    # --- operations, on any thread --------------------------------------------------------------------

    def request(self, waiter: Waiter) -> None:
        """See `Limits._request`."""
        self._do(partial(self._enqueue, waiter))

    def wake_when_granted(self, waiter: Waiter, wake: Callable[[], object]) -> None:
        """See `Limits._wake_when_granted`."""
        self._do(partial(self._set_wake, waiter, wake))

    def release(self, waiter: Waiter, outcome: Release) -> None:
        """See `Permit.release`."""
        self._do(partial(self._remove, waiter, outcome))

    def leave(self) -> None:
        """Return all permits, at the end of the process."""
        if not self._running or self._left is not None:
            return
        self._left = left = threading.Lock()
        left.acquire()
        self._do(_nothing)
        left.acquire(timeout=EXIT_TIMEOUT)

    def _do(self, operation: Callable[[], object]) -> None:
        self._operations.append(operation)
        if not self._running:
            self._start()
        if not self._signalled and self._wakeup is not None:
            self._signalled = True
            with contextlib.suppress(OSError):  # full: the thread is awake. Or the process ends.
                self._wakeup[1].send(b"\0")

    def _start(self) -> None:
        if not self._starting.acquire(
            blocking=False
        ):  # another thread starts it, or the caller is a finalizer in here
            return
        if self._running:
            return
        self._wakeup = socket.socketpair()
        for end in self._wakeup:
            end.setblocking(False)
        self._running = True
        try:
            # Not threading.Thread: a finalizer may start it, and must not wait for the thread.
            _thread.start_new_thread(self._run, (self._wakeup[0],))
        except RuntimeError:  # the interpreter is shutting down, or no thread can be created
            self._running = False
            self._starting.release()
            return
        atexit.register(self.leave)
        if "multiprocessing.util" in sys.modules:  # its children skip atexit
            sys.modules["multiprocessing.util"].Finalize(None, self.leave, exitpriority=0)

    # --- the thread -----------------------------------------------------------------------------------

    def _run(self, wakeup: socket.socket) -> None:
        while True:
            now = time.monotonic()
            while self._operations:
                self._operations.popleft()()
            if self._left is not None:
                self._finish(self._left)
                return
            try:
                if now >= self._due or (self._changed and (not self._failures or self._fails_at_once)):
                    self._exchange()
                self._grant_locally()
                self._wait(wakeup)
            except Exception as error:
                self._failed(error)

    @property
    def _fails_at_once(self) -> bool:
        return self._settings.on_unreachable == "error"

    def _wait(self, wakeup: socket.socket) -> None:
        """Wait for an operation, a message, or the time of the next call."""
        if not self._operations:
            sockets = [wakeup]
            if self._message_socket is not None:
                sockets.append(self._message_socket)
            now = time.monotonic()
            due = self._due
            if self._local is not None and (wait := self._local.wait(now)) is not None:
                due = min(due, now + wait)
            timeout = None if due == math.inf else max(0.0, due - now)
            readable, _, _ = select.select(sockets, [], [], timeout)
            if self._message_socket in readable:
                self._changed = True
                while self._messages.get_message() is not None:
                    pass
        self._signalled = False
        with contextlib.suppress(BlockingIOError):
            wakeup.recv(4096)

    def _exchange(self) -> None:
        """Call the script: report the state of this process, and take what it grants."""
        client = self._connected()
        self._offer()
        done, self._done = self._done, []
        ask = {
            "config": self._settings.config,
            "held": len(self._open),
            "streams": self._open_streams,
            "want": [
                (number, int(waiter.charge.stream), waiter.charge.tokens, waiter.charge.audio_seconds)
                for number, waiter in sorted(self._offered.items(), key=_position)
            ],
            "done": done,
            "known": time.monotonic() - self._last_exchange < STATE_TTL / 2,
            "ttl": STATE_TTL,
        }
        self._changed = False
        try:
            text: Any = self._script(keys=self._keys, args=[self._holder, json.dumps(ask)], client=client)
        except BaseException:
            # Reported again, but without refunds: the script may have run.
            self._done = [
                {name: o[name] for name in o if name not in ("used", "audio", "unused")} for o in done
            ]
            self._changed = True
            raise
        reply = json.loads(text)
        self._last_exchange = time.monotonic()
        self._reachable()
        for number, reserved in reply["granted"] or ():
            self._granted(number, reserved)
        now = time.monotonic()
        self._due = math.inf
        if self._open or self._waiting:
            self._due = now + self._settings.config["lease"] / 3
            if self._waiting and self._message_socket is None:
                self._due = min(self._due, now + POLL)
            if reply["wait"] >= 0 and self._waiting:
                self._due = min(self._due, now + max(reply["wait"], 0.001))

    def _connected(self) -> redis.Redis:
        if self._client is None:
            client = self._redis.Redis.from_url(
                self._settings.url,
                socket_timeout=RESPONSE_TIMEOUT,
                socket_connect_timeout=CONNECT_TIMEOUT,
                protocol=2,
                single_connection_client=True,
                retry=None,
            )
            self._script = client.register_script(self._script_text)
            self._messages = client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
            self._messages.subscribe(f"{self._keys[0]}:{self._holder}")
            # Subscribed before the first call, so that no message is missed.
            self._messages.get_message(timeout=RESPONSE_TIMEOUT)
            sock = getattr(self._messages.connection, "_sock", None)
            self._message_socket = sock if isinstance(sock, socket.socket) else None
            self._client = client
        return self._client

    def _disconnect(self) -> None:
        client, messages = self._client, self._messages
        self._client = self._messages = self._message_socket = None
        for each in (messages, client):
            if each is not None:
                with contextlib.suppress(self._redis.RedisError, OSError):
                    each.close()

    def _finish(self, left: threading.Lock) -> None:
        for waiter in [*self._waiting, *self._open]:
            self._remove(waiter, Release())
        try:
            if self._client is not None:
                self._exchange()
        except Exception:
            _log.debug("the permits were not returned; their lease ends by itself")
        finally:
            self._disconnect()
            self._left, self._running, self._starting = None, False, threading.Lock()
            left.release()

    # --- waiters --------------------------------------------------------------------------------------

    def _enqueue(self, waiter: Waiter) -> None:
        if waiter.position is None:
            waiter.position = next(self._positions)
        self._waiting.add(waiter)
        if self._local is not None:
            self._local.enqueue(waiter)
            return
        heapq.heappush(self._heap, (waiter.position, next(self._numbers), waiter))
        if len(self._offered) < OFFERED or waiter.is_retry:
            self._changed = True

    def _offer(self) -> None:
        # A retry is offered at once, because it keeps its place.
        while self._heap and (len(self._offered) < OFFERED or self._heap[0][-1].is_retry):
            waiter = heapq.heappop(self._heap)[-1]
            if waiter in self._waiting:
                number = self._number_of[waiter] = next(self._numbers)
                self._offered[number] = waiter

    def _set_wake(self, waiter: Waiter, wake: Callable[[], object]) -> None:
        waiter.wake = wake
        if waiter.granted or waiter.error is not None:
            self._wake(waiter)

    def _granted(self, number: int, reserved: float) -> None:
        waiter = self._offered.pop(number, None)
        if waiter is None:  # it stopped waiting meanwhile
            self._done.append({"unused": True, "reserved": reserved, "used": 0, "estimate": 0})
            self._changed = True
            return
        del self._number_of[waiter]
        self._start_request(waiter, reserved)

    def _start_request(self, waiter: Waiter, reserved: float) -> None:
        self._waiting.discard(waiter)
        self._open[waiter] = reserved
        self._open_streams += waiter.charge.stream
        self._requests += 1
        self._retries += waiter.is_retry
        waiter.granted, waiter.started = True, time.monotonic()
        if waiter.wake is not None:
            self._wake(waiter)

    def _wake(self, waiter: Waiter) -> None:
        wake, waiter.wake = waiter.wake, None
        if wake is not None:
            try:
                wake()
            except RuntimeError:  # its event loop is closed
                self._remove(waiter, Release())

    def _remove(self, waiter: Waiter, outcome: Release) -> None:
        waiter.wake = None
        self._rate_limited += outcome.rate_limited
        if self._local is not None:
            self._local.end(waiter, time.monotonic(), outcome)
        self._waiting.discard(waiter)
        number = self._number_of.pop(waiter, None)
        if number is not None:
            del self._offered[number]
            self._changed = True
        reserved = self._open.pop(waiter, None)
        if reserved is None:
            return
        self._open_streams -= waiter.charge.stream
        self._changed = True
        charge, config = waiter.charge, self._settings.config
        done: dict[str, Any] = {}
        if outcome.stream_refused:
            done["refused"] = True
        if outcome.pause is not None:
            done["pause"] = outcome.pause
        if outcome.spacing is not None:
            done["spacing"], done["age"] = outcome.spacing, time.monotonic() - waiter.started
        if "tokens" in config and charge.used_tokens is not None:
            done |= {"reserved": reserved, "used": charge.used_tokens, "estimate": charge.tokens}
        if "audio" in config and charge.used_audio_seconds is not None:
            done["audio"] = charge.used_audio_seconds - charge.audio_seconds
        if done:
            self._done.append(done)

    # --- failures -------------------------------------------------------------------------------------

    def _failed(self, error: Exception) -> None:
        """Act on an exception of the exchange: the store is unreachable, or a setting is wrong."""
        self._disconnect()
        if not self._open and not self._waiting:  # the next request connects again
            self._failures, self._local, self._due = 0, None, math.inf
            return
        self._changed = True
        known = self._redis.exceptions
        if not isinstance(
            error, (known.ConnectionError, known.TimeoutError, known.ReadOnlyError, OSError)
        ) or isinstance(error, (known.AuthenticationError, known.AuthorizationError)):
            self._failures, self._due = 0, math.inf
            self._fail_waiting(partial(self._rejected, type(error).__name__))
            return
        if not self._failures:
            _log.warning(
                "the store of the shared limits at %s is unreachable (%s)%s",
                self._settings.shown_url,
                error,
                {
                    "wait": "; requests wait until it is back",
                    "local": "; each process applies the limits by itself until it is back",
                    "error": "",
                }[self._settings.on_unreachable],
            )
        self._retry_later()
        if self._settings.on_unreachable == "error":
            self._fail_waiting(self._unreachable_error)
        elif self._settings.on_unreachable == "local" and self._local is None:
            config, now = self._settings.config, time.monotonic()
            self._local = AdmissionQueue(config.get("slots"), config.get("rate"), now, config.get("streams"))
            for waiter in self._open:
                self._local.adopt(waiter)
            for waiter in self._waiting:
                self._local.enqueue(waiter)
            self._heap, self._offered, self._number_of = [], {}, {}

    def _rejected(self, kind: str) -> ConfigurationError:
        # Without the exception's text: it may quote the URL.
        return ConfigurationError(
            f"the store of the shared limits at {self._settings.shown_url} rejected the request ({kind}); "
            "check its URL, password (PREM_LIMITS_URL) and version"
        )

    def _unreachable_error(self) -> APIConnectionError:
        error = APIConnectionError(
            f"the store of the shared limits at {self._settings.shown_url} is unreachable"
        )
        error.request_sent = False
        return error

    def _retry_later(self) -> None:
        wait = min(FIRST_RECONNECT * 2 ** min(self._failures, 10), LONGEST_RECONNECT)
        self._failures += 1
        self._due = time.monotonic() + wait if self._waiting or self._open else math.inf

    def _reachable(self) -> None:
        if self._failures:
            self._failures = 0
            _log.info("the store of the shared limits at %s is back", self._settings.shown_url)
        local, self._local = self._local, None
        if local is not None:
            for waiter in local.waiting:
                self._enqueue(waiter)
            self._changed = bool(self._waiting)

    def _grant_locally(self) -> None:
        if self._local is not None:
            for waiter in self._local.pop_ready(time.monotonic()):
                self._start_request(waiter, 0)

    def _fail_waiting(self, make: Callable[[], Exception]) -> None:
        for waiter in list(self._waiting):
            waiter.error = make()
            self._waiting.discard(waiter)
            self._wake(waiter)
        self._heap, self._offered, self._number_of = [], {}, {}


def _position(offered: tuple[int, Waiter]) -> int:
    return offered[1].position or 0


def _nothing() -> None:
    pass
