"""Whole response bodies: envelopes, the enclave's public key, completions and transcriptions."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from prem_core import _errors as errors
from prem_core._crypto.keys import EncryptionKeys
from prem_core._crypto.xwing import PUBLIC_KEY_BYTES, PublicKey
from prem_core._errors import (
    APIResponseValidationError,
    StreamInterruptedError,
)
from prem_core._protocol.assumptions import (
    PUBLIC_KEY_NAMES,
    decode_binary,
)
from prem_core._protocol.error_body import load_json, short_text, status_error, stream_error

if TYPE_CHECKING:
    from prem_core._protocol.response_types import ChatCompletion, Model, Transcription

#: A longer list of models is rejected: a model object needs several hundred times the memory of its shortest JSON, {}.
MAX_MODELS: Final = 10_000


def read_public_key(body: bytes) -> PublicKey:
    """The enclave's key from its response: JSON with or without the ``data`` envelope, or plain text.

    Raises:
        EnclaveKeyError: The response contains no valid key of 1216 bytes.
    """
    try:
        value = load_json(body)
    except ValueError:
        value = body.decode("ascii", "replace").strip()
    if isinstance(value, dict) and isinstance(value.get("data"), dict | str):
        value = value["data"]
    if isinstance(value, dict):
        value = next((value[name] for name in PUBLIC_KEY_NAMES if name in value), None)
    if not isinstance(value, str):
        raise errors.EnclaveKeyError("the enclave's response contains no public key (check the enclave URL)")
    return parse_public_key(value)


def parse_public_key(value: PublicKey | bytes | str) -> PublicKey:
    """A public key from an object, 1216 raw bytes, hex or base64.

    Raises:
        EnclaveKeyError: `value` is none of these, not 1216 bytes, or not an X-Wing key.
    """
    if isinstance(value, PublicKey):
        return value
    raw = _hex_or_base64(value.strip()) if isinstance(value, str) else value
    # PublicKey would call bytes() on an int, and bytes(1216) would be a key of zeros.
    if not isinstance(raw, bytes | bytearray) or len(raw) != PUBLIC_KEY_BYTES:
        got = f", not {len(raw)}" if isinstance(raw, bytes | bytearray) else ""
        raise errors.EnclaveKeyError(
            f"an enclave public key must be {PUBLIC_KEY_BYTES} bytes (raw, hex or base64){got}"
        )
    try:
        return PublicKey(raw)
    except ValueError:
        raise errors.EnclaveKeyError("enclave_public_key is not a valid X-Wing public key") from None


def _hex_or_base64(text: str) -> bytes | None:
    try:
        return decode_binary(text)
    except ValueError:
        pass
    text += "=" * (-len(text) % 4)
    try:
        return base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except ValueError:
        return None


def read_envelope(body: bytes) -> dict[str, Any]:
    """A success envelope. It has `data`.

    Raises:
        APIStatusError: The envelope reports an error although the HTTP status is a success.
        APIResponseValidationError: The body is not an envelope.
    """
    try:
        envelope = load_json(body)
    except ValueError:
        raise errors.APIResponseValidationError("the response is not a JSON envelope") from None
    if not isinstance(envelope, dict):
        raise errors.APIResponseValidationError("the response is not a JSON envelope")
    status = envelope.get("status")
    if isinstance(status, int) and status >= 400:
        raise status_error(status, body)
    if "data" not in envelope:
        raise errors.APIResponseValidationError("the response's envelope has no data")
    return envelope


class OpenedResponse(NamedTuple):
    """An opened ``{encryptedResponse, nonce}``, and the `support_id` of its envelope."""

    plaintext: bytes
    nonce: bytes
    support_id: str | None


def open_response(keys: EncryptionKeys, body: bytes) -> OpenedResponse:
    """Open an envelope's ``{encryptedResponse, nonce}``.

    Raises:
        APIResponseValidationError: The two fields are missing.
        DecryptionError: The response could not be opened.
    """
    envelope = read_envelope(body)
    data = envelope["data"]
    sealed = data.get("encryptedResponse") if isinstance(data, dict) else None
    written = data.get("nonce") if isinstance(data, dict) else None
    if not isinstance(sealed, str) or not isinstance(written, str):
        raise errors.APIResponseValidationError("the response lacks encryptedResponse or nonce")
    try:
        nonce = decode_binary(written)
        plaintext = keys.open(decode_binary(sealed), nonce)
    except ValueError:
        raise errors.DecryptionError from None
    return OpenedResponse(plaintext, nonce, short_text(envelope.get("support_id")))


class BodyReader:
    """Collects a whole body of up to `max_buffer_size` bytes."""

    __slots__ = ("_max", "_parts", "_size")

    def __init__(self, max_buffer_size: int) -> None:
        self._max = max_buffer_size
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes.

        Raises:
            ResponseTooLargeError: The body is larger than the buffer.
        """
        self._size += len(data)
        if self._size > self._max:
            raise errors.ResponseTooLargeError(
                f"the response is larger than max_buffer_size ({self._max} bytes)"
            )
        self._parts.append(data)

    def body(self) -> bytes:
        """The body so far."""
        return b"".join(self._parts)


