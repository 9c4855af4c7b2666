"""Checks of environment variables and settings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from prem_core import _config
from prem_core._crypto.keyfile import KEK_BYTES, KEK_VARIABLE
from prem_core._rate_limit.permits import Limits
from prem_core.cli.checks.check import Check, Options, State, attempt
from prem_core.cli.connection import find_kek

#: Variables that redirect requests or change which TLS certificates are trusted. Lower case counts too.
_NETWORK: Final = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")


def checks(options: Options) -> Iterator[Check]:
    """Check which variables are set, the KEK, and limits."""
    connection = options.connection
    found = [name for names in _config.VARIABLES.values() for name in names if _is_set(name)]
    missing = [
        names[0] for setting, names in _config.VARIABLES.items() if not _config.environment_source(setting)
    ]
    by_local = " (by --local)" if options.local else ""
    yield Check("environment", State.INFO, f"set{by_local}: {_join(found)}; not set: {_join(missing)}")
    network = [each for name in _NETWORK for each in _network_variables(name)]
    yield Check("network", State.INFO, f"set: {_join(network)}")

    source = connection.kek_file or (KEK_VARIABLE if _is_set(KEK_VARIABLE) else None)
    if source is None:
        yield Check("KEK", State.INFO, f"{KEK_VARIABLE} is not set; only prem keys and --keys need it")
    else:
        yield attempt(
            "KEK",
            lambda: find_kek(connection.kek_file),
            f"{source} contains {KEK_BYTES} bytes",
            f"Put {KEK_BYTES} random bytes in {source}, for example from: openssl rand -hex 32",
        )
    timeout = f"{connection.timeout or _config.DEFAULT_TIMEOUT:g} s"
    if connection.timeout is None:
        timeout += f" ({_config.WHOLE_REPLY_TIMEOUT:g} s for an answer that is not streamed)"
    yield Check(
        "limits",
        State.INFO,
        f"timeout {timeout}, {connection.max_retries} retries, {Limits().max_concurrency} concurrent "
        f"requests, {_config.DEFAULT_MAX_BUFFER_SIZE // 1024**2} MB per event or body",
    )


def _is_set(name: str) -> bool:
    return bool(os.environ.get(name, "").strip())


def _network_variables(name: str) -> Iterator[str]:
    for each in (name, name.lower()):
        if value := os.environ.get(each, "").strip():
            # The address of a proxy may contain a password.
            host = _host(value) if name.endswith("_PROXY") and name != "NO_PROXY" else ""
            yield f"{each} ({host})" if host else each


def _host(url: str) -> str:
    try:
        parts = urlsplit(url if "//" in url else f"//{url}")
        return f"{parts.hostname or '?'}{f':{parts.port}' if parts.port else ''}"
    except ValueError:
        return "not an address"


def _join(names: list[str]) -> str:
    return ", ".join(names) or "none"
