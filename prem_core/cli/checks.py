"""The checks of ``prem doctor``.

The rule of this file: a check says what was seen, and no more. No value of a secret is in any of them, and an API key
goes to the gateway only, in the calls that need it.
"""

from __future__ import annotations

import importlib.metadata
import io
import os
import platform
import re
import socket
import ssl
import time
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import httpx

from prem_core import _config
from prem_core._audio.upload import DEFAULT_MODEL as AUDIO_MODEL
from prem_core._errors import (
    APIConnectionError,
    AuthenticationError,
    PermissionDeniedError,
    PremError,
    RateLimitError,
)
from prem_core._protocol import assumptions
from prem_core._protocol.response_body import parse_public_key
from prem_core._protocol.routes import MODELS_ROUTE
from prem_core._rate_limit.limits import Limits
from prem_core._transport.http import TRANSLATIONS, ssl_context, translate
from prem_core._version import __version__
from prem_core.cli.commands.chat import DEFAULT_MODEL
from prem_core.cli.connection import Connection, find_kek
from prem_core.cli.errors import CliError

if TYPE_CHECKING:
    from prem_core import Model, PremClient

DISTRIBUTION: Final = "prem-encrypted"

#: Packages without which nothing works, as they are named where they are published.
_CORE: Final = ("httpx", "pynacl", "cryptography", "pydantic")

#: Variables that lead requests another way, or change whom TLS trusts. Lower case counts too.
_NETWORK: Final = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")


class State(StrEnum):
    """How a check went."""

    OK = "ok"
    FAILED = "failed"
    NOT_VERIFIED = "not verified"
    SKIPPED = "not tried"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor's."""

    name: str
    state: State
    detail: str


def all_checks(
    connection: Connection,
    *,
    local: bool,
    calls: bool,
    audio: bool,
    model: str | None,
    fingerprint: str | None,
) -> Iterator[Check]:
    """Every check, one after the other, each made when it is asked for.

    Args:
        connection: Where the service is.
        local: Whether that is an embedded enclave that was started for this call.
        calls: Whether to ask for an answer.
        audio: Whether to have a recording heard.
        model: The model to ask; the first one listed where None.
        fingerprint: What the enclave's key must hash to, where that is known.
    """
    yield from _installed()
    yield from _environment(connection, local=local)
    yield from _service(
        connection, local=local, calls=calls, audio=audio, model=model, fingerprint=fingerprint
    )
    yield from _unverified(connection, local=local)


# --- this machine -----------------------------------------------------------------------------------------


def _installed() -> Iterator[Check]:
    yield Check(
        "python", State.OK, f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    )
    found = [f"{name} {_version(name) or 'is missing'}" for name in _CORE]
    state = State.OK if all(map(_version, _CORE)) else State.FAILED
    yield Check("package", state, f"{DISTRIBUTION} {__version__}; {', '.join(found)}")
    extras = _extras()
    whole = [name for name, missing in extras.items() if not missing]
    parts = [f"{name} (needs {', '.join(missing)})" for name, missing in extras.items() if missing]
    detail = f"installed: {', '.join(whole) or 'none'}"
    yield Check("extras", State.INFO, detail + (f"; not installed: {', '.join(parts)}" if parts else ""))


