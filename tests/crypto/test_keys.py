import copy
import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_gateway import error_text
from support.paths import VECTORS

from prem_core._crypto.aead import NONCE_BYTES, TAG_BYTES, new_nonce
from prem_core._crypto.keys import EncryptionKeys
from prem_core._crypto.xwing import CIPHER_TEXT_BYTES, PrivateKey, PublicKey
from prem_core._errors import ConfigurationError, DecryptionError, EnclaveKeyError

VECTORS = json.loads((VECTORS / "rvenc-vectors.json").read_text())["vectors"]
SECRET = bytes(range(100, 132))
KEYS = EncryptionKeys(SECRET, bytes(CIPHER_TEXT_BYTES))
NONCE = bytes(range(24))


def opened(vector):
    cipher_text = bytes.fromhex(vector["cipherText"])
    return EncryptionKeys(PrivateKey(bytes.fromhex(vector["seed"])).decapsulate(cipher_text), cipher_text)


@pytest.mark.parametrize("vector", VECTORS)
def test_sealing_yields_the_bytes_of_the_vector(vector):
    sealed = opened(vector).seal(vector["plaintextUtf8"].encode(), bytes.fromhex(vector["nonce"]))
    assert sealed.hex() == vector["sealed"]


@pytest.mark.parametrize("vector", VECTORS)
def test_opening_yields_the_plaintext_of_the_vector(vector):
    plain = opened(vector).open(bytes.fromhex(vector["sealed"]), bytes.fromhex(vector["nonce"]))
    assert plain.decode() == vector["plaintextUtf8"]


@given(st.binary(max_size=2000), st.binary(min_size=24, max_size=24))
def test_sealed_data_opens_and_is_one_tag_longer(plain, nonce):
    sealed = KEYS.seal(plain, nonce)
    assert len(sealed) == len(plain) + TAG_BYTES
    assert KEYS.open(sealed, nonce) == plain


def test_a_flipped_bit_anywhere_in_a_short_item_does_not_open():
    sealed = KEYS.seal(b"a short answer", NONCE)
    for bit in range(len(sealed) * 8):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DecryptionError):
            KEYS.open(bytes(changed), NONCE)


