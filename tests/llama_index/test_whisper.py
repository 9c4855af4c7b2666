"""Recordings as LlamaIndex documents: the reader, in a directory reader too, and what is wrong with WhisperReader."""

from __future__ import annotations

import asyncio
import copy
import io
import json
import pickle
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import httpx
import pytest
from llama_index.core import SimpleDirectoryReader
from llama_index.core.readers.base import BasePydanticReader, ReaderConfig
from llama_index.core.schema import Document, MetadataMode
from starlette.responses import JSONResponse
from support.beep_audio import hears_beeps, write
from support.paths import CLINIC_NOTE
from support.scripted_upstream import Heard, Upstream

from llama_index_prem import (
    WHISPER_SUFFIXES,
    PremWhisperReader,
    TranscriptionFailedWarning,
    whisper_file_extractor,
)
from prem_core import BadRequestError, InvalidParameterError
from prem_core.enclave import LocalEnclave

SAMPLE = CLINIC_NOTE
WAV = SAMPLE.read_bytes()
AT = [0.4, 1.6, 3.0, 4.4, 6.0, 7.3, 9.1, 11.0, 12.5, 15.0, 17.7, 19.0]

ANSWER = {
    "task": "transcribe",
    "language": "german",
    "duration": 4.5,
    "text": "Anna darf nach Hause. Am Freitag.",
    "segments": [
        {"id": 0, "start": 0.0, "end": 2.5, "text": " Anna darf nach Hause."},
        {"id": 1, "start": 2.5, "end": 4.0, "text": " Am Freitag."},
    ],
}

Make = Callable[..., PremWhisperReader]


@pytest.fixture
def reader(upstream_enclave: LocalEnclave, upstream: Upstream) -> Make:
    """Makes readers whose enclave answers as the test says."""
    upstream.transcribes(ANSWER)
    return lambda **settings: PremWhisperReader(
        **{**upstream_enclave.client_options, "max_retries": 0, **settings}
    )


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    """A directory with three recordings and a text."""
    for name in ("a.wav", "b.wav", "c.wav"):
        shutil.copy(SAMPLE, tmp_path / name)
    (tmp_path / "notes.txt").write_text("no recording")
    return tmp_path


def names(documents: list[Document]) -> list[str]:
    return [Path(each.metadata["source"]).name for each in documents]


# --- with the enclave's own recogniser


async def test_the_reader_hears_the_sample(enclave: LocalEnclave) -> None:
    made = PremWhisperReader(**enclave.client_options, mode="segments")
    first, second = made.load_data(SAMPLE)
    assert first.text == "the doctor will see the patient again on friday"
    assert second.text == "the hospital will be open on saturday and sunday"
    assert first.metadata["end"] <= second.metadata["start"] < second.metadata["end"] <= 7.4
    assert await made.aload_data(SAMPLE) == [first, second]


# --- one recording


def test_metadata_is_what_is_given_and_that_of_the_passage(reader: Make) -> None:
    (document,) = reader().load_data(SAMPLE, extra_info={"patient": "Anna"})
    assert document.text == "Anna darf nach Hause. Am Freitag."
    assert document.metadata == {
        "patient": "Anna",
        "source": str(SAMPLE),
        "chunk": 0,
        "start": 0.0,
        "end": 4.5,
        "duration": 4.5,
        "language": "german",
        "model": "openai/whisper-large-v3",
        "task": "transcribe",
    }


def test_numbers_are_neither_embedded_nor_read_by_an_llm(reader: Make) -> None:
    (document,) = reader().load_data(SAMPLE, extra_info={"patient": "Anna"})
    for mode in (MetadataMode.EMBED, MetadataMode.LLM):
        said = document.get_content(mode)
        assert said.startswith(f"patient: Anna\nsource: {SAMPLE}\nlanguage: german\n")
        for name in ("start", "end", "duration", "chunk", "model", "task"):
            assert f"{name}:" not in said
    assert "start: 0.0" in document.get_content(MetadataMode.ALL)


def test_the_caller_s_extra_info_is_not_changed(reader: Make) -> None:
    given = {"patient": "Anna"}
    reader(mode="segments").load_data(SAMPLE, extra_info=given)
    assert given == {"patient": "Anna"}


