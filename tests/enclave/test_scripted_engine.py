"""The scripted engine: a test writes down what is answered, and reads back what was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

import prem_core
from prem_core import (
    APIStatusError,
    AsyncPremClient,
    BadRequestError,
    ConfigurationError,
    ContextLengthExceededError,
    InternalServerError,
    NotFoundError,
    PermissionDeniedError,
    PremClient,
    RateLimitError,
    StreamInterruptedError,
    Transcription,
)
from prem_core.enclave import (
    Engine,
    EngineError,
    EngineRequest,
    LocalEnclave,
    QuotingEngine,
    ScriptedEngine,
    reply,
    tool_call,
)

MODEL = "openai/gpt-oss-120b"
MESSAGES: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "The zebra?"}]


class Service:
    """A scripted enclave and a client of it."""

    def __init__(self, prem: LocalEnclave, client: PremClient) -> None:
        self.prem = prem
        self.client = client

    def chat(self, **params: Any) -> Any:
        return self.client.chat.completions.create(**{"model": MODEL, "messages": MESSAGES, **params})

    def chunks(self, **params: Any) -> Iterator[Any]:
        yield from self.chat(stream=True, **params)

    def deltas(self, **params: Any) -> list[str]:
        return [
            chunk.choices[0].delta.content
            for chunk in self.chunks(**params)
            if chunk.choices[0].delta.content
        ]


Start = Callable[..., Service]


@pytest.fixture
def serve() -> Iterator[Start]:
    """Start an enclave with these options. Its client does not retry."""
    with ExitStack() as stack:

        def start(**options: Any) -> Service:
            prem = stack.enter_context(LocalEnclave(**options))
            return Service(prem, stack.enter_context(PremClient(max_retries=0, **prem.client_options)))

        yield start


def test_replies_are_given_in_order(serve: Start) -> None:
    service = serve(replies=["Hello", "Good morning"])
    assert [service.chat().choices[0].message.content for _ in range(2)] == ["Hello", "Good morning"]


def test_a_text_is_streamed_word_by_word(serve: Start) -> None:
    assert serve(replies=["It is 18 °C."]).deltas() == ["It", " is", " 18", " °", "C", "."]


def test_a_list_of_texts_is_streamed_in_these_pieces(serve: Start) -> None:
    assert serve(replies=[reply(["It is", " 18 °C."])]).deltas() == ["It is", " 18 °C."]


@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_has_reasoning_usage_and_a_finish_reason(serve: Start, stream: bool) -> None:
    service = serve(
        replies=[reply("18 °C", reasoning="I look outside.", usage=(12, 5), finish_reason="length")]
    )
    if stream:
        chunks = list(service.chunks(stream_options={"include_usage": True}))
        texts = [chunk.choices[0].delta.reasoning_content or "" for chunk in chunks[:-1]]
        assert "".join(texts) == "I look outside."
        assert chunks[-2].choices[0].finish_reason == "length"
        usage = chunks[-1].usage
    else:
        answer = service.chat()
        assert answer.choices[0].message.reasoning_content == "I look outside."
        assert answer.choices[0].finish_reason == "length"
        usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (12, 5, 17)


def test_usage_is_counted_where_none_is_given(serve: Start) -> None:
    usage = serve(replies=[reply("one two three", reasoning="hm")]).chat().usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (6, 4)
    assert usage.completion_tokens_details == {"reasoning_tokens": 1}


def test_tool_calls_have_counted_ids_and_json_arguments(serve: Start) -> None:
    service = serve(
        replies=[
            tool_call("get_weather", city="Paris"),
            [tool_call("get_weather", city="Rome"), tool_call("get_time", {"in city": "Oslo"})],
            reply("I call.", tool_calls=tool_call("pay", '{"amount": 10')),
        ]
    )
    answers = [service.chat().choices[0] for _ in range(3)]
    assert [choice.finish_reason for choice in answers] == ["tool_calls"] * 3
    calls = [call for choice in answers for call in choice.message.tool_calls]
    assert [call.id for call in calls] == ["call_1", "call_2", "call_3", "call_4"]
    assert [call.function.name for call in calls] == ["get_weather", "get_weather", "get_time", "pay"]
    assert [json.loads(call.function.arguments) for call in calls[:3]] == [
        {"city": "Paris"},
        {"city": "Rome"},
        {"in city": "Oslo"},
    ]
    assert calls[3].function.arguments == '{"amount": 10'


def test_a_refusal_is_given_as_one(serve: Start) -> None:
    message = serve(replies=[reply(refusal="I cannot.")]).chat().choices[0].message
    assert (message.refusal, message.content) == ("I cannot.", None)


def test_each_of_n_choices_is_the_reply(serve: Start) -> None:
    answer = serve(replies=["Hello"]).chat(n=2)
    assert [(choice.index, choice.message.content) for choice in answer.choices] == [
        (0, "Hello"),
        (1, "Hello"),
    ]


def test_a_reply_is_sent_as_written_whatever_limits_the_request_has(serve: Start) -> None:
    answer = serve(replies=["one two three"]).chat(max_tokens=1, stop=["two"])
    assert answer.choices[0].message.content == "one two three"


def test_raw_chunks_are_sent_as_they_are(serve: Start) -> None:
    head = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    chunks = [
        {**head, "choices": [{"index": 0, "delta": {"content": "a"}, "zebra": 1}]},
        {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    ]
    first, last = serve(replies=[chunks]).chunks()
    assert (first.id, first.choices[0].zebra, last.choices[0].finish_reason) == ("x", 1, "stop")


# Errors


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (RateLimitError("slow down", retry_after=7), {"status_code": 429, "retry_after": 7.0}),
        (RateLimitError(retry_after=0.25), {"status_code": 429, "retry_after": 0.25}),
        (InternalServerError(), {"status_code": 500, "retry_after": None}),
        (InternalServerError("down", status_code=503), {"status_code": 503}),
        (BadRequestError("no", code="bad_thing", param="tools"), {"code": "bad_thing", "param": "tools"}),
        (BadRequestError("no", validator={"tools": "too many"}), {"validator": {"tools": "too many"}}),
        (ContextLengthExceededError(), {"status_code": 400}),
        (NotFoundError(), {"status_code": 404}),
        (PermissionDeniedError(scope="chats.completion"), {"status_code": 403, "scope": "chats.completion"}),
        (APIStatusError("I am a teapot", status_code=418), {"status_code": 418}),
    ],
)
def test_a_status_error_as_a_reply_is_raised_with_its_values(
    serve: Start, error: APIStatusError, seen: dict[str, Any]
) -> None:
    with pytest.raises(type(error)) as caught:
        serve(replies=[error]).chat()
    assert error.args[0] in str(caught.value)
    assert {name: getattr(caught.value, name) for name in seen} == seen


def test_a_rate_limit_is_waited_for_and_the_next_reply_is_given() -> None:
    with (
        LocalEnclave(replies=[RateLimitError(retry_after=0), "Hello"]) as prem,
        PremClient(**prem.client_options) as client,
    ):
        answer = client.chat.completions.create(model=MODEL, messages=MESSAGES)
        assert answer.choices[0].message.content == "Hello"
        assert len(prem.requests) == 2


@pytest.mark.parametrize(
    "error",
    [InternalServerError("it broke"), EngineError("it broke", status=500), RateLimitError("it broke")],
)
def test_an_error_in_mid_stream_comes_after_the_content(serve: Start, error: Exception) -> None:
    chunks = serve(replies=[reply(["It ", "is"], error=error)]).chunks()
    assert [next(chunks).choices[0].delta.content for _ in range(2)] == ["It ", "is"]
    with pytest.raises(APIStatusError, match="it broke") as caught:
        next(chunks)
    assert caught.value.status_code == (429 if isinstance(error, RateLimitError) else 500)


def test_an_error_may_follow_raw_chunks(serve: Start) -> None:
    chunks = serve(
        replies=[[{"choices": [{"index": 0, "delta": {"content": "a"}}]}, InternalServerError("it broke")]]
    ).chunks()
    assert next(chunks).choices[0].delta.content == "a"
    with pytest.raises(InternalServerError, match="it broke"):
        next(chunks)


@pytest.mark.parametrize("whole_replies", ["stream", "envelope"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("content", ["It is", ""])
def test_a_truncated_stream_is_an_error(serve: Start, whole_replies: str, stream: bool, content: str) -> None:
    service = serve(replies=[reply(content, truncated=True)], whole_replies=whole_replies)
    with pytest.raises(StreamInterruptedError):
        list(service.chunks()) if stream else service.chat()


def test_a_stalled_reply_ends_with_the_clients_disconnect(serve: Start) -> None:
    engine = ScriptedEngine([reply("Hello", stalled=True)])
    service = serve(engine=engine)
    stream = service.chat(stream=True)
    chunks = iter(stream)
    assert next(chunks).choices[0].delta.content == "Hello"
    assert not engine.disconnected.is_set()
    stream.close()
    assert engine.disconnected.wait(10)


def test_a_whole_answer_is_no_disconnect(serve: Start) -> None:
    engine = ScriptedEngine(["Hello"])
    serve(engine=engine).chat()
    assert not engine.disconnected.is_set()


def test_delays_hold_back_the_first_chunk_and_each_further_one(
    serve: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    service = serve(replies=[reply(["a", "b"], delay=60, chunk_delay=5)])
    monkeypatch.setattr("prem_core.enclave.engines.scripted._sleep", sleep)
    assert service.deltas() == ["a", "b"]
    assert slept == [60, 5, 5, 5]


@pytest.mark.parametrize(
    ("replies", "message"),
    [
        ([], "no reply left for request 1 (0 given): add a reply, or pass respond="),
        (["one"], "no reply left for request 2 (1 given)"),
        (["one", "two"], "no reply left for request 3 (2 given)"),
    ],
)
def test_the_error_when_replies_run_out_counts_them(serve: Start, replies: list[str], message: str) -> None:
    service = serve(replies=replies)
    for _ in replies:
        service.chat()
    with pytest.raises(BadRequestError) as caught:
        service.chat()
    assert message in str(caught.value)
    assert "zebra" not in str(caught.value)


@pytest.mark.parametrize(
    "value", [5, None, [], ["a"], [5], [tool_call("a"), "b"], ValueError("zebra"), APIStatusError()]
)
def test_a_reply_of_another_form_is_an_error_that_lists_the_forms(serve: Start, value: Any) -> None:
    with pytest.raises(BadRequestError, match="a reply cannot be .*APIStatusError") as caught:
        serve(replies=[value]).chat()
    assert "zebra" not in str(caught.value)


# Functions


def test_respond_makes_each_reply_from_its_request(serve: Start) -> None:
    service = serve(respond=lambda request: request.text.upper())
    assert service.chat().choices[0].message.content == "THE ZEBRA?"


def test_respond_may_be_async_and_return_every_kind_of_reply(serve: Start) -> None:
    async def respond(request: EngineRequest) -> Any:
        return RateLimitError(retry_after=1) if request.tools else tool_call("look_up", word="zebra")

    service = serve(respond=respond)
    assert service.chat().choices[0].message.tool_calls[0].function.name == "look_up"
    with pytest.raises(RateLimitError):
        service.chat(tools=[{"type": "function", "function": {"name": "look_up"}}])


def test_respond_may_raise_the_reply(serve: Start) -> None:
    def respond(request: EngineRequest) -> Any:
        raise NotFoundError("no such model")

    with pytest.raises(NotFoundError, match="no such model"):
        serve(respond=respond).chat()


def test_an_exception_in_respond_is_reported_by_its_type_and_place(serve: Start) -> None:
    def respond(request: EngineRequest) -> Any:
        raise KeyError(request.text)

    with pytest.raises(
        BadRequestError, match=r"respond raised KeyError at test_scripted_engine\.py:\d+"
    ) as caught:
        serve(respond=respond).chat()
    assert "zebra" not in str(caught.value)


def test_a_function_that_blocks_holds_up_no_other_request(serve: Start) -> None:
    other_answered = threading.Event()

    def respond(request: EngineRequest) -> str:
        if request.model == "slow":
            assert other_answered.wait(10)
        return request.model

    service = serve(respond=respond)
    slow: list[str] = []
    thread = threading.Thread(
        target=lambda: slow.append(service.chat(model="slow").choices[0].message.content)
    )
    thread.start()
    while not service.prem.requests:
        pass
    assert service.chat(model="fast").choices[0].message.content == "fast"
    other_answered.set()
    thread.join(10)
    assert slow == ["slow"]


# What was asked


def test_requests_can_be_read_back(serve: Start) -> None:
    service = serve(replies=["Hello"])
    service.chat(temperature=0.5, tools=[{"type": "function", "function": {"name": "look_up"}}])
    (request,) = service.prem.requests
    assert (request.task, request.model, request.text) == ("chat", MODEL, "The zebra?")
    assert request.messages == MESSAGES
    assert request.params["temperature"] == 0.5
    assert request.tools[0]["function"]["name"] == "look_up"


def test_a_requests_repr_shows_no_content(serve: Start) -> None:
    service = serve(replies=["Hello", reply("The zebra.", tool_calls=tool_call("zebra"))])
    service.chat()
    shown = repr(service.prem.requests) + repr(service.prem.replies) + repr(service.prem.engine)
    assert "zebra" not in shown.replace("name='zebra'", "")


def test_only_a_scripted_engine_keeps_requests() -> None:
    with pytest.raises(RuntimeError, match="this is a QuotingEngine: pass replies= or respond="):
        _ = LocalEnclave().requests


def test_requests_stay_when_the_enclave_is_started_again(serve: Start) -> None:
    prem = LocalEnclave(replies=["one", "two"])
    for _ in range(2):
        with prem, PremClient(**prem.client_options) as client:
            client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert len(prem.requests) == 2


def test_replies_can_be_set_and_added_while_it_runs(serve: Start) -> None:
    service = serve(replies=["one"])
    service.prem.replies = ["two"]
    service.prem.reply("three", "four")
    assert [service.chat().choices[0].message.content for _ in range(3)] == ["two", "three", "four"]
    service.prem.respond = lambda request: "five"
    assert service.chat().choices[0].message.content == "five"


# Recordings

TRANSCRIPT = {"text": "Hello.", "language": "english", "duration": 2.0, "segments": [], "words": []}


@pytest.mark.parametrize("value", [TRANSCRIPT, Transcription.model_validate(TRANSCRIPT)])
def test_a_transcript_is_given_for_a_recording(serve: Start, value: Any) -> None:
    service = serve(replies=[value, value])
    heard = service.client.audio.transcriptions.create(
        file=("a.wav", b"RIFF"), response_format="verbose_json"
    )
    assert (heard.text, heard.duration) == ("Hello.", 2.0)
    assert (
        service.client.audio.translations.create(file=("b.wav", b"RIFF"), response_format="text") == "Hello."
    )
    first, second = service.prem.requests
    assert (first.task, first.file_name, first.audio, first.text) == ("transcribe", "a.wav", b"RIFF", "")
    assert (second.task, second.file_name) == ("translate", "b.wav")


@pytest.mark.parametrize("response_format", ["json", "text", "verbose_json"])
def test_a_text_is_a_transcript_in_every_format(serve: Start, response_format: str) -> None:
    service = serve(replies=["Hello."])
    heard = service.client.audio.transcriptions.create(
        file=("a.wav", bytes(32_000)), response_format=response_format
    )
    if response_format == "text":
        assert heard == "Hello."
    else:
        assert heard.text == "Hello."
    if response_format == "verbose_json":
        assert (heard.duration, heard.segments[0].end) == (2.0, 2.0)


def test_a_recording_may_fail(serve: Start) -> None:
    service = serve(replies=[RateLimitError(retry_after=0), reply("Hello", error=InternalServerError())])
    for kind in (RateLimitError, InternalServerError):
        with pytest.raises(kind):
            service.client.audio.transcriptions.create(file=("a.wav", b"RIFF"))


def test_a_reply_for_another_task_is_an_error(serve: Start) -> None:
    service = serve(replies=[TRANSCRIPT, tool_call("look_up")])
    with pytest.raises(BadRequestError, match="request 1 is a chat"):
        service.chat()
    with pytest.raises(BadRequestError, match="request 2 is a recording"):
        service.client.audio.transcriptions.create(file=("a.wav", b"RIFF"))


# Engines


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"replies": ["a"], "respond": str}, "replies and respond"),
        ({"replies": [], "upstream": "http://localhost:1"}, "replies and upstream"),
        ({"engine": QuotingEngine(), "respond": str}, "engine and respond"),
    ],
)
def test_only_one_source_of_replies_may_be_given(options: dict[str, Any], names: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{names} are given: pass only one of"):
        LocalEnclave(**options)


def test_an_engine_with_replies_takes_no_function() -> None:
    with pytest.raises(ConfigurationError, match="replies and respond are both given"):
        ScriptedEngine(["a"], respond=str)


class Echo(Engine):
    """The example in `Engine`'s docstring."""

    async def chat(self, request: EngineRequest) -> AsyncGenerator[dict[str, Any], None]:
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": request.model}
        choice = {"index": 0, "delta": {"content": request.text}, "logprobs": None, "finish_reason": "stop"}
        yield {**head, "choices": [choice]}


