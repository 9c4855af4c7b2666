"""What LlamaIndex is told of a model, without a context window that nobody knows.

Metadata is read at many places, in callbacks before every call and within event loops, and few of them
want the context window. Where it is not known yet, it is looked up when somebody reads it, and not before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llama_index.core.base.llms.types import LLMMetadata
from llama_index.core.bridge.pydantic import PrivateAttr, model_serializer


class LazyMetadata(LLMMetadata):
    """Metadata whose `context_window` is looked up when it is read, and left out of dumps until then.

    Args:
        look_up: Gives the context window, or raises.
        values: The other fields.
    """

    _look_up: Callable[[], int] = PrivateAttr()

    def __init__(self, look_up: Callable[[], int], **values: Any) -> None:
        super().__init__(**values)
        self._look_up = look_up
        # The base's default is a guess. Without a value, reading the field comes to __getattr__.
        del self.__dict__["context_window"]

    def __getattr__(self, name: str) -> Any:
        if name == "context_window":
            window = self.__dict__["context_window"] = self._look_up()
            return window
        return super().__getattr__(name)  # type: ignore[misc]  # pydantic hides its own from type checkers

    @model_serializer(mode="plain")
    def _known(self) -> dict[str, Any]:
        return dict(self.__dict__)
