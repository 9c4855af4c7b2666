"""The weaknesses of the documented protocol, shown on real responses. SECURITY.md describes them.

These tests pass as long as the weaknesses exist. The protocol has one key and one nonce for a whole exchange, and
nothing binds a chunk to its place. A fresh encapsulation for every request limits them to one exchange.
"""

from __future__ import annotations

from typing import Any

import pytest
from support.attacks.chunk_form import ChunkForm
from support.attacks.forging import Forger
from support.attacks.gateway import Recording
from support.attacks.reading import read
from support.attacks.scenario import NOW
from support.faults.columns import COLUMNS, MODEL, TEXT, WORDS, Column
from support.faults.fault_proxy import Fault, FaultProxy, Pieces, ProxiedRequest
from support.faults.kinds import (
    DONE,
    FINISH,
    HALF,
    MIDDLE,
    Injection,
    at,
    done_too_early,
    duplicate,
    flip,
    lose,
    swap,
)

from prem_core import DecryptionError, StreamInterruptedError

CHATS = [column for column in COLUMNS if column.kind == "chat"]
every_chat = pytest.mark.parametrize("column", CHATS, ids=str)


def result_of(column: Column, proxy: FaultProxy, injection: Injection) -> Any:
    proxy.inject(Fault("in the middle", events=injection))
    with column.calls({**proxy.client_options, "max_retries": 0}) as call:
        return call()


# --- order


@every_chat
def test_reordered_chunks_are_not_detected(column: Column, proxy: FaultProxy) -> None:
    """SECURITY.md, "Chunks are not bound to their order"."""
    words = [*WORDS]
    words[HALF], words[HALF + 1] = words[HALF + 1], words[HALF]
    answer = result_of(column, proxy, swap(MIDDLE))
    assert answer.error is None
    assert answer.text == "".join(words) != TEXT


@every_chat
def test_a_duplicated_chunk_is_not_detected(column: Column, proxy: FaultProxy) -> None:
    """SECURITY.md, "Chunks are not bound to their order"."""
    answer = result_of(column, proxy, at(MIDDLE, duplicate))
    assert answer.error is None
    assert answer.text == "".join([*WORDS[: HALF + 1], *WORDS[HALF:]])


@every_chat
def test_a_missing_chunk_is_not_detected(column: Column, proxy: FaultProxy) -> None:
    """SECURITY.md, "Chunks are not bound to their order"."""
    answer = result_of(column, proxy, at(MIDDLE, lose))
    assert answer.error is None
    assert answer.text == "".join([*WORDS[:HALF], *WORDS[HALF + 1 :]])


@every_chat
def test_an_answer_without_its_last_words_is_not_detected(column: Column, proxy: FaultProxy) -> None:
    """SECURITY.md, "Chunks are not bound to their order": the finish reason is the enclave's own."""

    async def leave_out(exchange: ProxiedRequest, events: Pieces) -> Pieces:
        number = 0
        async for event in events:
            kept = FINISH.is_at(exchange, number, event) or DONE.is_at(exchange, number, event)
            if number <= HALF or kept:
                yield event
            number += 1

    answer = result_of(column, proxy, leave_out)
    assert answer.error is None
    assert answer.text == "".join(WORDS[: HALF + 1])


@pytest.mark.parametrize(
    ("injection", "error"),
    [
        pytest.param(at(FINISH, lose), StreamInterruptedError, id="missing finish reason"),
        pytest.param(done_too_early(FINISH), StreamInterruptedError, id="finish reason after done"),
        pytest.param(at(MIDDLE, flip(30)), DecryptionError, id="modified chunk"),
    ],
)
@every_chat
def test_a_missing_end_and_a_modified_chunk_are_detected(
    column: Column, injection: Injection, error: type[Exception], proxy: FaultProxy
) -> None:
    assert isinstance(result_of(column, proxy, injection).error, error)


# --- one nonce


@every_chat
def test_a_forged_response_is_not_detected(column: Column, proxy: FaultProxy) -> None:
    """SECURITY.md, "One nonce for a whole exchange": no client and no adapter can tell it from a real one.

    `tests/security/test_attacks.py` has everything that follows from the one nonce.
    """
    form = ChunkForm.learn(proxy.enclave, MODEL, NOW)

    async def forge(exchange: ProxiedRequest, events: Pieces) -> Pieces:
        recording = Recording(exchange.body, b"".join([event async for event in events]))
        forger = Forger(recording, read(recording, form), len(form.head))
        for event in forger.text("The clinic opens at seven."):
            yield event

    answer = result_of(column, proxy, forge)
    assert answer.error is None
    assert answer.text == "The clinic opens at seven."
