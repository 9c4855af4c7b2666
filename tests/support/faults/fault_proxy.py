"""A proxy on real sockets between a client and the embedded enclave, which injects faults into responses.

It listens on two loopback ports, one for the gateway and one for the enclave, and forwards every request. The responses
are real and sealed by the enclave; a fault may change one on its way to the client. The proxy records the requests, and
whether the client disconnected before the end of the response. The faults themselves are in `kinds`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import socket
import struct
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from http import HTTPStatus
from typing import Any, Final, Literal, Self
from urllib.parse import urlsplit

from prem_core import DecryptionError, EncryptionKeys
from prem_core._crypto.xwing import PrivateKey
from prem_core.enclave import LocalEnclave
from support.wire_schemas import TEST_KEY, Opened

Party = Literal["gateway", "enclave"]
PARTIES: Final[tuple[Party, ...]] = ("gateway", "enclave")

#: The parts of a response: the events of a stream, each with its empty line, or `JSON_PIECES` pieces of a JSON body.
Pieces = AsyncIterator[bytes]
JSON_PIECES: Final = 16

#: The number of requests that are recorded.
REMEMBERED: Final = 1000


class Drop(Exception):
    """Close the connection here."""


class Reset(Exception):
    """Reset the connection here (RST)."""


class End(Exception):
    """End the response here with HTTP's regular end."""


@dataclass(frozen=True)
class Head:
    """A status and headers, by lower-case name."""

    status: int
    headers: dict[str, str]

    def encode(self) -> bytes:
        """As bytes."""
        try:
            phrase = HTTPStatus(self.status).phrase
        except ValueError:
            phrase = ""
        lines = [f"HTTP/1.1 {self.status} {phrase}", *(f"{k}: {v}" for k, v in self.headers.items())]
        return "\r\n".join([*lines, "\r\n"]).encode("latin-1")

    @property
    def is_stream(self) -> bool:
        """Whether an event stream follows."""
        return self.headers.get("content-type", "").startswith("text/event-stream")


class ProxiedRequest:
    """One request that the proxy received.

    Args:
        party: The addressee of the request.
        method: The HTTP method.
        target: The path, with its query.
        headers: By lower-case name.
        body: The request's bytes.
        private_keys: All keys the enclave has had; the last one is the current one.
    """

    def __init__(
        self,
        party: Party,
        method: str,
        target: str,
        headers: dict[str, str],
        body: bytes,
        private_keys: Sequence[PrivateKey],
    ) -> None:
        self.party, self.method, self.target, self.headers, self.body = party, method, target, headers, body
        self._private_keys = private_keys
        self.fault: Fault | None = None
        #: Set when the client disconnects before the end of the response.
        self.disconnected = threading.Event()

    @cached_property
    def opened(self) -> Opened:
        """The chat request, decrypted with the enclave's key."""
        fields = {name: bytes.fromhex(value) for name, value in json.loads(self.body).items()}
        for private_key in reversed(self._private_keys):
            keys = EncryptionKeys(private_key.decapsulate(fields["cipherText"]), fields["cipherText"])
            with contextlib.suppress(DecryptionError):
                plain = keys.open(fields["encryptedInference"], fields["nonce"])
                return Opened(keys, fields["nonce"], json.loads(plain))
        raise DecryptionError

    def seal(self, value: Any) -> bytes:
        """`value`, sealed like a chunk of the response: hex, under the request's nonce."""
        plain = value if isinstance(value, bytes) else json.dumps(value).encode()
        return self.opened.keys.seal(plain, self.opened.nonce).hex().encode()

    def open(self, event: bytes) -> dict[str, Any]:
        """The decrypted chunk of an event; empty if it has none."""
        name, _, data = event.strip().partition(b"\ndata: ")
        if name != b"event: data":
            return {}
        chunk: dict[str, Any] = json.loads(
            self.opened.keys.open(bytes.fromhex(data.decode()), self.opened.nonce)
        )
        return chunk


def _same_head(head: Head) -> Head:
    return head


def _same(exchange: ProxiedRequest, pieces: Pieces) -> Pieces:
    return pieces


def _same_body(exchange: ProxiedRequest) -> bytes:
    return exchange.body


@dataclass(frozen=True)
class Fault:
    """A fault in one exchange.

    Each part is a function of what is forwarded: the body of the request, the head of the response, its events, and the
    bytes on the socket. Head and events of an error response are not changed.

    Attributes:
        name: The name of the fault.
        where: Its place in the response, in words.
        party: Whose response it changes.
    """

    name: str
    where: str = ""
    request: Callable[[ProxiedRequest], bytes] = _same_body
    head: Callable[[Head], Head] = _same_head
    events: Callable[[ProxiedRequest, Pieces], Pieces] = _same
    data: Callable[[ProxiedRequest, Pieces], Pieces] = _same
    party: Party = "gateway"

    def __str__(self) -> str:
        return ", ".join(filter(None, (self.name, self.where)))


