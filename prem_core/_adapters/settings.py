"""What the classes of both frameworks are made from, and how they are asked, copied and pickled.

The rule of this file: a setting is declared, checked and turned into a request once. A secret is in no
repr, no pickle and no serialised form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Final, Literal, Self, cast

import httpx
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from prem_core._adapters.client_cache import Clients
from prem_core._client.client import AsyncPremClient, PremClient
from prem_core._config import (
    DEFAULT_MAX_BUFFER_SIZE,
    DEFAULT_MAX_CONCURRENCY,
    DEFAULT_MAX_RETRIES,
    DEFAULT_TIMEOUT,
)
from prem_core._crypto.keys import EncryptionKeys
from prem_core._crypto.xwing import PublicKey
from prem_core._errors import InvalidParameterError
from prem_core._protocol.request_schema import chat_plaintext
from prem_core._rate_limit.limiter import Stats
from prem_core._rate_limit.limits import Limits, check_one_source

#: Parameters of the published schema that are settings, sent under their own names.
PARAM_FIELDS: Final = (
    "model", "temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "n", "seed",
    "frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "top_logprobs", "reasoning_effort",
    "verbosity", "service_tier", "store", "modalities", "audio", "prediction", "prompt_cache_key",
    "prompt_cache_retention", "safety_identifier", "web_search_options", "response_format",
)  # fmt: skip

#: Settings under a name of their own: in both frameworks `metadata` is something else.
_RENAMED: Final = {"request_metadata": "metadata"}


#: Settings that are a client's arguments as they are.
_CLIENT_FIELDS: Final = (
    "gateway_url", "enclave_url", "enclave_public_key", "encryption_keys", "max_retries", "total_timeout",
    "stream_chunk_timeout", "max_concurrency", "requests_per_second", "limits", "max_buffer_size",
    "allow_insecure",
)  # fmt: skip


class ClientSettings(BaseModel):
    """The settings of a client, for whatever makes one when it is first needed: models, parsers, loaders.

    A base to stand before the framework's own base class. No secret is in a repr, a pickle or a serialised form.
    Private attributes of a class made from it need a default factory: copies get fresh ones.
    """

    api_key: SecretStr | None = Field(default=None, exclude=True, repr=False)
    """API key; else PREM_API_KEY. Not serialised."""
    gateway_url: str | None = None
    """The gateway; else PREM_GATEWAY_URL or PROXY_URL, else Prem's."""
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
    total_timeout: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Seconds for a whole call, until its answer is whole: its turn's wait and every try included."""
    stream_chunk_timeout: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Seconds between the chunks of a stream, whatever else comes in between; else `timeout`."""
    max_concurrency: int | None = Field(default=DEFAULT_MAX_CONCURRENCY, ge=1, strict=True)
    """Requests on their way at once, of all threads and tasks; the others wait in line. None for any number."""
    requests_per_second: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Requests that begin, in the long run. None for as many as the service takes."""
    limits: Limits | None = Field(default=None, exclude=True, repr=False)
    """`prem_core.Limits` to share with other models and clients, in place of the two above. Not serialised."""
    max_buffer_size: int = Field(default=DEFAULT_MAX_BUFFER_SIZE, gt=0)
    """Bytes of one event, or one body, that may be held."""
    allow_insecure: bool = False
    """Allow plain http to another machine."""

    model_config = ConfigDict(
        # A name that is no field is an error: a misspelt parameter must not be dropped.
        extra="forbid",
        populate_by_name=True,
        arbitrary_types_allowed=True,
        # An error names a setting and never shows its value, which may be a key.
        hide_input_in_errors=True,
    )

    #: The fields that hold the caller's own httpx clients, synchronous and asynchronous.
    _http_fields: ClassVar[tuple[str, str]]
    #: Fields that are left out of pickles and take their defaults again.
    _unpickled: ClassVar[frozenset[str]] = frozenset({"api_key"})
    #: Fields that may hold a caller's words, and are in no repr.
    _unshown: ClassVar[frozenset[str]] = frozenset()
    #: Fields whose objects a deep copy shares: they belong to the process, or to the caller.
    _shared: ClassVar[frozenset[str]] = frozenset({"rate_limiter"})

    @field_validator("enclave_public_key", mode="before")
    @classmethod
    def _key_as_text(cls, value: Any) -> Any:
        # Kept as text, so that it can be serialised with the rest.
        return bytes(value).hex() if isinstance(value, PublicKey | bytes) else value

    _clients: Clients = PrivateAttr(default_factory=Clients)

    @model_validator(mode="wrap")
    @classmethod
    def _without_values(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Let no error about a setting hold what was given: its text does not, but its `errors()` would."""
        try:
            made = handler(values)
            made._check()
            return made
        except ValidationError as error:
            found = [
                # A text of its own: the error's would be made again of a context, which may hold what was given.
                InitErrorDetails(type=_named(each["type"], each["msg"]), loc=each["loc"], input=None)
                for each in error.errors(include_url=False, include_context=False, include_input=False)
            ]
        except ValueError as error:
            found = [InitErrorDetails(type=_named("value_error", f"Value error, {error}"), input=None)]
        finally:
            del values
        # Outside the handlers, so that the error it came from is not its context.
        raise ValidationError.from_exception_data(cls.__name__, found, hide_input=True)

    def _check(self) -> None:
        """Hold the settings against each other.

        Raises:
            ValueError: Two of them contradict each other; the message names them.
        """
        check_one_source(self.limits, self._limited_to(), self.requests_per_second)

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        return [(name, value) for name, value in super().__repr_args__() if name not in self._unshown]

    def _limited_to(self) -> int | None:
        """`max_concurrency`, where it means nothing but requests."""
        return self.max_concurrency

    # --- clients --------------------------------------------------------------------------------------

    @property
    def stats(self) -> Stats:
        """Counts of requests, retries and refusals so far, and of those on their way; shared as `limits` are."""
        return self._clients.limits(self._client_options(self._http_fields[0])).stats

    def _sync(self) -> PremClient:
        # Made at the first call: constructing a model costs no connection, and needs no key yet.
        return self._clients.sync(self._client_options(self._http_fields[0]))

    def _async(self) -> AsyncPremClient:
        return self._clients.asynchronous(self._client_options(self._http_fields[1]))

    def _client_options(self, http_field: str) -> dict[str, Any]:
        return {
            "api_key": self.api_key.get_secret_value() if self.api_key is not None else None,
            "timeout": self._client_timeout(),
            "http_client": getattr(self, http_field),
            **{name: getattr(self, name) for name in _CLIENT_FIELDS},
        }

    def _client_timeout(self) -> float | httpx.Timeout:
        return self.timeout

    # --- copies ---------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[Any, Any]:
        if any(getattr(self, name) is not None for name in self._http_fields):
            raise TypeError("a model with an http client of its own is not pickled: the client cannot be")
        if getattr(self, "rate_limiter", None) is not None:
            raise TypeError("a model with a rate_limiter is not pickled: another process could not share it")
        state = BaseModel.__getstate__(self)
        fields = {name: value for name, value in state["__dict__"].items() if name not in self._unpickled}
        return {**state, "__dict__": fields, "__pydantic_private__": None}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        BaseModel.__setstate__(self, state)
        for name, field in type(self).model_fields.items():
            if name not in self.__dict__:
                self.__dict__[name] = field.get_default(call_default_factory=True)
        self._fresh_privates()

    def __copy__(self) -> Self:
        made = BaseModel.__copy__(self)
        # Another model may get other settings (`model_copy(update=…)`): it makes its own clients.
        made._fresh_privates()
        return made

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        memo = {} if memo is None else memo
        # Limits that were given are an organisation's, whichever copy uses them.
        for name in {"limits", *self._http_fields, *self._shared}:
            shared = getattr(self, name, None)
            memo[id(shared)] = shared
        return BaseModel.__deepcopy__(self, memo)

    def _fresh_privates(self) -> None:
        factories = {n: each.default_factory for n, each in type(self).__private_attributes__.items()}
        private = {name: cast("Callable[[], Any]", make)() for name, make in factories.items() if make}
        object.__setattr__(self, "__pydantic_private__", private)


class ModelSettings(ClientSettings):
    """The settings of a chat model: those of its client, and every parameter of the published schema."""

    _unshown: ClassVar[frozenset[str]] = frozenset({"extra_body", "prediction"})

    model: str = Field(min_length=1)
    """Name of the model."""

    temperature: float | None = None
    """Sampling temperature, 0 to 2."""
    top_p: float | None = None
    """Nucleus sampling, 0 to 1."""
    max_tokens: int | None = None
    """Most tokens to generate."""
    max_completion_tokens: int | None = None
    """Most tokens to generate, reasoning included."""
    stop: str | list[str] | None = None
    """Up to four strings to stop at."""
    n: int | None = None
    """Answers to generate. Cannot be streamed."""
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
    """The schema's `metadata` parameter; the framework has a `metadata` of its own."""
    response_format: dict[str, Any] | None = None
    """The form of the answer; structured output sets it per call."""
    extra_body: dict[str, Any] | None = None
    """Further top-level names of the request, passed through unchecked."""
    stream_usage: bool = True
    """Whether streams report token usage."""

    @field_validator(*PARAM_FIELDS[1:], *_RENAMED)
    @classmethod
    def _as_published(cls, value: Any, info: ValidationInfo) -> Any:
        name = str(info.field_name)
        check_params({_RENAMED.get(name, name): value})
        return value

    # --- requests -------------------------------------------------------------------------------------

    def _defaults(self) -> dict[str, Any]:
        """The request's parameters as they are set on the model."""
        params = {name: value for name in PARAM_FIELDS if (value := getattr(self, name)) is not None}
        for name, wire in _RENAMED.items():
            if (value := getattr(self, name)) is not None:
                params[wire] = value
        return params

    def _chat_request(
        self, messages: list[dict[str, Any]], given: Mapping[str, Any], *, stream: bool
    ) -> dict[str, Any]:
        """Arguments of `chat.completions.create`: the call's win over the model's.

        Raises:
            InvalidParameterError: Several answers are to be streamed.
        """
        given = {name: value for name, value in given.items() if name != "stream"}
        usage = given.pop("stream_usage", None)
        extra = {**(self.extra_body or {}), **(given.pop("extra_body", None) or {})}
        request: dict[str, Any] = {**self._defaults(), **given, "messages": messages}
        # An empty list is how some callers say "none"; servers refuse it.
        for name in ("stop", "tools"):
            if not request.get(name):
                request.pop(name, None)
        if extra:
            request["extra_body"] = extra
        if not stream:
            request.pop("stream_options", None)
            return request
        if (request.get("n") or 1) > 1:
            raise InvalidParameterError(
                "n: several answers cannot be streamed, because the frameworks add a stream up to one answer; "
                "ask for them without streaming",
                param="n",
            )
        request["stream"] = True
        if self.stream_usage if usage is None else usage:
            request["stream_options"] = {"include_usage": True, **(request.get("stream_options") or {})}
        return request


def _named(kind: str, text: str) -> PydanticCustomError:
    # Not as the template: it would take braces for places.
    return PydanticCustomError(kind, "{text}", {"text": text})


def check_params(params: Mapping[str, Any]) -> None:
    """Hold some parameters against the published schema.

    Raises:
        InvalidParameterError: One is not what the schema allows.
    """
    # A whole request is checked; these two names are what every request has.
    chat_plaintext({"model": "m", "messages": [{"role": "user", "content": ""}], **params})
