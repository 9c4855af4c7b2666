"""Failed requests: truncated or compressed responses, retries, timeouts, redirects, unreachable services."""

import gzip

import httpx
import pytest
from support.client_api import CHUNK, StallingStream
from support.fake_gateway import EVENT_STREAM, HELLO, JSON, PARAMS, FakeEnclave, FakeGateway, error_text
from support.waiting import SOON, eventually

from prem_core import PremClient
from prem_core import _errors as errors


def test_a_redirect_is_not_followed(api, make):
    with FakeGateway() as other:
        redirect = {"location": f"{other.url}/rvenc/chat/completions"}
        with FakeGateway(lambda call: call.reply(b"", 307, redirect)) as gateway:
            for ask in (api.create, api.stream):
                with pytest.raises(errors.APIStatusError) as caught:
                    ask(make(gateway))
                assert caught.value.status_code == 307
    assert other.calls == []


def test_a_redirect_of_the_key_request_is_not_followed(api, make):
    with FakeGateway(enclave=FakeEnclave(2)) as other:
        redirect = {"location": f"{other.url}/publicKey"}
        with FakeGateway(key=lambda call: call.reply(b"", 302, redirect)) as gateway:
            with pytest.raises(errors.EnclaveKeyError):
                api.create(make(gateway))
    assert other.calls == []


def test_a_redirect_is_not_followed_even_if_the_callers_http_client_follows_them(api):
    # An attacker who can redirect the key request chooses the key that the prompt is sealed to.
    with FakeGateway(enclave=FakeEnclave(2)) as other:
        redirect = {"location": f"{other.url}/publicKey"}
        with FakeGateway(key=lambda call: call.reply(b"", 302, redirect)) as gateway:
            http = api.http_class(follow_redirects=True)
            client = api.client_class(**gateway.settings(http_client=http))
            with pytest.raises(errors.EnclaveKeyError):
                api.create(client)
            api.close_http(http)
    assert other.calls == []


CODED = {"content-encoding": "gzip", "content-type": "application/json"}
ZIPPED = gzip.compress(b"{}")


@pytest.mark.parametrize("way", ["create", "stream"])
@pytest.mark.parametrize("kind", [JSON, EVENT_STREAM])
def test_a_compressed_answer_is_rejected_and_not_retried(api, make, way, kind):
    def chat(call):
        opened = call.opened()
        plain = opened.envelope() if kind is JSON else opened.stream()
        call.reply(gzip.compress(plain), headers={**kind, "content-encoding": "gzip"})

    with FakeGateway(chat) as gateway:
        with pytest.raises(errors.APIResponseValidationError, match="content encoding 'gzip'"):
            getattr(api, way)(make(gateway))
    assert len(gateway.chats()) == 1


def test_a_compressed_models_list_is_rejected(api, make):
    with FakeGateway(other=lambda call: call.reply(ZIPPED, headers=CODED)) as gateway:
        with pytest.raises(errors.APIResponseValidationError, match="content encoding 'gzip'"):
            api.models(make(gateway))
    assert len(gateway.calls) == 1


def test_a_compressed_enclave_key_is_rejected(api, make):
    with FakeGateway(key=lambda call: call.reply(ZIPPED, headers=CODED)) as gateway:
        with pytest.raises(errors.EnclaveKeyError, match="content encoding 'gzip'") as caught:
            api.create(make(gateway))
    assert isinstance(caught.value.__cause__, errors.APIResponseValidationError)
    assert gateway.paths() == ["/publicKey"]


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, errors.AuthenticationError), (429, errors.RateLimitError), (503, errors.InternalServerError)],
)
def test_a_compressed_error_body_keeps_its_status_and_retry_after(api, make, status, kind):
    body, headers = gzip.compress(b'{"error": "SECRET"}'), {**CODED, "retry-after": "7"}
    with FakeGateway(lambda call: call.reply(body, status, headers)) as gateway:
        with pytest.raises(kind, match=f"the service answered {status}") as caught:
            api.create(make(gateway, max_retries=0))
    assert caught.value.status_code == status
    assert caught.value.retry_after == 7


@pytest.mark.parametrize("way", ["create", "stream"])
def test_a_truncated_response_is_an_error_and_not_retried(api, make, way):
    def chat(call):
        call.begin()
        call.piece(call.opened().events(*HELLO))
        call.end()

    with FakeGateway(chat) as gateway, pytest.raises(errors.StreamInterruptedError):
        getattr(api, way)(make(gateway))
    assert len(gateway.chats()) == 1


