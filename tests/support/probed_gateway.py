"""A gateway that responds to a probe in one way and to a prompt in another; see `nonce_reuse`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prem_core import DecryptionError
from prem_core._crypto.aead import new_nonce
from prem_core._crypto.keys import EncryptionKeys
from prem_core._protocol.nonce_reuse import is_probe
from support.fake_gateway import (
    COMPLETION,
    FakeEnclave,
    FakeGateway,
    OpenedRequest,
    ReceivedRequest,
    stream_hello,
)

Respond = Callable[[ReceivedRequest], None]

__all__ = ["OpenedRecording", "ProbedGateway", "in_an_envelope", "stream_hello", "under_the_requests_nonce"]


def in_an_envelope(call: ReceivedRequest) -> None:
    """Respond in one piece, under a nonce of its own."""
    call.reply(call.opened().envelope())


def under_the_requests_nonce(call: ReceivedRequest) -> None:
    """Respond in one piece, under the nonce of the request."""
    opened = call.opened()
    call.reply(_envelope(opened.keys, opened.nonce, json.dumps(COMPLETION).encode()))


def _envelope(keys: EncryptionKeys, nonce: bytes, plaintext: bytes) -> bytes:
    data = {"encryptedResponse": keys.seal(plaintext, nonce).hex(), "nonce": nonce.hex()}
    return json.dumps({"status": 200, "data": data}).encode()


@dataclass
class OpenedRecording:
    """A decrypted audio request."""

    route: str
    #: The parameters, as JSON and read.
    plaintext: bytes
    params: dict[str, Any]
    name: bytes
    recording: bytes
    #: The nonces of the parameters, of the name and of the recording.
    nonces: tuple[bytes, bytes, bytes]
    keys: EncryptionKeys

    @classmethod
    def of(cls, call: ReceivedRequest, enclave: FakeEnclave) -> OpenedRecording:
        """Open an audio request."""
        fields = {name: bytes.fromhex(value) for name, value in json.loads(call.body).items()}
        keys = EncryptionKeys(enclave.private.decapsulate(fields["cipherText"]), fields["cipherText"])
        nonces = (fields["nonce"], fields["fileNameNonce"], fields["fileNonce"])
        plaintext = keys.open(fields["encryptedInference"], nonces[0])
        name = keys.open(fields["encryptedFileName"], nonces[1])
        recording = keys.open(fields["encryptedFile"], nonces[2])
        return cls(call.path, plaintext, json.loads(plaintext), name, recording, nonces, keys)

    def envelope(self, plaintext: bytes = b'{"text": "Hello"}', nonce: bytes | None = None) -> bytes:
        """A response, by default under a nonce of its own."""
        return _envelope(self.keys, nonce or new_nonce(), plaintext)


class ProbedGateway(FakeGateway):
    """Responds to chats; a request that the enclave cannot open gets the error of a key rotation.

    Args:
        probe: Responds to the probes.
        prompt: Responds to the prompts.
        recording: Makes the response to an audio request.
    """

    def __init__(
        self,
        probe: Respond = in_an_envelope,
        prompt: Respond = in_an_envelope,
        *,
        recording: Callable[[OpenedRecording], bytes] = OpenedRecording.envelope,
        **options: Any,
    ) -> None:
        super().__init__(self._respond, other=self._respond_to_recording, **options)
        self.probe = probe
        self.prompt = prompt
        self.recording = recording
        self.recordings: list[OpenedRecording] = []
        self._opened: list[OpenedRequest] = []

    @property
    def opened(self) -> list[OpenedRequest]:
        """The chat requests that could be opened, in order."""
        return self._opened

    @property
    def probes(self) -> list[dict[str, Any]]:
        """The parameters of the probes for chats, in order."""
        return [each.params for each in self._opened if is_probe(each.params)]

    @property
    def prompts(self) -> list[dict[str, Any]]:
        """The parameters of the chats that are not probes, in order."""
        return [each.params for each in self._opened if not is_probe(each.params)]

    def _respond(self, call: ReceivedRequest) -> None:
        with contextlib.suppress(DecryptionError):
            opened = call.opened()
            self._opened.append(opened)
            (self.probe if is_probe(opened.params) else self.prompt)(call)
            return
        call.reply(b'{"status": 400, "error": "failed to decrypt the payload"}', 400)

    def _respond_to_recording(self, call: ReceivedRequest) -> None:
        opened = OpenedRecording.of(call, self.enclave)
        self.recordings.append(opened)
        call.reply(self.recording(opened))
