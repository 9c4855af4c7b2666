"""A gateway and enclave for tests: in memory (`FlowHarness`) or behind a loopback port (`FakeGateway`).

The cryptography is real in both: a `PrivateKey` opens the client's requests, and the responses are sealed.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from prem_core._crypto.aead import new_nonce
from prem_core._crypto.keys import EncryptionKeys
from prem_core._crypto.xwing import PrivateKey, PublicKey
from prem_core._errors import PremError
from prem_core._protocol.flow import chat, fetch_public_key, list_models
from prem_core._protocol.flow import probe as probe_flow
from prem_core._protocol.masking import ChatRequest, without_padding
from prem_core._protocol.nonce_reuse import REPLY_FORMS
from prem_core._protocol.protection import Protection
from prem_core._protocol.request_schema import chat_request
from prem_core._protocol.response_body import open_response, read_completion
from prem_core._protocol.response_types import ChatCompletion, ChatCompletionChunk, Model
from prem_core._protocol.retry import RetryPolicy
from prem_core._protocol.routes import CHAT_ROUTE
from prem_core._protocol.steps import (
    Acquire,
    FetchKey,
    Flow,
    FlowSettings,
    Probe,
    Read,
    Release,
    ResponseHead,
    RunInThread,
    Send,
    Sleep,
    Step,
)
from support.waiting import SOON

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


def open_completion(keys: EncryptionKeys, body: bytes) -> ChatCompletion:
    """The completion in an envelope."""
    return read_completion(open_response(keys, body).plaintext)


def event(name: str, data: str | bytes) -> bytes:
    """One server-sent event as bytes."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data.encode() if isinstance(data, str) else data)


def every_byte(data: bytes) -> list[bytes]:
    """`data` in pieces of one byte."""
    return [data[i : i + 1] for i in range(len(data))]


def text_of(chunks: Iterable[ChatCompletionChunk]) -> str:
    """The content of a stream's chunks."""
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def error_text(error: BaseException) -> str:
    """Everything a log could show of an error, its cause and its context."""
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
class OpenedRequest:
    """A decrypted chat request, with the keys to seal a response to it."""

    body: dict[str, str]
    keys: EncryptionKeys
    nonce: bytes
    params: dict[str, Any]
    #: The decrypted JSON, with the client's mask.
    plaintext: bytes

    def seal(self, value: Any) -> str:
        """`value`, sealed for the event stream: hex, under the request's nonce."""
        plain = value if isinstance(value, bytes) else json.dumps(value).encode()
        return self.keys.seal(plain, self.nonce).hex()

    def events(self, *chunks: dict[str, Any]) -> bytes:
        """`chunks` as events."""
        return b"".join(event("data", self.seal(chunk(value))) for value in chunks)

    def stream(self, *chunks: dict[str, Any]) -> bytes:
        """A complete event stream of these chunks, by default of `HELLO`."""
        return self.events(*(chunks or HELLO)) + DONE

    def envelope(self, value: Any = None, **fields: Any) -> bytes:
        """A complete response as a JSON envelope."""
        nonce = new_nonce()
        plain = (
            value if isinstance(value, bytes) else json.dumps(COMPLETION if value is None else value).encode()
        )
        data = {"encryptedResponse": self.keys.seal(plain, nonce).hex(), "nonce": nonce.hex()}
        return json.dumps(
            {"status": 200, "data": data, "message": None, "env": "development"} | fields
        ).encode()


class FakeEnclave:
    """Holds the private key and opens chat requests."""

    def __init__(self, seed: int = 1) -> None:
        self.private = PrivateKey(bytes([seed]) * 32)

    @property
    def public(self) -> PublicKey:
        """The public key that belongs to it."""
        return self.private.public_key()

    def open(self, body: bytes) -> OpenedRequest:
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
        return OpenedRequest(fields, keys, nonce, without_padding(json.loads(plain)), plain)


@dataclass
class ScriptedResponse:
    """One response; an error among the pieces is a connection that fails there."""

    pieces: Sequence[bytes | PremError]
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: dict(EVENT_STREAM))
    received: float = 0.0


Script = Callable[[OpenedRequest], "ScriptedResponse | bytes | PremError"]


