"""Measure the time of a verdict from given evidence, and what attestation adds to a request once there is a verdict.

The evidence is made here, in the form and with the key sizes of the real one. The best of the rounds counts: the rest
measures what else the machine does.

    python benchmarks/attestation.py [--rounds 200]
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime

from canned import PROMPT, Clock, compare, sealed, seconds

from prem_core import NonceReuseWarning, PremClient
from prem_core._protocol.attestation.settings import VERDICTS, Verdict
from prem_core.attestation import verify_nvidia_tokens, verify_snp_report, verify_tdx_quote
from prem_core.enclave.evidence import NvidiaIssuer, SnpIssuer, TdxIssuer

#: The longest time that passes, in milliseconds.
LIMIT = 5.0

#: The highest ratio of a request with a known verdict to one without attestation. The rest is noise.
REQUEST_LIMIT = 1.10


def milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1000


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    now = datetime.now(UTC).replace(microsecond=0)
    nonce = bytes(range(64))
    snp_issuer, tdx_issuer, nvidia_issuer = (
        SnpIssuer(now, key_size=4096),
        TdxIssuer(now),
        NvidiaIssuer(gpus=8),
    )
    snp = snp_issuer.evidence(nonce, now=now)
    tdx = tdx_issuer.evidence(nonce, now=now)
    nvidia = nvidia_issuer.evidence(nonce[:32], now=now)
    verdicts: dict[str, Callable[[], object]] = {
        "SEV-SNP report": lambda: verify_snp_report(
            snp.report,
            vcek=snp.vcek,
            chain=snp.chain,
            crl=snp.crl,
            nonce=nonce,
            now=now,
            roots=snp_issuer.roots,
        ),
        "TDX quote": lambda: verify_tdx_quote(
            tdx.quote, collateral=tdx.collateral, nonce=nonce, now=now, roots=tdx_issuer.roots
        ),
        "tokens of 8 GPUs": lambda: verify_nvidia_tokens(
            nvidia.text, jwks=nvidia.jwks, nonce=nonce[:32], now=now
        ),
    }
    good = True
    for name, verdict in verdicts.items():
        best = min(milliseconds(verdict) for _ in range(options.rounds))
        # The tokens' time grows with the number of GPUs, so it has no limit here.
        passed = best < LIMIT or "GPU" in name
        good &= passed
        print(f"{name}: {best:.2f} ms{'' if passed else f', more than {LIMIT} ms'}")
    return 0 if good & measure_requests(min(options.rounds, 40)) else 1


def measure_requests(rounds: int) -> bool:
    """Compare requests of a client that requires attestation, whose verdict is known, with those of one without it."""
    clock = Clock()
    options = sealed(clock, [])
    model = options.pop("model")
    now = datetime.now(UTC)
    issuer = SnpIssuer(now)
    nonce = bytes(64)
    evidence = issuer.evidence(nonce, now=now)
    documents = {"vcek": evidence.vcek, "chain": evidence.chain, "crl": evidence.crl}
    report = verify_snp_report(evidence.report, **documents, nonce=nonce, now=now, roots=issuer.roots)
    messages = [{"role": "user", "content": PROMPT}]

    def request(client: PremClient) -> Callable[[], float]:
        create = client.chat.completions.create
        return lambda: seconds(clock, lambda: create(model=model, messages=messages), 50)

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", NonceReuseWarning
        )  # the canned answer comes under the request's nonce
        with PremClient(**options) as plain, PremClient(**options, attestation="require") as attested:
            key = attested._requester.key.public_key
            assert key is not None
            VERDICTS.record(
                attested._requester.gateway_url,
                model,
                attested._requester._settings.attestation,
                Verdict(key.fingerprint(), now.timestamp(), report),
            )
            return compare(
                "a request, with a known verdict",
                1,
                {'attestation="require"': request(attested), 'attestation="off"': request(plain)},
                rounds,
                REQUEST_LIMIT,
            )


if __name__ == "__main__":
    raise SystemExit(main())
