"""The fault layer: a man in the middle, on real sockets, between a client and the embedded enclave.

It listens on two loopback ports, one in the gateway's place and one in the enclave's, and passes every request on to
the real ones behind it. What comes back is theirs, sealed by them; on its way to the client one fault may strike
it. What the layer was asked, and whether the client left before the answer's end, can be looked at afterwards.

The rule of this file: it moves bytes and knows no fault. Those are functions over what is moved, in `fault_kinds`.
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

#: What an answer is made of: the events of a stream, each with its empty line; of a JSON body so many pieces.
Pieces = AsyncIterator[bytes]
JSON_PIECES: Final = 16

#: Requests the layer remembers.
REMEMBERED: Final = 1000


class Drop(Exception):
    """Close the connection here."""


class Reset(Exception):
    """Break the connection off here, as a machine does that has lost its memory (RST)."""


class End(Exception):
    """End the answer here as HTTP does, whatever is still to come of it."""


@dataclass(frozen=True)
class Head:
    """A status and headers, by lower-case name."""

    status: int
    headers: dict[str, str]

    def encode(self) -> bytes:
        """As they stand on the wire."""
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


class Exchange:
    """One request as it reached the layer, and what became of it.

    Args:
        party: Whom the client took the layer for.
        method: The HTTP method.
        target: The path, with its query.
        headers: By lower-case name.
        body: The request's bytes.
        private_keys: Keys the enclave behind has had; the last one is the present one.
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
        #: Set when the client closes the connection before it has the whole answer.
        self.left = threading.Event()

    @cached_property
    def opened(self) -> Opened:
        """The chat request inside, opened with the enclave's own key."""
        fields = {name: bytes.fromhex(value) for name, value in json.loads(self.body).items()}
        for private_key in reversed(self._private_keys):
            keys = EncryptionKeys(private_key.decapsulate(fields["cipherText"]), fields["cipherText"])
            with contextlib.suppress(DecryptionError):
                plain = keys.open(fields["encryptedInference"], fields["nonce"])
                return Opened(keys, fields["nonce"], json.loads(plain))
        raise DecryptionError

    def seal(self, value: Any) -> bytes:
        """`value` as the enclave seals a chunk of the answer: hex, under the request's own nonce."""
        plain = value if isinstance(value, bytes) else json.dumps(value).encode()
        return self.opened.keys.seal(plain, self.opened.nonce).hex().encode()

    def open(self, event: bytes) -> dict[str, Any]:
        """The chunk inside an event; empty where there is none."""
        name, _, data = event.strip().partition(b"\ndata: ")
        if name != b"event: data":
            return {}
        chunk: dict[str, Any] = json.loads(
            self.opened.keys.open(bytes.fromhex(data.decode()), self.opened.nonce)
        )
        return chunk


def _same_head(head: Head) -> Head:
    return head


def _same(exchange: Exchange, pieces: Pieces) -> Pieces:
    return pieces


def _same_body(exchange: Exchange) -> bytes:
    return exchange.body


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one exchange, and where.

    Each part is a function over what passes: the request's body, the answer's head, its events, and the bytes that they
    become on the socket. Head and events are those of a success; an answer that is an error already is left alone.

    Attributes:
        name: The fault, in the field's words.
        where: The place it strikes, in words.
        party: Whose answer it strikes.
    """

    name: str
    where: str = ""
    request: Callable[[Exchange], bytes] = _same_body
    head: Callable[[Head], Head] = _same_head
    events: Callable[[Exchange, Pieces], Pieces] = _same
    data: Callable[[Exchange, Pieces], Pieces] = _same
    party: Party = "gateway"

    def __str__(self) -> str:
        return ", ".join(filter(None, (self.name, self.where)))


_NONE: Final = Fault("no fault")


class _Link(asyncio.StreamReaderProtocol):
    """One client's connection. `gone` is set when the client has closed it, whatever is being done for it."""

    def __init__(self, serve: Callable[[_Link, asyncio.StreamWriter], Any]) -> None:
        self.gone = asyncio.Event()
        self.reader = asyncio.StreamReader()
        super().__init__(self.reader, lambda _, writer: serve(self, writer))

    def eof_received(self) -> bool | None:
        self.gone.set()
        return super().eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        self.gone.set()
        super().connection_lost(error)


