"""Policies: what is accepted of genuine evidence."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from support.attestation import GPU_NONCE, NONCE, NOW, verify_nvidia, verify_snp, verify_tdx

from prem_core import ConfigurationError, PremError
from prem_core.attestation import (
    VENDOR_ROOTS,
    AllOf,
    AnyOf,
    AttestationReport,
    DebugEnabledError,
    MeasurementAllowList,
    MeasurementNotAllowedError,
    PremPolicy,
    SnpTcb,
    TcbTooOldError,
    UnsafeNoOp,
    VerificationPolicy,
)
from prem_core.enclave.evidence import NvidiaIssuer, SnpIssuer, TdxIssuer

LISTED, OTHER = "5a" * 48, "00" * 48


def test_a_listed_measurement_is_accepted_and_reported_as_compared(snp: SnpIssuer) -> None:
    report = verify_snp(snp, policy=AllOf(PremPolicy(), MeasurementAllowList([OTHER, LISTED.upper()])))
    assert next(check for check in report.checks if check.name == "measurement").passed
    assert not any("It was not compared" in sentence for sentence in report.not_proven)


def test_an_unlisted_measurement_is_refused(snp: SnpIssuer, tdx: TdxIssuer) -> None:
    policy = AllOf(PremPolicy(), MeasurementAllowList([OTHER]))
    with pytest.raises(MeasurementNotAllowedError, match=LISTED):
        verify_snp(snp, policy=policy)
    with pytest.raises(MeasurementNotAllowedError, match=LISTED):
        verify_tdx(tdx, policy=policy)


def test_runtime_measurements_are_compared_by_number(tdx: TdxIssuer) -> None:
    verify_tdx(tdx, policy=MeasurementAllowList([LISTED], rtmrs={1: ["02" * 48], 2: ["03" * 48]}))
    with pytest.raises(MeasurementNotAllowedError, match="RTMR 2"):
        verify_tdx(tdx, policy=MeasurementAllowList([LISTED], rtmrs={1: ["02" * 48], 2: ["02" * 48]}))


def test_a_list_of_runtime_measurements_refuses_evidence_that_has_none(snp: SnpIssuer) -> None:
    with pytest.raises(MeasurementNotAllowedError, match="RTMR 1"):
        verify_snp(snp, policy=MeasurementAllowList([LISTED], rtmrs={1: ["02" * 48]}))


def test_an_allow_list_refuses_a_guest_that_can_be_debugged(snp: SnpIssuer) -> None:
    with pytest.raises(DebugEnabledError):
        verify_snp(snp, snp.evidence(NONCE, now=NOW, fault="debug"), policy=MeasurementAllowList([LISTED]))


def test_an_allow_list_accepts_tokens_of_gpus(nvidia: NvidiaIssuer) -> None:
    assert verify_nvidia(nvidia, policy=AllOf(PremPolicy(), MeasurementAllowList([LISTED]))).gpus


@pytest.mark.parametrize("values", [[], ["zz"], ["5a" * 47], LISTED])
def test_an_allow_list_that_cannot_work_is_an_error_of_the_caller(values: Any) -> None:
    with pytest.raises(ConfigurationError):
        MeasurementAllowList(values)


def test_runtime_measurements_are_numbered_0_to_3() -> None:
    with pytest.raises(ConfigurationError, match="0 to 3"):
        MeasurementAllowList([LISTED], rtmrs={4: [LISTED]})


def test_any_of_accepts_what_one_policy_accepts(snp: SnpIssuer) -> None:
    policy = AnyOf(MeasurementAllowList([OTHER]), MeasurementAllowList([LISTED]))
    assert verify_snp(snp, policy=policy).measurement == LISTED


def test_any_of_raises_the_first_error_if_all_refuse(snp: SnpIssuer) -> None:
    with pytest.raises(TcbTooOldError):
        verify_snp(
            snp, policy=AnyOf(PremPolicy(minimum_snp_tcb=SnpTcb(snp=99)), MeasurementAllowList([OTHER]))
        )


def test_any_of_compares_measurements_only_if_every_policy_does(snp: SnpIssuer) -> None:
    report = verify_snp(snp, policy=AnyOf(MeasurementAllowList([LISTED]), PremPolicy()))
    assert any("It was not compared" in sentence for sentence in report.not_proven)


@pytest.mark.parametrize("kind", [AllOf, AnyOf])
def test_a_combination_of_no_policies_is_an_error_of_the_caller(kind: Any) -> None:
    with pytest.raises(ConfigurationError, match="no policy"):
        kind()


def test_each_number_of_the_firmware_floor_counts(snp: SnpIssuer) -> None:
    for name in ("bootloader", "tee", "snp", "microcode"):
        floor = SnpTcb(**{name: verify_snp(snp).tcb[name]})
        verify_snp(snp, policy=PremPolicy(minimum_snp_tcb=floor))
        above = SnpTcb(**{name: verify_snp(snp).tcb[name] + 1})
        with pytest.raises(TcbTooOldError, match=name):
            verify_snp(snp, policy=PremPolicy(minimum_snp_tcb=above))


def test_an_accepted_status_of_tdx_can_be_added(tdx: TdxIssuer) -> None:
    evidence = tdx.evidence(NONCE, now=NOW, fault="out_of_date")
    policy = PremPolicy(tdx_statuses=frozenset({"UpToDate", "OutOfDate"}))
    assert verify_tdx(tdx, evidence, policy=policy).tcb_status == "OutOfDate"


def test_unsafe_no_op_accepts_genuine_evidence_that_shows_anything(
    snp: SnpIssuer, tdx: TdxIssuer, nvidia: NvidiaIssuer
) -> None:
    for fault in ("debug", "migration", "vmpl", "old_tcb", "no_crl"):
        verify_snp(snp, snp.evidence(NONCE, now=NOW, fault=fault), policy=UnsafeNoOp())
    verify_tdx(tdx, tdx.evidence(NONCE, now=NOW, fault="out_of_date"), policy=UnsafeNoOp())
    for fault in ("debug", "no_secure_boot"):
        verify_nvidia(nvidia, nvidia.evidence(GPU_NONCE, now=NOW, fault=fault), policy=UnsafeNoOp())


def test_a_policy_that_returns_false_instead_of_raising_is_refused(snp: SnpIssuer) -> None:
    class ReturnsFalse:
        def verify(self, report: AttestationReport) -> Any:
            return False

    with pytest.raises(ConfigurationError, match="must raise"):
        verify_snp(snp, policy=ReturnsFalse())
    with pytest.raises(ConfigurationError, match="must raise"):
        verify_snp(snp, policy=AllOf(PremPolicy(), ReturnsFalse()))


def test_a_policy_of_the_users_own_sees_every_check(snp: SnpIssuer) -> None:
    seen: list[AttestationReport] = []

    class OwnPolicy:
        def verify(self, report: AttestationReport) -> None:
            seen.append(report)

    assert isinstance(OwnPolicy(), VerificationPolicy)
    verify_snp(snp, policy=OwnPolicy())
    assert {"signature", "nonce", "revocation"} <= {check.name for check in seen[0].checks}


def test_roots_and_policies_can_be_copied_compared_and_used_as_keys(snp: SnpIssuer) -> None:
    for value in (VENDOR_ROOTS, snp.roots, PremPolicy()):
        assert {value: 1}[copy.deepcopy(value)] == 1
        assert pickle.loads(pickle.dumps(value)) == value


def test_an_error_can_be_pickled_with_its_checks(snp: SnpIssuer) -> None:
    with pytest.raises(MeasurementNotAllowedError) as refused:
        verify_snp(snp, policy=MeasurementAllowList([OTHER]))
    pickled = pickle.loads(pickle.dumps(refused.value))
    assert (type(pickled), str(pickled)) == (MeasurementNotAllowedError, str(refused.value))
    assert (pickled.check, pickled.checks) == (refused.value.check, refused.value.checks)
    assert isinstance(pickled, PremError)
    assert not pickled.is_retryable