def test_an_engine_of_ones_own_needs_chat_only(serve: Start) -> None:
    service = serve(engine=Echo())
    assert service.chat(model="any/name").choices[0].message.content == "The zebra?"
    with pytest.raises(BadRequestError, match="does not support audio"):
        service.client.audio.transcriptions.create(file=("a.wav", b"RIFF"))
    assert [model.id for model in service.client.models.list()] != []


async def test_async_clients_are_answered_alike() -> None:
    with LocalEnclave(replies=["Hello"]) as prem:
        async with AsyncPremClient(**prem.client_options) as client:
            answer = await client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert answer.choices[0].message.content == "Hello"


def test_what_is_public_is_listed() -> None:
    assert [*prem_core.enclave.__all__] == sorted(prem_core.enclave.__all__)
    for name in prem_core.enclave.__all__:
        assert getattr(prem_core.enclave, name).__module__.startswith("prem_core.enclave.")
    with pytest.raises(AttributeError):
        _ = prem_core.enclave.zebra


def test_the_environment_leads_a_client_to_the_enclave_past_an_http_proxy(
    serve: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "host.example")
    prem = serve(replies=["Hello"]).prem
    assert prem.environment["no_proxy"] == "host.example,127.0.0.1"
    for name, value in prem.environment.items():
        monkeypatch.setenv(name, value)
    with PremClient() as client:
        assert (
            client.chat.completions.create(model=MODEL, messages=MESSAGES).choices[0].message.content
            == "Hello"
        )
