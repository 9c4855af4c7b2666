"""A model's metadata, with a context window that is looked up when it is read.

LlamaIndex reads the metadata in many places, in callbacks before every call and within event loops, and the context
window in few of them. Looking it up may take a request, so it waits until then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llama_index.core.base.llms.types import LLMMetadata
from llama_index.core.bridge.pydantic import PrivateAttr, model_serializer


class LazyMetadata(LLMMetadata):
    """Metadata whose `context_window` is looked up when it is read, and left out of dumps until then.

    Args:
        look_up: Returns the context window, or raises.
        values: The other fields.
    """

    _look_up: Callable[[], int] = PrivateAttr()

    def __init__(self, look_up: Callable[[], int], **values: Any) -> None:
        super().__init__(**values)
        self._look_up = look_up
        # The base class's default would be a wrong value. Without one, reading the field calls __getattr__.
        del self.__dict__["context_window"]

    def __getattr__(self, name: str) -> Any:
        if name == "context_window":
            window = self.__dict__["context_window"] = self._look_up()
            return window
        return super().__getattr__(name)  # type: ignore[misc]  # pydantic hides its own from type checkers

    @model_serializer(mode="plain")
    def _known(self) -> dict[str, Any]:
        return dict(self.__dict__)
