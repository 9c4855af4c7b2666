"""Attestation over the wire, with both clients and a real embedded enclave: what is sent, refused, and remembered."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_args

import httpx
import pytest
from support.attestation import wire_faults
from support.clock import Clock
from support.fake_gateway import PARAMS

from prem_core import (
    AttestationWarning,
    ConfigurationError,
    PremClient,
    PremError,
    generate_encryption_keys,
)
from prem_core._protocol.attestation import settings as attestation_settings
from prem_core._protocol.attestation.collateral_cache import COLLATERAL
from prem_core._protocol.attestation.settings import VERDICTS
from prem_core._protocol.nonce_reuse import probe_recording
from prem_core.attestation import (
    VENDOR_ROOTS,
    AllOf,
    AnyOf,
    AttestationError,
    AttestationReport,
    CollateralSources,
    CollateralUnavailableError,
    KeyNotBoundError,
    MeasurementAllowList,
    MeasurementNotAllowedError,
    MissingGpuTokenError,
    NonceMismatchError,
    NotAttestedError,
    PremPolicy,
    RevokedError,
    TrustedRoots,
    UnknownRootError,
    UnsafeNoOp,
)
from prem_core.enclave import Exchange, LocalEnclave
from prem_core.enclave.attester import Technology

CHAT = "/rvenc/chat/completions"
TECHNOLOGIES = get_args(Technology)
FAULTS = [(each, fault) for each in TECHNOLOGIES for fault in wire_faults(each)]


class Attested:
    """An embedded enclave and what its gateway saw."""

    def __init__(self, technology: Technology, **options: Any) -> None:
        self.exchanges: list[Exchange] = []
        self.enclave = LocalEnclave(
            attest=technology, respond=lambda request: "Hello", on_exchange=self.exchanges.append, **options
        )

    @property
    def paths(self) -> list[str]:
        return [each.path for each in self.exchanges]

    def options(self, **values: Any) -> dict[str, Any]:
        roots = self.enclave.attestation_roots
        given = {"attestation": "require", "attestation_roots": roots, "max_retries": 0, **values}
        return {**self.enclave.client_options, **given}


@pytest.fixture(scope="module")
def machines() -> Iterator[dict[Technology, Attested]]:
    """One enclave of each technology."""
    made = {each: Attested(each) for each in TECHNOLOGIES}
    with contextlib.ExitStack() as stack:
        for each in made.values():
            stack.enter_context(each.enclave)
        yield made


@pytest.fixture(params=TECHNOLOGIES)
def technology(request: Any) -> Any:
    return request.param


@pytest.fixture
def machine(machines: dict[Technology, Attested], technology: Technology) -> Attested:
    """An enclave without faults, whose client remembers nothing of earlier tests."""
    machine = machines[technology]
    machine.enclave.attestation_faults = ()
    machine.exchanges.clear()
    return machine


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    VERDICTS.clear()
    COLLATERAL.clear()
    monkeypatch.setattr(attestation_settings, "_warned", False)


@pytest.fixture
def connect(api: Any) -> Iterator[Callable[..., Any]]:
    """Make clients; they are closed at the end of the test."""
    with contextlib.ExitStack() as stack:

        def make(**options: Any) -> Any:
            client = api.client_class(**options)
            stack.callback(api.close, client)
            return client

        yield make


def with_clock(client: Any) -> Clock:
    """Let a clock judge the age of the client's verdicts, and return it."""
    clock = Clock(time.time())
    requester = client._requester
    requester._settings = dataclasses.replace(requester._settings, wall_clock=clock)
    return clock


# --- the verdict ----------------------------------------------------------------------------------------


def test_require_verifies_before_the_prompt_is_sent(api: Any, connect: Any, machine: Attested) -> None:
    completion = api.create(connect(**machine.options()))
    assert completion.choices[0].message.content == "Hello"
    assert machine.paths[-1] == CHAT
    assert [path.rpartition("/")[0] for path in machine.paths[:-1]] == ["/attestation"] * 3
    assert completion.prem.attested
    assert not completion.prem.key_bound


