"""Intel's collateral for a TDX quote: TCB info, QE identity and revocation lists, with their issuers' certificates."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import unquote

from prem_core.attestation.certificates import pem_to_der
from prem_core.attestation.errors import MalformedEvidenceError

_BINARY = ("root_ca_crl", "pck_crl", "tcb_info_signature", "qe_identity_signature")


@dataclass(frozen=True)
class TdxCollateral:
    """What Intel publishes for a platform, as `verify_tdx_quote` needs it.

    The two JSON documents are kept as the exact text that Intel signed. Chains are in PEM, revocation lists in DER.
    """

    pck_crl_issuer_chain: str
    root_ca_crl: bytes
    pck_crl: bytes
    tcb_info_issuer_chain: str
    tcb_info: str
    tcb_info_signature: bytes
    qe_identity_issuer_chain: str
    qe_identity: str
    qe_identity_signature: bytes

    @classmethod
    def from_responses(
        cls,
        *,
        tcb_info: str,
        tcb_info_issuer_chain: str,
        qe_identity: str,
        qe_identity_issuer_chain: str,
        pck_crl: bytes,
        pck_crl_issuer_chain: str,
        root_ca_crl: bytes,
    ) -> TdxCollateral:
        """Collateral from the responses of a certificate service (PCCS).

        Args:
            tcb_info: The body of ``/tdx/certification/v4/tcb``.
            tcb_info_issuer_chain: Its header ``TCB-Info-Issuer-Chain``; URL-encoded, as it is sent.
            qe_identity: The body of ``/tdx/certification/v4/qe/identity``.
            qe_identity_issuer_chain: Its header ``SGX-Enclave-Identity-Issuer-Chain``.
            pck_crl: The body of ``/sgx/certification/v4/pckcrl``, in PEM or DER.
            pck_crl_issuer_chain: Its header ``SGX-PCK-CRL-Issuer-Chain``.
            root_ca_crl: The root CA's revocation list, in PEM or DER.

        Raises:
            MalformedEvidenceError: If a body does not have the form that Intel documents.
        """
        tcb_text, tcb_signature = _signed_document("TCB info", tcb_info, "tcbInfo")
        qe_text, qe_signature = _signed_document("QE identity", qe_identity, "enclaveIdentity")
        return cls(
            pck_crl_issuer_chain=unquote(pck_crl_issuer_chain),
            root_ca_crl=pem_to_der("the root CA's revocation list", root_ca_crl),
            pck_crl=pem_to_der("the PCK revocation list", pck_crl),
            tcb_info_issuer_chain=unquote(tcb_info_issuer_chain),
            tcb_info=tcb_text,
            tcb_info_signature=tcb_signature,
            qe_identity_issuer_chain=unquote(qe_identity_issuer_chain),
            qe_identity=qe_text,
            qe_identity_signature=qe_signature,
        )

    @classmethod
    def from_json(cls, text: str) -> TdxCollateral:
        """Collateral from the JSON that `as_json` and the program ``dcap-qvl`` write.

        Raises:
            MalformedEvidenceError: If a field is missing or is not a string.
        """
        try:
            values = json.loads(text)
            fields: dict[str, Any] = {name: values[name] for name in cls.__dataclass_fields__}
            if not all(isinstance(value, str) for value in fields.values()):
                raise TypeError
            binary = {name: bytes.fromhex(fields[name]) for name in _BINARY}
            return cls(**{**fields, **binary})
        except (ValueError, TypeError, KeyError, RecursionError):
            raise MalformedEvidenceError("the collateral is not the JSON of a TDX collateral") from None

    def as_json(self) -> str:
        """The collateral as JSON; binary fields are in hex."""
        values = asdict(self)
        return json.dumps({**values, **{name: values[name].hex() for name in _BINARY}})


def _signed_document(title: str, body: str, name: str) -> tuple[str, bytes]:
    """The exact text of a document inside its envelope, and the signature."""
    try:
        envelope = json.loads(body)
        signature = bytes.fromhex(envelope["signature"])
        # The signature is over the text as it was sent, which writing the parsed document again might not restore.
        start = body.index(f'"{name}"') + len(name) + 2
        start += len(body[start:]) - len(body[start:].lstrip().removeprefix(":").lstrip())
        document, length = json.JSONDecoder().raw_decode(body[start:])
        if document != envelope[name] or not isinstance(document, dict):
            raise ValueError
    except (ValueError, TypeError, KeyError, RecursionError):
        raise MalformedEvidenceError(f"the {title} is not a signed JSON document") from None
    return body[start : start + length], signature
