"""The roots of trust: the vendors' root keys, pinned by the SHA-256 of their SubjectPublicKeyInfo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class TrustedRoots:
    """The root keys that evidence must lead to.

    A pin is the SHA-256 of the root's DER SubjectPublicKeyInfo, in lower-case hex. NVIDIA's tokens have no root
    certificate: their root is the JWKS that is given to `verify_nvidia_tokens`.

    Attributes:
        amd: Pins of AMD's root keys (ARK) by the processor's generation.
        intel: Pins of Intel's SGX root CA.
        nvidia_issuer: The issuer that NVIDIA's tokens must name.
    """

    amd: Mapping[str, frozenset[str]] = field(default_factory=dict)
    intel: frozenset[str] = frozenset()
    nvidia_issuer: str = "https://nras.attestation.nvidia.com"

    def __post_init__(self) -> None:
        object.__setattr__(self, "amd", {name: frozenset(pins) for name, pins in self.amd.items()})
        object.__setattr__(self, "intel", frozenset(self.intel))

    def __hash__(self) -> int:
        return hash((frozenset(self.amd.items()), self.intel, self.nvidia_issuer))


#: The vendors' own roots. Each pin was computed from two independent copies of the certificate, which agree.
VENDOR_ROOTS = TrustedRoots(
    amd={
        "Milan": frozenset({"9f056bee44377e29308cb5ffa895bdfb62d18881fa6bed8d6f075b0204089cb9"}),
        "Genoa": frozenset({"429a69c9422aa258ee4d8db5fcda9c6470ef15f8cd5a9cebd6cbc7d90b863831"}),
        "Turin": frozenset({"4f125410563a2ab9a50356f9243f6fe0b6f73de98603f53f90339c70e9d7ad08"}),
    },
    intel=frozenset({"a0af031289f5d5d4132f9186068a7fc13628633ba235777472e29b6b6c67a49e"}),
)
