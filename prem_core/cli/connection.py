"""The connection options: the service's URLs, authentication and timeouts.

No option takes a secret, because other users can read a command line and shells keep a history. An option names the
variable or the file that holds the secret.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from prem_core._config import (
    DASHBOARD_URL,
    DEFAULT_MAX_RETRIES,
    DEFAULT_TIMEOUT,
    VARIABLES,
    WHOLE_REPLY_TIMEOUT,
    from_environment,
    positive,
)
from prem_core._errors import ConfigurationError, PremError
from prem_core.cli import EXIT_USAGE
from prem_core.cli.errors import CliError

if TYPE_CHECKING:
    from prem_core import AsyncPremClient, EncryptionKeys, PremClient, PublicKey
    from prem_core._protocol.attestation.settings import AttestationMode
    from prem_core._protocol.nonce_reuse import NonceReuse
    from prem_core.attestation import TrustedRoots

_SECTION: Final = "Connection"


class NonceReuseMode(StrEnum):
    """The client's `nonce_reuse`, as typer takes it."""

    WARN = "warn"
    ERROR = "error"
    ALLOW = "allow"


class AttestationChoice(StrEnum):
    """The client's `attestation`, as typer takes it."""

    OFF = "off"
    WARN = "warn"
    REQUIRE = "require"


#: The roots of the embedded enclave, with ``--local``. Nothing else sets them: evidence of the service must lead to the
#: vendors' roots.
LOCAL_ROOTS: Final[ContextVar[TrustedRoots | None]] = ContextVar("LOCAL_ROOTS", default=None)


@dataclass(frozen=True, slots=True)
class GlobalOptions:
    """The options of `prem` itself: ``ctx.find_object(GlobalOptions)``."""

    debug: bool = False
    local: bool = False
    upstream: str | None = None
    upstream_api_key_env: str | None = None


def global_options(ctx: typer.Context) -> GlobalOptions:
    """The options of `prem` itself, in the context of any command."""
    return ctx.find_object(GlobalOptions) or GlobalOptions()


@dataclass(frozen=True, slots=True)
class Connection:
    """A command's connection options, as given. It holds no secret; `client` resolves the settings."""

    api_key_env: str | None = None
    gateway_url: str | None = None
    enclave_url: str | None = None
    enclave_public_key: str | None = None
    keys: str | None = None
    kek_file: str | None = None
    nonce_reuse: NonceReuse | None = None
    masking: bool = True
    attestation: AttestationMode | None = None
    timeout: float | None = None
    max_retries: int = DEFAULT_MAX_RETRIES
    retry_after_send: bool = False
    allow_insecure: bool = False

    def client(self, **options: Any) -> PremClient:
        """Make a client. `options` override the command line.

        Raises:
            ConfigurationError: A setting is wrong.
            CliError: --enclave-public-key is wrong.
        """
        from prem_core import PremClient

        return PremClient(**{**self._client_options(), **options})

    def async_client(self, **options: Any) -> AsyncPremClient:
        """`client` for asyncio."""
        from prem_core import AsyncPremClient

        return AsyncPremClient(**{**self._client_options(), **options})

    def api_key(self) -> str:
        """Read the API key from the environment.

        Raises:
            ConfigurationError: The variable is not set.
        """
        key = read_variable(self.api_key_env) if self.api_key_env else from_environment("api_key")
        if key is None:
            raise ConfigurationError(
                f"no API key: set {' or '.join(VARIABLES['api_key'])} (create a key at {DASHBOARD_URL}), "
                "or use prem --local, which needs none"
            )
        return key

    def refuses_nonce_reuse(self) -> bool:
        """Whether only replies under a nonce of their own are accepted, so that nothing is asked for as a stream."""
        return (self.nonce_reuse or from_environment("nonce_reuse")) == "error"

    def verifies_attestation(self) -> bool:
        """Whether the enclave's attestation is verified before a request."""
        return (self.attestation or from_environment("attestation") or "off") != "off"

    def encryption_keys(self) -> EncryptionKeys | None:
        """Read the keys of ``--keys``.

        Raises:
            ConfigurationError: The file cannot be opened, or there is no KEK.
        """
        if self.keys is None:
            return None
        from prem_core import EncryptionKeys

        kek = find_kek(self.kek_file)
        if kek is None:
            raise ConfigurationError("--keys needs a KEK: set CLIENT_KEK or use --kek-file")
        return EncryptionKeys.load(self.keys, kek)

    def _client_options(self) -> dict[str, Any]:
        import httpx

        timeout = None
        if self.timeout is not None:
            # A response may take long; finding the gateway should not.
            timeout = httpx.Timeout(
                positive("--timeout", self.timeout), connect=min(self.timeout, DEFAULT_TIMEOUT)
            )
        return {
            "api_key": self.api_key(),
            "gateway_url": self.gateway_url,
            "enclave_url": self.enclave_url,
            "enclave_public_key": parse_enclave_key(self.enclave_public_key),
            "encryption_keys": self.encryption_keys(),
            "nonce_reuse": self.nonce_reuse,
            "request_masking": self.masking,
            "attestation": self.attestation,
            "attestation_roots": LOCAL_ROOTS.get(),
            "timeout": timeout,
            "max_retries": self.max_retries,
            "retry_after_send": self.retry_after_send,
            "allow_insecure": self.allow_insecure,
        }


def _option(kind: Any, help: str, *names: str, **more: Any) -> Any:  # noqa: A002 - typer's name
    return Annotated[kind, typer.Option(*names, help=help, rich_help_panel=_SECTION, **more)]


