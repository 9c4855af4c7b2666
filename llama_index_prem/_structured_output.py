"""Structured prediction: the requested schema, and the answer validated against it.

While an answer is streamed, its incomplete JSON is completed to show the fields so far. A complete answer is parsed
as it is. Errors name fields without showing values.
"""

from __future__ import annotations

from typing import Any, Generic, cast

from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.bridge.pydantic import BaseModel, ValidationError
from llama_index.core.program.utils import FlexibleModel, create_flexible_model
from llama_index.core.types import Model
from pydantic_core import from_json

from prem_core import RefusalError
from prem_core._adapters.tools import format_findings, json_schema_format

#: Arguments of calls with tools; core passes them to structured prediction too.
_TOOL_ARGUMENTS = frozenset({"tools", "tool_choice", "tool_required", "allow_parallel_tool_calls"})


class StructuredAnswer(Generic[Model]):
    """One structured prediction.

    Args:
        output_cls: The requested Pydantic class.
    """

    def __init__(self, output_cls: type[Model]) -> None:
        self._output_cls = output_cls
        self._flexible: type[FlexibleModel] | None = None
        self._last = ChatResponse(message=ChatMessage())
        self._shown: Model | FlexibleModel | None = None

    def kwargs(self, given: dict[str, Any] | None) -> dict[str, Any]:
        """Arguments of a chat call that requests the class; `given` is not changed."""
        schema = self._output_cls.model_json_schema()
        form = json_schema_format(
            str(schema.get("title") or self._output_cls.__name__),
            schema,
            description=schema.get("description"),
        )
        kept = {name: value for name, value in (given or {}).items() if name not in _TOOL_ARGUMENTS}
        return {**kept, "response_format": form}

    def add(self, response: ChatResponse) -> Model | FlexibleModel | None:
        """The value so far, with one more response of a stream.

        Returns:
            An instance of the class if the fields allow it, otherwise one in which every field is optional. None if
            nothing changed.
        """
        self._last = response
        text = response.message.content
        if not text or not response.delta:
            return None
        try:
            value = from_json(_unfenced(text), allow_partial="trailing-strings", cache_strings="keys")
        except ValueError:
            return None
        if not isinstance(value, dict):
            return None
        instance = self._instance(value)
        if instance == self._shown:
            return None
        self._shown = instance
        return instance

    def _instance(self, value: dict[str, Any]) -> Model | FlexibleModel:
        try:
            return self._output_cls.model_validate(value)
        except ValidationError:
            pass
        if self._flexible is None:
            self._flexible = create_flexible_model(cast("type[BaseModel]", self._output_cls))
        return self._flexible.model_validate(value)

    def end(self) -> Model:
        """The instance in the stream's last response; see `parse`."""
        return self.parse(self._last)

    def parse(self, response: ChatResponse) -> Model:
        """The instance in a complete answer.

        Raises:
            RefusalError: The model refused.
            ValueError: The answer does not validate; the message names fields, not values.
        """
        if response.message.additional_kwargs.get("refusal"):
            raise RefusalError
        try:
            return self._output_cls.model_validate_json(_unfenced(response.message.content or ""))
        except ValidationError as error:
            found = error.errors(include_url=False, include_input=False, include_context=False)
        # Raised outside the handler: pydantic's error quotes the answer, and would be kept as the context.
        raise ValueError(format_findings(self._output_cls.__name__, found))


def _unfenced(text: str) -> str:
    """`text` without the Markdown fences that some models put around JSON."""
    text = text.strip()
    if not text.startswith("```"):
        return text
    return text.partition("\n")[2].removesuffix("```").strip()
