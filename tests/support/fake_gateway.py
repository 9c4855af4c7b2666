"""Both roles in one process: an exchange and an enclave, joined in memory (`Pair`) or by loopback (`Gateway`).

The cryptography is real in both: a `PrivateKey` opens what the client sealed and seals what it gets back.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from prem_core._crypto.aead import new_nonce
from prem_core._crypto.keys import EncryptionKeys
from prem_core._crypto.xwing import PrivateKey, PublicKey
from prem_core._errors import PremError
from prem_core._protocol.flow import (
    Acquire,
    FetchKey,
    Flow,
    FlowSettings,
    Read,
    Release,
    ResponseHead,
    Send,
    Sleep,
    Step,
    chat,
    fetch_public_key,
    list_models,
)
from prem_core._protocol.request_schema import chat_plaintext
from prem_core._protocol.response_types import ChatCompletion, ChatCompletionChunk, Model
from prem_core._protocol.retry import RetryPolicy
from prem_core._protocol.routes import CHAT_ROUTE

PARAMS: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hello!"}]}

EVENT_STREAM = {"content-type": "text/event-stream; charset=utf-8"}
JSON = {"content-type": "application/json"}

#: The chunks of a short answer: a role, two pieces of text, the finish reason, the usage.
HELLO: list[dict[str, Any]] = [
    {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]},
    {"choices": [{"index": 0, "delta": {"content": "Hel"}, "finish_reason": None}]},
    {"choices": [{"index": 0, "delta": {"content": "lo"}, "finish_reason": None}]},
    {"choices": [{"index": 0, "delta": [], "finish_reason": "stop"}]},
    {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}},
]
COMPLETION: dict[str, Any] = {
    "id": "c1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
}
DONE = b"event: done\ndata: [DONE]\n\n"


def chunk(value: dict[str, Any]) -> dict[str, Any]:
    """`value` with the fields that every chunk has."""
    return {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", **value}


def event(name: str, data: str | bytes) -> bytes:
    """One event as it stands on the wire."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data.encode() if isinstance(data, str) else data)


def every_byte(data: bytes) -> list[bytes]:
    """`data` in pieces of one byte."""
    return [data[i : i + 1] for i in range(len(data))]


def text_of(chunks: Iterable[ChatCompletionChunk]) -> str:
    """The words of a stream."""
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def said(error: BaseException) -> str:
    """Everything an error and the errors it hangs on could give away to a log."""
    texts: list[str] = []
    pending: list[BaseException | None] = [error]
    seen: set[int] = set()
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        pending += [current.__cause__, current.__context__]
        texts += [str(current), repr(current), repr(current.args), repr(getattr(current, "__dict__", None))]
        texts += getattr(current, "__notes__", [])
        # Where well-known errors keep what they failed on.
        texts += [repr(getattr(current, name, None)) for name in ("object", "doc", "request", "response")]
    return "\n".join(texts)


@dataclass
class Opened:
    """A request as the enclave sees it, and what it needs to answer."""

    body: dict[str, str]
    keys: EncryptionKeys
    nonce: bytes
    params: dict[str, Any]

    def seal(self, value: Any) -> str:
        """A sealed item of a stream: hex, under the request's own nonce."""
        plain = value if isinstance(value, bytes) else json.dumps(value).encode()
        return self.keys.seal(plain, self.nonce).hex()

    def events(self, *chunks: dict[str, Any]) -> bytes:
        """`chunks` as events."""
        return b"".join(event("data", self.seal(chunk(value))) for value in chunks)

    def stream(self, *chunks: dict[str, Any]) -> bytes:
        """A whole answer of these chunks, or of `HELLO`."""
        return self.events(*(chunks or HELLO)) + DONE

    def envelope(self, value: Any = None, **fields: Any) -> bytes:
        """A whole answer in the JSON form."""
        nonce = new_nonce()
        plain = (
            value if isinstance(value, bytes) else json.dumps(COMPLETION if value is None else value).encode()
        )
        data = {"encryptedResponse": self.keys.seal(plain, nonce).hex(), "nonce": nonce.hex()}
        return json.dumps(
            {"status": 200, "data": data, "message": None, "env": "development"} | fields
        ).encode()


class Enclave:
    """The holder of the private key."""

    def __init__(self, seed: int = 1) -> None:
        self.private = PrivateKey(bytes([seed]) * 32)

    @property
    def public(self) -> PublicKey:
        """What it publishes."""
        return self.private.public_key()

    def open(self, body: bytes) -> Opened:
        """Open a chat request.

        Raises:
            AssertionError: The body has other fields than the documented three, or they are not lower-case hex.
            DecryptionError: It was not sealed to this enclave.
        """
        fields = json.loads(body)
        assert set(fields) == {"encryptedInference", "cipherText", "nonce"}
        assert all(value == value.lower() for value in fields.values())
        cipher_text, nonce = bytes.fromhex(fields["cipherText"]), bytes.fromhex(fields["nonce"])
        keys = EncryptionKeys(self.private.decapsulate(cipher_text), cipher_text)
        plain = keys.open(bytes.fromhex(fields["encryptedInference"]), nonce)
        return Opened(fields, keys, nonce, json.loads(plain))


