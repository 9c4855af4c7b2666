"""Transcription through the proxy: forms, response formats, and no recording on the disk."""

from __future__ import annotations

import random
import secrets
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from support.paths import CLINIC_NOTE
from support.proxies import WHISPER
from support.proxy_process import ProxyProcess
from support.waiting import eventually

from prem_core._apis.base import ApiError
from prem_core._apis.openai.forms import MAX_PARTS, FormReader, parse_audio_form
from prem_core.enclave import EngineRequest, LocalEnclave, ScriptedEngine

TRANSCRIPTIONS = "/v1/audio/transcriptions"
TRANSLATIONS = "/v1/audio/translations"
MB = 1024 * 1024

SEGMENTS = [
    {"id": 0, "start": 0.0, "end": 1.5, "text": " Hello there."},
    {"id": 1, "start": 3661.25, "end": 3662.0, "text": " Good --> bye."},
]
VERBOSE = {"task": "transcribe", "language": "english", "duration": 3662.0, "text": "Hello there. Good bye."}


def error(reply: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    value: dict[str, Any] = reply.json()["error"]
    return value


def post(client: httpx.Client, path: str = TRANSCRIPTIONS, **fields: Any) -> httpx.Response:
    return client.post(path, files={"file": ("note.wav", b"RIFF1234")}, data={"model": WHISPER, **fields})


# Requests and responses


@pytest.mark.parametrize("task", ["transcribe", "translate"])
def test_a_recording_and_its_parameters_are_transcribed_unchanged(
    scripted_client: openai.OpenAI, script: ScriptedEngine, task: str
) -> None:
    usage = {"type": "duration", "seconds": 2}
    script.respond = lambda request: {"text": "Hello there.", "usage": usage}
    data = random.Random(7).randbytes(3 * MB) + b"\r\n--boundary\r\n\r\n"
    audio = scripted_client.audio
    create: Any = audio.transcriptions.create if task == "transcribe" else audio.translations.create
    own = {"language": "de", "timestamp_granularities": ["word", "segment"]} if task == "transcribe" else {}
    answer = create(
        file=("Gespräch 你好.wav", data),
        model=WHISPER,
        prompt="Größe, 你好",
        temperature=0.25,
        response_format="verbose_json",
        **own,
    )
    assert answer.text == "Hello there."
    (request,) = script.requests
    assert request.task == task
    assert request.file_name == "Gespräch 你好.wav"
    assert request.audio == data
    assert request.params["prompt"] == "Größe, 你好"
    assert request.params["temperature"] == 0.25
    assert request.params.get("language") == own.get("language")
    assert ("timestamp_granularities" in request.params) is (task == "transcribe")


def test_a_transcription_has_the_requested_response_format(
    scripted_http: httpx.Client, script: ScriptedEngine
) -> None:
    def respond(request: EngineRequest) -> Any:
        if request.params.get("response_format") == "verbose_json":
            return {**VERBOSE, "segments": SEGMENTS}
        return {"text": VERBOSE["text"]}

    script.respond = respond
    assert post(scripted_http).json() == {"text": VERBOSE["text"]}
    assert post(scripted_http, response_format="json").json() == {"text": VERBOSE["text"]}
    assert post(scripted_http, response_format="verbose_json").json() == {**VERBOSE, "segments": SEGMENTS}
    reply = post(scripted_http, response_format="srt")
    assert reply.headers["content-type"] == "text/plain; charset=utf-8"
    assert reply.text == (
        "1\n00:00:00,000 --> 00:00:01,500\nHello there.\n\n2\n01:01:01,250 --> 01:01:02,000\nGood -> bye.\n"
    )
    assert post(scripted_http, TRANSLATIONS, response_format="vtt").text.startswith(
        "WEBVTT\n\n00:00:00.000 --> "
    )
    assert [request.params.get("response_format") for request in script.requests][-2:] == ["verbose_json"] * 2
    script.respond = lambda request: {"text": "No times."}
    assert error(post(scripted_http, response_format="srt"), 502)["code"] == "invalid_response"


def test_a_transcription_as_text_is_plain_text(http: httpx.Client) -> None:
    recording = CLINIC_NOTE
    with recording.open("rb") as file:
        reply = http.post(TRANSCRIPTIONS, files={"file": file}, data={"response_format": "text"})
    assert reply.headers["content-type"] == "text/plain; charset=utf-8"
    assert "doctor will see the patient" in reply.text


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": "diarized_json"}, "response_format"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": "nan"}, "temperature"),
        ({"language": "german"}, "language"),
        ({"timestamp_granularities[]": "word"}, "timestamp_granularities"),
        (
            {"timestamp_granularities[]": "letter", "response_format": "verbose_json"},
            "timestamp_granularities",
        ),
        ({"stream": "true"}, "stream"),
        ({"chunking_strategy": "auto"}, "chunking_strategy"),
        ({"include[]": "logprobs"}, "include"),
        ({"prompt": ["one", "two"]}, "prompt"),
    ],
)
def test_an_invalid_parameter_is_400_without_quoting_it(
    scripted_http: httpx.Client, script: ScriptedEngine, fields: dict[str, Any], param: str
) -> None:
    found = error(post(scripted_http, **fields))
    assert found["param"].startswith(param)
    assert not {"hot", "german", "letter", "two"} & set(found["message"].replace("'", " ").split())
    assert script.requests == []


def test_empty_form_fields_are_not_sent(scripted_http: httpx.Client, script: ScriptedEngine) -> None:
    assert post(scripted_http, stream="false", language="", prompt="").status_code == 200
    assert set(script.requests[0].params) == {"model"}


