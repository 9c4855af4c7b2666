"""Hearing recordings: wherever they come from, however long and however many they are."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import io
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import httpx
import numpy as np
import pytest
import soundfile
from pydantic import ValidationError
from starlette.responses import JSONResponse
from support.beep_audio import BEEP, RATE, hears_beeps, write
from support.paths import CLINIC_NOTE
from support.scripted_upstream import Heard, Upstream

from prem_core import (
    AsyncPremClient,
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    InvalidParameterError,
    PremClient,
    PublicKey,
    RateLimitError,
)
from prem_core._adapters.audio_settings import LoaderSettings
from prem_core._audio.batch import (
    TranscriptionFailedWarning,
    Watch,
    ahear,
    ahear_all,
    hear,
    hear_all,
    pieces,
)
from prem_core._audio.sources import Source, source_of, sources_at, suffix_of_type
from prem_core._audio.transcripts import Hearing
from prem_core._audio.upload import MAX_FILE_BYTES
from prem_core.enclave import LocalEnclave

SAMPLE = CLINIC_NOTE
AT = [
    0.4,
    1.6,
    3.0,
    4.4,
    6.0,
    7.3,
    9.1,
    11.0,
    12.5,
    15.0,
    17.7,
    19.0,
    22.2,
    25.0,
    27.1,
    30.3,
    33.0,
    36.6,
    38.9,
]
SEGMENTS = Hearing(mode="segments", max_part_bytes=80 * 1024)


@pytest.fixture
def client(upstream_enclave: LocalEnclave, upstream: Upstream) -> Iterator[PremClient]:
    upstream.transcribes(hears_beeps)
    with PremClient(**upstream_enclave.client_options, max_retries=0) as client:
        yield client


@pytest.fixture
def aclient(client: PremClient, upstream_enclave: LocalEnclave) -> AsyncPremClient:
    return AsyncPremClient(**upstream_enclave.client_options, max_retries=0)


def heard_at(passages: list[Any]) -> list[tuple[str, float]]:
    return [(each.text, each.metadata["start"]) for each in passages]


def expected(at: list[float]) -> list[tuple[str, Any]]:
    return [(f"beep{n}", pytest.approx(start, abs=0.03)) for n, start in enumerate(at)]


# --- where recordings come from


WAV = SAMPLE.read_bytes()


class Named(io.BytesIO):
    name = "/ward/7.wav"


class Stream:
    """What can be read once, such as the body of an answer."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self) -> bytes:
        data, self._data = self._data, b""
        return data


@pytest.mark.parametrize(
    ("file", "source", "name"),
    [
        (SAMPLE, str(SAMPLE), "clinic_note.wav"),
        (str(SAMPLE), str(SAMPLE), "clinic_note.wav"),
        (("7.wav", WAV), "7.wav", "7.wav"),
        (("7.wav", SAMPLE), "7.wav", "clinic_note.wav"),
        (Named(WAV), "/ward/7.wav", "7.wav"),
        (("7", WAV), "7", "7.wav"),
        (("7.opus", WAV), "7.opus", "7.opus.wav"),
    ],
)
def test_a_recording_keeps_its_name(file, source, name):
    made = source_of(file)
    (piece,) = pieces(made)
    assert (made.source, piece.name, piece.data) == (source, name, WAV)


@pytest.mark.parametrize("file", [WAV, bytearray(WAV), memoryview(WAV), io.BytesIO(WAV), Stream(WAV)])
def test_a_recording_without_a_name_is_known_by_its_content(file):
    made = source_of(file)
    assert made.source == made.name == source_of(WAV).source
    assert made.source.startswith("audio-") and made.source.endswith(".wav")
    assert made.source != source_of(WAV + b"\0").source


def test_a_recording_is_read_as_often_as_needed_and_from_where_it_stood():
    file = Named(b"before" + WAV)
    file.seek(6)
    made = source_of(file)
    assert [next(pieces(made)).data for _ in range(2)] == [WAV, WAV]


