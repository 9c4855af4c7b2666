"""The loopback server of the enclave and the proxy."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import httpx
import pytest
from starlette.responses import PlainTextResponse

from prem_core._serving.server import Server, listen, url_of


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