class FaultLayer:
    """Stands before `enclave`, in a thread of its own.

    ::

        with LocalEnclave(private_key=TEST_KEY) as prem, FaultLayer(prem) as layer:
            layer.strike(fault)
            PremClient(**layer.client_options)

    Args:
        enclave: Whom it passes requests on to. It may be replaced between two requests.
        private_keys: The keys that open what passes, where a fault has to.
    """

    def __init__(self, enclave: LocalEnclave, private_keys: Sequence[PrivateKey] = (TEST_KEY,)) -> None:
        self.enclave = enclave
        self.private_keys = list(private_keys)
        #: Chooses the fault of an exchange when its request is here; called in the layer's thread.
        self.choose: Callable[[Exchange], Fault | None] = lambda exchange: None
        self.exchanges: deque[Exchange] = deque(maxlen=REMEMBERED)
        #: What went wrong in the layer itself.
        self.failures: list[BaseException] = []
        self.accepted: dict[Party, int] = dict.fromkeys(PARTIES, 0)
        self._open: dict[Party, set[asyncio.StreamWriter]] = {party: set() for party in PARTIES}
        self._sockets: dict[Party, socket.socket] = {}
        self._ports: dict[Party, int] = {}
        self._servers: dict[Party, asyncio.Server] = {}
        self._serving: set[asyncio.Task[None]] = set()
        self._ready: concurrent.futures.Future[asyncio.AbstractEventLoop] = concurrent.futures.Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name="fault-layer")

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
        """Where it listens."""
        return frozenset(self._ports.values())

    @property
    def client_options(self) -> dict[str, str]:
        """What a client needs: `api_key`, `gateway_url`, `enclave_url`."""
        gateway, enclave = (f"http://127.0.0.1:{self._ports[party]}" for party in PARTIES)
        return {"api_key": self.enclave.api_key, "gateway_url": gateway, "enclave_url": enclave}

    def strike(self, fault: Fault, times: int | None = None) -> None:
        """Let `fault` strike the next exchanges with its party: so many, or all that follow."""
        left = [times]

        def choose(exchange: Exchange) -> Fault | None:
            if exchange.party != fault.party or left[0] == 0:
                return None
            if left[0] is not None:
                left[0] -= 1
            return fault

        self.choose = choose

    def heal(self) -> None:
        """Let everything pass as it is."""
        self.choose = lambda exchange: None

    def asked(self, party: Party) -> list[Exchange]:
        """The requests to one party since `forget`."""
        return [exchange for exchange in self.exchanges if exchange.party == party]

    def forget(self) -> None:
        """Forget the requests so far."""
        self.exchanges.clear()

    def connections(self, party: Party) -> int:
        """How many connections clients hold open."""
        return len(self._open[party])

    @contextlib.contextmanager
    def refusing(self, party: Party) -> Iterator[None]:
        """Refuse connections to `party`: nobody listens there, and nobody can take the port."""
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
        # With the protocol named, or asyncio does not set TCP_NODELAY, and small writes wait for one another.
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", self._ports.get(party, 0)))
        self._ports[party] = sock.getsockname()[1]

        async def serve(link: _Link, writer: asyncio.StreamWriter) -> None:
            await self._serve(party, link, writer)

        loop = asyncio.get_running_loop()
        self._servers[party] = await loop.create_server(lambda: _Link(serve), sock=sock, backlog=512)

    async def _refuse(self, party: Party) -> None:
        self._servers.pop(party).close()

    async def _serve(self, party: Party, link: _Link, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        self._open[party].add(writer)
        self.accepted[party] += 1
        try:
            while (exchange := await self._request(party, link.reader)) is not None:
                await self._until_left(exchange, link, writer)
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

    async def _request(self, party: Party, reader: asyncio.StreamReader) -> Exchange | None:
        try:
            (method, target, _), headers = await _read_head(reader)
        except asyncio.IncompleteReadError:
            return None
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        exchange = Exchange(party, method, target, headers, body, self.private_keys)
        self.exchanges.append(exchange)
        exchange.fault = self.choose(exchange)
        return exchange

    async def _until_left(self, exchange: Exchange, link: _Link, writer: asyncio.StreamWriter) -> None:
        answering = asyncio.ensure_future(self._answer(exchange, writer))
        leaving = asyncio.ensure_future(link.gone.wait())
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                answering.result()
            else:
                exchange.left.set()
                raise Drop
        finally:
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)

    async def _answer(self, exchange: Exchange, writer: asyncio.StreamWriter) -> None:
        fault = exchange.fault or _NONE
        async with self._passed_on(exchange, fault.request(exchange)) as (head, body):
            events = _events(body) if head.is_stream else _cut(body)
            if head.status == 200 and (fault.head is not _same_head or fault.events is not _same):
                head = fault.head(replace(head, headers=_chunked(head.headers)))
                events = fault.events(exchange, events)
            async for data in fault.data(exchange, _framed(head, events)):
                try:
                    writer.write(data)
                    await writer.drain()
                except ConnectionError:
                    exchange.left.set()
                    raise

    @contextlib.asynccontextmanager
    async def _passed_on(self, exchange: Exchange, body: bytes) -> AsyncIterator[tuple[Head, Pieces]]:
        url = self.enclave.gateway_url if exchange.party == "gateway" else self.enclave.enclave_url
        host = urlsplit(url).netloc
        headers = {**exchange.headers, "host": host, "connection": "close", "content-length": str(len(body))}
        lines = [f"{exchange.method} {exchange.target} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items())]
        name, _, port = host.partition(":")
        reader, writer = await asyncio.open_connection(name, int(port))
        try:
            writer.write("\r\n".join([*lines, "\r\n"]).encode("latin-1") + body)
            (_, status, *_), answered = await _read_head(reader)
            answered.pop("connection", None)  # between the layer and its neighbour
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


async def _cut(pieces: Pieces) -> Pieces:
    body = b"".join([piece async for piece in pieces])
    size = -(-len(body) // JSON_PIECES)
    for start in range(0, len(body), size or 1):
        yield body[start : start + size]


def _chunked(headers: dict[str, str]) -> dict[str, str]:
    # What a fault does to the length need not be announced.
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
