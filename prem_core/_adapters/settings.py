"""The settings of models, parsers and loaders in both frameworks, declared and checked in one place.

Secrets are left out of reprs, pickles and serialised forms.
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

from prem_core._adapters.client_cache import CLIENTS
from prem_core._client.client import AsyncPremClient, PremClient
from prem_core._config import (
    DEFAULT_MAX_BUFFER_SIZE,
    DEFAULT_MAX_CONCURRENCY,
    DEFAULT_MAX_RETRIES,
    from_environment,
)
from prem_core._crypto.keys import EncryptionKeys
from prem_core._crypto.xwing import PublicKey
from prem_core._errors import ConfigurationError, InvalidParameterError
from prem_core._protocol.attestation.settings import DEFAULT_MAX_AGE, AttestationMode
from prem_core._protocol.nonce_reuse import NonceReuse
from prem_core._protocol.request_schema import chat_plaintext
from prem_core._rate_limit.admission import Stats
from prem_core._rate_limit.permits import Limits, check_one_source

#: Parameters of the published schema that are settings, sent under their own names.
PARAM_FIELDS: Final = (
    "model", "temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "n", "seed",
    "frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "top_logprobs", "reasoning_effort",
    "verbosity", "service_tier", "store", "modalities", "audio", "prediction", "prompt_cache_key",
    "prompt_cache_retention", "safety_identifier", "web_search_options", "response_format",
)  # fmt: skip

#: Settings whose name differs from the parameter's: in both frameworks `metadata` is something else.
_RENAMED: Final = {"request_metadata": "metadata"}


class _Derived:
    """Values computed from the settings at the first call. Changing a setting replaces this object."""

    __slots__ = ("async_client", "client", "params")

    def __init__(self) -> None:
        self.client: PremClient | None = None
        self.async_client: AsyncPremClient | None = None
        self.params: dict[str, Any] | None = None


class ClientSettings(BaseModel):
    """The settings of the client behind a model, a parser or a loader: its options, under their names.

    Models, parsers and loaders with equal settings share one client, and with it connections and the enclave's key.
    Those with the same gateway, API key, `max_concurrency` and `requests_per_second` share one `Limits`, because the
    service's limits apply to the whole organisation. Pass `limits` to choose yourself what shares them.

    List this class before the framework's own base class. Private attributes need a default factory, because copies
    start with new ones.
    """

    api_key: SecretStr | None = Field(default=None, exclude=True, repr=False)
    """API key; it starts with ``sk_live`` or ``sk_test``. Default: PREM_API_KEY, then the content of the file that
    PREM_API_KEY_FILE names. Not serialised."""
    gateway_url: str | None = None
    """Prem's gateway. Default: PREM_GATEWAY_URL, then Prem's production gateway. `proxy_url`, the name in Prem's own
    SDK, is accepted too."""
    enclave_url: str | None = None
    """The enclave. Default: PREM_ENCLAVE_URL or ENCLAVE_URL, then Prem's production enclave."""
    enclave_public_key: str | None = None
    """The enclave's X-Wing public key, pinned instead of fetched: hex or base64; bytes and `prem_core.PublicKey` are
    accepted too."""
    encryption_keys: EncryptionKeys | None = Field(default=None, exclude=True, repr=False)
    """Encryption keys to use for every request, instead of fresh ones for each. Not serialised."""
    timeout: float | None = Field(default=None, gt=0)
    """Seconds to wait for a connection, for the response to start, and between its bytes. None, the default, for 30,
    and for 600 until an answer starts that is not streamed."""
    max_retries: int = Field(default=DEFAULT_MAX_RETRIES, ge=0)
    """Retries after failures; those after rate limits are not counted. Nothing is retried once a chunk has arrived."""
    retry_after_send: bool = False
    """Whether to retry also where the service may have accepted the request, and may charge for it twice."""
    nonce_reuse: NonceReuse | None = None
    """What to do about replies that are sealed under their request's nonce, as all streams are: "warn" (the default),
    "error" or "allow". With "error" streams are answered in one piece. Default: PREM_NONCE_REUSE, then "warn"."""
    request_masking: bool = True
    """Whether each chat begins with random characters, so that the gateway cannot read the beginning of a request with
    the help of its reply."""
    attestation: AttestationMode | None = None
    """Whether the enclave's attestation is verified before a request: "require" sends nothing without a proof, "warn"
    warns once per process and continues, "off" verifies nothing. Default: PREM_ATTESTATION, then "off"."""
    attestation_policy: Any = Field(default=None, exclude=True, repr=False)
    """Decides which genuine evidence is acceptable. Default: `prem_core.attestation.PremPolicy`. Not serialised."""
    attestation_max_age: float = Field(default=DEFAULT_MAX_AGE, gt=0, allow_inf_nan=False)
    """Seconds for which an attestation counts."""
    attestation_roots: Any = Field(default=None, exclude=True, repr=False)
    """The root keys that are trusted, a `prem_core.attestation.TrustedRoots`. Default: the vendors' own. Not
    serialised."""
    require_key_binding: bool = False
    """Whether evidence that does not commit to the enclave's public key is refused. Prem's documented reports do not
    commit to it."""
    attestation_cache_dir: str | None = None
    """A folder in which fetched certificates and revocation lists are kept. Default: in memory only."""
    attestation_collateral: str | None = None
    """A folder of certificates, revocation lists and keys, used instead of fetched ones."""
    total_timeout: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Seconds for a whole call, until the response is complete. This includes waiting for a permit and all retries, and
    for a stream also the time its consumer takes."""
    stream_chunk_timeout: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Seconds between the chunks of a stream; keep-alive comments do not count as chunks. Default: `timeout`."""
    max_concurrency: int | None = Field(default=DEFAULT_MAX_CONCURRENCY, ge=1, strict=True)
    """Requests in flight at once, over all threads and tasks, `batch` included; the others wait for a permit. None for
    no limit. The default is the BASE tier's."""
    requests_per_second: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Requests started per second, on average. None for as many as the service accepts."""
    limits: Limits | None = Field(default=None, exclude=True, repr=False)
    """A `prem_core.Limits`, instead of the two settings above. Everything it is passed to shares it. Not
    serialised."""
    max_buffer_size: int = Field(default=DEFAULT_MAX_BUFFER_SIZE, gt=0)
    """Bytes of one event, or of one response body, that may be held in memory."""
    allow_insecure: bool = False
    """Allow plain http to another machine; the API key can then be read on the way."""

    model_config = ConfigDict(
        # A misspelt parameter must be an error, not ignored.
        extra="forbid",
        populate_by_name=True,
        arbitrary_types_allowed=True,
        # A value may be a key: errors name the setting only.
        hide_input_in_errors=True,
    )

    #: The fields that hold the caller's own httpx clients, synchronous and asynchronous.
    _http_fields: ClassVar[tuple[str, str]]
    #: Fields that are left out of pickles; they have their defaults after unpickling.
    _unpickled: ClassVar[frozenset[str]] = frozenset({"api_key"})
    #: Fields that may contain parts of a prompt, and are left out of the repr.
    _unshown: ClassVar[frozenset[str]] = frozenset()
    #: Fields whose objects are shared with deep copies, because they belong to the process or the caller.
    _shared: ClassVar[frozenset[str]] = frozenset({"rate_limiter"})

    _derived: _Derived = PrivateAttr(default_factory=_Derived)

    @field_validator("enclave_public_key", mode="before")
    @classmethod
    def _key_as_text(cls, value: Any) -> Any:
        # Kept as text, so that it can be serialised with the rest.
        return bytes(value).hex() if isinstance(value, PublicKey | bytes) else value

    @model_validator(mode="wrap")
    @classmethod
    def _without_values(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Keep values out of validation errors: pydantic's text does not show them, but `errors()` would."""
        try:
            made = handler(_with_gateway_url(values))
            made._check()
            return made
        except ValidationError as error:
            found = [
                # With the text as it is: pydantic would format it again from a context that may hold the value.
                InitErrorDetails(type=_custom_error(each["type"], each["msg"]), loc=each["loc"], input=None)
                for each in error.errors(include_url=False, include_context=False, include_input=False)
            ]
        except ValueError as error:
            found = [InitErrorDetails(type=_custom_error("value_error", f"Value error, {error}"), input=None)]
        finally:
            del values
        # Outside the handlers, so that the original error is not kept as the context.
        raise ValidationError.from_exception_data(cls.__name__, found, hide_input=True)

    def _check(self) -> None:
        """Check the settings against each other.

        Raises:
            ValueError: Two of them contradict each other; the message names them.
        """
        check_one_source(self.limits, self.max_concurrency, self.requests_per_second)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in type(self).model_fields:
            self._derived = _Derived()

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        return [(name, value) for name, value in super().__repr_args__() if name not in self._unshown]

    # --- clients --------------------------------------------------------------------------------------

    @property
    def stats(self) -> Stats:
        """Counts of requests, retries and rate limits so far, for everything that shares these limits."""
        derived = self._derived
        if shared := self.limits or derived.client or derived.async_client:
            return shared.stats
        try:
            return CLIENTS.limits(self._client_options(self._http_fields[0])).stats
        except ConfigurationError:  # without an API key there has been no request
            return Stats()

    def _client(self) -> PremClient:
        # Found at the first call: constructing a model opens no connection and needs no API key yet.
        derived = self._derived
        if derived.client is None:
            derived.client = CLIENTS.client(PremClient, self._client_options(self._http_fields[0]))
        return derived.client

    def _async_client(self) -> AsyncPremClient:
        derived = self._derived
        if derived.async_client is None:
            derived.async_client = CLIENTS.client(AsyncPremClient, self._client_options(self._http_fields[1]))
        return derived.async_client

    def _client_options(self, http_field: str) -> dict[str, Any]:
        options = {name: getattr(self, name) for name in ClientSettings.model_fields}
        options["timeout"] = self._client_timeout()
        # Read now: two models share a client only if they are equal in this, too.
        for name in ("nonce_reuse", "attestation"):
            options[name] = options[name] or from_environment(name)
        options["http_client"] = getattr(self, http_field)
        return options

    def _client_timeout(self) -> float | httpx.Timeout | None:
        return self.timeout

    # --- copies ---------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[Any, Any]:
        if any(getattr(self, name) is not None for name in self._http_fields):
            raise TypeError(
                "a model with its own http client cannot be pickled: httpx clients are not picklable"
            )
        if getattr(self, "rate_limiter", None) is not None:
            raise TypeError(
                "a model with a rate_limiter cannot be pickled: another process could not share it"
            )
        state = BaseModel.__getstate__(self)
        fields = {name: value for name, value in state["__dict__"].items() if name not in self._unpickled}
        return {**state, "__dict__": fields, "__pydantic_private__": None}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        BaseModel.__setstate__(self, state)
        for name, field in type(self).model_fields.items():
            if name not in self.__dict__:
                self.__dict__[name] = field.get_default(call_default_factory=True)
        self._reset_private()

    def __copy__(self) -> Self:
        made = BaseModel.__copy__(self)
        # `model_copy(update=…)` sets fields of the copy without `__setattr__`.
        made._reset_private()
        return made

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        memo = {} if memo is None else memo
        for name in {"limits", "attestation_policy", "attestation_roots", *self._http_fields, *self._shared}:
            shared = getattr(self, name, None)
            memo[id(shared)] = shared
        memo[id(self._derived)] = _Derived()
        return BaseModel.__deepcopy__(self, memo)

    def _reset_private(self) -> None:
        # Not `each.get_default()`, whose arguments differ between versions of pydantic.
        factories = {n: each.default_factory for n, each in type(self).__private_attributes__.items()}
        private = {name: cast("Callable[[], Any]", make)() for name, make in factories.items() if make}
        object.__setattr__(self, "__pydantic_private__", private)


