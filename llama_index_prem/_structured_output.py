"""Structured prediction: the requested schema, and the answer validated against it.

While an answer is streamed, its incomplete JSON is completed to show the fields so far. A complete answer is parsed
as it is. Errors name fields without showing values.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from typing import Any, Generic, TypeAlias, cast

import llama_index.core.instrumentation as instrument
from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.bridge.pydantic import BaseModel, ValidationError
from llama_index.core.instrumentation.events.llm import (
    LLMStructuredPredictEndEvent,
    LLMStructuredPredictStartEvent,
)
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.program.utils import FlexibleModel, create_flexible_model, get_program_for_llm
from llama_index.core.prompts import PromptTemplate
from llama_index.core.types import Model, PydanticProgramMode
from pydantic_core import from_json
from typing_extensions import override

from prem_core import RefusalError
from prem_core._adapters.tools import format_findings, json_schema_format

dispatcher = instrument.get_dispatcher(__name__)  # type: ignore[attr-defined]  # core re-exports it

#: What core's hooks for streamed structured prediction yield.
Partial: TypeAlias = "Model | list[Model] | FlexibleModel | list[FlexibleModel]"

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


class StructuredPredictionLLM(FunctionCallingLLM):
    """Structured prediction by JSON schema, for a model whose chat takes ``response_format``.

    With another `pydantic_program_mode` than DEFAULT it is left to core's programs.
    """

    @override
    @dispatcher.span
    def structured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """Answer `prompt` with an instance of `output_cls`.

        Args:
            output_cls: The Pydantic class.
            prompt: The template of the prompt.
            llm_kwargs: Parameters of the call.
            **prompt_args: Values for the template.

        Raises:
            RefusalError: The model refused.
            LengthFinishReasonError: The token limit truncated the answer.
            ValueError: The answer does not validate; the message names fields, not values.
        """
        if self.pydantic_program_mode != PydanticProgramMode.DEFAULT:
            made = super().structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
            return cast("Model", made)
        _dispatch_start(output_cls, prompt, prompt_args)
        answer = StructuredAnswer(output_cls)
        messages = self._structured_messages(prompt, prompt_args)
        return _dispatch_end(answer.parse(self.chat(messages, **answer.kwargs(llm_kwargs))))

    @override
    @dispatcher.span
    async def astructured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """`structured_predict`, awaited."""
        if self.pydantic_program_mode != PydanticProgramMode.DEFAULT:
            made = await super().astructured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
            return cast("Model", made)
        _dispatch_start(output_cls, prompt, prompt_args)
        answer = StructuredAnswer(output_cls)
        messages = self._structured_messages(prompt, prompt_args)
        return _dispatch_end(answer.parse(await self.achat(messages, **answer.kwargs(llm_kwargs))))

    @override
    def _structured_stream_call(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Partial[Model], None, None]:
        if self.pydantic_program_mode != PydanticProgramMode.DEFAULT:
            yield from self._program(output_cls, prompt).stream_call(llm_kwargs=llm_kwargs, **prompt_args)
            return
        answer = StructuredAnswer(output_cls)
        messages = self._structured_messages(prompt, prompt_args)
        for response in self.stream_chat(messages, **answer.kwargs(llm_kwargs)):
            if (value := answer.add(response)) is not None:
                yield value
        yield answer.end()

    @override
    async def _structured_astream_call(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Partial[Model], None]:
        if self.pydantic_program_mode != PydanticProgramMode.DEFAULT:
            program = self._program(output_cls, prompt)
            stream = await program.astream_call(llm_kwargs=llm_kwargs, **prompt_args)
            return cast("AsyncGenerator[Partial[Model], None]", stream)
        answer = StructuredAnswer(output_cls)
        messages = self._structured_messages(prompt, prompt_args)

        async def values() -> AsyncGenerator[Partial[Model], None]:
            async for response in await self.astream_chat(messages, **answer.kwargs(llm_kwargs)):
                if (value := answer.add(response)) is not None:
                    yield value
            yield answer.end()

        return values()

    def _program(self, output_cls: type[Model], prompt: PromptTemplate) -> Any:
        mode = self.pydantic_program_mode
        # Core requires the tool call only when it does not stream.
        forced = {"tool_choice": "required"} if mode == PydanticProgramMode.FUNCTION else {}
        return get_program_for_llm(output_cls, prompt, self, pydantic_program_mode=mode, **forced)

    def _structured_messages(self, prompt: PromptTemplate, prompt_args: dict[str, Any]) -> list[ChatMessage]:
        return self._extend_messages(prompt.format_messages(llm=self, **prompt_args))


def _dispatch_start(output_cls: Any, prompt: PromptTemplate, prompt_args: dict[str, Any]) -> None:
    event = LLMStructuredPredictStartEvent(output_cls=output_cls, template=prompt, template_args=prompt_args)
    dispatcher.event(event)


def _dispatch_end(value: Model) -> Model:
    dispatcher.event(LLMStructuredPredictEndEvent(output=value))
    return value
