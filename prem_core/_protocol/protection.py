"""How one answer was protected on its way."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Protection:
    """How one answer was protected. It holds no content and no secret.

    Attributes:
        key_fingerprint: SHA-256 of the enclave's public key that the request was sealed to, 64 hex digits; None if the
            `encryption_keys` do not name it.
        key_source: Where that key comes from: "pinned" (`enclave_public_key`), "fetched" from the enclave's URL, or
            "encryption_keys".
        attested: Whether attestation was verified for this key: a machine that the policy accepts answered a fresh
            nonce through this gateway. False with `attestation` "off".
        key_bound: Whether that attestation also commits to this key. Without it, the machine that answered need not be
            the one that holds the key.
        reply_nonce: "own" for an answer in one piece under a nonce of its own. "request's" for one under the nonce of
            its request, as every stream is: the gateway can read it and put another in its place.
        support_id: The service's id of the exchange, if it sent one.
    """

    key_fingerprint: str | None
    key_source: Literal["pinned", "fetched", "encryption_keys"]
    attested: bool = False
    key_bound: bool = False
    reply_nonce: Literal["own", "request's"]
    support_id: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The attributes by name, as the adapters report them."""
        # Not `dataclasses.asdict`, which takes ten times as long.
        return {name: getattr(self, name) for name in self.__slots__}