@given(st.binary(min_size=1, max_size=5000), st.data())
@settings(deadline=None)
def test_a_flipped_bit_anywhere_in_a_longer_item_does_not_open(plain, data):
    sealed = bytearray(KEYS.seal(plain, NONCE))
    bit = data.draw(st.integers(0, len(sealed) * 8 - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(DecryptionError):
        KEYS.open(bytes(sealed), NONCE)


def test_a_flipped_bit_anywhere_in_the_nonce_does_not_open():
    sealed = KEYS.seal(b"answer", NONCE)
    for bit in range(NONCE_BYTES * 8):
        changed = bytearray(NONCE)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DecryptionError):
            KEYS.open(sealed, bytes(changed))


@given(st.integers(0, CIPHER_TEXT_BYTES * 8 - 1))
@settings(deadline=None)
def test_a_flipped_bit_in_the_cipher_text_does_not_open(bit):
    private = PrivateKey(SECRET)
    keys = EncryptionKeys.encapsulate(private.public_key())
    sealed = keys.seal(b"question", NONCE)
    changed = bytearray(keys.cipher_text)
    changed[bit // 8] ^= 1 << bit % 8
    wrong = EncryptionKeys(private.decapsulate(bytes(changed)), bytes(changed))
    with pytest.raises(DecryptionError):
        wrong.open(sealed, NONCE)


@pytest.mark.parametrize("length", range(TAG_BYTES + 1))
def test_an_item_shorter_than_a_tag_does_not_open(length):
    with pytest.raises(DecryptionError):
        KEYS.open(bytes(length), NONCE)


@given(st.binary(max_size=60), st.data())
def test_a_truncated_or_lengthened_item_does_not_open(plain, data):
    sealed = KEYS.seal(plain, NONCE)
    cut = data.draw(st.integers(0, len(sealed) - 1))
    for wrong in (sealed[:cut], sealed + b"\0", b"\0" + sealed):
        with pytest.raises(DecryptionError):
            KEYS.open(wrong, NONCE)


@pytest.mark.parametrize("length", [0, 12, 23, 25, 48])
def test_a_nonce_of_another_length_does_not_open(length):
    with pytest.raises(DecryptionError):
        KEYS.open(KEYS.seal(b"answer", NONCE), bytes(length))


def test_another_secret_does_not_open():
    with pytest.raises(DecryptionError):
        EncryptionKeys(bytes(32), bytes(CIPHER_TEXT_BYTES)).open(KEYS.seal(b"answer", NONCE), NONCE)


def test_every_decryption_error_has_the_same_message():
    sealed = KEYS.seal(b"the words of an answer", NONCE)
    texts = set()
    for item, nonce in [(sealed[:-1], NONCE), (b"", NONCE), (sealed, bytes(24)), (sealed, b"short")]:
        with pytest.raises(DecryptionError) as caught:
            KEYS.open(item, nonce)
        texts.add(str(caught.value))
        for shown in (sealed.hex(), SECRET.hex(), repr(sealed), repr(SECRET), "words"):
            assert shown not in error_text(caught.value)
    assert texts == {DecryptionError.MESSAGE}


def test_the_private_key_opens_what_was_sealed_to_it():
    private = PrivateKey(SECRET)
    keys = EncryptionKeys.encapsulate(private.public_key())
    assert private.decapsulate(keys.cipher_text) == keys.shared_secret


def test_an_unusable_key_is_an_enclave_key_error():
    with pytest.raises(EnclaveKeyError):
        EncryptionKeys.encapsulate(PublicKey(bytes(PrivateKey(SECRET).public_key())[:1184] + bytes(32)))


def test_keys_may_be_bytes_or_hex():
    cipher_text = bytes(range(224)) * 5
    raw = EncryptionKeys(SECRET, cipher_text)
    assert EncryptionKeys(SECRET.hex(), cipher_text.hex()) == raw
    assert EncryptionKeys(SECRET.hex().upper(), cipher_text.hex()) == raw
    assert EncryptionKeys(bytearray(SECRET), bytearray(cipher_text)) == raw
    assert raw.shared_secret == SECRET
    assert raw.cipher_text == cipher_text


@pytest.mark.parametrize(
    ("secret", "cipher_text", "name"),
    [
        (bytes(31), bytes(1120), "shared_secret"),
        (bytes(33), bytes(1120), "shared_secret"),
        (bytes(32), bytes(1119), "cipher_text"),
        (bytes(32), bytes(1121), "cipher_text"),
        (b"", bytes(1120), "shared_secret"),
        ("zz" * 32, bytes(1120), "shared_secret"),
        ("ä" * 64, bytes(1120), "shared_secret"),
        ("00" * 31, bytes(1120), "shared_secret"),
        (bytes(32), "0" * 2239, "cipher_text"),
        (None, bytes(1120), "shared_secret"),
        (32, bytes(1120), "shared_secret"),
        (bytes(32), [0] * 1120, "cipher_text"),
    ],
)
def test_invalid_keys_are_rejected_by_name(secret, cipher_text, name):
    with pytest.raises(ConfigurationError, match=name):
        EncryptionKeys(secret, cipher_text)


def test_the_error_for_invalid_keys_does_not_quote_them():
    for wrong in ("q7" * 31, "q7" * 32, SECRET[:-1], SECRET.hex()[:-2]):
        with pytest.raises(ConfigurationError) as caught:
            EncryptionKeys(wrong, bytes(CIPHER_TEXT_BYTES))
        for shown in ("q7q7", SECRET.hex()[:16], repr(SECRET[:8])[2:-1]):
            assert shown not in error_text(caught.value)


@pytest.mark.parametrize("show", [repr, str, "{}".format, "{!r}".format, lambda keys: repr([keys])])
def test_the_repr_of_keys_contains_nothing_of_the_secret(show):
    text = show(KEYS)
    assert SECRET.hex() not in text
    assert repr(SECRET)[2:-1] not in text
    assert "*" in text


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_keys_cannot_be_pickled(protocol):
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(KEYS, protocol)


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda keys: copy.deepcopy({"k": [keys]})["k"][0]]
)
def test_copied_keys_are_equal_and_work(duplicate):
    again = duplicate(KEYS)
    assert again == KEYS
    assert again.open(KEYS.seal(b"answer", NONCE), NONCE) == b"answer"


def test_keys_are_immutable():
    for name in ("shared_secret", "cipher_text"):
        with pytest.raises(AttributeError):
            setattr(KEYS, name, b"")


def test_keys_are_equal_only_to_the_same_keys():
    assert EncryptionKeys(SECRET, KEYS.cipher_text) == KEYS
    assert hash(EncryptionKeys(SECRET, KEYS.cipher_text)) == hash(KEYS)
    assert EncryptionKeys(bytes(32), KEYS.cipher_text) != KEYS
    assert EncryptionKeys(SECRET, bytes(1119) + b"\1") != KEYS
    assert (SECRET, KEYS.cipher_text) != KEYS


def test_every_nonce_is_24_fresh_bytes():
    nonces = {new_nonce() for _ in range(1000)}
    assert len(nonces) == 1000
    assert {len(nonce) for nonce in nonces} == {NONCE_BYTES}
