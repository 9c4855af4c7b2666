"""What the soak asks: the embedded enclave with the fault layer before it, in a process of its own.

    PYTHONPATH=tests python -m support.faults.soak_service SEED FAULTS

It prints a client's settings as a line of JSON, and when its standard input ends, what it did, as another.

It strikes a share of the exchanges with the faults of the table, those that nobody can notice left out: their answers
are other answers, as SECURITY.md says, and here every answer has to be the right one. 429 is left out too: all clients
of an organisation slow down for it, and a soak would be a wait. From time to time the enclave's key is turned, and
connections are refused.
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
from support.faults.kinds import AnotherAnswer
from support.faults.layer import Exchange, Fault, FaultLayer
from support.faults.table import ROWS, Row
from support.wire_schemas import TEST_KEY

#: Seconds between two turns of the key, between two refusals, and for which connections are refused.
TURN, REFUSE, REFUSED = 7.0, 5.0, 0.1


def _is_fair(row: Row) -> bool:
    cells = [row.cells[name] for name in ("stream", "whole", "chat", "every") if name in row.cells]
    return (
        bool(cells)
        and not (row.refused or row.turned or row.makes)
        and all(cell.text in (None, TEXT) and cell.status != 429 for cell in cells)
    )


FAULTS = [row.fault for row in ROWS if _is_fair(row)]
FAULTS += [Fault("another request's answer", events=AnotherAnswer())]


def main(seed: int, share: float) -> None:
    """Serve until standard input ends."""
    dice = random.Random(seed)
    by_party = {party: [f for f in FAULTS if f.party == party] for party in ("gateway", "enclave")}
    struck: Counter[str] = Counter()
    asked: Counter[str] = Counter()

    def choose(exchange: Exchange) -> Fault | None:
        asked[exchange.party] += 1
        if dice.random() >= share:
            return None
        fault = dice.choice(by_party[exchange.party])
        struck[str(fault)] += 1
        return fault

    over = threading.Event()
    with LocalEnclave(private_key=TEST_KEY) as prem, FaultLayer(prem) as layer:
        layer.choose = choose

        def turn() -> None:
            while not over.wait(TURN):
                key = PrivateKey(secrets.token_bytes(32))
                layer.private_keys.append(key)
                prem.rotate_key(key)
                struck["a key turned"] += 1

        def refuse() -> None:
            while not over.wait(REFUSE):
                with layer.refusing("gateway"):
                    over.wait(REFUSED)
                struck["refuse"] += 1

        others = [threading.Thread(target=turn), threading.Thread(target=refuse)] if share else []
        for thread in others:
            thread.start()
        print(json.dumps(layer.client_options), flush=True)
        sys.stdin.read()
        over.set()
        for thread in others:
            thread.join()
    failures = [repr(failure) for failure in layer.failures]
    print(json.dumps({"asked": asked, "struck": struck, "kinds": len(FAULTS) + 2, "failures": failures}))


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
