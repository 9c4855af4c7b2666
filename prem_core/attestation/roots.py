"""The roots of trust: the vendors' root keys, pinned by the SHA-256 of their SubjectPublicKeyInfo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from prem_core._config import is_loopback
from prem_core._errors import ConfigurationError


@dataclass(frozen=True)
class CollateralSources:
    """Where certificates, revocation lists and keys are fetched from. They are tried in order.

    Every URL is https, or http to this machine for the embedded enclave. None of them receives the API key.

    Attributes:
        amd: Services with the paths of AMD's Key Distribution Service (KDS): Prem's mirror, then AMD's own.
        intel: Services with the paths of Intel's Provisioning Certification Service (PCS): Prem's mirror, then Intel's
            own.
        intel_root_crl: The revocation list of Intel's root CA, in DER, PEM or hex.
        nvidia_jwks: The public keys of NVIDIA's attestation service. They are a root of trust: what protects them is
            this server's TLS certificate.

    Raises:
        ConfigurationError: A URL is missing, or is neither https nor http to this machine.
    """

    amd: tuple[str, ...] = ("https://kcds.prem.io", "https://kdsintf.amd.com")
    intel: tuple[str, ...] = ("https://pccs.prem.io", "https://api.trustedservices.intel.com")
    intel_root_crl: tuple[str, ...] = (
        "https://pccs.prem.io/sgx/certification/v4/rootcacrl",
        "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der",
    )
    nvidia_jwks: tuple[str, ...] = ("https://nras.attestation.nvidia.com/.well-known/jwks.json",)

    def __post_init__(self) -> None:
        for name in ("amd", "intel", "intel_root_crl", "nvidia_jwks"):
            if not getattr(self, name):
                raise ConfigurationError(f"{name} must have at least one URL")
        for url in self.urls:
            parts = urlsplit(url)
            if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname or "")):
                raise ConfigurationError(f"collateral is fetched over https only, not from {url!r}")

    @property
    def urls(self) -> tuple[str, ...]:
        """All URLs."""
        return (*self.amd, *self.intel, *self.intel_root_crl, *self.nvidia_jwks)


@dataclass(frozen=True)
class TrustedRoots:
    """The root keys that evidence must lead to.

    A pin is the SHA-256 of the root's DER SubjectPublicKeyInfo, in lower-case hex. NVIDIA's tokens have no root
    certificate: their root is the JWKS that is given to `verify_nvidia_tokens`.

    Attributes:
        amd: Pins of AMD's root keys (ARK) by the processor's generation.
        intel: Pins of Intel's SGX root CA.
        nvidia_issuer: The issuer that NVIDIA's tokens must name.
        sources: Where a client fetches what it needs to verify evidence under these roots.
    """

    amd: Mapping[str, frozenset[str]] = field(default_factory=dict)
    intel: frozenset[str] = frozenset()
    nvidia_issuer: str = "https://nras.attestation.nvidia.com"
    sources: CollateralSources = field(default_factory=CollateralSources)

    def __post_init__(self) -> None:
        object.__setattr__(self, "amd", {name: frozenset(pins) for name, pins in self.amd.items()})
        object.__setattr__(self, "intel", frozenset(self.intel))

    def __hash__(self) -> int:
        return hash((frozenset(self.amd.items()), self.intel, self.nvidia_issuer, self.sources))


#: The vendors' own roots. Each pin was computed from two independent copies of the certificate, which agree.
VENDOR_ROOTS = TrustedRoots(
    amd={
        "Milan": frozenset({"9f056bee44377e29308cb5ffa895bdfb62d18881fa6bed8d6f075b0204089cb9"}),
        "Genoa": frozenset({"429a69c9422aa258ee4d8db5fcda9c6470ef15f8cd5a9cebd6cbc7d90b863831"}),
        "Turin": frozenset({"4f125410563a2ab9a50356f9243f6fe0b6f73de98603f53f90339c70e9d7ad08"}),
    },
    intel=frozenset({"a0af031289f5d5d4132f9186068a7fc13628633ba235777472e29b6b6c67a49e"}),
)
