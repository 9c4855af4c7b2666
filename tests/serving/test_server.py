"""The loopback server of the enclave and the proxy."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from support.waiting import SOON
from uvicorn.server import ServerState

from prem_core._serving.request import Overloaded, check_connection
from prem_core._serving.server import Server, _Config, _Protocol, listen, listen_on_loopback, url_of


async def hello(scope: Any, receive: Any, send: Any) -> None:
    await PlainTextResponse("hello")(scope, receive, send)


def get(url: str) -> str:
    return httpx.get(url, trust_env=False).text


def test_each_application_has_its_own_url() -> None:
    async def other(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("other")(scope, receive, send)

    with Server((hello, listen()), (other, listen())) as server:
        assert [get(url) for url in server.urls] == ["hello", "other"]


def test_a_stopped_server_leaves_no_thread_and_no_port() -> None:
    before = set(threading.enumerate())
    with Server((hello, listen())) as server:
        assert get(server.urls[0]) == "hello"
    assert set(threading.enumerate()) == before
    with pytest.raises(httpx.ConnectError):
        get(server.urls[0])


def test_stop_calls_on_stop_and_then_the_closers_in_reverse() -> None:
    calls: list[str] = []

    async def close(name: str) -> None:
        calls.append(name)

    with Server(
        (hello, listen()),
        on_stop=lambda: calls.append("on_stop"),
        closers=[lambda: close("first"), lambda: close("last")],
    ):
        assert calls == []
    assert calls == ["on_stop", "last", "first"]


async def test_it_is_an_async_context_manager() -> None:
    async with Server((hello, listen())) as server:
        assert await asyncio.to_thread(get, server.urls[0]) == "hello"


def test_an_error_while_starting_is_raised_by_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("uvicorn.Server.__init__", fail)
    sock = listen()
    with pytest.raises(ZeroDivisionError):
        Server((hello, sock)).start()
    assert sock.fileno() == -1, "the socket is closed"


def test_the_url_of_a_socket_on_all_interfaces_is_on_this_machine() -> None:
    with listen("0.0.0.0") as sock:
        assert url_of(sock) == f"http://127.0.0.1:{sock.getsockname()[1]}"


def test_an_address_or_port_that_cannot_be_used_is_an_error_that_names_it() -> None:
    with pytest.raises(OSError, match=r"no\.such\.host\.invalid"):
        listen("no.such.host.invalid")
    with listen() as sock:
        port = sock.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} on 127.0.0.1"):
            listen(port=port)


# Both loopback addresses


def needs_ipv6() -> None:
    try:
        listen("::1").close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")


def test_the_loopback_sockets_have_one_port_on_both_addresses() -> None:
    needs_ipv6()
    with Server((hello, *listen_on_loopback())) as server:
        port = httpx.URL(server.urls[0]).port
        assert [get(f"http://{host}:{port}") for host in ("127.0.0.1", "[::1]")] == ["hello", "hello"]


def test_a_port_that_another_program_has_on_the_other_loopback_address_is_an_error() -> None:
    needs_ipv6()
    with listen("::1") as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} on ::1.*localhost"):
            listen_on_loopback(port)
        listen(port=port).close()  # 127.0.0.1 is free again


def test_another_free_port_is_picked_where_the_first_is_taken_on_the_other_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needs_ipv6()
    with listen("::1") as taken:
        port = taken.getsockname()[1]
        real = socket.socket.bind
        first = iter([port])

        def bind(sock: socket.socket, address: Any) -> None:
            # The system picks the taken port at first.
            real(sock, (address[0], next(first, 0), *address[2:]) if address[1] == 0 else address)

        monkeypatch.setattr(socket.socket, "bind", bind)
        sockets = listen_on_loopback()
        assert sockets[0].getsockname()[1] == sockets[1].getsockname()[1] != port
        for sock in sockets:
            sock.close()


def test_a_machine_without_ipv6_gets_the_other_loopback_address(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket.bind

    def bind(sock: socket.socket, address: Any) -> None:
        real(sock, ("2001:db8::1", *address[1:]) if sock.family == socket.AF_INET6 else address)

    monkeypatch.setattr(socket.socket, "bind", bind)
    (sock,) = listen_on_loopback()
    with sock:
        assert sock.getsockname()[0] == "127.0.0.1"


# Limits


async def bounded(scope: Any, receive: Any, send: Any) -> None:
    try:
        check_connection(scope)
        await Request(scope, receive).body()
    except Overloaded as error:
        await PlainTextResponse(str(error), 503, error.headers)(scope, receive, send)
    else:
        await hello(scope, receive, send)


def connect(server: Server) -> socket.socket:
    url = httpx.URL(server.urls[0])
    return socket.create_connection((url.host, url.port or 0), timeout=SOON)


def rest(sock: socket.socket) -> bytes:
    """Everything up to the end of the connection."""
    return b"".join(iter(lambda: sock.recv(1000), b""))


def test_a_request_on_a_connection_over_the_limit_is_503_and_its_connection_is_closed() -> None:
    with Server((bounded, listen()), max_connections=2) as server, ExitStack() as stack:
        first, second, third = (stack.enter_context(connect(server)) for _ in range(3))
        for sock in (third, second, first):
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        refused = rest(third)
        assert refused.startswith(b"HTTP/1.1 503")
        assert refused.endswith(b"in a moment")
        for sock in (second, first):
            assert sock.recv(1000).startswith(b"HTTP/1.1 200")
        first.close()
        assert get(server.urls[0]) == "hello"


def test_a_connection_far_over_the_limit_is_closed_without_a_response() -> None:
    with Server((bounded, listen()), max_connections=1) as server, ExitStack() as stack:
        *_, last = [stack.enter_context(connect(server)) for _ in range(40)]
        try:
            assert last.recv(1000) == b""
        except ConnectionResetError:
            pass


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST / HTTP/1.1\r\nHost: a\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ],
    ids=["nothing", "half a head", "half a body", "half a chunked body"],
)
def test_a_half_sent_request_is_closed_after_the_timeout(sent: bytes) -> None:
    with Server((bounded, listen()), request_timeout=0.05) as server, connect(server) as sock:
        sock.sendall(sent)
        assert sock.recv(1000) == b""


def test_a_half_sent_second_request_of_a_connection_is_closed_after_the_timeout() -> None:
    with Server((bounded, listen()), request_timeout=0.05) as server, connect(server) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert sock.recv(1000).startswith(b"HTTP/1.1 200")
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n")
        assert rest(sock) in (b"", b"hello")


class Clock:
    """A connection's event loop whose time a test sets."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Callable[[], Any], asyncio.TimerHandle]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(self.now + delay, callback, args, self)  # type: ignore[arg-type]
        self.timers.append((self.now + delay, lambda: callback(*args), handle))
        return handle

    def advance(self, seconds: float) -> None:
        self.now += seconds
        due = [each for each in self.timers if each[0] <= self.now]
        self.timers = [each for each in self.timers if each[0] > self.now]
        for _, call, handle in due:
            if not handle.cancelled():
                call()

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio.get_running_loop(), name)

    def get_debug(self) -> bool:
        return False

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass


