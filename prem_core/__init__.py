"""A client for Prem's encrypted inference API, in-process.

>>> from prem_core import PremClient
>>> with PremClient() as client:  # doctest: +SKIP
...     client.chat.completions.create(
...         model="openai/gpt-oss-120b", messages=[{"role": "user", "content": "Hello!"}]
...     )
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from prem_core._errors import (
    APIConnectionError,
    APIError,
    APIResponseValidationError,
    APIStatusError,
    APITimeoutError,
    AttestationError,
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    ContextLengthExceededError,
    DecryptionError,
    EnclaveKeyError,
    InternalServerError,
    InvalidParameterError,
    LengthFinishReasonError,
    NonceReuseError,
    NotFoundError,
    PermissionDeniedError,
    PremError,
    RateLimitError,
    RefusalError,
    RequestTooLargeError,
    ResponseTooLargeError,
    StreamInterruptedError,
)
from prem_core._version import __version__

if TYPE_CHECKING:
    from prem_core._client.chat import AsyncChatCompletionStream, ChatCompletionStream
    from prem_core._client.client import AsyncPremClient, PremClient
    from prem_core._client.endpoints import (
        agenerate_encryption_keys,
        discover_endpoints,
        generate_encryption_keys,
    )
    from prem_core._crypto.keys import EncryptionKeys
    from prem_core._crypto.xwing import PublicKey
    from prem_core._protocol.attestation.settings import AttestationWarning
    from prem_core._protocol.nonce_reuse import NonceReuseWarning
    from prem_core._protocol.protection import Protection
    from prem_core._protocol.response_types import (
        ChatCompletion,
        ChatCompletionChunk,
        ChatCompletionMessage,
        Model,
        Transcription,
        TranscriptionSegment,
        TranscriptionWord,
        Usage,
    )
    from prem_core._rate_limit.admission import Stats
    from prem_core._rate_limit.permits import Limits
    from prem_core._rate_limit.shared import SharedLimits


__all__ = [
    "APIConnectionError",
    "APIError",
    "APIResponseValidationError",
    "APIStatusError",
    "APITimeoutError",
    "AsyncChatCompletionStream",
    "AsyncPremClient",
    "AttestationError",
    "AttestationWarning",
    "AuthenticationError",
    "BadRequestError",
    "ChatCompletion",
    "ChatCompletionChunk",
    "ChatCompletionMessage",
    "ChatCompletionStream",
    "ConfigurationError",
    "ContextLengthExceededError",
    "DecryptionError",
    "EnclaveKeyError",
    "EncryptionKeys",
    "InternalServerError",
    "InvalidParameterError",
    "LengthFinishReasonError",
    "Limits",
    "Model",
    "NonceReuseError",
    "NonceReuseWarning",
    "NotFoundError",
    "PermissionDeniedError",
    "PremClient",
    "PremError",
    "Protection",
    "PublicKey",
    "RateLimitError",
    "RefusalError",
    "RequestTooLargeError",
    "ResponseTooLargeError",
    "SharedLimits",
    "Stats",
    "StreamInterruptedError",
    "Transcription",
    "TranscriptionSegment",
    "TranscriptionWord",
    "Usage",
    "__version__",
    "agenerate_encryption_keys",
    "discover_endpoints",
    "generate_encryption_keys",
]


#: Where the other names are. They are imported when they are first used: the client needs httpx, and the types of
#: answers need pydantic; pytest imports this package in every run, for the plugin of `prem_core.enclave`.
_MODULES = {
    "_client.chat": ("AsyncChatCompletionStream", "ChatCompletionStream"),
    "_client.client": ("AsyncPremClient", "PremClient"),
    "_client.endpoints": ("agenerate_encryption_keys", "discover_endpoints", "generate_encryption_keys"),
    "_crypto.keys": ("EncryptionKeys",),
    "_crypto.xwing": ("PublicKey",),
    "_protocol.attestation.settings": ("AttestationWarning",),
    "_protocol.nonce_reuse": ("NonceReuseWarning",),
    "_protocol.protection": ("Protection",),
    "_rate_limit.admission": ("Stats",),
    "_rate_limit.permits": ("Limits",),
    "_rate_limit.shared": ("SharedLimits",),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = next((module for module, names in _MODULES.items() if name in names), "_protocol.response_types")
    value = globals()[name] = getattr(import_module(f"prem_core.{module}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