_NONE: Final = Fault("no fault")


class _Connection(asyncio.StreamReaderProtocol):
    """A connection of a client. `disconnected` is set as soon as the client closes it."""

    def __init__(self, serve: Callable[[_Connection, asyncio.StreamWriter], Any]) -> None:
        self.disconnected = asyncio.Event()
        self.reader = asyncio.StreamReader()
        super().__init__(self.reader, lambda _, writer: serve(self, writer))

    def eof_received(self) -> bool | None:
        self.disconnected.set()
        return super().eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        self.disconnected.set()
        super().connection_lost(error)


class FaultProxy:
    """Forwards requests to `enclave`, in its own thread.

    ::

        with LocalEnclave(private_key=TEST_KEY) as prem, FaultProxy(prem) as proxy:
            proxy.inject(fault)
            PremClient(**proxy.client_options)

    Args:
        enclave: The enclave behind it, which may be replaced between two requests.
        private_keys: Keys that decrypt the exchanges, for faults that change plaintext.
    """

    def __init__(self, enclave: LocalEnclave, private_keys: Sequence[PrivateKey] = (TEST_KEY,)) -> None:
        self.enclave = enclave
        self.private_keys = list(private_keys)
        #: Chooses the fault for a request; called in the proxy's thread.
        self.choose: Callable[[ProxiedRequest], Fault | None] = lambda exchange: None
        self.exchanges: deque[ProxiedRequest] = deque(maxlen=REMEMBERED)
        #: Errors of the proxy itself.
        self.failures: list[BaseException] = []
        self.accepted: dict[Party, int] = dict.fromkeys(PARTIES, 0)
        self._open: dict[Party, set[asyncio.StreamWriter]] = {party: set() for party in PARTIES}
        self._sockets: dict[Party, socket.socket] = {}
        self._ports: dict[Party, int] = {}
        self._servers: dict[Party, asyncio.Server] = {}
        self._serving: set[asyncio.Task[None]] = set()
        self._ready: concurrent.futures.Future[asyncio.AbstractEventLoop] = concurrent.futures.Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name="fault-proxy")

    # --- for tests --------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._thread.start()
        self._loop = self._ready.result()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    @property
    def ports(self) -> frozenset[int]:
        """The ports it listens on."""
        return frozenset(self._ports.values())

    @property
    def client_options(self) -> dict[str, str]:
        """Arguments for a client: `api_key`, `gateway_url`, `enclave_url`."""
        gateway, enclave = (f"http://127.0.0.1:{self._ports[party]}" for party in PARTIES)
        return {"api_key": self.enclave.api_key, "gateway_url": gateway, "enclave_url": enclave}

    def inject(self, fault: Fault, times: int | None = None) -> None:
        """Inject `fault` into the next `times` exchanges with its party, or into all that follow."""
        left = [times]

        def choose(exchange: ProxiedRequest) -> Fault | None:
            if exchange.party != fault.party or left[0] == 0:
                return None
            if left[0] is not None:
                left[0] -= 1
            return fault

        self.choose = choose

    def clear_fault(self) -> None:
        """Forward everything unchanged."""
        self.choose = lambda exchange: None

    def requests_to(self, party: Party) -> list[ProxiedRequest]:
        """The requests to one party since `clear_requests`."""
        return [exchange for exchange in self.exchanges if exchange.party == party]

    def clear_requests(self) -> None:
        """Discard the recorded requests."""
        self.exchanges.clear()

    def connections(self, party: Party) -> int:
        """The number of open connections of clients."""
        return len(self._open[party])

    @contextlib.contextmanager
    def refusing_connections(self, party: Party) -> Iterator[None]:
        """Refuse connections to `party` within the block; its port stays reserved."""
        self._do(self._refuse(party))
        try:
            yield
        finally:
            self._do(self._listen(party))

    def _do(self, coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    # --- the thread -------------------------------------------------------------------------------

    async def _main(self) -> None:
        self._stopping = asyncio.Event()
        try:
            for party in PARTIES:
                await self._listen(party)
        except BaseException as error:
            self._ready.set_exception(error)
            return
        self._ready.set_result(asyncio.get_running_loop())
        await self._stopping.wait()
        for party in PARTIES:
            if party in self._servers:
                await self._refuse(party)
        for party in PARTIES:
            for writer in self._open[party]:
                writer.transport.abort()
        await asyncio.gather(*self._serving)

    async def _listen(self, party: Party) -> None:
        # asyncio sets TCP_NODELAY only on a socket whose protocol is named; without it small writes are delayed.
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", self._ports.get(party, 0)))
        self._ports[party] = sock.getsockname()[1]

        async def serve(connection: _Connection, writer: asyncio.StreamWriter) -> None:
            await self._serve(party, connection, writer)

        loop = asyncio.get_running_loop()
        self._servers[party] = await loop.create_server(lambda: _Connection(serve), sock=sock, backlog=512)

    async def _refuse(self, party: Party) -> None:
        self._servers.pop(party).close()

    async def _serve(self, party: Party, connection: _Connection, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        self._open[party].add(writer)
        self.accepted[party] += 1
        try:
            while (exchange := await self._request(party, connection.reader)) is not None:
                await self._until_disconnected(exchange, connection, writer)
        except Reset:
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
        except (Drop, ConnectionError, asyncio.IncompleteReadError):
            pass
        except Exception as error:
            self.failures.append(error)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            self._open[party].discard(writer)
            self._serving.discard(task)

    async def _request(self, party: Party, reader: asyncio.StreamReader) -> ProxiedRequest | None:
        try:
            (method, target, _), headers = await _read_head(reader)
        except asyncio.IncompleteReadError:
            return None
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        exchange = ProxiedRequest(party, method, target, headers, body, self.private_keys)
        self.exchanges.append(exchange)
        exchange.fault = self.choose(exchange)
        return exchange

    async def _until_disconnected(
        self, exchange: ProxiedRequest, connection: _Connection, writer: asyncio.StreamWriter
    ) -> None:
        responding = asyncio.ensure_future(self._answer(exchange, writer))
        disconnecting = asyncio.ensure_future(connection.disconnected.wait())
        try:
            await asyncio.wait({responding, disconnecting}, return_when=asyncio.FIRST_COMPLETED)
            if responding.done():
                responding.result()
            else:
                exchange.disconnected.set()
                raise Drop
        finally:
            for task in (responding, disconnecting):
                task.cancel()
            await asyncio.gather(responding, disconnecting, return_exceptions=True)

    async def _answer(self, exchange: ProxiedRequest, writer: asyncio.StreamWriter) -> None:
        fault = exchange.fault or _NONE
        async with self._forwarded(exchange, fault.request(exchange)) as (head, body):
            events = _events(body) if head.is_stream else _in_pieces(body)
            if head.status == 200 and (fault.head is not _same_head or fault.events is not _same):
                head = fault.head(replace(head, headers=_chunked(head.headers)))
                events = fault.events(exchange, events)
            async for data in fault.data(exchange, _framed(head, events)):
                try:
                    writer.write(data)
                    await writer.drain()
                except ConnectionError:
                    exchange.disconnected.set()
                    raise

    @contextlib.asynccontextmanager
    async def _forwarded(self, exchange: ProxiedRequest, body: bytes) -> AsyncIterator[tuple[Head, Pieces]]:
        url = self.enclave.gateway_url if exchange.party == "gateway" else self.enclave.enclave_url
        host = urlsplit(url).netloc
        headers = {**exchange.headers, "host": host, "connection": "close", "content-length": str(len(body))}
        lines = [f"{exchange.method} {exchange.target} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items())]
        name, _, port = host.partition(":")
        reader, writer = await asyncio.open_connection(name, int(port))
        try:
            writer.write("\r\n".join([*lines, "\r\n"]).encode("latin-1") + body)
            (_, status, *_), answered = await _read_head(reader)
            answered.pop("connection", None)  # hop by hop
            yield Head(int(status), answered), _body(reader, answered)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


async def _read_head(reader: asyncio.StreamReader) -> tuple[list[str], dict[str, str]]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.split("\r\n")[:-2]
    headers = dict(line.split(":", 1) for line in lines)
    return first.split(" ", 2), {name.lower(): value.strip() for name, value in headers.items()}


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> Pieces:
    if headers.get("transfer-encoding") == "chunked":
        while size := int(await reader.readline(), 16):
            yield (await reader.readexactly(size + 2))[:-2]
    else:
        yield await reader.readexactly(int(headers.get("content-length", "0")))


async def _events(pieces: Pieces) -> Pieces:
    held = b""
    async for piece in pieces:
        *whole, held = (held + piece).split(b"\n\n")
        for event in whole:
            yield event + b"\n\n"
    if held:
        yield held


async def _in_pieces(pieces: Pieces) -> Pieces:
    body = b"".join([piece async for piece in pieces])
    size = -(-len(body) // JSON_PIECES)
    for start in range(0, len(body), size or 1):
        yield body[start : start + size]


def _chunked(headers: dict[str, str]) -> dict[str, str]:
    # A fault may change the length.
    kept = {name: value for name, value in headers.items() if name != "content-length"}
    return {**kept, "transfer-encoding": "chunked"}


async def _framed(head: Head, events: Pieces) -> Pieces:
    yield head.encode()
    chunked = head.headers.get("transfer-encoding") == "chunked"
    with contextlib.suppress(End):
        async for event in events:
            yield b"%x\r\n%b\r\n" % (len(event), event) if chunked and event else event
    if chunked:
        yield b"0\r\n\r\n"