class Transport(asyncio.Transport):
    """A connection that a test writes to with `data_received`."""

    closed = False

    def write(self, data: Any) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


def protocol(clock: Clock, app: Any = bounded) -> tuple[_Protocol, Transport]:
    config = _Config(app, logging.getLogger("test"), 10, 20.0)
    made, transport = _Protocol(config, ServerState(), {}, clock), Transport()  # type: ignore[arg-type]
    made.connection_made(transport)
    return made, transport


HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 25000000\r\n\r\n"


async def test_a_slow_upload_of_25_mb_that_progresses_is_accepted() -> None:
    async def answer_late(scope: Any, receive: Any, send: Any) -> None:
        assert len(await Request(scope, receive).body()) == 25_000_000
        complete.set()
        await asyncio.Event().wait()

    complete, clock = asyncio.Event(), Clock()
    slow, transport = protocol(clock, answer_late)
    slow.data_received(HEAD)
    for _ in range(500):
        clock.advance(10)  # 5 kB a second
        slow.data_received(b"x" * 50_000)
        await asyncio.sleep(0)
    assert not transport.closed
    await complete.wait()
    clock.advance(10_000)  # until the response
    assert not transport.closed


async def test_an_upload_that_stops_is_closed_however_much_has_arrived() -> None:
    clock = Clock()
    stopped, transport = protocol(clock)
    stopped.data_received(HEAD + b"x" * 20_000_000)
    clock.advance(19)
    assert not transport.closed
    clock.advance(2)
    assert transport.closed


async def test_an_upload_of_single_bytes_is_closed() -> None:
    clock = Clock()
    trickling, transport = protocol(clock)
    trickling.data_received(HEAD)
    for _ in range(3):
        clock.advance(10)
        trickling.data_received(b"x")
    assert transport.closed


async def test_a_connection_may_be_idle_between_two_requests() -> None:
    clock = Clock()
    idle, transport = protocol(clock)
    idle.data_received(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    for _ in range(20):
        await asyncio.sleep(0)
    clock.advance(70)
    assert not transport.closed