@dataclass
class Reply:
    """What one request is answered with; an error among the pieces breaks the connection there."""

    pieces: Sequence[bytes | PremError]
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: dict(EVENT_STREAM))
    received: float = 0.0


Answer = Callable[[Opened], "Reply | bytes | PremError"]


def default_settings(**values: Any) -> FlowSettings:
    """A client's settings, without jitter."""
    policy = RetryPolicy(max_retries=values.pop("max_retries", 2), rng=lambda: 0.0)
    return FlowSettings(**{"retry": policy, "max_buffer_size": 10 * 1024 * 1024} | values)


class Pair:
    """An exchange driven against an enclave in memory: no socket, no clock.

    Args:
        client: What the client is set up with; None for the defaults.
        enclave: Who opens the requests.
        answers: For each request in turn what it is answered with: a stream's bytes, a `Reply`, an error for a
            connection that fails; or a function of the opened request. The last one answers all that follow.
    """

    def __init__(
        self,
        client: FlowSettings | None = None,
        enclave: Enclave | None = None,
        answers: Sequence[Answer | Reply | bytes | PremError] = (),
    ) -> None:
        self.client = client or default_settings()
        self.enclave = enclave or Enclave()
        self.answers = list(answers) or [lambda opened: opened.stream()]
        #: What the client learns when it asks for the enclave's key, in turn.
        self.keys: list[PublicKey | PremError] = [self.enclave.public]
        self.sent: list[Send] = []
        self.opened: list[Opened] = []
        self._known: PublicKey | None = None
        #: The stale key of each fetch; None where no key was known.
        self.fetches: list[PublicKey | None] = []
        self.sleeps: list[float] = []
        self.releases: list[Release] = []
        self.reads = 0
        self._pieces: Iterator[bytes | PremError] = iter(())

    def complete(self, **params: Any) -> ChatCompletion:
        """A chat completion as a whole."""
        return self.run(chat(chat_plaintext({**PARAMS, **params}), self.client, stream=False))

    def stream(self, **params: Any) -> Iterator[ChatCompletionChunk]:
        """A streamed chat completion. The request goes out at once, as with the clients."""
        plaintext = chat_plaintext({**PARAMS, **params, "stream": True})
        chunks = self.results(chat(plaintext, self.client, stream=True))
        return itertools.chain((next(chunks),), chunks)

    def models(self, kind: str | None = None) -> list[Model]:
        """The models list."""
        return self.run(list_models(kind, self.client))

    def public_key(self) -> PublicKey:
        """The enclave's key, fetched."""
        return self.run(fetch_public_key(self.client))

    def run(self, flow: Flow) -> Any:
        """The last result of `flow`."""
        return list(self.results(flow))[-1]

    def results(self, flow: Flow) -> Iterator[Any]:
        """Perform the steps of `flow`, and yield its results."""
        outcome: Any = None
        with contextlib.suppress(StopIteration):
            step = next(flow)
            while True:
                if isinstance(step, Step):
                    try:
                        outcome = self._perform(step)
                    except PremError as error:
                        step = flow.throw(error)
                        continue
                else:
                    yield step
                    outcome = None
                step = flow.send(outcome)

    def _perform(self, step: Any) -> Any:
        if isinstance(step, Read):
            self.reads += 1
            return self._read()
        if isinstance(step, Sleep):
            self.sleeps.append(step.seconds)
            return None
        if isinstance(step, Release):
            self.releases.append(step)
            return None
        if isinstance(step, Acquire):
            if self.releases and (pause := self.releases[-1].pause) is not None:
                self.sleeps.append(pause)
            return self._key(None) if step.key else None
        if isinstance(step, FetchKey):
            return self._key(step.stale)
        assert isinstance(step, Send)
        self.sent.append(step)
        answer: Any = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if step.path == CHAT_ROUTE:
            assert step.body is not None
            if callable(answer):
                self.opened.append(self.enclave.open(step.body))
                answer = answer(self.opened[-1])
        answer = self._given(answer)
        reply = Reply([answer]) if isinstance(answer, bytes) else answer
        self._pieces = iter(reply.pieces)
        return ResponseHead(reply.status, reply.headers, reply.received)

    def _key(self, stale: PublicKey | None) -> PublicKey:
        # As a client does it: a known key is returned again, unless it is the stale one.
        if self._known is None or self._known == stale:
            self.fetches.append(stale)
            self._known = self._given(self.keys.pop(0) if len(self.keys) > 1 else self.keys[0])
        return self._known

    def _given(self, value: Any) -> Any:
        if isinstance(value, PremError):
            raise value
        return value

    def _read(self) -> bytes:
        # An empty piece means the end, so none may come before it.
        return self._given(next((piece for piece in self._pieces if piece != b""), b""))


