"""Feed changed and broken input to every parser: ``make fuzz``.

``PYTHONPATH=tests python -m support.fuzzing.fuzz [--seconds 60] [--seed N] [TARGET …]``. The targets share the seconds.
A finding is shrunk, written to ``tests/fuzz/cases/TARGET``, and run as a test from then on. Exits with 1 if it found
something new.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import os
import random
import sys
import time
import warnings
from pathlib import Path

from support.fuzzing.fuzzer import Finding, Report, Target, fuzz, shrunk
from support.fuzzing.known_findings import known_signatures
from support.fuzzing.seeds import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all by default"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="for all of them together (default: 60)")
    parser.add_argument("--seed", type=int, help="of the random generator; by default a new one each time")
    options = parser.parse_args()
    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    chosen = [TARGETS[name] for name in options.targets or TARGETS]
    # A decoder written in C may end the process, while the standard error is kept quiet.
    faulthandler.enable(os.dup(2))
    warnings.simplefilter("error")
    print(f"seed {seed}\n")
    print(f"{'target':14} {'runs':>8} {'runs/s':>8} {'kinds':>5} {'lines':>6} {'corpus':>7} {'findings':>9}")
    found = 0
    started = time.monotonic()
    for number, target in enumerate(chosen):
        left = options.seconds - (time.monotonic() - started)
        share = max(0.5, left / (len(chosen) - number))
        rng = random.Random(f"{seed} {target.name}")
        report = fuzz(target, rng, seconds=share, known=known_signatures(target))
        _show(report)
        for finding in report.findings.values():
            found += 1
            print(f"\n{finding.trace}kept as {_keep(target, finding)}\n")
    print(f"\n{found} new findings in {time.monotonic() - started:.0f} s")
    return 1 if found else 0


def _show(report: Report) -> None:
    rate = report.runs / report.seconds if report.seconds else 0.0
    print(
        f"{report.target:14} {report.runs:8,} {rate:8,.0f} {len(report.kinds):5} {report.lines or '-':>6} "
        f"{len(report.corpus):7} {len(report.findings):9}",
        flush=True,
    )


def _keep(target: Target, finding: Finding) -> Path:
    with target.setting():
        data = shrunk(target, finding)
    target.folder.mkdir(parents=True, exist_ok=True)
    path = target.folder / f"{finding.signature.kind}-{hashlib.sha256(data).hexdigest()[:8]}"
    path.write_bytes(data)
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    sys.exit(main())
