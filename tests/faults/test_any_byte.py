"""A fault at any byte of an answer, wherever that falls: the status, a header, a length, a name, the sealed hex."""

from __future__ import annotations

import itertools
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pytest
from support.faults.columns import COLUMNS, TEXT, WORDS, Column, Told
from support.faults.kinds import HALF, Strike, drop_at, flip_at, stall_at
from support.faults.layer import Exchange, Fault, FaultLayer, Pieces

from prem_core import APIConnectionError, APITimeoutError, PremError, StreamInterruptedError
from prem_core.enclave import LocalEnclave

#: The four ways of asking prem_core; the adapters read what it gives.
WAYS = [column for column in COLUMNS if column.layer.name == "prem_core" and column.kind == "chat"]
every_way = pytest.mark.parametrize("column", WAYS, ids=str)

#: Every text that a stream can be made to say without anybody noticing: words left out, in order.
SUBSETS = {"".join(words) for count in range(len(WORDS) + 1) for words in combinations(WORDS, count)}


@dataclass
class Answer:
    """An answer as bytes on the socket.

    Attributes:
        begins: Where the head begins, each event with its HTTP length, and HTTP's own end.
        length: How many bytes there are.
    """

    begins: list[int]
    length: int

    @property
    def head(self) -> int:
        """How many bytes come before the body."""
        return self.begins[1]

    @property
    def done(self) -> int:
        """How many bytes make it whole: all but those that end HTTP's last chunk, and its end."""
        return self.begins[-1] - len(b"\r\n")


@pytest.fixture
def answer(layer: FaultLayer, column: Column) -> Answer:
    """What the bytes of an answer are."""
    sizes: list[int] = []

    async def measure(exchange: Exchange, data: Pieces) -> Pieces:
        async for each in data:
            sizes.append(len(each))
            yield each

    struck(layer, column, [measure])
    ends = list(itertools.accumulate(sizes))
    # The head, the words, the finish reason, the usage where it was not streamed, done, and HTTP's end.
    assert len(sizes) == 1 + len(WORDS) + 1 + (column.form == "whole") + 1 + 1
    return Answer([0, *ends[:-1]], ends[-1])


def struck(layer: FaultLayer, column: Column, strikes: list[Strike], **settings: Any) -> list[Told]:
    """What one client was told under each fault in turn."""
    asked: list[Told] = []
    options = {**layer.client_options, "max_retries": 0, "timeout": 2.0, **settings}
    with column.asking(options) as ask:
        layer.heal()
        assert ask().text == TEXT  # and the key is known
        for strike in strikes:
            layer.strike(Fault("any byte", data=strike))
            asked.append(ask())
    return asked


def is_beginning(told: Told) -> bool:
    """Whether a stream gave whole words, from the first one on, and nothing else."""
    given = [word for word in told.words if word]
    return given == list(WORDS[: len(given)])


@every_way
def test_an_answer_that_breaks_off_at_any_byte_is_an_error_until_it_is_whole(
    column: Column, layer: FaultLayer, answer: Answer
) -> None:
    edges = {begin + shift for begin in answer.begins for shift in (-3, -2, -1, 0, 1, 2, 9)}
    offsets = sorted({*range(0, answer.length, 251), *edges} & set(range(answer.length)))
    for offset, told in zip(offsets, struck(layer, column, [*map(drop_at, offsets)]), strict=True):
        if offset >= answer.done:
            assert told.error is None
            assert told.text == TEXT
            continue
        kind = APIConnectionError if offset < answer.head else StreamInterruptedError
        assert type(told.error) is kind, offset
        assert is_beginning(told)
        assert column.form == "stream" or told.words == []


@every_way
def test_an_answer_that_stops_at_any_byte_is_a_timeout_until_it_is_whole(
    column: Column, layer: FaultLayer, answer: Answer, enclave: LocalEnclave
) -> None:
    offsets = [
        0,
        5,
        answer.head - 1,
        answer.head,
        answer.begins[2] + 30,
        answer.begins[6] - 1,
        answer.done - 1,
    ]

    def stopped(offset: int) -> Told:
        with FaultLayer(enclave) as own:
            (told,) = struck(own, column, [stall_at(offset)], timeout=0.4)
        return told

    with ThreadPoolExecutor(len(offsets)) as pool:
        for told in pool.map(stopped, offsets):
            assert type(told.error) is APITimeoutError
            assert is_beginning(told)
    assert stopped(answer.done).text == TEXT


@every_way
def test_a_bit_flipped_at_any_byte_changes_no_word_unnoticed(
    column: Column, layer: FaultLayer, answer: Answer
) -> None:
    """A word may be lost: what is not sealed, such as an event's name, can hide an event (see SECURITY.md)."""
    dice = random.Random(7)
    frame = range(answer.begins[HALF], answer.begins[HALF] + len(b"2d0\r\nevent: data\ndata: "))
    places = dice.sample([(offset, bit) for offset in frame for bit in range(8)], 80)
    places += [(dice.randrange(answer.length), dice.randrange(8)) for _ in range(60)]
    strikes = [flip_at(offset, bit) for offset, bit in places]
    lost = 0
    for place, told in zip(places, struck(layer, column, strikes), strict=True):
        if told.error is None:
            assert told.text in SUBSETS, place
            lost += told.text != TEXT
        else:
            assert isinstance(told.error, PremError), place
            assert is_beginning(told) or column.form == "stream"
            assert told.text in SUBSETS, place
    assert lost  # or the sentence above is no longer true


@every_way
def test_a_bit_flipped_in_what_is_sealed_is_never_unnoticed(
    column: Column, layer: FaultLayer, answer: Answer
) -> None:
    dice = random.Random(8)
    sealed = [
        offset
        for begin, end in zip(answer.begins[1:-2], answer.begins[2:-1], strict=True)
        for offset in range(begin + len(b"2d0\r\nevent: data\ndata: "), end - len(b"\n\n\r\n"))
    ]
    # Bit 5 makes a capital of a letter, which is the same hex.
    places = [(dice.choice(sealed), dice.choice((0, 1, 2, 3, 4, 6, 7))) for _ in range(60)]
    for told in struck(layer, column, [flip_at(offset, bit) for offset, bit in places]):
        assert isinstance(told.error, PremError)
        assert is_beginning(told)
