"""Perform a flow's steps with httpx, synchronously."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import httpx

from prem_core import _errors as errors
from prem_core._crypto.xwing import PublicKey
from prem_core._protocol.retry import TOTAL_TIMEOUT_MESSAGE
from prem_core._protocol.steps import (
    READ,
    Acquire,
    Attest,
    FetchKey,
    Flow,
    Probe,
    Release,
    ResponseHead,
    RunInThread,
    Send,
    Sleep,
    Step,
)
from prem_core._rate_limit.permits import Limits, Permit
from prem_core._transport.http import (
    DRAIN_MAX_READS,
    DRAIN_TIMEOUT,
    HTTPX_ERRORS,
    BodyStream,
    BuildRequest,
    KnownKey,
    auth_of,
    is_coded,
    limit_to_deadline,
    response_head,
    translate,
)


class SyncDriver:
    """Performs one flow on the calling thread. `close` may be called from any thread.

    Args:
        client: The httpx client that sends the requests.
        build_request: Makes the HTTP request for a `Send` step.
        keys: The cached enclave key; None until it was fetched.
        fetch_key: Fetches the key. With an argument: only if that key is still the cached one.
        prepare: Attests or probes, if the outcome is not known yet, and returns the outcome.
        limits: The limits that grant the permit; None for a flow without a permit.
        deadline: The time by `time.monotonic` at which the call fails; None for no deadline.
    """

    def __init__(
        self,
        client: httpx.Client,
        build_request: BuildRequest,
        keys: KnownKey,
        fetch_key: Callable[[PublicKey | None], PublicKey],
        prepare: Callable[[Attest | Probe], Any],
        limits: Limits | None = None,
        deadline: float | None = None,
    ) -> None:
        self._client = client
        self._build_request = build_request
        self._keys = keys
        self._fetch_key = fetch_key
        self._prepare = prepare
        self._permit = Permit(limits) if limits is not None else None
        self._deadline = deadline
        # Only the code that takes the response out under this lock may close it. Otherwise a timer could shut down a
        # connection that already serves another request.
        self._lock = threading.Lock()
        self._response: httpx.Response | None = None
        self._data: Iterator[bytes] = iter(())
        self._party = "gateway"
        self._reading = False  # whether the latest request got a response
        self._deadline_timer: threading.Timer | None = None

    def run(self, flow: Flow) -> Any:
        """Perform the steps of `flow` and return its last result."""
        result = None
        for result in self.stream(flow):  # noqa: B007
            pass
        return result

    def stream(self, flow: Flow) -> Iterator[Any]:
        """Perform the steps of `flow` and yield each result."""
        outcome: Any = None
        try:
            step = next(flow)
            while True:
                failure: errors.PremError | None = None
                if not isinstance(step, Step):
                    yield step
                    outcome = None
                else:
                    try:
                        if step is READ:
                            outcome = next(self._data, b"")
                            if not outcome or self._deadline is not None:
                                self._check_read(outcome)
                        else:
                            outcome = self._perform(step)
                    except errors.PremError as error:
                        failure = error
                    except HTTPX_ERRORS as error:
                        failure = self._failure(error)
                if failure is None:
                    step = flow.send(outcome)
                    continue
                # Thrown outside the except blocks, so that the httpx error does not become its context.
                try:
                    step = flow.throw(failure)
                finally:
                    del (
                        failure
                    )  # its traceback refers to this frame: this cycle would keep the connection open
        except StopIteration:
            self._drain()
        finally:
            self.close()

    def _perform(self, step: Step) -> Any:
        match step:
            case Send():
                return self._send(step)
            case Acquire(with_key, charge):
                if with_key and self._keys.public_key is None:
                    self._fetch_key(None)
                if self._permit is not None:
                    self._permit.acquire(self._deadline, charge)
                return self._keys.public_key if with_key else None
            case FetchKey(stale):
                return self._fetch_key(stale)
            case Release():
                self._close_response()
                if self._permit is not None:
                    self._permit.release(step)
                return None
            case Attest() | Probe():
                return self._prepare(step)
            case RunInThread(call):
                return call()
            case Sleep(seconds):
                self._close_response()
                time.sleep(seconds)
                return None
        raise AssertionError(step)  # pragma: no cover - Step has no other subclass

    def _send(self, step: Send) -> ResponseHead:
        self._close_response()
        self._party, self._reading = step.party, False
        if self._client.is_closed:  # it may have been closed while this call waited
            raise errors.ConfigurationError("the client is closed")
        request = self._build_request(self._client, step)
        if self._deadline is not None:
            limit_to_deadline(request, self._deadline)
        try:
            response = self._client.send(request, stream=True, auth=auth_of(step), follow_redirects=False)
        finally:
            if isinstance(request.stream, BodyStream):
                request.stream.release()
        self._response, self._reading = response, True
        self._data = _raw_data(response)
        if self._deadline is not None:
            self._deadline_timer = self._shut_down_after(self._deadline - time.monotonic())
        return response_head(response, step.read_timeout)

    def _check_read(self, data: bytes) -> None:
        if not data:
            self._end_response()
        # After the deadline the timer may have ended the read, so the data cannot be trusted.
        if self._deadline is not None and time.monotonic() >= self._deadline:
            raise errors.APITimeoutError(TOTAL_TIMEOUT_MESSAGE)

    def _failure(self, error: Exception) -> errors.APIConnectionError:
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return errors.APITimeoutError(TOTAL_TIMEOUT_MESSAGE)
        return translate(error, self._party, reading=self._reading)

    def _drain(self) -> None:
        """Read the response to its end, so that its connection can serve the next request."""
        if self._response is None:
            return
        # Usually the end has arrived. A gateway that keeps the response open would block the caller until the timeout,
        # or forever if it sends comments. Shutting the socket down ends a blocked read.
        timer = self._shut_down_after(DRAIN_TIMEOUT)
        try:
            for _ in range(DRAIN_MAX_READS):
                if not next(self._data, b""):
                    self._end_response()
                    break
        except HTTPX_ERRORS:
            pass  # the answer is complete; only the connection is lost
        finally:
            timer.cancel()

    def _end_response(self) -> None:
        """Return the connection to the pool after the response was read to its end."""
        with self._lock:
            response, self._response = self._response, None
        if response is not None:
            response.close()

    def _shut_down_after(self, seconds: float) -> threading.Timer:
        timer = threading.Timer(seconds, self._shut_down)
        timer.daemon = True
        timer.start()
        return timer

    def _shut_down(self) -> None:
        with self._lock:
            if self._response is not None:
                _shut_down_socket(self._response)

    def close(self) -> None:
        """Close the open response and release the permit.

        The connection is closed, too, unless the response was read to its end.
        """
        try:
            self._close_response()
        finally:
            if self._permit is not None:
                self._permit.release()

    def _close_response(self) -> None:
        if sys.is_finalizing():
            # The interpreter shuts down, and the operating system closes the socket. Python 3.13.0 crashes if httpx
            # closes a response here.
            return
        with self._lock:
            response, self._response = self._response, None
        self._data = iter(())
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()
        if response is not None:
            _abort(response)

    def abandon(self) -> None:
        """Close from a finalizer, without blocking.

        A garbage collection can run inside httpcore, on a thread that holds the connection pool's lock. Closing a
        response there would deadlock, so another thread closes it.
        """
        response, self._response = self._response, None
        # The thread also gets the iterator (freeing it would close the response here) and the permit (released only
        # after closing).
        data, self._data = self._data, iter(())
        permit, self._permit = self._permit, None
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()
        if response is not None:
            threading.Thread(target=_abort, args=(response, data, permit), daemon=True).start()


def _abort(
    response: httpx.Response, data: Iterator[bytes] | None = None, permit: Permit | None = None
) -> None:
    del data
    try:
        # shutdown() wakes a blocked reader and notifies the peer; close() alone does neither.
        _shut_down_socket(response)
        response.close()
    finally:
        if permit is not None:
            permit.release()


def _raw_data(response: httpx.Response) -> Iterator[bytes]:
    if is_coded(response):
        return iter(())
    if response.is_stream_consumed:  # a transport already read the whole body
        return response.iter_bytes()
    # Equals httpx's iter_raw, which does more bookkeeping for each read.
    return iter(cast("httpx.SyncByteStream", response.stream))


def _shut_down_socket(response: httpx.Response) -> None:
    if response.is_closed:
        return
    # With HTTP/2, other responses use the same socket.
    stream = response.extensions.get("network_stream")
    sock = stream.get_extra_info("socket") if stream and response.http_version.startswith("HTTP/1") else None
    if sock is not None:
        with contextlib.suppress(OSError):
            # SSLSocket.shutdown would let a thread that is reading continue with unencrypted bytes.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
