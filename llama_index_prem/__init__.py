"""LlamaIndex on Prem's encrypted inference API.

>>> from llama_index_prem import PremEncrypted
>>> llm = PremEncrypted(model="openai/gpt-oss-120b")
>>> llm.complete("Hello!")  # doctest: +SKIP
"""

try:
    import llama_index.core as _core  # noqa: F401
except ImportError as error:  # pragma: no cover - tested without the extra, in tests/packaging
    missing = 'llama_index_prem needs llama-index-core: pip install "prem-encrypted[llama-index]"'
    raise ImportError(missing) from error

from llama_index_prem.llm import PremEncrypted
from llama_index_prem.whisper import (
    WHISPER_SUFFIXES,
    PremWhisperReader,
    TranscriptionFailedWarning,
    whisper_file_extractor,
)
from prem_core import RefusalError, __version__
from prem_core._adapters.plaintext_egress import PlaintextEgressWarning

__all__ = [
    "WHISPER_SUFFIXES",
    "PlaintextEgressWarning",
    "PremEncrypted",
    "PremWhisperReader",
    "RefusalError",
    "TranscriptionFailedWarning",
    "__version__",
    "whisper_file_extractor",
]
