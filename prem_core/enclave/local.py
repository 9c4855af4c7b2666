"""The embedded enclave: a gateway and an enclave, as two HTTP servers on loopback in one background thread."""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack, closing
from typing import Final, Literal, Self, get_args

import httpx
from starlette.types import ASGIApp

from prem_core._config import VARIABLES
from prem_core._crypto.redaction import without_traceback
from prem_core._crypto.xwing import SEED_BYTES, PrivateKey, PublicKey
from prem_core._errors import ConfigurationError
from prem_core._serving.server import LOOPBACK, Server, Service, listen, url_of
from prem_core.attestation.roots import TrustedRoots
from prem_core.enclave.attester import Attester, Technology
from prem_core.enclave.enclave import Enclave, WholeReplies, envelope_error
from prem_core.enclave.engines.base import Engine, EngineError, EngineRequest
from prem_core.enclave.engines.quoting import QuotingEngine
from prem_core.enclave.engines.scripted import ReplyLike, Respond, ScriptedEngine
from prem_core.enclave.engines.upstream import UpstreamEngine
from prem_core.enclave.evidence.certificates import Binding
from prem_core.enclave.gateway import Exchange, ExchangeRecorder, Gateway
from prem_core.enclave.middleware import ErrorAndHostMiddleware
from prem_core.enclave.quota import Tier

TierName = Literal["base", "off"]

DEFAULT_MODELS: Final = ("openai/gpt-oss-120b", "openai/whisper-large-v3", "prem-local/quoting")

#: Bytes of one request body: 25 MB of audio, sealed and written as hex, with room to spare.
DEFAULT_BODY_LIMIT: Final = 64 * 1024 * 1024

_log = logging.getLogger("prem_core.enclave")


