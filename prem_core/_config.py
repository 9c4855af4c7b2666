"""Where a client's settings come from: the argument, then the environment, then the built-in default.

Whatever can be wrong with a setting raises here, at construction. No message shows a secret.
"""

from __future__ import annotations

import ipaddress
import os
import stat
import warnings
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

#: Seconds that loaders and the proxy wait for a transcription. The response starts only after the whole recording was
#: processed, and 25 MB can be two hours of speech.
AUDIO_TIMEOUT: Final = 300.0

#: Seconds to wait for a response that starts only when it is whole: an answer that is not streamed, or a transcription.
#: The service's own limit for a request.
WHOLE_REPLY_TIMEOUT: Final = 600.0

#: Open requests: as many as the BASE tier allows an organisation.
DEFAULT_MAX_CONCURRENCY: Final = 5

#: The default of each URL.
DEFAULT_URLS: Final = {"gateway_url": DEFAULT_GATEWAY_URL, "enclave_url": DEFAULT_ENCLAVE_URL}

#: The environment variables of each setting; the first one that is set wins. PROXY_URL, ENCLAVE_URL and "proxy" for the
#: gateway are the TypeScript SDK's names. Other software uses PROXY_URL, too, so ours come first.
VARIABLES: Final = {
    "api_key": ("PREM_API_KEY", "PREM_API_KEY_FILE"),
    "gateway_url": ("PREM_GATEWAY_URL", "PREM_PROXY_URL", "PROXY_URL"),
    "enclave_url": ("PREM_ENCLAVE_URL", "ENCLAVE_URL"),
    "nonce_reuse": ("PREM_NONCE_REUSE",),
    "attestation": ("PREM_ATTESTATION",),
    "limits": ("PREM_LIMITS_URL",),
}

#: The variable that names a file with the API key, as containers mount secrets.
KEY_FILE_VARIABLE: Final = "PREM_API_KEY_FILE"

#: Bytes of such a file at most.
_MAX_KEY_FILE: Final = 4096

_warned_of_proxy_url = False


def environment_source(setting: str) -> str | None:
    """The name of the environment variable that sets `setting`, or None. An empty variable counts as unset."""
    return next((name for name in VARIABLES[setting] if os.environ.get(name, "").strip()), None)


def from_environment(setting: str) -> str | None:
    """The value of `setting` in the environment, or None. `KEY_FILE_VARIABLE` names a file with the value.

    Raises:
        ConfigurationError: That file cannot be read or trusted.
    """
    name = environment_source(setting)
    if name == KEY_FILE_VARIABLE:
        return _read_key_file(os.environ[name].strip())
    return None if name is None else os.environ[name].strip()


def resolve_api_key(api_key: str | None) -> str:
    """The key to authenticate with.

    Raises:
        ConfigurationError: There is none, or it cannot be sent in a header. The message never quotes it.
    """
    key = api_key if api_key is not None else from_environment("api_key")
    if not isinstance(key, str) or not key:
        raise ConfigurationError(
            f"no API key: pass api_key=… or set PREM_API_KEY or {KEY_FILE_VARIABLE} (keys are on {DASHBOARD_URL}); a "
            "pickled model has no key, so set one of the two in each worker process"
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigurationError(
            "the API key contains a space, a line break or another character that no key has"
        )
    return key


def _read_key_file(path: str) -> str:
    """The content of a file with the API key, without the space around it.

    Only root and this user may change the file. Others may read it only if it is root's: containers mount secrets so.
    """
    name = f"{KEY_FILE_VARIABLE} ({path!r})"
    try:
        # Without O_NONBLOCK, opening a pipe would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            text = file.read(_MAX_KEY_FILE + 1) if stat.S_ISREG(status.st_mode) else None
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "the path cannot be used"
        raise ConfigurationError(f"{name} cannot be read: {reason}") from None
    if text is None:
        raise ConfigurationError(f"{name} is not a regular file")
    if os.name != "nt":
        mode, owner = stat.S_IMODE(status.st_mode), status.st_uid
        if owner not in (0, os.geteuid()):
            raise ConfigurationError(
                f"{name} belongs to another user (uid {owner}), who can read and replace it"
            )
        if mode & (0o022 if owner == 0 else 0o077):
            raise ConfigurationError(
                f"{name} can be accessed by other users (mode {mode:04o}); run: chmod 600 on it"
            )
    key = text.decode("ascii", "replace").strip()
    if not key or len(text) > _MAX_KEY_FILE:
        raise ConfigurationError(f"{name} does not contain an API key")
    return key


def resolve_url(setting: str, url: str | None, *, allow_insecure: bool = False) -> str:
    """An endpoint's URL, without its trailing slash.

    Args:
        setting: `gateway_url` or `enclave_url`.
        url: The argument; None for the environment's or the default.
        allow_insecure: Allow plain http to another machine.

    Raises:
        ConfigurationError: It is not an http(s) URL, holds credentials or a query, is one of Prem's APIs without
            end-to-end encryption, or is plain http to another machine without `allow_insecure`: prompts are encrypted,
            but the API key would be readable on the way. The message names where the value comes from.
    """
    name = setting
    if not url and (variable := environment_source(setting)) is not None:
        url = os.environ[variable].strip()
        name = f"{setting} (from {variable})"
        if variable == "PROXY_URL":
            _warn_of_proxy_url()
    url = url or DEFAULT_URLS[setting]
    if not isinstance(url, str) or not url.isprintable() or set(url) & set(" ?#@"):
        # urlsplit drops line breaks, and sees no query in a lone "?"; httpx would not.
        raise ConfigurationError(f"{name} must be a URL without credentials, a query, a fragment or spaces")
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError:
        raise ConfigurationError(f"{name} is not a URL") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigurationError(f"{name} must be an http(s) URL with a host")
    if setting == "gateway_url" and _is_not_end_to_end(host, parts.path):
        raise ConfigurationError(
            f"{name} is an API without end-to-end encryption: it is protected by TLS alone, and Prem's server reads "
            f"the prompts; use the gateway, {DEFAULT_GATEWAY_URL}"
        )
    if parts.scheme == "http" and not is_loopback(host) and not allow_insecure:
        raise ConfigurationError(
            f"{name} is plain http to another machine, where the API key could be read on the way; "
            "use https, or pass allow_insecure=True if you accept that"
        )
    return url.rstrip("/")


def _is_not_end_to_end(host: str, path: str) -> bool:
    """Whether this is one of Prem's APIs without end-to-end encryption: its router, or the gateway's /typesafe."""
    host = host.rstrip(".")
    typesafe = host == urlsplit(DEFAULT_GATEWAY_URL).hostname and path.lower().split("/")[1:2] == ["typesafe"]
    return typesafe or host == "router.prem.io" or host.endswith(".router.prem.io")


def _warn_of_proxy_url() -> None:
    global _warned_of_proxy_url
    if not _warned_of_proxy_url:
        _warned_of_proxy_url = True
        warnings.warn(
            "PROXY_URL is used as Prem's gateway, and gets the API key. Other software uses that name for an "
            "HTTP proxy: set PREM_GATEWAY_URL instead",
            stacklevel=2,
        )


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
        raise ConfigurationError(f"{name} must be a number above 0, not {value!r}")
    return value


def not_negative(name: str, value: int) -> int:
    """`value`, if it is a whole number, 0 or above.

    Raises:
        ConfigurationError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigurationError(f"{name} must be a whole number, 0 or above, not {value!r}")
    return value
