"""The flow of attestation without a network: which source is asked, what is refused, and what bounds an answer."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from support.clock import Clock

from prem_core import (
    APIConnectionError,
    APITimeoutError,
    AuthenticationError,
    InternalServerError,
    PremError,
    RateLimitError,
)
from prem_core._protocol.attestation.collateral_cache import COLLATERAL
from prem_core._protocol.attestation.flow import collected, verified
from prem_core._protocol.attestation.settings import VERDICTS, Attestation, Verdict
from prem_core._protocol.retry import RetryPolicy
from prem_core._protocol.steps import FlowSettings, Read, ResponseHead, RunInThread, Send, Sleep
from prem_core.attestation import (
    AttestationReport,
    CollateralSources,
    CollateralUnavailableError,
    MalformedEvidenceError,
    NotAttestedError,
    SnpTcb,
    TrustedRoots,
)
from prem_core.enclave.evidence import SnpIssuer
from prem_core.enclave.evidence.snp import SnpGuest

SOURCES = CollateralSources(amd=("https://mirror.example", "https://amd.example"))

#: What answers a request: a status and a body, an error of the transport, or a function that returns one of them.
Answer = Any


class Wire:
    """Performs the steps of one flow. Requests are answered from a table by their path, or else by the machine."""

    def __init__(self, guest: SnpGuest | None = None) -> None:
        self.now = datetime.now(UTC)
        self.issuer = SnpIssuer(self.now, guest=guest)
        self.answers: dict[str, Answer] = {}
        self.sent: list[Send] = []
        self.slept: list[float] = []
        self.clock = Clock()
        self.seconds_per_read = 0.0
        self._latest: Any = None

    def settings(self, **values: Any) -> FlowSettings:
        roots = TrustedRoots(amd=self.issuer.roots.amd, sources=SOURCES)
        attestation = Attestation(mode="require", roots=roots)
        defaults = {
            "retry": RetryPolicy(0),
            "max_buffer_size": 1000,
            "gateway_url": "https://gateway.example",
        }
        return FlowSettings(**{**defaults, "attestation": attestation, "clock": self.clock, **values})

    def run(self, flow: Callable[..., Any] = verified, **values: Any) -> Any:
        steps = flow("m", None, self.settings(**values))
        outcome: Any = None
        data: Iterator[bytes] = iter(())
        step = next(steps)
        while True:
            failure: PremError | None = None
            match step:
                case Send():
                    self.sent.append(step)
                    answer = self._answer(step)
                    if isinstance(answer, PremError):
                        failure = answer
                    else:
                        status, body = answer
                        data = iter([body] if isinstance(body, bytes) else body)
                        outcome = ResponseHead(status, {})
                case Read():
                    self.clock.now += self.seconds_per_read
                    outcome = next(data, b"")
                case RunInThread(call):
                    try:
                        outcome = call()
                    except PremError as error:
                        failure = error
                case Sleep(seconds):
                    self.slept.append(seconds)
                case _:
                    return step
            step = steps.send(outcome) if failure is None else steps.throw(failure)

    def _answer(self, send: Send) -> Answer:
        for name, answer in self.answers.items():
            if send.path.endswith(name):
                return answer(send) if callable(answer) else answer
        return self.machine(send)

    def machine(self, send: Send) -> tuple[int, bytes]:
        """The answer of the machine, and of the vendor's service."""
        if send.path.endswith("/modules"):
            return 200, b'{"cpu": "Sev", "gpu": null}'
        if send.path.endswith("/sev"):
            self._latest = self.issuer.evidence(bytes.fromhex(send.query["nonce"]), now=self.now)
            return 200, self._latest.report
        if send.path.endswith("/cert_chain"):
            return 200, self._latest.chain
        return 200, self._latest.crl if send.path.endswith("/crl") else self._latest.vcek

    @property
    def hosts(self) -> list[str]:
        """The hosts of the vendors' services that were asked."""
        return [send.path.split("/")[2] for send in self.sent if send.party == "collateral"]


@pytest.fixture
def wire() -> Wire:
    COLLATERAL.clear()
    VERDICTS.clear()
    return Wire()


# --- the gateway's answers ------------------------------------------------------------------------------


