"""The enclave's key: fetched once, fetched again after a key rotation, pinned, or used through generated keys."""

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.client_api import HeldKey
from support.fake_gateway import PARAMS, FakeEnclave, FakeGateway, stream_hello
from support.waiting import SOON

from prem_core import AsyncPremClient, EncryptionKeys, PremClient
from prem_core import _errors as errors


def test_the_enclave_key_is_fetched_once_and_without_the_api_key(api, make):
    with FakeGateway() as gateway:
        client = make(gateway)
        for _ in range(3):
            api.create(client)
        api.stream(client)
    assert gateway.paths().count("/publicKey") == 1
    assert gateway.calls[0].path == "/publicKey"
    assert "authorization" not in gateway.calls[0].headers


def test_every_request_has_its_own_secret_and_nonce(api, make):
    with FakeGateway() as gateway:
        client = make(gateway)
        for _ in range(3):
            api.create(client)
    bodies = [json.loads(call.body) for call in gateway.chats()]
    assert len({body["cipherText"] for body in bodies}) == 3
    assert len({body["nonce"] for body in bodies}) == 3


@pytest.mark.parametrize("form", [lambda key: key, bytes, lambda key: bytes(key).hex()])
def test_a_pinned_key_is_used_and_never_fetched(api, make, form):
    with FakeGateway() as gateway:
        api.create(make(gateway, enclave_public_key=form(gateway.enclave.public)))
    assert "/publicKey" not in gateway.paths()


def test_after_a_key_rotation_the_new_key_is_fetched_once_and_cached(api, make):
    old, new = FakeEnclave(1), FakeEnclave(2)
    with FakeGateway(enclave=old) as gateway:

        def chat(call):
            try:
                call.stream(call.opened().stream())
            except errors.DecryptionError:
                call.reply(b'{"status": 400, "error": "failed to decrypt"}', 400)

        gateway.chat = chat
        client = make(gateway)
        api.create(client)
        gateway.enclave = new
        assert api.create(client).choices[0].message.content == "Hello"
        api.create(client)
    assert gateway.paths().count("/publicKey") == 2
    assert len(gateway.chats()) == 4


def rotating(gateway, new):
    """A chat handler of an enclave that reports a key rotation once and then has the key `new`."""

    def chat(call):
        gateway.enclave, gateway.chat = new, stream_hello
        call.reply(b'{"status": 400, "error": "failed to decrypt"}', 400)

    return chat


def test_a_changed_enclave_key_is_logged_once_with_both_fingerprints(api, make, caplog):
    old, new = FakeEnclave(1), FakeEnclave(2)
    with FakeGateway(enclave=old) as gateway:
        client = make(gateway)
        api.create(client)
        assert caplog.records == []
        gateway.chat = rotating(gateway, new)
        api.create(client)
        api.create(client)
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("prem_core", "WARNING")
    assert record.getMessage() == (
        "the enclave's public key changed: "
        f"sha256:{old.public.fingerprint()} was replaced by sha256:{new.public.fingerprint()}"
    )


def test_an_enclave_key_that_was_fetched_again_unchanged_is_not_logged(api, make, caplog):
    enclave = FakeEnclave(1)
    with FakeGateway(enclave=enclave) as gateway:
        client = make(gateway)
        api.create(client)
        gateway.chat = rotating(gateway, enclave)
        api.create(client)
    assert gateway.paths().count("/publicKey") == 2
    assert caplog.records == []


def test_a_failed_key_fetch_is_an_enclave_key_error(api, make):
    with FakeGateway(key=lambda call: call.reply(b"<html>", 404)) as gateway:
        with pytest.raises(errors.EnclaveKeyError, match="404"):
            api.create(make(gateway))
    assert gateway.chats() == []


def test_a_failed_key_fetch_is_repeated_by_the_next_request(api, make):
    with FakeGateway(key=lambda call: call.reply(b"", 404)) as gateway:
        client = make(gateway)
        with pytest.raises(errors.EnclaveKeyError):
            api.create(client)
        gateway.key = gateway.send_key
        assert api.create(client).choices[0].message.content == "Hello"


def test_threads_share_one_key_fetch():
    with FakeGateway() as gateway, PremClient(**gateway.settings()) as client, ThreadPoolExecutor(16) as pool:
        HeldKey(gateway)
        barrier = threading.Barrier(16)

        def ask(_):
            barrier.wait()
            return client.chat.completions.create(**PARAMS).choices[0].message.content

        assert list(pool.map(ask, range(16))) == ["Hello"] * 16
    assert gateway.paths().count("/publicKey") == 1