def test_groups(reader: Make) -> None:
    (group,) = reader(mode="segments", group_seconds=30).load_data(SAMPLE)
    assert (group.text, group.metadata["start"], group.metadata["end"]) == (ANSWER["text"], 0.0, 4.0)


def test_silence_is_an_empty_document(reader: Make, upstream: Upstream) -> None:
    upstream.transcribes({"text": "", "segments": [], "duration": 3.0})
    (document,) = reader(mode="segments").load_data(SAMPLE)
    assert document.text == "" and document.metadata["end"] == 3.0


class Named(io.BytesIO):
    name = "/ward/7.wav"


@pytest.mark.parametrize(
    ("file", "source", "name"),
    [
        (str(SAMPLE), str(SAMPLE), "clinic_note.wav"),
        (SAMPLE, str(SAMPLE), "clinic_note.wav"),
        (("7.wav", WAV), "7.wav", "7.wav"),
        (Named(WAV), "/ward/7.wav", "7.wav"),
    ],
)
def test_paths_names_and_files(reader: Make, upstream: Upstream, file: Any, source: str, name: str) -> None:
    (document,) = reader().load_data(file)
    assert document.metadata["source"] == source
    assert upstream.heard[0].name == name and upstream.heard[0].data == WAV


@pytest.mark.parametrize("file", [WAV, bytearray(WAV), io.BytesIO(WAV)])
def test_bytes_and_nameless_files_are_known_by_their_content(reader: Make, file: Any) -> None:
    (document,) = reader().load_data(file)
    (same,) = reader().load_data(WAV)
    assert document == same and document.metadata["source"].startswith("audio-")


# --- many recordings


async def test_a_list_is_heard_in_order_in_all_four_ways(reader: Make, calls: Path) -> None:
    made = reader(mode="segments")
    files: list[Any] = [calls / "c.wav", str(calls / "a.wav"), ("b.wav", WAV)]
    loaded = made.load_data(files)
    assert names(loaded) == ["c.wav", "c.wav", "a.wav", "a.wav", "b.wav", "b.wav"]
    assert list(made.lazy_load_data(files)) == loaded
    assert await made.aload_data(files) == loaded
    assert [each async for each in made.alazy_load_data(files)] == loaded


async def test_several_are_heard_at_once(reader: Make, upstream: Upstream, calls: Path) -> None:
    lock, now, most = threading.Lock(), 0, 0

    def slowly(heard: Heard) -> dict[str, Any]:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.15)
        with lock:
            now -= 1
        return ANSWER

    upstream.transcribes(slowly)
    await reader(max_concurrency=2).aload_data(
        [("1.wav", WAV), ("2.wav", WAV), ("3.wav", WAV), ("4.wav", WAV)]
    )
    assert most == 2


def test_one_reader_serves_many_event_loops(reader: Make) -> None:
    made = reader()
    assert len({asyncio.run(made.aload_data(SAMPLE))[0].id_ for _ in range(3)}) == 1


async def test_errors_are_collected_until_they_are_forgotten(
    reader: Make, upstream: Upstream, calls: Path
) -> None:
    upstream.hears = lambda heard: JSONResponse({}, 400) if heard.name == "b.wav" else ANSWER
    made = reader(on_error="collect")
    files: list[Any] = [calls / "a.wav", calls / "b.wav", calls / "none.wav"]
    with pytest.warns(TranscriptionFailedWarning, match="2 of 3 recordings could not be heard"):
        assert names(made.load_data(files)) == ["a.wav"]
    with pytest.warns(TranscriptionFailedWarning, match="1 of 1"):
        assert await made.aload_data(calls / "b.wav") == []
    assert [(Path(source).name, type(error)) for source, error in made.errors] == [
        ("b.wav", BadRequestError),
        ("none.wav", InvalidParameterError),
        ("b.wav", BadRequestError),
    ]
    assert all(source in str(error) for source, error in made.errors)
    made.errors.clear()
    assert made.errors == []