def test_a_nonce_is_64_bytes_in_upper_case_hex_and_the_model_is_named(wire: Wire) -> None:
    wire.run()
    report = next(send for send in wire.sent if send.path == "/attestation/sev")
    assert report.query["model"] == "m"
    assert len(bytes.fromhex(report.query["nonce"])) == 64
    assert report.query["nonce"] == report.query["nonce"].upper()


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", NotAttestedError),
        (b'{"model": "m", "data": []}', NotAttestedError),
        (b'{"cpu": null, "gpu": "Nvidia"}', NotAttestedError),
        (b"[]", MalformedEvidenceError),
        (b"<html>", MalformedEvidenceError),
        (b"{}", MalformedEvidenceError),
        (b'{"cpu": "Sgx"}', MalformedEvidenceError),
        (b'{"cpu": 1}', MalformedEvidenceError),
        (b'{"cpu": "Sev", "gpu": "Amd"}', MalformedEvidenceError),
        (b'{"failed": true, "error": "no"}', MalformedEvidenceError),
        (b"[" * 60_000, MalformedEvidenceError),
    ],
)
def test_a_list_of_modules_that_names_no_supported_cpu_is_refused(
    wire: Wire, body: bytes, error: type[PremError]
) -> None:
    wire.answers["/modules"] = (200, body)
    with pytest.raises(error):
        wire.run()
    assert len(wire.sent) == 1


@pytest.mark.parametrize("data", [{"cpu": "Sev", "gpu": None}, {"cpu": "SEV"}])
def test_a_list_of_modules_may_come_in_the_envelope(wire: Wire, data: dict[str, Any]) -> None:
    wire.answers["/modules"] = (200, json.dumps({"status": 200, "data": data}).encode())
    assert wire.run().technology == "sev-snp"


@pytest.mark.parametrize("path", ["/modules", "/sev"])
@pytest.mark.parametrize(
    ("status", "error"),
    [(404, NotAttestedError), (401, AuthenticationError), (429, RateLimitError), (503, InternalServerError)],
)
def test_the_status_of_the_gateway_decides_the_error(
    wire: Wire, path: str, status: int, error: type[PremError]
) -> None:
    wire.answers[path] = (status, b'{"error": "no"}')
    with pytest.raises(error):
        wire.run()


def test_a_server_error_is_retried_with_the_usual_delay(wire: Wire) -> None:
    failures = iter([(503, b""), APIConnectionError("gateway: the connection broke")])
    wire.answers["/sev"] = lambda send: next(failures, None) or wire.machine(send)
    assert wire.run(retry=RetryPolicy(2, rng=lambda: 0.0)).technology == "sev-snp"
    assert wire.slept == [0.5, 1.0]


@pytest.mark.parametrize("path", ["/modules", "/sev", "/cert_chain"])
def test_a_response_without_end_is_not_read_to_its_end(wire: Wire, path: str) -> None:
    read = 0

    def endless() -> Iterator[bytes]:
        nonlocal read
        while True:
            read += 1 << 16
            yield bytes(1 << 16)

    wire.answers[path] = lambda send: (200, endless())
    with pytest.raises((MalformedEvidenceError, CollateralUnavailableError)):
        wire.run()
    assert read < 10 << 20


@pytest.mark.parametrize(
    ("path", "error"), [("/sev", APITimeoutError), ("/cert_chain", CollateralUnavailableError)]
)
def test_a_response_that_comes_byte_by_byte_times_out(wire: Wire, path: str, error: type[PremError]) -> None:
    wire.seconds_per_read = 9.0
    wire.answers[path] = (200, [b"x"] * 100)
    with pytest.raises(error, match="took longer than 30 s"):
        wire.run()


# --- the vendors' services ------------------------------------------------------------------------------


def test_the_first_source_that_answers_is_used(wire: Wire) -> None:
    wire.run()
    assert wire.hosts == ["mirror.example"] * 3


@pytest.mark.parametrize(
    "answer",
    [(404, b""), (503, b""), (302, b""), (200, b"<html>"), (200, b""), APIConnectionError("refused")],
)
def test_if_a_mirror_fails_the_vendors_own_service_is_asked(wire: Wire, answer: Answer) -> None:
    mirror: Callable[[Send], Answer] = lambda send: (  # noqa: E731
        answer if send.path.startswith("https://mirror.example") else wire.machine(send)
    )
    wire.answers = {"/cert_chain": mirror, "/crl": mirror}
    assert wire.run().revocation_checked
    assert wire.hosts == ["mirror.example", "mirror.example", "amd.example", "mirror.example", "amd.example"]


def test_the_chips_certificate_is_asked_for_by_chip_and_firmware_versions(wire: Wire) -> None:
    wire.run()
    vcek = next(send for send in wire.sent if send.party == "collateral")
    assert vcek.path == f"https://mirror.example/vcek/v1/Genoa/{bytes(range(1, 65)).hex()}"
    assert vcek.query == {"blSPL": "10", "teeSPL": "00", "snpSPL": "23", "ucodeSPL": "84"}


