"""Whole response bodies: envelopes, the enclave's public key, completions and transcriptions."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

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
from prem_core._protocol.error_body import load_json, status_error, stream_error

if TYPE_CHECKING:
    from prem_core._protocol.response_types import ChatCompletion, Model, Transcription


def read_public_key(body: bytes) -> PublicKey:
    """The enclave's key out of its answer: JSON, bare or in the ``data`` envelope, or a bare text body.

    Raises:
        EnclaveKeyError: There is no key of exactly 1216 bytes in it.
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
        raise errors.EnclaveKeyError("the enclave's response holds no public key")
    return parse_public_key(value)


def parse_public_key(value: PublicKey | bytes | str) -> PublicKey:
    """A key as an object, 1216 raw bytes, hex or base64.

    Raises:
        EnclaveKeyError: It is none of these, or not exactly 1216 bytes.
    """
    if isinstance(value, PublicKey):
        return value
    raw = _hex_or_base64(value.strip()) if isinstance(value, str) else value
    # bytes(1216) would be a key of zeros.
    if not isinstance(raw, bytes | bytearray) or len(raw) != PUBLIC_KEY_BYTES:
        raise errors.EnclaveKeyError(
            f"an enclave public key is exactly {PUBLIC_KEY_BYTES} bytes, given raw, in hex or in base64"
        )
    try:
        return PublicKey(raw)
    except ValueError:
        raise errors.EnclaveKeyError("the bytes given are not an X-Wing public key") from None


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


def read_envelope(body: bytes) -> Any:
    """`data` of a success envelope.

    Raises:
        APIStatusError: The envelope reports an error inside an HTTP success.
        APIResponseValidationError: The body is no envelope.
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
    return envelope["data"]


def open_response(keys: EncryptionKeys, body: bytes) -> bytes:
    """The plaintext of an envelope's ``{encryptedResponse, nonce}``.

    Raises:
        APIResponseValidationError: The two fields are missing.
        DecryptionError: They do not open.
    """
    data = read_envelope(body)
    sealed = data.get("encryptedResponse") if isinstance(data, dict) else None
    nonce = data.get("nonce") if isinstance(data, dict) else None
    if not isinstance(sealed, str) or not isinstance(nonce, str):
        raise errors.APIResponseValidationError("the response has no encryptedResponse and nonce")
    try:
        return keys.open(decode_binary(sealed), decode_binary(nonce))
    except ValueError:
        raise errors.DecryptionError from None


class BodyReader:
    """Collects a whole body of up to `max_buffer_size` bytes."""

    __slots__ = ("_max", "_pieces", "_size")

    def __init__(self, max_buffer_size: int) -> None:
        self._max = max_buffer_size
        self._pieces: list[bytes] = []
        self._size = 0

    def feed(self, piece: bytes) -> None:
        """Take the next bytes.

        Raises:
            ResponseTooLargeError: The body is larger than the buffer.
        """
        self._size += len(piece)
        if self._size > self._max:
            raise errors.ResponseTooLargeError(
                f"the response is larger than max_buffer_size ({self._max} bytes)"
            )
        self._pieces.append(piece)

    def body(self) -> bytes:
        """The body so far."""
        return b"".join(self._pieces)


def open_completion(keys: EncryptionKeys, body: bytes) -> ChatCompletion:
    """The whole answer inside a JSON envelope.

    Raises:
        DecryptionError: It does not open.
        APIError: It reports an error.
        StreamInterruptedError: A choice in it has no finish reason.
    """
    from prem_core._protocol.response_types import ChatCompletion, read_json

    completion = read_json(ChatCompletion, open_response(keys, body))
    error = (completion.model_extra or {}).get("error")
    if error is not None:
        raise stream_error(error)
    if not completion.choices:
        raise APIResponseValidationError("the response has no choices")
    if any(choice.finish_reason is None for choice in completion.choices):
        raise StreamInterruptedError("a choice of the response has no finish reason: the answer is truncated")
    return completion


def read_models(body: bytes) -> list[Model]:
    """The models list in an envelope.

    Raises:
        APIResponseValidationError: It is not a list of models.
    """
    from prem_core._protocol.response_types import Model, read_value

    data = read_envelope(body)
    entries = data.get("models", data.get("data")) if isinstance(data, dict) else data
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise APIResponseValidationError("the models list is not a list")
    return [read_value(Model, entry) for entry in entries]


def read_transcription(plaintext: bytes, response_format: str | None) -> Transcription | str:
    """The service's answer to a recording, in the form of Whisper's models or of Deepgram's.

    Args:
        plaintext: The opened answer.
        response_format: What was asked for: with "text" the answer is the text itself.

    Raises:
        APIResponseValidationError: It is neither.
    """
    from prem_core._protocol.response_types import Transcription, read_json

    if response_format == "text":
        try:
            return plaintext.decode()
        except UnicodeDecodeError:
            failure = APIResponseValidationError("the transcription is not text")
        # Outside the handler: as its context, Python's error would bring the transcript along.
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
