"""`ChatPremEncrypted`: Prem's end-to-end encrypted models as a LangChain chat model."""

from __future__ import annotations

import copy
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, Literal, Self, cast

import httpx
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.utils import count_tokens_approximately
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.tools import BaseTool
from langchain_core.utils import secret_from_env
from langchain_core.utils.function_calling import convert_to_openai_function, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, field_validator
from typing_extensions import override

from langchain_prem._answers import Chunks, chat_result
from langchain_prem._blocks import PROVIDER
from langchain_prem._egress import PlaintextEgress, check_egress
from langchain_prem._errors import core_errors
from langchain_prem._messages import wire_messages
from langchain_prem._profiles import profile_of
from langchain_prem._structured import StructuredOutputParser
from prem_core import (
    AsyncPremClient,
    EncryptionKeys,
    InvalidParameterError,
    PremClient,
    PublicKey,
)
from prem_core._config import DEFAULT_MAX_BUFFER_SIZE, DEFAULT_MAX_RETRIES, DEFAULT_TIMEOUT

#: Fields that are parameters of the published schema, sent under their own names.
_PARAMS = (
    "model", "temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "n", "seed",
    "frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "top_logprobs", "reasoning_effort",
    "verbosity", "service_tier", "store", "modalities", "audio", "prediction", "prompt_cache_key",
    "prompt_cache_retention", "safety_identifier", "web_search_options", "response_format",
)  # fmt: skip


