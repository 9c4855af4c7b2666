"""Intel TDX: a DCAP quote, verified by `dcap_qvl` with Intel's collateral.

The library reads the quote and verifies its signatures, the certificates, the TCB level and the quoting enclave. What
it leaves open is checked here first: the root key's pin, the revocation lists' issuers, bytes outside the signatures.
"""

from __future__ import annotations

import json
import struct
from datetime import datetime
from types import ModuleType
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from prem_core._errors import AttestationError, ConfigurationError
from prem_core.attestation import report as reports
from prem_core.attestation._checks import (
    CheckLog,
    check_report_data,
    checked_nonce,
    checked_size,
    checked_time,
    decide,
)
from prem_core.attestation.certificates import (
    check_certificate_time,
    check_collateral_time,
    check_crl,
    check_issued,
    read_chain,
    read_crl,
    spki_sha256,
)
from prem_core.attestation.collateral import TdxCollateral
from prem_core.attestation.errors import (
    DebugEnabledError,
    MalformedEvidenceError,
    MigrationAllowedError,
    QuoteRefusedError,
    RevokedError,
    SignatureInvalidError,
    UnknownRootError,
)
from prem_core.attestation.policy import PremPolicy, VerificationPolicy, compared_measurements
from prem_core.attestation.report import AttestationReport
from prem_core.attestation.roots import VENDOR_ROOTS, TrustedRoots

MAX_QUOTE = 1 << 16
MAX_COLLATERAL = 1 << 22
QUOTE_VERSIONS = (4, 5)
TEE_TDX = 0x81
#: The low byte of the TD attributes: any of its bits makes the TD debuggable or otherwise untrusted.
ATTRIBUTES_DEBUG = 0xFF
ATTRIBUTE_MIGRATABLE = 1 << 29
#: Words in the library's messages. A message without one of them is still a refusal, with a less specific error.
REFUSALS: tuple[tuple[tuple[str, ...], type[AttestationError]], ...] = (
    (("signature", "hash mismatch"), SignatureInvalidError),
    (("revoked",), RevokedError),
    (("debug", "profiling"), DebugEnabledError),
    (("migration",), MigrationAllowedError),
)


def verify_tdx_quote(
    quote: bytes,
    *,
    collateral: TdxCollateral,
    nonce: bytes,
    policy: VerificationPolicy | None = None,
    now: datetime,
    public_key: bytes | None = None,
    require_key_binding: bool = False,
    roots: TrustedRoots = VENDOR_ROOTS,
) -> AttestationReport:
    """Verify an Intel TDX quote.

    Args:
        quote: The DCAP quote.
        collateral: What Intel publishes for the platform.
        nonce: The 64 random bytes that the quote must answer.
        policy: Decides whether the genuine quote is acceptable; `PremPolicy()` if None.
        now: The time, with a time zone.
        public_key: The enclave's public key, to see whether the quote commits to it.
        require_key_binding: Whether a quote that does not commit to the public key is refused.
        roots: The roots that are trusted.

    Returns:
        What the quote shows, and what it does not prove.

    Raises:
        AttestationError: If the quote is not genuine, not fresh or not acceptable; the class names the kind.
        ConfigurationError: If the nonce or the time cannot be used, or the extra is not installed.
    """
    dcap_qvl = _dcap_qvl()
    policy = PremPolicy() if policy is None else policy
    now, nonce = checked_time(now), checked_nonce(nonce)
    with CheckLog() as log:
        quote = _without_padding(checked_size("the quote", bytes(quote), MAX_QUOTE))
        parsed = _parse(dcap_qvl, quote)
        log.record("format", f"TDX quote of version {parsed.header.version}")
        root, valid_until = _check_collateral(parsed, collateral, now, roots, log)
        claims = _verify(dcap_qvl, quote, collateral, root, now)
        log.record("signature", "the quote is signed by a quoting enclave that the platform certifies")
        status = str(claims["tcb"]["status"])
        if status == "Revoked":
            raise RevokedError("the platform's TCB level is revoked")
        body = parsed.report
        key_bound = check_report_data(
            body.report_data,
            nonce=nonce,
            public_key=public_key,
            require_key_binding=require_key_binding,
            log=log,
        )
        attributes = int.from_bytes(body.td_attributes, "little")
        debug, migratable = bool(attributes & ATTRIBUTES_DEBUG), bool(attributes & ATTRIBUTE_MIGRATABLE)
        log.record("debug", "debugging is enabled" if debug else "debugging is disabled", passed=not debug)
        pck = claims["platform"]["pck"]
        compared = compared_measurements(policy)
        runtime_compared = {"rtmr0", "rtmr1", "rtmr2", "rtmr3"} <= compared
        result = AttestationReport(
            technology="tdx",
            verified_at=now,
            valid_until=valid_until,
            product=bytes(pck["fmspc"]).hex(),
            chip_id=bytes(pck["ppid"]).hex(),
            tcb={
                **{f"tdx{index}": svn for index, svn in enumerate(body.tee_tcb_svn)},
                **{f"sgx{index}": svn for index, svn in enumerate(pck["cpu_svn"])},
                "pce": pck["pce_svn"],
            },
            tcb_status=status,
            advisories=tuple(claims["tcb"]["advisory_ids"]),
            measurement=body.mr_td.hex(),
            runtime_measurements=tuple(
                rtmr.hex() for rtmr in (body.rt_mr0, body.rt_mr1, body.rt_mr2, body.rt_mr3)
            ),
            host_data=body.mr_config_id.hex(),
            debug=debug,
            migratable=migratable,
            key_bound=key_bound,
            revocation_checked=True,
            not_proven=tuple(
                sentence
                for sentence, applies in (
                    (reports.KEY_NOT_PROVEN, not key_bound),
                    (reports.MEASUREMENT_NOT_PROVEN, "measurement" not in compared),
                    (reports.RUNTIME_MEASUREMENT_NOT_PROVEN, not runtime_compared),
                    (reports.PHYSICAL_NOT_PROVEN, True),
                )
                if applies
            ),
        )
        return decide(result, policy, log)


