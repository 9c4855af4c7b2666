"""Functions that ask one endpoint, without a client of the caller's."""

from __future__ import annotations

import warnings
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from prem_core import _config
from prem_core._client.client import AsyncPremClient, PremClient
from prem_core._crypto.keys import EncryptionKeys
from prem_core._crypto.xwing import PublicKey
from prem_core._errors import ConfigurationError, PremError
from prem_core._protocol.error_body import load_json
from prem_core._protocol.flow import fetch_page

#: Bytes of the page with the endpoints.
MAX_PAGE: Final = 64 * 1024

#: The enclave publishes its key without authentication, and no other party is asked: neither a real API key nor the
#: environment's gateway is needed.
_UNUSED: Any = {"api_key": "unused", "gateway_url": _config.DEFAULT_GATEWAY_URL, "nonce_reuse": "warn"}


def generate_encryption_keys(
    *,
    enclave_url: str | None = None,
    enclave_public_key: PublicKey | bytes | str | None = None,
    timeout: float = _config.DEFAULT_TIMEOUT,
    max_retries: int = _config.DEFAULT_MAX_RETRIES,
    http_client: httpx.Client | None = None,
    allow_insecure: bool = False,
) -> EncryptionKeys:
    """One KEM result for many requests: the `encryption_keys` of a client.

    Args:
        enclave_url: The enclave that its key is fetched from; see `ClientOptions`.
        enclave_public_key: Its key, if it is known already. Nothing is fetched then.
        timeout: Seconds.
        max_retries: Retries of the fetch.
        http_client: An ``httpx.Client`` to fetch with.
        allow_insecure: Allow plain http to another machine. Anyone between here and there can then replace the key.

    Raises:
        EnclaveKeyError: The enclave's response is not a usable key.
        APIConnectionError: The enclave cannot be reached.
    """
    with PremClient(
        enclave_url=enclave_url,
        enclave_public_key=enclave_public_key,
        timeout=timeout,
        max_retries=max_retries,
        http_client=http_client,
        allow_insecure=allow_insecure,
        **_UNUSED,
    ) as client:
        return EncryptionKeys.encapsulate(client._requester.fetch_key())


async def agenerate_encryption_keys(
    *,
    enclave_url: str | None = None,
    enclave_public_key: PublicKey | bytes | str | None = None,
    timeout: float = _config.DEFAULT_TIMEOUT,
    max_retries: int = _config.DEFAULT_MAX_RETRIES,
    http_client: httpx.AsyncClient | None = None,
    allow_insecure: bool = False,
) -> EncryptionKeys:
    """See `generate_encryption_keys`."""
    async with AsyncPremClient(
        enclave_url=enclave_url,
        enclave_public_key=enclave_public_key,
        timeout=timeout,
        max_retries=max_retries,
        http_client=http_client,
        allow_insecure=allow_insecure,
        **_UNUSED,
    ) as client:
        return EncryptionKeys.encapsulate(await client._requester.fetch_key())


def discover_endpoints(url: str = _config.ENDPOINTS_URL, *, timeout: float = 5.0) -> dict[str, str]:
    """The endpoints that Prem publishes at the moment, as options for a client: ``PremClient(**discover_endpoints())``.

    Never called implicitly: the owner of that page can redirect you to another enclave.

    Args:
        url: The page, over https. Redirects are not followed.
        timeout: Seconds for the whole page.

    Returns:
        ``{"gateway_url": …, "enclave_url": …}``, both https. If the page cannot be read, is larger than `MAX_PAGE` or
        names other URLs: the built-in ones, with a warning.

    Raises:
        ConfigurationError: `url` is not https.
    """
    if not url.startswith("https://"):
        raise ConfigurationError(f"discover_endpoints reads over https only, not {url.partition(':')[0]!r}")
    options: dict[str, Any] = {
        "enclave_url": _config.resolve_url("url", url),
        "timeout": timeout,
        "total_timeout": timeout,
        "max_buffer_size": MAX_PAGE,
    }
    try:
        # A client limits the time and the size, and follows no redirect.
        with PremClient(**options, **_UNUSED) as client:
            page = load_json(client._requester.run(fetch_page))
        given = {"gateway_url": page["proxy"], "enclave_url": page["enclave"]}
        if not all(isinstance(value, str) and urlsplit(value).scheme == "https" for value in given.values()):
            raise ValueError("not two https URLs")
        return {name: _config.resolve_url(name, value) for name, value in given.items()}
    except (PremError, ValueError, KeyError, TypeError) as error:
        warnings.warn(
            f"Prem's endpoints could not be read ({type(error).__name__}); using the built-in ones",
            stacklevel=2,
        )
        return {"gateway_url": _config.DEFAULT_GATEWAY_URL, "enclave_url": _config.DEFAULT_ENCLAVE_URL}
