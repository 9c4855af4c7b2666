"""Perform a flow's steps with httpx, synchronously."""

from __future__ import annotations

import threading
import time
from collections.abc import (
    Callable,
    Iterator,
)
from typing import Any

import httpx

from prem_core import _errors as errors
from prem_core._crypto.xwing import PublicKey
from prem_core._protocol.flow import (
    Acquire,
    FetchKey,
    Head,
    Read,
    ReadWithin,
    Release,
    Send,
    Sleep,
    Steps,
    Work,
)
from prem_core._protocol.retry import TOTAL_TIMEOUT_MESSAGE
from prem_core._rate_limit.limits import Limits, Turn
from prem_core._transport.http import (
    _FOREIGN,
    LINGER,
    MAX_DRAINED,
    Endpoints,
    R,
    _end,
    _end_by,
    _head,
    _is_coded,
    _let_go,
    _read_within,
    _shut_down,
    translate,
)


class _Watchdog:
    """Breaks a reply's connection off when its call has taken too long: a read that blocks is not woken otherwise.

    Args:
        deadline: On the clock of `time.monotonic`.
    """

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._timer: threading.Timer | None = None

    @property
    def barks(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() >= self._deadline

    def watch(self, response: httpx.Response) -> None:
        self._timer = threading.Timer(self._deadline - time.monotonic(), _shut_down, (response,))
        self._timer.daemon = True
        self._timer.start()

    def leave(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


class SyncDriver:
    """Drive one exchange on this thread.

    Args:
        client: Where requests go out.
        endpoints: Whom to ask.
        fetch_key: Gives the enclave's key, and not the stale one named.
        timeout: In place of the endpoints' own.
        limits: Whose turns the exchange waits for.
        deadline: When it has taken too long, on the clock of `time.monotonic`.
    """

    def __init__(
        self,
        client: httpx.Client,
        endpoints: Endpoints,
        fetch_key: Callable[[PublicKey | None], PublicKey],
        timeout: float | httpx.Timeout | None = None,
        *,
        limits: Limits | None = None,
        deadline: float | None = None,
    ) -> None:
        self._timeout = timeout
        self._turn = Turn(limits) if limits is not None else None
        self._deadline = deadline
        self._watchdog = _Watchdog(deadline) if deadline is not None else None
        self._client = client
        self._endpoints = endpoints
        self._fetch_key = fetch_key
        self._response: httpx.Response | None = None
        self._pieces: Iterator[bytes] = iter(())
        self._party = "gateway"

    def run(self, steps: Steps[R]) -> R:
        """Do what `steps` say until they return. A reply they leave open stays open, for `read`."""
        try:
            step = next(steps)
            while True:
                try:
                    outcome = self._perform(step)
                except errors.PremError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(outcome)
        except StopIteration as stop:
            result: R = stop.value
            return result
        except BaseException:
            self.close()
            raise

    def _perform(self, step: Any) -> Any:
        match step:
            case Read():
                return self.read()
            case Send():
                return self._send(step)
            case FetchKey(stale):
                return self._fetch_key(stale)
            case Acquire() if self._turn is not None:
                return self._turn.take(self._deadline)
            case Release(hold, spacing) if self._turn is not None:
                self._drop()
                return self._turn.give_back() if hold is None else self._turn.pause(hold, spacing)
            case ReadWithin(seconds):
                return _read_within(self._response, seconds)
            case Work(call):
                return call()
            case Sleep(seconds):
                self._drop()
                time.sleep(seconds)
                return None
        raise AssertionError(
            step
        )  # pragma: no cover - Step has these members, and who has no limits no turns

    def _send(self, step: Send) -> Head:
        self._drop()
        self._party = step.party
        if self._client.is_closed:  # while this call waited
            raise errors.ConfigurationError("the client is closed")
        try:
            request = self._endpoints.request(self._client, step, self._timeout)
            if self._deadline is not None:
                _end_by(request, self._deadline)
            try:
                response = self._client.send(request, stream=True, follow_redirects=False)
            finally:
                _let_go(request)
        except _FOREIGN as error:
            failure = translate(error, step.party, reading=False)
        else:
            self._response = response
            self._pieces = response.iter_bytes() if _is_coded(response) else response.iter_raw()
            if self._watchdog is not None:
                self._watchdog.watch(response)
            return _head(response)
        # Raised outside the handler, so that httpx's error is not kept as its context.
        if self._watchdog and self._watchdog.barks:
            failure = errors.APITimeoutError(TOTAL_TIMEOUT_MESSAGE)
        try:
            raise failure
        finally:
            del failure  # its traceback has this frame: a circle, which would keep the connections

    def read(self) -> bytes:
        """The open reply's next bytes; ``b""`` at its end.

        Raises:
            APIConnectionError: The connection broke, or nothing came within the timeout.
        """
        try:
            piece = next(self._pieces, b"")
            # Bytes that come too late cannot be told from an end that the watchdog made.
            if self._watchdog is None or not self._watchdog.barks:
                return piece
            failure: errors.APIConnectionError = errors.APITimeoutError(TOTAL_TIMEOUT_MESSAGE)
        except _FOREIGN as error:
            failure = translate(error, self._party, reading=True)
        if self._watchdog and self._watchdog.barks:
            failure = errors.APITimeoutError(TOTAL_TIMEOUT_MESSAGE)
        try:
            raise failure
        finally:
            del failure  # its traceback has this frame: a circle, which would keep the connections

    def drain(self) -> None:
        """Read a whole answer's reply to its end, so that its connection can serve the next request."""
        response = self._response
        if response is None or response.is_closed:  # closed by httpx, when its end was read
            return
        # The end is mostly here already, but a gateway that lingers would hold the caller for the whole
        # timeout, or with comments for ever. A blocked read is woken by shutting its socket down.
        watchdog = threading.Timer(LINGER, _shut_down, (response,))
        watchdog.daemon = True
        watchdog.start()
        try:
            for _ in range(MAX_DRAINED):
                if not self.read():
                    break
        except errors.APIConnectionError:
            # The answer is whole; only the connection is not worth keeping.
            pass
        finally:
            watchdog.cancel()

    def close(self) -> None:
        """Drop the open reply, if there is one, and its connection unless it was read to its end; and the turn."""
        try:
            self._drop()
        finally:
            if self._turn is not None:
                self._turn.give_back()

    def _drop(self) -> None:
        response, self._response = self._response, None
        self._pieces = iter(())
        if self._watchdog is not None:
            self._watchdog.leave()
        if response is not None:
            _end(response)

    def abandon(self) -> None:
        """`close`, for a finaliser.

        A collection can run inside httpcore, on a thread that holds the pool's lock; ending a reply there
        would wait for that lock for ever.
        """
        response, self._response = self._response, None
        # Handed over as well: freeing the iterator ends the reply too, and the turn lasts until that has ended.
        pieces, self._pieces = self._pieces, iter(())
        turn, self._turn = self._turn, None
        if turn is not None:
            turn.forget()
        if self._watchdog is not None:
            self._watchdog.leave()
        if response is not None:
            threading.Thread(target=_end, args=(response, pieces, turn), daemon=True).start()