def read_completion(plaintext: bytes) -> ChatCompletion:
    """The whole answer in an opened response.

    Raises:
        APIError: The answer reports an error.
        StreamInterruptedError: A choice has no finish reason.
        APIResponseValidationError: It is not a whole answer.
    """
    from prem_core._protocol.response_types import ChatCompletion, read_json

    completion = read_json(ChatCompletion, plaintext)
    error = (completion.model_extra or {}).get("error")
    if error is not None:
        raise stream_error(error)
    if not completion.choices:
        raise APIResponseValidationError("the response has no choices")
    if any(choice.finish_reason is None for choice in completion.choices):
        raise StreamInterruptedError("a choice of the response has no finish reason: the answer is truncated")
    return completion


def read_models(body: bytes) -> list[Model]:
    """The list of models from an envelope.

    Raises:
        APIResponseValidationError: The envelope does not contain a list of models, or it has more than `MAX_MODELS`.
    """
    from prem_core._protocol.response_types import Model, read_value

    data = read_envelope(body)["data"]
    entries = data.get("models", data.get("data")) if isinstance(data, dict) else data
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise APIResponseValidationError("the response does not contain a list of models")
    if len(entries) > MAX_MODELS:
        raise APIResponseValidationError(
            f"the response lists {len(entries)} models; at most {MAX_MODELS} are accepted"
        )
    return [read_value(Model, entry) for entry in entries]


def read_transcription(plaintext: bytes, response_format: str | None) -> Transcription | str:
    """The transcription in an opened response, which has Whisper's form or Deepgram's.

    Args:
        plaintext: The opened response.
        response_format: The requested format. With "text" the response is the text itself.

    Raises:
        APIResponseValidationError: The response has neither form.
    """
    from prem_core._protocol.response_types import Transcription, read_json

    if response_format == "text":
        try:
            return plaintext.decode()
        except UnicodeDecodeError:
            failure = APIResponseValidationError("the transcription is not text")
        # Outside the handler: Python's error would become the context, and it contains the transcript.
        raise failure
    try:
        value = json.loads(plaintext)
    except (ValueError, RecursionError):
        value = None
    if value is None:
        raise APIResponseValidationError("the response is not a Transcription: not JSON")
    if isinstance(value, dict) and isinstance(value.get("results"), dict):
        return _from_deepgram(value)
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise APIResponseValidationError("the response is not a Transcription: it has no text")
    return read_json(Transcription, plaintext)


def _from_deepgram(value: dict[str, Any]) -> Transcription:
    from prem_core._protocol.response_types import Transcription, read_json

    try:
        channel = value["results"]["channels"][0]
        best = channel["alternatives"][0]
        text = best["transcript"]
    except (KeyError, IndexError, TypeError):
        raise APIResponseValidationError(
            "the response is not a Transcription: it has no transcript"
        ) from None
    metadata = value.get("metadata")
    made = {
        "text": text,
        "language": channel.get("detected_language"),
        "duration": metadata.get("duration") if isinstance(metadata, dict) else None,
        "words": best.get("words"),
    }
    return read_json(Transcription, json.dumps(made).encode())
