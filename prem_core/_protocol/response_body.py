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
from prem_core._protocol.error_body import _json, status_error, stream_error
from prem_core._protocol.response_types import ChatCompletion, read_json

if TYPE_CHECKING:
    from prem_core._protocol.response_types import Transcription


def read_public_key(body: bytes) -> PublicKey:
    """The enclave's key out of its answer: JSON, bare or in the ``data`` envelope, or a bare text body.

    Raises:
        EnclaveKeyError: There is no key of exactly 1216 bytes in it.
    """
    try:
        value = _json(body)
    except ValueError:
        value = body.decode("ascii", "replace").strip()
    if isinstance(value, dict) and isinstance(value.get("data"), dict | str):
        value = value["data"]
    if isinstance(value, dict):
        value = next((value[name] for name in PUBLIC_KEY_NAMES if name in value), None)
    if not isinstance(value, str):
        raise errors.EnclaveKeyError("the enclave's answer holds no public key")
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
        envelope = _json(body)
    except ValueError:
        raise errors.APIResponseValidationError("the answer is not the JSON envelope it should be") from None
    if not isinstance(envelope, dict):
        raise errors.APIResponseValidationError("the answer is not the JSON envelope it should be")
    status = envelope.get("status")
    if isinstance(status, int) and status >= 400:
        raise status_error(status, body)
    if "data" not in envelope:
        raise errors.APIResponseValidationError("the answer's envelope has no data")
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
        raise errors.APIResponseValidationError("the answer has no encryptedResponse and nonce")
    try:
        return keys.open(decode_binary(sealed), decode_binary(nonce))
    except ValueError:
        raise errors.DecryptionError from None


class BodyReader:
    """A whole body, held up to `max_buffer_size` bytes."""

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
                f"the answer is larger than max_buffer_size ({self._max} bytes)"
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
    completion = read_json(ChatCompletion, open_response(keys, body))
    error = (completion.model_extra or {}).get("error")
    if error is not None:
        raise stream_error(error)
    if not completion.choices:
        raise APIResponseValidationError("the answer has no choices")
    if any(choice.finish_reason is None for choice in completion.choices):
        raise StreamInterruptedError("a choice of the answer has no finish reason: it is cut")
    return completion


def read_transcription(plaintext: bytes, response_format: str | None) -> Transcription | str:
    """What the service made of a recording.

    Whisper's answers, and those of the Deepgram models, which are shaped differently.

    Args:
        plaintext: The opened answer.
        response_format: What was asked for: with "text" the answer is the text itself.

    Raises:
        APIResponseValidationError: It is neither.
    """
    # Here, as wherever pydantic is needed: it doubles what importing the package costs.
    from prem_core._protocol.response_types import Transcription, read_json

    if response_format == "text":
        try:
            return plaintext.decode()
        except UnicodeDecodeError:
            failure = APIResponseValidationError("the answer is not text")
        # Outside the handlers: as its context, Python's error would bring what was said along.
        raise failure
    try:
        value = json.loads(plaintext)
    except (ValueError, RecursionError):
        value = None
    if value is None:
        raise APIResponseValidationError("the answer is not a Transcription: not JSON")
    if isinstance(value, dict) and isinstance(value.get("results"), dict):
        return _from_deepgram(value)
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise APIResponseValidationError("the answer is not a Transcription: it has no text")
    return read_json(Transcription, plaintext)


def _from_deepgram(value: dict[str, Any]) -> Transcription:
    from prem_core._protocol.response_types import Transcription, read_json

    try:
        channel = value["results"]["channels"][0]
        best = channel["alternatives"][0]
        text = best["transcript"]
    except (KeyError, IndexError, TypeError):
        raise APIResponseValidationError("the answer is not a Transcription: it has no transcript") from None
    metadata = value.get("metadata")
    made = {
        "text": text,
        "language": channel.get("detected_language"),
        "duration": metadata.get("duration") if isinstance(metadata, dict) else None,
        "words": best.get("words"),
    }
    return read_json(Transcription, json.dumps(made).encode())