def test_require_verifies_before_a_stream_is_asked_for(api: Any, connect: Any, machine: Attested) -> None:
    client = connect(**machine.options())
    assert api.stream(client)
    assert machine.paths[-1] == CHAT
    machine.enclave.attestation_faults = ["debug"]
    VERDICTS.clear()
    machine.exchanges.clear()
    with pytest.raises(AttestationError):
        api.stream(client)
    assert CHAT not in machine.paths


def test_without_attestation_nothing_is_asked_and_nothing_is_claimed(
    api: Any, connect: Any, machine: Attested
) -> None:
    completion = api.create(connect(**machine.options(attestation=None)))
    assert machine.paths == [CHAT]
    assert (completion.prem.attested, completion.prem.key_bound) == (False, False)


@pytest.mark.parametrize("technology", ["sev-snp"])
def test_each_attestation_has_nonces_of_its_own(machine: Attested) -> None:
    with PremClient(**machine.options()) as client:
        evidence = [client._requester.attest("m", verify=False) for _ in range(2)]
    nonces = {nonce for each in evidence for nonce in (each.nonce, each.gpu_nonce)}
    assert sorted(map(len, nonces)) == [32, 32, 64, 64]


def attested(api: Any, client: Any) -> AttestationReport:
    report = client.attest("m")
    return api._run(report) if hasattr(api, "_run") else report


@pytest.mark.parametrize(("technology", "fault"), FAULTS)
def test_require_refuses_each_fault_and_sends_no_prompt(
    api: Any, connect: Any, machine: Attested, technology: Technology, fault: str
) -> None:
    machine.enclave.attestation_faults = [fault]
    with pytest.raises(PremError) as refused:
        api.create(connect(**machine.options()))
    assert type(refused.value) is wire_faults(technology)[fault]
    assert CHAT not in machine.paths


@pytest.mark.parametrize(("technology", "fault"), FAULTS)
def test_warn_names_the_failed_check_of_each_fault_and_continues(
    api: Any, connect: Any, machine: Attested, technology: Technology, fault: str
) -> None:
    machine.enclave.attestation_faults = [fault]
    client = connect(**machine.options(attestation="warn"))
    with pytest.warns(AttestationWarning) as caught:
        completion = api.create(client)
    error = wire_faults(technology)[fault]
    named = "at the check '" if issubclass(error, AttestationError) else "at fetching the evidence"
    assert named in str(caught[0].message)
    assert completion.choices[0].message.content == "Hello"
    assert not completion.prem.attested


@pytest.mark.parametrize("technology", ["sev-snp"])
def test_warn_warns_once_and_does_not_repeat_the_attestation_for_each_request(
    api: Any, connect: Any, machine: Attested
) -> None:
    machine.enclave.attestation_faults = ["debug"]
    client = connect(**machine.options(attestation="warn"))
    with pytest.warns(AttestationWarning):
        api.create(client)
    machine.exchanges.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        api.create(client)
    assert machine.paths == [CHAT]


@pytest.mark.parametrize("technology", ["sev-snp"])
def test_a_verdict_that_failed_under_warn_is_not_accepted_by_require(
    api: Any, connect: Any, machine: Attested
) -> None:
    machine.enclave.attestation_faults = ["debug"]
    with pytest.warns(AttestationWarning):
        api.create(connect(**machine.options(attestation="warn")))
    with pytest.raises(AttestationError):
        api.create(connect(**machine.options()))


@pytest.mark.parametrize("technology", ["sev-snp"])
def test_a_server_error_is_retried(api: Any, connect: Any, machine: Attested) -> None:
    machine.enclave.attestation_faults = ["unavailable_once"]
    client = connect(**machine.options(max_retries=1))
    assert api.create(client).prem.attested
    assert machine.paths.count("/attestation/modules") == 2


@pytest.mark.parametrize("technology", ["sev-snp"])
def test_a_model_without_gpus_is_accepted_and_the_report_states_it(
    api: Any, connect: Any, machine: Attested
) -> None:
    machine.enclave.attestation_faults = ["no_gpu"]
    report = attested(api, connect(**machine.options()))
    assert report.gpus == ()
    assert "names no GPU" in report.not_proven[0]


