"""Checks of the service: URLs, connections, the enclave's key, the API key and its scopes."""

from __future__ import annotations

import dataclasses
import io
import socket
import ssl
import time
import warnings
import wave
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import httpx

from prem_core import _config
from prem_core._audio.upload import DEFAULT_MODEL as DEFAULT_AUDIO_MODEL
from prem_core._errors import (
    APIConnectionError,
    AuthenticationError,
    NonceReuseError,
    PermissionDeniedError,
    PremError,
    RateLimitError,
)
from prem_core._protocol import assumptions
from prem_core._protocol.flow import probe
from prem_core._protocol.nonce_reuse import REPLY_FORMS, NonceReuseWarning, ProbeSubject
from prem_core._protocol.routes import MODELS_ROUTE
from prem_core._protocol.steps import Flow, FlowSettings
from prem_core._transport.http import HTTPX_ERRORS, httpx_options, translate
from prem_core.cli import DEFAULT_CHAT_MODEL
from prem_core.cli.checks.check import Check, Options, State, attempt
from prem_core.cli.connection import Connection, parse_enclave_key
from prem_core.cli.errors import NONCE_REUSE_REMEDY, CliError, use_cli_names

if TYPE_CHECKING:
    from prem_core import Model, PremClient

_OWN_NONCE: Final = (
    "replies in one piece come under a nonce of their own: the gateway cannot read them, "
    "if this is the enclave's key"
)
_REQUESTS_NONCE: Final = (
    "replies come under the request's nonce: the gateway can read and replace them; "
    "--nonce-reuse error refuses them"
)

#: The checks that use the models, and cost tokens.
_CALLS: Final = ("chat nonce", "chat", "audio nonce", "audio")

#: The source of a setting that is not given.
DEFAULT: Final = "default"

_NEW_KEY: Final = f"create a key at {_config.DASHBOARD_URL}"
_KEY_CHANGED: Final = (
    "The key was rotated, or another party answers: ask Prem for the fingerprint before you trust the new key"
)


def checks(options: Options) -> Iterator[Check]:
    """Check the service. A check that depends on a failed one is skipped."""
    gateway_url = yield from _url("gateway", options)
    enclave_url = yield from _url("enclave", options)
    missing_key = _missing_api_key(options.connection)
    client = None
    if missing_key is None:
        client = yield from _client(options.connection) if gateway_url and enclave_url else _skip("settings")
    enclave_reached = yield from _reach("enclave", enclave_url, assumptions.PUBLIC_KEY_PATH, options)
    gateway_reached = yield from _reach("gateway", gateway_url, MODELS_ROUTE, options)
    has_enclave_key = yield from _enclave_key(options) if enclave_reached else _skip("enclave key")
    if client is None:
        if missing_key is not None:
            yield missing_key
        else:
            yield from _skip("API key")
        yield from _skip(*_CALLS)
        return
    with client:
        models = yield from _api_key(options.connection, client) if gateway_reached else _skip("API key")
        if models is None or not has_enclave_key:
            yield from _skip(*_CALLS)
            return
        if options.connection.verifies_attestation():
            yield _attestation(client, options, models)
        yield from _chat(client, options, models)
        yield from _audio(client, options, models)


def _skip(*names: str, why: str = "depends on a failed check") -> Generator[Check, None, None]:
    for name in names:
        yield Check(name, State.SKIPPED, why)


def _url(party: str, options: Options) -> Generator[Check, None, str | None]:
    connection, setting, name = options.connection, f"{party}_url", f"{party} URL"
    source = _source(setting, options)
    try:
        url = _config.resolve_url(
            setting, getattr(connection, setting), allow_insecure=connection.allow_insecure
        )
    except PremError as error:
        detail = use_cli_names(str(error), {setting: source, "allow_insecure": "--allow-insecure"})
        yield Check(name, State.FAILED, detail, f"Correct {source}")
        return None
    remedy = ""
    if source == "PROXY_URL":
        remedy = "Set PREM_GATEWAY_URL instead: other programs use PROXY_URL for something else"
    yield Check(name, State.OK, f"{url} ({'' if source == DEFAULT else 'from '}{source})", remedy)
    return url


def _source(setting: str, options: Options) -> str:
    """Where a setting comes from: an option, an environment variable, or the default."""
    if options.local:
        return "--local"
    if getattr(options.connection, setting):
        return f"--{setting.replace('_', '-')}"
    return _config.environment_source(setting) or DEFAULT


def _missing_api_key(connection: Connection) -> Check | None:
    """A failed check if there is no API key."""
    try:
        connection.api_key()
    except PremError:
        return Check(
            "API key",
            State.FAILED,
            f"{connection.api_key_env or 'PREM_API_KEY'} is not set",
            f"Set it to your API key ({_NEW_KEY}), or run prem --local doctor, which needs none",
        )
    return None


def _client(connection: Connection) -> Generator[Check, None, PremClient | None]:
    try:
        return connection.client(max_retries=0)
    except (PremError, CliError) as error:
        names = {"nonce_reuse": "--nonce-reuse" if connection.nonce_reuse else "PREM_NONCE_REUSE"}
        detail = use_cli_names(str(error), {**names, "encryption_keys": "--keys"})
        yield Check("settings", State.FAILED, detail, "Correct this setting")
        return None


