"""Collect a model's attestation evidence and verify it, without touching the network.

The steps: modules → nonce → report → collateral → GPU tokens → verdict. Each request to the gateway has a fresh nonce.
Collateral comes from further parties, which get neither the API key nor the nonce.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import secrets
from collections.abc import Callable, Generator, Mapping
from datetime import UTC, datetime
from typing import Any, Final, TypeVar, cast

from prem_core import _errors as errors
from prem_core._crypto.xwing import PublicKey
from prem_core._protocol.attestation.collateral_cache import COLLATERAL, Stored, load, save
from prem_core._protocol.attestation.settings import VERDICTS, Verdict, warn_of_failure
from prem_core._protocol.flow import raise_for_status, with_retries
from prem_core._protocol.steps import READ, Flow, FlowSettings, ResponseHead, RunInThread, Send, Step
from prem_core.attestation.collateral import TdxCollateral
from prem_core.attestation.documents import JWKS, MAX_DOCUMENT, Document, Role, snp_documents, tdx_document
from prem_core.attestation.errors import (
    AttestationError,
    CollateralUnavailableError,
    MalformedEvidenceError,
    NotAttestedError,
)
from prem_core.attestation.evidence import Evidence, read_file
from prem_core.attestation.nvidia import MAX_TEXT
from prem_core.attestation.nvidia import NONCE_SIZE as GPU_NONCE_SIZE
from prem_core.attestation.policy import PremPolicy
from prem_core.attestation.report import AttestationReport
from prem_core.attestation.roots import VENDOR_ROOTS, TrustedRoots
from prem_core.attestation.snp import REPORT_SIZE, parse_snp_report
from prem_core.attestation.tdx import MAX_QUOTE, platform_of_quote

R = TypeVar("R")

MODULES_ROUTE: Final = "/attestation/modules"
CPU_ROUTES: Final = {"sev": "/attestation/sev", "tdx": "/attestation/tdx"}
GPU_ROUTE: Final = "/attestation/nvidia"

NONCE_SIZE: Final = 64

#: Bytes of the list of modules.
MAX_MODULES: Final = 64 * 1024

#: Seconds for one response. A party that sends a byte now and then must not hold a call for hours.
RESPONSE_SECONDS: Final = 30.0

_TDX_ROUTES: Final = {
    "tcb_info": ("/tdx/certification/v4/tcb", "tcb-info-issuer-chain"),
    "qe_identity": ("/tdx/certification/v4/qe/identity", "sgx-enclave-identity-issuer-chain"),
    "pck_crl": ("/sgx/certification/v4/pckcrl", "sgx-pck-crl-issuer-chain"),
}


def attest(model: str, key: PublicKey | None, settings: FlowSettings) -> Flow:
    """Verify the attestation of a model's enclave; yields the `Verdict`, which this process remembers.

    Args:
        model: The model's name.
        key: The enclave's public key that requests are sealed to; None if it is not known.
        settings: See `FlowSettings`.

    Raises:
        AttestationError: The evidence is not accepted, and the settings require it.
        APIError: The gateway did not give the evidence, and the settings require it.
    """
    report: AttestationReport | None = None
    try:
        _, report = yield from collect_and_verify(model, key, settings)
    except (errors.AttestationError, errors.APIError) as error:
        if settings.attestation.mode != "warn":
            raise
        warn_of_failure(error)
    verdict = Verdict(settings.fingerprint(key), settings.wall_clock(), report)
    VERDICTS.record(settings.gateway_url, model, settings.attestation, verdict)
    yield verdict


def verified(model: str, key: PublicKey | None, settings: FlowSettings) -> Flow:
    """Verify the attestation now; yields the `AttestationReport`."""
    yield (yield from collect_and_verify(model, key, settings))[1]


def collected(model: str, key: PublicKey | None, settings: FlowSettings) -> Flow:
    """Collect the `Evidence` without verifying it."""
    yield (yield from _Collection(model, key, settings).collect())


def collect_and_verify(
    model: str, key: PublicKey | None, settings: FlowSettings
) -> Generator[Step, Any, tuple[Evidence, AttestationReport]]:
    """The evidence, and what it shows."""
    collection = _Collection(model, key, settings)
    evidence = yield from collection.collect()
    try:
        return evidence, (yield from _verify(evidence, settings))
    except AttestationError as error:
        if not collection.used_cache:
            raise
        failure = error
    try:
        # A cached document may be damaged, or older than what the vendor publishes now.
        evidence = yield from collection.with_fetched_documents(evidence)
    except CollateralUnavailableError:
        raise failure from None
    return evidence, (yield from _verify(evidence, settings))


def _verify(evidence: Evidence, settings: FlowSettings) -> Generator[Step, Any, AttestationReport]:
    attestation = settings.attestation
    verify = functools.partial(
        evidence.verify,
        policy=attestation.policy or PremPolicy(),
        now=_now(settings),
        require_key_binding=attestation.require_key_binding,
        roots=attestation.roots or VENDOR_ROOTS,
    )
    return cast("AttestationReport", (yield RunInThread(verify)))


def _now(settings: FlowSettings) -> datetime:
    return datetime.fromtimestamp(settings.wall_clock(), UTC)


class _Collection:
    """Collects the evidence of one attestation.

    Attributes:
        used_cache: Whether a document came from a cache.
    """

    def __init__(self, model: str, key: PublicKey | None, settings: FlowSettings) -> None:
        self._model = model
        self._key = key
        self._settings = settings
        self._roots: TrustedRoots = settings.attestation.roots or VENDOR_ROOTS
        self._refetch = False
        self.used_cache = False

    def collect(self) -> Generator[Step, Any, Evidence]:
        """The evidence, with its documents."""
        cpu, has_gpu = yield from self._modules()
        nonce = secrets.token_bytes(NONCE_SIZE)
        limit = REPORT_SIZE if cpu == "sev" else MAX_QUOTE
        report = yield from self._evidence(CPU_ROUTES[cpu], nonce, limit)
        gpu_nonce: bytes | None = None
        gpu_tokens: str | None = None
        if has_gpu:
            gpu_nonce = secrets.token_bytes(GPU_NONCE_SIZE)
            body = yield from self._evidence(GPU_ROUTE, gpu_nonce, MAX_TEXT)
            gpu_tokens = body.decode(errors="replace")
        evidence = Evidence(
            model=self._model,
            gateway_url=self._settings.gateway_url,
            collected_at=_now(self._settings),
            technology="sev-snp" if cpu == "sev" else "tdx",
            nonce=nonce,
            report=report,
            gpu_nonce=gpu_nonce,
            gpu_tokens=gpu_tokens,
            public_key=bytes(self._key) if self._key is not None else None,
        )
        return (yield from self._with_documents(evidence))

    def with_fetched_documents(self, evidence: Evidence) -> Generator[Step, Any, Evidence]:
        """The same evidence, with documents that no cache held."""
        self._refetch = True
        return (yield from self._with_documents(evidence))

    # --- the gateway ----------------------------------------------------------------------------------

    def _modules(self) -> Generator[Step, Any, tuple[str, bool]]:
        body = yield from self._from_gateway(MODULES_ROUTE, {"model": self._model}, MAX_MODULES)
        try:
            modules = json.loads(body)
            if isinstance(modules, dict) and "cpu" not in modules and "data" in modules:
                modules = modules["data"] or {"cpu": None}
            cpu, gpu = modules["cpu"], modules.get("gpu")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise MalformedEvidenceError("the gateway's list of modules cannot be read") from None
        if cpu is None:
            raise NotAttestedError(f"the gateway has no attested deployment of {self._model!r}")
        if not isinstance(cpu, str) or cpu.lower() not in CPU_ROUTES:
            raise MalformedEvidenceError(
                f"the gateway names the CPU {str(cpu)[:40]!r}, which is not supported"
            )
        if gpu is not None and (not isinstance(gpu, str) or gpu.lower() != "nvidia"):
            raise MalformedEvidenceError(
                f"the gateway names the GPU {str(gpu)[:40]!r}, which is not supported"
            )
        return cpu.lower(), gpu is not None

    def _evidence(self, route: str, nonce: bytes, limit: int) -> Generator[Step, Any, bytes]:
        return (
            yield from self._from_gateway(route, {"nonce": nonce.hex().upper(), "model": self._model}, limit)
        )

    def _from_gateway(self, route: str, query: Mapping[str, str], limit: int) -> Generator[Step, Any, bytes]:
        send = Send("GET", "gateway", route, query=query)
        try:
            _, body = yield from with_retries(lambda: _get(send, limit, self._settings), self._settings)
        except errors.NotFoundError as error:
            raise NotAttestedError(
                f"the gateway has no evidence for {self._model!r} ({route}: status 404)"
            ) from error
        if not body:
            raise NotAttestedError(f"the gateway has no evidence for {self._model!r} ({route}: no content)")
        return body

    # --- documents ------------------------------------------------------------------------------------

    def _with_documents(self, evidence: Evidence) -> Generator[Step, Any, Evidence]:
        documents: dict[Role, bytes] = {}
        names: dict[Role, str] = {}
        wanted: list[tuple[Document, Callable[[], Generator[Step, Any, bytes]]]] = []
        if evidence.technology == "sev-snp":
            documents, names = yield from self._snp_documents(evidence.report)
        else:
            fmspc, ca = platform_of_quote(evidence.report)
            wanted.append((tdx_document(fmspc, ca), functools.partial(self._fetch_tdx, fmspc, ca)))
        if evidence.gpu_tokens is not None:
            wanted.append((JWKS, functools.partial(self._fetch, JWKS, self._roots.sources.nvidia_jwks)))
        for document, fetch in wanted:
            documents[document.role] = yield from self._document(document, fetch)
            names[document.role] = document.name
        return dataclasses.replace(evidence, documents=documents, names=names)

    def _snp_documents(
        self, report: bytes
    ) -> Generator[Step, Any, tuple[dict[Role, bytes], dict[Role, str]]]:
        fields = parse_snp_report(report)
        # A report of version 2 does not name the processor's generation: only one of them has its chip's certificate.
        candidates = [fields.generation] if fields.generation else ["Milan", "Genoa"]
        sources = self._roots.sources.amd
        while True:
            wanted = snp_documents(fields, candidates.pop(0))
            bodies: dict[Role, bytes] = {}
            try:
                for each in wanted:
                    urls = tuple(url + each.path for url in sources)
                    bodies[each.role] = yield from self._document(
                        each, functools.partial(self._fetch, each, urls)
                    )
            except CollateralUnavailableError:
                if not candidates:
                    raise
            else:
                return bodies, {each.role: each.name for each in wanted}

    def _document(
        self, document: Document, fetch: Callable[[], Generator[Step, Any, bytes]]
    ) -> Generator[Step, Any, bytes]:
        """A document: from the given folder, a cache, or its source."""
        attestation, sources = self._settings.attestation, self._roots.sources
        if attestation.collateral is not None:
            given: bytes = yield RunInThread(functools.partial(_given, attestation.collateral, document))
            return given
        # NVIDIA's keys are a root of trust themselves: a file that others may write does not provide them.
        folder = attestation.cache_dir if document.role != "jwks" else None
        now = _now(self._settings)
        stored = COLLATERAL.get(sources, document)
        if stored is None and folder is not None:
            stored = yield RunInThread(functools.partial(load, folder, document))
            if stored is not None:
                COLLATERAL.put(sources, document, stored)
        if stored is not None and not self._refetch and stored.is_fresh(document, now):
            self.used_cache = True
            return stored.body
        try:
            body = yield from with_retries(fetch, self._settings)
        except (errors.APIError, AttestationError) as error:
            if stored is not None and not self._refetch and stored.is_valid(now):
                self.used_cache = True
                return stored.body
            raise CollateralUnavailableError(f"{document.title} could not be fetched: {error}") from error
        fetched = Stored(body, now, document.valid_until(body))
        if fetched.is_valid(now):
            COLLATERAL.put(sources, document, fetched)
            if folder is not None:
                yield RunInThread(functools.partial(save, folder, document, body))
        return body

    def _fetch(self, document: Document, urls: tuple[str, ...]) -> Generator[Step, Any, bytes]:
        def get(url: str) -> Generator[Step, Any, bytes]:
            _, body = yield from self._from_source(url, document.query)
            document.valid_until(body)  # the error page of a mirror is not a document
            return body

        return (yield from _first_of(urls, get))

    def _fetch_tdx(self, fmspc: str, ca: str) -> Generator[Step, Any, bytes]:
        queries = {
            "tcb_info": {"fmspc": fmspc},
            "qe_identity": {},
            "pck_crl": {"ca": ca, "encoding": "pem"},
        }

        def get(url: str) -> Generator[Step, Any, dict[str, Any]]:
            parts: dict[str, Any] = {}
            for name, (path, header) in _TDX_ROUTES.items():
                head, body = yield from self._from_source(url + path, queries[name])
                parts[name] = body if name == "pck_crl" else body.decode(errors="replace")
                parts[f"{name}_issuer_chain"] = head.headers.get(header, "")
            return parts

        def get_root_crl(url: str) -> Generator[Step, Any, bytes]:
            _, body = yield from self._from_source(url, {})
            return _unhexed(body)

        sources = self._roots.sources
        parts = yield from _first_of(sources.intel, get)
        root_crl = yield from _first_of(sources.intel_root_crl, get_root_crl)
        return TdxCollateral.from_responses(**parts, root_ca_crl=root_crl).as_json().encode()

    def _from_source(
        self, url: str, query: Mapping[str, str]
    ) -> Generator[Step, Any, tuple[ResponseHead, bytes]]:
        return (yield from _get(Send("GET", "collateral", url, query=query), MAX_DOCUMENT, self._settings))


def _first_of(
    urls: tuple[str, ...], get: Callable[[str], Generator[Step, Any, R]]
) -> Generator[Step, Any, R]:
    """What the first source gives that has it."""
    for url in urls[:-1]:
        try:
            return (yield from get(url))
        except (errors.APIError, AttestationError):
            continue
    return (yield from get(urls[-1]))


def _get(send: Send, limit: int, settings: FlowSettings) -> Generator[Step, Any, tuple[ResponseHead, bytes]]:
    """The head and body of a response with status 200, of at most `limit` bytes. Redirects are not followed."""
    until = settings.clock() + RESPONSE_SECONDS
    head: ResponseHead = yield send
    if head.status != 200:
        yield from raise_for_status(send, head, settings)
    body = bytearray()
    while data := (yield READ):
        body += data
        if len(body) > limit:
            raise MalformedEvidenceError(f"the response to {send.path} has more than {limit} bytes")
        if settings.clock() > until:
            raise errors.APITimeoutError(
                f"{send.party}: the response took longer than {RESPONSE_SECONDS:g} s"
            )
    return head, bytes(body)


def _given(folder: str, document: Document) -> bytes:
    try:
        return read_file(folder, document.name)
    except (OSError, ValueError):
        raise CollateralUnavailableError(
            f"attestation_collateral has no readable file {document.name}"
        ) from None


def _unhexed(crl: bytes) -> bytes:
    # Intel's reference service answers with the hex of the DER.
    try:
        return bytes.fromhex(crl.decode("ascii"))
    except ValueError:
        return crl