class ChatPremEncrypted(BaseChatModel):
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
        proxy_url, enclave_url: str | None
            The gateway and the enclave; else ``PREM_PROXY_URL`` and ``PREM_ENCLAVE_URL``, else Prem's.
        enclave_public_key: str | None
            The enclave's key, pinned (hex or base64), instead of a fetched one.
        timeout: float
            Seconds to wait for a connection, for the answer to begin, and between its chunks.
        max_retries: int
            Tries after the first; never once a chunk has come.
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
        The API key is not written into pickles: it is read from the environment again. Connections are not
        carried over; a copy makes its own.

    Errors are `prem_core`'s, and langchain-core's (`ModelRateLimitError` and so on) as well.
    """

    model: str = Field(min_length=1)
    """Name of the model."""

    api_key: SecretStr | None = Field(default_factory=secret_from_env("PREM_API_KEY", default=None))
    """API key; else PREM_API_KEY."""
    proxy_url: str | None = None
    """The gateway; else PREM_PROXY_URL or PROXY_URL, else Prem's."""
    enclave_url: str | None = None
    """The enclave; else PREM_ENCLAVE_URL or ENCLAVE_URL, else Prem's."""
    enclave_public_key: str | None = None
    """The enclave's X-Wing public key, pinned: hex or base64 (an `prem_core.PublicKey` is taken too)."""
    encryption_keys: EncryptionKeys | None = Field(default=None, exclude=True, repr=False)
    """One KEM result for every request, instead of a fresh one each. Not serialised."""
    timeout: float = Field(default=DEFAULT_TIMEOUT, gt=0)
    """Seconds to wait for a connection, for the answer to begin, and between its pieces."""
    max_retries: int = Field(default=DEFAULT_MAX_RETRIES, ge=0)
    """Tries after the first one."""
    max_buffer_size: int = Field(default=DEFAULT_MAX_BUFFER_SIZE, gt=0)
    """Bytes of one event, or one body, that may be held."""
    allow_insecure: bool = False
    """Allow plain http to another machine."""
    http_client: httpx.Client | None = Field(default=None, exclude=True, repr=False)
    """An httpx client of your own for synchronous calls. Not serialised, not closed."""
    http_async_client: httpx.AsyncClient | None = Field(default=None, exclude=True, repr=False)
    """An httpx client of your own for asynchronous calls. Not serialised, not closed."""

    temperature: float | None = None
    """Sampling temperature, 0 to 2."""
    top_p: float | None = None
    """Nucleus sampling, 0 to 1."""
    max_tokens: int | None = None
    """Most tokens to generate."""
    max_completion_tokens: int | None = None
    """Most tokens to generate, reasoning included."""
    stop: str | list[str] | None = Field(default=None, alias="stop_sequences")
    """Up to four strings to stop at."""
    n: int | None = None
    """Answers to generate; the others are in `generate()`'s result. Cannot be streamed."""
    seed: int | None = None
    """For answers that can be reproduced, as far as the model can."""
    frequency_penalty: float | None = None
    """-2 to 2."""
    presence_penalty: float | None = None
    """-2 to 2."""
    logit_bias: dict[str, float] | None = None
    """Bias by token id, -100 to 100."""
    logprobs: bool | None = None
    """Whether to return log probabilities."""
    top_logprobs: int | None = None
    """Alternatives for each token, 0 to 20."""
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high"] | None = None
    """How much to reason."""
    verbosity: Literal["low", "medium", "high"] | None = None
    """How much to say."""
    service_tier: Literal["auto", "default", "flex", "priority"] | None = None
    """How the request is processed."""
    store: bool | None = None
    """Whether the service may keep the answer. The published schema has it; think before you set it."""
    modalities: list[Literal["text", "audio"]] | None = None
    """Kinds of output."""
    audio: dict[str, Any] | None = None
    """Format and voice of spoken output."""
    prediction: dict[str, Any] | None = None
    """Text that the answer is expected to repeat."""
    prompt_cache_key: str | None = None
    """Groups requests that share a prefix."""
    prompt_cache_retention: str | None = None
    """How long a cached prefix is kept."""
    safety_identifier: str | None = None
    """A stable name for the end user."""
    web_search_options: dict[str, Any] | None = None
    """How much of the web to read. The enclave would leave its walls for it."""
    request_metadata: dict[str, str] | None = None
    """The schema's `metadata` parameter (`metadata` is LangChain's tracing metadata)."""
    response_format: dict[str, Any] | None = None
    """The form of the answer; `with_structured_output` sets it per call."""
    extra_body: dict[str, Any] | None = None
    """Further top-level names of the request, passed through unchecked."""

    streaming: bool = False
    """Whether `invoke` goes through the streaming API too."""
    stream_usage: bool = True
    """Whether streams report token usage."""
    plaintext_egress: PlaintextEgress = "warn"
    """What to do when tracing or a cache would carry prompts out of the process in plaintext."""

    # A name that is no field is an error: a misspelt parameter must not be dropped.
    model_config = ConfigDict(extra="forbid", populate_by_name=True, arbitrary_types_allowed=True)

    _client: PremClient | None = PrivateAttr(default=None)
    _async_client: AsyncPremClient | None = PrivateAttr(default=None)
    _client_lock: Any = PrivateAttr(default_factory=threading.Lock)

    @field_validator("enclave_public_key", mode="before")
    @classmethod
    def _key_as_text(cls, value: Any) -> Any:
        # Kept as text, so that it can be serialised with the rest.
        return bytes(value).hex() if isinstance(value, PublicKey | bytes) else value

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
        return {"model_name": self.model, "proxy_url": self.proxy_url, **self._defaults()}

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

    # --- copies ---------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[Any, Any]:
        if self.http_client is not None or self.http_async_client is not None:
            raise TypeError("a model with an http client of its own is not pickled: the client cannot be")
        state = super().__getstate__()
        # The key is read from the environment again; connections and locks belong to their process.
        fields = {name: value for name, value in state["__dict__"].items() if name != "api_key"}
        fields.pop("_serialized", None)
        return {**state, "__dict__": fields, "__pydantic_private__": None}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        self._forget_clients()
        if "api_key" not in self.__dict__:
            self.__dict__["api_key"] = secret_from_env("PREM_API_KEY", default=None)()

    def __copy__(self) -> Self:
        made = type(self).__new__(type(self))
        state = {**self._state(), "__dict__": dict(self.__dict__)}
        super(ChatPremEncrypted, made).__setstate__(state)
        made._forget_clients()
        return made

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        # Clients given by the caller are shared, as they are between models made with the same arguments.
        kept = {
            name: self.__dict__[name] for name in ("http_client", "http_async_client", "callbacks", "cache")
        }
        fields = {name: value for name, value in self.__dict__.items() if name not in kept}
        made = type(self).__new__(type(self))
        state = {**self._state(), "__dict__": {**copy.deepcopy(fields, memo), **kept}}
        super(ChatPremEncrypted, made).__setstate__(state)
        made._forget_clients()
        return made

    def _state(self) -> dict[str, Any]:
        return {
            "__pydantic_extra__": self.__pydantic_extra__,
            "__pydantic_fields_set__": set(self.__pydantic_fields_set__),
            "__pydantic_private__": None,
        }

    def _forget_clients(self) -> None:
        object.__setattr__(
            self,
            "__pydantic_private__",
            {"_client": None, "_async_client": None, "_client_lock": threading.Lock()},
        )

    # --- clients --------------------------------------------------------------------------------------

    def _client_options(self) -> dict[str, Any]:
        return {
            "api_key": self.api_key.get_secret_value() if self.api_key is not None else None,
            "proxy_url": self.proxy_url,
            "enclave_url": self.enclave_url,
            "enclave_public_key": self.enclave_public_key,
            "encryption_keys": self.encryption_keys,
            "timeout": self.timeout,
            "max_retries": self.max_retries,
            "max_buffer_size": self.max_buffer_size,
            "allow_insecure": self.allow_insecure,
        }

    def _sync(self) -> PremClient:
        # Made at the first call: constructing a model costs no connection, and needs no key yet.
        if self._client is None:
            with self._client_lock:
                if self._client is None:
                    self._client = PremClient(**self._client_options(), http_client=self.http_client)
        return self._client

    def _async(self) -> AsyncPremClient:
        if self._async_client is None:
            with self._client_lock:
                if self._async_client is None:
                    self._async_client = AsyncPremClient(
                        **self._client_options(), http_client=self.http_async_client
                    )
        return self._async_client

    # --- requests -------------------------------------------------------------------------------------

    def _defaults(self) -> dict[str, Any]:
        params = {name: value for name in _PARAMS if (value := getattr(self, name)) is not None}
        if self.request_metadata is not None:
            params["metadata"] = self.request_metadata
        return params

    def _request(
        self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any], *, stream: bool
    ) -> dict[str, Any]:
        """Arguments of `chat.completions.create`: the call's win over the constructor's."""
        kwargs = {name: value for name, value in kwargs.items() if name not in ("stream", "stream_usage")}
        extra = {**(self.extra_body or {}), **(kwargs.pop("extra_body", None) or {})}
        request: dict[str, Any] = {**self._defaults(), **kwargs, "messages": wire_messages(messages)}
        if stop is not None:
            request["stop"] = stop
        # An empty list is how some callers say "none"; servers refuse it.
        for name in ("stop", "tools"):
            if not request.get(name):
                request.pop(name, None)
        if extra:
            request["extra_body"] = extra
        if stream:
            if (request.get("n") or 1) > 1:
                raise InvalidParameterError(
                    "n: several answers cannot be streamed through LangChain, which would add them up to one; "
                    "use generate() or ainvoke without streaming",
                    param="n",
                )
            request["stream"] = True
        return request

    def _with_usage(self, request: dict[str, Any], stream_usage: bool | None) -> dict[str, Any]:
        if self.stream_usage if stream_usage is None else stream_usage:
            request["stream_options"] = {"include_usage": True, **(request.get("stream_options") or {})}
        return request

    @override
    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        # The first thing every way of calling a model does, and before tracers are told of the prompt.
        check_egress(self.plaintext_egress, self.cache)
        return super()._get_invocation_params(stop=stop, **kwargs)

    @override
    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        check_egress(self.plaintext_egress, self.cache, run_manager.handlers if run_manager else ())
        with core_errors():
            request = self._request(messages, stop, kwargs, stream=False)
            completion = self._sync().chat.completions.create(**request)
            return chat_result(completion, json_wanted=_wants_json(request))

    @override
    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        check_egress(self.plaintext_egress, self.cache, run_manager.handlers if run_manager else ())
        with core_errors():
            request = self._request(messages, stop, kwargs, stream=False)
            completion = await self._async().chat.completions.create(**request)
            return chat_result(completion, json_wanted=_wants_json(request))

    @override
    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        *,
        stream_usage: bool | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with core_errors():
            request = self._with_usage(self._request(messages, stop, kwargs, stream=True), stream_usage)
            chunks = Chunks(json_wanted=_wants_json(request))
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
        *,
        stream_usage: bool | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        with core_errors():
            request = self._with_usage(self._request(messages, stop, kwargs, stream=True), stream_usage)
            chunks = Chunks(json_wanted=_wants_json(request))
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
            kwargs["tool_choice"] = _tool_choice(tool_choice, formatted)
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


