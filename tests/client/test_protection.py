"""`prem`, in which a response says how it was protected."""

import asyncio
import hashlib
import json

import pytest
from support.fake_gateway import FakeEnclave, FakeGateway
from support.probed_gateway import ProbedGateway, stream_hello, under_the_requests_nonce

from prem_core import AsyncPremClient, EncryptionKeys, PremClient, Protection

PARAMS = {"model": "m", "messages": [{"role": "user", "content": "Hello!"}]}


def fingerprint(gateway):
    return hashlib.sha256(bytes(gateway.enclave.public)).hexdigest()


def ask(kind, settings, *, stream=False, task=None):
    """The protection of one response, by the client of this class."""

    async def asynchronous():
        async with AsyncPremClient(**settings) as client:
            if task is not None:
                return (await getattr(client.audio, task).create(file=b"RIFF")).prem
            answer = await client.chat.completions.create(**PARAMS, **({"stream": True} if stream else {}))
            if stream:
                before = answer.prem
                async for _ in answer:
                    pass
                assert answer.prem is before
            return answer.prem

    if kind == "async":
        return asyncio.run(asynchronous())
    with PremClient(**settings) as client:
        if task is not None:
            return getattr(client.audio, task).create(file=b"RIFF").prem
        answer = client.chat.completions.create(**PARAMS, **({"stream": True} if stream else {}))
        if stream:
            before = answer.prem
            list(answer)
            assert answer.prem is before
        return answer.prem


kinds = pytest.mark.parametrize("kind", ["sync", "async"])


@kinds
def test_a_stream_has_the_nonce_of_its_request(kind):
    with FakeGateway() as gateway:
        found = ask(kind, gateway.settings(), stream=True)
    assert found == Protection(
        key_fingerprint=fingerprint(gateway), key_source="fetched", reply_nonce="request's"
    )


@kinds
@pytest.mark.parametrize(
    ("reply", "nonce"), [(None, "own"), (stream_hello, "request's"), (under_the_requests_nonce, "request's")]
)
def test_a_whole_response_has_the_nonce_that_it_was_sealed_under(kind, reply, nonce):
    with ProbedGateway(**({} if reply is None else {"prompt": reply})) as gateway:
        assert ask(kind, gateway.settings()).reply_nonce == nonce


@kinds
def test_with_error_a_stream_has_a_nonce_of_its_own(kind):
    with ProbedGateway() as gateway:
        found = ask(kind, gateway.settings(nonce_reuse="error"), stream=True)
    assert found == Protection(key_fingerprint=fingerprint(gateway), key_source="fetched", reply_nonce="own")


@kinds
@pytest.mark.parametrize("task", ["transcriptions", "translations"])
@pytest.mark.parametrize(
    ("item", "nonce"), [(None, "own"), (0, "request's"), (1, "request's"), (2, "request's")]
)
def test_a_transcription_has_the_nonce_that_it_was_sealed_under(kind, task, item, nonce):
    def reply(opened):
        return opened.envelope(nonce=None if item is None else opened.nonces[item])

    with ProbedGateway(recording=reply) as gateway:
        found = ask(kind, gateway.settings(), task=task)
    assert found == Protection(key_fingerprint=fingerprint(gateway), key_source="fetched", reply_nonce=nonce)


@kinds
def test_a_pinned_key_is_reported_as_pinned(kind):
    with ProbedGateway() as gateway:
        found = ask(kind, gateway.settings(enclave_public_key=gateway.enclave.public))
    assert (found.key_source, found.key_fingerprint) == ("pinned", fingerprint(gateway))


@kinds
def test_encryption_keys_are_reported_with_the_key_that_they_were_made_for(kind):
    with ProbedGateway() as gateway:
        keys = EncryptionKeys.encapsulate(gateway.enclave.public)
        bare = EncryptionKeys(keys.shared_secret, keys.cipher_text)
        found = ask(kind, gateway.settings(encryption_keys=keys))
        unnamed = ask(kind, gateway.settings(encryption_keys=bare))
    assert (found.key_source, found.key_fingerprint) == ("encryption_keys", fingerprint(gateway))
    assert (unnamed.key_source, unnamed.key_fingerprint) == ("encryption_keys", None)


@kinds
def test_the_support_id_of_the_envelope_is_reported(kind):
    def reply(call):
        call.reply(call.opened().envelope(support_id="support_1"))

    with ProbedGateway(prompt=reply) as gateway:
        assert ask(kind, gateway.settings()).support_id == "support_1"


@kinds
def test_after_a_key_rotation_the_new_key_is_reported(kind):
    with ProbedGateway(enclave=FakeEnclave(2)) as gateway:
        client = gateway.settings()
        gateway.key = lambda call: _rotate(gateway, call)
        assert ask(kind, client).key_fingerprint == fingerprint(gateway)
    assert gateway.paths().count("/publicKey") == 2


def _rotate(gateway, call):
    """Respond with an old key first, and with the enclave's then."""
    first = gateway.paths().count("/publicKey") == 1
    key = FakeEnclave(1).public if first else gateway.enclave.public
    call.reply(json.dumps({"publicKey": bytes(key).hex()}).encode())


def test_nothing_is_attested():
    assert Protection(key_fingerprint=None, key_source="fetched", reply_nonce="own").attested is False


def test_the_names_of_a_protection_are_stable():
    protection = Protection(key_fingerprint="ab" * 32, key_source="pinned", reply_nonce="own", support_id="s")
    assert protection.as_dict() == {
        "key_fingerprint": "ab" * 32,
        "key_source": "pinned",
        "attested": False,
        "key_bound": False,
        "reply_nonce": "own",
        "support_id": "s",
    }


def test_the_protection_is_no_part_of_a_dumped_response():
    with ProbedGateway() as gateway, PremClient(**gateway.settings()) as client:
        answer = client.chat.completions.create(**PARAMS)
    assert answer.prem is not None
    assert "prem" not in answer.model_dump()
    assert "reply_nonce" not in answer.model_dump_json()
