"""What the documented protocol cannot keep or notice, shown on real answers. SECURITY.md says the same in words.

These tests pass as long as the weaknesses are there. They are the protocol's: one key and one nonce for a whole
exchange, and nothing that binds a chunk to its place. A fresh KEM for every request keeps them inside one exchange.
"""

from __future__ import annotations

import json
import secrets
from typing import Any

import pytest
from support.faults.columns import COLUMNS, PARAMS, QUESTION, TEXT, WORDS, Column
from support.faults.kinds import (
    FINISH,
    HALF,
    MIDDLE,
    Strike,
    at,
    done_too_early,
    duplicate,
    event,
    flip,
    lose,
    swap,
)
from support.faults.layer import Exchange, Fault, FaultLayer, Pieces
from support.faults.poly1305 import TAG_BYTES, one_time_key, tag

from prem_core import DecryptionError, EncryptionKeys, PremClient, StreamInterruptedError
from prem_core._crypto.aead import new_nonce

CHATS = [column for column in COLUMNS if column.kind == "chat"]
every_chat = pytest.mark.parametrize("column", CHATS, ids=str)


def told(column: Column, layer: FaultLayer, strike: Strike) -> Any:
    layer.strike(Fault("in the middle", events=strike))
    with column.asking({**layer.client_options, "max_retries": 0}) as ask:
        return ask()


def sealed_bytes(event: bytes) -> bytes:
    """What stands sealed in an event: ciphertext and tag."""
    return bytes.fromhex(event.split(b"data: ")[1].strip().decode())


def xor(a: bytes, b: bytes) -> bytes:
    """As far as both go."""
    return bytes(x ^ y for x, y in zip(a, b, strict=False))


# --- order


@every_chat
def test_chunks_that_change_places_are_not_noticed(column: Column, layer: FaultLayer) -> None:
    """SECURITY.md, "Chunks are not bound to their order"."""
    words = [*WORDS]
    words[HALF], words[HALF + 1] = words[HALF + 1], words[HALF]
    answer = told(column, layer, swap(MIDDLE))
    assert answer.error is None
    assert answer.text == "".join(words) != TEXT


@every_chat
def test_a_chunk_that_comes_twice_is_not_noticed(column: Column, layer: FaultLayer) -> None:
    """SECURITY.md, "Chunks are not bound to their order"."""
    answer = told(column, layer, at(MIDDLE, duplicate))
    assert answer.error is None
    assert answer.text == "".join([*WORDS[: HALF + 1], *WORDS[HALF:]])


@every_chat
def test_a_chunk_that_is_left_out_is_not_noticed(column: Column, layer: FaultLayer) -> None:
    """SECURITY.md, "Chunks are not bound to their order"."""
    answer = told(column, layer, at(MIDDLE, lose))
    assert answer.error is None
    assert answer.text == "".join([*WORDS[:HALF], *WORDS[HALF + 1 :]])


@pytest.mark.parametrize(
    ("strike", "error"),
    [
        pytest.param(at(FINISH, lose), StreamInterruptedError, id="the finish reason is left out"),
        pytest.param(done_too_early(FINISH), StreamInterruptedError, id="the finish reason comes after done"),
        pytest.param(at(MIDDLE, flip(30)), DecryptionError, id="a chunk is changed"),
    ],
)
@every_chat
def test_what_ends_an_answer_and_what_a_chunk_says_is_noticed(
    column: Column, strike: Strike, error: type[Exception], layer: FaultLayer
) -> None:
    assert isinstance(told(column, layer, strike).error, error)


# --- one nonce


class Tapped:
    """What the gateway sees of one exchange: the sealed request, and the sealed chunks of its answer."""

    def __init__(self, layer: FaultLayer, question: str) -> None:
        events: list[bytes] = []

        async def tap(exchange: Exchange, pieces: Pieces) -> Pieces:
            async for each in pieces:
                events.append(each)
                yield each

        layer.forget()
        layer.strike(Fault("tapped", events=tap))
        with PremClient(**layer.client_options) as client:
            messages = [{"role": "user", "content": question}]
            list(client.chat.completions.create(messages=messages, stream=True, **PARAMS))
        (self.exchange,) = layer.asked("gateway")
        self.request = bytes.fromhex(json.loads(self.exchange.body)["encryptedInference"])
        self.chunks = [sealed_bytes(each) for each in events if each.startswith(b"event: data")]

    def plaintext(self, sealed: bytes) -> bytes:
        """What an item says, opened with the enclave's own key."""
        opened = self.exchange.opened
        return opened.keys.open(sealed, opened.nonce)


