"""LangChain on Prem's end-to-end encrypted inference API.

>>> from langchain_prem import ChatPremEncrypted
>>> llm = ChatPremEncrypted(model="openai/gpt-oss-120b")
>>> llm.invoke("Hello!")  # doctest: +SKIP
"""

try:
    import langchain_core as _core  # noqa: F401
except (
    ImportError
) as error:  # pragma: no cover - run in an environment without the extra, by the packaging test
    raise ImportError(
        'langchain_prem needs langchain-core: pip install "prem-encrypted[langchain]"'
    ) from error

from langchain_prem._egress import PlaintextEgressWarning
from langchain_prem.chat_models import ChatPremEncrypted
from prem_core import RefusalError
from prem_core._version import __version__

__all__ = ["ChatPremEncrypted", "PlaintextEgressWarning", "RefusalError", "__version__"]
