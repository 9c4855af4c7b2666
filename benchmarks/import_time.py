"""What importing costs: prem_core beside httpx, and langchain_prem beside langchain_openai.

Each import runs in a fresh interpreter, in turn, and the best of the rounds counts; the start of the
interpreter itself is not part of it. Compiled files are written first, as in any installed package.

    python benchmarks/import_time.py [--rounds 15]
"""

from __future__ import annotations

import argparse
import subprocess
import sys

#: What a program of ours imports, the peer's, and the ratio this project holds itself to.
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
