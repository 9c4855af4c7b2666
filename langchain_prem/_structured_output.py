"""Read structured output: JSON out of an answer, as a dict or as a Pydantic instance.

langchain-core's parsers complete JSON that is broken off, and put the model's answer into their errors.
This one completes only what is still being streamed, reads a whole answer as it stands, and its errors
name fields without showing values.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pydantic
import pydantic.v1
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, BaseMessage, BaseMessageChunk
from langchain_core.output_parsers import BaseTransformOutputParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.utils.json import parse_json_markdown, parse_partial_json

from langchain_prem._errors import translate
from prem_core import RefusalError
from prem_core._adapters.tools import format_findings

#: Stands for "nothing usable yet", which is not the same as a JSON null.
_NOTHING: Any = object()


class StructuredOutputParser(BaseTransformOutputParser[Any]):
    """The answer as `model`'s instance, or as the JSON value it is.

    Args:
        model: A Pydantic class (v2 or v1), or None for plain values.
        tool: The tool whose arguments are the answer; None where the answer is the text.
    """

    model: Any = None
    tool: str | None = None

    @property
    def _type(self) -> str:
        return "prem-structured-output"

    def parse(self, text: str) -> Any:
        """The value that `text` spells.

        Raises:
            OutputParserException: It is not JSON, or not what the model wants.
        """
        return self._checked(_from_text(text, partial=False))

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """The value in the first generation; None where it is partial and nothing can be read yet.

        Raises:
            RefusalError: The model refused.
            OutputParserException: There is no such value in it.
        """
        first = result[0]
        message = first.message if isinstance(first, ChatGeneration) else AIMessage(content=first.text)
        value = self._read(message, partial=partial)
        return None if value is _NOTHING else value

    def _transform(self, input: Iterator[str | BaseMessage]) -> Iterator[Any]:  # noqa: A002 - the base's name
        growing = _Growing(self)
        for piece in input:
            yield from growing.add(piece)
        yield from growing.end()

    async def _atransform(self, input: AsyncIterator[str | BaseMessage]) -> AsyncIterator[Any]:  # noqa: A002
        growing = _Growing(self)
        async for piece in input:
            for value in growing.add(piece):
                yield value
        for value in growing.end():
            yield value

    def _read(self, message: BaseMessage, *, partial: bool) -> Any:
        if message.additional_kwargs.get("refusal"):
            raise translate(RefusalError())
        if self.tool:
            value = self._from_tool(message, partial=partial)
        elif getattr(message, "tool_calls", None) and not message.text.strip():
            # Other tools were offered, and the model wants one of them first: there is no value yet.
            return _NOTHING
        else:
            value = _from_text(message.text, partial=partial)
        if value is _NOTHING:
            return value
        try:
            return self._checked(value)
        except OutputParserException:
            if partial:
                return _NOTHING
            raise

    def _from_tool(self, message: BaseMessage, *, partial: bool) -> Any:
        calls = getattr(message, "tool_calls", None) or []
        for call in calls:
            if call["name"] == self.tool:
                return call["args"]
        if partial:
            return _NOTHING
        bad = getattr(message, "invalid_tool_calls", None)
        raise OutputParserException(
            "the arguments of the model's call are not JSON"
            if bad
            else "the model did not make the call asked for"
        )

    def _checked(self, value: Any) -> Any:
        if self.model is None:
            return value
        findings: list[Any]
        try:
            if issubclass(self.model, pydantic.BaseModel):
                return self.model.model_validate(value)
            return self.model.parse_obj(value)
        except pydantic.ValidationError as error:
            findings = error.errors(include_url=False, include_input=False, include_context=False)
        except pydantic.v1.ValidationError as error:
            findings = error.errors()
        # Raised outside the handler: pydantic's error quotes the answer, and would be kept as the context.
        raise OutputParserException(format_findings(self.model.__name__, findings))


class _Growing:
    """A streamed answer, read again with every piece."""

    def __init__(self, parser: StructuredOutputParser) -> None:
        self._parser = parser
        self._whole: Any = None
        self._last: Any = _NOTHING

    def add(self, piece: str | BaseMessage) -> Iterator[Any]:
        chunk = piece if isinstance(piece, BaseMessage) else AIMessage(content=piece)
        if self._whole is not None and isinstance(chunk, BaseMessageChunk):
            chunk = self._whole + chunk
        self._whole = chunk
        yield from self._changed(self._parser._read(self._whole, partial=True))

    def end(self) -> Iterator[Any]:
        if self._whole is not None:
            yield from self._changed(self._parser._read(self._whole, partial=False))

    def _changed(self, value: Any) -> Iterator[Any]:
        if value is not _NOTHING and (self._last is _NOTHING or value != self._last):
            self._last = value
            yield value


def _from_text(text: str, *, partial: bool) -> Any:
    text = text.strip()
    if partial:
        try:
            value = parse_json_markdown(text, parser=parse_partial_json)
        except (ValueError, RecursionError):
            return _NOTHING
        return _NOTHING if value is None else value
    try:
        # Models in JSON mode put fences around it at times; nothing else is read into it.
        return parse_json_markdown(text, parser=_strict)
    except (ValueError, RecursionError):
        pass
    raise OutputParserException("the answer is not JSON")


def _strict(text: str) -> Any:
    return json.loads(text, strict=False)