@pytest.mark.parametrize("technology", ["sev-snp"])
@pytest.mark.parametrize("faults", [["no_gpu"], []])
def test_a_policy_can_require_a_number_of_gpus(
    api: Any, connect: Any, machine: Attested, faults: list[str]
) -> None:
    machine.enclave.attestation_faults = faults
    for policy in (PremPolicy(minimum_gpus=3), AllOf(UnsafeNoOp(), PremPolicy(minimum_gpus=3))):
        with pytest.raises(
            MissingGpuTokenError, match=r"\d GPUs are attested; the policy requires at least 3"
        ):
            api.create(connect(**machine.options(attestation_policy=policy)))
    assert CHAT not in machine.paths
    enough = AnyOf(PremPolicy(minimum_gpus=3), PremPolicy(minimum_gpus=0 if faults else 2))
    assert api.create(connect(**machine.options(attestation_policy=enough))).prem.attested


def test_the_report_has_the_checks_of_the_cpu_and_of_the_gpus(
    api: Any, connect: Any, machine: Attested
) -> None:
    report = attested(api, connect(**machine.options(attestation="off")))
    assert {"root", "nonce", "GPU tokens"} <= {check.name for check in report.checks}
    assert [gpu.name for gpu in report.gpus] == ["GPU-0", "GPU-1"]
    assert report.not_proven[0].startswith("The roots that were trusted are not the vendors' own")


@pytest.mark.parametrize("technology", ["sev-snp"])
def test_require_verifies_before_a_recording_is_sent(machine: Attested) -> None:
    with PremClient(**machine.options()) as client:
        file = ("a.wav", probe_recording())
        assert client.audio.transcriptions.create(model="w", file=file).prem.attested
        machine.enclave.attestation_faults = ["debug"]
        VERDICTS.clear()
        machine.exchanges.clear()
        with pytest.raises(AttestationError):
            client.audio.transcriptions.create(model="w", file=file)
    assert not any(path.startswith("/rvenc") for path in machine.paths)


# --- key binding ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("binding", ["sha512", "sha256"])
def test_evidence_that_commits_to_the_key_is_reported_as_bound(
    api: Any, connect: Any, technology: Technology, binding: Any
) -> None:
    machine = Attested(technology, attestation_binding=binding)
    with machine.enclave:
        completion = api.create(connect(**machine.options(require_key_binding=True)))
    assert completion.prem.key_bound


def test_required_key_binding_refuses_prems_documented_reports(
    api: Any, connect: Any, machine: Attested
) -> None:
    with pytest.raises(KeyNotBoundError):
        api.create(connect(**machine.options(require_key_binding=True)))
    assert CHAT not in machine.paths


@pytest.mark.parametrize("technology", ["sev-snp"])
def test_evidence_that_commits_to_another_key_is_refused_also_for_a_pinned_key(
    api: Any, connect: Any, technology: Technology
) -> None:
    machine = Attested(technology, attestation_binding="sha256")
    pinned = LocalEnclave().public_key
    with machine.enclave, pytest.raises(KeyNotBoundError):
        api.create(connect(**machine.options(enclave_public_key=pinned)))


@pytest.mark.parametrize("technology", ["sev-snp"])
def test_with_encryption_keys_binding_cannot_be_shown(api: Any, connect: Any, machine: Attested) -> None:
    keys = generate_encryption_keys(enclave_url=machine.enclave.enclave_url)
    completion = api.create(connect(**machine.options(encryption_keys=keys)))
    assert (completion.prem.attested, completion.prem.key_bound) == (True, False)
    with pytest.raises(KeyNotBoundError, match="no public key was given"):
        api.create(connect(**machine.options(encryption_keys=keys, require_key_binding=True)))


# --- what is remembered ---------------------------------------------------------------------------------


def test_a_verdict_counts_for_later_requests(api: Any, connect: Any, machine: Attested) -> None:
    client = connect(**machine.options())
    api.create(client)
    machine.exchanges.clear()
    assert api.create(client).prem.attested
    assert machine.paths == [CHAT]


