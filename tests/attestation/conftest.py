"""Issuers of evidence with roots of their own, made once."""

from __future__ import annotations

from datetime import datetime

import pytest
from support.attestation import NOW

from prem_core.enclave.evidence import NvidiaIssuer, SnpIssuer, TdxIssuer


@pytest.fixture(scope="session")
def now() -> datetime:
    """The clock of the verifiers."""
    return NOW


@pytest.fixture(scope="session")
def snp() -> SnpIssuer:
    return SnpIssuer(NOW)


@pytest.fixture(scope="session")
def tdx() -> TdxIssuer:
    return TdxIssuer(NOW)


@pytest.fixture(scope="session")
def nvidia() -> NvidiaIssuer:
    return NvidiaIssuer()