def until(condition: Callable[[], bool], timeout: float = 5.0) -> bool:
    """Whether `condition` comes true within `timeout` seconds."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.002)
    return True


class Call:
    """One HTTP request at the `Gateway`, and the means to answer it."""

    def __init__(self, handler: BaseHTTPRequestHandler, enclave: Enclave) -> None:
        self._handler = handler
        self._enclave = enclave
        self.method = handler.command
        self.path, _, self.query = handler.path.partition("?")
        self.headers = {name.lower(): value for name, value in handler.headers.items()}
        self.body = handler.rfile.read(int(self.headers.get("content-length", 0)))
        self.connection: int = handler.client_address[1]

    def opened(self) -> Opened:
        """The chat request inside."""
        return self._enclave.open(self.body)

    def reply(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Answer at once."""
        self.head(status, (headers or JSON) | {"content-length": str(len(body))})
        self.raw(body)

    def head(self, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Send a status and headers."""
        self._handler.send_response(status)
        for name, value in (headers or {}).items():
            self._handler.send_header(name, value)
        self._handler.end_headers()

    def raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        with contextlib.suppress(OSError):
            self._handler.wfile.write(data)

    def begin(self) -> None:
        """Begin an event stream in HTTP chunks."""
        self.head(200, EVENT_STREAM | {"transfer-encoding": "chunked"})

    def piece(self, data: bytes) -> None:
        """Send a piece of it."""
        self.raw(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self) -> None:
        """End it as HTTP does."""
        self.raw(b"0\r\n\r\n")

    def stream(self, *pieces: bytes) -> None:
        """A whole event stream."""
        self.begin()
        for piece in pieces:
            self.piece(piece)
        self.end()

    def drop(self) -> None:
        """Close the connection after this answer, whether it is whole or not."""
        self._handler.close_connection = True

    def left(self, timeout: float = 5.0) -> bool:
        """Whether the client closes the connection within `timeout` seconds."""
        connection = self._handler.connection
        readable, _, _ = select.select([connection], [], [], timeout)
        if not readable:
            return False
        self.drop()
        with contextlib.suppress(ConnectionError):
            return connection.recv(1, socket.MSG_PEEK) == b""
        return True


def say_hello(call: Call) -> None:
    """Stream `HELLO`."""
    call.stream(call.opened().stream())


class Gateway:
    """Gateway and enclave behind one loopback port.

    Args:
        chat: Answers a chat request; the default streams `HELLO`.
        other: Answers any other path than /publicKey.
        enclave: Who holds the private key.
        key: Answers /publicKey.
        tls: Speak https under this certificate.
    """

    def __init__(
        self,
        chat: Callable[[Call], None] | None = None,
        *,
        other: Callable[[Call], None] | None = None,
        enclave: Enclave | None = None,
        key: Callable[[Call], None] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.enclave = enclave or Enclave()
        self.chat = chat or say_hello
        self.other = other or (lambda call: call.reply(b"{}", 404))
        self.key = key or self.give_key
        self.calls: list[Call] = []
        self._open: set[socket.socket] = set()
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                gateway._open.add(self.connection)

            def finish(self) -> None:
                gateway._open.discard(self.connection)
                with contextlib.suppress(OSError):
                    super().finish()

            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    super().handle()

            def do_GET(self) -> None:
                call = Call(self, gateway.enclave)
                gateway.calls.append(call)
                gateway.key(call) if call.path == "/publicKey" else gateway.other(call)

            def do_POST(self) -> None:
                call = Call(self, gateway.enclave)
                gateway.calls.append(call)
                gateway.chat(call) if call.path == CHAT_ROUTE else gateway.other(call)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            # Threads are joined at the end: none may outlive its test.
            daemon_threads = False
            request_queue_size = 128

        self._server = Server(("127.0.0.1", 0), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()

    def settings(self, **values: Any) -> dict[str, Any]:
        """Keyword arguments for a client of this gateway."""
        return {"api_key": "sk_test_key", "gateway_url": self.url, "enclave_url": self.url} | values

    def give_key(self, call: Call) -> None:
        """Answer with the enclave's key."""
        call.reply(json.dumps({"publicKey": bytes(self.enclave.public).hex()}).encode())

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._open)

    def paths(self) -> list[str]:
        """What was asked for, in order."""
        return [call.path for call in self.calls]

    def chats(self) -> list[Call]:
        """The chat requests."""
        return [call for call in self.calls if call.path == CHAT_ROUTE]


def error_reply(status: int, message: str, **fields: Any) -> Reply:
    """An error in the envelope's form."""
    return Reply([json.dumps({"status": status, "error": message, **fields}).encode()], status, dict(JSON))


#: How the service reports that its key was rotated.
KEY_ROTATED = error_reply(400, "failed to decrypt the payload")
