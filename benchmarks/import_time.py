"""Measure import times: prem_core against httpx, and langchain_prem against langchain_openai.

Each import runs in a fresh interpreter, in turn, and the best of the rounds counts. The start of the
interpreter is not included. The first run writes the compiled files, as installing a package does.

    python benchmarks/import_time.py [--rounds 15]
"""

from __future__ import annotations

import argparse
import subprocess
import sys

#: Our import, the peer's import, and the highest ratio that passes.
PAIRS = (
    ("from prem_core import PremClient, AsyncPremClient", "import httpx", 1.8),
    ("from langchain_prem import ChatPremEncrypted", "from langchain_openai import ChatOpenAI", 0.60),
)

_TIMED = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"


def seconds(statement: str) -> float:
    run = subprocess.run(
        [sys.executable, "-c", _TIMED.format(statement)], capture_output=True, text=True, check=True
    )
    return float(run.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    good = True
    for ours, peer, limit in PAIRS:
        best = {ours: seconds(ours), peer: seconds(peer)}
        for _ in range(options.rounds):
            for statement in best:
                best[statement] = min(best[statement], seconds(statement))
        ratio = best[ours] / best[peer]
        print(
            f"{ours}: {best[ours] * 1e3:.0f} ms; {peer}: {best[peer] * 1e3:.0f} ms, "
            f"ratio {ratio:.2f} (limit {limit:.2f})"
        )
        good &= ratio <= limit
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
