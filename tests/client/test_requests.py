"""Chat requests of both clients: what is sent, what is returned, streamed or whole."""

import threading
import time

import pytest
from support.client_api import CHUNK
from support.fake_gateway import COMPLETION, HELLO, PARAMS, FakeGateway, text_of
from support.waiting import SOON

from prem_core import PremClient
from prem_core import _errors as errors


def test_a_whole_response_is_read_from_events(api, make):
    with FakeGateway() as gateway:
        answer = api.create(make(gateway))
    assert answer.choices[0].message.content == "Hello"
    assert answer.usage.total_tokens == 5


def test_a_whole_response_is_read_from_an_envelope(api, make):
    with FakeGateway(lambda call: call.reply(call.opened().envelope())) as gateway:
        answer = api.create(make(gateway))
    assert (answer.id, answer.choices[0].message.content) == (COMPLETION["id"], "Hello")


def test_a_stream_yields_its_chunks(api, make):
    with FakeGateway() as gateway:
        chunks = api.stream(make(gateway))
    assert len(chunks) == len(HELLO)
    assert text_of(chunks) == "Hello"


def test_a_stream_in_one_byte_writes_yields_its_chunks(api, make):
    def chat(call):
        stream = call.opened().stream()
        call.stream(*(stream[i : i + 1] for i in range(len(stream))))

    with FakeGateway(chat) as gateway:
        assert text_of(api.stream(make(gateway))) == "Hello"


def test_the_request_contains_the_sealed_parameters_and_nothing_else(api, make):
    with FakeGateway() as gateway:
        api.create(make(gateway), temperature=0.5, stop=None, extra_body={"new": 1})
        api.stream(make(gateway))
    first, second = gateway.chats()
    assert first.opened().params == {**PARAMS, "temperature": 0.5, "new": 1}
    assert second.opened().params == {**PARAMS, "stream": True}
    for call in (first, second):
        assert call.headers["authorization"] == "Bearer sk_test_key"
        assert b"Hello" not in call.body


def test_a_chunk_is_yielded_as_soon_as_it_arrives():
    go_on = threading.Event()

    def chat(call):
        opened = call.opened()
        call.begin()
        call.piece(opened.events(CHUNK))
        assert go_on.wait(SOON)
        call.piece(opened.stream())
        call.end()

    with FakeGateway(chat) as gateway, PremClient(**gateway.settings()) as client:
        stream = client.chat.completions.create(**PARAMS, stream=True)
        assert next(stream).choices[0].delta.content == "a"
        go_on.set()
        assert text_of(stream) == "Hello"


def test_a_message_of_a_response_can_be_sent_back(api, make):
    with FakeGateway() as gateway:
        client = make(gateway)
        answer = api.create(client).choices[0].message
        api.create(client, messages=[*PARAMS["messages"], answer, {"role": "user", "content": "And?"}])
    assert gateway.chats()[1].opened().params["messages"][1] == {"role": "assistant", "content": "Hello"}


def test_an_invalid_parameter_is_rejected_before_anything_is_sent(api, make):
    with FakeGateway() as gateway:
        client = make(gateway)
        for params in ({"temperature": 3}, {"top_k": 1}, {"messages": []}):
            with pytest.raises(errors.InvalidParameterError):
                api.create(client, **params)
            with pytest.raises(errors.InvalidParameterError):
                api.stream(client, **params)
    assert gateway.calls == []


class LingeringConnection:
    """A chat handler that sends a complete response, then comments or nothing until the client disconnects."""

    def __init__(self, comments):
        self.comments = comments
        self.disconnected = threading.Event()

    def __call__(self, call):
        call.begin()
        call.piece(call.opened().stream())
        end = time.monotonic() + SOON
        while time.monotonic() < end:
            if call.wait_for_disconnect(0.1):
                self.disconnected.set()
                return
            if self.comments:
                call.piece(b": keep-alive\n\n")
        call.end()


@pytest.mark.parametrize("comments", [False, True])
@pytest.mark.parametrize("way", ["create", "stream"])
def test_a_complete_response_does_not_wait_for_the_end_of_the_connection(api, make, way, comments):
    lingering = LingeringConnection(comments)
    with FakeGateway(lingering) as gateway:
        answer = getattr(api, way)(make(gateway, max_retries=0))
        assert lingering.disconnected.wait(SOON)
    assert text_of(answer) == "Hello" if way == "stream" else answer.choices[0].message.content == "Hello"


@pytest.mark.parametrize("way", ["create", "stream"])
def test_a_complete_response_is_not_lost_to_a_later_disconnect(api, make, way):
    def chat(call):
        call.begin()
        call.piece(call.opened().stream())
        call.disconnect()

    with FakeGateway(chat) as gateway:
        answer = getattr(api, way)(make(gateway))
    assert text_of(answer) == "Hello" if way == "stream" else answer.choices[0].message.content == "Hello"
    assert len(gateway.chats()) == 1
