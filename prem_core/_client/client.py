"""`PremClient` and `AsyncPremClient`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, NoReturn, Self, TypeVar, Unpack, cast

from prem_core._client.audio import AsyncAudio, Audio
from prem_core._client.chat import AsyncChat, Chat
from prem_core._client.models import AsyncModels, Models
from prem_core._client.options import AsyncClientOptions, SyncClientOptions, with_defaults
from prem_core._client.requester import AsyncRequester, Requester
from prem_core._crypto.redaction import without_traceback
from prem_core._rate_limit.admission import Stats
from prem_core._rate_limit.permits import Limits

if TYPE_CHECKING:
    from prem_core.attestation.report import AttestationReport

RequesterT = TypeVar("RequesterT", Requester, AsyncRequester)


class _Client(Generic[RequesterT]):
    _requester: RequesterT

    @property
    def limits(self) -> Limits:
        """How many requests may be open at once. Pass it to another client or model to share it."""
        return self._requester.limits

    @property
    def stats(self) -> Stats:
        """Counts of requests, retries and rate limits, over all clients that share these `limits`."""
        return self._requester.limits.stats

    def __repr__(self) -> str:
        return f"{type(self).__name__}(gateway_url={self._requester.gateway_url!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} holds connections and cannot be pickled; make one per process"
        )


class PremClient(_Client[Requester]):
    """A synchronous client of Prem's encrypted API. Safe to share between threads.

    Every request is sealed on this machine, to the enclave's public key, with a fresh secret. The gateway that
    authenticates and meters it gets ciphertext; SECURITY.md says what it can learn all the same.

    Args:
        **options: See `ClientOptions`, and `http_client`: an ``httpx.Client`` of your own.

    Raises:
        ConfigurationError: An option cannot work; the message names it.
        EnclaveKeyError: `enclave_public_key` is not an X-Wing key.

    Examples:
        >>> with PremClient() as client:  # doctest: +SKIP
        ...     completion = client.chat.completions.create(
        ...         model="openai/gpt-oss-120b", messages=[{"role": "user", "content": "Hello!"}]
        ...     )
        ...     print(completion.choices[0].message.content)
    """

    #: ``client.chat.completions.create(…)``
    chat: Chat
    #: ``client.audio.transcriptions.create(…)`` and ``client.audio.translations.create(…)``
    audio: Audio
    #: ``client.models.list()``
    models: Models

    @without_traceback
    def __init__(self, **options: Unpack[SyncClientOptions]) -> None:
        self._requester = Requester(with_defaults(type(self).__name__, options))
        self.chat = Chat(self._requester)
        self.audio = Audio(self._requester)
        self.models = Models(self._requester)

    def attest(self, model: str) -> AttestationReport:
        """Verify the attestation of a model's enclave now, whatever `attestation` is set to.

        Returns:
            What the evidence shows, each check, and what it does not prove.

        Raises:
            AttestationError: The evidence is not accepted; the class names the kind.
            APIError: The gateway does not give the evidence.
            ConfigurationError: The extra `attestation` is not installed.
        """
        return cast("AttestationReport", self._requester.attest(model))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; an `http_client` of yours stays open. Later calls raise `ConfigurationError`."""
        self._requester.close()


class AsyncPremClient(_Client[AsyncRequester]):
    """`PremClient` for asyncio, with the same options.

    A client can be shared between event loops, one after the other or in several threads: each loop has its own
    connections. An `http_client` of yours is an ``httpx.AsyncClient``, and belongs to the loop it is used on first.
    """

    #: ``await client.chat.completions.create(…)``
    chat: AsyncChat
    #: ``await client.audio.transcriptions.create(…)`` and ``await client.audio.translations.create(…)``
    audio: AsyncAudio
    #: ``await client.models.list()``
    models: AsyncModels

    @without_traceback
    def __init__(self, **options: Unpack[AsyncClientOptions]) -> None:
        self._requester = AsyncRequester(with_defaults(type(self).__name__, options))
        self.chat = AsyncChat(self._requester)
        self.audio = AsyncAudio(self._requester)
        self.models = AsyncModels(self._requester)

    async def attest(self, model: str) -> AttestationReport:
        """See `PremClient.attest`."""
        return cast("AttestationReport", await self._requester.attest(model))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the running loop's connections; those of other loops close when these end. Later calls raise
        `ConfigurationError`."""
        await self._requester.close()

    aclose = close