class LocalEnclave(Service):
    """A gateway and an enclave on 127.0.0.1, with a real private key, for development and tests.

    ::

        with LocalEnclave() as prem:
            prem.gateway_url, prem.enclave_url, prem.api_key

    It is also an async context manager, and has `start` and `stop`. It can be started again after it was stopped. The
    API key and the enclave's key stay the same; the ports do only if they were given.

    Args:
        api_key: The only key that the gateway accepts; by default a fresh ``sk_test_local_…``.
        port: The gateway's port; 0 for a free one.
        enclave_port: The enclave's port; 0 for a free one.
        private_key: The enclave's key; by default a fresh one.
        replies: What is answered, one reply for each request, in order; see `ScriptedEngine`.
        respond: A function that returns the reply to each request; see `ScriptedEngine`.
        upstream: Base URL of an OpenAI-compatible server that answers, with or without ``/v1``.
        upstream_api_key: Sent to it as a bearer token.
        engine: What answers, in place of `replies`, `respond` and `upstream`. With none of the four, a
            `QuotingEngine` answers: it quotes and extracts what the prompt holds, and transcribes English.
        tier: ``base`` has the BASE tier's limits on requests, tokens, seconds of audio and concurrency. A `Tier` has
            its own limits, and keeps what was used of them over a restart.
        models: The names ``GET /models`` lists and requests may ask for. By default the names of the live
            service's two models, and one of the default engine; any other engine is asked for any model, and
            with `upstream` the list is the server's own.
        scopes: The scopes of the API key; None for all.
        whole_replies: The form of a response without ``stream: true``: the JSON ``envelope`` of the audio routes, under
            a nonce of its own, or the event ``stream``, under the request's nonce. Which of the two the live service
            sends is not documented.
        body_limit: Bytes of one request body. A longer one is answered with 413.
        on_exchange: Called in the server's thread with what the gateway saw of each request and response, sealed. By
            default nothing is recorded.
        attest: What the enclave attests itself as: ``sev-snp`` or ``tdx``, with two GPUs. None for no attestation. Its
            evidence is real in form and signature, under a root that is trusted only where `attestation_roots` is
            passed on. It proves nothing but that a client verifies.
        attestation_binding: Whether the evidence commits to the public key: ``nonce``, as in Prem's documented reports,
            for no; ``sha512`` or ``sha256`` for yes.
        attestation_faults: What is wrong with the attestation, for tests: see the attribute of this name.

    Raises:
        ConfigurationError: A value is not valid, or several of `engine`, `replies`, `respond` and `upstream`
            are given.
    """

    @without_traceback
    def __init__(
        self,
        *,
        api_key: str | None = None,
        port: int = 0,
        enclave_port: int = 0,
        private_key: PrivateKey | None = None,
        replies: Iterable[ReplyLike] | None = None,
        respond: Respond | None = None,
        upstream: str | None = None,
        upstream_api_key: str | None = None,
        engine: Engine | None = None,
        tier: TierName | Tier = "off",
        models: Sequence[str] | None = None,
        scopes: Collection[str] | None = None,
        whole_replies: WholeReplies = "envelope",
        body_limit: int = DEFAULT_BODY_LIMIT,
        on_exchange: Callable[[Exchange], None] | None = None,
        attest: Technology | None = "sev-snp",
        attestation_binding: Binding = "nonce",
        attestation_faults: Collection[str] = (),
    ) -> None:
        if api_key is None:
            api_key = f"sk_test_local_{secrets.token_urlsafe(24)}"
        if not re.fullmatch(r"[!-~]+", api_key):
            raise ConfigurationError("api_key must be printable ASCII without spaces")
        given = {"engine": engine, "replies": replies, "respond": respond, "upstream": upstream}
        if len(names := [name for name, value in given.items() if value is not None]) > 1:
            raise ConfigurationError(
                f"{' and '.join(names)} are given: pass only one of engine, replies, respond and upstream"
            )
        if not isinstance(tier, Tier) and tier not in get_args(TierName):
            raise ConfigurationError(f'tier must be "base", "off" or a Tier, not {tier!r}')
        if whole_replies not in get_args(WholeReplies):
            raise ConfigurationError(f'whole_replies must be "stream" or "envelope", not {whole_replies!r}')
        self._api_key = api_key
        self._ports = (port, enclave_port)
        self._private_key = private_key or _new_private_key()
        if engine is not None:
            self._engine = engine
        elif upstream is not None:
            self._engine = UpstreamEngine(upstream, upstream_api_key)
        elif replies is not None or respond is not None:
            self._engine = ScriptedEngine(replies or (), respond=respond)
        else:
            self._engine = QuotingEngine()
        self._tier = tier
        self._models = None if models is None else tuple(models)
        self._scopes = None if scopes is None else frozenset(scopes)
        self._whole_replies: WholeReplies = whole_replies
        self._body_limit = body_limit
        self._on_exchange = on_exchange
        self._attester = (
            Attester(attest, attestation_binding, lambda: bytes(self.public_key), attestation_faults)
            if attest is not None
            else None
        )
        self._enclave: Enclave | None = None
        self._server: Server | None = None

    def __repr__(self) -> str:
        if self._server is None:
            return "LocalEnclave(stopped)"
        return f"LocalEnclave(gateway_url={self.gateway_url!r}, enclave_url={self.enclave_url!r})"

    @property
    def api_key(self) -> str:
        """The API key that the gateway accepts."""
        return self._api_key

    @property
    def public_key(self) -> PublicKey:
        """The current public key of the enclave."""
        return self._private_key.public_key()

    @property
    def gateway_url(self) -> str:
        """The URL of the gateway. Raises RuntimeError while the enclave is not running."""
        return self._url(0)

    @property
    def enclave_url(self) -> str:
        """The URL of the enclave. Raises RuntimeError while the enclave is not running."""
        return self._url(1)

    @property
    def attestation_roots(self) -> TrustedRoots:
        """The root keys of the enclave's evidence, and where its certificates are. Raises RuntimeError without `attest`
        and while the enclave is not running.

        It is never trusted by default: pass it to a client as `attestation_roots`.
        """
        return self._checked_attester.roots(self.enclave_url)

    @property
    def attestation_faults(self) -> frozenset[str]:
        """What is wrong with the attestation, for tests; assign a list to change it. An unknown fault lists them all.

        The certificates that a client fetches are those of the latest report.
        """
        return self._checked_attester.faults

    @attestation_faults.setter
    def attestation_faults(self, faults: Collection[str]) -> None:
        self._checked_attester.faults = frozenset(faults)

    @property
    def _checked_attester(self) -> Attester:
        if self._attester is None:
            raise RuntimeError("this LocalEnclave does not attest itself: it was made with attest=None")
        return self._attester

    @property
    def client_options(self) -> dict[str, str]:
        """The options for a client: `api_key`, `gateway_url` and `enclave_url`."""
        return {"api_key": self.api_key, "gateway_url": self.gateway_url, "enclave_url": self.enclave_url}

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that lead a client here without arguments."""
        variables = {VARIABLES[setting][0]: value for setting, value in self.client_options.items()}
        # A proxy from the environment cannot reach loopback. The lower-case name wins where both are set.
        present = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
        direct = f"{present},{LOOPBACK}" if present else LOOPBACK
        return {**variables, "no_proxy": direct, "NO_PROXY": direct}

    @property
    def engine(self) -> Engine:
        """What answers the requests."""
        return self._engine

    @property
    def requests(self) -> list[EngineRequest]:
        """Every request so far, opened. Only a `ScriptedEngine` keeps them: a RuntimeError with another engine."""
        return self._scripted.requests

    @property
    def replies(self) -> list[ReplyLike]:
        """The replies that are left, of a `ScriptedEngine`. Assign a list to set what comes next."""
        return self._scripted.replies

    @replies.setter
    def replies(self, replies: Iterable[ReplyLike]) -> None:
        self._scripted.replies = list(replies)

    @property
    def respond(self) -> Respond | None:
        """The function that returns the replies of a `ScriptedEngine`. It is used when no `replies` are left."""
        return self._scripted.respond

    @respond.setter
    def respond(self, respond: Respond | None) -> None:
        self._scripted.respond = respond

    def reply(self, *replies: ReplyLike) -> None:
        """Add replies to those of a `ScriptedEngine`."""
        self._scripted.replies.extend(replies)

    @property
    def _scripted(self) -> ScriptedEngine:
        if not isinstance(self._engine, ScriptedEngine):
            raise RuntimeError(
                f"only a ScriptedEngine has replies and requests, and this is a {type(self._engine).__name__}: "
                "pass replies= or respond= to LocalEnclave"
            )
        return self._engine

    async def _model_names(self) -> Sequence[str]:
        if self._models is not None:
            return self._models
        try:
            names = await self._engine.models()
        except EngineError as error:
            raise envelope_error(error) from None
        return DEFAULT_MODELS if names is None else names

    @property
    def _accepted_models(self) -> Sequence[str] | None:
        """The models a request may ask for; None for any."""
        if isinstance(self._engine, QuotingEngine):
            return self._models or DEFAULT_MODELS
        return None if isinstance(self._engine, UpstreamEngine) else self._models

    def rotate_key(self, private_key: PrivateKey | None = None) -> PublicKey:
        """Rotate the enclave's key, and return the new public key.

        Requests sealed to the old key no longer open. Streams that are open continue.
        """
        self._private_key = private_key or _new_private_key()
        if self._enclave is not None:
            self._enclave.private_key = self._private_key
        return self.public_key

    def start(self) -> Self:
        """Start both servers. Connections are accepted when this returns.

        Raises:
            OSError: A port cannot be used.
            RuntimeError: The enclave is running already.
        """
        if self._server is not None:
            raise RuntimeError("this LocalEnclave is running already")
        with ExitStack() as on_failure:
            gateway_socket, enclave_socket = (
                on_failure.enter_context(closing(listen(port=port))) for port in self._ports
            )
            forwarding_secret = secrets.token_urlsafe(32)
            enclave_client = httpx.AsyncClient(
                base_url=url_of(enclave_socket),
                timeout=httpx.Timeout(None, connect=5),
                limits=httpx.Limits(max_connections=None),
                trust_env=False,  # no proxy of the environment for loopback
            )
            tier = self._tier if isinstance(self._tier, Tier) else Tier() if self._tier == "base" else None
            gateway: ASGIApp = Gateway(
                api_key=self._api_key,
                scopes=self._scopes,
                models=self._model_names,
                tier=tier,
                enclave=enclave_client,
                forwarding_secret=forwarding_secret,
            )
            enclave = Enclave(
                private_key=self._private_key,
                engine=self._engine,
                models=self._accepted_models,
                whole_replies=self._whole_replies,
                forwarding_secret=forwarding_secret,
                meter=tier.spend_tokens if tier is not None else lambda tokens: None,
                audio_meter=tier.spend_audio if tier is not None else lambda seconds: None,
                attester=self._attester,
            )
            gateway = self._checked(gateway, gateway_socket)
            if self._on_exchange is not None:
                gateway = ExchangeRecorder(gateway, self._on_exchange)
            self._server = Server(
                (gateway, gateway_socket),
                (self._checked(enclave, enclave_socket), enclave_socket),
                name="prem-local-enclave",
                closers=[enclave_client.aclose, self._engine.aclose],
                logger=_log,
            ).start()
            self._enclave = enclave
            on_failure.pop_all()  # the server closes the sockets from here on
        return self

    def stop(self) -> None:
        """Stop both servers and end every open stream. Does nothing when the enclave is not running."""
        server, self._server, self._enclave = self._server, None, None
        if server is not None:
            server.stop()

    def _checked(self, app: ASGIApp, sock: socket.socket) -> ASGIApp:
        return ErrorAndHostMiddleware(app, sock.getsockname()[1], self._body_limit)

    def _url(self, position: int) -> str:
        if self._server is None:
            raise RuntimeError("this LocalEnclave is not running: use a with statement, or call start()")
        return self._server.urls[position]


def _new_private_key() -> PrivateKey:
    return PrivateKey(secrets.token_bytes(SEED_BYTES))