def default_settings(**values: Any) -> FlowSettings:
    """Settings of a client, without jitter."""
    policy = RetryPolicy(max_retries=values.pop("max_retries", 2), rng=lambda: 0.0)
    return FlowSettings(**{"retry": policy, "max_buffer_size": 10 * 1024 * 1024} | values)


class FlowHarness:
    """Runs request flows against an enclave in memory: no socket, no clock.

    Args:
        client: The client's settings; None for the defaults.
        enclave: Opens the requests.
        answers: The response to each request in order: the bytes of a stream, a `ScriptedResponse`, an error for a
            connection that fails, or a function of the opened request. The last one is repeated.
    """

    def __init__(
        self,
        client: FlowSettings | None = None,
        enclave: FakeEnclave | None = None,
        answers: Sequence[Script | ScriptedResponse | bytes | PremError] = (),
    ) -> None:
        self.client = client or default_settings()
        self.enclave = enclave or FakeEnclave()
        self.answers = list(answers) or [lambda opened: opened.stream()]
        #: The results of the key fetches, in order; the last one is repeated.
        self.keys: list[PublicKey | PremError] = [self.enclave.public]
        self.sent: list[Send] = []
        self.opened: list[OpenedRequest] = []
        self._known: PublicKey | None = None
        #: The stale key of each fetch; None where no key was known.
        self.fetches: list[PublicKey | None] = []
        #: Every step, in order.
        self.steps: list[Step] = []
        #: What the client waited for: delays, and pauses that a later permit observed.
        self.sleeps: list[float] = []
        self.releases: list[Release] = []
        self.reads = 0
        #: How the last streamed answer was protected.
        self.protection: Protection | None = None
        self._pieces: Iterator[bytes | PremError] = iter(())

    def complete(self, **params: Any) -> ChatCompletion:
        """Request a whole chat completion."""
        return self.run(chat(self._request(params), self.client, stream=False))

    def stream(self, **params: Any) -> Iterator[ChatCompletionChunk]:
        """Request a streamed chat completion. The request is sent at once, as by the clients."""
        chunks = self.results(chat(self._request({**params, "stream": True}), self.client, stream=True))
        self.protection = next(chunks)
        return itertools.chain((next(chunks),), chunks)

    def _request(self, params: dict[str, Any]) -> ChatRequest:
        return chat_request({**PARAMS, **params}, whole=not self.client.asks_for_streams)

    def models(self, kind: str | None = None) -> list[Model]:
        """Request the models list."""
        return self.run(list_models(kind, self.client))

    def public_key(self) -> PublicKey:
        """Fetch the enclave's public key."""
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
                    self.steps.append(step)
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
        if isinstance(step, RunInThread):
            return step.call()
        if isinstance(step, Probe):
            key = self._key(None)
            if REPLY_FORMS.own_nonce(self.client.gateway_url, key, step.subject) is None:
                self.run(probe_flow(step.subject, self.client))
            return None
        assert isinstance(step, Send)
        self.sent.append(step)
        answer: Any = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if step.path == CHAT_ROUTE:
            assert step.body is not None
            if callable(answer):
                self.opened.append(self.enclave.open(step.body))
                answer = answer(self.opened[-1])
        answer = self._given(answer)
        reply = ScriptedResponse([answer]) if isinstance(answer, bytes) else answer
        self._pieces = iter(reply.pieces)
        return ResponseHead(reply.status, reply.headers, reply.received)

    def _key(self, stale: PublicKey | None) -> PublicKey:
        # Like a client: the cached key is returned until it is reported as stale.
        if self._known is None or self._known == stale:
            self.fetches.append(stale)
            self._known = self._given(self.keys.pop(0) if len(self.keys) > 1 else self.keys[0])
        return self._known

    def _given(self, value: Any) -> Any:
        if isinstance(value, PremError):
            raise value
        return value

    def _read(self) -> bytes:
        # An empty read means the end of the response.
        return self._given(next((piece for piece in self._pieces if piece != b""), b""))


