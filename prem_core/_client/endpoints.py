"""Functions that need an endpoint but no client of the caller's."""

from __future__ import annotations

import warnings

import httpx

from prem_core import _config
from prem_core._client.client import AsyncPremClient, PremClient
from prem_core._crypto.keys import EncryptionKeys
from prem_core._crypto.xwing import PublicKey
from prem_core._errors import ConfigurationError
from prem_core._transport.http import ssl_context


def generate_encryption_keys(
    *,
    enclave_url: str | None = None,
    enclave_public_key: PublicKey | bytes | str | None = None,
    timeout: float = _config.DEFAULT_TIMEOUT,
    max_retries: int = _config.DEFAULT_MAX_RETRIES,
    http_client: httpx.Client | None = None,
    allow_insecure: bool = False,
) -> EncryptionKeys:
    """One KEM result, to be used for many requests (`encryption_keys=` of a client).

    Args:
        enclave_url: The enclave to ask for its key; see `PremClient`.
        enclave_public_key: Its key, where it is known already: nothing is fetched then.
        timeout: Seconds.
        max_retries: Further tries of the fetch.
        http_client: An ``httpx.Client`` to fetch with.
        allow_insecure: Allow plain http to another machine. Whoever stands in between can then swap the key.

    Raises:
        EnclaveKeyError: The key cannot be had.
        APIConnectionError: The enclave cannot be reached.
    """
    # Any key will do: the enclave's is published without authentication, and no other party is asked.
    with PremClient(
        api_key="unused",
        gateway_url=_config.DEFAULT_GATEWAY_URL,  # not asked; the environment's must not get in the way
        enclave_url=enclave_url,
        enclave_public_key=enclave_public_key,
        timeout=timeout,
        max_retries=max_retries,
        http_client=http_client,
        allow_insecure=allow_insecure,
    ) as client:
        return EncryptionKeys.encapsulate(client._fetch_key(None))


async def agenerate_encryption_keys(
    *,
    enclave_url: str | None = None,
    enclave_public_key: PublicKey | bytes | str | None = None,
    timeout: float = _config.DEFAULT_TIMEOUT,
    max_retries: int = _config.DEFAULT_MAX_RETRIES,
    http_client: httpx.AsyncClient | None = None,
    allow_insecure: bool = False,
) -> EncryptionKeys:
    """`generate_encryption_keys`, awaited."""
    async with AsyncPremClient(
        api_key="unused",
        gateway_url=_config.DEFAULT_GATEWAY_URL,  # not asked; the environment's must not get in the way
        enclave_url=enclave_url,
        enclave_public_key=enclave_public_key,
        timeout=timeout,
        max_retries=max_retries,
        http_client=http_client,
        allow_insecure=allow_insecure,
    ) as client:
        return EncryptionKeys.encapsulate(await (await client._driver())._fetch_key(None))


def discover_endpoints(url: str = _config.ENDPOINTS_URL, *, timeout: float = 5.0) -> dict[str, str]:
    """The endpoints Prem publishes at the moment, as keyword arguments for a client.

    Opt-in: whoever controls that page chooses the enclave a client asks for its key. Use it as
    ``PremClient(**discover_endpoints())``.

    Args:
        url: The page, https.
        timeout: Seconds.

    Returns:
        ``{"gateway_url": …, "enclave_url": …}``. Where the page cannot be read, the built-in pair, and a
        warning.
    """
    if not url.startswith("https://"):
        raise ConfigurationError("endpoints are read over https only")
    try:
        response = httpx.get(url, timeout=timeout, verify=ssl_context())
        response.raise_for_status()
        page = response.json()
        given = {"gateway_url": page["proxy"], "enclave_url": page["enclave"]}
        if not all(isinstance(value, str) and value for value in given.values()):
            raise ValueError("not two URLs")
        return {name: _config.resolve_url(name, value, "") for name, value in given.items()}
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        warnings.warn(
            f"Prem's endpoints could not be read ({type(error).__name__}); using the built-in ones",
            stacklevel=2,
        )
        return {"gateway_url": _config.DEFAULT_GATEWAY_URL, "enclave_url": _config.DEFAULT_ENCLAVE_URL}