def _extras() -> dict[str, list[str]]:
    """Each extra of the package, and what is missing of it."""
    try:
        wanted = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:  # run from its source
        return {}
    extras: dict[str, list[str]] = {}
    for requirement in wanted:
        name = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"""extra\s*==\s*['"]([\w-]+)['"]""", requirement)
        if name and extra and extra[1] != "all":
            missing = extras.setdefault(extra[1], [])
            if _version(name[0]) is None:
                missing.append(name[0])
    return extras


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _environment(connection: Connection, *, local: bool) -> Iterator[Check]:
    names = [name for names in _config.VARIABLES.values() for name in names]
    found = [name for name in names if _is_set(name)]
    missing = [name for name in names if name not in found]
    by_us = " (by --local)" if local else ""
    yield Check("environment", State.INFO, f"set{by_us}: {_listed(found)}; not set: {_listed(missing)}")
    yield Check(
        "network", State.INFO, f"set: {_listed([each for name in _NETWORK for each in _network(name)])}"
    )

    if connection.kek_file is None and not _is_set(_config.KEK_VARIABLE):
        yield Check(
            "KEK", State.INFO, f"{_config.KEK_VARIABLE} is not set; only prem keys and --keys need one"
        )
    else:
        where = connection.kek_file or _config.KEK_VARIABLE
        yield _attempt(
            "KEK", lambda: find_kek(connection.kek_file), f"{where} holds {_config.KEK_BYTES} bytes"
        )
    limits = Limits()
    yield Check(
        "limits",
        State.INFO,
        f"timeout {connection.timeout:g} s, {connection.max_retries} retries, {limits.max_concurrency} requests at "
        f"once, {_config.DEFAULT_MAX_BUFFER_SIZE // 1024**2} MB of one event or body",
    )


def _is_set(name: str) -> bool:
    return bool(os.environ.get(name, "").strip())


def _network(name: str) -> Iterator[str]:
    for each in (name, name.lower()):
        if value := os.environ.get(each, "").strip():
            # Addresses of proxies may have a password in them.
            host = _host(value) if name.endswith("_PROXY") and name != "NO_PROXY" else ""
            yield f"{each} ({host})" if host else each


def _host(url: str) -> str:
    try:
        parts = urlsplit(url if "//" in url else f"//{url}")
        return f"{parts.hostname or '?'}{f':{parts.port}' if parts.port else ''}"
    except ValueError:
        return "no address"


# --- the service ------------------------------------------------------------------------------------------


def _service(
    connection: Connection,
    *,
    local: bool,
    calls: bool,
    audio: bool,
    model: str | None,
    fingerprint: str | None,
) -> Iterator[Check]:
    urls: dict[str, str] = {}
    for party, setting, default in (
        ("gateway", "gateway_url", _config.DEFAULT_GATEWAY_URL),
        ("enclave", "enclave_url", _config.DEFAULT_ENCLAVE_URL),
    ):
        given = getattr(connection, setting)
        try:
            urls[party] = _config.resolve_url(
                setting, given, default, allow_insecure=connection.allow_insecure
            )
        except PremError as error:
            yield Check(f"{party} URL", State.FAILED, f"{error} ({_origin(setting, given, local=local)})")
        else:
            yield Check(f"{party} URL", State.OK, f"{urls[party]} ({_origin(setting, given, local=local)})")

    for party, url in urls.items():
        yield _reachable(
            party, url, MODELS_ROUTE if party == "gateway" else assumptions.PUBLIC_KEY_PATH, connection
        )
    key_known = False
    if "enclave" in urls:
        for check in _enclave_key(connection, fingerprint):
            key_known |= check.state is State.OK
            yield check

    listed: list[Model] | None = None
    try:
        client = connection.client(max_retries=0)
    except (PremError, CliError) as error:
        yield Check("settings", State.FAILED, str(error))
    else:
        with client:
            for check, models in _key_valid(connection, client):
                listed = models
                yield check
            yield from _scopes(client, listed, key_known=key_known, calls=calls, audio=audio, model=model)


def _origin(setting: str, given: str | None, *, local: bool) -> str:
    if local:
        return "--local"
    if given:
        return f"--{setting.replace('_', '-')}"
    named = [name for name in _config.VARIABLES[setting] if _is_set(name)]
    return named[0] if named else "the default"