def _wants_json(request: Mapping[str, Any]) -> bool:
    form = request.get("response_format")
    return isinstance(form, Mapping) and form.get("type") in ("json_object", "json_schema")


def _tool_choice(choice: dict[str, Any] | str | bool, tools: list[dict[str, Any]]) -> dict[str, Any] | str:
    if choice is True or choice in ("any", "required"):
        return "required"
    if choice in ("auto", "none"):
        return cast("str", choice)
    if isinstance(choice, dict):
        named = (choice.get("function") or choice.get("custom") or choice).get("name")
        wire = (
            choice
            if "type" in choice and len(choice) > 1
            else {"type": "function", "function": {"name": named}}
        )
    else:
        named = choice
        wire = {"type": "function", "function": {"name": named}}
    names = [(tool.get("function") or tool.get("custom") or {}).get("name") for tool in tools]
    if named not in names:
        raise InvalidParameterError(
            f"tool_choice: no tool of that name was given; there are {', '.join(map(str, names)) or 'none'}",
            param="tool_choice",
        )
    return wire


def _response_format(schema: Any, *, strict: bool | None) -> dict[str, Any]:
    """OpenAI's ``response_format`` for a schema of any of LangChain's kinds."""
    if isinstance(schema, dict):
        if schema.get("type") in ("json_schema", "json_object", "text"):
            return schema
        if "name" in schema and isinstance(schema.get("schema"), dict):
            return {"type": "json_schema", "json_schema": schema}
    function = convert_to_openai_function(schema, strict=strict)
    form: dict[str, Any] = {"name": function["name"], "schema": function["parameters"]}
    if function.get("description"):
        form["description"] = function["description"]
    if strict is not None:
        form["strict"] = strict
    return {"type": "json_schema", "json_schema": form}