class ReceivedRequest:
    """One HTTP request that the `FakeGateway` received, and the methods to respond to it."""

    def __init__(self, handler: BaseHTTPRequestHandler, enclave: FakeEnclave) -> None:
        self._handler = handler
        self._enclave = enclave
        self.method = handler.command
        self.path, _, self.query = handler.path.partition("?")
        self.headers = {name.lower(): value for name, value in handler.headers.items()}
        self.body = handler.rfile.read(int(self.headers.get("content-length", 0)))
        self.connection: int = handler.client_address[1]

    def opened(self) -> OpenedRequest:
        """The chat request, decrypted."""
        return self._enclave.open(self.body)

    def reply(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Send a complete response."""
        self.head(status, (headers or JSON) | {"content-length": str(len(body))})
        self.raw(body)

    def head(self, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Send a status and headers."""
        self._handler.send_response(status)
        for name, value in (headers or {}).items():
            self._handler.send_header(name, value)
        if self.headers.get("connection") == "close":
            self._handler.send_header("connection", "close")
        self._handler.end_headers()

    def raw(self, data: bytes) -> None:
        """Send raw bytes."""
        with contextlib.suppress(OSError):
            self._handler.wfile.write(data)

    def begin(self) -> None:
        """Start an event stream with chunked transfer encoding."""
        self.head(200, EVENT_STREAM | {"transfer-encoding": "chunked"})

    def piece(self, data: bytes) -> None:
        """Send one HTTP chunk of the event stream."""
        self.raw(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self) -> None:
        """Send the last HTTP chunk."""
        self.raw(b"0\r\n\r\n")

    def stream(self, *pieces: bytes) -> None:
        """Send a complete event stream, one HTTP chunk per piece."""
        self.begin()
        for piece in pieces:
            self.piece(piece)
        self.end()

    def disconnect(self) -> None:
        """Close the connection after this response, complete or not."""
        self._handler.close_connection = True

    def wait_for_disconnect(self, timeout: float = SOON) -> bool:
        """Whether the client disconnects within `timeout` seconds."""
        connection = self._handler.connection
        readable, _, _ = select.select([connection], [], [], timeout)
        if not readable:
            return False
        self.disconnect()
        with contextlib.suppress(ConnectionError):
            return connection.recv(1, socket.MSG_PEEK) == b""
        return True


def stream_hello(call: ReceivedRequest) -> None:
    """Stream `HELLO`."""
    call.stream(call.opened().stream())


class FakeGateway:
    """Gateway and enclave behind one loopback port.

    Args:
        chat: Responds to chat requests; the default streams `HELLO`.
        other: Responds to every other path but /publicKey.
        enclave: Holds the private key.
        key: Responds to /publicKey.
        tls: Serve https with this context.
    """

    def __init__(
        self,
        chat: Callable[[ReceivedRequest], None] | None = None,
        *,
        other: Callable[[ReceivedRequest], None] | None = None,
        enclave: FakeEnclave | None = None,
        key: Callable[[ReceivedRequest], None] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.enclave = enclave or FakeEnclave()
        self.chat = chat or stream_hello
        self.other = other or (lambda call: call.reply(b"{}", 404))
        self.key = key or self.send_key
        self.calls: list[ReceivedRequest] = []
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
                call = ReceivedRequest(self, gateway.enclave)
                gateway.calls.append(call)
                gateway.key(call) if call.path == "/publicKey" else gateway.other(call)

            def do_POST(self) -> None:
                call = ReceivedRequest(self, gateway.enclave)
                gateway.calls.append(call)
                gateway.chat(call) if call.path == CHAT_ROUTE else gateway.other(call)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            # Threads are joined on exit, so that none outlives its test.
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
        """Arguments for a client of this gateway."""
        return {"api_key": "sk_test_key", "gateway_url": self.url, "enclave_url": self.url} | values

    def send_key(self, call: ReceivedRequest) -> None:
        """Respond with the enclave's public key."""
        call.reply(json.dumps({"publicKey": bytes(self.enclave.public).hex()}).encode())

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self._open)

    def paths(self) -> list[str]:
        """The paths of all requests, in order."""
        return [call.path for call in self.calls]

    def chats(self) -> list[ReceivedRequest]:
        """All chat requests, in order."""
        return [call for call in self.calls if call.path == CHAT_ROUTE]


def error_reply(status: int, message: str, **fields: Any) -> ScriptedResponse:
    """An error response in the form of the envelope."""
    return ScriptedResponse(
        [json.dumps({"status": status, "error": message, **fields}).encode()], status, dict(JSON)
    )


#: The response of a service whose key was rotated.
KEY_ROTATED = error_reply(400, "failed to decrypt the payload")