def _dcap_qvl() -> ModuleType:
    try:
        import dcap_qvl  # type: ignore[import-untyped]
    except ImportError as error:
        raise ConfigurationError(
            'verifying a TDX quote needs dcap-qvl: pip install "prem-encrypted[attestation]"'
        ) from error
    module: ModuleType = dcap_qvl
    return module


def _without_padding(quote: bytes) -> bytes:
    """The quote without the zeros that may follow it; the library ignores whatever follows."""
    header, body, size_field = 48, 584, 4
    if len(quote) < header + body + size_field:
        raise MalformedEvidenceError(f"the quote has {len(quote)} bytes, which is too few for a TDX quote")
    version, _, tee = struct.unpack_from("<HHI", quote)
    if version not in QUOTE_VERSIONS or tee != TEE_TDX:
        raise MalformedEvidenceError(
            f"the quote has version {version} and TEE type {tee}; it must be a TDX quote"
        )
    if version == 5:  # the body has a type and a size of its own
        body = 6 + struct.unpack_from("<I", quote, header + 2)[0]
        if len(quote) < header + body + size_field:
            raise MalformedEvidenceError("the quote is shorter than its body's size field states")
    end = header + body + size_field + struct.unpack_from("<I", quote, header + body)[0]
    if len(quote) < end:
        raise MalformedEvidenceError("the quote is shorter than its size fields state")
    if any(quote[end:]):
        raise MalformedEvidenceError("the bytes after the quote are not zero")
    # After the signature and the key: a type, which the library does not check, and the rest's size.
    certification = header + body + size_field + 128
    if end < certification + 6 or struct.unpack_from("<HI", quote, certification) != (
        6,
        end - certification - 6,
    ):
        raise MalformedEvidenceError(
            "the quote's certification data is not a report of the quoting enclave (type 6)"
        )
    return quote[:end]


def platform_of_quote(quote: bytes) -> tuple[str, str]:
    """The platform's FMSPC in hex and its certificate authority, which name its collateral. Nothing is verified.

    Raises:
        MalformedEvidenceError: It is not a quote.
    """
    parsed = _parse(_dcap_qvl(), _without_padding(checked_size("the quote", quote, MAX_QUOTE)))
    try:
        fmspc, ca = bytes.fromhex(parsed.fmspc()).hex(), str(parsed.ca())
    except (ValueError, TypeError):
        fmspc = ca = ""
    if len(fmspc) != 12 or ca not in ("platform", "processor"):
        raise MalformedEvidenceError("the quote does not name its platform and certificate authority")
    return fmspc, ca


def _parse(dcap_qvl: ModuleType, quote: bytes) -> Any:
    try:
        parsed = dcap_qvl.parse_quote(quote)
        if not parsed.is_tdx():
            raise ValueError
    except ValueError:
        raise MalformedEvidenceError("the quote cannot be read as a TDX quote") from None
    return parsed


