"""A client that uses HTTP and keys directly.

It does not use the package's client: the tests compare the server with the published documents, not with our client.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from prem_core._crypto.aead import new_nonce
from prem_core._crypto.keys import EncryptionKeys
from prem_core._crypto.xwing import PublicKey
from prem_core._protocol.sse import EventDecoder
from prem_core.enclave import LocalEnclave
from support.paths import SCHEMAS
from support.waiting import eventually
from support.wire_schemas import schema as validator

CHAT = "/rvenc/chat/completions"
TRANSCRIPTIONS = "/rvenc/audio/transcriptions"
TRANSLATIONS = "/rvenc/audio/translations"
WHISPER = "openai/whisper-large-v3"


@dataclass
class SealedRequest:
    """One sealed request, and the keys to open its response."""

    keys: EncryptionKeys
    nonce: bytes
    body: dict[str, str]

    def open_hex(self, data: bytes) -> Any:
        return json.loads(self.keys.open(bytes.fromhex(data.decode()), self.nonce))

    def events(self, response: httpx.Response) -> list[tuple[str, Any]]:
        """The name of every event, and its data, opened. ``[DONE]`` is not sealed."""
        response.read()
        assert response.content[-2:] in (b"", b"\n\n"), "the last event is complete"
        events = list(EventDecoder(1 << 24).feed(response.content))
        return [
            (name.decode(), data.decode() if name == b"done" else self.open_hex(data))
            for name, data in events
        ]

    def opened(self, response: httpx.Response) -> bytes:
        """The plaintext of a response in the envelope."""
        assert response.status_code == 200, response.text
        envelope = response.json()
        validator("response-envelope").validate(envelope)
        data = envelope["data"]
        assert set(data) == {"encryptedResponse", "nonce"}
        assert data["nonce"] not in self.body.values()
        return self.keys.open(bytes.fromhex(data["encryptedResponse"]), bytes.fromhex(data["nonce"]))

    def chunks(self, response: httpx.Response) -> list[dict[str, Any]]:
        """The chunks of a complete stream."""
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("text/event-stream")
        *data, done = self.events(response)
        assert done == ("done", "[DONE]")
        assert {name for name, _ in data} <= {"data"}
        return [chunk for _, chunk in data]


@dataclass
class RawClient:
    """The client of one enclave."""

    prem: LocalEnclave
    http: httpx.Client

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.prem.api_key}"}

    def seal(self, params: Any, *, public_key: PublicKey | None = None) -> SealedRequest:
        plaintext = params if isinstance(params, bytes) else json.dumps(params).encode()
        keys = EncryptionKeys.encapsulate(public_key or self.prem.public_key)
        nonce = new_nonce()
        fields = {
            "encryptedInference": keys.seal(plaintext, nonce).hex(),
            "cipherText": keys.cipher_text.hex(),
            "nonce": nonce.hex(),
        }
        return SealedRequest(keys, nonce, fields)

    def seal_audio(self, params: Any, audio: bytes, name: bytes = b"note.wav") -> SealedRequest:
        """The three fields of a chat and four more, under one secret, with a nonce for each sealed field."""
        sealed = self.seal(params)
        for field, nonce_field, plaintext in (
            ("encryptedFile", "fileNonce", audio),
            ("encryptedFileName", "fileNameNonce", name),
        ):
            nonce = new_nonce()
            sealed.body[field] = sealed.keys.seal(plaintext, nonce).hex()
            sealed.body[nonce_field] = nonce.hex()
        return sealed

    def post(self, body: Any, path: str = CHAT, headers: Mapping[str, str] | None = None) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.http.post(
            self.prem.gateway_url + path,
            content=content,
            headers={**self.headers, "content-type": "application/json", **(headers or {})},
        )

    def chat(self, params: Any) -> tuple[SealedRequest, httpx.Response]:
        sealed = self.seal(params)
        return sealed, self.post(sealed.body)

    def audio(
        self, audio: bytes, path: str = TRANSCRIPTIONS, *, name: bytes = b"note.wav", **params: Any
    ) -> tuple[SealedRequest, httpx.Response]:
        """Post a recording. The default model is `WHISPER`."""
        sealed = self.seal_audio({"model": WHISPER, **params}, audio, name)
        return sealed, self.post(sealed.body, path)

    @contextmanager
    def stream(self, params: Any) -> Iterator[tuple[SealedRequest, httpx.Response]]:
        sealed = self.seal(params)
        with self.http.stream(
            "POST", self.prem.gateway_url + CHAT, json=sealed.body, headers=self.headers
        ) as response:
            yield sealed, response

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.http.get(self.prem.gateway_url + path, headers=self.headers, **options)


def params(content: Any = "Say hello.", **more: Any) -> dict[str, Any]:
    return {
        "model": "openai/gpt-oss-120b",
        "messages": [{"role": "user", "content": content}],
        "stream": True,
        **more,
    }


__all__ = [
    "CHAT",
    "SCHEMAS",
    "TRANSCRIPTIONS",
    "TRANSLATIONS",
    "WHISPER",
    "RawClient",
    "SealedRequest",
    "eventually",
    "params",
    "validator",
]