async def test_tasks_share_one_key_fetch():
    with FakeGateway() as gateway:
        HeldKey(gateway)
        async with AsyncPremClient(**gateway.settings()) as client:
            answers = await asyncio.gather(*(client.chat.completions.create(**PARAMS) for _ in range(16)))
    assert [answer.choices[0].message.content for answer in answers] == ["Hello"] * 16
    assert gateway.paths().count("/publicKey") == 1


def test_threads_share_one_key_fetch_after_a_key_rotation():
    options = {"max_concurrency": None}  # all eight requests are sent at once
    with (
        FakeGateway() as gateway,
        PremClient(**gateway.settings(**options)) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        client.chat.completions.create(**PARAMS)
        barrier = threading.Barrier(8)
        new = gateway.enclave = FakeEnclave(2)

        def chat(call):
            try:
                opened = new.open(call.body)
            except errors.DecryptionError:
                barrier.wait(SOON)
                call.reply(b'{"error": "session expired"}', 400)
            else:
                call.stream(opened.stream())

        gateway.chat = chat
        HeldKey(gateway)
        answers = list(pool.map(lambda _: client.chat.completions.create(**PARAMS), range(8)))
    assert len(answers) == 8
    assert gateway.paths().count("/publicKey") == 2


def test_a_failed_key_fetch_fails_all_waiting_requests_at_once():
    barrier = threading.Barrier(8)

    def fail(call):
        time.sleep(0.3)  # so that the threads share this fetch; a late one starts its own, which is allowed
        call.disconnect()

    def ask():
        barrier.wait()
        client.chat.completions.create(**PARAMS)

    options = {"max_retries": 0, "max_concurrency": None}
    with (
        FakeGateway(key=fail) as gateway,
        PremClient(**gateway.settings(**options)) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        calls = [pool.submit(ask) for _ in range(8)]
        found = [type(call.exception(SOON)) for call in calls]
    assert found == [errors.APIConnectionError] * 8
    assert len(gateway.calls) < 8


async def test_a_task_cancelled_during_the_key_fetch_does_not_affect_the_others():
    with FakeGateway() as gateway:
        held = HeldKey(gateway, SOON)
        async with AsyncPremClient(**gateway.settings()) as client:
            tasks = [asyncio.create_task(client.chat.completions.create(**PARAMS)) for _ in range(4)]
            assert await asyncio.to_thread(held.requested.wait, SOON)
            tasks[0].cancel()
            held.release()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert [answer.choices[0].message.content for answer in answers[1:]] == ["Hello"] * 3


def test_keys_are_generated_from_the_enclaves_key(api):
    with FakeGateway() as gateway:
        keys = api.generate(enclave_url=gateway.url)
    assert isinstance(keys, EncryptionKeys)
    assert gateway.enclave.private.decapsulate(keys.cipher_text) == keys.shared_secret
    assert gateway.paths() == ["/publicKey"]
    assert "authorization" not in gateway.calls[0].headers


def test_keys_are_generated_for_a_given_public_key(api):
    enclave = FakeEnclave()
    keys = api.generate(enclave_public_key=enclave.public)
    assert enclave.private.decapsulate(keys.cipher_text) == keys.shared_secret


def test_generated_keys_are_used_for_every_request(api, make):
    with FakeGateway() as gateway:
        client = make(gateway, encryption_keys=api.generate(enclave_url=gateway.url))
        api.create(client)
        api.stream(client)
    first, second = (json.loads(call.body) for call in gateway.chats())
    assert first["cipherText"] == second["cipherText"]
    assert first["nonce"] != second["nonce"]
    assert gateway.paths().count("/publicKey") == 1


def test_generating_keys_fails_when_the_enclave_rejects_the_request(api):
    with FakeGateway(key=lambda call: call.reply(b"", 403)) as gateway, pytest.raises(errors.EnclaveKeyError):
        api.generate(enclave_url=gateway.url)


def test_generating_keys_ignores_the_gateways_variable(api, monkeypatch):
    # Other software uses PROXY_URL for an HTTP proxy; no gateway is asked here.
    monkeypatch.setenv("PROXY_URL", "http://proxy.example:3128")
    with FakeGateway() as gateway:
        assert api.generate(enclave_url=gateway.url)