@pytest.mark.parametrize("technology", ["sev-snp"])
def test_a_verdict_counts_for_other_clients_with_the_same_roots_and_policy_only(
    api: Any, connect: Any, machine: Attested
) -> None:
    api.create(connect(**machine.options()))
    machine.exchanges.clear()
    api.create(connect(**machine.options()))
    assert machine.paths == [CHAT]
    with pytest.raises(MeasurementNotAllowedError):
        api.create(connect(**machine.options(attestation_policy=MeasurementAllowList(["00" * 48]))))


@pytest.mark.parametrize("technology", ["sev-snp"])
def test_each_model_is_attested(api: Any, connect: Any, machine: Attested) -> None:
    client = connect(**machine.options())
    api.create(client, model="one")
    api.create(client, model="two")
    assert machine.paths.count("/attestation/modules") == 2


@pytest.mark.parametrize("technology", ["sev-snp"])
def test_the_attestation_is_repeated_after_its_maximum_age(api: Any, connect: Any, machine: Attested) -> None:
    client = connect(**machine.options(attestation_max_age=600))
    clock = with_clock(client)
    for seconds, attestations in ((0, 1), (599, 1), (2, 2)):
        clock.now += seconds
        api.create(client)
        assert machine.paths.count("/attestation/modules") == attestations


@pytest.mark.parametrize("technology", ["sev-snp"])
def test_the_attestation_is_repeated_when_a_token_expires(api: Any, connect: Any, machine: Attested) -> None:
    client = connect(**machine.options(attestation_max_age=1e6))
    clock = with_clock(client)
    api.create(client)
    clock.now += 3601  # NVIDIA's tokens are valid for an hour
    with pytest.raises(AttestationError):  # the enclave's own clock has not moved
        api.create(client)
    assert machine.paths.count("/attestation/modules") == 2


@pytest.mark.parametrize("technology", ["sev-snp"])
def test_the_attestation_is_repeated_after_a_key_rotation(api: Any, connect: Any, machine: Attested) -> None:
    client = connect(**machine.options())
    before = api.create(client).prem
    machine.enclave.rotate_key()
    after = api.create(client).prem
    assert before.key_fingerprint != after.key_fingerprint
    assert after.attested
    assert machine.paths.count("/attestation/modules") == 2


@pytest.mark.parametrize("technology", ["sev-snp"])
def test_after_a_key_rotation_a_failing_attestation_keeps_the_prompt_from_the_new_key(
    api: Any, connect: Any, machine: Attested
) -> None:
    client = connect(**machine.options())
    api.create(client)
    machine.enclave.rotate_key()
    machine.enclave.attestation_faults = ["debug"]
    machine.exchanges.clear()
    with pytest.raises(AttestationError):
        api.create(client)
    assert machine.paths.count(CHAT) == 1  # sealed to the old key, which no machine can open
    assert machine.exchanges[0].path == CHAT


@pytest.mark.parametrize("technology", ["sev-snp"])
def test_requests_that_start_together_share_one_attestation(
    machine: Attested, connect: Any, api: Any
) -> None:
    client = connect(**machine.options(max_concurrency=8))
    if hasattr(api, "_run"):

        async def together() -> None:
            await asyncio.gather(*(client.chat.completions.create(**PARAMS) for _ in range(8)))

        api._run(together())
    else:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: client.chat.completions.create(**PARAMS), range(8)))
    assert machine.paths.count("/attestation/modules") == 1


@pytest.mark.parametrize("technology", ["sev-snp"])
def test_the_attestation_comes_before_the_probe(api: Any, connect: Any, machine: Attested) -> None:
    machine.enclave.attestation_faults = ["debug"]
    with pytest.raises(AttestationError):
        api.create(connect(**machine.options(nonce_reuse="error")))
    assert CHAT not in machine.paths


# --- collateral -----------------------------------------------------------------------------------------


def test_collateral_is_fetched_once(api: Any, connect: Any, machine: Attested) -> None:
    client = connect(**machine.options())
    attested(api, client)
    machine.enclave.attestation_faults = ["collateral_unavailable"]
    assert attested(api, client).checks


class HeaderAuth(httpx.Auth):
    """The authentication of a caller's own client."""

    def auth_flow(self, request: httpx.Request) -> Any:
        request.headers["x-auth"] = "1"
        yield request


