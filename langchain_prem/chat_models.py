"""`ChatPremEncrypted`: the models behind Prem's encrypted API as a LangChain chat model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any, ClassVar, Literal, cast

import httpx
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.utils import count_tokens_approximately
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig, RunnableMap, RunnablePassthrough
from langchain_core.tools import BaseTool
from langchain_core.utils import secret_from_env
from langchain_core.utils.function_calling import convert_to_openai_function, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel, Field, SecretStr
from typing_extensions import override

from langchain_prem._content_blocks import PROVIDER
from langchain_prem._errors import translate
from langchain_prem._messages import wire_messages
from langchain_prem._model_profile import profile_of
from langchain_prem._plaintext_egress import (
    ChecksCompositions,
    Composition,
    checked,
    model_exits,
    traced_exits,
)
from langchain_prem._responses import ChunkConverter, chat_result
from langchain_prem._structured_output import StructuredOutputParser
from prem_core import PremError
from prem_core._adapters import tools as tool_forms
from prem_core._adapters.plaintext_egress import EgressSetting
from prem_core._adapters.settings import ModelSettings


class ChatPremEncrypted(EgressSetting, ModelSettings, ChecksCompositions, BaseChatModel):
    """Chat models behind Prem's encrypted API.

    This process encrypts prompts to the enclave's key and decrypts the answers. **The gateway in between can read and
    replace streamed answers.** ``nonce_reuse="error"`` accepts only answers that it cannot read, if the service sends
    such. ``attestation="require"`` sends nothing before a genuine machine has answered; that the key is that machine's
    is proven only if `key_bound` is reported. SECURITY.md has the details.

    Setup:
        Install ``prem-encrypted[langchain]`` and set ``PREM_API_KEY``.

        .. code-block:: bash

            pip install "prem-encrypted[langchain]"
            export PREM_API_KEY="sk_live_..."

    Key init args — completion params:
        model: str
            Name of the model, for example ``openai/gpt-oss-120b``.
        temperature: float | None
            Sampling temperature, 0 to 2.
        max_tokens: int | None
            Maximum number of tokens to generate.
        reasoning_effort: str | None
            none, minimal, low, medium or high.
        stop: str | list[str] | None
            Up to four strings at which generation stops.

        Every parameter of the published schema is a field (``seed``, ``n``, ``logprobs``, …), and can be given for a
        single call instead, which takes precedence. ``extra_body`` passes further names through.

    Key init args — client params:
        api_key: SecretStr | None
            Default: ``PREM_API_KEY``.
        gateway_url: str | None
            Default: ``PREM_GATEWAY_URL``, then Prem's gateway.
        timeout, max_retries, max_concurrency, limits, enclave_public_key, …
            Described at the attributes, and in the README under Settings. Models with equal settings share one client.
        plaintext_egress: "warn" | "error" | "allow"
            What to do when LangSmith, Langfuse, an instrumentor or a cache outside memory would receive prompts in
            plaintext: warn once, refuse construction and calls, or allow it. docs/security.md lists what is seen.

    Instantiate:
        .. code-block:: python

            from langchain_prem import ChatPremEncrypted

            llm = ChatPremEncrypted(model="openai/gpt-oss-120b", temperature=0)

    Invoke:
        .. code-block:: python

            llm.invoke([("system", "Translate to French."), ("human", "I love programming.")])

    Stream:
        .. code-block:: python

            for chunk in llm.stream("Count to ten."):
                print(chunk.text, end="")

        Chunks add up: ``full = chunk if full is None else full + chunk``.

    Async:
        .. code-block:: python

            await llm.ainvoke("Hello!")

            async for chunk in llm.astream("Count to ten."):
                print(chunk.text, end="")

        One model may be used in several ``asyncio.run`` calls.

    Tool calling:
        .. code-block:: python

            from pydantic import BaseModel, Field


            class GetWeather(BaseModel):
                '''The current weather at a place.'''

                location: str = Field(description="City and state, e.g. San Francisco, CA")


            llm.bind_tools([GetWeather]).invoke("What is the weather in Paris and in Tokyo?").tool_calls

        `tool_choice` is "auto", "none", "any", the name of a tool, or OpenAI's dict. The published schema has no
        ``parallel_tool_calls``: the service decides. With False only the first call is kept, and
        ``response_metadata["left_out_tool_calls"]`` counts the others.

    Structured output:
        .. code-block:: python

            class Invoice(BaseModel):
                number: str
                total: float


            llm.with_structured_output(Invoice).invoke("Invoice 17 over 12.50 EUR")

        Uses the service's JSON schema support, or ``method="function_calling"`` or ``"json_mode"``.

    JSON mode:
        .. code-block:: python

            llm.bind(response_format={"type": "json_object"}).invoke("Return JSON with the keys a and b.")

    Image input:
        .. code-block:: python

            llm.invoke([HumanMessage([
                {"type": "text", "text": "What is on this picture?"},
                {"type": "image", "base64": image, "mime_type": "image/png"},
            ])])

        OpenAI's ``image_url`` blocks are accepted too.

    Audio input:
        .. code-block:: python

            {"type": "audio", "base64": recording, "mime_type": "audio/wav"}

        wav and mp3. Documents are ``{"type": "file", "base64": …, "mime_type": "application/pdf"}``. System messages
        contain text only. Images in tool messages are moved to a human message after them. A block that cannot be sent
        is an error.

    Token usage:
        .. code-block:: python

            llm.invoke("Hello!").usage_metadata
            # {"input_tokens": 9, "output_tokens": 12, "total_tokens": 21, ...}

    Logprobs:
        .. code-block:: python

            llm.bind(logprobs=True).invoke("Hello!").response_metadata["logprobs"]

    Response metadata:
        .. code-block:: python

            llm.invoke("Hello!").response_metadata
            # {"model_provider": "prem", "model_name": ..., "finish_reason": "stop", "id": ..., "prem": {...}}

        ``"prem"`` says how the answer was protected; see `prem_core.Protection`.

    Reasoning:
        In ``message.additional_kwargs["reasoning_content"]``, and as ``reasoning`` blocks in
        ``message.content_blocks``. Within a tool loop it is sent back to the model.

    Pickle and copy:
        A pickle does not contain the API key; it is read from the environment again. Copies share the model's client
        and limits. In another process, an unpickled model has its own client and limits.

    Errors are both `prem_core`'s and langchain-core's (`ModelRateLimitError` and so on).
    """

    api_key: SecretStr | None = Field(default_factory=secret_from_env("PREM_API_KEY", default=None))
    """API key. Default: PREM_API_KEY, read when the model is constructed."""
    http_client: httpx.Client | None = Field(default=None, exclude=True, repr=False)
    """Your own httpx client for synchronous calls. Not serialised, not closed."""
    http_async_client: httpx.AsyncClient | None = Field(default=None, exclude=True, repr=False)
    """Your own httpx client for asynchronous calls. Not serialised, not closed."""
    stop: str | list[str] | None = Field(default=None, alias="stop_sequences")
    """Up to four strings at which generation stops."""
    streaming: bool = False
    """Whether `invoke` uses the streaming API too."""

    # Restated because pydantic would otherwise use the less strict config of the framework's base class.
    model_config = ModelSettings.model_config

    _http_fields: ClassVar[tuple[str, str]] = ("http_client", "http_async_client")
    # `_serialized` is a cached property of langchain-core. It contains all parameters that identify the model.
    _unpickled: ClassVar[frozenset[str]] = frozenset({"api_key", "_serialized"})
    _shared: ClassVar[frozenset[str]] = frozenset({"rate_limiter", "callbacks", "cache"})

    # --- identity -------------------------------------------------------------------------------------

    @property
    def model_name(self) -> str:
        """The model's name, under the name that other LangChain models use."""
        return self.model

    @property
    @override
    def _llm_type(self) -> str:
        return "prem-encrypted-chat"

    @property
    @override
    def _identifying_params(self) -> dict[str, Any]:
        return {"model_name": self.model, "gateway_url": self.gateway_url, **self._params()}

    @property
    @override
    def lc_secrets(self) -> dict[str, str]:
        return {"api_key": "PREM_API_KEY"}

    @classmethod
    @override
    def is_lc_serializable(cls) -> bool:
        return True

    @classmethod
    @override
    def get_lc_namespace(cls) -> list[str]:
        return ["langchain_prem", "chat_models"]

    @override
    def _resolve_model_profile(self) -> ModelProfile | None:
        return profile_of(self.model)

    @override
    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = PROVIDER
        if "ls_max_tokens" not in params and isinstance(
            limit := kwargs.get("max_completion_tokens", self.max_completion_tokens), int
        ):
            params["ls_max_tokens"] = limit
        default = [self.stop] if isinstance(self.stop, str) else self.stop
        if (stops := stop or default) is not None:
            params["ls_stop"] = list(stops)
        return params

    @override
    def get_num_tokens(self, text: str) -> int:
        """The approximate number of tokens in `text`.

        The estimate is one token per four characters, because the models' tokenizers would have to be downloaded.
        `custom_get_token_ids` is used if it is set.
        """
        if self.custom_get_token_ids is not None:
            return len(self.custom_get_token_ids(text))
        return -(-len(text) // 4)

    @override
    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """The approximate number of tokens in `messages` and `tools`; see `get_num_tokens`."""
        if self.custom_get_token_ids is not None:
            return super().get_num_tokens_from_messages(messages, tools)
        formatted: list[BaseTool | dict[str, Any]] = [convert_to_openai_tool(tool) for tool in tools or ()]
        return count_tokens_approximately(messages, tools=formatted or None)

    # --- requests -------------------------------------------------------------------------------------

    def _request(
        self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any], *, stream: bool
    ) -> tuple[dict[str, Any], dict[str, bool]]:
        """Arguments of `chat.completions.create`, and of what converts its answer."""
        given = kwargs if stop is None else {**kwargs, "stop": stop}
        # The published schema does not have it: the service decides whether to make parallel calls.
        first_only = given.get("parallel_tool_calls") is False
        if first_only:
            given = {name: value for name, value in given.items() if name != "parallel_tool_calls"}
        request = self._chat_request(wire_messages(messages), given, stream=stream)
        json_requested = "response_format" in request and tool_forms.requests_json(request)
        return request, {"json_requested": json_requested, "first_call_only": first_only}

    @override
    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        # Every way of calling a model starts here, before tracers receive the prompt.
        self._check_egress()
        return super()._get_invocation_params(stop=stop, **kwargs)

    @override
    def _process_exits(self) -> Iterator[str]:
        return traced_exits()

    @override
    def _call_exits(self) -> Iterator[str]:
        yield from traced_exits()
        yield from model_exits(self.cache, self.callbacks)

    @override
    def _checked(self, composition: Composition) -> Composition:
        return checked(composition, self._check_run) if self.plaintext_egress == "error" else composition

    def _check_run(self, config: RunnableConfig) -> RunnableConfig:
        self._check_egress()
        return {}

    @override
    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        try:
            request, options = self._request(messages, stop, kwargs, stream=False)
            completion = self._client().chat.completions.create(**request)
            return chat_result(completion, **options)
        except PremError as error:
            raise translate(error) from error.__cause__

    @override
    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        try:
            request, options = self._request(messages, stop, kwargs, stream=False)
            completion = await self._async_client().chat.completions.create(**request)
            return chat_result(completion, **options)
        except PremError as error:
            raise translate(error) from error.__cause__

    @override
    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        try:
            request, options = self._request(messages, stop, kwargs, stream=True)
            # Hold the client until the stream ends; changing a setting meanwhile would switch clients.
            client = self._client()
            with client.chat.completions.create(**request) as stream:
                converter = ChunkConverter(stream.prem, **options)
                for chunk in stream:
                    generation = converter.convert(chunk)
                    if generation is not None:
                        if run_manager:
                            run_manager.on_llm_new_token(generation.text, chunk=generation)
                        yield generation
            yield converter.end()
        except PremError as error:
            raise translate(error) from error.__cause__

    @override
    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        try:
            request, options = self._request(messages, stop, kwargs, stream=True)
            client = self._async_client()
            async with await client.chat.completions.create(**request) as stream:
                converter = ChunkConverter(stream.prem, **options)
                async for chunk in stream:
                    generation = converter.convert(chunk)
                    if generation is not None:
                        if run_manager:
                            await run_manager.on_llm_new_token(generation.text, chunk=generation)
                        yield generation
            yield converter.end()
        except PremError as error:
            raise translate(error) from error.__cause__

    # --- tools and structured output ------------------------------------------------------------------

    @override
    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: dict[str, Any] | str | bool | None = None,
        strict: bool | None = None,
        response_format: dict[str, Any] | type | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Bind tools to this model.

        Args:
            tools: Anything that `convert_to_openai_tool` accepts: tools, functions, Pydantic classes, dicts.
            tool_choice: "auto" (the service's default), "none"; "any", "required" or True for at least one call; the
                name of one tool; or OpenAI's dict.
            strict: Whether arguments must match the tools' schemas exactly.
            response_format: The form of the final answer: a schema, or OpenAI's dict.
            **kwargs: Further parameters to bind. With ``parallel_tool_calls=False`` an answer keeps its first tool
                call only: the service decides how many it makes.

        Raises:
            InvalidParameterError: `tool_choice` names none of the tools.
        """
        formatted = [convert_to_openai_tool(tool, strict=strict) for tool in tools]
        if tool_choice:
            kwargs["tool_choice"] = tool_forms.tool_choice(tool_choice, formatted)
        if response_format is not None:
            kwargs["response_format"] = _response_format(response_format, strict=strict)
        return self.bind(tools=formatted, **kwargs)

    @override
    def with_structured_output(
        self,
        schema: dict[str, Any] | type | None = None,
        *,
        method: Literal["json_schema", "function_calling", "json_mode"] = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool] | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
        """A runnable whose output is an instance of `schema`.

        Args:
            schema: A Pydantic class, a TypedDict, a JSON Schema or an OpenAI function; None with json_mode for any JSON
                object.
            method: "json_schema" uses the service's JSON schema support; "function_calling" requests the value as the
                arguments of a tool call; "json_mode" requests JSON only, and the prompt has to describe it.
            include_raw: Return ``{"raw": message, "parsed": …, "parsing_error": …}``; a parsing error is then returned
                instead of raised.
            strict: Whether the answer must match the schema exactly. Not with json_mode.
            tools: Tools to offer as well. Only with json_schema. If the model calls one instead of answering, the value
                is None and the calls are in ``raw`` (`include_raw`).
            **kwargs: Further parameters to bind.

        Returns:
            A runnable that returns instances of `schema` if that is a Pydantic class, otherwise dicts.

        Raises:
            ValueError: The arguments contradict each other.
            RefusalError: Raised when the runnable runs: the model refused.
            LengthFinishReasonError: Raised when the runnable runs: the token limit truncated the answer.
        """
        if method not in ("json_schema", "function_calling", "json_mode"):
            raise ValueError("method must be 'json_schema', 'function_calling' or 'json_mode'")
        if schema is None and method != "json_mode":
            raise ValueError(f"schema must be given with method {method!r}")
        if strict is not None and method == "json_mode":
            raise ValueError("strict has no effect with method 'json_mode'")
        if tools and method != "json_schema":
            raise ValueError(f"tools cannot be combined with method {method!r}")
        if method == "function_calling" and isinstance(schema, dict):
            # OpenAI's response_format has the same schema under other names.
            named = schema.get("json_schema", schema)
            if isinstance(named.get("schema"), dict):
                schema = {**named, "parameters": named["schema"]}
        is_model = isinstance(schema, type) and is_basemodel_subclass(schema)
        traced: dict[str, Any] = {}
        if schema is not None:
            traced["ls_structured_output_format"] = {
                "kwargs": {"method": method, "strict": strict},
                "schema": schema,
            }
        parser = StructuredOutputParser(model=schema if is_model else None)
        if method == "function_calling":
            parser.tool = convert_to_openai_tool(cast("Any", schema))["function"]["name"]
            llm = self.bind_tools(
                [cast("Any", schema)], tool_choice=parser.tool, strict=strict, **traced, **kwargs
            )
        else:
            if method == "json_mode":
                form: dict[str, Any] = {"type": "json_object"}
            else:
                form = _response_format(schema, strict=strict)
            if tools:
                llm = self.bind_tools(tools, strict=strict, response_format=form, **traced, **kwargs)
            else:
                llm = self.bind(response_format=form, **traced, **kwargs)
        if include_raw:
            parsed = RunnablePassthrough.assign(
                parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
            )
            unparsed = RunnablePassthrough.assign(parsed=lambda _: None)
            return self._checked(
                RunnableMap(raw=llm) | parsed.with_fallbacks([unparsed], exception_key="parsing_error")
            )
        return self._checked(llm | parser)


def _response_format(schema: Any, *, strict: bool | None) -> dict[str, Any]:
    """OpenAI's ``response_format`` for any kind of schema that LangChain accepts."""
    if (form := tool_forms.as_response_format(schema)) is not None:
        return form
    function = convert_to_openai_function(schema, strict=strict)
    return tool_forms.json_schema_format(
        function["name"], function["parameters"], description=function.get("description"), strict=strict
    )