def _check_collateral(
    parsed: Any, collateral: TdxCollateral, now: datetime, roots: TrustedRoots, log: CheckLog
) -> tuple[bytes, datetime]:
    """Check the root, the certificates' and documents' validity, and revocation; return the root in DER."""
    for name in collateral.__dataclass_fields__:
        checked_size(name, getattr(collateral, name), MAX_COLLATERAL)
    pck, pck_ca, pck_root = _chain("the quote's certificate chain", parsed.cert_chain_pem_bytes() or b"", 3)
    crl_ca, crl_root = _chain("the PCK revocation list's chain", collateral.pck_crl_issuer_chain.encode(), 2)
    tcb_signer, root = _chain("the TCB info's chain", collateral.tcb_info_issuer_chain.encode(), 2)
    qe_signer, qe_root = _chain("the QE identity's chain", collateral.qe_identity_issuer_chain.encode(), 2)
    pin = spki_sha256(root)
    if pin not in roots.intel:
        raise UnknownRootError(f"the root key with SHA-256 {pin} is not a trusted root of Intel")
    if any(spki_sha256(other) != pin for other in (pck_root, crl_root, qe_root)):
        raise UnknownRootError("the certificate chains lead to different roots")
    log.record("root", "Intel's SGX root key")
    if spki_sha256(crl_ca) != spki_sha256(pck_ca) or crl_ca.subject != pck_ca.subject:
        raise MalformedEvidenceError("the PCK revocation list is not of the quote's certificate authority")
    named = (
        ("root CA certificate", root, root),
        ("PCK CA certificate", pck_ca, root),
        ("PCK certificate", pck, pck_ca),
        ("TCB info's certificate", tcb_signer, root),
        ("QE identity's certificate", qe_signer, root),
    )
    for name, certificate, issuer in named:
        check_issued(name, certificate, "certificate above it", issuer)
    log.record("chain", "PCK, PCK CA, TCB signing and root certificates")
    valid_until = min(check_certificate_time(name, certificate, now) for name, certificate, _ in named)
    ends = [_check_document("TCB info", collateral.tcb_info, now)]
    extension = parsed.pck_extension()
    # The library compares the FMSPC, but not the PCE's identifier.
    if extension is None or json.loads(collateral.tcb_info).get("pceId") != extension.pce_id.hex().upper():
        raise MalformedEvidenceError("the TCB info is not of the platform's provisioning enclave (pceId)")
    ends.append(_check_document("QE identity", collateral.qe_identity, now))
    log.record("validity", "the certificates, the TCB info and the QE identity are valid")
    root_crl = read_crl("the root CA's revocation list", collateral.root_ca_crl)
    pck_crl = read_crl("the PCK revocation list", collateral.pck_crl)
    of_root = [(name, certificate) for name, certificate, issuer in named if issuer is root]
    ends.append(check_crl("root CA's revocation list", root_crl, root, of_root, now))
    ends.append(check_crl("PCK revocation list", pck_crl, pck_ca, [("PCK certificate", pck)], now))
    log.record("revocation", "no certificate is on the revocation lists")
    return root.public_bytes(Encoding.DER), min(valid_until, *ends)


def _chain(name: str, pem: bytes, length: int) -> list[x509.Certificate]:
    certificates = read_chain(name, pem.rstrip(b"\0"))
    if len(certificates) != length:
        raise MalformedEvidenceError(f"{name} has {len(certificates)} certificates; it must have {length}")
    return certificates


def _check_document(name: str, text: str, now: datetime) -> datetime:
    try:
        document = json.loads(text)
        start, end = (datetime.fromisoformat(document[field]) for field in ("issueDate", "nextUpdate"))
        if start.tzinfo is None or end.tzinfo is None:
            raise ValueError
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        raise MalformedEvidenceError(f"the {name} has no readable issueDate and nextUpdate") from None
    check_collateral_time(name, start, end, now)
    return end


def _verify(
    dcap_qvl: ModuleType, quote: bytes, collateral: TdxCollateral, root: bytes, now: datetime
) -> dict[str, Any]:
    try:
        claims = dcap_qvl.QuoteVerifier(root).verify_with_policy(
            quote,
            dcap_qvl.QuoteCollateralV3.from_json(collateral.as_json()),
            int(now.timestamp()),
            # Every claim is judged by the policy of this package, which sees the TCB status.
            dcap_qvl.QuotePolicy.claims_only(int(now.timestamp())),
        )
        values: dict[str, Any] = json.loads(claims.to_json())
    except ValueError as error:
        raise _refusal(str(error)) from None
    return values


def _refusal(reason: str) -> AttestationError:
    """The typed error for the library's message: it has one error class for all causes."""
    reason = reason.removeprefix("Verification failed: ")
    text = f"the quote is not accepted: {reason[:200]}"
    lowered = reason.lower()
    for words, kind in REFUSALS:
        if any(word in lowered for word in words):
            return kind(text)
    return QuoteRefusedError(text)
