"""LangChain on Prem's encrypted inference API.

>>> from langchain_prem import ChatPremEncrypted
>>> llm = ChatPremEncrypted(model="openai/gpt-oss-120b")
>>> llm.invoke("Hello!")  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

try:
    # First, because core otherwise builds some of its pydantic models twice, which makes the import a tenth slower.
    import langchain_core.language_models.chat_models as _core  # noqa: F401
except ImportError as error:  # pragma: no cover - tested without the extra, in tests/packaging
    missing = 'langchain_prem needs langchain-core: pip install "prem-encrypted[langchain]"'
    raise ImportError(missing) from error

from langchain_prem.chat_models import ChatPremEncrypted
from prem_core import RefusalError, __version__
from prem_core._adapters.plaintext_egress import PlaintextEgressWarning

if TYPE_CHECKING:
    from langchain_prem.extraction import extractor
    from langchain_prem.whisper import PremWhisperLoader, PremWhisperParser, TranscriptionFailedWarning

__all__ = [
    "ChatPremEncrypted",
    "PlaintextEgressWarning",
    "PremWhisperLoader",
    "PremWhisperParser",
    "RefusalError",
    "TranscriptionFailedWarning",
    "__version__",
    "extractor",
]


def __getattr__(name: str) -> Any:
    # Imported on first use: they need modules that a chat does not.
    if name == "extractor":
        from langchain_prem import extraction

        return extraction.extractor
    if name in __all__:
        from langchain_prem import whisper

        return getattr(whisper, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
