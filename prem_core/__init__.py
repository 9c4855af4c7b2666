"""Prem's end-to-end encrypted inference API, in-process.

>>> from prem_core import PremClient
>>> with PremClient() as client:  # doctest: +SKIP
...     client.chat.completions.create(
...         model="openai/gpt-oss-120b", messages=[{"role": "user", "content": "Hello!"}]
...     )
"""

from typing import TYPE_CHECKING, Any

from prem_core._client import (
    AsyncPremClient,
    PremClient,
    agenerate_encryption_keys,
    discover_endpoints,
    generate_encryption_keys,
)
from prem_core._completions import AsyncChatCompletionStream, ChatCompletionStream
from prem_core._errors import (
    APIConnectionError,
    APIError,
    APIResponseValidationError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    ContextLengthExceededError,
    DecryptionError,
    EnclaveKeyError,
    InternalServerError,
    InvalidParameterError,
    LengthFinishReasonError,
    NotFoundError,
    PermissionDeniedError,
    PremError,
    RateLimitError,
    RefusalError,
    RequestTooLargeError,
    ResponseTooLargeError,
    StreamInterruptedError,
)
from prem_core._kem import PublicKey
from prem_core._limits import Limits
from prem_core._pace import Stats
from prem_core._seal import EncryptionKeys
from prem_core._version import __version__

if TYPE_CHECKING:
    from prem_core._types import (
        ChatCompletion,
        ChatCompletionChunk,
        ChatCompletionMessage,
        Model,
        Transcription,
        TranscriptionSegment,
        TranscriptionWord,
        Usage,
    )


__all__ = [
    "APIConnectionError",
    "APIError",
    "APIResponseValidationError",
    "APIStatusError",
    "APITimeoutError",
    "AsyncChatCompletionStream",
    "AsyncPremClient",
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
    "NotFoundError",
    "PermissionDeniedError",
    "PremClient",
    "PremError",
    "PublicKey",
    "RateLimitError",
    "RefusalError",
    "RequestTooLargeError",
    "ResponseTooLargeError",
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


def __getattr__(name: str) -> Any:
    # The types of answers need pydantic, which doubles what importing the package costs: they come when
    # they are asked for, or with the first request.
    if name in __all__:
        from prem_core import _types

        return getattr(_types, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