_API_KEY_ENV_HELP: Final = "Read the API key from this environment variable instead of PREM_API_KEY."

_TIMEOUT_HELP: Final = (
    "Seconds to wait for a connection, for the start of the response, and between its chunks."
)

_DEFAULT_TIMEOUT_HELP: Final = (
    f" Default: {DEFAULT_TIMEOUT:g}, and {WHOLE_REPLY_TIMEOUT:g} for the start of an answer that is not "
    "streamed."
)

#: The type and help of each field of `Connection`, except `api_key_env` and `timeout`.
_ANNOTATIONS: Final[dict[str, Any]] = {
    "gateway_url": _option(
        str | None, "URL of the gateway. Default: PREM_GATEWAY_URL, or Prem's gateway.", metavar="URL"
    ),
    "enclave_url": _option(
        str | None,
        "URL from which the enclave's key is fetched. Default: PREM_ENCLAVE_URL, or Prem's enclave.",
        metavar="URL",
    ),
    "enclave_public_key": _option(
        str | None, "Pin the enclave's public key (hex or base64) instead of fetching it.", metavar="KEY"
    ),
    "keys": _option(
        str | None,
        "Use the encryption keys in this file (see prem keys) instead of a fresh secret for every request.",
        metavar="FILE",
    ),
    "kek_file": _option(
        str | None,
        "File with the KEK (key-encryption key) that opens --keys. Default: the variable CLIENT_KEK.",
        metavar="FILE",
    ),
    "nonce_reuse": _option(
        NonceReuseMode | None,
        "What to do about replies that are sealed under their request's nonce, as all streams are: the gateway can "
        "read and replace them. warn: write one warning. error: ask for no stream, and send no prompt to a model "
        "before a probe with a random word shows that its replies have a nonce of their own. allow: accept them. "
        "Default: PREM_NONCE_REUSE, or warn.",
        metavar="MODE",
    ),
    "masking": _option(
        bool,
        "Begin each chat with about 2 kB of random characters, so that the gateway cannot read the beginning of the "
        "request with the help of its streamed answer. Default: masking.",
        "--masking/--no-masking",
        show_default=False,
    ),
    "attestation": _option(
        AttestationChoice | None,
        "Verify the enclave's attestation before the first request for a model. require: send nothing without a proof. "
        "warn: write one warning where it fails. off: verify nothing. See prem attest. Default: PREM_ATTESTATION, or "
        "off.",
        metavar="MODE",
    ),
    "max_retries": _option(
        int, "Retries after a failed request; never after the first chunk.", metavar="N", min=0
    ),
    "retry_after_send": _option(
        bool,
        "Retry also where the service may have accepted the request. It may then charge for it twice.",
        "--retry-after-send",
    ),
    "allow_insecure": _option(
        bool, "Allow plain http to another machine; the API key can then be read on the way.",
        "--allow-insecure",
    ),
}  # fmt: skip


def with_connection_options(
    *, timeout: float | None = None, api_key_env_help: str = _API_KEY_ENV_HELP
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the connection options to a command, which receives them as its parameter `connection`.

    Args:
        timeout: The command's default of ``--timeout``; None for the client's.
        api_key_env_help: The command's help for ``--api-key-env``.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True)
        defaults = {field.name: field.default for field in dataclasses.fields(Connection)}
        defaults["timeout"] = timeout

        @functools.wraps(command)
        def wrapper(**arguments: Any) -> None:
            given = {name: arguments.pop(name) for name in defaults}
            given["nonce_reuse"] = given["nonce_reuse"] and given["nonce_reuse"].value
            command(connection=Connection(**given), **arguments)

        annotations = {
            **_ANNOTATIONS,
            "api_key_env": _option(str | None, api_key_env_help, metavar="NAME"),
            "timeout": _option(
                float | None,
                _TIMEOUT_HELP + ("" if timeout else _DEFAULT_TIMEOUT_HELP),
                metavar="SECONDS",
            ),
        }
        kind = inspect.Parameter.KEYWORD_ONLY
        shared = [
            inspect.Parameter(name, kind, default=default, annotation=annotations[name])
            for name, default in defaults.items()
        ]
        parameters = [
            each.replace(kind=kind) for name, each in own.parameters.items() if name != "connection"
        ]
        # typer reads a command's options from its signature.
        wrapper.__signature__ = own.replace(parameters=[*parameters, *shared])  # type: ignore[attr-defined]
        wrapper.__annotations__ = {}
        return wrapper

    return decorate


def read_variable(name: str) -> str:
    """Read an environment variable that an option names.

    Raises:
        ConfigurationError: It is not set, or empty.
    """
    value = os.environ.get(name, "").strip()
    if not value:
        raise ConfigurationError(f"the environment variable {name} is not set")
    return value


def parse_enclave_key(text: str | None) -> PublicKey | None:
    """Parse the value of ``--enclave-public-key``.

    Raises:
        CliError: It is not an X-Wing public key.
    """
    from prem_core._protocol.response_body import parse_public_key

    if text is None:
        return None
    try:
        return parse_public_key(text)
    except PremError as error:
        raise CliError(f"--enclave-public-key: {error}", EXIT_USAGE) from error


def find_kek(path: str | None) -> bytes | None:
    """Read the KEK from the file, or else from the environment; None if neither is given.

    Raises:
        ConfigurationError: The value is not a KEK.
    """
    from prem_core._crypto import keyfile

    if path:
        return keyfile.read_kek(path)
    return keyfile.resolve_kek() if os.environ.get("CLIENT_KEK", "").strip() else None
