"""The JSON around the sealed parts: request bodies, success envelopes, error bodies.

The rule of this file: bytes and values in, bytes, values or one typed error out. Whatever a body
holds (HTML, nothing, a list), reading an error never raises anything but that error.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from prem_core import _errors as errors
from prem_core._assumed import (
    KEY_TURNED,
    KEY_TURNED_STATUSES,
    PUBLIC_KEY_NAMES,
    ROUTE_SCOPES,
    STREAM_ERROR_STATUS,
    decode_binary,
    encode_binary,
)
from prem_core._kem import PUBLIC_KEY_BYTES, PublicKey
from prem_core._retry import parse_retry_after
from prem_core._seal import EncryptionKeys, new_nonce

#: Error texts come from the network; this many characters of one are enough to say what is wrong.
MAX_MESSAGE: Final = 500

#: Bytes of ciphertext that one piece of a body holds, as hex twice that.
HEX_PIECE: Final = 64 * 1024

_CONTEXT = re.compile(
    r"context[ _](?:length|window)|maximum context|prompt is too long|too many tokens",
    re.IGNORECASE,
)
_SCOPE = re.compile(r"\b(?:[a-z_]+\.)+(?:completion|transcription|translation|read|create|delete|execute)\b")


class SealedBody:
    """A request's JSON, written in pieces.

    Every field is binary and travels as hex. A recording of 25 MB is 50 MB of it, which is never held: each
    piece is made when it is sent. Iterating again writes the same body again.

    Args:
        fields: Name and bytes, in the order in which they are written.
    """

    __slots__ = ("_fields", "length")

    def __init__(self, fields: Mapping[str, bytes]) -> None:
        self._fields = fields
        #: Bytes of the whole body, for Content-Length.
        self.length = sum(len(name) + 2 * len(data) + 6 for name, data in fields.items()) + 1

    def __iter__(self) -> Iterator[bytes]:
        before = b"{"
        for name, data in self._fields.items():
            yield b'%b"%b":"' % (before, name.encode())
            view = memoryview(data)
            for start in range(0, len(view), HEX_PIECE):
                yield encode_binary(view[start : start + HEX_PIECE]).encode()
            before = b'",'
        yield b'"}'

    def __repr__(self) -> str:
        return f"SealedBody({self.length} bytes)"


Body = bytes | SealedBody


def _body(fields: Mapping[str, bytes]) -> Body:
    body = SealedBody(fields)
    # A small one goes out in one write.
    return b"".join(body) if body.length <= HEX_PIECE else body


def chat_body(keys: EncryptionKeys, plaintext: bytes, nonce: bytes) -> Body:
    """The body of POST /rvenc/chat/completions: these three fields and no other."""
    return _body(
        {"encryptedInference": keys.seal(plaintext, nonce), "cipherText": keys.cipher_text, "nonce": nonce}
    )


def audio_body(keys: EncryptionKeys, plaintext: bytes, name: bytes, recording: bytes) -> Body:
    """The body of the audio routes: chat's three fields, and the recording and its name.

    All under the one secret, each under a fresh nonce of its own.
    """
    nonce, file_nonce, name_nonce = new_nonce(), new_nonce(), new_nonce()
    return _body(
        {
            "encryptedInference": keys.seal(plaintext, nonce),
            "cipherText": keys.cipher_text,
            "nonce": nonce,
            "encryptedFileName": keys.seal(name, name_nonce),
            "fileNameNonce": name_nonce,
            "fileNonce": file_nonce,
            "encryptedFile": keys.seal(recording, file_nonce),
        }
    )


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


def status_error(
    status: int,
    body: bytes,
    *,
    route: str = "",
    headers: Mapping[str, str] | None = None,
    now: float = 0.0,
) -> errors.APIStatusError:
    """The error that an HTTP reply stands for.

    Args:
        status: The HTTP status, 400 or more (or a redirect, which is not followed).
        body: What came with it: the envelope, OpenAI's error object, HTML, nothing.
        route: The path asked for; it names the scope where a 403 does not.
        headers: The reply's headers, read for Retry-After.
        now: When the reply came, seconds since the epoch.
    """
    try:
        value = _json(body)
    except ValueError:
        value = None
    fields = value if isinstance(value, dict) else {}
    inner = fields.get("error")
    detail = inner if isinstance(inner, dict) else {}
    texts = (inner, detail.get("message"), fields.get("message"))
    text = next((text for text in texts if isinstance(text, str) and text.strip()), "")
    message = _one_line(text) or f"the service answered {status}"
    validator = fields.get("validator")
    if validator and isinstance(validator, dict):
        message = _one_line(f"{message} [{', '.join(map(str, validator))}]")
    headers = headers or {}
    return _typed(
        status,
        message,
        route,
        type=_text(detail.get("type")),
        code=_text(detail.get("code")),
        param=_text(detail.get("param")),
        support_id=_text(fields.get("support_id")),
        validator=validator,
        retry_after=parse_retry_after(headers.get("retry-after"), now),
    )


def stream_error(error: Any) -> errors.APIError:
    """The error that an ``error`` event, or an ``error`` object inside a chunk, stands for."""
    if isinstance(error, dict) and isinstance(error.get("error"), dict | str):
        support_id = _text(error.get("support_id"))
        error = error["error"]
    else:
        support_id = None
    detail = error if isinstance(error, dict) else {"message": error}
    kind = _text(detail.get("type"))
    code = detail.get("code")
    support_id = _text(detail.get("support_id")) or support_id
    message = _one_line(_text(detail.get("message")) or "the service reported an error inside the stream")
    status = next((s for s in (detail.get("status"), code) if isinstance(s, int) and 400 <= s < 600), None)
    if status is None:
        status = STREAM_ERROR_STATUS.get(kind or "") or STREAM_ERROR_STATUS.get(_text(code) or "")
    if status is None:
        return errors.APIError(message, type=kind, code=_text(code), support_id=support_id)
    return _typed(status, message, "", type=kind, code=_text(code), support_id=support_id)


def names_turned_key(error: errors.APIError) -> bool:
    """Whether `error` says that the enclave no longer holds the key the request was sealed to."""
    if isinstance(error, errors.APIStatusError) and error.status_code not in KEY_TURNED_STATUSES:
        return False
    return bool(KEY_TURNED.search(error.args[0]))


def _typed(status: int, message: str, route: str, **values: Any) -> errors.APIStatusError:
    values["status_code"] = status
    if status in (400, 422):
        if values.get("code") == "context_length_exceeded" or _CONTEXT.search(message):
            return errors.ContextLengthExceededError(message, **values)
        return errors.BadRequestError(message, **values)
    if status == 403:
        named = _SCOPE.search(message)
        scope = named[0] if named else ROUTE_SCOPES.get(route) if "scope" in message.lower() else None
        if scope and scope not in message:
            message += f" (needs the scope {scope})"
        return errors.PermissionDeniedError(message, scope=scope, **values)
    kinds: dict[int, type[errors.APIStatusError]] = {
        401: errors.AuthenticationError,
        404: errors.NotFoundError,
        413: errors.RequestTooLargeError,
        429: errors.RateLimitError,
    }
    kind = errors.InternalServerError if status >= 500 else kinds.get(status, errors.APIStatusError)
    return kind(message, **values)


def _one_line(text: str) -> str:
    # JSON can spell a lone surrogate, which no log or terminal could write.
    text = " ".join(text.split()).encode("utf-8", "replace").decode()
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…"


def _text(value: Any) -> str | None:
    return _one_line(str(value)) or None if isinstance(value, str | int) else None


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except RecursionError:
        raise ValueError("nested too deeply") from None


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
