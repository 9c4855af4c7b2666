"""Any single change of a sealed byte in a request, a response or a file fails closed.

Sealed bytes are sent as hex, so a change is another digit, one digit less or one more. `tests/crypto` tests single
sealed items, and every bit of a key file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.fake_gateway import (
    COMPLETION,
    DONE,
    HELLO,
    FakeEnclave,
    OpenedRequest,
    chunk,
    event,
    open_completion,
)
from support.raw_client import CHAT, TRANSCRIPTIONS, WHISPER, RawClient, params

from prem_core import DecryptionError, PremError
from prem_core._crypto import keyfile
from prem_core._crypto.aead import new_nonce
from prem_core._crypto.keys import EncryptionKeys
from prem_core._crypto.xwing import PrivateKey
from prem_core._protocol.chat_stream import ChatStreamReader
from prem_core._protocol.request_body import Body, audio_body, chat_body
from prem_core._protocol.response_body import open_response
from prem_core.enclave import LocalEnclave
from prem_core.enclave.envelope import EnvelopeError
from prem_core.enclave.opened_request import open_audio, open_chat
from prem_core.enclave.sealed_fields import DECRYPT_MESSAGE

thorough = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
HEX = "0123456789abcdef"


class Change(NamedTuple):
    """A change of some hex: a digit replaced, removed or inserted."""

    kind: str
    place: int
    digit: str

    def of(self, text: str) -> str:
        at = self.place % len(text)
        if self.kind == "removed":
            return text[:at] + text[at + 1 :]
        if self.kind == "inserted":
            return text[:at] + self.digit + text[at:]
        if self.kind == "a byte removed":
            return text[: at & ~1] + text[(at & ~1) + 2 :]
        if self.kind == "not hex":
            return text[:at] + "gz \x00\xe9-"[HEX.index(self.digit) % 6] + text[at + 1 :]
        new = HEX[(int(text[at], 16) + 1 + HEX.index(self.digit) % 15) % 16]
        return text[:at] + new + text[at + 1 :]


changes = st.builds(
    Change,
    st.sampled_from(["replaced", "replaced", "replaced", "removed", "inserted", "a byte removed", "not hex"]),
    st.integers(0, 1 << 20),
    st.sampled_from(HEX),
)

# --- requests, at the enclave

PRIVATE = PrivateKey(bytes(range(32)))
CHAT_FIELDS = ("encryptedInference", "cipherText", "nonce")
AUDIO_FIELDS = (*CHAT_FIELDS, "encryptedFile", "fileNonce", "encryptedFileName", "fileNameNonce")


def _sent(body: Body) -> dict[str, str]:
    fields: dict[str, str] = json.loads(body if isinstance(body, bytes) else b"".join(body))
    return fields


_MADE = EncryptionKeys.encapsulate(PRIVATE.public_key())
CHAT_BODY = _sent(chat_body(_MADE, json.dumps(params()).encode(), new_nonce()))
_NONCES = (new_nonce(), new_nonce(), new_nonce())
AUDIO_BODY = _sent(
    audio_body(_MADE, json.dumps({"model": WHISPER}).encode(), b"note.wav", b"RIFF and so on", _NONCES)
)


def test_the_unchanged_requests_open() -> None:
    assert open_chat(PRIVATE, json.dumps(CHAT_BODY).encode()).params == params()
    assert open_audio(PRIVATE, "transcribe", json.dumps(AUDIO_BODY).encode()).audio == b"RIFF and so on"


@given(st.sampled_from(CHAT_FIELDS), changes)
@thorough
def test_a_chat_request_with_any_change_is_rejected(name: str, change: Change) -> None:
    body = {**CHAT_BODY, name: change.of(CHAT_BODY[name])}
    with pytest.raises(EnvelopeError) as caught:
        open_chat(PRIVATE, json.dumps(body).encode())
    assert caught.value.status == 400
    if change.kind == "replaced":
        assert caught.value.error == DECRYPT_MESSAGE


@given(st.sampled_from(AUDIO_FIELDS), changes)
@thorough
def test_a_transcription_request_with_any_change_is_rejected(name: str, change: Change) -> None:
    body = {**AUDIO_BODY, name: change.of(AUDIO_BODY[name])}
    with pytest.raises(EnvelopeError) as caught:
        open_audio(PRIVATE, "transcribe", json.dumps(body).encode())
    assert caught.value.status == 400
    if change.kind == "replaced":
        assert caught.value.error == DECRYPT_MESSAGE


@given(st.sampled_from(AUDIO_FIELDS), st.sampled_from(AUDIO_FIELDS))
@thorough
def test_swapped_items_are_rejected(one: str, other: str) -> None:
    body = {**AUDIO_BODY, one: AUDIO_BODY[other], other: AUDIO_BODY[one]}
    if body == AUDIO_BODY:
        return
    with pytest.raises(EnvelopeError):
        open_audio(PRIVATE, "transcribe", json.dumps(body).encode())


@given(st.sets(st.integers(0, 3000)))
@thorough
def test_upper_case_hex_digits_are_the_same_bytes(places: set[int]) -> None:
    body = {
        name: "".join(d.upper() if i % 3000 in places else d for i, d in enumerate(text))
        for name, text in CHAT_BODY.items()
    }
    assert open_chat(PRIVATE, json.dumps(body).encode()).params == params()


@pytest.fixture(scope="module")
def wire() -> Iterator[RawClient]:
    with LocalEnclave(private_key=PRIVATE) as prem, httpx.Client(trust_env=False, timeout=60) as http:
        yield RawClient(prem, http)


@given(
    st.sampled_from(
        [(CHAT, name) for name in CHAT_FIELDS] + [(TRANSCRIPTIONS, name) for name in AUDIO_FIELDS]
    ),
    changes,
)
@settings(thorough, max_examples=40)
def test_a_request_with_any_change_gets_status_400(
    wire: RawClient, where: tuple[str, str], change: Change
) -> None:
    path, name = where
    body = CHAT_BODY if path == CHAT else AUDIO_BODY
    response = wire.post({**body, name: change.of(body[name])}, path)
    assert response.status_code == 400
    assert response.json()["data"] is None


# --- responses, at the client

ENCLAVE = FakeEnclave()
KEYS = EncryptionKeys.encapsulate(ENCLAVE.public)
OPENED: OpenedRequest = ENCLAVE.open(chat_body(KEYS, b"{}", new_nonce()))
SEALED = [OPENED.seal(chunk(value)) for value in HELLO]
STREAM = b"".join(event("data", each) for each in SEALED) + DONE


def read(stream: bytes) -> tuple[list[Any], PremError | None]:
    """The chunks of a stream, and the error it ends with."""
    reader = ChatStreamReader(KEYS, OPENED.nonce, 1 << 20)
    chunks = []
    try:
        for each in reader.feed(stream):
            chunks.append(each)
        reader.finish()
    except PremError as error:
        return chunks, error
    return chunks, None


WHOLE, _ = read(STREAM)


@given(st.integers(0, len(SEALED) - 1), changes)
@thorough
def test_a_stream_ends_at_a_chunk_with_any_change(number: int, change: Change) -> None:
    changed = [*SEALED[:number], change.of(SEALED[number]), *SEALED[number + 1 :]]
    chunks, error = read(b"".join(event("data", each) for each in changed) + DONE)
    assert chunks == WHOLE[:number]
    assert type(error) is DecryptionError


@given(st.integers(0, len(STREAM) - 1), st.integers(0, 255))
@settings(thorough, max_examples=500)
def test_a_stream_with_any_changed_byte_yields_only_sealed_chunks(place: int, byte: int) -> None:
    # The names of events and the line ends are not sealed: a change there can drop a chunk.
    chunks, error = read(STREAM[:place] + bytes([byte]) + STREAM[place + 1 :])
    left = iter(WHOLE)
    assert all(each in left for each in chunks), "chunks that were sealed, in their order"
    if error is None and chunks != WHOLE:
        assert len(chunks) == len(WHOLE) - 1


@given(st.sampled_from(["encryptedResponse", "nonce"]), changes)
@thorough
def test_a_whole_response_with_any_change_does_not_open(name: str, change: Change) -> None:
    for plaintext, read_it in (
        (COMPLETION, open_completion),
        (b'{"text": "Hello"}', open_response),
    ):
        body = json.loads(OPENED.envelope(plaintext))
        body["data"][name] = change.of(body["data"][name])
        with pytest.raises(DecryptionError) as caught:
            read_it(KEYS, json.dumps(body).encode())
        assert str(caught.value) == DecryptionError.MESSAGE


@given(st.data())
@settings(thorough, max_examples=500)
def test_a_whole_response_with_any_changed_byte_is_an_error_or_unchanged(data: st.DataObject) -> None:
    body = bytearray(OPENED.envelope(COMPLETION))
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        completion = open_completion(KEYS, bytes(body))
    except PremError:
        return
    assert completion == open_completion(KEYS, OPENED.envelope(COMPLETION))


# --- files


@given(changes)
@settings(thorough, max_examples=100)
def test_a_kek_file_with_any_change_opens_no_key_file(
    tmp_path_factory: pytest.TempPathFactory, change: Change
) -> None:
    folder = tmp_path_factory.getbasetemp()
    kek = bytes(range(32))
    keys, file = folder / "keys.prem", folder / "kek"
    if not keys.exists():
        KEYS.save(keys, kek)
    file.unlink(missing_ok=True)
    file.write_bytes(change.of(kek.hex()).encode())
    file.chmod(0o600)
    with pytest.raises(PremError):
        EncryptionKeys.load(keys, keyfile.read_kek(file))
