"""The service of the soak: the embedded enclave behind the fault proxy, in its own process.

    PYTHONPATH=tests python -m support.faults.soak_service SEED FAULTS

It prints the settings for clients as a line of JSON, and its statistics as another line when its standard input ends.

A share of the exchanges has a fault of the fault table, except for faults that cannot be detected (see SECURITY.md), as
every response must be right here, and except for 429, for which all clients slow down. From time to time the enclave's
key is rotated and connections are refused.
"""

from __future__ import annotations

import json
import random
import secrets
import sys
import threading
from collections import Counter

from prem_core._crypto.xwing import PrivateKey
from prem_core.enclave import LocalEnclave
from support.faults.columns import TEXT
from support.faults.fault_proxy import Fault, FaultProxy, ProxiedRequest
from support.faults.kinds import ResponseOfAnotherRequest
from support.faults.table import ROWS, Row
from support.wire_schemas import TEST_KEY

#: Seconds between two key rotations, between two refusals, and of a refusal.
ROTATE, REFUSE, REFUSED = 7.0, 5.0, 0.1


def _is_fair(row: Row) -> bool:
    cells = [row.cells[name] for name in ("stream", "whole", "chat", "every") if name in row.cells]
    return (
        bool(cells)
        and not (row.connection_refused or row.rotated or row.make_fault)
        and all(cell.text in (None, TEXT) and cell.status != 429 for cell in cells)
    )


FAULTS = [row.fault for row in ROWS if _is_fair(row)]
FAULTS += [Fault("the response to another request", events=ResponseOfAnotherRequest())]


def main(seed: int, share: float) -> None:
    """Serve until standard input ends."""
    rng = random.Random(seed)
    by_party = {party: [f for f in FAULTS if f.party == party] for party in ("gateway", "enclave")}
    faults: Counter[str] = Counter()
    requests: Counter[str] = Counter()

    def choose(exchange: ProxiedRequest) -> Fault | None:
        requests[exchange.party] += 1
        if rng.random() >= share:
            return None
        fault = rng.choice(by_party[exchange.party])
        faults[str(fault)] += 1
        return fault

    over = threading.Event()
    with LocalEnclave(private_key=TEST_KEY) as prem, FaultProxy(prem) as proxy:
        proxy.choose = choose

        def rotate() -> None:
            while not over.wait(ROTATE):
                key = PrivateKey(secrets.token_bytes(32))
                proxy.private_keys.append(key)
                prem.rotate_key(key)
                faults["a key rotation"] += 1

        def refuse() -> None:
            while not over.wait(REFUSE):
                with proxy.refusing_connections("gateway"):
                    over.wait(REFUSED)
                faults["refuse"] += 1

        others = [threading.Thread(target=rotate), threading.Thread(target=refuse)] if share else []
        for thread in others:
            thread.start()
        print(json.dumps(proxy.client_options), flush=True)
        sys.stdin.read()
        over.set()
        for thread in others:
            thread.join()
    failures = [repr(failure) for failure in proxy.failures]
    print(
        json.dumps({"requests": requests, "faults": faults, "kinds": len(FAULTS) + 2, "failures": failures})
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
