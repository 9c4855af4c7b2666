"""The probe: with `nonce_reuse="error"` it shows, before the first prompt to a model, which nonce its replies have."""

import asyncio
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.fake_gateway import JSON, PARAMS, FakeEnclave
from support.probed_gateway import ProbedGateway, in_an_envelope, stream_hello, under_the_requests_nonce
from support.waiting import SOON

from prem_core import AsyncPremClient, NonceReuseError, PremClient
from prem_core import _errors as errors
from prem_core._protocol import nonce_reuse, retry
from prem_core._protocol.nonce_reuse import REPLY_FORMS

ways = pytest.mark.parametrize("way", ["create", "stream"])
reused = pytest.mark.parametrize("reply", [stream_hello, under_the_requests_nonce])

SECRETS = {
    "messages": [
        {"role": "system", "content": "You are the zebra clinic."},
        {"role": "user", "content": "Zebra?", "name": "zebra"},
    ],
    "tools": [{"type": "function", "function": {"name": "zebra", "parameters": {"type": "object"}}}],
    "metadata": {"zebra": "zebra"},
    "safety_identifier": "zebra",
}


# --- the probe


def test_a_probe_holds_nothing_but_a_random_word(api, make):
    words = set()
    for _ in range(3):
        REPLY_FORMS.clear()
        with ProbedGateway() as gateway:
            api.create(make(gateway, nonce_reuse="error"), **SECRETS)
        probe = gateway.opened[0]
        assert set(probe.params) == {"model", "max_tokens", "messages"}
        (message,) = probe.params["messages"]
        assert set(message) == {"role", "content"}
        assert re.fullmatch("[a-z2-7]{20}", message["content"])
        assert b"zebra" not in probe.plaintext.lower()
        words.add(message["content"])
    assert len(words) == 3


@ways
@reused
def test_the_prompt_is_not_sent_where_the_probe_finds_nonce_reuse(api, make, way, reply):
    with ProbedGateway(probe=reply, prompt=reply) as gateway:
        client = make(gateway, nonce_reuse="error")
        for _ in range(2):
            with pytest.raises(NonceReuseError, match="nonce_reuse='error'"):
                getattr(api, way)(client, **SECRETS)
    assert len(gateway.probes) == 1
    assert gateway.prompts == []
    assert all(b"zebra" not in opened.plaintext.lower() for opened in gateway.opened)


@ways
def test_a_model_is_probed_once(api, make, way):
    with ProbedGateway() as gateway:
        client = make(gateway, nonce_reuse="error")
        for _ in range(3):
            getattr(api, way)(client)
    assert (len(gateway.probes), len(gateway.prompts)) == (1, 3)


def test_every_model_is_probed(api, make):
    with ProbedGateway() as gateway:
        client = make(gateway, nonce_reuse="error")
        for model in ("one", "two", "one"):
            api.create(client, model=model)
    assert [probe["model"] for probe in gateway.probes] == ["one", "two"]


def test_every_gateway_is_probed(api, make):
    with ProbedGateway() as gateway, ProbedGateway(probe=stream_hello) as other:
        api.create(make(gateway, nonce_reuse="error"))
        with pytest.raises(NonceReuseError):
            api.create(make(other, nonce_reuse="error"))
    assert (len(gateway.probes), len(other.probes)) == (1, 1)


def test_all_clients_of_a_process_share_the_outcome_of_a_probe():
    with ProbedGateway() as gateway:
        settings = gateway.settings(nonce_reuse="error")
        with PremClient(**settings) as one, PremClient(**{**settings, "api_key": "sk_test_other"}) as other:
            one.chat.completions.create(**PARAMS)
            other.chat.completions.create(**PARAMS)

        async def ask():
            async with AsyncPremClient(**settings) as client:
                await client.chat.completions.create(**PARAMS)

        asyncio.run(ask())
    assert (len(gateway.probes), len(gateway.prompts)) == (1, 3)


def test_a_forgotten_outcome_is_probed_for_again(api, make, monkeypatch):
    monkeypatch.setattr(nonce_reuse, "MAX_OUTCOMES", 2)
    with ProbedGateway() as gateway:
        client = make(gateway, nonce_reuse="error")
        for model in ("one", "two", "three", "one"):
            api.create(client, model=model)
    assert [probe["model"] for probe in gateway.probes] == ["one", "two", "three", "one"]


# --- key rotation


@ways
def test_after_a_key_rotation_the_new_key_is_probed(api, make, way):
    with ProbedGateway(enclave=FakeEnclave(1)) as gateway:
        client = make(gateway, nonce_reuse="error")
        getattr(api, way)(client)
        gateway.enclave = FakeEnclave(2)
        getattr(api, way)(client)
    assert (len(gateway.probes), len(gateway.prompts)) == (2, 2)


def test_after_a_key_rotation_the_prompt_is_not_sent_to_a_service_that_reuses_nonces(api, make):
    with ProbedGateway(enclave=FakeEnclave(1)) as gateway:
        client = make(gateway, nonce_reuse="error")
        api.create(client)
        gateway.enclave, gateway.probe, gateway.prompt = FakeEnclave(2), stream_hello, stream_hello
        with pytest.raises(NonceReuseError):
            api.create(client)
    assert (len(gateway.probes), len(gateway.prompts)) == (2, 1)


def test_a_key_rotation_before_the_probe_is_handled_by_the_probe(api, make):
    with ProbedGateway(enclave=FakeEnclave(1)) as gateway:
        client = make(gateway, nonce_reuse="error")
        api.create(client)
        gateway.enclave = FakeEnclave(2)
        assert api.create(client, model="another").choices[0].message.content == "Hello"
    # The first request with the old key was a probe, not the prompt.
    assert [call.path for call in gateway.calls].count("/publicKey") == 2
    assert len(gateway.chats()) == 5
    assert (len(gateway.probes), len(gateway.prompts)) == (2, 2)


