"""`retry_after_send`: a request that the service may have accepted is not sent again, as it could be charged twice."""

import asyncio
import contextlib
import socket

import pytest
from support.client_api import CHUNK
from support.fake_gateway import JSON, FakeGateway, stream_hello

from prem_core import ConfigurationError, PremClient
from prem_core import _errors as errors
from prem_core._protocol import retry

ways = pytest.mark.parametrize("way", ["create", "stream", "transcribe"])

#: By setting: how many requests a client with two retries sends.
REQUESTS = [({}, 1), ({"retry_after_send": False}, 1), ({"retry_after_send": True}, 3)]
flags = pytest.mark.parametrize(("flag", "requests"), REQUESTS, ids=["by default", "False", "True"])

NOTE = "retry_after_send=True"


@pytest.fixture(autouse=True)
def no_backoff(monkeypatch):
    monkeypatch.setattr(retry, "FIRST_DELAY", 0.001)


@pytest.fixture
def failing(api, make):
    """Make a call that fails, and return its error and how many requests were sent."""

    def fail(way, respond, **settings):
        with FakeGateway(respond, other=respond) as gateway:
            client = make(gateway, **settings)
            with pytest.raises(errors.PremError) as caught:
                call(api, client, way)
            assert client.stats.in_flight == 0
        return caught.value, sum(each.method == "POST" for each in gateway.calls)

    return fail


def call(api, client, way):
    if way != "transcribe":
        return getattr(api, way)(client)
    made = client.audio.transcriptions.create(file=b"RIFF")
    return api._run(made) if asyncio.iscoroutine(made) else made


def late_head(call):
    call.wait_for_disconnect()


def no_head(call):
    call.disconnect()


def no_body(call):
    call.head(200, JSON | {"content-length": "1000"})
    call.disconnect()


def no_chunk(call):
    call.begin()
    call.piece(b": keep-alive\n\n")
    call.disconnect()


@ways
@flags
def test_a_request_whose_response_does_not_start_in_time(failing, way, flag, requests):
    error, sent = failing(way, late_head, timeout=0.3, **flag)
    assert type(error) is errors.APITimeoutError
    assert sent == requests


@ways
@flags
def test_a_request_whose_connection_breaks_before_the_response(failing, way, flag, requests):
    error, sent = failing(way, no_head, **flag)
    assert type(error) is errors.APIConnectionError
    assert sent == requests


@ways
@flags
def test_a_response_truncated_before_its_first_chunk(failing, way, flag, requests):
    error, sent = failing(way, no_body if way == "transcribe" else no_chunk, **flag)
    assert type(error) is errors.StreamInterruptedError
    assert sent == requests


@pytest.mark.parametrize("way", ["create", "stream"])
@pytest.mark.parametrize(
    "end",
    [
        b"",
        b'event: error\ndata: {"error": {"message": "busy", "type": "overloaded_error"}}\n\n',
        b'event: error\ndata: {"error": {"message": "slow down", "type": "rate_limit_error"}}\n\n',
        b'event: error\ndata: {"error": {"message": "session expired"}}\n\n',
    ],
    ids=["truncated", "overloaded", "rate limited", "key rotation"],
)
def test_after_the_first_chunk_a_request_is_never_sent_again(failing, way, end):
    def respond(call):
        call.begin()
        call.piece(call.opened().events(CHUNK) + end)
        call.disconnect()

    _, sent = failing(way, respond, retry_after_send=True)
    assert sent == 1


@ways
def test_the_error_says_that_the_request_was_not_sent_again(failing, way):
    error, _ = failing(way, no_head)
    assert error.request_sent is True
    assert NOTE in "\n".join(error.__notes__)


@ways
@pytest.mark.parametrize("settings", [{"max_retries": 0}, {"retry_after_send": True}, {"total_timeout": 0.3}])
def test_the_error_says_nothing_of_it_where_the_flag_would_change_nothing(failing, way, settings):
    error, _ = failing(way, late_head if "total_timeout" in settings else no_head, **settings)
    assert getattr(error, "__notes__", []) == []


@ways
def test_a_status_that_says_the_service_failed_is_retried(failing, way):
    error, sent = failing(way, lambda call: call.reply(b"{}", 503))
    assert type(error) is errors.InternalServerError
    assert sent == 3


@ways
def test_a_connection_that_cannot_be_opened_is_retried(api, make, way):
    with FakeGateway() as gateway, contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        client = make(gateway, enclave_public_key=gateway.enclave.public)
        client = api.client_class(
            **gateway.settings(
                gateway_url=f"http://127.0.0.1:{free.getsockname()[1]}",
                enclave_public_key=gateway.enclave.public,
            )
        )
        try:
            with pytest.raises(errors.APIConnectionError) as caught:
                call(api, client, way)
            assert client.stats.requests == 3
        finally:
            api.close(client)
    assert caught.value.request_sent is False


def test_a_request_that_was_not_sent_completely_is_retried(api):
    import httpx

    attempts = []

    class Breaking(httpx.BaseTransport, httpx.AsyncBaseTransport):
        def handle_request(self, request):
            attempts.append(request)
            raise httpx.WriteError("broken pipe")

        async def handle_async_request(self, request):
            return self.handle_request(request)

    with FakeGateway() as gateway:
        http = api.http_class(transport=Breaking())
        client = api.client_class(
            **gateway.settings(enclave_public_key=gateway.enclave.public, http_client=http)
        )
        try:
            with pytest.raises(errors.APIConnectionError):
                api.create(client)
        finally:
            api.close(client)
            api.close_http(http)
    assert len(attempts) == 3


@flags
def test_the_models_list_and_the_enclave_key_are_requested_again(api, make, flag, requests):
    del requests  # a GET changes nothing at the service
    with FakeGateway(other=no_head) as gateway:
        with pytest.raises(errors.APIConnectionError):
            api.models(make(gateway, **flag))
    assert gateway.paths().count("/models") == 3
    with FakeGateway(key=no_head) as gateway:
        with pytest.raises(errors.APIConnectionError):
            api.create(make(gateway, **flag))
    assert gateway.paths() == ["/publicKey"] * 3


def test_a_service_that_recovers_is_retried_with_the_flag(api, make):
    with FakeGateway() as gateway:
        gateway.chat = lambda call: no_head(call) if len(gateway.chats()) == 1 else stream_hello(call)
        answer = api.create(make(gateway, retry_after_send=True))
    assert answer.choices[0].message.content == "Hello"
    assert len(gateway.chats()) == 2


@pytest.mark.parametrize("value", ["yes", None, 1])
def test_a_bad_retry_after_send_is_refused(value):
    with pytest.raises(ConfigurationError, match="retry_after_send must be True or False"):
        PremClient(api_key="k", retry_after_send=value)
