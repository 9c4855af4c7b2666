"""The options of every command that calls the service: where it is, how to authenticate, how long to wait.

No option takes a secret: a command line can be read by others, and stays in the shell's history. An option names the
variable or the file that holds it.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from prem_core._config import (
    DEFAULT_MAX_RETRIES,
    DEFAULT_TIMEOUT,
    KEK_VARIABLE,
    VARIABLES,
    from_environment,
    positive,
    resolve_kek,
)
from prem_core._errors import ConfigurationError
from prem_core.cli import EXIT_USAGE
from prem_core.cli.errors import exit_with

if TYPE_CHECKING:
    from prem_core import AsyncPremClient, EncryptionKeys, PremClient

_PANEL: Final = "Connection"


def _option(kind: Any, help: str, *names: str, **more: Any) -> Any:  # noqa: A002 - typer's name
    return Annotated[kind, typer.Option(*names, help=help, rich_help_panel=_PANEL, **more)]


@dataclass(frozen=True, slots=True)
class Connection:
    """How a command was told to reach the service. It holds no secret, and nothing is resolved yet."""

    api_key_env: str | None = None
    gateway_url: str | None = None
    enclave_url: str | None = None
    enclave_public_key: str | None = None
    keys: str | None = None
    kek_file: str | None = None
    timeout: float = DEFAULT_TIMEOUT
    max_retries: int = DEFAULT_MAX_RETRIES
    allow_insecure: bool = False

    def client(self, **options: Any) -> PremClient:
        """A client with these options; `options` win over them.

        Raises:
            ConfigurationError: A setting cannot work.
            CliError: The key that was pinned is none.
        """
        from prem_core import PremClient

        return PremClient(**{**self._options(), **options})

    def async_client(self, **options: Any) -> AsyncPremClient:
        """`client`, for asyncio."""
        from prem_core import AsyncPremClient

        return AsyncPremClient(**{**self._options(), **options})

    def api_key(self) -> str:
        """The API key, out of the environment.

        Raises:
            ConfigurationError: There is none.
        """
        key = (
            os.environ.get(self.api_key_env, "").strip() if self.api_key_env else from_environment("api_key")
        )
        if not key:
            (usual,) = VARIABLES["api_key"]
            raise ConfigurationError(
                f"no API key: {self.api_key_env or usual} is not set (Prem's dashboard has keys; prem --local "
                "needs none)"
            )
        return key

    def encryption_keys(self) -> EncryptionKeys | None:
        """The keys of ``--keys``.

        Raises:
            ConfigurationError: The file does not open, or there is no KEK.
        """
        if self.keys is None:
            return None
        from prem_core._crypto import keyfile

        kek = find_kek(self.kek_file)
        if kek is None:
            raise ConfigurationError(f"no KEK for --keys: set {KEK_VARIABLE}, or give --kek-file")
        return keyfile.read(self.keys, kek)

    def _options(self) -> dict[str, Any]:
        import httpx

        from prem_core._protocol.response_body import parse_public_key

        positive("--timeout", self.timeout)
        with exit_with(EXIT_USAGE):
            pinned = None if self.enclave_public_key is None else parse_public_key(self.enclave_public_key)
        return {
            "api_key": self.api_key(),
            "gateway_url": self.gateway_url,
            "enclave_url": self.enclave_url,
            "enclave_public_key": pinned,
            "encryption_keys": self.encryption_keys(),
            # It is the answer that may take long, not finding the gateway.
            "timeout": httpx.Timeout(self.timeout, connect=min(self.timeout, DEFAULT_TIMEOUT)),
            "max_retries": self.max_retries,
            "allow_insecure": self.allow_insecure,
        }


#: One for each of `Connection`'s fields.
_KINDS: Final[dict[str, Any]] = {
    "api_key_env": _option(
        str | None,
        "The environment variable that holds the API key, instead of PREM_API_KEY.",
        metavar="NAME",
    ),
    "gateway_url": _option(str | None, "The gateway. By default PREM_GATEWAY_URL, or Prem's.", metavar="URL"),
    "enclave_url": _option(
        str | None, "The enclave, asked for its key. By default PREM_ENCLAVE_URL, or Prem's.", metavar="URL"
    ),
    "enclave_public_key": _option(
        str | None, "The enclave's key, pinned, in hex or base64: none is fetched then.", metavar="KEY"
    ),
    "keys": _option(
        str | None,
        "A file of encryption keys (prem keys) to use, instead of a fresh secret for every request.",
        metavar="FILE",
    ),
    "kek_file": _option(
        str | None,
        f"The file with the KEK that opens --keys. By default {KEK_VARIABLE} does.",
        metavar="FILE",
    ),
    "timeout": _option(
        float,
        "How long to wait for a connection, for the answer to begin, and between its pieces.",
        metavar="SECONDS",
    ),
    "max_retries": _option(
        int, "Tries after the first one. None once an answer has begun.", metavar="N", min=0
    ),
    "allow_insecure": _option(
        bool, "Allow plain http to another machine, where the API key can be read.", "--allow-insecure"
    ),
}


def with_connection_options(
    *, timeout: float = DEFAULT_TIMEOUT
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of a connection, and their values as its parameter `connection`.

    Args:
        timeout: The command's own default.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True)
        fields = {field.name: field.default for field in dataclasses.fields(Connection)} | {
            "timeout": timeout
        }

        @functools.wraps(command)
        def called(**given: Any) -> None:
            connection = Connection(**{name: given.pop(name) for name in fields})
            command(connection=connection, **given)

        kind = inspect.Parameter.KEYWORD_ONLY
        shared = [
            inspect.Parameter(name, kind, default=default, annotation=_KINDS[name])
            for name, default in fields.items()
        ]
        parameters = [
            each.replace(kind=kind) for name, each in own.parameters.items() if name != "connection"
        ]
        # typer reads a command's options from its signature.
        called.__signature__ = own.replace(parameters=[*parameters, *shared])  # type: ignore[attr-defined]
        called.__annotations__ = {}
        return called

    return decorate


def find_kek(path: str | None) -> bytes | None:
    """The KEK of the file, else of the environment; None where neither is given.

    Raises:
        ConfigurationError: What is given is no KEK.
    """
    from prem_core._crypto import keyfile

    if path:
        return keyfile.read_kek(path)
    return resolve_kek() if os.environ.get(KEK_VARIABLE, "").strip() else None
