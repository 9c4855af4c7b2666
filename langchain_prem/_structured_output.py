"""Parse structured output: JSON in an answer, as a dict or as a Pydantic instance.

langchain-core's parsers complete truncated JSON, and quote the model's answer in their errors. This one completes JSON
only while the answer is streamed, and its errors name fields without showing values.
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

#: "No value yet", which is not the same as a JSON null.
_NOTHING: Any = object()


class StructuredOutputParser(BaseTransformOutputParser[Any]):
    """Parses an answer as an instance of `model`, or as a JSON value.

    Args:
        model: A Pydantic class (v2 or v1), or None for plain values.
        tool: The tool whose arguments are the value; None if the text is.
    """

    model: Any = None
    tool: str | None = None

    @property
    def _type(self) -> str:
        return "prem-structured-output"

    def parse(self, text: str) -> Any:
        """The value in `text`.

        Raises:
            OutputParserException: It is not JSON, or does not validate.
        """
        return self._checked(_from_text(text, partial=False))

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """The value in the first generation; None if it is partial and has no value yet.

        Raises:
            RefusalError: The model refused.
            OutputParserException: It has no such value.
        """
        first = result[0]
        message = first.message if isinstance(first, ChatGeneration) else AIMessage(content=first.text)
        value = self._read(message, partial=partial)
        return None if value is _NOTHING else value

    def _transform(self, input: Iterator[str | BaseMessage]) -> Iterator[Any]:  # noqa: A002 - the base's name
        reader = _PartialJsonReader(self)
        for chunk in input:
            yield from reader.add(chunk)
        yield from reader.end()

    async def _atransform(self, input: AsyncIterator[str | BaseMessage]) -> AsyncIterator[Any]:  # noqa: A002
        reader = _PartialJsonReader(self)
        async for chunk in input:
            for value in reader.add(chunk):
                yield value
        for value in reader.end():
            yield value

    def _read(self, message: BaseMessage, *, partial: bool) -> Any:
        if message.additional_kwargs.get("refusal"):
            raise translate(RefusalError())
        if self.tool:
            value = self._from_tool(message, partial=partial)
        elif getattr(message, "tool_calls", None) and not message.text.strip():
            # Other tools were offered, and the model calls one of them first: there is no value yet.
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
        invalid = getattr(message, "invalid_tool_calls", None)
        raise OutputParserException(
            "the arguments of the tool call are not JSON"
            if invalid
            else "the model did not make the requested tool call"
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
        # Outside the handler: pydantic's error, which quotes the answer, would be kept as the context.
        raise OutputParserException(format_findings(self.model.__name__, findings))


class _PartialJsonReader:
    """Parses a streamed answer again with each chunk, and yields values that differ from the last one."""

    def __init__(self, parser: StructuredOutputParser) -> None:
        self._parser = parser
        self._message: Any = None
        self._last: Any = _NOTHING

    def add(self, chunk: str | BaseMessage) -> Iterator[Any]:
        message = chunk if isinstance(chunk, BaseMessage) else AIMessage(content=chunk)
        if self._message is not None and isinstance(message, BaseMessageChunk):
            message = self._message + message
        self._message = message
        yield from self._changed(self._parser._read(message, partial=True))

    def end(self) -> Iterator[Any]:
        if self._message is not None:
            yield from self._changed(self._parser._read(self._message, partial=False))

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
        # Some models put Markdown fences around it in JSON mode; nothing else is repaired.
        return parse_json_markdown(text, parser=_strict)
    except (ValueError, RecursionError):
        pass
    raise OutputParserException("the answer is not JSON")


def _strict(text: str) -> Any:
    return json.loads(text, strict=False)