def test_a_translation_rejects_the_parameter_language(scripted_http: httpx.Client) -> None:
    assert error(post(scripted_http, TRANSLATIONS, language="de"))["code"] == "unsupported_parameter"


@pytest.mark.parametrize(
    "files",
    [
        [("other", ("a.wav", b"x"))],
        [("file", ("a.wav", b"x")), ("file", ("b.wav", b"y"))],
        [("file", (None, b"no file name"))],
        [("file", ("a.wav", b""))],
        [("file", ("a.wav", b"x")), ("include", ("b.wav", b"y")), ("include[]", (None, b"logprobs"))],
    ],
    ids=["none", "two", "a field", "empty", "two fields"],
)
def test_a_form_without_exactly_one_recording_is_400(scripted_http: httpx.Client, files: Any) -> None:
    assert error(scripted_http.post(TRANSCRIPTIONS, files=files, data={"model": WHISPER}))["param"] == "file"


def test_a_recording_over_25_mb_is_400_before_it_is_sealed(
    scripted_http: httpx.Client, script: ScriptedEngine
) -> None:
    found = error(scripted_http.post(TRANSCRIPTIONS, files={"file": ("a.wav", bytes(25 * MB + 1))}))
    assert "25 MB" in found["message"]
    assert script.requests == []


@pytest.mark.parametrize(
    "kind", ["application/json", "multipart/form-data", "multipart/mixed; boundary=x", ""]
)
def test_a_content_type_other_than_multipart_is_415(scripted_http: httpx.Client, kind: str) -> None:
    error(scripted_http.post(TRANSCRIPTIONS, content=b"{}", headers={"content-type": kind}), 415)


# Memory and disk


def test_a_large_recording_stays_in_memory_and_is_not_copied_often(
    scripted_enclave: LocalEnclave, script: ScriptedEngine, tmp_path: Path
) -> None:
    mark = secrets.token_hex(16)
    recording = tmp_path / "long.wav"
    recording.write_bytes(b"RIFF" + mark.encode() + bytes(20 * MB))
    options = {"gateway_url": scripted_enclave.gateway_url, "enclave_url": scripted_enclave.enclave_url}
    with (
        ProxyProcess(**options) as proxy,
        openai.OpenAI(base_url=proxy.base_url, api_key=scripted_enclave.api_key, max_retries=0) as official,
    ):
        transcribe = official.audio.transcriptions.create
        transcribe(file=("short.wav", b"RIFF"), model=WHISPER)
        before = proxy.peak()
        assert transcribe(file=recording, model=WHISPER).text == "Hello"
        growth = proxy.peak() - before
        assert proxy.files() == []
        assert eventually(lambda: proxy.holders(mark) == [])
    assert mark.encode() in script.requests[-1].audio
    assert growth < 5 * 20 * MB
    assert proxy.errors == ""


# Forms


def form(*parts: tuple[str, str, bytes]) -> tuple[str, bytes]:
    """A form's content type and bytes, as httpx writes it."""
    files: Any = [(name, (file_name or None, data)) for name, file_name, data in parts]
    request = httpx.Request("POST", "http://x", files=files)
    return request.headers["content-type"], request.read()


def read(content_type: str, pieces: Any) -> tuple[Any, dict[str, Any]]:
    reader = FormReader(content_type)
    for piece in pieces:
        reader.feed(piece)
    file, params = parse_audio_form(reader.finish())
    return file, params


TRICKY = b"\r\n--\r\n-\r--x\r\n\r\n--" + bytes(range(256)) + b"\r"


def test_a_form_parses_the_same_however_it_is_split() -> None:
    kind, body = form(("prompt", "", "Größe".encode()), ("file", 'a"b.wav', TRICKY), ("language", "", b"de"))
    whole = read(kind, [body])
    assert whole == (('a"b.wav', TRICKY), {"prompt": "Größe", "language": "de"})
    assert read(kind, [body[at : at + 1] for at in range(len(body))]) == whole
    for at in range(len(body)):
        assert read(kind, [body[:at], body[at:]]) == whole


def test_a_truncated_form_is_rejected_wherever_it_ends() -> None:
    kind, body = form(("file", "a.wav", TRICKY))
    end = len(body) - len(b"--\r\n")
    for at in range(end):
        with pytest.raises(ApiError) as caught:
            read(kind, [body[:at]])
        assert caught.value.status == 400


def test_an_invalid_form_is_rejected_without_quoting_it() -> None:
    kind, body = form(("file", "zebra.wav", b"zebra"))
    for broken in (b"zebra", body.replace(b"Content-", b"Con\0tent-"), b"\r\n" + body[2:]):
        with pytest.raises(ApiError) as caught:
            read(kind, [broken])
        assert "zebra" not in str(caught.value)
        assert caught.value.__context__ is None


def test_a_form_with_too_many_parts_is_rejected() -> None:
    with pytest.raises(ApiError, match=str(MAX_PARTS)):
        read(*(lambda kind, body: (kind, [body]))(*form(*[("a", "", b"b")] * (MAX_PARTS + 1))))


def test_a_form_boundary_that_is_too_long_is_rejected() -> None:
    with pytest.raises(ApiError, match="multipart"):
        FormReader(f"multipart/form-data; boundary={'x' * 1000}")


def test_a_form_part_with_a_huge_header_is_rejected() -> None:
    with pytest.raises(ApiError):
        read("multipart/form-data; boundary=x", [b"--x\r\nA: " + b"b" * 100_000])
