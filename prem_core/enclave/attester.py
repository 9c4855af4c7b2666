"""The embedded enclave's attestation: evidence under a root of its own, the vendors' services, and faults."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from typing import Any, Final, Literal, get_args
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from prem_core._errors import ConfigurationError
from prem_core.attestation.roots import CollateralSources, TrustedRoots
from prem_core.enclave.envelope import EnvelopeError
from prem_core.enclave.evidence.certificates import Binding
from prem_core.enclave.evidence.nvidia import NvidiaFault, NvidiaIssuer
from prem_core.enclave.evidence.snp import SnpEvidence, SnpFault, SnpIssuer
from prem_core.enclave.evidence.tdx import TdxEvidence, TdxFault, TdxIssuer

Technology = Literal["sev-snp", "tdx"]

#: Faults of the service, in addition to those of the evidence.
ServiceFault = Literal[
    "collateral_redirects",
    "collateral_unavailable",
    "large_report",
    "no_deployment",
    "no_gpu",
    "not_found",
    "report_not_found",
    "unavailable",
    "unavailable_once",
    "unknown_cpu",
]

#: Faults of the GPUs' tokens have this prefix, because some of the CPU's have the same names.
GPU_PREFIX: Final = "gpu_"


class Attester:
    """Answers the routes of attestation, and those of AMD's, Intel's and NVIDIA's services.

    The certificates are made when they are first needed.

    Args:
        technology: What the CPU is.
        binding: Whether reports commit to the public key, and how. Prem's documented reports do not.
        public_key: Returns the enclave's public key.
        faults: What is wrong. Assign to the attribute of this name to change it.
    """

    def __init__(
        self,
        technology: Technology,
        binding: Binding,
        public_key: Callable[[], bytes],
        faults: Collection[str] = (),
    ) -> None:
        if technology not in get_args(Technology):
            raise ConfigurationError(f'attest must be "sev-snp", "tdx" or None, not {technology!r}')
        if binding not in get_args(Binding):
            raise ConfigurationError(
                f'attestation_binding must be "nonce", "sha512" or "sha256", not {binding!r}'
            )
        self._technology = technology
        self._binding: Binding = binding
        self._public_key = public_key
        self._lock = threading.Lock()
        self._cpu: SnpIssuer | TdxIssuer | None = None
        self._gpus: NvidiaIssuer | None = None
        self._latest: SnpEvidence | TdxEvidence | None = None
        self.faults = faults

    @property
    def faults(self) -> frozenset[str]:
        """What is wrong: faults of the CPU's evidence, of the GPUs' with the prefix ``gpu_``, and of the service."""
        return self._faults

    @faults.setter
    def faults(self, faults: Collection[str]) -> None:
        of_cpu = get_args(SnpFault if self._technology == "sev-snp" else TdxFault)
        of_gpus = (GPU_PREFIX + name for name in get_args(NvidiaFault))
        known = {*of_cpu, *of_gpus, *get_args(ServiceFault)}
        if isinstance(faults, str) or not set(faults) <= known:
            raise ConfigurationError(
                f"attestation_faults must be a list of: {', '.join(sorted(known))}; not {faults!r}"
            )
        self._faults = frozenset(faults)

    @property
    def _issuer(self) -> SnpIssuer | TdxIssuer:
        with self._lock:
            if self._cpu is None:
                kind = SnpIssuer if self._technology == "sev-snp" else TdxIssuer
                self._cpu = kind(datetime.now(UTC))
            return self._cpu

    @property
    def _gpu_issuer(self) -> NvidiaIssuer:
        with self._lock:
            if self._gpus is None:
                self._gpus = NvidiaIssuer()
            return self._gpus

    def roots(self, url: str) -> TrustedRoots:
        """The root keys, and the services below `url` that give the certificates."""
        pins = self._issuer.roots
        return TrustedRoots(
            amd=pins.amd,
            intel=pins.intel,
            sources=CollateralSources(
                amd=(url,),
                intel=(url,),
                intel_root_crl=(f"{url}/sgx/certification/v4/rootcacrl",),
                nvidia_jwks=(f"{url}/.well-known/jwks.json",),
            ),
        )

    def evidence_routes(self, check: Callable[[Request], None]) -> list[Route]:
        """The routes behind the gateway.

        Args:
            check: Rejects a request that does not come from the gateway.
        """

        def route(path: str, respond: Callable[[Request], Response]) -> Route:
            async def answer(request: Request) -> Response:
                check(request)
                self._fail()
                # In a thread: making keys and signatures must not block the streams on the event loop.
                return await asyncio.to_thread(respond, request)

            return Route(path, answer, methods=["GET"])

        return [
            route("/attestation/modules", self._modules),
            route("/attestation/sev", self._report),
            route("/attestation/tdx", self._report),
            route("/attestation/nvidia", self._tokens),
        ]

    def vendor_routes(self) -> list[Route]:
        """The routes of AMD's, Intel's and NVIDIA's services, without authentication."""

        def route(path: str, document: Callable[[], Response]) -> Route:
            async def answer(request: Request) -> Response:
                if "collateral_unavailable" in self._faults:
                    raise EnvelopeError(404, "There is no such document")
                if "collateral_redirects" in self._faults:
                    return RedirectResponse("/publicKey")
                return document()

            return Route(path, answer, methods=["GET"])

        sgx, tdx = "/sgx/certification/v4", "/tdx/certification/v4"
        return [
            route("/vcek/v1/{generation}/cert_chain", lambda: Response(self._snp().chain)),
            route("/vcek/v1/{generation}/crl", self._snp_crl),
            route("/vcek/v1/{generation}/{chip}", lambda: Response(self._snp().vcek)),
            route(f"{tdx}/tcb", lambda: self._signed("tcb_info", "tcbInfo", "TCB-Info-Issuer-Chain")),
            route(
                f"{tdx}/qe/identity",
                lambda: self._signed("qe_identity", "enclaveIdentity", "SGX-Enclave-Identity-Issuer-Chain"),
            ),
            route(f"{sgx}/pckcrl", self._pck_crl),
            route(f"{sgx}/rootcacrl", lambda: PlainTextResponse(self._tdx().root_ca_crl.hex())),
            route("/.well-known/jwks.json", lambda: JSONResponse(self._gpu_issuer.jwks)),
        ]

    def _fail(self) -> None:
        if "unavailable_once" in self._faults:
            self._faults -= {"unavailable_once"}
            raise EnvelopeError(503, "The attestation service is unavailable. Please try again later.")
        if "unavailable" in self._faults:
            raise EnvelopeError(503, "The attestation service is unavailable. Please try again later.")
        if "not_found" in self._faults:
            raise EnvelopeError(404, "There is no attested deployment of this model")

    def _modules(self, request: Request) -> Response:
        if "no_deployment" in self._faults:
            return JSONResponse({"model": request.query_params.get("model"), "data": []})
        cpu = "Sev" if self._technology == "sev-snp" else "Tdx"
        return JSONResponse(
            {
                "cpu": "Unknown" if "unknown_cpu" in self._faults else cpu,
                "gpu": None if "no_gpu" in self._faults else "Nvidia",
            }
        )

    def _report(self, request: Request) -> Response:
        expected = "sev" if self._technology == "sev-snp" else "tdx"
        if not request.url.path.endswith(expected) or "report_not_found" in self._faults:
            raise EnvelopeError(404, "There is no such module")
        issuer: Any = self._issuer
        of_cpu = get_args(SnpFault if self._technology == "sev-snp" else TdxFault)
        evidence = issuer.evidence(
            _nonce(request, 64),
            now=datetime.now(UTC),
            public_key=self._public_key(),
            binding=self._binding,
            fault=next((fault for fault in self._faults if fault in of_cpu), None),
        )
        self._latest = evidence
        report: bytes = evidence.report if isinstance(evidence, SnpEvidence) else evidence.quote
        if "large_report" in self._faults:
            report += bytes(1 << 20)
        return Response(report, media_type="application/octet-stream")

    def _tokens(self, request: Request) -> Response:
        fault: Any = next(
            (fault.removeprefix(GPU_PREFIX) for fault in self._faults if fault.startswith(GPU_PREFIX)), None
        )
        evidence = self._gpu_issuer.evidence(_nonce(request, 32), now=datetime.now(UTC), fault=fault)
        return PlainTextResponse(evidence.text)

    # --- the vendors' documents: those of the latest report ---------------------------------------------

    def _snp(self) -> SnpEvidence:
        if not isinstance(self._latest, SnpEvidence):
            raise EnvelopeError(404, "There is no such document")
        return self._latest

    def _snp_crl(self) -> Response:
        crl = self._snp().crl
        if crl is None:
            raise EnvelopeError(404, "There is no such document")
        return Response(crl)

    def _tdx(self) -> Any:
        if not isinstance(self._latest, TdxEvidence):
            raise EnvelopeError(404, "There is no such document")
        return self._latest.collateral

    def _signed(self, name: str, envelope: str, header: str) -> Response:
        collateral = self._tdx()
        text, signature = getattr(collateral, name), getattr(collateral, f"{name}_signature")
        body = f'{{"{envelope}":{text},"signature":"{signature.hex()}"}}'
        chain = getattr(collateral, f"{name}_issuer_chain")
        return Response(body, media_type="application/json", headers={header: _in_header(chain)})

    def _pck_crl(self) -> Response:
        collateral = self._tdx()
        chain = _in_header(collateral.pck_crl_issuer_chain)
        return Response(collateral.pck_crl, headers={"SGX-PCK-CRL-Issuer-Chain": chain})


def _nonce(request: Request, size: int) -> bytes:
    try:
        nonce = bytes.fromhex(request.query_params.get("nonce", ""))
    except ValueError:
        nonce = b""
    if len(nonce) != size:
        raise EnvelopeError.invalid("nonce", f"must be {size} bytes in hex")
    return nonce


def _in_header(chain: str) -> str:
    return quote(chain)
