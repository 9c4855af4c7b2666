"""Transcribing one recording or many, however long they are and wherever they come from."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import soundfile
from starlette.responses import JSONResponse
from support.beep_audio import BEEP, BEEP_TIMES, RATE, transcribe_beeps, write_beeps
from support.paths import CLINIC_NOTE
from support.recordings import WAV, LastFirst, Overlap
from support.scripted_upstream import ReceivedRecording, Upstream

from prem_core import (
    AsyncPremClient,
    AuthenticationError,
    BadRequestError,
    InvalidParameterError,
    PermissionDeniedError,
    PremClient,
    RateLimitError,
)
from prem_core._audio.batch import (
    ErrorCollector,
    TranscriptionFailedWarning,
    atranscribe,
    atranscribe_many,
    transcribe,
    transcribe_many,
)
from prem_core._audio.sources import AudioSource, source_of
from prem_core._audio.transcripts import ChunkTranscript, TimedText, TranscriptionRequest, segments
from prem_core._protocol.routes import MAX_AUDIO_BYTES
from prem_core.enclave import LocalEnclave

DOCUMENT = TranscriptionRequest()
SEGMENTS = TranscriptionRequest(mode="segments")
CHUNKED = TranscriptionRequest(mode="segments", max_chunk_bytes=80 * 1024)


@pytest.fixture
def client(upstream_enclave: LocalEnclave, upstream: Upstream) -> Iterator[PremClient]:
    upstream.transcribe_with(transcribe_beeps)
    with PremClient(**upstream_enclave.client_options, max_retries=0) as client:
        yield client


@pytest.fixture
def aclient(client: PremClient, upstream_enclave: LocalEnclave) -> AsyncPremClient:
    return AsyncPremClient(**upstream_enclave.client_options, max_retries=0)


def texts(client: PremClient, source: AudioSource, request: TranscriptionRequest) -> list[TimedText]:
    return segments(source.source, transcribe(client, source, request), request)


def starts(found: list[TimedText]) -> list[tuple[str, float]]:
    return [(each.text, each.metadata["start"]) for each in found]


def beeps_at(times: Any) -> list[tuple[str, Any]]:
    return [(f"beep{n}", pytest.approx(start, abs=0.03)) for n, start in enumerate(times)]


# --- one recording


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
async def test_a_long_recording_is_transcribed_in_chunks_and_its_times_continue(
    tmp_path, client, aclient, upstream, suffix
):
    source = source_of(write_beeps(tmp_path / f"ward{suffix}", BEEP_TIMES, 40))
    found = texts(client, source, CHUNKED)
    assert len(upstream.recordings) > 2
    assert all(len(each.data) <= CHUNKED.max_chunk_bytes for each in upstream.recordings)
    assert starts(found) == beeps_at(BEEP_TIMES)
    for each in found:
        assert each.metadata["end"] - each.metadata["start"] == pytest.approx(BEEP, abs=0.05)
        assert each.metadata["duration"] == pytest.approx(40, abs=0.1)
    again = await atranscribe(aclient, source, CHUNKED)
    assert segments(source.source, again, CHUNKED) == found


def test_split_speech_is_transcribed_with_the_right_times(tmp_path, enclave):
    samples, rate = soundfile.read(CLINIC_NOTE, dtype="float32")
    soundfile.write(tmp_path / "thrice.wav", np.concatenate([samples, np.zeros(rate)] * 3), rate)
    chunked = TranscriptionRequest(mode="segments", max_chunk_bytes=300 * 1024)
    with PremClient(**enclave.client_options, timeout=60) as client:
        once = texts(client, source_of(CLINIC_NOTE), SEGMENTS)
        thrice = texts(client, source_of(tmp_path / "thrice.wav"), chunked)
    period = len(samples) / rate + 1
    assert starts(thrice) == [
        (text, pytest.approx(start + repeat * period, abs=0.1))
        for repeat in range(3)
        for text, start in starts(once)
    ]


def test_a_recording_of_more_than_25_mb_is_transcribed(tmp_path, client, upstream):
    seconds = MAX_AUDIO_BYTES // (2 * RATE) + 15
    at = [1.0, 400.0, seconds - 16.0, seconds - 2.0]
    source = source_of(write_beeps(tmp_path / "ward.wav", at, seconds))
    assert starts(texts(client, source, SEGMENTS)) == beeps_at(at)
    assert [each.name for each in upstream.recordings] == ["ward.part001.wav", "ward.part002.wav"]


def test_a_recording_of_25_mb_is_sent_unchanged(client, upstream):
    data = b"RIFF" + bytes(MAX_AUDIO_BYTES - 4)
    upstream.transcribe_with({"text": "Hello."})
    (found,) = texts(client, source_of(("7.wav", data)), DOCUMENT)
    assert found.text == "Hello." and upstream.recordings[0].data == data


def test_a_long_recording_that_cannot_be_split_is_named_and_nothing_is_sent(client, upstream):
    data = b"\0\0\0\x20ftypM4A " + bytes(MAX_AUDIO_BYTES)
    with pytest.raises(InvalidParameterError, match=r"s3://ward/7\.m4a: .*split it"):
        transcribe(client, source_of(data, source="s3://ward/7.m4a"), DOCUMENT)
    assert upstream.recordings == []


async def test_the_request_has_every_parameter(client, aclient, upstream):
    source = source_of(("7.wav", WAV))
    request = TranscriptionRequest("my/whisper", language="de", prompt="Ramipril", temperature=0.5)
    transcribe(client, source, request)
    await atranscribe(aclient, source, TranscriptionRequest(task="translate", prompt="Ramipril"))
    first, second = upstream.recordings
    assert first.task == "transcribe"
    assert first.params == {
        "model": "my/whisper",
        "language": "de",
        "prompt": "Ramipril",
        "temperature": "0.5",
        "response_format": "verbose_json",
    }
    assert second.task == "translate" and "language" not in second.params


async def test_the_services_error_names_the_recording_and_keeps_its_class(client, aclient, upstream):
    upstream.transcribe = lambda recording: JSONResponse(
        {"error": {"message": "cannot decode", "param": "file"}}, 400
    )
    source = source_of(("ward/7.wav", WAV))
    for call in (
        lambda: asyncio.to_thread(transcribe, client, source, DOCUMENT),
        lambda: atranscribe(aclient, source, DOCUMENT),
    ):
        with pytest.raises(BadRequestError, match=r"^ward/7\.wav: ") as caught:
            await call()
        assert caught.value.status_code == 400
        assert str(caught.value).count("ward/7.wav") == 1


async def test_a_cancelled_transcription_closes_its_file(tmp_path, aclient, upstream):
    arrived, cancelled = threading.Event(), threading.Event()

    def waits(recording: ReceivedRecording) -> dict[str, Any]:
        arrived.set()
        assert cancelled.wait(30)
        return transcribe_beeps(recording)

    upstream.transcribe_with(waits)
    path = write_beeps(tmp_path / "ward.wav", BEEP_TIMES, 40)
    opened: list[Any] = []

    @contextlib.contextmanager
    def open_file() -> Iterator[Any]:
        with path.open("rb") as file:
            opened.append(file)
            yield file

    task = asyncio.create_task(atranscribe(aclient, AudioSource("ward.wav", "ward.wav", open_file), CHUNKED))
    assert await asyncio.to_thread(arrived.wait, 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    cancelled.set()
    assert opened[0].closed


async def test_progress_is_reported_from_0_to_1_also_after_an_error(tmp_path, client, aclient):
    long = source_of(write_beeps(tmp_path / "ward.wav", BEEP_TIMES, 40))
    empty = source_of(("7.wav", b""))
    for way in ("sync", "async"):
        reports: list[tuple[str, float]] = []

        def report(source: AudioSource, done: float, reports: Any = reports) -> None:
            reports.append((source.name, done))

        if way == "sync":
            transcribe(client, long, CHUNKED, report)
            with pytest.raises(InvalidParameterError):
                transcribe(client, empty, CHUNKED, report)
        else:
            await atranscribe(aclient, long, CHUNKED, report)
            with pytest.raises(InvalidParameterError):
                await atranscribe(aclient, empty, CHUNKED, report)
        steps = [done for name, done in reports if name == "ward.wav"]
        assert len(set(steps)) > 4 and steps == sorted(steps)
        assert steps[0] == 0 and steps.count(0) == steps.count(1) == 1
        assert [done for name, done in reports if name == "7.wav"] == [0, 1]


# --- many recordings


def seven(*empty: int) -> list[AudioSource]:
    return [source_of((f"{n}.wav", b"" if n in empty else WAV)) for n in range(7)]


def name_as_text(recording: ReceivedRecording) -> dict[str, Any]:
    return {"text": recording.name}


def raise_error(source: AudioSource, error: Exception) -> None:
    raise error


def text_of(transcripts: list[ChunkTranscript]) -> str:
    return transcripts[0].transcription.text


def test_a_recording_is_transcribed_when_it_is_requested(client, upstream):
    upstream.transcribe_with(name_as_text)
    found = transcribe_many(client, seven(), DOCUMENT, raise_error)
    assert upstream.recordings == []
    assert text_of(next(found)[1]) == "0.wav" and len(upstream.recordings) == 1
    assert [text_of(transcripts) for _, transcripts in found] == [f"{n}.wav" for n in range(1, 7)]


async def test_no_more_than_max_recordings_are_transcribed_at_once(aclient, upstream):
    overlap = Overlap(3, name_as_text)
    upstream.transcribe_with(overlap)
    opened = most_opened = 0

    def counted(number: int) -> AudioSource:
        source = source_of((f"{number}.wav", WAV))

        @contextlib.contextmanager
        def open_file() -> Iterator[Any]:
            nonlocal opened, most_opened
            opened += 1
            most_opened = max(most_opened, opened)
            with source.open_file() as file:
                yield file
            opened -= 1

        return AudioSource(source.source, source.name, open_file)

    found = atranscribe_many(
        aclient, map(counted, range(7)), DOCUMENT, raise_error, max_recordings=3, max_ahead=7
    )
    assert [text_of(transcripts) async for _, transcripts in found] == [f"{n}.wav" for n in range(7)]
    assert (overlap.most, most_opened) == (3, 3)


async def test_results_keep_the_order_of_the_recordings(aclient, upstream):
    upstream.transcribe_with(LastFirst("0.wav", "2.wav", name_as_text))
    found = atranscribe_many(aclient, seven(), DOCUMENT, raise_error, max_recordings=3)
    assert [text_of(transcripts) async for _, transcripts in found] == [f"{n}.wav" for n in range(7)]


async def test_with_max_ahead_a_long_recording_does_not_hold_up_the_others(aclient, upstream):
    upstream.transcribe_with(LastFirst("0.wav", "6.wav", name_as_text))
    found = atranscribe_many(aclient, seven(), DOCUMENT, raise_error, max_recordings=2, max_ahead=7)
    assert [text_of(transcripts) async for _, transcripts in found] == [f"{n}.wav" for n in range(7)]


async def test_no_more_recordings_are_started_until_the_next_one_is_requested(aclient, upstream):
    upstream.transcribe_with(name_as_text)
    sources = iter(seven())
    found = atranscribe_many(aclient, sources, DOCUMENT, raise_error, max_recordings=2)
    await anext(found)
    assert next(sources).name == "2.wav"
    await found.aclose()


async def test_an_error_cancels_the_transcriptions_in_progress(aclient, upstream):
    released = threading.Event()
    upstream.transcribe_with(lambda recording: name_as_text(recording) if released.wait(30) else None)
    with pytest.raises(InvalidParameterError, match=r"empty: 0\.wav"):
        async for _ in atranscribe_many(aclient, seven(0), DOCUMENT, raise_error, max_recordings=3):
            pass
    assert len(asyncio.all_tasks()) == 1
    released.set()


@pytest.mark.parametrize("at_once", [1, 3])
async def test_failures_are_collected_and_the_other_recordings_are_transcribed(
    client, aclient, upstream, at_once
):
    upstream.transcribe_with(name_as_text)
    for way in ("sync", "async"):
        errors: list[Any] = []
        with pytest.warns(TranscriptionFailedWarning, match="2 of 7 recordings"):  # noqa: PT031
            with ErrorCollector("collect", errors) as collector:
                hooks = collector.on_failure, collector.on_progress
                if way == "sync":
                    found = list(transcribe_many(client, seven(2, 5), DOCUMENT, *hooks))
                else:
                    many = atranscribe_many(aclient, seven(2, 5), DOCUMENT, *hooks, max_recordings=at_once)
                    found = [each async for each in many]
        assert [source.source for source, _ in found] == ["0.wav", "1.wav", "3.wav", "4.wav", "6.wav"]
        assert [(source, type(error)) for source, error in errors] == [
            ("2.wav", InvalidParameterError),
            ("5.wav", InvalidParameterError),
        ]


def collect(client: PremClient, sources: list[AudioSource], errors: list[Any], **options: Any) -> int:
    """Transcribe `sources` and collect errors. Returns how many were transcribed."""
    with ErrorCollector("collect", errors, **options) as collector:
        hooks = collector.on_failure, collector.on_progress
        return len(list(transcribe_many(client, sources, DOCUMENT, *hooks)))


def test_no_warning_without_a_failure(client, upstream):
    upstream.transcribe_with(name_as_text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert collect(client, seven(), []) == 7


def test_the_services_errors_are_collected_too(client, upstream):
    upstream.transcribe = lambda recording: (
        JSONResponse({}, 429) if recording.name == "1.wav" else name_as_text(recording)
    )
    errors: list[Any] = []
    with pytest.warns(TranscriptionFailedWarning, match="1 of 7"):
        assert collect(client, seven(), errors) == 6
    assert isinstance(errors[0][1], RateLimitError) and str(errors[0][1]).startswith("1.wav: ")


def test_a_wrong_key_is_raised_and_not_collected(upstream_enclave, upstream):
    errors: list[Any] = []
    with PremClient(**{**upstream_enclave.client_options, "api_key": "sk_test_other"}) as client:
        with pytest.raises(AuthenticationError, match=r"0\.wav"):
            collect(client, seven(), errors)
    assert errors == []


def test_a_missing_permission_is_raised_and_not_collected():
    errors: list[Any] = []
    with LocalEnclave(scopes=[]) as prem:
        with PremClient(**prem.client_options) as client:
            with pytest.raises(PermissionDeniedError, match=r"0\.wav"):
                collect(client, seven(), errors)
    assert errors == []


def test_the_progress_bar_counts_recordings(client, upstream, capsys):
    upstream.transcribe_with(name_as_text)
    with pytest.warns(TranscriptionFailedWarning):
        collect(client, seven(2), [], show_progress=True, total=7)
    shown = capsys.readouterr()
    assert "7/7" in shown.err and shown.out == ""


def test_the_error_for_a_progress_bar_without_tqdm_has_the_install_command(monkeypatch):
    real = builtins.__import__

    def importing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("tqdm"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", importing)
    ErrorCollector("raise", [])
    with pytest.raises(ImportError, match="pip install tqdm"):
        ErrorCollector("raise", [], show_progress=True)


def test_importing_the_batch_module_imports_no_decoder():
    unwanted = {"soundfile", "numpy", "tqdm", "fsspec", "langchain_core", "llama_index"}
    code = f"import sys, prem_core._audio.batch; print(sorted({unwanted} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
