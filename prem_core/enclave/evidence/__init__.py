"""Makes attestation evidence: real signatures under roots of its own, which nothing trusts by default.

Each issuer holds a root and makes everything that a verifier needs; `fault` makes one thing wrong. No hardware is
involved: such evidence proves nothing but that a verifier works.
"""

from prem_core.enclave.evidence.nvidia import NvidiaEvidence, NvidiaFault, NvidiaIssuer
from prem_core.enclave.evidence.snp import SnpEvidence, SnpFault, SnpIssuer
from prem_core.enclave.evidence.tdx import TdxEvidence, TdxFault, TdxIssuer

__all__ = [
    "NvidiaEvidence",
    "NvidiaFault",
    "NvidiaIssuer",
    "SnpEvidence",
    "SnpFault",
    "SnpIssuer",
    "TdxEvidence",
    "TdxFault",
    "TdxIssuer",
]
