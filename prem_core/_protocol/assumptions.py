"""What no published document settles about the wire, one name for each point.

Nothing here could be checked against the live service. Each point is in this file only, so that a wrong guess is
corrected in one line. README.md lists the same names under "What we could not check against the live service"; a test
compares the two lists.
"""

from __future__ import annotations

import re
from binascii import unhexlify

#: Where the enclave publishes its public key: ``GET {enclave}/publicKey``, without authentication.
PUBLIC_KEY_PATH = "/publicKey"

#: The names under which a JSON answer may carry that key, bare or inside the ``data`` envelope.
PUBLIC_KEY_NAMES = ("publicKey", "public_key")


#: Binary fields of a request are lower-case hex: stated for the data of a stream, assumed for the rest. Bytes in,
#: text out.
encode_binary = bytes.hex

#: The reverse of `encode_binary`; text or ASCII bytes in. Raises ValueError for anything else, and its message does not
#: quote the text.
decode_binary = unhexlify

#: Error messages that mean key rotation: the enclave's key or session expired or is unknown, or the enclave could not
#: open the request. Anything else that fails to decrypt (a PDF with a password) or expires (a caller's session id)
#: is the caller's own affair. Bounded gaps keep the search linear.
KEY_ROTATED_PATTERN = re.compile(
    # "the enclave public key has expired", "session key not found"
    r"(?:(?:public|encryption|kem|enclave)[\s_-]*(?:key|secret)|enclave[\s_-]*session|session[\s_-]*key)\b.{0,60}?"
    r"\b(?:expired|rotated|revoked|outdated|stale|unknown|not found|no longer|mismatch)"
    # "sealed to an expired enclave key"
    r"|\b(?:expired|rotated|revoked|outdated|stale|unknown)\s.{0,20}?"
    r"\b(?:public|encryption|kem|enclave|session)[\s_-]*(?:key|secret)\b"
    # "session expired", "expired session"
    r"|\bsession (?:has |is )?expired\b|\bexpired session\b"
    # "failed to decrypt", "could not decrypt the request", "error while decrypting the payload"
    r"|(?:fail\w*|unable|could ?n[o']t|cannot|error)\s+(?:to\s+|while\s+)?(?:decrypt|decapsulat|unseal)\w*"
    r"(?:\W*$|\s+(?:(?:the|this|your|sealed|encrypted|inference)\s+){0,3}"
    r"(?:payload|request|body|inference|cipher\s?text|parameters))"
    # "decryption failed"
    r"|(?:^|\b(?:payload|request|inference)\s)\W*(?:decryption|decapsulation)\s+(?:failed|failure|error)",
    re.IGNORECASE | re.DOTALL,
)

#: Statuses under which such a message is believed; 401 and 403 speak of the API key instead.
KEY_ROTATED_STATUSES = frozenset({400, 409, 410, 422, 440, 498, 500, 503})

#: The 429 for a stream while another stream of the same API key is open: "You already have an active chat stream".
STREAM_REFUSED_PATTERN = re.compile(r"\bactive (?:chat )?stream\b", re.IGNORECASE)

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
#: or with the JSON envelope (the audio routes' form). Both are read; the content type decides.
EVENT_STREAM = "text/event-stream"

#: Names under which servers list a model's context window; the published documents have none of them.
CONTEXT_WINDOW_NAMES = ("context_window", "context_length", "max_context_length", "max_model_len")
