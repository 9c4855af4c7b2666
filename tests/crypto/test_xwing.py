import copy
import hashlib
import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.paths import VECTORS

from prem_core._crypto.xwing import (
    CIPHER_TEXT_BYTES,
    PUBLIC_KEY_BYTES,
    SEED_BYTES,
    SHARED_SECRET_BYTES,
    PrivateKey,
    PublicKey,
)

NOBLE = json.loads((VECTORS / "rvenc-vectors.json").read_text())["vectors"]
DRAFT = json.loads((VECTORS / "xwing-draft-vectors.json").read_text())["vectors"]
TRIPLES = [(v["seed"], v["publicKey"], v["cipherText"], v["sharedSecret"]) for v in NOBLE] + [
    (v["seed"], v["pk"], v["ct"], v["ss"]) for v in DRAFT
]
SEED = bytes(range(32))


def test_there_are_vectors_of_both_sources():
    assert len(NOBLE) >= 5
    assert len(DRAFT) >= 3


@pytest.mark.parametrize(("seed", "public", "cipher_text", "secret"), TRIPLES)
def test_a_seed_derives_the_public_key_of_the_vector(seed, public, cipher_text, secret):
    assert bytes(PrivateKey(bytes.fromhex(seed)).public_key()).hex() == public


@pytest.mark.parametrize(("seed", "public", "cipher_text", "secret"), TRIPLES)
def test_a_cipher_text_decapsulates_to_the_secret_of_the_vector(seed, public, cipher_text, secret):
    assert PrivateKey(bytes.fromhex(seed)).decapsulate(bytes.fromhex(cipher_text)).hex() == secret


@given(seed=st.binary(min_size=32, max_size=32))
@settings(max_examples=25, deadline=None)
def test_an_encapsulated_secret_is_decapsulated_by_the_private_key(seed):
    private = PrivateKey(seed)
    secret, cipher_text = PublicKey(bytes(private.public_key())).encapsulate()
    assert len(secret) == SHARED_SECRET_BYTES
    assert len(cipher_text) == CIPHER_TEXT_BYTES
    assert private.decapsulate(cipher_text) == secret


def test_every_encapsulation_is_fresh():
    public = PrivateKey(SEED).public_key()
    runs = [public.encapsulate() for _ in range(20)]
    assert len({secret for secret, _ in runs}) == 20
    assert len({cipher_text for _, cipher_text in runs}) == 20
    # Both halves of each: a fixed ML-KEM or X25519 half would leave only one lock.
    assert len({cipher_text[:1088] for _, cipher_text in runs}) == 20
    assert len({cipher_text[1088:] for _, cipher_text in runs}) == 20


def test_another_private_key_decapsulates_another_secret():
    secret, cipher_text = PrivateKey(SEED).public_key().encapsulate()
    assert PrivateKey(bytes(32)).decapsulate(cipher_text) != secret


def test_a_flipped_bit_anywhere_in_a_cipher_text_changes_the_secret():
    private = PrivateKey(SEED)
    secret, cipher_text = private.public_key().encapsulate()
    found = set()
    for bit in range(len(cipher_text) * 8):
        changed = bytearray(cipher_text)
        changed[bit // 8] ^= 1 << bit % 8
        found.add(private.decapsulate(bytes(changed)))
    assert secret not in found
    assert len(found) == len(cipher_text) * 8


@given(st.integers(0, 3000).filter(lambda n: n != PUBLIC_KEY_BYTES))
def test_a_public_key_of_another_length_is_rejected(length):
    with pytest.raises(ValueError, match=f"{PUBLIC_KEY_BYTES} bytes"):
        PublicKey(bytes(length))


@given(st.integers(0, 3000).filter(lambda n: n != CIPHER_TEXT_BYTES))
def test_a_cipher_text_of_another_length_is_rejected(length):
    with pytest.raises(ValueError, match=f"{CIPHER_TEXT_BYTES} bytes"):
        PrivateKey(SEED).decapsulate(bytes(length))


@given(st.integers(0, 200).filter(lambda n: n != SEED_BYTES))
def test_a_seed_of_another_length_is_rejected(length):
    with pytest.raises(ValueError, match=f"{SEED_BYTES} bytes"):
        PrivateKey(bytes(length))


def test_an_invalid_ml_kem_key_is_rejected():
    # Every coefficient is above the modulus.
    with pytest.raises(ValueError):
        PublicKey(b"\xff" * PUBLIC_KEY_BYTES)


def test_a_public_key_with_a_small_order_x25519_half_is_rejected():
    raw = bytes(PrivateKey(SEED).public_key())[:1184] + bytes(32)
    with pytest.raises(ValueError):
        PublicKey(raw).encapsulate()


def test_a_cipher_text_with_a_small_order_x25519_half_is_rejected():
    private = PrivateKey(SEED)
    _, cipher_text = private.public_key().encapsulate()
    with pytest.raises(ValueError):
        private.decapsulate(cipher_text[:1088] + bytes(32))


def test_the_fingerprint_is_the_sha256_of_the_key():
    public = PrivateKey(SEED).public_key()
    assert public.fingerprint() == hashlib.sha256(bytes(public)).hexdigest()


def test_the_repr_of_a_public_key_contains_the_start_of_its_fingerprint():
    public = PrivateKey(SEED).public_key()
    for text in (repr(public), str(public)):
        assert public.fingerprint()[:16] in text
        assert len(text) < 60


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda key: pickle.loads(pickle.dumps(key))])
def test_a_copied_public_key_is_equal_and_works(duplicate):
    private = PrivateKey(SEED)
    again = duplicate(private.public_key())
    assert again == private.public_key()
    assert hash(again) == hash(private.public_key())
    secret, cipher_text = again.encapsulate()
    assert private.decapsulate(cipher_text) == secret


def test_public_keys_are_equal_only_to_the_same_key():
    public = PrivateKey(SEED).public_key()
    assert public == PublicKey(bytes(public))
    assert public != PrivateKey(bytes(32)).public_key()
    assert public != bytes(public)


def test_a_public_key_is_independent_of_the_buffer_it_was_read_from():
    raw = bytearray(bytes(PrivateKey(SEED).public_key()))
    public = PublicKey(raw)
    before = bytes(public)
    raw[0] ^= 1
    assert bytes(public) == before


def test_the_repr_of_a_private_key_contains_nothing_of_its_seed():
    private = PrivateKey(SEED)
    for text in (repr(private), str(private), f"{private}"):
        assert SEED.hex() not in text
        assert repr(SEED)[2:-1] not in text


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_private_key_cannot_be_pickled(protocol):
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(PrivateKey(SEED), protocol)