def _with_gateway_url(values: Any) -> Any:
    """The settings, with `proxy_url` renamed to `gateway_url`.

    Raises:
        InvalidParameterError: Both names are given.
    """
    if not isinstance(values, dict) or "proxy_url" not in values:
        return values
    values = dict(values)
    url = values.pop("proxy_url")
    if values.get("gateway_url") is not None and url is not None:
        raise InvalidParameterError(
            "proxy_url and gateway_url are the same setting: pass only gateway_url", param="proxy_url"
        )
    return {**values, "gateway_url": values.get("gateway_url") if url is None else url}


class ModelSettings(ClientSettings):
    """The settings of a chat model: those of its client, and every parameter of the published schema."""

    _unshown: ClassVar[frozenset[str]] = frozenset({"extra_body", "prediction"})

    model: str = Field(min_length=1)
    """Name of the model, for example ``openai/gpt-oss-120b``."""

    temperature: float | None = None
    """Sampling temperature, 0 to 2."""
    top_p: float | None = None
    """Nucleus sampling, 0 to 1."""
    max_tokens: int | None = None
    """Maximum number of tokens to generate."""
    max_completion_tokens: int | None = None
    """Maximum number of tokens to generate, reasoning included."""
    stop: str | list[str] | None = None
    """Up to four strings at which generation stops."""
    n: int | None = None
    """Number of answers. More than one cannot be streamed."""
    seed: int | None = None
    """Makes sampling repeatable, as far as the model supports it."""
    frequency_penalty: float | None = None
    """-2 to 2."""
    presence_penalty: float | None = None
    """-2 to 2."""
    logit_bias: dict[str, float] | None = None
    """Bias by token id, -100 to 100."""
    logprobs: bool | None = None
    """Whether to return log probabilities."""
    top_logprobs: int | None = None
    """Number of alternatives for each token, 0 to 20."""
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high"] | None = None
    """How much the model reasons before it answers."""
    verbosity: Literal["low", "medium", "high"] | None = None
    """How detailed the answer is."""
    service_tier: Literal["auto", "default", "flex", "priority"] | None = None
    """How the request is processed."""
    store: bool | None = None
    """Whether the service may store the answer. Usually not set: avoiding storage is a reason to use encryption."""
    modalities: list[Literal["text", "audio"]] | None = None
    """Kinds of output."""
    audio: dict[str, Any] | None = None
    """Format and voice of audio output."""
    prediction: dict[str, Any] | None = None
    """Text that the answer is expected to repeat."""
    prompt_cache_key: str | None = None
    """Groups requests that share a prefix."""
    prompt_cache_retention: str | None = None
    """How long a cached prefix is kept."""
    safety_identifier: str | None = None
    """A stable name for the end user."""
    web_search_options: dict[str, Any] | None = None
    """Web search. The enclave would send search terms out to the web."""
    request_metadata: dict[str, str] | None = None
    """The schema's `metadata` parameter; `metadata` itself is the framework's."""
    response_format: dict[str, Any] | None = None
    """The form of the answer. Structured output sets it for each call."""
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

    def _params(self) -> dict[str, Any]:
        """The request parameters set on the model. Do not modify it: it is cached until a setting changes."""
        derived = self._derived
        if derived.params is None:
            named = {**{name: name for name in PARAM_FIELDS}, **_RENAMED}
            derived.params = {
                wire: value for name, wire in named.items() if (value := getattr(self, name)) is not None
            }
        return derived.params

    def _chat_request(
        self, messages: list[dict[str, Any]], given: Mapping[str, Any], *, stream: bool
    ) -> dict[str, Any]:
        """Arguments of `chat.completions.create`. Parameters of the call replace those of the model.

        Raises:
            InvalidParameterError: `n` is above 1 for a streamed answer.
        """
        request: dict[str, Any] = {**self._params(), **given, "messages": messages, "stream": stream}
        usage = request.pop("stream_usage", None)
        if self.extra_body:
            request["extra_body"] = {**self.extra_body, **(request.get("extra_body") or {})}
        # Some callers pass an empty list for "none", which the service rejects.
        if "stop" in request and not request["stop"]:
            del request["stop"]
        if "tools" in request and not request["tools"]:
            del request["tools"]
        if not stream:
            del request["stream"]
            request.pop("stream_options", None)
        elif (request.get("n") or 1) > 1:
            raise InvalidParameterError(
                "n: a streamed answer can have one choice only; use a call that does not stream", param="n"
            )
        elif self.stream_usage if usage is None else usage:
            request["stream_options"] = {"include_usage": True, **(request.get("stream_options") or {})}
        return request


def _custom_error(kind: str, text: str) -> PydanticCustomError:
    # Not as the template itself: braces in the text would be read as placeholders.
    return PydanticCustomError(kind, "{text}", {"text": text})


def check_params(params: Mapping[str, Any]) -> None:
    """Check parameters against the published schema.

    Raises:
        InvalidParameterError: The schema does not allow one of them.
    """
    # The schema describes a whole request, which requires these two.
    chat_plaintext({"model": "m", "messages": [{"role": "user", "content": ""}], **params})
