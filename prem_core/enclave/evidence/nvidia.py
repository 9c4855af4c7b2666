"""Tokens as NVIDIA's Remote Attestation Service issues them, signed by a P-384 key of a JWKS."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from cryptography.hazmat.primitives.asymmetric import ec

from prem_core.attestation.nvidia import ALGORITHM, REQUIRED_CHAINS, REQUIRED_RESULTS
from prem_core.attestation.roots import VENDOR_ROOTS

NvidiaFault = Literal[
    "changed_token",
    "debug",
    "expired",
    "extra_token",
    "failed_result",
    "foreign_key",
    "gpu_wrong_nonce",
    "missing_token",
    "no_gpus",
    "no_secure_boot",
    "omitted_result",
    "other_algorithm",
    "other_issuer",
    "platform_failed",
    "revoked",
    "same_gpu_twice",
    "unsigned",
    "wrong_nonce",
]


@dataclass(frozen=True)
class NvidiaEvidence:
    """The tokens, and the keys to verify them with, as `verify_nvidia_tokens` takes them."""

    text: str
    jwks: dict[str, Any]


class NvidiaIssuer:
    """NVIDIA's service and a platform with GPUs.

    Args:
        gpus: How many GPUs the platform has.
    """

    def __init__(self, *, gpus: int = 2) -> None:
        self._gpus = gpus
        self._key = ec.generate_private_key(ec.SECP384R1())
        self._kid = "embedded-enclave"

    @property
    def jwks(self) -> dict[str, Any]:
        """The public key, as a JWKS."""
        numbers = self._key.public_key().public_numbers()
        x, y = (
            base64.urlsafe_b64encode(value.to_bytes(48, "big")).decode() for value in (numbers.x, numbers.y)
        )
        key = {"kty": "EC", "crv": "P-384", "alg": ALGORITHM, "use": "sig", "kid": self._kid, "x": x, "y": y}
        return {"keys": [key]}

    def evidence(self, nonce: bytes, *, now: datetime, fault: NvidiaFault | None = None) -> NvidiaEvidence:
        """A token for the platform and one for each GPU.

        Args:
            nonce: The 32 bytes to answer.
            now: The time of issue.
            fault: What to make wrong.
        """
        if fault == "wrong_nonce":
            nonce = secrets.token_bytes(len(nonce))
        issued = now - timedelta(hours=2) if fault == "expired" else now
        times = {claim: int(issued.timestamp()) for claim in ("iat", "nbf")}
        common = {
            "iss": "https://attestation.example" if fault == "other_issuer" else VENDOR_ROOTS.nvidia_issuer,
            "eat_nonce": nonce.hex(),
            **times,
            "exp": int(issued.timestamp()) + 3600,
        }
        count = 0 if fault == "no_gpus" else self._gpus
        tokens = {
            f"GPU-{index}": self._token({**common, **_gpu_claims(index)}, None) for index in range(count)
        }
        if fault in (
            "debug",
            "no_secure_boot",
            "failed_result",
            "omitted_result",
            "gpu_wrong_nonce",
            "revoked",
        ):
            tokens["GPU-0"] = self._token(_with_fault({**common, **_gpu_claims(0)}, fault), None)
        elif fault == "same_gpu_twice":
            tokens["GPU-1"] = tokens["GPU-0"]
        digests = {name: _digest(token) for name, token in tokens.items()}
        platform = {
            **common,
            "sub": "NVIDIA-PLATFORM-ATTESTATION",
            "x-nvidia-ver": "3.0",
            "x-nvidia-overall-att-result": fault != "platform_failed",
            "submods": digests,
        }
        if fault == "missing_token":
            del tokens["GPU-0"]
        elif fault == "extra_token":
            tokens["GPU-9"] = self._token({**common, **_gpu_claims(9)}, None)
        elif fault == "changed_token":
            tokens["GPU-0"] = self._token({**common, **_gpu_claims(0), "hwmodel": "another"}, None)
        return NvidiaEvidence(json.dumps([["JWT", self._token(platform, fault)], tokens]), self.jwks)

    def _token(self, claims: dict[str, Any], fault: NvidiaFault | None) -> str:
        import jwt

        headers = {"kid": self._kid}
        if fault == "unsigned":
            return jwt.encode(claims, "", algorithm="none", headers=headers)
        if fault == "other_algorithm":
            # An HMAC under the public key, which is known to all: the token's header must not choose the algorithm.
            public = self.jwks["keys"][0]["x"].encode()
            return jwt.encode(claims, public, algorithm="HS384", headers=headers)
        key = ec.generate_private_key(ec.SECP384R1()) if fault == "foreign_key" else self._key
        return jwt.encode(claims, key, algorithm=ALGORITHM, headers=headers)


def _digest(token: str) -> list[Any]:
    return ["DIGEST", ["SHA-256", hashlib.sha256(token.encode()).hexdigest()]]


def _gpu_claims(index: int) -> dict[str, Any]:
    chain = {"x-nvidia-cert-status": "valid", "x-nvidia-cert-ocsp-status": "good"}
    return {
        **dict.fromkeys(REQUIRED_RESULTS, True),
        **dict.fromkeys(REQUIRED_CHAINS, chain),
        "ueid": f"{index}{'0' * 40}",
        "hwmodel": "GH100 A01 GSP BROM",
        "x-nvidia-gpu-driver-version": "580.95.05",
        "x-nvidia-gpu-vbios-version": "96.00.D9.00.0C",
        "measres": "success",
        "dbgstat": "disabled",
        "secboot": True,
    }


def _with_fault(claims: dict[str, Any], fault: NvidiaFault) -> dict[str, Any]:
    match fault:
        case "debug":
            return {**claims, "dbgstat": "enabled"}
        case "no_secure_boot":
            return {**claims, "secboot": False}
        case "failed_result":
            return {**claims, "measres": "fail"}
        case "gpu_wrong_nonce":
            return {**claims, "eat_nonce": secrets.token_hex(32)}
        case "revoked":
            return {
                **claims,
                REQUIRED_CHAINS[0]: {**claims[REQUIRED_CHAINS[0]], "x-nvidia-cert-ocsp-status": "revoked"},
            }
    return {name: value for name, value in claims.items() if name != REQUIRED_RESULTS[0]}