def test_the_vendors_services_get_neither_the_api_key_nor_what_a_callers_client_adds(
    api: Any, connect: Any, machine: Attested
) -> None:
    sent: list[httpx.Request] = []

    async def record(request: httpx.Request) -> None:
        sent.append(request)

    http = api.http_class(
        headers={"x-internal": "1"},
        cookies={"session": "1"},
        params={"q": "1"},
        auth=HeaderAuth(),
        event_hooks={"request": [record if hasattr(api, "_run") else sent.append]},
    )
    attested(api, connect(**machine.options(http_client=http)))
    api.close_http(http)
    port = httpx.URL(machine.enclave.enclave_url).port
    to_vendors = [each for each in sent if each.url.port == port and each.url.path != "/publicKey"]
    assert len(to_vendors) in (4, 5)
    for each in to_vendors:
        assert not {"authorization", "cookie", "x-internal", "x-auth"} & set(each.headers)
        assert "q" not in each.url.params


@pytest.mark.parametrize("technology", ["sev-snp"])
def test_the_cache_folder_serves_a_new_process(
    api: Any, connect: Any, machine: Attested, tmp_path: Any
) -> None:
    folder = tmp_path / "cache"
    machine.enclave.attestation_faults = ["no_gpu"]
    attested(api, connect(**machine.options(attestation_cache_dir=folder)))
    assert all(each.stat().st_mode & 0o077 == 0 for each in folder.iterdir())
    COLLATERAL.clear()  # as in a new process
    machine.enclave.attestation_faults = ["no_gpu", "collateral_unavailable"]
    assert attested(api, connect(**machine.options(attestation_cache_dir=folder))).checks


@pytest.mark.parametrize("technology", ["sev-snp"])
def test_nvidias_keys_are_never_read_from_the_cache_folder(
    api: Any, connect: Any, machine: Attested, tmp_path: Any
) -> None:
    attested(api, connect(**machine.options(attestation_cache_dir=tmp_path)))
    assert {each.name.partition("-")[0] for each in tmp_path.iterdir()} == {"amd"}


@pytest.mark.parametrize("technology", ["sev-snp"])
@pytest.mark.parametrize("content", [b"", b"not a certificate"])
def test_a_damaged_file_of_the_cache_folder_is_fetched_again(
    api: Any, connect: Any, machine: Attested, tmp_path: Any, content: bytes
) -> None:
    client = connect(**machine.options(attestation_cache_dir=tmp_path))
    attested(api, client)
    for file in tmp_path.iterdir():
        file.write_bytes(content)
    COLLATERAL.clear()
    assert attested(api, client).checks
    assert all(file.stat().st_size > 100 for file in tmp_path.iterdir())


@pytest.mark.parametrize("technology", ["sev-snp"])
def test_a_cached_document_that_no_longer_fits_is_fetched_again(
    api: Any, connect: Any, machine: Attested, tmp_path: Any
) -> None:
    client = connect(**machine.options(attestation_cache_dir=tmp_path))
    attested(api, client)
    other = Attested("sev-snp")
    with other.enclave:
        # The same names under another root, as after an exchange of the machine's root.
        attested(api, connect(**other.options(attestation_cache_dir=tmp_path)))


@pytest.mark.parametrize("technology", ["sev-snp"])
def test_a_revocation_list_is_fetched_again_after_a_day(api: Any, connect: Any, machine: Attested) -> None:
    machine.enclave.attestation_faults = ["no_gpu"]
    client = connect(**machine.options())
    clock = with_clock(client)
    attested(api, client)
    machine.enclave.attestation_faults = ["no_gpu", "revoked"]
    attested(api, client)  # with the list of today
    clock.now += 25 * 3600
    with pytest.raises(RevokedError):
        attested(api, client)


@pytest.mark.parametrize("technology", ["sev-snp"])
def test_a_revocation_list_that_cannot_be_refreshed_is_used_as_long_as_it_is_valid(
    api: Any, connect: Any, machine: Attested
) -> None:
    machine.enclave.attestation_faults = ["no_gpu"]
    client = connect(**machine.options())
    clock = with_clock(client)
    attested(api, client)
    machine.enclave.attestation_faults = ["no_gpu", "collateral_unavailable"]
    clock.now += 25 * 3600
    attested(api, client)
    clock.now += 30 * 24 * 3600
    with pytest.raises(CollateralUnavailableError):
        attested(api, client)