def _reach(party: str, url: str | None, path: str, options: Options) -> Generator[Check, None, bool]:
    """Send a request without the API key."""
    if url is None:
        yield from _skip(party)
        return False
    start = time.monotonic()
    try:
        with (
            httpx.Client(
                **httpx_options([url]), timeout=options.connection.timeout or _config.DEFAULT_TIMEOUT
            ) as http,
            http.stream("GET", url + path) as response,
        ):
            status = response.status_code
    except HTTPX_ERRORS as error:
        detail, remedy = _connection_problem(error) or (
            str(translate(error, party, reading=False)),
            "Check your network connection and HTTP proxy",
        )
        source = _source(f"{party}_url", options)
        yield Check(party, State.FAILED, detail, remedy if source == DEFAULT else f"Check {source}. {remedy}")
        return False
    state, detail = State.OK, f"responded in {_milliseconds(start)} (status {status})"
    if url.startswith("https:"):
        detail += "; TLS certificate verified"
    elif _config.is_loopback(urlsplit(url).hostname or ""):
        detail += "; plain http on this machine"
    else:
        state = State.NOT_VERIFIED
        detail += "; plain http: others on the network can read and change the traffic"
    yield Check(party, state, detail)
    return True


def _connection_problem(error: BaseException | None) -> tuple[str, str] | None:
    """The cause of a failed connection and its remedy, if the cause is clear."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return (
                f"the TLS certificate is not trusted: {error.verify_message}",
                "If your network inspects TLS, set SSL_CERT_FILE to its CA certificates; otherwise do not continue",
            )
        if isinstance(error, ssl.SSLError):
            return f"TLS failed ({error.reason})", "Check that the server supports TLS on this port"
        if isinstance(error, socket.gaierror):
            return "the host name could not be resolved", "Check the network connection and DNS"
        if isinstance(error, ConnectionRefusedError):
            return (
                "connection refused: no server listens there",
                "Start the server, for example: prem enclave",
            )
        error = error.__cause__ or error.__context__
    return None


def _enclave_key(options: Options) -> Generator[Check, None, bool]:
    from prem_core import generate_encryption_keys

    connection, name = options.connection, "enclave key"
    try:
        pinned = parse_enclave_key(connection.enclave_public_key)
        fetched = generate_encryption_keys(
            enclave_url=connection.enclave_url,
            timeout=connection.timeout or _config.DEFAULT_TIMEOUT,
            max_retries=0,
            allow_insecure=connection.allow_insecure,
        ).enclave_fingerprint
    except CliError as error:
        yield Check(name, State.FAILED, str(error), "Pass the whole key in hex or base64")
        return False
    except PremError as error:
        yield Check(name, State.FAILED, str(error), "Check that the enclave URL is the enclave's")
        return False
    if pinned is not None and pinned.fingerprint() != fetched:
        detail = f"sha256:{pinned.fingerprint()} is pinned, but the enclave publishes sha256:{fetched}"
        yield Check(name, State.FAILED, detail, _KEY_CHANGED)
        return False
    expected = (options.fingerprint or "").lower().removeprefix("sha256:").replace(":", "").strip()
    if options.fingerprint is not None and expected != fetched:
        yield Check(name, State.FAILED, f"sha256:{fetched} differs from --fingerprint", _KEY_CHANGED)
        return False
    how = "pinned" if pinned else "fetched"
    yield Check(name, State.OK, f"sha256:{fetched} ({how}{', matches --fingerprint' if expected else ''})")
    if connection.keys is not None:
        yield attempt(
            "keys",
            lambda: _check_keys(connection, fetched),
            "--keys opens and matches the enclave's key",
            f"Make a new file: prem keys generate {connection.keys} --force",
        )
    return True


def _check_keys(connection: Connection, fetched: str | None) -> None:
    keys = connection.encryption_keys()
    made_for = keys.enclave_fingerprint if keys else None
    if made_for is not None and made_for != fetched:
        raise PremError(f"--keys was made for another enclave key, sha256:{made_for}")


def _api_key(connection: Connection, client: PremClient) -> Generator[Check, None, list[Model] | None]:
    """Check the API key by listing the models. Returns None if the key was not accepted."""
    name, kind = "API key", _key_kind(connection.api_key())
    try:
        models = client.models.list()
    except AuthenticationError as error:
        variable = connection.api_key_env or "PREM_API_KEY"
        detail = f"{kind}: rejected by the gateway: {error}"
        yield Check(name, State.FAILED, detail, f"Check {variable}, or {_NEW_KEY}")
        return None
    except PermissionDeniedError as error:
        yield Check(name, State.OK, f"{kind}: known to the gateway")
        yield Check("models", State.FAILED, str(error), _scope_remedy(error))
        return []
    except PremError as error:
        yield Check(name, State.NOT_VERIFIED, f"{kind}: the models could not be listed: {error}")
        return None
    yield Check(name, State.OK, f"{kind}: accepted by the gateway")
    chat = sum(each.type == "CHAT" for each in models)
    yield Check("models", State.OK, f"{len(models)} listed, {chat} for chat")
    return models


def _key_kind(key: str) -> str:
    """The part of an API key that is not secret."""
    return next((f"{kind}…" for kind in ("sk_live", "sk_test") if key.startswith(kind)), "unknown key type")


def _attestation(client: PremClient, options: Options, models: list[Model]) -> Check:
    model = options.model or _first(models, "CHAT") or DEFAULT_CHAT_MODEL
    try:
        report = client.attest(model)
    except PremError as error:
        required = client._requester.requires_attestation
        return Check(
            "attestation",
            State.FAILED if required else State.NOT_VERIFIED,
            f"{model}: {error}",
            "prem attest --save DIR shows each check and keeps the evidence",
        )
    if options.local:
        detail = "the embedded enclave's evidence verifies under its own root; no genuine machine is involved"
        return Check("attestation", State.OK, f"{model}: {detail}")
    bound = "the evidence commits to this key" if report.key_bound else "that it holds this key is not proven"
    detail = (
        f"{model}: a genuine {report.technology} machine ({report.product}) answered a fresh nonce; {bound}"
    )
    return Check("attestation", State.OK, detail)


def _chat(client: PremClient, options: Options, models: list[Model]) -> Iterator[Check]:
    if not options.calls:
        yield from _skip("chat nonce", "chat", why="--no-calls")
        return
    model = options.model or _first(models, "CHAT") or DEFAULT_CHAT_MODEL
    messages = [{"role": "user", "content": "Hi"}]
    yield _reply_nonce("chat nonce", client, ProbeSubject("chat", model))
    yield _call(
        "chat",
        f"{model}: encrypted request and response",
        lambda: client.chat.completions.create(model=model, messages=messages, max_tokens=1),
    )


def _audio(client: PremClient, options: Options, models: list[Model]) -> Iterator[Check]:
    if not options.audio:
        why = "skipped because it uses a second of audio; run it with --audio"
        yield from _skip("audio nonce", "audio", why=why)
        return
    model = _first(models, "AUDIO_TRANSCRIPTION") or DEFAULT_AUDIO_MODEL
    yield _reply_nonce("audio nonce", client, ProbeSubject("transcribe", model))
    yield _call(
        "audio",
        f"{model}: a second of silence transcribed, encrypted both ways",
        lambda: client.audio.transcriptions.create(model=model, file=("silence.wav", _silence())),
    )


def _reply_nonce(name: str, client: PremClient, subject: ProbeSubject) -> Check:
    """Probe under which nonce a model's replies come, as a client does that refuses those under their request's."""
    requester = client._requester

    def probe_model(settings: FlowSettings) -> Flow:
        # Sealed to the enclave's key, as the outcome is recorded for it.
        return probe(subject, dataclasses.replace(settings, keys=None))

    check = _call(name, "", lambda: requester.run(probe_model))
    if check.state is not State.OK:
        return check
    own = REPLY_FORMS.own_nonce(requester.gateway_url, requester.fetch_key(), subject)
    state, detail = (State.OK, _OWN_NONCE) if own else (State.NOT_VERIFIED, _REQUESTS_NONCE)
    return Check(name, state, f"{subject.model}: {detail}")


def _first(models: list[Model], kind: str) -> str | None:
    """The first enabled model of a type."""
    return next((each.id for each in models if each.type == kind and each.enabled is not False), None)


def _silence() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 2, 16_000, 0, "NONE", ""))
        sound.writeframes(bytes(2 * 16_000))
    return file.getvalue()


def _call(name: str, detail: str, call: Callable[[], Any]) -> Check:
    start = time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NonceReuseWarning)  # the nonce is a check of its own
            call()
    except NonceReuseError:
        return Check(
            name,
            State.FAILED,
            "replies come under the request's nonce, which --nonce-reuse error refuses",
            NONCE_REUSE_REMEDY[0].upper() + NONCE_REUSE_REMEDY[1:],
        )
    except PermissionDeniedError as error:
        missing = f"the API key lacks the scope {error.scope}: " if error.scope else ""
        return Check(name, State.FAILED, f"{missing}{error}", _scope_remedy(error))
    except RateLimitError as error:  # this does not mean that the key cannot be used
        return Check(name, State.NOT_VERIFIED, str(error), "Try again later")
    except APIConnectionError as error:
        return Check(name, State.FAILED, str(error), "Check the network connection")
    except PremError as error:
        return Check(
            name, State.FAILED, str(error), "Quote the support id, if there is one, to Prem's support"
        )
    return Check(name, State.OK, f"{detail}, in {_milliseconds(start)}")


def _scope_remedy(error: PermissionDeniedError) -> str:
    return f"{_NEW_KEY[0].upper()}{_NEW_KEY[1:]} with the scope {error.scope}" if error.scope else ""


def _milliseconds(start: float) -> str:
    return f"{1000 * (time.monotonic() - start):.0f} ms"
