"""`PremEncrypted`: the models behind Prem's encrypted API as a LlamaIndex LLM."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from typing import Any, ClassVar

import httpx
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
from llama_index.core.bridge.pydantic import BaseModel, Field, PrivateAttr, field_validator
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.tools.types import BaseTool
from pydantic_core import from_json
from typing_extensions import override

from llama_index_prem._messages import calls_in_kwargs, wire_messages
from llama_index_prem._metadata import LazyMetadata
from llama_index_prem._plaintext_egress import (
    CheckedStructuredLLM,
    all_dispatchers,
    check_before_calls,
    model_exits,
    registered_exits,
)
from llama_index_prem._responses import (
    ChunkConverter,
    chat_response,
    completion_response,
    keep_first_call,
)
from llama_index_prem._structured_output import StructuredPredictionLLM
from prem_core import (
    APIError,
    APIResponseValidationError,
    ConfigurationError,
    InvalidParameterError,
    RefusalError,
)
from prem_core._adapters import tools as tool_forms
from prem_core._adapters.model_profiles import listed_context_window, model_profile
from prem_core._adapters.plaintext_egress import EgressSetting
from prem_core._adapters.settings import ModelSettings, check_params


@check_before_calls
class PremEncrypted(EgressSetting, ModelSettings, StructuredPredictionLLM):
    """Models behind Prem's encrypted API.

    This process encrypts prompts to the enclave's key and decrypts the answers. **The gateway in between can read and
    replace streamed answers.** ``nonce_reuse="error"`` accepts only answers that it cannot read, if the service sends
    such. ``attestation="require"`` sends nothing before a genuine machine has answered; that the key is that machine's
    is proven only if `key_bound` is reported. SECURITY.md has the details.

    Install ``prem-encrypted[llama-index]`` and set ``PREM_API_KEY``.

    Args:
        model: Name of the model, for example ``openai/gpt-oss-120b``.
        temperature: Sampling temperature, 0 to 2.
        max_tokens: Maximum number of tokens to generate.
        reasoning_effort: none, minimal, low, medium or high.
        context_window: Tokens of prompt and answer together. Known for some models. For others the service's models
            list is requested once, when something reads ``metadata.context_window``; it is an error if the list does
            not state it.
        api_key, gateway_url, timeout, max_retries, max_concurrency, limits, …: Described at the attributes, and in the
            README under Settings. Models with equal settings share one client.
        callback_manager: LlamaIndex's callbacks.
        plaintext_egress: What to do when handlers of LlamaIndex, an instrumentor or Langfuse would receive prompts in
            plaintext: "warn" once, refuse construction and calls with "error", or "allow" it. docs/security.md lists
            what is seen.
        system_prompt: Prepended by `predict`, `stream` and structured prediction; `chat` sends its messages unchanged.

    Every parameter of the published schema is a field (``seed``, ``n``, ``verbosity``, …), and can be given for a
    single call instead, which takes precedence. A name that is no field is an error.

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

        Stream. Each response has the message so far, and the last one every block and the usage:

        ```python
        for response in llm.stream_chat([ChatMessage("Count to ten.")]):
            print(response.delta, end="")
        print(response.raw["usage"])
        ```

        Async. One model may be used in several ``asyncio.run`` calls:

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

        Structured prediction uses the service's JSON schema support (or a tool call, with ``pydantic_program_mode``
        ``PydanticProgramMode.FUNCTION``):

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

    Parallel tool calls: the published schema has no parameter for them, and the service may always make them.
    ``allow_parallel_tool_calls=False``, core's default, keeps the first call of an answer, streamed or not.
    ``parallel_tool_calls=False`` does the same.

    Reasoning is a `ThinkingBlock` of the message, and ``additional_kwargs["thinking_delta"]`` of streamed responses.
    Within a tool loop it is sent back to the model.

    Refusals are in the message's ``additional_kwargs["refusal"]``; in structured prediction they raise
    `RefusalError`. Of ``n`` answers the first is the message; all are in ``raw["choices"]``. Log probabilities of a
    streamed response are those of its `delta`.

    Pickle and copy: a pickle does not contain the API key and the callback manager; the key is read from the
    environment again. Copies share the model's client and limits. In another process an unpickled model has its own.

    Errors are `prem_core`'s.
    """

    context_window: int | None = Field(default=None, gt=0)
    """Tokens of prompt and answer together. Default: looked up."""
    additional_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further parameters of the published schema that have no field of their own, checked."""
    http_client: httpx.Client | None = Field(default=None, exclude=True, repr=False)
    """Your own httpx client for synchronous calls. Not serialised, not closed."""
    async_http_client: httpx.AsyncClient | None = Field(default=None, exclude=True, repr=False)
    """Your own httpx client for asynchronous calls. Not serialised, not closed."""

    # Restated because pydantic would otherwise use the framework base class's looser one.
    model_config = ModelSettings.model_config

    _http_fields: ClassVar[tuple[str, str]] = ("http_client", "async_http_client")
    _unpickled: ClassVar[frozenset[str]] = frozenset({"api_key", "callback_manager"})
    _unshown: ClassVar[frozenset[str]] = ModelSettings._unshown | {
        "additional_kwargs", "query_wrapper_prompt", "system_prompt",
    }  # fmt: skip
    _shared: ClassVar[frozenset[str]] = frozenset({"rate_limiter", "callback_manager"})

    #: Context windows in the models list, by model; None where it states none.
    _listed: dict[str, int | None] = PrivateAttr(default_factory=dict)

    @field_validator("additional_kwargs")
    @classmethod
    def _check_additional_kwargs(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if name in ("messages", "stream"):
                raise InvalidParameterError(f"{name}: belongs to a call", param=name)
            field = "request_metadata" if name == "metadata" else name
            if field in cls.model_fields:
                # Otherwise two values would be set, and the one in the field ignored.
                raise InvalidParameterError(
                    f"{name}: is a setting of its own; pass {field}=… instead of additional_kwargs",
                    param=name,
                )
        check_params(value)
        return value

    # --- metadata -------------------------------------------------------------------------------------

    @classmethod
    @override
    def class_name(cls) -> str:
        return "PremEncrypted"

    @property
    @override
    def metadata(self) -> LLMMetadata:
        """The properties of the model that LlamaIndex uses.

        Raises:
            ConfigurationError: When `context_window` is read, if it cannot be found out.
        """
        profile = model_profile(self.model)
        window = self.context_window or (profile.context_window if profile else None)
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
                models = self._client().models.list()
            except (APIError, ConfigurationError) as error:
                raise ConfigurationError(
                    f"the context window of {self.model!r} is unknown, and the models list cannot be read: pass "
                    "context_window=…"
                ) from error
            self._listed[self.model] = listed_context_window(models, self.model)
        window = self._listed[self.model]
        if window is None:
            raise ConfigurationError(
                f"the context window of {self.model!r} is unknown, and the models list does not state it: pass "
                "context_window=…"
            )
        return window

    # --- plaintext exits ------------------------------------------------------------------------------

    @override
    def _process_exits(self) -> Iterator[str]:
        return registered_exits(all_dispatchers())

    @override
    def _call_exits(self) -> Iterator[str]:
        yield from registered_exits()
        yield from model_exits(self.callback_manager)

    @override
    def as_structured_llm(self, output_cls: type[BaseModel], **kwargs: Any) -> StructuredLLM:
        """A model whose answers are instances of `output_cls`, in `raw`."""
        return CheckedStructuredLLM(llm=self, output_cls=output_cls, **kwargs)

    # --- requests -------------------------------------------------------------------------------------

    @override
    def _params(self) -> dict[str, Any]:
        params = super()._params()
        return {**params, **self.additional_kwargs} if self.additional_kwargs else params

    def _request(
        self, messages: Sequence[ChatMessage], kwargs: Mapping[str, Any], *, stream: bool
    ) -> tuple[dict[str, Any], dict[str, bool]]:
        """Arguments of `chat.completions.create`, and of what converts its answer."""
        given = dict(kwargs)
        first_only = given.pop("allow_parallel_tool_calls", True) is False
        if given.get("parallel_tool_calls") is False:  # OpenAI's name for the same
            del given["parallel_tool_calls"]
            first_only = True
        request = self._chat_request(wire_messages(messages), given, stream=stream)
        json_requested = "response_format" in request and tool_forms.requests_json(request)
        return request, {"json_requested": json_requested, "first_call_only": first_only}

    def _prompt(self, prompt: str, formatted: bool) -> list[ChatMessage]:
        if not formatted and self.completion_to_prompt is not None:
            prompt = self.completion_to_prompt(prompt)
        return [ChatMessage(role=MessageRole.USER, content=prompt)]

    def _chat(self, messages: Sequence[ChatMessage], kwargs: Mapping[str, Any]) -> ChatResponse:
        request, options = self._request(messages, kwargs, stream=False)
        return chat_response(self._client().chat.completions.create(**request), **options)

    async def _achat(self, messages: Sequence[ChatMessage], kwargs: Mapping[str, Any]) -> ChatResponse:
        request, options = self._request(messages, kwargs, stream=False)
        return chat_response(await self._async_client().chat.completions.create(**request), **options)

    def _stream_chat(self, messages: Sequence[ChatMessage], kwargs: Mapping[str, Any]) -> ChatResponseGen:
        # The parameters are checked now; the request is sent when the first response is asked for.
        request, options = self._request(messages, kwargs, stream=True)

        def responses() -> ChatResponseGen:
            client = self._client()  # kept to the end: another setting would give the model another one
            with client.chat.completions.create(**request) as stream:
                converter = ChunkConverter(stream.prem, **options)
                for chunk in stream:
                    if (response := converter.convert(chunk)) is not None:
                        yield response
            yield converter.end()

        return responses()

    def _astream_chat(
        self, messages: Sequence[ChatMessage], kwargs: Mapping[str, Any]
    ) -> ChatResponseAsyncGen:
        request, options = self._request(messages, kwargs, stream=True)

        async def responses() -> ChatResponseAsyncGen:
            client = self._async_client()
            async with await client.chat.completions.create(**request) as stream:
                converter = ChunkConverter(stream.prem, **options)
                async for chunk in stream:
                    if (response := converter.convert(chunk)) is not None:
                        yield response
            yield converter.end()

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
            InvalidParameterError: A parameter or a block cannot be sent; nothing was sent.
            LengthFinishReasonError: The token limit truncated a tool call, or the JSON that was requested.
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
        """Stream the answer to `messages`; see `chat`.

        A truncated answer raises an error after the responses that arrived.
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
        """Answer `prompt`, sent as a user message; see `chat`.

        Args:
            prompt: The prompt.
            formatted: Whether `completion_to_prompt` has been applied already.
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
        """Stream the answer to `prompt`; see `stream_chat`."""
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
            user_msg: A message that follows the history.
            chat_history: Messages; the list is not changed.
            verbose: Not used.
            allow_parallel_tool_calls: False keeps the first call of the answer.
            tool_required: Whether the model must call a tool, if `tool_choice` is not given.
            tool_choice: "auto", "none", "any" or "required", the name of a tool, or OpenAI's dict.
            **kwargs: Further parameters of the call.

        Raises:
            InvalidParameterError: `tool_choice` names none of the tools.
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
        """The tool calls in `response`; while it is streamed, with the arguments so far.

        Args:
            response: An answer, complete or streamed.
            error_on_no_tool_call: Whether an answer without tool calls is an error.
            **kwargs: Not used.

        Raises:
            ValueError: There is no tool call, and one was expected.
            RefusalError: There is none because the model refused.
            APIResponseValidationError: The answer is complete, and the arguments of a call are not a JSON object.
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
        complete = _is_complete(response)
        return [
            ToolSelection(tool_id=call_id, tool_name=name, tool_kwargs=_arguments(given, complete=complete))
            for call_id, name, given in calls
        ]


def _is_complete(response: ChatResponse) -> bool:
    """Whether `response` is the end of an answer."""
    raw = response.raw if isinstance(response.raw, dict) else {}
    choices = raw.get("choices") or [{}]
    return choices[0].get("finish_reason") is not None


def _arguments(given: dict[str, Any] | str, *, complete: bool) -> dict[str, Any]:
    if isinstance(given, dict):
        return given
    arguments = tool_forms.read_arguments(given)
    if arguments is not None:
        return arguments
    if complete:
        # Repaired arguments would run a tool with values that the model did not choose.
        raise APIResponseValidationError("the arguments of a tool call are not a JSON object")
    try:
        partial = from_json(given, allow_partial="trailing-strings", cache_strings="keys")
    except ValueError:
        return {}
    return partial if isinstance(partial, dict) else {}
