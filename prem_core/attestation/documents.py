"""The documents that a verification needs in addition to the evidence: their names, their places, their validity.

A document's name is also its file name, in a cache and in a folder of saved evidence.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal

from prem_core.attestation.certificates import read_certificate, read_chain, read_crl
from prem_core.attestation.collateral import TdxCollateral
from prem_core.attestation.errors import MalformedEvidenceError
from prem_core.attestation.snp import SnpFields, read_tcb

Role = Literal["vcek", "chain", "crl", "tdx", "jwks"]

#: How long a document is used before a newer one is fetched, where it would be valid for longer. A revocation that is
#: published today counts tomorrow; NVIDIA's keys have no end of validity.
REFRESH: dict[Role, timedelta] = {
    "crl": timedelta(days=1),
    "tdx": timedelta(days=1),
    "jwks": timedelta(hours=1),
}

_TITLES: dict[Role, str] = {
    "vcek": "AMD's certificate of the chip (VCEK)",
    "chain": "AMD's certificate chain",
    "crl": "AMD's revocation list",
    "tdx": "Intel's collateral of the platform",
    "jwks": "NVIDIA's public keys (JWKS)",
}

#: Bytes of one document: more than the largest real one has.
MAX_DOCUMENT = 4 << 20


@dataclass(frozen=True)
class Document:
    """One document: what it is for, its name, and the path and query at its source."""

    role: Role
    name: str
    path: str = ""
    query: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What the document is, for an error."""
        return _TITLES[self.role]

    def valid_until(self, body: bytes) -> datetime:
        """When the document stops being valid, by its own statement.

        Raises:
            MalformedEvidenceError: It cannot be read.
        """
        match self.role:
            case "vcek":
                return read_certificate("the VCEK certificate", body).not_valid_after_utc
            case "chain":
                return min(each.not_valid_after_utc for each in read_chain("the chain", body))
            case "crl":
                end = read_crl("the revocation list", body).next_update_utc
                if end is None:
                    raise MalformedEvidenceError(
                        "the revocation list does not state when the next one is due"
                    )
                return end
            case "tdx":
                return _tdx_valid_until(TdxCollateral.from_json(_text(body)))
        try:
            if not isinstance(json.loads(body)["keys"], list):
                raise TypeError
        except (ValueError, TypeError, KeyError, RecursionError):
            raise MalformedEvidenceError("NVIDIA's JWKS cannot be read", check="JWKS") from None
        return datetime.max.replace(tzinfo=UTC)


def snp_documents(fields: SnpFields, generation: str) -> tuple[Document, Document, Document]:
    """The certificate of the report's chip, the chain above it, and the revocation list, of AMD's KDS."""
    tcb = read_tcb(generation, fields.reported_tcb)
    levels = {"blSPL": tcb.bootloader, "teeSPL": tcb.tee, "snpSPL": tcb.snp, "ucodeSPL": tcb.microcode}
    if generation == "Turin":
        levels["fmcSPL"] = tcb.fmc
    chip = (fields.chip_id[:8] if generation == "Turin" else fields.chip_id).hex()
    path = f"/vcek/v1/{generation}"
    return (
        Document(
            "vcek",
            f"amd-{generation}-{chip}-{fields.reported_tcb.hex()}.der",
            f"{path}/{chip}",
            {name: f"{level:02}" for name, level in levels.items()},
        ),
        Document("chain", f"amd-{generation}-chain.pem", f"{path}/cert_chain"),
        Document("crl", f"amd-{generation}-crl.der", f"{path}/crl"),
    )


def tdx_document(fmspc: str, ca: str) -> Document:
    """Intel's collateral for a platform, as the JSON of one `TdxCollateral`."""
    return Document("tdx", f"intel-{fmspc}-{ca}.json")


#: NVIDIA's public keys.
JWKS = Document("jwks", "nvidia-jwks.json")


def _tdx_valid_until(collateral: TdxCollateral) -> datetime:
    ends: list[datetime] = []
    try:
        for text in (collateral.tcb_info, collateral.qe_identity):
            ends.append(datetime.fromisoformat(json.loads(text)["nextUpdate"]).astimezone(UTC))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        raise MalformedEvidenceError("the TDX collateral has no readable nextUpdate") from None
    for crl in (collateral.root_ca_crl, collateral.pck_crl):
        if (end := read_crl("a revocation list", crl).next_update_utc) is not None:
            ends.append(end)
    return min(ends)


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise MalformedEvidenceError("the collateral is not text") from None
