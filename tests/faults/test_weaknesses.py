"""The weaknesses of the documented protocol, shown on real responses. SECURITY.md describes them.

These tests pass as long as the weaknesses exist. The protocol has one key and one nonce for a whole exchange, and
nothing binds a chunk to its place. A fresh encapsulation for every request limits them to one exchange.
"""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from support.faults.columns import COLUMNS, PARAMS, QUESTION, TEXT, WORDS, Column
from support.faults.fault_proxy import Fault, FaultProxy, Pieces, ProxiedRequest
from support.faults.kinds import (
    FINISH,
    HALF,
    MIDDLE,
    Injection,
    at,
    done_too_early,
    duplicate,
    event,
    flip,
    lose,
    swap,
)
from support.faults.poly1305 import TAG_BYTES, one_time_key, tag

from prem_core import DecryptionError, EncryptionKeys, PremClient, StreamInterruptedError

CHATS = [column for column in COLUMNS if column.kind == "chat"]
every_chat = pytest.mark.parametrize("column", CHATS, ids=str)


def result_of(column: Column, proxy: FaultProxy, injection: Injection) -> Any:
    proxy.inject(Fault("in the middle", events=injection))
    with column.calls({**proxy.client_options, "max_retries": 0}) as call:
        return call()


def sealed_bytes(event: bytes) -> bytes:
    """The sealed bytes of an event: ciphertext and tag."""
    return bytes.fromhex(event.split(b"data: ")[1].strip().decode())


def xor(a: bytes, b: bytes) -> bytes:
    """The XOR of two byte strings, as long as the shorter one."""
    return bytes(x ^ y for x, y in zip(a, b, strict=False))


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


class RecordedExchange:
    """What the gateway sees of one exchange: the sealed request and the sealed chunks of the response."""

    def __init__(self, proxy: FaultProxy, question: str) -> None:
        events: list[bytes] = []

        async def record(exchange: ProxiedRequest, pieces: Pieces) -> Pieces:
            async for each in pieces:
                events.append(each)
                yield each

        proxy.clear_requests()
        proxy.inject(Fault("record", events=record))
        with PremClient(**proxy.client_options) as client:
            messages = [{"role": "user", "content": question}]
            list(client.chat.completions.create(messages=messages, stream=True, **PARAMS))
        (self.exchange,) = proxy.requests_to("gateway")
        self.request = bytes.fromhex(json.loads(self.exchange.body)["encryptedInference"])
        self.chunks = [sealed_bytes(each) for each in events if each.startswith(b"event: data")]

    def plaintext(self, sealed: bytes) -> bytes:
        """An item, decrypted with the enclave's key."""
        opened = self.exchange.opened
        return opened.keys.open(sealed, opened.nonce)


def test_a_known_chunk_reveals_the_other_chunks_and_the_request(proxy: FaultProxy) -> None:
    """SECURITY.md, "One nonce for a whole exchange": every item is encrypted with the same key stream."""
    exchange = RecordedExchange(proxy, QUESTION)
    known, *others = sorted(exchange.chunks, key=len, reverse=True)
    mask = xor(known, exchange.plaintext(known))
    for item in (*others, exchange.request):
        read = xor(item[:-TAG_BYTES], mask)
        assert read == exchange.plaintext(item)[: len(mask)]
    assert QUESTION.encode() in xor(exchange.request, mask)


def test_the_known_form_of_the_last_chunk_reveals_the_beginning_of_the_request(
    proxy: FaultProxy,
) -> None:
    """SECURITY.md, "One nonce for a whole exchange": the gateway can make its own request to learn the form.

    The chunk with the finish reason is the same in every response, except for the id and the time.
    """
    own = RecordedExchange(proxy, "Hello!")
    form = own.plaintext(own.chunks[-1])
    other = RecordedExchange(proxy, QUESTION)
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
    # Fixed values: for random ones, about one in 2^22 pairs of items has a second solution.
    return EncryptionKeys(bytes(range(32)), bytes(1120))


def test_the_one_time_key_of_two_items_under_one_nonce_can_be_computed(secret: EncryptionKeys) -> None:
    """SECURITY.md, "One nonce for a whole exchange": Poly1305's key is the same for all items."""
    rng = random.Random(1)
    one, other, third = (secret.seal(rng.randbytes(size), bytes(24)) for size in (150, 90, 333))
    r, s = one_time_key(one, other)
    assert tag(third[:-TAG_BYTES], r, s) == third[-TAG_BYTES:]


def test_no_one_time_key_can_be_computed_from_items_under_two_nonces(secret: EncryptionKeys) -> None:
    one, other = (secret.seal(bytes(range(40)), bytes([number]) * 24) for number in range(2))
    with pytest.raises(ValueError, match="no key"):
        one_time_key(one, other)


def forging(original: bytes, instead: bytes) -> Injection:
    """A gateway that replaces `original` in a response. It has no key, only the bytes it forwards.

    It computes the one-time key from the request and the first chunk. It also needs the offset of `original`,
    which is the same in every chunk.
    """

    async def inject(exchange: ProxiedRequest, events: Pieces) -> Pieces:
        request = bytes.fromhex(json.loads(exchange.body)["encryptedInference"])
        key: tuple[int, int] | None = None
        async for each in events:
            if key is None:
                key = one_time_key(request, sealed_bytes(each))
            if original in json.dumps(exchange.open(each)).encode():
                yield forged(each, place(exchange, each), key)
            else:
                yield each

    def place(exchange: ProxiedRequest, each: bytes) -> int:
        return exchange.opened.keys.open(sealed_bytes(each), exchange.opened.nonce).index(original)

    def forged(each: bytes, begin: int, key: tuple[int, int]) -> bytes:
        ciphertext = bytearray(sealed_bytes(each)[:-TAG_BYTES])
        end = begin + len(original)
        ciphertext[begin:end] = xor(xor(ciphertext[begin:end], original), instead)
        return event("data", (bytes(ciphertext) + tag(bytes(ciphertext), *key)).hex().encode())

    return inject


@every_chat
def test_a_known_chunk_can_be_forged(column: Column, proxy: FaultProxy) -> None:
    """SECURITY.md, "One nonce for a whole exchange": the gateway can forge chunks of an exchange it forwards."""
    answer = result_of(column, proxy, forging(b" eight", b" seven"))
    assert answer.error is None
    assert answer.text == TEXT.replace("eight", "seven")