def test_a_file_of_the_callers_own_is_not_closed(tmp_path):
    with SAMPLE.open("rb") as file:
        list(pieces(source_of(file)))
        assert not file.closed and file.tell() == 0


def test_fsspec_file_systems_are_read():
    fs = fsspec.filesystem("memory")
    fs.pipe("/ward/7.wav", WAV)
    (piece,) = pieces(source_of("/ward/7.wav", fs=fs))
    assert (piece.name, piece.data) == ("7.wav", WAV)


class Broken:
    """A file system with an error of its own kind."""

    def open(self, path: str, mode: str) -> Any:
        raise LookupError("the bucket is not there")


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda at: source_of(at / "none.wav"), r"there is no such file: .*none\.wav"),
        (lambda at: source_of(at), r"that is a directory: "),
        (lambda at: source_of(("7.wav", b"")), r"the recording is empty: 7\.wav"),
        (lambda at: source_of(("7.wav", io.StringIO("x"))), r"7\.wav must be open in binary mode"),
        (lambda at: source_of("s3://ward/7.wav", fs=Broken()), r"cannot be read \(LookupError\): s3://ward/7\.wav"),
        (lambda at: source_of("/none.wav", fs=fsspec.filesystem("memory")), r"there is no such file: /none\.wav"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(tmp_path, make, why):
    with pytest.raises(InvalidParameterError, match=why) as caught:
        list(pieces(make(tmp_path)))
    assert caught.value.param == "file"


@pytest.mark.parametrize("file", [5, ("7.wav",), ("", WAV), ("7.wav", 5), io.StringIO("x")])
def test_what_is_no_recording_is_refused(file):
    with pytest.raises(InvalidParameterError, match="^file: "):
        source_of(file)


def test_a_closed_file_is_named():
    file = Named(WAV)
    file.close()
    with pytest.raises(InvalidParameterError, match=r"cannot be read \(ValueError\): /ward/7\.wav"):
        source_of(file)


def test_a_directory_is_its_recordings_sorted(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("c.WAV", "b/a.mp3", "a.ogg", "notes.txt", "d.opus"):
        (tmp_path / name).write_bytes(b"x")

    def found(*args: Any) -> list[str]:
        return [str(Path(each.source).relative_to(tmp_path)) for each in sources_at([tmp_path], *args)]

    assert found() == ["a.ogg", "b/a.mp3", "c.WAV"]
    assert found("*.opus") == ["d.opus"]
    assert found("*", [".ogg", ".OPUS"]) == ["a.ogg", "d.opus"]
    assert found(None, [".mp3"]) == ["b/a.mp3"]
    both = sources_at([tmp_path / "d.opus", tmp_path / "b"])
    assert [each.name for each in both] == ["d.opus", "a.mp3"]


def test_a_directory_without_recordings_is_an_error(tmp_path):
    with pytest.raises(
        InvalidParameterError, match=rf"no recording in {tmp_path} \(glob '\*\.mp3', suffixes"
    ):
        sources_at([tmp_path], "*.mp3")


def test_a_source_shows_neither_its_content_nor_what_is_known_of_it():
    assert repr(source_of(("7.wav", b"zebra"), about={"patient": "Anna"})) == "Source(source='7.wav')"


def test_suffixes_of_types():
    assert suffix_of_type("audio/mpeg") == ".mp3"
    assert suffix_of_type("audio/none") == suffix_of_type(None) == ""


# --- hearing one


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
async def test_a_long_recording_is_heard_whole_and_its_times_go_on(
    tmp_path, client, aclient, upstream, suffix
):
    source = source_of(write(tmp_path / f"ward{suffix}", AT, 40))
    passages = hear(client, source, SEGMENTS)
    assert len(upstream.heard) > 2
    assert all(len(each.data) <= SEGMENTS.max_part_bytes for each in upstream.heard)
    assert heard_at(passages) == expected(AT)
    assert all(
        each.metadata["end"] - each.metadata["start"] == pytest.approx(BEEP, abs=0.05) for each in passages
    )
    assert all(each.metadata["duration"] == pytest.approx(40, abs=0.1) for each in passages)
    assert await ahear(aclient, source, SEGMENTS) == passages


def test_speech_that_was_cut_is_recognised_in_its_place(tmp_path, enclave):
    samples, rate = soundfile.read(SAMPLE, dtype="float32")
    soundfile.write(tmp_path / "thrice.wav", np.concatenate([samples, np.zeros(rate)] * 3), rate)
    with PremClient(**enclave.client_options, timeout=60) as client:
        once = hear(client, source_of(SAMPLE), Hearing(mode="segments"))
        thrice = hear(
            client, source_of(tmp_path / "thrice.wav"), Hearing(mode="segments", max_part_bytes=300 * 1024)
        )
    period = len(samples) / rate + 1
    assert heard_at(thrice) == [
        (text, pytest.approx(start + turn * period, abs=0.1))
        for turn in range(3)
        for text, start in heard_at(once)
    ]


def test_more_than_25_mb_are_heard(tmp_path, client, upstream):
    seconds = MAX_FILE_BYTES // (2 * RATE) + 15
    at = [1.0, 400.0, seconds - 16.0, seconds - 2.0]
    source = source_of(write(tmp_path / "ward.wav", at, seconds))
    assert heard_at(hear(client, source, Hearing(mode="segments"))) == expected(at)
    assert [each.name for each in upstream.heard] == ["ward.part001.wav", "ward.part002.wav"]


def test_25_mb_are_sent_as_they_are(client, upstream):
    data = b"RIFF" + bytes(MAX_FILE_BYTES - 4)
    upstream.transcribes({"text": "Hello."})
    (passage,) = hear(client, source_of(("7.wav", data)), Hearing())
    assert passage.text == "Hello." and upstream.heard[0].data == data


def test_a_long_recording_that_cannot_be_cut_is_named_and_nothing_is_sent(client, upstream):
    data = b"\0\0\0\x20ftypM4A " + bytes(MAX_FILE_BYTES)
    with pytest.raises(InvalidParameterError, match=r"s3://ward/7\.m4a: .*split it"):
        hear(client, source_of(data, source="s3://ward/7.m4a"), Hearing())
    assert upstream.heard == []


async def test_what_is_asked_arrives(client, aclient, upstream):
    source = source_of(("7.wav", WAV))
    hear(
        client,
        source,
        Hearing(language="de", prompt="Ramipril", temperature=0.5, model="openai/whisper-large-v3"),
    )
    await ahear(aclient, source, Hearing(task="translate", prompt="Ramipril"))
    first, second = upstream.heard
    assert first.task == "transcribe"
    assert first.params == {
        "model": "openai/whisper-large-v3",
        "language": "de",
        "prompt": "Ramipril",
        "temperature": "0.5",
        "response_format": "verbose_json",
    }
    assert second.task == "translate" and "language" not in second.params


async def test_the_services_error_names_the_recording_and_stays_what_it_is(client, aclient, upstream):
    upstream.hears = lambda heard: JSONResponse({"error": {"message": "cannot decode", "param": "file"}}, 400)
    for hearing in (
        lambda s: asyncio.to_thread(hear, client, s, Hearing()),
        lambda s: ahear(aclient, s, Hearing()),
    ):
        with pytest.raises(BadRequestError, match=r"^ward/7\.wav: ") as caught:
            await hearing(source_of(("ward/7.wav", WAV)))
        assert caught.value.status_code == 400
        assert str(caught.value).count("ward/7.wav") == 1


async def test_one_that_is_cancelled_lets_its_file_go(tmp_path, aclient, upstream):
    arrived = threading.Event()
    upstream.transcribes(lambda heard: (arrived.set(), time.sleep(0.3), hears_beeps(heard))[2])
    path = write(tmp_path / "ward.wav", AT, 40)
    opened: list[Any] = []

    @contextlib.contextmanager
    def watched() -> Iterator[Any]:
        with path.open("rb") as file:
            opened.append(file)
            yield file

    task = asyncio.create_task(ahear(aclient, Source("ward.wav", "ward.wav", watched), SEGMENTS))
    await asyncio.to_thread(arrived.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert opened[0].closed


# --- hearing many


def seven(*bad: int) -> list[Source]:
    return [source_of((f"{n}.wav", b"" if n in bad else WAV)) for n in range(7)]


def says_its_name(heard: Heard) -> dict[str, Any]:
    return {"text": heard.name}


def test_recordings_are_heard_when_they_are_asked_for(client, upstream):
    upstream.transcribes(says_its_name)
    found = hear_all(client, seven(), Hearing(), Watch("raise", []))
    assert upstream.heard == []
    assert next(found)[1][0].text == "0.wav" and len(upstream.heard) == 1
    assert [passages[0].text for _, passages in found] == [f"{n}.wav" for n in range(1, 7)]


async def test_several_are_heard_at_once_never_more_than_asked_and_come_in_order(aclient, upstream):
    lock, now, most = threading.Lock(), 0, 0

    def slowly(heard: Heard) -> dict[str, Any]:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        # The first ones take longest.
        time.sleep(0.25 - 0.03 * int(heard.name[0]))
        with lock:
            now -= 1
        return says_its_name(heard)

    upstream.transcribes(slowly)
    found = ahear_all(aclient, seven(), Hearing(), Watch("raise", []), 3)
    assert [passages[0].text async for _, passages in found] == [f"{n}.wav" for n in range(7)]
    assert most == 3


async def test_no_more_are_begun_while_nobody_asks(aclient, upstream):
    upstream.transcribes(says_its_name)
    found = ahear_all(aclient, seven(), Hearing(), Watch("raise", []), 2)
    await anext(found)
    await asyncio.sleep(0.2)
    assert len(upstream.heard) <= 2
    await found.aclose()


async def test_an_error_ends_those_that_are_on_their_way(aclient, upstream):
    upstream.transcribes(lambda heard: (time.sleep(0.2), says_its_name(heard))[1])
    with pytest.raises(InvalidParameterError, match=r"empty: 0\.wav"):
        async for _ in ahear_all(aclient, seven(0), Hearing(), Watch("raise", []), 3):
            pass
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize("at_once", [1, 3])
async def test_collect_gives_the_good_ones_and_says_which_were_not(client, aclient, upstream, at_once):
    upstream.transcribes(says_its_name)
    for way in ("sync", "async"):
        errors: list[Any] = []
        watch = Watch("collect", errors)
        with pytest.warns(TranscriptionFailedWarning, match="2 of 7 recordings"):  # noqa: PT031
            if way == "sync":
                pairs = list(hear_all(client, seven(2, 5), Hearing(), watch))
            else:
                pairs = [pair async for pair in ahear_all(aclient, seven(2, 5), Hearing(), watch, at_once)]
        found = [source.source for source, _ in pairs]
        assert found == ["0.wav", "1.wav", "3.wav", "4.wav", "6.wav"]
        assert [(source, type(error)) for source, error in errors] == [
            ("2.wav", InvalidParameterError),
            ("5.wav", InvalidParameterError),
        ]


def test_collect_without_an_error_is_silent(client, upstream):
    upstream.transcribes(says_its_name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(hear_all(client, seven(), Hearing(), Watch("collect", [])))) == 7


def test_collect_takes_the_services_errors_too(client, upstream):
    upstream.hears = lambda heard: JSONResponse({}, 429) if heard.name == "1.wav" else says_its_name(heard)
    errors: list[Any] = []
    with pytest.warns(TranscriptionFailedWarning, match="1 of 7"):
        assert len(list(hear_all(client, seven(), Hearing(), Watch("collect", errors)))) == 6
    assert isinstance(errors[0][1], RateLimitError) and str(errors[0][1]).startswith("1.wav: ")


def test_collect_does_not_collect_a_wrong_key(upstream_enclave, upstream):
    errors: list[Any] = []
    with PremClient(**{**upstream_enclave.client_options, "api_key": "sk_test_other"}) as client:
        with pytest.raises(AuthenticationError, match=r"0\.wav"):
            list(hear_all(client, seven(), Hearing(), Watch("collect", errors)))
    assert errors == []


def test_progress_is_shown_file_by_file(client, upstream, capsys):
    upstream.transcribes(says_its_name)
    with pytest.warns(TranscriptionFailedWarning):
        list(hear_all(client, seven(2), Hearing(), Watch("collect", [], progress=True, total=7)))
    shown = capsys.readouterr()
    assert "7/7" in shown.err and shown.out == ""


def test_progress_without_tqdm_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def importing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("tqdm"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", importing)
    Watch("raise", [])
    with pytest.raises(ImportError, match="pip install tqdm"):
        Watch("raise", [], progress=True)


# --- settings


class Settings(LoaderSettings):
    http_client: Any = None
    async_http_client: Any = None
    _http_fields = ("http_client", "async_http_client")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"language": "german"}, "language"),
        ({"language": "de", "task": "translate"}, "language: a translation finds out by itself"),
        ({"temperature": 1.5}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"task": "summarise"}, "task"),
        ({"mode": "words"}, "mode"),
        ({"group_seconds": 30}, "group_seconds: needs mode='segments'"),
        ({"group_seconds": 0, "mode": "segments"}, "group_seconds"),
        ({"group_seconds": float("inf"), "mode": "segments"}, "group_seconds"),
        ({"max_part_bytes": MAX_FILE_BYTES + 1}, "max_part_bytes"),
        ({"max_part_bytes": 1000}, "max_part_bytes"),
        ({"on_error": "skip"}, "on_error"),
        ({"max_concurrency": 0}, "max_concurrency"),
        ({"timeout": 0}, "timeout"),
        ({"max_retries": -1}, "max_retries"),
        ({"model": ""}, "model"),
        ({"langauge": "de"}, "langauge"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name_when_it_is_made(settings, named):
    with pytest.raises(ValidationError, match=named):
        Settings(**settings)


def test_an_error_about_a_setting_does_not_show_a_key():
    with pytest.raises(ValidationError) as caught:
        Settings(api_key=["sk_live_zebra"], prompt=["Ramipril"])
    assert "zebra" not in str(caught.value) and "Ramipril" not in str(caught.value)


def test_settings_show_neither_key_nor_prompt():
    shown = repr(Settings(api_key="sk_live_zebra", prompt="Ramipril"))
    assert "zebra" not in shown and "Ramipril" not in shown


def test_an_answer_may_take_five_minutes_and_a_connection_half_a_minute():
    settings = Settings(api_key="sk_test_x")
    assert settings._client_options("http_client")["timeout"] == httpx.Timeout(300, connect=30)
    assert Settings(timeout=5)._client_options("http_client")["timeout"] == httpx.Timeout(5)


def test_a_pinned_key_may_be_an_object(enclave):
    key: PublicKey = enclave.public_key
    assert Settings(enclave_public_key=key).enclave_public_key == bytes(key).hex()


def test_no_key_is_said_when_it_is_needed():
    settings = Settings()
    with pytest.raises(ConfigurationError, match="PREM_API_KEY"):
        settings._sync()


def test_importing_the_core_brings_no_decoder():
    unwanted = {"soundfile", "numpy", "tqdm", "fsspec", "langchain_core", "llama_index"}
    code = f"import sys, prem_core._audio.batch; print(sorted({unwanted} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