# --- concurrency


def test_64_threads_share_one_probe():
    with ProbedGateway() as gateway:
        with PremClient(**gateway.settings(nonce_reuse="error", max_concurrency=None)) as client:
            start = threading.Barrier(64)

            def ask(_):
                start.wait(SOON)
                return client.chat.completions.create(**PARAMS).choices[0].message.content

            with ThreadPoolExecutor(64) as pool:
                assert list(pool.map(ask, range(64))) == ["Hello"] * 64
    assert (len(gateway.probes), len(gateway.prompts)) == (1, 64)


async def test_200_tasks_share_one_probe():
    with ProbedGateway() as gateway:
        async with AsyncPremClient(**gateway.settings(nonce_reuse="error", max_concurrency=20)) as client:
            answers = await asyncio.gather(*[client.chat.completions.create(**PARAMS) for _ in range(200)])
    assert len(answers) == 200
    assert (len(gateway.probes), len(gateway.prompts)) == (1, 200)


async def test_tasks_that_wait_for_a_probe_share_its_failure():
    with ProbedGateway(probe=lambda call: call.reply(b"{}", 401)) as gateway:
        # With a known key, every task waits for the probe before the first response can arrive.
        settings = gateway.settings(nonce_reuse="error", enclave_public_key=gateway.enclave.public)
        async with AsyncPremClient(**settings) as client:
            calls = [client.chat.completions.create(**PARAMS) for _ in range(10)]
            found = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(each) for each in found] == [errors.AuthenticationError] * 10
    assert (len(gateway.probes), gateway.prompts) == (1, [])


@ways
def test_a_probe_needs_no_second_permit(api, make, way):
    with ProbedGateway() as gateway:
        client = make(gateway, nonce_reuse="error", max_concurrency=1, total_timeout=SOON)
        getattr(api, way)(client)
        assert client.stats.in_flight == 0
    assert (len(gateway.probes), len(gateway.prompts)) == (1, 1)


# --- a probe that fails


def cut(call):
    body = call.opened().envelope()
    call.head(200, JSON | {"content-length": str(len(body))})
    call.raw(body[: len(body) // 2])
    call.disconnect()


def never(call):
    call.wait_for_disconnect()


FAILURES = [
    pytest.param(lambda call: call.reply(b"{}", 401), errors.AuthenticationError, 1, id="401"),
    pytest.param(lambda call: call.reply(b"{}", 404), errors.NotFoundError, 1, id="404"),
    pytest.param(
        lambda call: call.reply(b"{}", 500), errors.InternalServerError, 3, id="500, which is retried"
    ),
    pytest.param(
        lambda call: call.reply(b"{}", 429, {"retry-after": "3600"}),
        errors.RateLimitError,
        1,
        id="429 with a Retry-After of an hour",
    ),
    pytest.param(
        lambda call: call.reply(b"<html>", headers={"content-type": "text/html"}),
        errors.APIResponseValidationError,
        1,
        id="HTML",
    ),
    pytest.param(lambda call: call.reply(b"<html>"), errors.APIResponseValidationError, 1, id="no JSON"),
    pytest.param(
        lambda call: call.reply(b'{"status": 200, "data": {}}'),
        errors.APIResponseValidationError,
        1,
        id="no data",
    ),
    pytest.param(
        lambda call: call.reply(
            json.dumps({"status": 200, "data": {"encryptedResponse": "00" * 40, "nonce": "00" * 24}}).encode()
        ),
        errors.DecryptionError,
        1,
        id="bytes that do not open under another nonce",
    ),
    pytest.param(cut, errors.StreamInterruptedError, 1, id="truncated"),
    pytest.param(never, errors.APITimeoutError, 1, id="timeout"),
]


@ways
@pytest.mark.parametrize(("probe", "kind", "attempts"), FAILURES)
def test_a_probe_that_fails_raises_its_error_and_nothing_is_remembered(
    api, make, monkeypatch, way, probe, kind, attempts
):
    monkeypatch.setattr(retry, "FIRST_DELAY", 0.001)
    with ProbedGateway(probe=probe) as gateway:
        client = make(gateway, nonce_reuse="error", timeout=0.3 if probe is never else SOON)
        with pytest.raises(kind) as caught:
            getattr(api, way)(client, **SECRETS)
        assert not isinstance(caught.value, NonceReuseError)
        assert client.stats.in_flight == 0
        assert len(gateway.probes) == attempts
        assert gateway.prompts == []
        gateway.probe = in_an_envelope
        getattr(api, way)(client)
    assert len(gateway.probes) == attempts + 1
    assert len(gateway.prompts) == 1


# --- a gateway that answers a probe otherwise than a prompt


@ways
@reused
def test_a_reply_under_the_requests_nonce_after_a_good_probe_is_refused_and_remembered(api, make, way, reply):
    with ProbedGateway(prompt=reply) as gateway:
        client = make(gateway, nonce_reuse="error")
        with pytest.raises(NonceReuseError):
            getattr(api, way)(client)
        for each in (client, make(gateway, nonce_reuse="error", api_key="sk_test_other")):
            with pytest.raises(NonceReuseError):
                getattr(api, way)(each)
    assert (len(gateway.probes), len(gateway.prompts)) == (1, 1)


def test_a_refused_reply_is_not_outweighed_by_a_later_good_probe():
    key, subject = FakeEnclave().public, nonce_reuse.ProbeSubject("chat", "m")
    REPLY_FORMS.record("https://gateway", key, subject, own=False)
    REPLY_FORMS.record("https://gateway", key, subject, own=True)
    assert REPLY_FORMS.own_nonce("https://gateway", key, subject) is False
