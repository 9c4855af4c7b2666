"""A fault at any byte of a response: in the status, a header, a length, the name of an event, the sealed hex."""

from __future__ import annotations

import itertools
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pytest
from support.faults.columns import COLUMNS, TEXT, WORDS, CallResult, Column
from support.faults.fault_proxy import Fault, FaultProxy, Pieces, ProxiedRequest
from support.faults.kinds import HALF, Injection, drop_at, flip_at, stall_at

from prem_core import APIConnectionError, APITimeoutError, PremError, StreamInterruptedError
from prem_core.enclave import LocalEnclave

#: The four kinds of chat in prem_core; the adapters use them.
CHATS = [column for column in COLUMNS if column.layer.name == "prem_core" and column.kind == "chat"]
every_chat = pytest.mark.parametrize("column", CHATS, ids=str)

#: Every text that an undetected fault can produce: some words missing, the others in order.
SUBSETS = {"".join(words) for count in range(len(WORDS) + 1) for words in combinations(WORDS, count)}


@dataclass
class ResponseBytes:
    """A response as bytes on the socket.

    Attributes:
        begins: The offsets of the head, of each event with its HTTP length, and of HTTP's last chunk.
        length: The number of bytes.
    """

    begins: list[int]
    length: int

    @property
    def head(self) -> int:
        """The number of bytes before the body."""
        return self.begins[1]

    @property
    def done(self) -> int:
        """The number of bytes that make it complete: all up to the end of the done event."""
        return self.begins[-1] - len(b"\r\n")


@pytest.fixture
def response(proxy: FaultProxy, column: Column) -> ResponseBytes:
    """The bytes of the response in this column."""
    sizes: list[int] = []

    async def measure(exchange: ProxiedRequest, data: Pieces) -> Pieces:
        async for each in data:
            sizes.append(len(each))
            yield each

    results_of(proxy, column, [measure])
    ends = list(itertools.accumulate(sizes))
    # The head, the words, the finish reason, the usage where it was not streamed, done, and HTTP's end.
    assert len(sizes) == 1 + len(WORDS) + 1 + (column.form == "whole") + 1 + 1
    return ResponseBytes([0, *ends[:-1]], ends[-1])


def results_of(
    proxy: FaultProxy, column: Column, injections: list[Injection], **settings: Any
) -> list[CallResult]:
    """The results of calls of one client, one for each fault."""
    results: list[CallResult] = []
    options = {**proxy.client_options, "max_retries": 0, "timeout": 5.0, **settings}
    with column.calls(options) as call:
        proxy.clear_fault()
        assert call().text == TEXT  # and the key is cached
        for injection in injections:
            proxy.inject(Fault("any byte", data=injection))
            results.append(call())
    return results


def is_prefix(result: CallResult) -> bool:
    """Whether a stream yielded the first words of the response, and nothing else."""
    words = [word for word in result.words if word]
    return words == list(WORDS[: len(words)])


@every_chat
def test_a_disconnect_at_any_byte_of_an_incomplete_response_is_an_error(
    column: Column, proxy: FaultProxy, response: ResponseBytes
) -> None:
    edges = {begin + shift for begin in response.begins for shift in (-3, -2, -1, 0, 1, 2, 9)}
    offsets = sorted({*range(0, response.length, 251), *edges} & set(range(response.length)))
    for offset, result in zip(offsets, results_of(proxy, column, [*map(drop_at, offsets)]), strict=True):
        if offset >= response.done:
            assert result.error is None
            assert result.text == TEXT
            continue
        kind = APIConnectionError if offset < response.head else StreamInterruptedError
        assert type(result.error) is kind, offset
        assert is_prefix(result)
        assert column.form == "stream" or result.words == []


@every_chat
def test_a_stall_at_any_byte_of_an_incomplete_response_is_a_timeout(
    column: Column, proxy: FaultProxy, response: ResponseBytes, enclave: LocalEnclave
) -> None:
    offsets = [
        0,
        5,
        response.head - 1,
        response.head,
        response.begins[2] + 30,
        response.begins[6] - 1,
        response.done - 1,
    ]

    def stalled(offset: int, timeout: float = 0.5) -> CallResult:
        with FaultProxy(enclave) as own:
            (result,) = results_of(own, column, [stall_at(offset)], timeout=timeout)
        return result

    with ThreadPoolExecutor(len(offsets)) as pool:
        for result in pool.map(stalled, offsets):
            assert type(result.error) is APITimeoutError
            assert is_prefix(result)
    assert stalled(response.done, timeout=30.0).text == TEXT


@every_chat
def test_a_flipped_bit_anywhere_changes_no_word_undetected(
    column: Column, proxy: FaultProxy, response: ResponseBytes
) -> None:
    """A word may be lost: the name of an event is not sealed, and a change there hides the event (see SECURITY.md)."""
    rng = random.Random(7)
    frame = range(response.begins[HALF], response.begins[HALF] + len(b"2d0\r\nevent: data\ndata: "))
    places = rng.sample([(offset, bit) for offset in frame for bit in range(8)], 80)
    places += [(rng.randrange(response.length), rng.randrange(8)) for _ in range(60)]
    injections = [flip_at(offset, bit) for offset, bit in places]
    lost = 0
    for place, result in zip(places, results_of(proxy, column, injections), strict=True):
        if result.error is None:
            assert result.text in SUBSETS, place
            lost += result.text != TEXT
        else:
            assert isinstance(result.error, PremError), place
            assert is_prefix(result) or column.form == "stream"
            assert result.text in SUBSETS, place
    assert lost  # otherwise the docstring is wrong


@every_chat
def test_a_flipped_bit_of_sealed_data_is_always_detected(
    column: Column, proxy: FaultProxy, response: ResponseBytes
) -> None:
    rng = random.Random(8)
    sealed = [
        offset
        for begin, end in zip(response.begins[1:-2], response.begins[2:-1], strict=True)
        for offset in range(begin + len(b"2d0\r\nevent: data\ndata: "), end - len(b"\n\n\r\n"))
    ]
    # Bit 5 changes the case of a letter, which is the same hex.
    places = [(rng.choice(sealed), rng.choice((0, 1, 2, 3, 4, 6, 7))) for _ in range(60)]
    for result in results_of(proxy, column, [flip_at(offset, bit) for offset, bit in places]):
        assert isinstance(result.error, PremError)
        assert is_prefix(result)