def test_who_knows_what_one_chunk_says_can_read_the_others_and_the_request(layer: FaultLayer) -> None:
    """SECURITY.md, "One nonce for a whole exchange": every item is masked with the same bytes."""
    exchange = Tapped(layer, QUESTION)
    known, *others = sorted(exchange.chunks, key=len, reverse=True)
    mask = xor(known, exchange.plaintext(known))
    for item in (*others, exchange.request):
        read = xor(item[:-TAG_BYTES], mask)
        assert read == exchange.plaintext(item)[: len(mask)]
    assert QUESTION.encode() in xor(exchange.request, mask)


def test_who_knows_only_the_form_of_the_last_chunk_can_read_the_beginning_of_the_request(
    layer: FaultLayer,
) -> None:
    """SECURITY.md, "One nonce for a whole exchange": the gateway need not be told anything, it asks for itself.

    The chunk with the finish reason says the same in every answer but for the answer's id and the time.
    """
    own = Tapped(layer, "Hello!")
    form = own.plaintext(own.chunks[-1])
    other = Tapped(layer, QUESTION)
    guessed = xor(other.request, xor(other.chunks[-1], form))
    request = other.plaintext(other.request)
    wrong = [place for place, (a, b) in enumerate(zip(guessed, request, strict=False)) if a != b]
    answer_id = form.index(json.loads(form)["id"].encode())
    created = form.index(str(json.loads(form)["created"]).encode())
    spans = {*range(answer_id, answer_id + len("chatcmpl-") + 24), *range(created, created + 10)}
    assert set(wrong) <= spans
    assert len(guessed) - len(wrong) > 100


@pytest.fixture(scope="module")
def secret() -> EncryptionKeys:
    return EncryptionKeys(secrets.token_bytes(32), bytes(1120))


def test_the_one_time_key_of_two_items_under_one_nonce_can_be_worked_out(secret: EncryptionKeys) -> None:
    """SECURITY.md, "One nonce for a whole exchange": Poly1305's key repeats with it."""
    nonce = new_nonce()
    one, other, third = (secret.seal(secrets.token_bytes(size), nonce) for size in (150, 90, 333))
    r, s = one_time_key(one, other)
    assert tag(third[:-TAG_BYTES], r, s) == third[-TAG_BYTES:]


def test_under_two_nonces_there_is_nothing_to_work_out(secret: EncryptionKeys) -> None:
    one, other = (secret.seal(secrets.token_bytes(40), new_nonce()) for _ in range(2))
    with pytest.raises(ValueError, match="no key"):
        one_time_key(one, other)


def forging(said: bytes, instead: bytes) -> Strike:
    """A gateway that makes an answer say something else. It has what passes it, and no key.

    From the request and the first chunk it works out how to make tags; what it puts in place of `said` it needs to
    know the place of, which is the same in every chunk.
    """

    async def strike(exchange: Exchange, events: Pieces) -> Pieces:
        request = bytes.fromhex(json.loads(exchange.body)["encryptedInference"])
        key: tuple[int, int] | None = None
        async for each in events:
            if key is None:
                key = one_time_key(request, sealed_bytes(each))
            if said in json.dumps(exchange.open(each)).encode():
                yield forged(each, place(exchange, each), key)
            else:
                yield each

    def place(exchange: Exchange, each: bytes) -> int:
        return exchange.opened.keys.open(sealed_bytes(each), exchange.opened.nonce).index(said)

    def forged(each: bytes, begin: int, key: tuple[int, int]) -> bytes:
        ciphertext = bytearray(sealed_bytes(each)[:-TAG_BYTES])
        end = begin + len(said)
        ciphertext[begin:end] = xor(xor(ciphertext[begin:end], said), instead)
        return event("data", (bytes(ciphertext) + tag(bytes(ciphertext), *key)).hex().encode())

    return strike


@every_chat
def test_who_knows_what_a_chunk_says_can_make_it_say_something_else(
    column: Column, layer: FaultLayer
) -> None:
    """SECURITY.md, "One nonce for a whole exchange": the gateway can forge chunks of an exchange it passes on."""
    answer = told(column, layer, forging(b" eight", b" seven"))
    assert answer.error is None
    assert answer.text == TEXT.replace("eight", "seven")
