"""`ChatPremEncrypted`: Prem's end-to-end encrypted models as a LangChain chat model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any, ClassVar, Literal, cast

import httpx
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun, Callbacks
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.utils import count_tokens_approximately
from langchain_core.outputs import ChatGenerationChunk, ChatResult, LLMResult
from langchain_core.runnables import Runnable, RunnableConfig, RunnableMap, RunnablePassthrough, ensure_config
from langchain_core.tools import BaseTool
from langchain_core.utils import secret_from_env
from langchain_core.utils.function_calling import convert_to_openai_function, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel, Field, SecretStr
from typing_extensions import override

from langchain_prem._content_blocks import PROVIDER
from langchain_prem._errors import core_errors
from langchain_prem._messages import wire_messages
from langchain_prem._model_profile import profile_of
from langchain_prem._plaintext_egress import PlaintextEgress, check_egress, handlers_of
from langchain_prem._responses import Chunks, chat_result
from langchain_prem._structured_output import StructuredOutputParser
from prem_core import InvalidParameterError
from prem_core._adapters import tools as tool_forms
from prem_core._adapters.settings import ModelSettings


class ChatPremEncrypted(ModelSettings, BaseChatModel):
    """Chat models behind Prem's end-to-end encrypted API.

    Prompts are sealed in this process to a hardware enclave's key, and replies are opened in it; the
    gateway in between authenticates and meters ciphertext.

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
            Most tokens to generate.
        reasoning_effort: str | None
            none, minimal, low, medium or high.
        stop: str | list[str] | None
            Up to four strings to stop at.
        logprobs: bool | None
            Whether to return log probabilities.
        stream_usage: bool
            Whether streams report token usage. Default True.
        extra_body: dict | None
            Further names for the request, passed through unchecked.

        Every other parameter of the published schema is a field too (``seed``, ``n``, ``verbosity``, …), and
        all of them can be given per call, which wins.

    Key init args — client params:
        api_key: SecretStr | None
            Begins with ``sk_live`` or ``sk_test``; else read from ``PREM_API_KEY``.
        gateway_url, enclave_url: str | None
            The gateway and the enclave; else ``PREM_GATEWAY_URL`` and ``PREM_ENCLAVE_URL``, else Prem's.
        enclave_public_key: str | None
            The enclave's key, pinned (hex or base64), instead of a fetched one.
        timeout: float
            Seconds to wait for a connection, for the answer to begin, and between its chunks.
        max_retries: int
            Tries after the first; never once a chunk has come.
        total_timeout: float | None
            Seconds for a whole call: its turn's wait, every try and, of a stream, the taker's time included.
        stream_chunk_timeout: float | None
            Seconds between the chunks of a stream, whatever comments come in between; else ``timeout``.
        max_concurrency: int | None
            Requests on their way at once, of all threads and tasks, ``batch`` and ``abatch`` included. Default 5,
            the BASE tier's; None for any number.
        requests_per_second: float | None
            Requests that begin, in the long run.
        limits: prem_core.Limits | None
            In place of these two, to share with other models and clients of the organisation.
        plaintext_egress: "warn" | "error" | "allow"
            What to do when LangSmith tracing or a cache outside memory would carry prompts out in plaintext.

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

        One object may be used over several ``asyncio.run`` calls.

    Tool calling:
        .. code-block:: python

            from pydantic import BaseModel, Field


            class GetWeather(BaseModel):
                '''The current weather at a place.'''

                location: str = Field(description="City and state, e.g. San Francisco, CA")


            llm.bind_tools([GetWeather]).invoke("What is the weather in Paris and in Tokyo?").tool_calls

        `tool_choice` is "auto", "none", "any", a tool's name, or OpenAI's dict. The published schema has no
        ``parallel_tool_calls``: True is what the service does, and is accepted; False is refused.

    Structured output:
        .. code-block:: python

            class Invoice(BaseModel):
                number: str
                total: float


            llm.with_structured_output(Invoice).invoke("Invoice 17 over 12.50 EUR")

        By the service's JSON schema support, or by ``method="function_calling"`` or ``"json_mode"``.

    JSON mode:
        .. code-block:: python

            llm.bind(response_format={"type": "json_object"}).invoke("Return JSON with the keys a and b.")

    Image input:
        .. code-block:: python

            llm.invoke([HumanMessage([
                {"type": "text", "text": "What is on this picture?"},
                {"type": "image", "base64": image, "mime_type": "image/png"},
            ])])

        OpenAI's ``image_url`` blocks are taken too.

    Audio input:
        .. code-block:: python

            {"type": "audio", "base64": recording, "mime_type": "audio/wav"}

        wav and mp3. Documents go in as ``{"type": "file", "base64": …, "mime_type": "application/pdf"}``.
        System and tool messages hold text only. A block that cannot be sent is an error.

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
            # {"model_provider": "prem", "model_name": ..., "finish_reason": "stop", "id": ...}

    Reasoning:
        ``message.additional_kwargs["reasoning_content"]``, and ``reasoning`` blocks in
        ``message.content_blocks``. Within a tool loop it is sent back to the model.

    Pickle and copy:
        The API key is not written into pickles: it is read from the environment again. Connections and what is
        in flight are not carried over; a copy makes its own. Copies share `limits` where these were given; a
        pickle has fresh ones.

    Errors are `prem_core`'s, and langchain-core's (`ModelRateLimitError` and so on) as well.
    """

    api_key: SecretStr | None = Field(default_factory=secret_from_env("PREM_API_KEY", default=None))
    """API key; else PREM_API_KEY."""
    http_client: httpx.Client | None = Field(default=None, exclude=True, repr=False)
    """An httpx client of your own for synchronous calls. Not serialised, not closed."""
    http_async_client: httpx.AsyncClient | None = Field(default=None, exclude=True, repr=False)
    """An httpx client of your own for asynchronous calls. Not serialised, not closed."""
    stop: str | list[str] | None = Field(default=None, alias="stop_sequences")
    """Up to four strings to stop at."""
    streaming: bool = False
    """Whether `invoke` goes through the streaming API too."""
    plaintext_egress: PlaintextEgress = "warn"
    """What to do when tracing or a cache would carry prompts out of the process in plaintext."""

    # Said again: the framework's base class has a looser one, and stands last.
    model_config = ModelSettings.model_config

    _http_fields: ClassVar[tuple[str, str]] = ("http_client", "http_async_client")
    # `_serialized` is a cached property of langchain-core's, which holds what identifies the model.
    _unpickled: ClassVar[frozenset[str]] = frozenset({"api_key", "_serialized"})
    _shared: ClassVar[frozenset[str]] = frozenset({"rate_limiter", "callbacks", "cache"})

    # --- what it is -----------------------------------------------------------------------------------

    @property
    def model_name(self) -> str:
        """The model's name, as other LangChain models call it."""
        return self.model

    @property
    @override
    def _llm_type(self) -> str:
        return "prem-encrypted-chat"

    @property
    @override
    def _identifying_params(self) -> dict[str, Any]:
        return {"model_name": self.model, "gateway_url": self.gateway_url, **self._defaults()}

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
        """About how many tokens `text` has.

        Counted from its length, about four characters a token: the models' own tokenizers would have to be
        downloaded, and asking the service would cost a request. `custom_get_token_ids` is used where set.
        """
        if self.custom_get_token_ids is not None:
            return len(self.custom_get_token_ids(text))
        return -(-len(text) // 4)

    @override
    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """About how many tokens `messages` and `tools` have; see `get_num_tokens`."""
        if self.custom_get_token_ids is not None:
            return super().get_num_tokens_from_messages(messages, tools)
        formatted: list[BaseTool | dict[str, Any]] = [convert_to_openai_tool(tool) for tool in tools or ()]
        return count_tokens_approximately(messages, tools=formatted or None)

    # --- requests -------------------------------------------------------------------------------------

    def _request(
        self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any], *, stream: bool
    ) -> dict[str, Any]:
        given = kwargs if stop is None else {**kwargs, "stop": stop}
        return self._chat_request(wire_messages(messages), given, stream=stream)

    @override
    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        # The first thing every way of calling a model does, and before tracers are told of the prompt.
        check_egress(self.plaintext_egress, self.cache, handlers_of(self.callbacks))
        return super()._get_invocation_params(stop=stop, **kwargs)

    def _check_callbacks(self, callbacks: Callbacks) -> None:
        # Before core opens the run: a tracer is told of the prompt then.
        check_egress(self.plaintext_egress, self.cache, handlers_of(callbacks))

    @override
    def generate(
        self,
        messages: list[list[BaseMessage]],
        stop: list[str] | None = None,
        callbacks: Callbacks = None,
        **kwargs: Any,
    ) -> LLMResult:
        self._check_callbacks(callbacks)
        return super().generate(messages, stop, callbacks, **kwargs)

    @override
    async def agenerate(
        self,
        messages: list[list[BaseMessage]],
        stop: list[str] | None = None,
        callbacks: Callbacks = None,
        **kwargs: Any,
    ) -> LLMResult:
        self._check_callbacks(callbacks)
        return await super().agenerate(messages, stop, callbacks, **kwargs)

    @override
    def stream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        self._check_callbacks(ensure_config(config).get("callbacks"))
        return super().stream(input, config, **kwargs)

    @override
    def astream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        self._check_callbacks(ensure_config(config).get("callbacks"))
        return super().astream(input, config, **kwargs)

    @override
    def stream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        self._check_callbacks(ensure_config(config).get("callbacks"))
        return super().stream_events(input, config, **kwargs)

    @override
    def astream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        self._check_callbacks(ensure_config(config).get("callbacks"))
        return super().astream_events(input, config, **kwargs)

    @override
    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with core_errors():
            request = self._request(messages, stop, kwargs, stream=False)
            completion = self._sync().chat.completions.create(**request)
            return chat_result(completion, json_wanted=tool_forms.wants_json(request))

    @override
    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with core_errors():
            request = self._request(messages, stop, kwargs, stream=False)
            completion = await self._async().chat.completions.create(**request)
            return chat_result(completion, json_wanted=tool_forms.wants_json(request))

    @override
    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with core_errors():
            request = self._request(messages, stop, kwargs, stream=True)
            chunks = Chunks(json_wanted=tool_forms.wants_json(request))
            with self._sync().chat.completions.create(**request) as stream:
                for chunk in stream:
                    made = chunks.of(chunk)
                    if made is not None:
                        if run_manager:
                            run_manager.on_llm_new_token(made.text, chunk=made)
                        yield made
            yield chunks.last()

    @override
    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        with core_errors():
            request = self._request(messages, stop, kwargs, stream=True)
            chunks = Chunks(json_wanted=tool_forms.wants_json(request))
            async with await self._async().chat.completions.create(**request) as stream:
                async for chunk in stream:
                    made = chunks.of(chunk)
                    if made is not None:
                        if run_manager:
                            await run_manager.on_llm_new_token(made.text, chunk=made)
                        yield made
            yield chunks.last()

    # --- tools and structured output ------------------------------------------------------------------

    @override
    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: dict[str, Any] | str | bool | None = None,
        strict: bool | None = None,
        parallel_tool_calls: bool | None = None,
        response_format: dict[str, Any] | type | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Bind tools to this model.

        Args:
            tools: Whatever `convert_to_openai_tool` takes: tools, functions, Pydantic classes, dicts.
            tool_choice: "auto" (the service's default), "none", "any" or "required" or True for at least
                one call, a tool's name for that one, or OpenAI's dict.
            strict: Whether arguments must follow the tools' schemas to the letter.
            parallel_tool_calls: The service decides this itself. True is accepted; False is refused.
            response_format: The form of the final answer: a schema, or OpenAI's dict.
            **kwargs: Further parameters to bind.

        Raises:
            InvalidParameterError: `tool_choice` names no tool given, or `parallel_tool_calls` is False.
        """
        if parallel_tool_calls is False:
            raise InvalidParameterError(
                "parallel_tool_calls: the published schema has no place for it, and the service makes parallel "
                "calls where it sees fit; False cannot be promised. Take the first of the message's tool_calls",
                param="parallel_tool_calls",
            )
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
        """Make answers take the form of `schema`.

        Args:
            schema: A Pydantic class, a TypedDict, a JSON Schema or an OpenAI function; None with json_mode
                for any JSON object.
            method: "json_schema" has the service hold the answer to the schema; "function_calling" makes
                it the arguments of a call; "json_mode" asks for JSON only, and the prompt has to describe
                it.
            include_raw: Return ``{"raw": message, "parsed": …, "parsing_error": …}``; a parsing error is
                then returned instead of raised.
            strict: Whether the service must follow the schema to the letter. Not with json_mode.
            tools: Tools to offer besides. Only with json_schema. Where the model calls one instead of answering,
                the value is None and the calls are in ``raw`` (`include_raw`).
            **kwargs: Further parameters to bind.

        Returns:
            A runnable that gives instances of a Pydantic `schema`, or dicts.

        Raises:
            ValueError: The arguments do not go together.
            RefusalError: When run: the model refused.
            LengthFinishReasonError: When run: the token limit cut the answer.
        """
        if method not in ("json_schema", "function_calling", "json_mode"):
            raise ValueError("method must be 'json_schema', 'function_calling' or 'json_mode'")
        if schema is None and method != "json_mode":
            raise ValueError(f"schema must be given with method {method!r}")
        if strict is not None and method == "json_mode":
            raise ValueError("strict has no meaning with method 'json_mode'")
        if tools and method != "json_schema":
            raise ValueError(f"tools cannot be combined with method {method!r}")
        if method == "function_calling" and isinstance(schema, dict):
            # OpenAI's response_format forms hold the same schema under other names.
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
            return RunnableMap(raw=llm) | parsed.with_fallbacks([unparsed], exception_key="parsing_error")
        return llm | parser


def _response_format(schema: Any, *, strict: bool | None) -> dict[str, Any]:
    """OpenAI's ``response_format`` for a schema of any of LangChain's kinds."""
    if (form := tool_forms.as_response_format(schema)) is not None:
        return form
    function = convert_to_openai_function(schema, strict=strict)
    return tool_forms.json_schema_format(
        function["name"], function["parameters"], description=function.get("description"), strict=strict
    )