def test_given_collateral_is_used_and_nothing_is_fetched(
    api: Any, connect: Any, machine: Attested, tmp_path: Any
) -> None:
    with PremClient(**machine.options()) as client:
        client._requester.attest("m", verify=False).save(tmp_path)
    machine.enclave.attestation_faults = ["collateral_unavailable"]
    COLLATERAL.clear()
    assert api.create(connect(**machine.options(attestation_collateral=tmp_path))).prem.attested


def test_a_file_that_the_given_collateral_lacks_is_an_error_that_names_it(
    api: Any, connect: Any, machine: Attested, tmp_path: Any
) -> None:
    with pytest.raises(CollateralUnavailableError, match="attestation_collateral has no readable file"):
        api.create(connect(**machine.options(attestation_collateral=tmp_path)))


# --- roots ----------------------------------------------------------------------------------------------


def test_the_embedded_enclave_is_not_trusted_by_the_vendors_roots(
    api: Any, connect: Any, machine: Attested
) -> None:
    # The vendors' pins, with the embedded enclave's services: nothing on another machine is asked.
    roots = dataclasses.replace(VENDOR_ROOTS, sources=machine.enclave.attestation_roots.sources)
    with pytest.raises(UnknownRootError):
        api.create(connect(**machine.options(attestation_roots=roots)))
    assert CHAT not in machine.paths


def test_an_enclave_that_does_not_attest_itself_is_refused(api: Any, connect: Any) -> None:
    with LocalEnclave(attest=None) as prem:
        options = {**prem.client_options, "attestation": "require", "attestation_roots": TrustedRoots()}
        with pytest.raises(NotAttestedError):
            api.create(connect(**options))
        with pytest.raises(RuntimeError, match="attest=None"):
            _ = prem.attestation_roots


@pytest.mark.parametrize(
    "url", ["http://kds.example", "ftp://127.0.0.1", "file:///etc/passwd", "", "http://127.0.0.1.example"]
)
def test_collateral_is_fetched_over_https_or_from_this_machine_only(url: str) -> None:
    with pytest.raises(ConfigurationError, match="https only"):
        CollateralSources(amd=(url,))


# --- options --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("attestation", "always", "attestation must be 'off', 'warn' or 'require'"),
        ("attestation_policy", 1, "attestation_policy must be an object"),
        ("attestation_policy", MeasurementAllowList, "attestation_policy must be an object"),
        ("attestation_roots", {}, "attestation_roots must be"),
        ("attestation_max_age", 0, "attestation_max_age must be a number above 0"),
        ("require_key_binding", 1, "require_key_binding must be True or False"),
        ("attestation_cache_dir", 1, "attestation_cache_dir must be the path of a folder"),
        ("attestation_collateral", "/no/such/folder", "is not a folder"),
    ],
)
@pytest.mark.parametrize("technology", ["sev-snp"])
def test_an_invalid_option_is_an_error_that_names_it(
    connect: Any, machine: Attested, option: str, value: Any, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        connect(**machine.options(**{option: value}))


@pytest.mark.parametrize("technology", ["sev-snp"])
def test_a_policy_without_attestation_is_an_error(connect: Any, machine: Attested) -> None:
    with pytest.raises(ConfigurationError, match="attestation_policy has no effect"):
        connect(**machine.options(attestation="off", attestation_policy=MeasurementAllowList(["00" * 48])))


@pytest.mark.parametrize("technology", ["sev-snp"])
def test_a_missing_extra_is_an_error_that_names_the_installation(
    connect: Any, machine: Attested, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attestation_settings.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r'pip install "prem-encrypted\[attestation\]"'):
        connect(**machine.options())


@pytest.mark.parametrize("technology", ["sev-snp"])
def test_the_environment_sets_the_mode(
    api: Any, connect: Any, machine: Attested, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREM_ATTESTATION", "require")
    machine.enclave.attestation_faults = ["wrong_nonce"]
    with pytest.raises(NonceMismatchError):
        api.create(connect(**machine.options(attestation=None)))