def test_the_chunks_before_a_truncation_are_yielded():
    def chat(call):
        call.begin()
        call.piece(call.opened().events(CHUNK, CHUNK))
        call.disconnect()

    with FakeGateway(chat) as gateway, PremClient(**gateway.settings()) as client:
        stream = client.chat.completions.create(**PARAMS, stream=True)
        assert [next(stream).choices[0].delta.content for _ in range(2)] == ["a", "a"]
        with pytest.raises(errors.StreamInterruptedError):
            next(stream)
        assert list(stream) == []
        assert eventually(lambda: gateway.connections == 0, SOON)


def test_a_service_that_recovers_is_retried_successfully(api, make):
    def chat(call):
        if len(gateway.chats()) == 1:
            call.reply(b"", 429, {"retry-after": "0"})
        else:
            call.stream(call.opened().stream())

    with FakeGateway(chat) as gateway:
        assert api.create(make(gateway)).choices[0].message.content == "Hello"
    assert len(gateway.chats()) == 2


def test_max_retries_zero_sends_one_request(api, make):
    with FakeGateway(lambda call: call.reply(b"", 503)) as gateway, pytest.raises(errors.InternalServerError):
        api.create(make(gateway, max_retries=0))
    assert len(gateway.chats()) == 1


def test_no_response_is_a_timeout(api, make):
    with FakeGateway(lambda call: call.wait_for_disconnect()) as gateway:
        for ask in (api.create, api.stream):
            with pytest.raises(errors.APITimeoutError):
                ask(make(gateway, timeout=0.1, max_retries=0))


def test_a_stream_that_stalls_is_a_timeout():
    with FakeGateway(StallingStream()) as gateway, PremClient(**gateway.settings(timeout=1)) as client:
        stream = client.chat.completions.create(**PARAMS, stream=True)
        next(stream)
        with pytest.raises(errors.APITimeoutError):
            next(stream)


def test_an_httpx_timeout_is_accepted(api, make):
    with FakeGateway() as gateway:
        gateway.chat = lambda call: call.wait_for_disconnect()
        timeout = httpx.Timeout(5, read=0.1)
        with pytest.raises(errors.APITimeoutError):
            api.create(make(gateway, timeout=timeout, max_retries=0))


def test_no_error_contains_the_api_key(api, make):
    replies = [
        lambda call: call.reply(b'{"error": "no"}', 401),
        lambda call: call.reply(b"", 503),
        lambda call: call.reply(b"<html>", 200),
        lambda call: call.raw(b"rubbish\r\n\r\n") or call.disconnect(),
        lambda call: call.disconnect(),
        lambda call: call.wait_for_disconnect(),
    ]
    for reply in replies:
        with FakeGateway(reply) as gateway:
            client = make(gateway, api_key="sk_test_SECRET", timeout=0.2, max_retries=0)
            for ask in (api.create, api.stream):
                with pytest.raises(errors.APIError) as caught:
                    ask(client)
                assert "SECRET" not in error_text(caught.value)
                assert caught.value.__cause__ is None


def test_an_unreachable_gateway_is_a_connection_error(api, make):
    with FakeGateway() as closed:
        pass
    with FakeGateway() as gateway:
        client = make(gateway, gateway_url=closed.url, max_retries=0)
        with pytest.raises(errors.APIConnectionError, match="gateway"):
            api.create(client)


def test_an_unreachable_enclave_is_a_connection_error(api, make):
    with FakeGateway() as closed:
        pass
    with FakeGateway() as gateway, pytest.raises(errors.APIConnectionError, match="enclave"):
        api.create(make(gateway, enclave_url=closed.url, max_retries=0))
    assert gateway.calls == []


def test_an_error_event_before_the_first_chunk_is_raised_by_create(api, make):
    with FakeGateway(
        lambda call: call.stream(b'event: error\ndata: {"error": {"message": "no", "type": "x"}}\n\n')
    ) as gateway:
        with pytest.raises(errors.APIError, match="no"):
            api.create(make(gateway))


def test_a_response_larger_than_the_buffer_is_an_error(api, make):
    def chat(call):
        call.head(200, EVENT_STREAM)
        call.raw(b"data: " + b"0" * 300_000)
        call.wait_for_disconnect()

    with FakeGateway(chat) as gateway:
        for ask in (api.create, api.stream):
            with pytest.raises(errors.ResponseTooLargeError):
                ask(make(gateway, max_buffer_size=100_000))
