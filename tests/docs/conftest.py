from __future__ import annotations

import pytest
from support.documentation import ROOT

from prem_core.enclave import LocalEnclave


@pytest.fixture
def as_a_reader(enclave: LocalEnclave, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the pages take for granted: an API key in the environment, and the project's root to stand in."""
    monkeypatch.setenv("PREM_API_KEY", enclave.api_key)
    monkeypatch.setenv("PREM_GATEWAY_URL", enclave.gateway_url)
    monkeypatch.setenv("PREM_ENCLAVE_URL", enclave.enclave_url)
    monkeypatch.chdir(ROOT)
