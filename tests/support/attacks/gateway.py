"""A gateway under an attacker's control, on real sockets between a client and the embedded enclave.

It has no key. It carries sealed requests and responses, records them, and can respond with something else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final, Self

import httpx

from prem_core._protocol.routes import CHAT_ROUTE
from prem_core._protocol.sse import EventDecoder
from prem_core.enclave import LocalEnclave
from support.faults.fault_proxy import Fault, FaultProxy, Head, Pieces, ProxiedRequest

#: The sealed fields of a request, and the fields with their nonces.
_SEALED: Final = {
    "encryptedInference": "nonce",
    "encryptedFile": "fileNonce",
    "encryptedFileName": "fileNameNonce",
}


@dataclass(frozen=True)
class Recording:
    """One request and its response, as the gateway carried them: sealed."""

    request: bytes
    response: bytes

    @property
    def fields(self) -> dict[str, bytes]:
        """The fields of the request: sealed items, nonces and the KEM's cipher text."""
        return {name: bytes.fromhex(value) for name, value in json.loads(self.request).items()}

    @property
    def sealed_request(self) -> bytes:
        """The sealed parameters."""
        return self.fields["encryptedInference"]

    @property
    def chunks(self) -> list[bytes]:
        """The sealed chunks of an event stream; none of another response."""
        if self.response.startswith(b"{"):
            return []
        events = EventDecoder(1 << 24).feed(self.response)
        return [bytes.fromhex(data.decode()) for name, data in events if name == b"data"]

    @property
    def items(self) -> list[tuple[bytes, bytes]]:
        """Everything sealed in request and response, each with its nonce."""
        fields = self.fields
        items = [(fields[nonce], fields[sealed]) for sealed, nonce in _SEALED.items() if sealed in fields]
        items += [(fields["nonce"], chunk) for chunk in self.chunks]
        if self.response.startswith(b"{"):
            data = json.loads(self.response)["data"]
            items.append((bytes.fromhex(data["nonce"]), bytes.fromhex(data["encryptedResponse"])))
        return items


#: What the client gets in place of the recorded response; None for the response itself.
Respond = Callable[[Recording], Iterable[bytes] | None]


def forward(recording: Recording) -> None:
    """Respond with the enclave's own response."""


class Gateway:
    """Carries what is sent to `enclave`, and records the sealed requests and their responses.

    Attributes:
        recordings: The exchanges that succeeded, in order.
        respond: What the client gets instead; called when the enclave's response is complete.
        content_type: The content type of the responses, where it is not the enclave's.
    """

    def __init__(self, enclave: LocalEnclave) -> None:
        self._proxy = FaultProxy(enclave, private_keys=())
        fault = Fault("attack", head=self._head, events=self._carry, data=_hold)
        self._proxy.choose = lambda exchange: fault if exchange.method == "POST" else None
        self.reset()

    def reset(self) -> None:
        """Forget the recordings, and forward again."""
        self.recordings: list[Recording] = []
        self.respond: Respond = forward
        self.content_type: str | None = None

    def __enter__(self) -> Self:
        self._proxy.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._proxy.__exit__(*error)
        if self._proxy.failures:
            raise self._proxy.failures[0]

    @property
    def enclave(self) -> LocalEnclave:
        """The enclave that gets the requests. It can be replaced by another one."""
        return self._proxy.enclave

    @enclave.setter
    def enclave(self, enclave: LocalEnclave) -> None:
        self._proxy.enclave = enclave

    @property
    def client_options(self) -> dict[str, str]:
        """The options of a client that uses this gateway."""
        return self._proxy.client_options

    def resend(self, request: bytes) -> Recording:
        """Send a chat to the enclave, as if it came from the client, whose API key the gateway sees."""
        headers = {"authorization": f"Bearer {self.enclave.api_key}", "content-type": "application/json"}
        url = self.enclave.gateway_url + CHAT_ROUTE
        response = httpx.post(url, content=request, headers=headers, trust_env=False)
        response.raise_for_status()
        return Recording(request, response.content)

    def _head(self, head: Head) -> Head:
        if self.content_type is None:
            return head
        return replace(head, headers={**head.headers, "content-type": self.content_type})

    async def _carry(self, exchange: ProxiedRequest, pieces: Pieces) -> Pieces:
        parts = [piece async for piece in pieces]
        recording = Recording(exchange.body, b"".join(parts))
        self.recordings.append(recording)
        instead = self.respond(recording)
        for part in parts if instead is None else instead:
            yield part


async def _hold(exchange: ProxiedRequest, data: Pieces) -> Pieces:
    # Head and body at once: a client that disconnects after the head does not stop the recording.
    for piece in [each async for each in data]:
        yield piece


def event(sealed: bytes) -> bytes:
    """A sealed chunk as an event of the stream."""
    return b"event: data\ndata: %b\n\n" % sealed.hex().encode()


#: The end of an event stream. It is not sealed.
DONE: Final = b"event: done\ndata: [DONE]\n\n"


def envelope(sealed: bytes, nonce: bytes) -> bytes:
    """A sealed response in the JSON envelope."""
    data = {"encryptedResponse": sealed.hex(), "nonce": nonce.hex()}
    return json.dumps({"status": 200, "data": data, "error": None}).encode()
