"""What a gateway without any key achieves against the client, in each mode. SECURITY.md states it in words.

The attacks run on real sockets against the client and the embedded enclave. `pytest -s` prints their figures.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

import pytest
from support.attacks.__main__ import line
from support.attacks.gateway import Recording
from support.attacks.poly1305 import TAG_BYTES, one_time_key, tag
from support.attacks.programs import ATTACKS, run
from support.attacks.scenario import ANSWER
from support.attacks.world import (
    ERROR,
    ERROR_STREAMED,
    MODES,
    UNMASKED,
    WARN,
    WHOLE,
    WHOLE_STREAMED,
    Mode,
    World,
)

from prem_core import EncryptionKeys, NonceReuseError
from prem_core._protocol.nonce_reuse import REPLY_FORMS

#: What each attack achieves, in the order of the modes. What is not here achieves nothing.
ACHIEVED = {
    WARN: {
        "passive reading": "reply whole",
        # A chunk that is longer than the mask reveals as much of the request as it has known bytes at its end.
        "passive reading, long chunk": "question in part",
        "re-opening": "question whole",
        "forged text": "forged",
        "forged tool call": "forged",
        "replayed transcript": "forged",
        "replayed file name": "forged",
    },
    UNMASKED: {
        "passive reading": "reply whole, request in part, question in part",
        "passive reading, long chunk": "question in part",
        "re-opening": "question whole",
        "forged text": "forged",
        "forged tool call": "forged",
        "replayed transcript": "forged",
        "replayed file name": "forged",
    },
    WHOLE: {
        "replayed transcript": "forged",
        "replayed file name": "forged",
        "replayed chat": "forged",
    },
    WHOLE_STREAMED: {
        "passive reading": "reply whole",
        "passive reading, long chunk": "question in part",
        "re-opening": "question whole",
        "forged text": "forged",
        "forged envelope": "forged",
        "forged tool call": "forged",
        "replayed transcript": "forged",
        "replayed file name": "forged",
    },
    ERROR: {},
    ERROR_STREAMED: {},
}


@pytest.fixture(scope="module")
def worlds() -> Iterator[dict[str, World]]:
    """By the form of the enclave's responses where no stream is asked for."""
    with World("envelope") as envelope, World("stream") as stream:
        yield {"envelope": envelope, "stream": stream}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_an_attack_achieves_no_more_and_no_less_than_documented(
    attack: str, mode: Mode, worlds: dict[str, World]
) -> None:
    result = run(attack, mode, worlds[mode.whole_replies])
    print(line(attack, mode, result))
    assert str(result) == ACHIEVED[mode].get(attack, "nothing")


@pytest.mark.parametrize("attack", ["passive reading", "re-opening", "forged text", "forged tool call"])
def test_a_prompt_is_not_sent_where_replies_come_under_the_requests_nonce(
    attack: str, worlds: dict[str, World]
) -> None:
    world = worlds["stream"]
    result = run(attack, ERROR_STREAMED, world)
    assert isinstance(result.error, NonceReuseError)
    assert result.sent == 1  # the probe
    assert "question" not in result.read or result.read["question"][0] == 0


def test_the_request_can_be_read_as_far_as_the_longest_chunk_reaches(worlds: dict[str, World]) -> None:
    result = run("passive reading", UNMASKED, worlds["envelope"])
    assert result.read["request"][0] > 300


@pytest.mark.parametrize("mode", [WHOLE, ERROR], ids=str)
def test_no_two_items_have_one_nonce_where_replies_come_in_an_envelope(
    mode: Mode, worlds: dict[str, World]
) -> None:
    """Why the attacks that need two such items fail in these modes, however they are written."""
    world = worlds["envelope"]
    world.gateway.reset()
    REPLY_FORMS.clear()
    with world.client(mode) as client:
        world.ask(client, mode)
        world.transcribe(client, "Lindqvist.wav")
    uses = Counter(nonce for recording in world.gateway.recordings for nonce, _ in recording.items)
    assert len(uses) == sum(uses.values()) >= 6


def test_a_service_that_streams_only_after_the_probe_reveals_one_reply(worlds: dict[str, World]) -> None:
    """The limit of a probe: the client refuses that reply, and sends nothing more, but the gateway can read it."""
    world, streaming = worlds["envelope"], worlds["stream"].enclave
    genuine = world.enclave
    world.gateway.reset()
    REPLY_FORMS.clear()

    def switch(recording: Recording) -> None:
        world.gateway.enclave = streaming

    world.gateway.respond = switch
    try:
        with world.client(ERROR) as client:
            for _ in range(2):
                with pytest.raises(NonceReuseError):
                    world.ask(client, ERROR)
    finally:
        world.gateway.enclave = genuine
    _, prompt = world.gateway.recordings
    assert world.read(prompt).content == ANSWER


# --- Poly1305


@pytest.fixture(scope="module")
def secret() -> EncryptionKeys:
    # Fixed values: for random ones, about one in 2^22 pairs of items has a second solution.
    return EncryptionKeys(bytes(range(32)), bytes(1120))


def test_the_one_time_key_of_two_items_under_one_nonce_can_be_computed(secret: EncryptionKeys) -> None:
    rng = random.Random(1)
    one, other, third = (secret.seal(rng.randbytes(size), bytes(24)) for size in (150, 90, 333))
    r, s = one_time_key(one, other)
    assert tag(third[:-TAG_BYTES], r, s) == third[-TAG_BYTES:]


def test_no_one_time_key_can_be_computed_from_items_under_two_nonces(secret: EncryptionKeys) -> None:
    one, other = (secret.seal(bytes(range(40)), bytes([number]) * 24) for number in range(2))
    with pytest.raises(ValueError, match="no key"):
        one_time_key(one, other)
