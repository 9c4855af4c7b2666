"""What the enclave and the proxy check of every request: the Host header, the body limit, a disconnect."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from prem_core._serving.json_values import MAX_JSON_VALUES, has_too_many_values
from prem_core._serving.request import (
    AllowedHosts,
    BodyMemory,
    BodyTooLarge,
    Overloaded,
    RequestBody,
    cancel_on_disconnect,
)


def body_of(
    messages: Iterable[dict[str, Any]], limit: int = 10, memory: BodyMemory | None = None, **headers: str
) -> RequestBody:
    """A body that the server delivers in these ASGI messages. After them, it waits for ever."""
    waiting = iter(messages)

    async def receive() -> Any:
        message = next(waiting, None)
        return message if message is not None else await asyncio.Event().wait()

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return RequestBody({"type": "http", "headers": raw}, receive, limit, memory or BodyMemory(limit))


def part(data: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": data, "more_body": more}


DISCONNECT = {"type": "http.disconnect"}


@pytest.mark.parametrize(
    ("hosts", "host", "allowed"),
    [
        (AllowedHosts(3000), "127.0.0.1:3000", True),
        (AllowedHosts(3000), "LocalHost:3000", True),
        (AllowedHosts(3000), "[::1]:3000", True),
        (AllowedHosts(3000), "127.0.0.1", False),
        (AllowedHosts(3000), "127.0.0.1:3001", False),
        (AllowedHosts(3000), "", False),
        (AllowedHosts(80), "localhost", True),
        (AllowedHosts(80), "localhost:80", True),
        (AllowedHosts(3000, ["Proxy.Example"]), "proxy.example:3000", True),
        (AllowedHosts(3000, ["proxy.example:8080"]), "proxy.example:8080", True),
        (AllowedHosts(3000, ["proxy.example:8080"]), "proxy.example:3000", False),
        (AllowedHosts(3000, ["[2001:db8::7]"]), "[2001:db8::7]:3000", True),
        (AllowedHosts(3000), "192.0.2.7:3000", False),
        (AllowedHosts(3000, any_address=True), "192.0.2.7:3000", True),
        (AllowedHosts(3000, any_address=True), "[2001:db8::7]:3000", True),
        (AllowedHosts(3000, any_address=True), "192.0.2.7:1", False),
        (AllowedHosts(3000, any_address=True), "evil.example:3000", False),
    ],
)
def test_a_host_header_must_name_the_server(hosts: AllowedHosts, host: str, allowed: bool) -> None:
    assert (host in hosts) is allowed


async def test_a_body_within_the_limit_is_read_whole() -> None:
    body = body_of([part(b"01234", more=True), part(b"56789")], transfer_encoding="chunked")
    assert await body.read() == b"0123456789"
    assert body.size == 10


async def test_a_request_without_a_body_is_empty_although_the_watcher_reads_first() -> None:
    body = body_of([part(b""), DISCONNECT])
    await body.disconnected()
    assert await body.read() == b""


async def test_a_declared_length_over_the_limit_is_an_error_before_the_body_is_read() -> None:
    with pytest.raises(BodyTooLarge, match="10 bytes"):
        await body_of([], content_length="11").read()


async def test_a_body_over_the_limit_is_an_error_whatever_length_was_declared() -> None:
    with pytest.raises(BodyTooLarge):
        await body_of([part(b"0123456789x")], content_length="10").read()


async def test_a_disconnect_during_the_body_is_an_error() -> None:
    body = body_of([part(b"01234", more=True), DISCONNECT], content_length="10")
    with pytest.raises(ClientDisconnect):
        await body.read()


async def test_a_disconnect_after_the_body_cancels_the_work() -> None:
    body = body_of([part(b"01234"), DISCONNECT], content_length="5")
    assert await body.read() == b"01234"
    work = asyncio.create_task(asyncio.Event().wait())
    await cancel_on_disconnect(work, body)
    assert work.cancelled()


async def test_work_that_ends_first_keeps_its_result() -> None:
    work = asyncio.create_task(asyncio.sleep(0, "done"))
    await cancel_on_disconnect(work, body_of([]))
    assert work.result() == "done"


async def test_a_body_for_which_the_server_has_no_memory_is_an_error() -> None:
    memory = BodyMemory(15)
    with body_of([part(b"0123456789")], memory=memory, transfer_encoding="chunked") as first:
        await first.read()
        with body_of([part(b"012345")], memory=memory, transfer_encoding="chunked") as second:
            with pytest.raises(Overloaded):
                await second.read()
        with body_of([part(b"01234")], memory=memory, transfer_encoding="chunked") as third:
            assert await third.read() == b"01234"
    assert memory.held == 0


async def test_a_declared_length_for_which_the_server_has_no_memory_is_an_error_before_the_body_is_read() -> (
    None
):
    memory = BodyMemory(15)
    with body_of([part(b"0123456789")], memory=memory, content_length="10") as first:
        await first.read()
        with body_of([], memory=memory, content_length="6") as second:
            with pytest.raises(Overloaded):
                await second.read()


@pytest.mark.parametrize(
    ("text", "too_many"),
    [
        (b"[%s]" % b",".join([b"[1]"] * (MAX_JSON_VALUES // 2)), False),
        (b"[%s]" % b",".join([b"[1]"] * (MAX_JSON_VALUES // 2 + 1)), True),
        (b"[%s]" % b",".join([b"1"] * (MAX_JSON_VALUES - 1)), False),
        (b"[%s]" % b",".join([b"1"] * (MAX_JSON_VALUES + 1)), True),
        (b"[" * (MAX_JSON_VALUES + 1), True),
        (b'{"content": "%s"}' % (b"a, [b] {" * MAX_JSON_VALUES), False),
        (b'{"content": "%s"}' % (rb"\", [" * MAX_JSON_VALUES), False),
        (b'{"content": "%s"}' % (rb"\\" + b'",' + b'"a",' * MAX_JSON_VALUES + b'"'), True),
        (b'"' + b'\\",' * MAX_JSON_VALUES, False),
    ],
    ids=[
        "lists",
        "one more list",
        "numbers",
        "one more number",
        "nested",
        "text",
        "escaped quotes",
        "escaped backslash",
        "not closed",
    ],
)
def test_the_json_values_of_a_body_are_counted_outside_its_strings(text: bytes, too_many: bool) -> None:
    assert has_too_many_values(text) is too_many