def test_progress_counts_files(reader: Make, calls: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reader(show_progress=True).load_data([calls / "a.wav", calls / "b.wav"])
    shown = capsys.readouterr()
    assert "2/2" in shown.err and shown.out == ""


# --- in a SimpleDirectoryReader


def extractor(upstream_enclave: LocalEnclave, **settings: Any) -> dict[str, PremWhisperReader]:
    return whisper_file_extractor(**{**upstream_enclave.client_options, "max_retries": 0, **settings})


def test_the_extractor_has_every_suffix_that_whisper_takes_and_one_reader() -> None:
    made = whisper_file_extractor(language="de")
    assert tuple(made) == WHISPER_SUFFIXES
    assert {".mp3", ".mp4", ".mpeg", ".mpga", ".m4a", ".wav", ".webm", ".ogg", ".flac"} <= set(
        WHISPER_SUFFIXES
    )
    assert len({id(each) for each in made.values()}) == 1
    assert made[".wav"].language == "de"


async def test_a_directory_is_read_synchronously_and_not(
    upstream_enclave: LocalEnclave, upstream: Upstream, calls: Path
) -> None:
    upstream.transcribes(ANSWER)
    directory = SimpleDirectoryReader(
        calls, file_extractor=extractor(upstream_enclave, mode="segments"), raise_on_error=True
    )
    documents = directory.load_data()
    heard = [each for each in documents if "source" in each.metadata]
    assert names(heard) == ["a.wav", "a.wav", "b.wav", "b.wav", "c.wav", "c.wav"] and len(documents) == 7
    assert heard[0].metadata["file_name"] == "a.wav" and heard[0].metadata["start"] == 0.0
    assert "file_size" not in heard[0].get_content(MetadataMode.EMBED)
    assert "start" not in heard[0].get_content(MetadataMode.EMBED)
    again = [each for each in await directory.aload_data() if "source" in each.metadata]
    assert [each.id_ for each in again] == [each.id_ for each in heard]


def test_a_directory_is_read_by_worker_processes(
    upstream_enclave: LocalEnclave, upstream: Upstream, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.transcribes(ANSWER)
    # The key is not in what goes to the workers: they read it from the environment.
    monkeypatch.setenv("PREM_API_KEY", upstream_enclave.api_key)
    directory = SimpleDirectoryReader(
        calls, file_extractor=extractor(upstream_enclave), required_exts=[".wav"], raise_on_error=True
    )
    assert names(directory.load_data(num_workers=2)) == ["a.wav", "b.wav", "c.wav"]
    assert sorted(each.name for each in upstream.heard) == ["a.wav", "b.wav", "c.wav"]


@pytest.mark.parametrize("num_workers", [None, 2])
def test_a_directory_s_error_names_the_file(
    upstream_enclave: LocalEnclave,
    upstream: Upstream,
    calls: Path,
    monkeypatch: pytest.MonkeyPatch,
    num_workers: int | None,
) -> None:
    upstream.transcribes(ANSWER)
    monkeypatch.setenv("PREM_API_KEY", upstream_enclave.api_key)
    (calls / "b.wav").write_bytes(b"")
    directory = SimpleDirectoryReader(
        calls, file_extractor=extractor(upstream_enclave), required_exts=[".wav"], raise_on_error=True
    )
    with pytest.raises(Exception, match="Error loading file") as caught:
        directory.load_data(num_workers=num_workers)
    assert "b.wav" in str(caught.value.__cause__)


def test_a_remote_directory_is_read_through_its_file_system(
    upstream_enclave: LocalEnclave, upstream: Upstream
) -> None:
    upstream.transcribes(ANSWER)
    fs = fsspec.filesystem("memory")
    fs.pipe("/ward/7.wav", WAV)
    directory = SimpleDirectoryReader(
        "/ward", fs=fs, file_extractor=extractor(upstream_enclave), raise_on_error=True
    )
    (document,) = directory.load_data()
    assert document.metadata["source"] == document.metadata["file_path"] == "/ward/7.wav"
    assert upstream.heard[0].data == WAV


# --- copies


def test_to_dict_holds_every_setting_and_no_secret(reader: Make, upstream_enclave: LocalEnclave) -> None:
    with httpx.Client() as client:
        made = reader(mode="segments", group_seconds=60, prompt="Ramipril", http_client=client)
        told = made.to_dict()
    assert upstream_enclave.api_key not in json.dumps(told) and "http_client" not in told
    assert told["class_name"] == "PremWhisperReader" and told["is_remote"] is True
    again = PremWhisperReader.from_dict(told)
    assert again.to_dict() == told and again.group_seconds == 60


def test_a_reader_config_takes_it(reader: Make) -> None:
    config = ReaderConfig(reader=reader(), reader_args=[str(SAMPLE)])
    assert config.read()[0].text == ANSWER["text"]
    assert config.to_dict()["loader"]["class_name"] == "PremWhisperReader"


@pytest.mark.parametrize("made", [copy.copy, copy.deepcopy, lambda each: each.model_copy()])
def test_copies_keep_the_key_and_work(reader: Make, made: Callable[[Any], Any]) -> None:
    first = reader()
    documents = first.load_data(SAMPLE)
    assert made(first).load_data(SAMPLE) == documents


def test_nothing_secret_is_shown(reader: Make, upstream_enclave: LocalEnclave) -> None:
    made = reader(prompt="Ramipril")
    for shown in (repr(made), str(made)):
        assert upstream_enclave.api_key not in shown and "Ramipril" not in shown


# --- defects of WhisperReader, one by one


def test_whisper_reader_gives_one_document_and_this_one_a_document_per_segment(reader: Make) -> None:
    assert len(reader(mode="segments").load_data(SAMPLE)) == 2


def test_whisper_reader_gives_text_only_and_this_one_times_and_language(
    reader: Make, upstream: Upstream, tmp_path: Path
) -> None:
    upstream.transcribes(hears_beeps)
    path = write(tmp_path / "long.wav", AT, 20)
    documents = reader(mode="segments", max_part_bytes=256 * 1024).load_data(path)
    assert len(upstream.heard) > 2
    assert [each.text for each in documents] == [f"beep{n}" for n in range(len(AT))]
    assert [each.metadata["start"] for each in documents] == pytest.approx(AT, abs=0.03)
    assert {each.metadata["language"] for each in documents} == {"english"}


def test_whisper_reader_always_says_english_and_this_one_nothing_or_what_it_is_told(
    reader: Make, upstream: Upstream
) -> None:
    reader().load_data(SAMPLE)
    reader(language="de").load_data(SAMPLE)
    reader(task="translate").load_data(SAMPLE)
    assert [(each.task, each.params.get("language")) for each in upstream.heard] == [
        ("transcribe", None),
        ("transcribe", "de"),
        ("translate", None),
    ]


async def test_whisper_reader_ignores_fs_and_this_one_reads_from_it(reader: Make, upstream: Upstream) -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe("/only/there.wav", WAV)
    assert names(reader().load_data("/only/there.wav", fs=fs)) == ["there.wav"]
    assert names(await reader().aload_data("/only/there.wav", fs=fs)) == ["there.wav"]
    assert [each.data for each in upstream.heard] == [WAV, WAV]
    with pytest.raises(InvalidParameterError, match="no such file: /only/there.wav"):
        reader().load_data("/only/there.wav")


async def test_whisper_reader_has_no_lazy_loading_and_this_one_hears_when_asked(
    reader: Make, upstream: Upstream, calls: Path
) -> None:
    files: list[Any] = [calls / "a.wav", calls / "b.wav"]
    lazily = reader().lazy_load_data(files)
    assert upstream.heard == []
    next(iter(lazily))
    assert len(upstream.heard) == 1
    upstream.heard.clear()
    async for _ in reader(max_concurrency=1).alazy_load_data(files):
        break
    assert len(upstream.heard) == 1


def test_whisper_reader_calls_every_file_audio_mp3_and_this_one_by_its_name(
    reader: Make, upstream: Upstream, calls: Path
) -> None:
    reader().load_data([calls / "a.wav", WAV, b"fLaC" + bytes(50)])
    sent = [each.name for each in upstream.heard]
    assert sent[0] == "a.wav"
    assert sent[1].startswith("audio-") and sent[1].endswith(".wav") and sent[2].endswith(".flac")


def test_whisper_reader_is_not_picklable_and_this_one_is_without_its_key(
    reader: Make, upstream_enclave: LocalEnclave, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = reader(mode="segments")
    documents = made.load_data(SAMPLE)
    asyncio.run(made.aload_data(SAMPLE))
    pickled = pickle.dumps(made)
    assert upstream_enclave.api_key.encode() not in pickled
    again = pickle.loads(pickled)
    assert isinstance(again, BasePydanticReader)
    with pytest.raises(ValueError, match="PREM_API_KEY"):
        again.load_data(SAMPLE)
    monkeypatch.setenv("PREM_API_KEY", upstream_enclave.api_key)
    assert again.load_data(SAMPLE) == documents
