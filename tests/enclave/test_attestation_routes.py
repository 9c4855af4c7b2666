"""The routes of attestation of the embedded enclave: authentication, nonces, and faults on request."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from prem_core import ConfigurationError
from prem_core.enclave import LocalEnclave

MODULES = "/attestation/modules"


@pytest.fixture(scope="module")
def prem() -> Iterator[LocalEnclave]:
    with LocalEnclave() as running:
        yield running


def get(prem: LocalEnclave, path: str, *, key: str | None = None, **query: str) -> httpx.Response:
    headers = {"authorization": f"Bearer {prem.api_key if key is None else key}"}
    return httpx.get(prem.gateway_url + path, params=query, headers=headers, trust_env=False)


def test_the_modules_name_the_cpu_and_the_gpus(prem: LocalEnclave) -> None:
    assert get(prem, MODULES, model="m").json() == {"cpu": "Sev", "gpu": "Nvidia"}


@pytest.mark.parametrize("path", [MODULES, "/attestation/sev", "/attestation/nvidia"])
def test_evidence_needs_the_api_key(prem: LocalEnclave, path: str) -> None:
    assert get(prem, path, key="sk_test_wrong").status_code == 401
    # Directly at the enclave, even with the key: it answers only what the gateway forwards.
    direct = httpx.get(prem.enclave_url + path, headers={"authorization": f"Bearer {prem.api_key}"})
    assert direct.status_code == 403


@pytest.mark.parametrize(("path", "size"), [("/attestation/sev", 64), ("/attestation/nvidia", 32)])
@pytest.mark.parametrize("change", ["short", "long", "text", "missing"])
def test_a_nonce_of_another_form_is_rejected(prem: LocalEnclave, path: str, size: int, change: str) -> None:
    nonces = {"short": "00" * (size - 1), "long": "00" * (size + 1), "text": "nonce", "missing": ""}
    assert get(prem, path, nonce="00" * size).status_code == 200
    rejected = get(prem, path, nonce=nonces[change])
    assert (rejected.status_code, rejected.json()["validator"].keys()) == (400, {"nonce"})


def test_a_machine_has_only_its_own_kind_of_report(prem: LocalEnclave) -> None:
    assert get(prem, "/attestation/tdx", nonce="00" * 64).status_code == 404


def test_without_attestation_there_is_no_evidence() -> None:
    with LocalEnclave(attest=None) as prem:
        assert get(prem, MODULES).status_code == 404
        with pytest.raises(RuntimeError, match="attest=None"):
            prem.attestation_faults = ["debug"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attest": "sgx"}, 'attest must be "sev-snp", "tdx" or None'),
        ({"attestation_binding": "md5"}, 'attestation_binding must be "nonce"'),
        ({"attestation_faults": ["tired"]}, "attestation_faults must be a list of: bad_signature, "),
        ({"attestation_faults": "debug"}, "attestation_faults must be a list of"),
        ({"attest": "tdx", "attestation_faults": ["vmpl"]}, "attestation_faults must be a list of"),
    ],
)
def test_an_invalid_option_is_an_error(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        LocalEnclave(**options)  # type: ignore[arg-type]


def test_the_roots_stay_the_same_over_a_restart_and_differ_between_enclaves() -> None:
    prem = LocalEnclave(attest="tdx")
    with pytest.raises(RuntimeError, match="not running"):
        _ = prem.attestation_roots
    with prem:
        first = prem.attestation_roots
        assert hash(first) == hash(prem.attestation_roots)
    with prem:
        assert prem.attestation_roots.intel == first.intel
    with LocalEnclave(attest="tdx") as other:
        assert other.attestation_roots.intel != first.intel
