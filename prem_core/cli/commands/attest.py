"""``prem attest``: verify the enclave's attestation, show each check, and keep the evidence."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from prem_core._errors import AttestationError, ConfigurationError
from prem_core.cli import DEFAULT_CHAT_MODEL, EXIT_FAILURE
from prem_core.cli.connection import LOCAL_ROOTS, Connection, with_connection_options
from prem_core.cli.errors import CliError
from prem_core.cli.output import one_line, write, write_json

if TYPE_CHECKING:
    from prem_core.attestation import AttestationReport, Check, Evidence, VerificationPolicy

_TECHNOLOGIES: Final = {"sev-snp": "AMD SEV-SNP", "tdx": "Intel TDX", "nvidia": "NVIDIA"}


@with_connection_options()
def attest(
    connection: Connection,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=f"Model whose enclave is verified. Default: {DEFAULT_CHAT_MODEL}."),
    ] = None,
    measurement: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HEX",
            help="Launch measurement to accept, as the operator publishes it: 48 bytes in hex. Can be repeated. "
            "Default: any.",
        ),
    ] = None,
    require_key_binding: Annotated[
        bool,
        typer.Option(
            "--require-key-binding",
            help="Refuse evidence that does not commit to the enclave's public key.",
        ),
    ] = False,
    save: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Write the evidence, the certificates and the revocation lists to this folder.",
        ),
    ] = None,
    saved: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="DIR",
            help="Verify the evidence in this folder again, with its nonce and its time. Nothing is sent.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write the report as one JSON object.")] = False,
) -> None:
    """Verify the enclave's attestation and show each check, and what is not proven.

    A fresh nonce goes to the gateway; the machine's report must answer it. The vendors' certificates and revocation
    lists are fetched from their services, which get no API key. Exit code 0: the evidence is genuine, fresh and
    accepted by the policy. 1: it is not, or could not be fetched. 2: usage error.

    \b
    Examples:
      prem attest
      prem attest --json --save evidence/ | jq .report.measurement
      prem attest --from evidence/
      prem --local attest
    """
    from prem_core._protocol.attestation.settings import check_extra
    from prem_core.attestation import VENDOR_ROOTS, Evidence

    if saved is not None and (save is not None or model is not None):
        raise ConfigurationError("--from cannot be combined with --save or --model")
    check_extra()
    policy = _policy(measurement)
    if saved is not None:
        evidence = Evidence.load(saved)
    else:
        with connection.client() as client:
            evidence = client._requester.attest(model or DEFAULT_CHAT_MODEL, verify=False)
    if save is not None:
        try:
            evidence.save(save)
        except OSError as error:
            raise CliError(f"the evidence cannot be saved: {error}", EXIT_FAILURE) from error
    try:
        report = evidence.verify(
            policy=policy, require_key_binding=require_key_binding, roots=LOCAL_ROOTS.get() or VENDOR_ROOTS
        )
    except AttestationError as error:
        if as_json:
            write_json({**_about(evidence), "ok": False, "error": _error(error)})
        else:
            _write_checks(error.checks)
        raise CliError(
            f"{type(error).__name__} at the check {error.check!r}: {error}", EXIT_FAILURE
        ) from error
    if as_json:
        write_json({**_about(evidence), "ok": True, "report": report.as_dict()})
    else:
        _write_report(evidence, report)


def _policy(measurements: list[str] | None) -> VerificationPolicy:
    from prem_core.attestation import AllOf, MeasurementAllowList, PremPolicy

    return AllOf(PremPolicy(), MeasurementAllowList(measurements)) if measurements else PremPolicy()


def _about(evidence: Evidence) -> dict[str, Any]:
    return {
        "model": evidence.model,
        "gateway_url": evidence.gateway_url,
        "collected_at": evidence.collected_at.isoformat(),
    }


def _error(error: AttestationError) -> dict[str, Any]:
    return {
        "type": type(error).__name__,
        "check": error.check,
        "message": str(error),
        "checks": [dataclasses.asdict(check) for check in error.checks],
    }


def _write_report(evidence: Evidence, report: AttestationReport) -> None:
    rows = [
        ("model", evidence.model),
        ("machine", f"{_TECHNOLOGIES[report.technology]} {report.product}"),
        ("chip", report.chip_id),
        ("TCB", " ".join(f"{name}={value}" for name, value in report.tcb.items())),
        ("TCB status", report.tcb_status or ""),
        ("advisories", ", ".join(report.advisories)),
        ("measurement", report.measurement or ""),
        *((f"RTMR {number}", value) for number, value in enumerate(report.runtime_measurements)),
        *(
            (gpu.name, f"{gpu.model}, driver {gpu.driver_version}, VBIOS {gpu.vbios_version}")
            for gpu in report.gpus
        ),
        (
            "verified",
            f"{report.verified_at.isoformat()}, with evidence valid until {report.valid_until.isoformat()}",
        ),
    ]
    write("".join(f"{name:<18}{one_line(value)}\n" for name, value in rows if value) + "\n")
    _write_checks(report.checks)
    write("\nNot proven:\n" + "".join(f"- {sentence}\n" for sentence in report.not_proven))


def _write_checks(checks: tuple[Check, ...]) -> None:
    encoding = (sys.stdout.encoding or "ascii").lower()
    yes, no = ("✓", "✗") if encoding.startswith("utf") else ("ok", "no")
    write(
        "".join(
            f"{yes if check.passed else no} {check.name:<16}{one_line(check.detail)}\n" for check in checks
        )
    )
