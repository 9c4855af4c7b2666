"""The options of a client: names, types and defaults, listed once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, TypedDict

import httpx

from prem_core import _config
from prem_core._crypto.keys import EncryptionKeys
from prem_core._crypto.xwing import PublicKey
from prem_core._errors import ConfigurationError
from prem_core._protocol.attestation.settings import DEFAULT_MAX_AGE, AttestationMode
from prem_core._protocol.nonce_reuse import NonceReuse
from prem_core._rate_limit.permits import Limits

if TYPE_CHECKING:
    from prem_core.attestation.policy import VerificationPolicy
    from prem_core.attestation.roots import TrustedRoots
else:  # not imported for the types of options that few clients have
    VerificationPolicy = TrustedRoots = Any


class ClientOptions(TypedDict, total=False):
    """Options that both clients take. Each comes from the argument, else the environment, else the default."""

    api_key: str | None
    """Begins with ``sk_live`` or ``sk_test``. Environment: PREM_API_KEY, or PREM_API_KEY_FILE for a file with it."""
    gateway_url: str | None
    """Prem's gateway. Environment: PREM_GATEWAY_URL, PREM_PROXY_URL, PROXY_URL. Default: Prem's."""
    proxy_url: str | None
    """Another name of `gateway_url`, the TypeScript SDK's."""
    enclave_url: str | None
    """The enclave, from which the public key is fetched. Environment: PREM_ENCLAVE_URL, ENCLAVE_URL. Default:
    Prem's."""
    enclave_public_key: PublicKey | bytes | str | None
    """The enclave's X-Wing public key (1216 bytes: raw, hex or base64), pinned. It is used instead of a fetched one.
    If the service no longer has the private key for it, calls raise `EnclaveKeyError`."""
    encryption_keys: EncryptionKeys | None
    """One KEM result for all requests, instead of a fresh one for each; see `generate_encryption_keys`."""
    timeout: float | httpx.Timeout | None
    """Seconds to connect, to wait for the response to start, and between its parts; or an ``httpx.Timeout``. None, the
    default, for 30, and for 600 until a response starts that comes only when it is whole: an answer that is not
    streamed, or a transcription."""
    total_timeout: float | None
    """Seconds for the whole call, including queueing, retries and reading the stream. None, the default, for no
    limit."""
    stream_chunk_timeout: float | None
    """Seconds between the chunks of a stream; a gateway's keep-alive comments do not count. None, the default, for
    `timeout`."""
    max_buffer_size: int
    """Bytes of one event or one body that may be held. Default: 10 MB."""
    max_retries: int
    """Retries after failures; 3 means at most 4 requests. Never after the first chunk. Retries after a rate limit are
    not counted: `total_timeout` ends them, or ten minutes, or a Retry-After of more than a minute. 0 for no retry at
    all. Default: 2."""
    retry_after_send: bool
    """Whether to retry also where the service may have accepted the request: it was sent, and no response or only a
    part of one arrived. The service may then charge for it twice. Default: False."""
    nonce_reuse: NonceReuse | None
    """What to do about replies that are sealed under their request's nonce, as all streams are. The gateway can read
    and replace such a reply and, by sending the request again, read the request. "error" accepts only replies in one
    piece under a nonce of their own: streams are answered in one piece, and before the first prompt to a model the
    client sends a probe that holds only a random word. "warn", the default, warns once per process; "allow" is silent.
    Environment: PREM_NONCE_REUSE."""
    request_masking: bool
    """Whether each chat begins with about 2 kB of random characters (in the parameter `metadata`), so that the gateway
    cannot read the beginning of a request with the help of its reply; the length is rounded up, too. Default: True."""
    max_concurrency: int | None
    """Requests that may be open at once, over all threads and tasks; others wait in order. None for no limit.
    Default: 5."""
    requests_per_second: float | None
    """Requests that may start per second, in the long run. None, the default, for as many as the service takes."""
    limits: Limits | None
    """A `Limits` to share with other clients and models, in place of the two options above."""
    attestation: AttestationMode | None
    """Whether the enclave's attestation is verified before the first request for a model, and again when the enclave's
    key changes or `attestation_max_age` has passed. "require" sends no request, and not the probe of `nonce_reuse`,
    before the verdict, and raises `AttestationError` if it fails. "warn" warns once per process and continues. "off",
    the default, verifies nothing. Environment: PREM_ATTESTATION. Needs the extra `attestation`."""
    attestation_policy: VerificationPolicy | None
    """Decides which genuine evidence is acceptable. Default: ``prem_core.attestation.PremPolicy()``."""
    attestation_max_age: float
    """Seconds for which a verdict counts. Default: 3600."""
    attestation_roots: TrustedRoots | None
    """The root keys that are trusted, and where certificates are fetched from. Default: AMD's, Intel's and NVIDIA's.
    The embedded enclave has its own: ``LocalEnclave.attestation_roots``."""
    require_key_binding: bool
    """Whether evidence that does not commit to the enclave's public key is refused. Prem's documented reports do not
    commit to it. Default: False."""
    attestation_cache_dir: str | os.PathLike[str] | None
    """A folder in which fetched certificates and revocation lists are kept, for all processes. They are public. None,
    the default, keeps them in memory only."""
    attestation_collateral: str | os.PathLike[str] | None
    """A folder of certificates, revocation lists and keys, as ``prem attest --save`` writes it. They are used instead
    of fetched ones; the vendors' services are not asked. Default: None."""
    allow_insecure: bool
    """Allow plain http to another machine, where the API key can be read on the way. Default: False."""


class SyncClientOptions(ClientOptions, total=False):
    """Options of `PremClient`."""

    http_client: httpx.Client | None
    """An ``httpx.Client`` of your own, for example with client certificates. It is not closed with the client. Its
    own settings apply: it uses an HTTP proxy of the environment even for this machine, unless ``trust_env=False``."""


class AsyncClientOptions(ClientOptions, total=False):
    """Options of `AsyncPremClient`."""

    http_client: httpx.AsyncClient | None
    """An ``httpx.AsyncClient`` of your own. It belongs to the event loop it is used on first, and is not closed with
    the client. Its own settings apply, as for `PremClient`."""


#: The value of each option that is not given.
DEFAULTS: Final[Mapping[str, Any]] = {
    **dict.fromkeys(SyncClientOptions.__optional_keys__),
    "max_buffer_size": _config.DEFAULT_MAX_BUFFER_SIZE,
    "max_retries": _config.DEFAULT_MAX_RETRIES,
    "max_concurrency": _config.DEFAULT_MAX_CONCURRENCY,
    "retry_after_send": False,
    "request_masking": True,
    "attestation_max_age": DEFAULT_MAX_AGE,
    "require_key_binding": False,
    "allow_insecure": False,
}


def with_defaults(owner: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """`given`, completed by the defaults, with `gateway_url` under that name.

    Args:
        owner: The class that was given them, for the error.
        given: Options by name.

    Raises:
        TypeError: A name is not an option.
        ConfigurationError: `gateway_url` was given under both of its names.
    """
    unknown = given.keys() - DEFAULTS.keys()
    if unknown:
        raise TypeError(f"{owner}() got an unexpected keyword argument {min(unknown)!r}")
    options = {**DEFAULTS, **given}
    proxy_url = options.pop("proxy_url")
    if proxy_url is not None:
        if options["gateway_url"] is not None:
            raise ConfigurationError("gateway_url and proxy_url are the same option: pass only gateway_url")
        options["gateway_url"] = proxy_url
    return options
