"""Requests after decryption: opened, checked against the published schemas, and ready for the engine.

Errors name a parameter and a rule, never a value: they leave the enclave as plaintext.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from prem_core._crypto.aead import NONCE_BYTES
from prem_core._crypto.keys import EncryptionKeys
from prem_core._crypto.xwing import PrivateKey
from prem_core._protocol.assumptions import encode_binary
from prem_core.enclave.engines.base import AudioTask
from prem_core.enclave.envelope import EnvelopeError
from prem_core.enclave.schema_check import SchemaName, parse_body
from prem_core.enclave.sealed_fields import FILE, FILE_NAME, INFERENCE, decode_field, open_fields

PARAMS_SCHEMAS: Final[Mapping[AudioTask, SchemaName]] = {
    "transcribe": "audio-transcription-params",
    "translate": "audio-translation-params",
}


@dataclass(frozen=True, slots=True)
class OpenedChat:
    """A chat request after decryption. Its repr shows no content."""

    keys: EncryptionKeys
    nonce: bytes = field(repr=False)
    params: dict[str, Any] = field(repr=False)

    def event(self, name: bytes, value: Any) -> bytes:
        """`value` as a server-sent event, sealed in hex under the nonce of the request, as the protocol requires."""
        data = encode_binary(self.keys.seal(json.dumps(value).encode(), self.nonce))
        return b"event: %b\ndata: %b\n\n" % (name, data.encode())


@dataclass(frozen=True, slots=True)
class OpenedAudio:
    """An audio request after decryption. Its repr shows no content."""

    task: AudioTask
    keys: EncryptionKeys
    params: dict[str, Any] = field(repr=False)
    file_name: str = field(repr=False)
    audio: bytes = field(repr=False)


def open_chat(private_key: PrivateKey, body: bytes) -> OpenedChat:
    """Open and check the body of a chat request.

    Raises:
        EnvelopeError: 400, the body does not match the published schemas, or does not open.
    """
    fields = parse_body("chat-request", body)
    keys, (plaintext,) = open_fields(private_key, fields, (INFERENCE,))
    params = parse_body("chat-inference-params", plaintext, name=INFERENCE.sealed)
    return OpenedChat(keys, decode_field(fields, INFERENCE.nonce, exactly=NONCE_BYTES), params)


def open_audio(private_key: PrivateKey, task: AudioTask, body: bytes) -> OpenedAudio:
    """Open and check the body of an audio request.

    Raises:
        EnvelopeError: 400, the body does not match the published schemas, or does not open.
    """
    fields = parse_body("audio-request", body)
    keys, (inference, name, audio) = open_fields(private_key, fields, (INFERENCE, FILE_NAME, FILE))
    params = parse_body(PARAMS_SCHEMAS[task], inference, name=INFERENCE.sealed)
    if "timestamp_granularities" in params and params.get("response_format") != "verbose_json":
        raise EnvelopeError.invalid("timestamp_granularities", "needs response_format verbose_json")
    try:
        file_name = name.decode()
    except UnicodeDecodeError:
        raise EnvelopeError.invalid(FILE_NAME.sealed, "must be UTF-8") from None
    return OpenedAudio(task, keys, params, file_name, audio)
