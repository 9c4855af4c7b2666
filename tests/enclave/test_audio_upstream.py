"""Recordings passed on to an OpenAI-compatible server, a real one whose answers each test writes down."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from support.raw_client import TRANSCRIPTIONS, TRANSLATIONS, WHISPER, RawClient

from prem_core._serving.server import Server, listen
from prem_core.enclave import Exchange, LocalEnclave

Run = Callable[..., RawClient]

#: Every byte, line ends and the beginning of a boundary included.
AUDIO = bytes(range(256)) * 20 + b"\r\n--" + b"zebra" + b"\r\n"
ROUTES = [(TRANSCRIPTIONS, "/v1/audio/transcriptions"), (TRANSLATIONS, "/v1/audio/translations")]


@dataclass
class Part:
    """One part of a form as it came."""

    name: str
    file_name: str | None
    value: bytes = field(repr=False)


@dataclass
class Listener:
    """A server of the audio routes."""

    url: str = ""
    answer: Callable[[], Response] = lambda: JSONResponse({"text": "hello"})
    asked: list[tuple[str, dict[str, str], list[Part]]] = field(default_factory=list)
    stalls: bool = False
    left: threading.Event = field(default_factory=threading.Event)

    async def receive_recording(self, request: Request) -> Response:
        body = await request.body()
        self.asked.append((request.url.path, dict(request.headers), _parts(request, body)))
        if self.stalls:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            self.left.set()
        return self.answer()

    def respond_with(self, answer: Any, status: int = 200, **headers: str) -> None:
        """Answer with JSON, or with a text."""
        kind = PlainTextResponse if isinstance(answer, str) else JSONResponse
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answer = lambda: kind(answer, status, named)

    @property
    def form(self) -> list[tuple[str, str]]:
        """The fields of the one request, the file left out."""
        ((_, _, parts),) = self.asked
        return [(part.name, part.value.decode()) for part in parts if part.file_name is None]

    @property
    def file(self) -> Part:
        """The file of the one request."""
        ((_, _, parts),) = self.asked
        (file,) = [part for part in parts if part.file_name is not None]
        return file


def _parts(request: Request, body: bytes) -> list[Part]:
    kind, _, boundary = request.headers["content-type"].partition("; boundary=")
    assert kind == "multipart/form-data"
    start, *parts, end = (b"\r\n" + body).split(b"\r\n--" + boundary.encode())
    assert (start, end) == (b"", b"--\r\n")
    return [_part(part) for part in parts]


def _part(part: bytes) -> Part:
    head, _, value = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
    named = dict(re.findall(r'(name|filename)="(.*?)"', head.decode()))
    return Part(named["name"], named.get("filename"), value)


@pytest.fixture(scope="module")
def server() -> Iterator[list[Listener]]:
    """The server's URL is the first listener's; the last one answers."""
    listeners = [Listener()]

    async def receive_recording(request: Request) -> Response:
        return await listeners[-1].receive_recording(request)

    app = Starlette(routes=[Route(path, receive_recording, methods=["POST"]) for _, path in ROUTES])
    with Server((app, listen())) as server:
        listeners[0].url = server.urls[0]
        yield listeners


@pytest.fixture
def listener(server: list[Listener]) -> Listener:
    made = Listener(server[0].url)
    server.append(made)
    return made


@pytest.fixture(scope="module")
def wire(server: list[Listener]) -> Iterator[RawClient]:
    """An enclave with that server behind it, for tests that need no other options."""
    with LocalEnclave(upstream=server[0].url) as prem, httpx.Client(trust_env=False, timeout=60) as http:
        yield RawClient(prem, http)


def refused(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    envelope: dict[str, Any] = response.json()
    assert envelope["status"] == status
    assert "zebra" not in response.text
    return envelope


# What is asked


@pytest.mark.parametrize(("route", "path"), ROUTES)
def test_the_file_goes_up_byte_for_byte_with_its_name(
    wire: RawClient, listener: Listener, route: str, path: str
) -> None:
    sealed, response = wire.audio(AUDIO, route, name="Müller zebra.m4a".encode())
    assert json.loads(sealed.opened(response)) == {"text": "hello"}
    ((asked, headers, _),) = listener.asked
    assert asked == path
    assert "authorization" not in headers
    assert (listener.file.name, listener.file.file_name) == ("file", "Müller zebra.m4a")
    assert listener.file.value == AUDIO


def test_every_parameter_is_a_field_by_openais_name(wire: RawClient, listener: Listener) -> None:
    sealed, response = wire.audio(
        AUDIO,
        model="my/whisper",
        language="de",
        prompt="Zwei\r\nZeilen, 你好",
        response_format="verbose_json",
        temperature=0.25,
        timestamp_granularities=["word", "segment"],
    )
    assert sealed.opened(response)
    assert sorted(listener.form) == [
        ("language", "de"),
        ("model", "my/whisper"),
        ("prompt", "Zwei\r\nZeilen, 你好"),
        ("response_format", "verbose_json"),
        ("temperature", "0.25"),
        ("timestamp_granularities[]", "segment"),
        ("timestamp_granularities[]", "word"),
    ]


def test_a_prompt_that_is_no_utf_8_is_sent_with_question_marks(wire: RawClient, listener: Listener) -> None:
    sealed, response = wire.audio(AUDIO, prompt="half \ud83e of a pair")
    assert sealed.opened(response)
    assert ("prompt", "half ? of a pair") in listener.form


def test_what_was_not_given_is_not_sent(wire: RawClient, listener: Listener) -> None:
    sealed, response = wire.audio(AUDIO, TRANSLATIONS)
    assert sealed.opened(response)
    assert listener.form == [("model", WHISPER)]


def test_a_file_without_a_name_is_a_file_all_the_same(wire: RawClient, listener: Listener) -> None:
    sealed, response = wire.audio(AUDIO, name=b"")
    assert sealed.opened(response)
    assert listener.file.file_name == "audio"


def test_a_name_cannot_write_headers_of_its_own(wire: RawClient, listener: Listener) -> None:
    sealed, response = wire.audio(AUDIO, name=b'a"; name="model"\r\nX-Zebra: 1\r\n\r\n.wav')
    assert sealed.opened(response)
    ((_, _, parts),) = listener.asked
    assert [part.name for part in parts] == ["model", "file"]
    assert listener.file.value == AUDIO


@pytest.mark.parametrize("base", ["", "/v1", "/v1/", "/v1/chat/completions"])
def test_the_base_url_is_taken_in_every_form(run: Run, listener: Listener, base: str) -> None:
    sealed, response = run(upstream=listener.url + base).audio(AUDIO)
    assert sealed.opened(response)
    assert listener.asked[0][0] == "/v1/audio/transcriptions"


def test_the_upstream_key_is_sent_as_a_bearer_token(run: Run, listener: Listener) -> None:
    wire = run(upstream=listener.url, upstream_api_key="sk-up")
    sealed, response = wire.audio(AUDIO)
    assert sealed.opened(response)
    assert listener.asked[0][1]["authorization"] == "Bearer sk-up"


# What is answered


@pytest.mark.parametrize("form", ["json", "verbose_json"])
def test_json_is_passed_through_whole(wire: RawClient, listener: Listener, form: str) -> None:
    said = {
        "text": "zebra 🦓",
        "duration": "3.5",
        "words": [{"word": "zebra"}],
        "usage": {"seconds": 4},
    }
    listener.respond_with(said)
    sealed, response = wire.audio(AUDIO, response_format=form)
    assert json.loads(sealed.opened(response)) == said
    assert b"zebra" not in response.content


def test_text_is_passed_through_as_it_is(wire: RawClient, listener: Listener) -> None:
    listener.respond_with('{"zebra": größer}\n')
    sealed, response = wire.audio(AUDIO, response_format="text")
    assert sealed.opened(response).decode() == '{"zebra": größer}\n'


@pytest.mark.parametrize("answer", ["zebra", "", [], {}, {"text": None}, {"text": ["zebra"]}, 5])
def test_an_answer_in_another_form_than_was_asked_for_is_503(
    wire: RawClient, listener: Listener, answer: Any
) -> None:
    listener.respond_with(answer)
    _, response = wire.audio(AUDIO)
    assert refused(response, 503)["log"] == {"type": "service_unavailable"}


def test_an_answer_without_end_is_503(
    wire: RawClient, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prem_core.enclave.engines.upstream.MAX_EVENT_BYTES", 1_000)
    listener.respond_with({"text": "x" * 2_000})
    _, response = wire.audio(AUDIO)
    assert "too large" in refused(response, 503)["error"]


@pytest.mark.parametrize(
    ("status", "seen"),
    [
        *((400, 400), (401, 503), (403, 503), (404, 404), (413, 413), (415, 400), (422, 400), (429, 429)),
        *((500, 500), (502, 503), (503, 503)),
    ],
)
def test_an_http_error_keeps_its_class_and_loses_its_words(
    wire: RawClient, listener: Listener, status: int, seen: int
) -> None:
    listener.respond_with({"error": {"message": "the zebra", "param": "zebra", "code": "zebra"}}, status)
    _, response = wire.audio(AUDIO)
    assert "upstream" in refused(response, seen)["error"]


def test_a_redirect_is_not_followed(wire: RawClient, listener: Listener) -> None:
    listener.answer = lambda: RedirectResponse("/v1/audio/translations")
    _, response = wire.audio(AUDIO)
    refused(response, 503)
    assert len(listener.asked) == 1


def test_retry_after_is_passed_on(wire: RawClient, listener: Listener) -> None:
    listener.respond_with({}, 429, Retry_After="17")
    _, response = wire.audio(AUDIO)
    assert refused(response, 429)["log"] == {"type": "rate_limit_error"}
    assert response.headers["retry-after"] == "17"


@pytest.mark.parametrize(
    ("param", "named"),
    [
        ("file", "file"),
        ("language", "language"),
        ("timestamp_granularities[]", "timestamp_granularities"),
        ("messages", None),
        (["zebra"], None),
    ],
)
def test_a_refused_parameter_is_named_when_the_schema_knows_it(
    wire: RawClient, listener: Listener, param: Any, named: str | None
) -> None:
    listener.respond_with({"error": {"message": "maximum context length, zebra", "param": param}}, 400)
    _, response = wire.audio(AUDIO)
    envelope = refused(response, 400)
    assert list(envelope["validator"] or ()) == ([named] if named else [])


def test_a_server_that_cannot_be_reached_is_503(run: Run) -> None:
    _, response = run(upstream="http://127.0.0.1:9").audio(AUDIO)
    assert "cannot be reached" in refused(response, 503)["error"]


def test_hanging_up_reaches_the_server(wire: RawClient, listener: Listener) -> None:
    listener.stalls = True
    sealed = wire.seal_audio({"model": WHISPER}, AUDIO)
    with pytest.raises(httpx.ReadTimeout):
        wire.http.post(
            wire.prem.gateway_url + TRANSCRIPTIONS, json=sealed.body, headers=wire.headers, timeout=0.3
        )
    assert listener.left.wait(2)


# Limits and secrets


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ({"duration": 70}, 70),
        ({"duration": "70.0"}, 70),
        ({"usage": {"type": "duration", "seconds": 70}}, 70),
        ({"duration": "zebra", "usage": {"seconds": None}}, 5),
        ({"duration": -1, "usage": "zebra"}, 5),
        ({"duration": float("inf")}, 5),
        ({}, 5),
    ],
)
def test_the_tier_is_charged_what_the_server_says_or_else_128_kbit_a_second(
    run: Run, listener: Listener, said: dict[str, Any], seconds: float
) -> None:
    answer = json.dumps({"text": "", **said})
    listener.answer = lambda: Response(answer, media_type="application/json")
    wire = run(tier="base", upstream=listener.url)
    for _ in range(1 if seconds > 10 else 2):
        sealed, response = wire.audio(bytes(16_000 * 5))
        assert sealed.opened(response)
    _, response = wire.audio(AUDIO)
    refused(response, 429)
    wait = (1 - (10 - seconds if seconds > 10 else 0)) * 6
    assert wait - 2 <= int(response.headers["retry-after"]) <= wait


def test_neither_the_gateway_nor_the_log_nor_an_error_holds_anything_that_was_sealed(
    run: Run, listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "prem_core")
    seen: list[Exchange] = []
    wire = run(upstream=listener.url, on_exchange=seen.append)
    listener.respond_with({"text": "the zebra said"})
    sealed, response = wire.audio(AUDIO, name=b"zebra.wav", prompt="zebra")
    assert b"zebra" in sealed.opened(response)
    listener.respond_with({"error": {"message": "zebra"}}, 400)
    _, response = wire.audio(AUDIO, name=b"zebra.wav", prompt="zebra")
    refused(response, 400)
    assert len(seen) == 2
    for exchange in seen:
        assert b"zebra" not in exchange.request_body + exchange.response_body
    assert "zebra" not in caplog.text
