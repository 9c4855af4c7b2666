"""`PremEncrypted`: Prem's end-to-end encrypted models as a LlamaIndex LLM."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import aclosing, closing
from typing import Any, ClassVar, TypeAlias, cast

import httpx
import llama_index.core.instrumentation as instrument
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
    ToolCallBlock,
)
from llama_index.core.bridge.pydantic import Field, PrivateAttr, field_validator
from llama_index.core.instrumentation.events.llm import (
    LLMStructuredPredictEndEvent,
    LLMStructuredPredictStartEvent,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.program.utils import FlexibleModel, get_program_for_llm
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools.types import BaseTool
from llama_index.core.types import Model, PydanticProgramMode
from pydantic_core import from_json
from typing_extensions import override

from llama_index_prem._messages import calls_in_kwargs, wire_messages
from llama_index_prem._metadata import LazyMetadata
from llama_index_prem._responses import ChatStream, chat_response, completion_response, keep_first_call
from llama_index_prem._structured_output import StructuredAnswer
from prem_core import (
    APIError,
    APIResponseValidationError,
    ConfigurationError,
    InvalidParameterError,
    RefusalError,
)
from prem_core._adapters import tools as tool_forms
from prem_core._adapters.model_profiles import listed_context_window, model_profile
from prem_core._adapters.settings import ModelSettings, check_params

dispatcher = instrument.get_dispatcher(__name__)  # type: ignore[attr-defined]  # core re-exports it

#: What core's hooks for streamed structured prediction give.
Partial: TypeAlias = "Model | list[Model] | FlexibleModel | list[FlexibleModel]"


class PremEncrypted(ModelSettings, FunctionCallingLLM):
    """Models behind Prem's end-to-end encrypted API.

    Prompts are sealed in this process to a hardware enclave's key, and replies are opened in it; the
    gateway in between authenticates and meters ciphertext.

    Install ``prem-encrypted[llama-index]`` and set ``PREM_API_KEY``.

    Args:
        model: Name of the model, for example ``openai/gpt-oss-120b``.
        context_window: Tokens of prompt and answer together. Known for some models; else the service's models
            list is asked, once, when something reads ``metadata.context_window``, and where that does not
            say, it is an error.
        temperature: Sampling temperature, 0 to 2.
        max_tokens: Most tokens to generate.
        reasoning_effort: none, minimal, low, medium or high.
        stop: Up to four strings to stop at.
        logprobs: Whether to return log probabilities. A stream's responses carry those of their `delta`.
        stream_usage: Whether streams report token usage. Default True.
        additional_kwargs: Further parameters of the published schema, checked.
        extra_body: Further names for the request, passed through unchecked.
        api_key: Begins with ``sk_live`` or ``sk_test``; else read from ``PREM_API_KEY``.
        gateway_url: The gateway; else ``PREM_GATEWAY_URL``, else Prem's.
        enclave_url: The enclave; else ``PREM_ENCLAVE_URL``, else Prem's.
        enclave_public_key: The enclave's key, pinned (hex, base64 or bytes), instead of a fetched one.
        encryption_keys: One KEM result for every request, instead of a fresh one each.
        timeout: Seconds to wait for a connection, for the answer to begin, and between its chunks.
        max_retries: Tries after the first; never once a chunk has come.
        total_timeout: Seconds for a whole call: its turn's wait, every try and, of a stream, the taker's time included.
        stream_chunk_timeout: Seconds between the chunks of a stream, whatever comments come in between; else `timeout`.
        max_concurrency: Requests on their way at once, of all threads and tasks. Default 5, the BASE tier's; None for
            any number.
        requests_per_second: Requests that begin, in the long run.
        limits: A `prem_core.Limits` in place of these two, to share with other models and clients of the organisation.
        max_buffer_size: Bytes of one event, or one body, that may be held.
        allow_insecure: Allow plain http to another machine.
        http_client: An ``httpx.Client`` of your own. Not closed here.
        async_http_client: An ``httpx.AsyncClient`` of your own.
        callback_manager: LlamaIndex's callbacks.
        system_prompt: Put before prompts by `predict`, `stream` and structured prediction; `chat` sends
            its messages as they are.

    Every other parameter of the published schema is a field too (``seed``, ``n``, ``verbosity``, …;
    ``request_metadata`` is its ``metadata``). All of them can be given per call, which wins. A name that is no
    field is an error.

    Raises:
        ValueError: A setting cannot work; the message names it.

    Examples:
        Chat and complete:

        ```python
        from llama_index.core.llms import ChatMessage
        from llama_index_prem import PremEncrypted

        llm = PremEncrypted(model="openai/gpt-oss-120b", temperature=0)
        print(llm.complete("Translate to French: I love programming."))
        print(llm.chat([ChatMessage("Hello!")]).message.content)
        ```

        Stream; each response holds the message so far, and the last one every block and the usage:

        ```python
        for response in llm.stream_chat([ChatMessage("Count to ten.")]):
            print(response.delta, end="")
        print(response.raw["usage"])
        ```

        Async. One object may be used over several ``asyncio.run`` calls:

        ```python
        response = await llm.achat([ChatMessage("Hello!")])
        ```

        Tools:

        ```python
        from llama_index.core.agent.workflow import FunctionAgent


        def get_weather(location: str) -> str:
            '''Get the weather at a location.'''
            return f"It is sunny in {location}."


        agent = FunctionAgent(tools=[get_weather], llm=llm)
        print(await agent.run("What is the weather in Paris and in Tokyo?"))
        ```

        Structured prediction, by the service's JSON schema support (``pydantic_program_mode``
        ``PydanticProgramMode.FUNCTION`` uses a tool call instead):

        ```python
        from pydantic import BaseModel


        class Invoice(BaseModel):
            number: str
            total: float


        llm.as_structured_llm(Invoice).complete("Invoice 17 over 12.50 EUR").raw
        ```

        Images, recordings (wav, mp3) and documents:

        ```python
        from llama_index.core.llms import DocumentBlock, TextBlock

        llm.chat([ChatMessage([TextBlock(text="Summarise."), DocumentBlock(path="letter.pdf")])])
        ```

    Parallel tool calls: the published schema has no parameter for them, and the service makes them where it sees
    fit. ``allow_parallel_tool_calls=False``, which is core's default, keeps the first call of an answer,
    streamed or not, and sends nothing; ``parallel_tool_calls=False``, which would promise that the model makes
    one only, is refused.

    Thinking is a `ThinkingBlock` of the message, and ``additional_kwargs["thinking_delta"]`` of a stream's
    responses. Within a tool loop it is sent back to the model.

    Refusals are in the message's ``additional_kwargs["refusal"]``; in structured prediction they are a
    `RefusalError`. Of ``n`` answers the first is the message; all are in ``raw["choices"]``.

    Pickle and copy: the API key and the callback manager are not written into pickles; the key is read from the
    environment again. Connections and what is in flight are not carried over; a copy makes its own. Copies share
    `limits` where these were given; a pickle has fresh ones.

    Errors are `prem_core`'s.
    """

    context_window: int | None = Field(default=None, gt=0)
    """Tokens of prompt and answer together; else looked up."""
    additional_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further parameters of the published schema, checked."""
    http_client: httpx.Client | None = Field(default=None, exclude=True, repr=False)
    """An httpx client of your own for synchronous calls. Not serialised, not closed."""
    async_http_client: httpx.AsyncClient | None = Field(default=None, exclude=True, repr=False)
    """An httpx client of your own for asynchronous calls. Not serialised, not closed."""

    # Said again: the framework's base class has a looser one, and stands last.
    model_config = ModelSettings.model_config

    _http_fields: ClassVar[tuple[str, str]] = ("http_client", "async_http_client")
    _unpickled: ClassVar[frozenset[str]] = frozenset({"api_key", "callback_manager"})
    _unshown: ClassVar[frozenset[str]] = ModelSettings._unshown | {
        "additional_kwargs", "query_wrapper_prompt", "system_prompt",
    }  # fmt: skip
    _shared: ClassVar[frozenset[str]] = frozenset({"rate_limiter", "callback_manager"})

    #: Context windows found in the models list, by model; None where it does not say.
    _listed: dict[str, int | None] = PrivateAttr(default_factory=dict)

    @field_validator("additional_kwargs")
    @classmethod
    def _of_the_schema(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in ("messages", "stream"):
            if name in value:
                raise InvalidParameterError(f"{name}: belongs to a call", param=name)
        check_params(value)
        return value

    # --- what it is -----------------------------------------------------------------------------------

    @classmethod
    @override
    def class_name(cls) -> str:
        return "PremEncrypted"

    @property
    @override
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex wants to know of the model.

        Raises:
            ConfigurationError: When its `context_window` is read: nobody knows it.
        """
        facts = model_profile(self.model)
        window = self.context_window or (facts.context_window if facts else None)
        others: dict[str, Any] = {
            "num_output": self.max_completion_tokens or self.max_tokens or -1,
            "is_chat_model": True,
            "is_function_calling_model": True,
            "model_name": self.model,
        }
        if window is not None:
            return LLMMetadata(context_window=window, **others)
        return LazyMetadata(self._listed_window, **others)

    def _listed_window(self) -> int:
        if self.model not in self._listed:
            try:
                models = self._sync().models.list()
            except (APIError, ConfigurationError) as error:
                raise ConfigurationError(
                    f"the context window of {self.model!r} is not known, and the models list cannot be had: pass "
                    "context_window=…"
                ) from error
            self._listed[self.model] = listed_context_window(models, self.model)
        window = self._listed[self.model]
        if window is None:
            raise ConfigurationError(
                f"the context window of {self.model!r} is not known, and the models list does not state it: pass "
                "context_window=…"
            )
        return window

    # --- requests -------------------------------------------------------------------------------------

    @override
    def _defaults(self) -> dict[str, Any]:
        return {**super()._defaults(), **self.additional_kwargs}

    def _request(
        self, messages: Sequence[ChatMessage], kwargs: Mapping[str, Any], *, stream: bool
    ) -> tuple[dict[str, Any], dict[str, bool]]:
        """Arguments of `chat.completions.create`, and how its answer is read."""
        given = dict(kwargs)
        first_only = given.pop("allow_parallel_tool_calls", True) is False
        request = self._chat_request(wire_messages(messages), given, stream=stream)
        return request, {"json_wanted": tool_forms.wants_json(request), "first_call_only": first_only}

    def _prompt(self, prompt: str, formatted: bool) -> list[ChatMessage]:
        if not formatted and self.completion_to_prompt is not None:
            prompt = self.completion_to_prompt(prompt)
        return [ChatMessage(role=MessageRole.USER, content=prompt)]

    def _chat(self, messages: Sequence[ChatMessage], kwargs: Mapping[str, Any]) -> ChatResponse:
        request, reading = self._request(messages, kwargs, stream=False)
        return chat_response(self._sync().chat.completions.create(**request), **reading)

    async def _achat(self, messages: Sequence[ChatMessage], kwargs: Mapping[str, Any]) -> ChatResponse:
        request, reading = self._request(messages, kwargs, stream=False)
        return chat_response(await self._async().chat.completions.create(**request), **reading)

    def _stream_chat(self, messages: Sequence[ChatMessage], kwargs: Mapping[str, Any]) -> ChatResponseGen:
        # The request is checked when it is made, and sent when its first chunk is asked for.
        request, reading = self._request(messages, kwargs, stream=True)

        def responses() -> ChatResponseGen:
            answer = ChatStream(**reading)
            with self._sync().chat.completions.create(**request) as stream:
                for chunk in stream:
                    if (response := answer.of(chunk)) is not None:
                        yield response
            yield answer.last()

        return responses()

    def _astream_chat(
        self, messages: Sequence[ChatMessage], kwargs: Mapping[str, Any]
    ) -> ChatResponseAsyncGen:
        request, reading = self._request(messages, kwargs, stream=True)

        async def responses() -> ChatResponseAsyncGen:
            answer = ChatStream(**reading)
            async with await self._async().chat.completions.create(**request) as stream:
                async for chunk in stream:
                    if (response := answer.of(chunk)) is not None:
                        yield response
            yield answer.last()

        return responses()

    # --- chat and complete ----------------------------------------------------------------------------

    @llm_chat_callback()
    @override
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer `messages`.

        Args:
            messages: The conversation.
            **kwargs: Parameters of the published schema, for this call; `allow_parallel_tool_calls`.

        Raises:
            InvalidParameterError: A parameter or a block cannot be sent; nothing was.
            LengthFinishReasonError: The token limit cut a tool call, or JSON that was asked for.
            PremError: See `prem_core`'s error tree.
        """
        return self._chat(messages, kwargs)

    @llm_chat_callback()
    @override
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """`chat`, awaited."""
        return await self._achat(messages, kwargs)

    @llm_chat_callback()
    @override
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Answer `messages` piece by piece; see `chat`.

        An answer that is cut raises after the pieces that came.
        """
        return self._stream_chat(messages, kwargs)

    @llm_chat_callback()
    @override
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """`stream_chat`, asynchronously."""
        return self._astream_chat(messages, kwargs)

    @llm_completion_callback()
    @override
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer `prompt`, as a user's message; see `chat`.

        Args:
            prompt: The prompt.
            formatted: Whether `completion_to_prompt` has been applied to it.
            **kwargs: Parameters of the published schema, for this call.
        """
        return completion_response(self._chat(self._prompt(prompt, formatted), kwargs))

    @llm_completion_callback()
    @override
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """`complete`, awaited."""
        return completion_response(await self._achat(self._prompt(prompt, formatted), kwargs))

    @llm_completion_callback()
    @override
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """Answer `prompt` piece by piece; see `stream_chat`."""
        responses = self._stream_chat(self._prompt(prompt, formatted), kwargs)

        def completions() -> CompletionResponseGen:
            with closing(responses):
                for response in responses:
                    yield completion_response(response)

        return completions()

    @llm_completion_callback()
    @override
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """`stream_complete`, asynchronously."""
        responses = self._astream_chat(self._prompt(prompt, formatted), kwargs)

        async def completions() -> CompletionResponseAsyncGen:
            async with aclosing(responses):
                async for response in responses:
                    yield completion_response(response)

        return completions()

    # --- tools ----------------------------------------------------------------------------------------

    @override
    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        tool_choice: str | bool | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Arguments of `chat` that offer tools.

        Args:
            tools: The tools.
            user_msg: A message after the history.
            chat_history: Messages; the list is not changed.
            verbose: Of no meaning here.
            allow_parallel_tool_calls: False keeps the first call of the answer.
            tool_required: Whether the model has to call one, where `tool_choice` does not say.
            tool_choice: "auto", "none", "any" or "required", a tool's name, or OpenAI's dict.
            **kwargs: Further parameters of the call.

        Raises:
            InvalidParameterError: `tool_choice` names no tool of these.
        """
        if isinstance(user_msg, str):
            user_msg = ChatMessage(role=MessageRole.USER, content=user_msg)
        messages = [*(chat_history or []), *([user_msg] if user_msg is not None else [])]
        prepared: dict[str, Any] = {**kwargs, "messages": messages}
        if tools:
            offered = [tool.metadata.to_openai_tool(skip_length_check=True) for tool in tools]
            choice = tool_choice if tool_choice is not None else tool_required or None
            prepared |= {"tools": offered, "allow_parallel_tool_calls": allow_parallel_tool_calls}
            if choice is not None:
                prepared["tool_choice"] = tool_forms.tool_choice(choice, offered)
        return prepared

    @override
    def _validate_chat_with_tools_response(
        self,
        response: ChatResponse,
        tools: Sequence[BaseTool],
        allow_parallel_tool_calls: bool = False,
        **kwargs: Any,
    ) -> ChatResponse:
        if not allow_parallel_tool_calls:
            keep_first_call(response)
        return response

    @override
    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The calls the model asks for.

        Of an answer that is still being streamed, the arguments as far as they can be read.

        Args:
            response: An answer, or a piece of one.
            error_on_no_tool_call: Whether an answer without calls is an error.
            **kwargs: Of no meaning here.

        Raises:
            ValueError: There is no call in it, and one was expected.
            RefusalError: Likewise, and the model refused.
            APIResponseValidationError: The answer is whole, and a call's arguments are not a JSON object.
        """
        message = response.message
        calls: list[tuple[str, str, dict[str, Any] | str]] = [
            (block.tool_call_id or "", block.tool_name, block.tool_kwargs)
            for block in message.blocks
            if isinstance(block, ToolCallBlock)
        ]
        calls = calls or [*calls_in_kwargs(message)]
        if not calls and error_on_no_tool_call:
            if message.additional_kwargs.get("refusal"):
                raise RefusalError
            raise ValueError("the model did not call a tool")
        whole = _is_whole(response)
        return [
            ToolSelection(tool_id=call_id, tool_name=name, tool_kwargs=_arguments(given, whole=whole))
            for call_id, name, given in calls
        ]

    # --- structured prediction ------------------------------------------------------------------------

    @override
    @dispatcher.span
    def structured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """An instance of `output_cls`, from the answer to `prompt`.

        Args:
            output_cls: The Pydantic class.
            prompt: The prompt's template.
            llm_kwargs: Parameters of the call.
            **prompt_args: What the template is filled with.

        Raises:
            RefusalError: The model refused.
            LengthFinishReasonError: The token limit cut the answer.
            ValueError: The answer is not such an instance; the message names fields, not values.
        """
        if self.pydantic_program_mode != PydanticProgramMode.DEFAULT:
            made = super().structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
            return cast("Model", made)
        _started(output_cls, prompt, prompt_args)
        answer = StructuredAnswer(output_cls)
        messages = self._structured_messages(prompt, prompt_args)
        return _ended(answer.whole(self.chat(messages, **answer.kwargs(llm_kwargs))))

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
        _started(output_cls, prompt, prompt_args)
        answer = StructuredAnswer(output_cls)
        messages = self._structured_messages(prompt, prompt_args)
        return _ended(answer.whole(await self.achat(messages, **answer.kwargs(llm_kwargs))))

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
        # Core asks for the call when it does not stream, and forgets to when it does.
        forced = {"tool_choice": "required"} if mode == PydanticProgramMode.FUNCTION else {}
        return get_program_for_llm(output_cls, prompt, self, pydantic_program_mode=mode, **forced)

    def _structured_messages(self, prompt: PromptTemplate, prompt_args: dict[str, Any]) -> list[ChatMessage]:
        return self._extend_messages(prompt.format_messages(llm=self, **prompt_args))


def _started(output_cls: Any, prompt: PromptTemplate, prompt_args: dict[str, Any]) -> None:
    event = LLMStructuredPredictStartEvent(output_cls=output_cls, template=prompt, template_args=prompt_args)
    dispatcher.event(event)


def _ended(value: Model) -> Model:
    dispatcher.event(LLMStructuredPredictEndEvent(output=value))
    return value


def _is_whole(response: ChatResponse) -> bool:
    """Whether `response` is known to be the end of an answer."""
    raw = response.raw if isinstance(response.raw, dict) else {}
    choices = raw.get("choices") or [{}]
    return choices[0].get("finish_reason") is not None


def _arguments(given: dict[str, Any] | str, *, whole: bool) -> dict[str, Any]:
    if isinstance(given, dict):
        return given
    arguments = tool_forms.read_arguments(given)
    if arguments is not None:
        return arguments
    if whole:
        # Not completed or replaced by nothing: a tool would run on what the model never said.
        raise APIResponseValidationError("the arguments of the model's tool call are not a JSON object")
    try:
        so_far = from_json(given, allow_partial="trailing-strings", cache_strings="keys")
    except ValueError:
        return {}
    return so_far if isinstance(so_far, dict) else {}
