"""Where a client's settings come from: the argument, then the environment, then the built-in default.

The rule of this file: everything that can be wrong with a setting is said here, at construction, and
no setting that is a secret is ever shown.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
from binascii import a2b_base64, unhexlify
from typing import Final
from urllib.parse import urlsplit

from prem_core._errors import ConfigurationError

#: Prem's production endpoints, from the published documents. They change: see `discover_endpoints`.
DEFAULT_GATEWAY_URL: Final = "https://gateway.prem.io"
DEFAULT_ENCLAVE_URL: Final = "https://conf-engine.prem.io"

#: Where API keys are made.
DASHBOARD_URL: Final = "https://dashboard.prem.io"

#: Where the current pair is published.
ENDPOINTS_URL: Final = f"{DASHBOARD_URL}/endpoints.json"

#: The SDK's defaults: seconds, and bytes.
DEFAULT_TIMEOUT: Final = 30.0
DEFAULT_MAX_BUFFER_SIZE: Final = 10 * 1024 * 1024
DEFAULT_MAX_RETRIES: Final = 2

#: Requests on their way at once: what the BASE tier allows an organisation.
DEFAULT_MAX_CONCURRENCY: Final = 5

#: For each setting the variables that may hold it, the first one set wins. The names without a prefix are
#: the SDK's; other software uses PROXY_URL too, which is why ours come first.
VARIABLES: Final = {
    "api_key": ("PREM_API_KEY",),
    "gateway_url": ("PREM_GATEWAY_URL", "PREM_PROXY_URL", "PROXY_URL"),
    "enclave_url": ("PREM_ENCLAVE_URL", "ENCLAVE_URL"),
}

#: The variable that may hold the client's own master key. It seals what is kept on disk; no request uses it.
KEK_VARIABLE: Final = "CLIENT_KEK"
KEK_BYTES: Final = 32


def environment_source(setting: str) -> str | None:
    """The environment variable that holds the setting, or None. An empty variable counts as unset."""
    return next((name for name in VARIABLES[setting] if os.environ.get(name, "").strip()), None)


def from_environment(setting: str) -> str | None:
    """The setting's value in the environment, or None."""
    name = environment_source(setting)
    return None if name is None else os.environ[name].strip()


def resolve_api_key(api_key: str | None) -> str:
    """The key to authenticate with.

    Raises:
        ConfigurationError: There is none, or it cannot stand in a header. The message never quotes it.
    """
    key = api_key if api_key is not None else from_environment("api_key")
    if not isinstance(key, str) or not key:
        raise ConfigurationError("no API key: pass api_key=… or set PREM_API_KEY (Prem's dashboard has it)")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigurationError("the API key has characters that no key has (a line break, a space?)")
    return key


def resolve_kek(kek: bytes | bytearray | str | None = None) -> bytes:
    """The client's master key: `kek`, else the environment's CLIENT_KEK.

    Args:
        kek: 32 bytes; or 64 hex digits, or base64.

    Raises:
        ConfigurationError: There is none, or it is none of these. The message never quotes it, and
            no local of this frame holds it.
    """
    name = KEK_VARIABLE if kek is None else "kek"
    value = os.environ.get(KEK_VARIABLE, "").strip() or None if kek is None else kek
    missing = value is None
    raw = bytes(value) if isinstance(value, bytes | bytearray) else None
    if isinstance(value, str):
        raw = decode_kek(value.strip())
    del kek, value
    if missing:
        raise ConfigurationError("no KEK: pass kek=… or set CLIENT_KEK (openssl rand -hex 32 makes one)")
    if raw is None or len(raw) != KEK_BYTES:
        del raw
        raise ConfigurationError(f"{name} must be {KEK_BYTES} bytes, as 64 hex digits, in base64, or raw")
    return raw


def decode_kek(text: str | memoryview) -> bytes | None:
    """The 32 bytes that `text` spells in hex or base64, or None. A view is read where it is, uncopied."""
    for decode in (unhexlify, _strict_base64):
        with contextlib.suppress(ValueError):
            if len(raw := decode(text)) == KEK_BYTES:
                return raw
    return None


def _strict_base64(text: str | memoryview) -> bytes:
    return a2b_base64(text, strict_mode=True)


def resolve_url(setting: str, url: str | None, default: str, *, allow_insecure: bool = False) -> str:
    """An endpoint, without its trailing slash.

    Raises:
        ConfigurationError: It is no http(s) URL, holds credentials or a query, or is plain http to another
            machine without `allow_insecure`: prompts are sealed, but the API key would travel in the clear.
    """
    url = url or from_environment(setting) or default
    if not isinstance(url, str) or not url.isprintable() or set(url) & set(" ?#@"):
        # urlsplit drops line breaks, and sees no query in a lone "?"; httpx would not.
        raise ConfigurationError(
            f"{setting} must be a URL without credentials, a query, a fragment or spaces"
        )
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError:
        raise ConfigurationError(f"{setting} is not a URL") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigurationError(f"{setting} must be an http(s) URL with a host")
    if parts.scheme == "http" and not is_loopback(host) and not allow_insecure:
        raise ConfigurationError(
            f"{setting} is plain http to another machine, where the API key could be read on the way; "
            "use https, or allow_insecure=True if you mean it"
        )
    return url.rstrip("/")


def is_loopback(host: str) -> bool:
    """Whether `host` names this machine: localhost, 127.0.0.0/8 or ::1."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def positive(name: str, value: float) -> float:
    """`value`, if it is a number above zero.

    Raises:
        ConfigurationError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ConfigurationError(f"{name} must be a number above 0")
    return value


def not_negative(name: str, value: int) -> int:
    """`value`, if it is a whole number, 0 or above.

    Raises:
        ConfigurationError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigurationError(f"{name} must be a whole number, 0 or above")
    return value