def _reachable(party: str, url: str, path: str, connection: Connection) -> Check:
    """Whether anybody answers there. The API key is not sent."""
    begun = time.monotonic()
    try:
        with (
            httpx.Client(verify=ssl_context(), timeout=connection.timeout) as http,
            http.stream("GET", url + path) as reply,
        ):
            status = reply.status_code
    except tuple(foreign for foreign, _, _ in TRANSLATIONS) as error:
        return Check(party, State.FAILED, _why(error) or str(translate(error, party, reading=False)))
    took = f"answered in {1000 * (time.monotonic() - begun):.0f} ms (status {status})"
    if url.startswith("https:"):
        return Check(party, State.OK, f"{took}; TLS, its certificate verified")
    on_loopback = _config.is_loopback(urlsplit(url).hostname or "")
    return Check(
        party, State.OK if on_loopback else State.NOT_VERIFIED, f"{took}; plain http, {_here(on_loopback)}"
    )


def _here(on_loopback: bool) -> str:
    return "on this machine" if on_loopback else "which others on the way can read and change"


def _why(error: BaseException | None) -> str | None:
    """What is behind a connection that could not be made, where that is plain."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return f"its TLS certificate is not to be trusted: {error.verify_message}"
        if isinstance(error, ssl.SSLError):
            return f"TLS failed ({error.reason})"
        if isinstance(error, socket.gaierror):
            return "there is no such host, or no name service"
        if isinstance(error, ConnectionRefusedError):
            return "nobody listens there (connection refused)"
        error = error.__cause__ or error.__context__
    return None


def _enclave_key(connection: Connection, fingerprint: str | None) -> Iterator[Check]:
    from prem_core import generate_encryption_keys

    name = "enclave key"
    pinned = None
    if connection.enclave_public_key is not None:
        try:
            pinned = parse_public_key(connection.enclave_public_key).fingerprint()
        except PremError as error:
            yield Check(name, State.FAILED, f"--enclave-public-key: {error}")
            return
    try:
        fetched = generate_encryption_keys(
            enclave_url=connection.enclave_url,
            timeout=connection.timeout,
            max_retries=0,
            allow_insecure=connection.allow_insecure,
        ).enclave_fingerprint
    except PremError as error:
        yield Check(name, State.FAILED, str(error))
        return
    if pinned is not None and pinned != fetched:
        yield Check(name, State.FAILED, f"pinned sha256:{pinned}, but the enclave publishes sha256:{fetched}")
        return
    wanted = (fingerprint or "").lower().removeprefix("sha256:").replace(":", "").strip()
    if fingerprint is not None and wanted != fetched:
        yield Check(name, State.FAILED, f"sha256:{fetched} is not what --fingerprint says")
        return
    how = "the pinned one" if pinned else "fetched"
    yield Check(name, State.OK, f"sha256:{fetched} ({how}{', as --fingerprint says' if wanted else ''})")
    if connection.keys is not None:
        yield _attempt(
            "keys", lambda: _same_enclave(connection, fetched), "--keys opens, and is for this enclave's key"
        )


def _same_enclave(connection: Connection, fetched: str | None) -> None:
    keys = connection.encryption_keys()
    made_for = keys.enclave_fingerprint if keys else None
    if made_for is not None and made_for != fetched:
        raise PremError(f"--keys was made for another enclave key, sha256:{made_for}")


def _key_valid(connection: Connection, client: PremClient) -> Iterator[tuple[Check, list[Model] | None]]:
    name = "API key"
    kind = _kind(connection.api_key())
    try:
        models = client.models.list()
    except AuthenticationError as error:
        yield Check(name, State.FAILED, f"{kind}: the gateway does not know it: {error}"), None
    except PermissionDeniedError as error:
        yield Check(name, State.OK, f"{kind}: known to the gateway"), []
        yield Check("models", State.FAILED, str(error)), []
    except PremError as error:
        yield Check(name, State.NOT_VERIFIED, f"{kind}: the models list could not be had: {error}"), None
    else:
        yield Check(name, State.OK, f"{kind}: the gateway takes it"), models
        chat = sum(each.type == "CHAT" for each in models)
        yield Check("models", State.OK, f"{len(models)} listed, {chat} of them for chat"), models


def _kind(key: str) -> str:
    """What may be shown of an API key."""
    return next((f"{kind}…" for kind in ("sk_live", "sk_test") if key.startswith(kind)), "of an unknown kind")


def _scopes(
    client: PremClient,
    listed: list[Model] | None,
    *,
    key_known: bool,
    calls: bool,
    audio: bool,
    model: str | None,
) -> Iterator[Check]:
    if listed is None or not key_known:
        why = "without a key that the gateway takes" if listed is None else "without the enclave's key"
        yield Check("chat", State.SKIPPED, why)
        yield Check("audio", State.SKIPPED, why)
        return
    if calls:
        yield _chats(client, model or _first(listed, "CHAT") or DEFAULT_MODEL)
    else:
        yield Check("chat", State.SKIPPED, "--no-calls")
    if audio:
        yield _hears(client, _first(listed, "AUDIO_TRANSCRIPTION") or AUDIO_MODEL)
    else:
        yield Check("audio", State.SKIPPED, "it costs a second of audio; --audio tries it")


def _first(listed: list[Model], kind: str) -> str | None:
    """The first model of a kind that the service offers."""
    return next(
        (each.request_name for each in listed if each.type == kind and each.enabled is not False), None
    )


def _chats(client: PremClient, model: str) -> Check:
    messages = [{"role": "user", "content": "Hi"}]
    return _call(
        "chat",
        f"{model}: an answer, sealed on both ways",
        lambda: client.chat.completions.create(model=model, messages=messages, max_tokens=1),
    )


def _hears(client: PremClient, model: str) -> Check:
    return _call(
        "audio",
        f"{model}: a second of silence, transcribed, sealed on both ways",
        lambda: client.audio.transcriptions.create(model=model, file=("silence.wav", _silence())),
    )


def _silence() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 2, 16_000, 0, "NONE", ""))
        sound.writeframes(bytes(2 * 16_000))
    return file.getvalue()


def _call(name: str, detail: str, call: Callable[[], Any]) -> Check:
    begun = time.monotonic()
    try:
        call()
    except PermissionDeniedError as error:
        lacks = f"the key lacks the scope {error.scope}: " if error.scope else ""
        return Check(name, State.FAILED, f"{lacks}{error}")
    except (RateLimitError, APIConnectionError) as error:
        # It says nothing of the key.
        state = State.NOT_VERIFIED if isinstance(error, RateLimitError) else State.FAILED
        return Check(name, state, str(error))
    except PremError as error:
        return Check(name, State.FAILED, str(error))
    return Check(name, State.OK, f"{detail}, in {1000 * (time.monotonic() - begun):.0f} ms")


def _attempt(name: str, call: Callable[[], Any], detail: str) -> Check:
    try:
        call()
    except PremError as error:
        return Check(name, State.FAILED, str(error))
    return Check(name, State.OK, detail)


# --- what nobody has checked ------------------------------------------------------------------------------


def _unverified(connection: Connection, *, local: bool) -> Iterator[Check]:
    yield Check(
        "attestation",
        State.NOT_VERIFIED,
        "that the enclave is one, and runs what Prem says: nothing here reads an attestation",
    )
    if connection.enclave_public_key is None:
        yield Check(
            "key's origin",
            State.NOT_VERIFIED,
            "whose the enclave's key is: it was fetched, and whoever has a certificate for that host could give "
            "another; --enclave-public-key pins it",
        )
    names = [name for name in vars(assumptions) if _is_assumed(name)]
    yield Check(
        "assumptions",
        State.NOT_VERIFIED,
        f"{len(names)} points of the protocol that no published document settles (README): {', '.join(names)}",
    )
    if local:
        yield Check("Prem's service", State.SKIPPED, "--local asks an embedded enclave on this machine")


def _is_assumed(name: str) -> bool:
    if name.startswith("_"):
        return False
    value = getattr(assumptions, name)
    # What that file imports is in it too: a module, a function of another one, and `annotations`.
    return name.isupper() or getattr(value, "__module__", None) == assumptions.__name__


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none"
