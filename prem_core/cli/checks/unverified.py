"""Lists what is not verified, so that a user does not assume that it was."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator

from prem_core._protocol import assumptions
from prem_core.cli.checks.check import Check, Options, State


def checks(options: Options) -> Iterator[Check]:
    """Report what is not verified."""
    if not options.connection.verifies_attestation():
        yield Check(
            "attestation",
            State.NOT_VERIFIED,
            "not checked: nothing here proves that this is a real enclave, which code it runs, or that no one else has "
            "its private key (--attestation require verifies what can be; prem attest shows it)",
        )
    if not options.connection.refuses_nonce_reuse():
        yield Check(
            "streamed replies",
            State.NOT_VERIFIED,
            "sealed under the request's nonce: the gateway can read and replace them and, by sending a request again, "
            "read it (--nonce-reuse error requests no streams)",
        )
    if options.connection.enclave_public_key is None:
        yield Check(
            "key origin",
            State.NOT_VERIFIED,
            "the enclave's key is fetched, not pinned: anyone with a TLS certificate for that host could replace it "
            "(--enclave-public-key pins it)",
        )
    names = _assumption_names()
    listed = f": {', '.join(names)}" if options.verbose else " (--verbose lists them)"
    yield Check(
        "assumptions",
        State.NOT_VERIFIED,
        f"{len(names)} points of the protocol are undocumented; see the README{listed}",
    )
    if options.local:
        yield Check(
            "Prem's service", State.SKIPPED, "with --local, an embedded enclave on this machine is checked"
        )


def _assumption_names() -> list[str]:
    """The names that the module assigns, without what it imports."""
    statements = ast.parse(inspect.getsource(assumptions)).body
    targets = [target for each in statements if isinstance(each, ast.Assign) for target in each.targets]
    return [target.id for target in targets if isinstance(target, ast.Name)]
