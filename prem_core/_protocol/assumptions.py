"""Every point of the wire that no published document settles, one name each.

The rule of this file: what could not be checked against the live service stands here and nowhere
else, so that a wrong guess is mended in one line. README.md lists the same names under "What we
could not check against the live service"; a test holds the two lists together.
"""

from __future__ import annotations

import re
from binascii import unhexlify

#: Where the enclave publishes its public key: ``GET {enclave}/publicKey``, without authentication.
PUBLIC_KEY_PATH = "/publicKey"

#: The names under which a JSON answer may carry that key, bare or inside the ``data`` envelope.
PUBLIC_KEY_NAMES = ("publicKey", "public_key")


def encode_binary(data: bytes | memoryview) -> str:
    """Binary fields of a request are lower-case hex (documented for stream data, assumed for the rest)."""
    return data.hex()


def decode_binary(text: bytes | str) -> bytes:
    """The reverse of `encode_binary`.

    Raises:
        ValueError: The text is not hex. The error's own message does not quote it.
    """
    return unhexlify(text)


#: Error messages that mean "this key is not mine any more": an expired or unknown enclave key or
#: session, or a payload the enclave could not open.
KEY_ROTATED_PATTERN = re.compile(
    r"(?:(?:public|encryption|kem)[\s_-]*(?:key|secret)|(?:enclave|session)(?:[\s_-]*(?:key|secret))?)\b.{0,60}?"
    r"\b(?:expired|rotated|revoked|outdated|stale|unknown|not found|no longer|mismatch)"
    r"|\b(?:expired|rotated|revoked|outdated|stale|unknown)\b.{0,30}?"
    r"\b(?:(?:public|encryption|kem|enclave|session)[\s_-]*(?:key|secret)|session)\b"
    r"|(?:fail\w*|unable|could ?n[o']t|cannot|error)\b.{0,40}?\b(?:decrypt|decapsulat|unseal)"
    r"|\b(?:decrypt|decapsulat)\w*\b.{0,40}?\b(?:fail|error|invalid)",
    re.IGNORECASE | re.DOTALL,
)

#: Statuses under which such a message is believed; 401 and 403 speak of the API key instead.
KEY_ROTATED_STATUSES = frozenset({400, 409, 410, 422, 440, 498, 500, 503})

#: Error types of an ``error`` event inside a stream, and the HTTP status each stands for.
STREAM_ERROR_STATUS = {
    "invalid_request_error": 400,
    "context_length_exceeded": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "permission_denied": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "server_error": 500,
    "internal_error": 500,
    "internal_server_error": 500,
    "api_error": 500,
    "overloaded_error": 503,
    "service_unavailable": 503,
}

#: The scope each route needs, named by the seeds' table of scopes; used where a 403 names none.
ROUTE_SCOPES = {
    "/rvenc/chat/completions": "chats.completion",
    "/rvenc/audio/transcriptions": "audio.transcription",
    "/rvenc/audio/translations": "audio.translation",
}

#: Without ``stream: true`` the service may answer with the event stream (the only form documented)
#: or with the JSON envelope (the audio routes' form); both are read, told apart by content type.
EVENT_STREAM = "text/event-stream"

#: Names under which servers list a model's context window; the published documents have none of them.
CONTEXT_WINDOW_NAMES = ("context_window", "context_length", "max_context_length", "max_model_len")