def test_turin_has_short_chip_identifiers_and_one_more_firmware_version() -> None:
    COLLATERAL.clear()
    wire = Wire(SnpGuest(generation="Turin", tcb=SnpTcb(fmc=1, bootloader=2, tee=3, snp=4, microcode=80)))
    assert wire.run().product == "Turin"
    vcek = next(send for send in wire.sent if send.party == "collateral")
    assert vcek.path == f"https://mirror.example/vcek/v1/Turin/{bytes(range(1, 9)).hex()}"
    assert vcek.query["fmcSPL"] == "01"


def test_a_report_that_does_not_name_its_generation_is_tried_with_each() -> None:
    COLLATERAL.clear()
    wire = Wire(SnpGuest(version=2))
    wire.answers["/cert_chain"] = lambda send: (404, b"") if "/Milan/" in send.path else wire.machine(send)
    assert wire.run().product == "Genoa"


def test_without_a_vendors_document_the_error_names_it(wire: Wire) -> None:
    wire.answers["/crl"] = (404, b"")
    with pytest.raises(CollateralUnavailableError, match="AMD's revocation list could not be fetched"):
        wire.run()


def test_collected_evidence_can_be_saved_and_verified_again(wire: Wire, tmp_path: Any) -> None:
    evidence = wire.run(collected)
    evidence.save(tmp_path / "kept")
    again = type(evidence).load(tmp_path / "kept")
    assert again == evidence
    assert again.verify(roots=wire.issuer.roots) == evidence.verify(roots=wire.issuer.roots)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "", ".."])
def test_an_index_that_names_files_elsewhere_is_refused(wire: Wire, tmp_path: Any, name: str) -> None:
    evidence = wire.run(collected)
    evidence.save(tmp_path)
    index = json.loads((tmp_path / "evidence.json").read_text())
    index["documents"]["chain"] = name
    (tmp_path / "evidence.json").write_text(json.dumps(index))
    with pytest.raises(MalformedEvidenceError):
        type(evidence).load(tmp_path)


# --- verdicts -------------------------------------------------------------------------------------------


def report_until(seconds: float) -> AttestationReport:
    now = datetime.fromtimestamp(1000, UTC)
    return AttestationReport("sev-snp", now, datetime.fromtimestamp(1000 + seconds, UTC))


@pytest.mark.parametrize(
    ("valid", "failed", "at", "mode", "counts"),
    [
        (1e6, False, 1000, "require", True),
        (1e6, False, 1599, "require", True),
        (1e6, False, 1600, "require", False),
        (50, False, 1049, "require", True),
        (50, False, 1050, "require", False),
        (1e6, False, 999, "require", False),  # the clock was set back
        (1e6, True, 1000, "require", False),
        (1e6, True, 1299, "warn", True),
        (1e6, True, 1300, "warn", False),
    ],
)
def test_how_long_a_verdict_counts(valid: float, failed: bool, at: float, mode: Any, counts: bool) -> None:
    verdict = Verdict("key", 1000, None if failed else report_until(valid))
    assert verdict.counts(Attestation(mode=mode, max_age=600), at) is counts


def test_the_number_of_verdicts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prem_core._protocol.attestation.settings.MAX_VERDICTS", 2)
    VERDICTS.clear()
    attestation, now = Attestation(mode="require"), time.time()
    for model in ("a", "b", "c"):
        VERDICTS.record(
            "https://gateway.example", model, attestation, Verdict("key", now, report_until(1e10))
        )
    found = {
        model: VERDICTS.find("https://gateway.example", "key", model, attestation, now) is not None
        for model in ("a", "b", "c")
    }
    assert found == {"a": False, "b": True, "c": True}


def test_a_verdict_is_not_used_for_another_key_gateway_or_setting() -> None:
    VERDICTS.clear()
    attestation, now = Attestation(mode="require"), time.time()
    verdict = Verdict("key", now, report_until(1e10))
    VERDICTS.record("https://gateway.example", "m", attestation, verdict)

    def found(**changed: Any) -> bool:
        given: Mapping[str, Any] = {
            "gateway_url": "https://gateway.example",
            "key": "key",
            "model": "m",
            "attestation": attestation,
            **changed,
        }
        return VERDICTS.find(**given, now=now) is not None

    assert found()
    assert found(attestation=Attestation(mode="warn"))
    assert not found(key="other")
    assert not found(key=None)
    assert not found(gateway_url="https://other.example")
    assert not found(model="n")
    for values in ({"require_key_binding": True}, {"roots": TrustedRoots()}, {"collateral": "/x"}):
        assert not found(attestation=Attestation(mode="require", **values))
