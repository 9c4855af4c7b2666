"""Recordings as LlamaIndex documents: the reader, in a directory reader too, and defects of WhisperReader."""

from __future__ import annotations

import asyncio
import copy
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import httpx
import pytest
from llama_index.core import SimpleDirectoryReader
from llama_index.core.readers.base import BasePydanticReader, ReaderConfig
from llama_index.core.schema import MetadataMode
from starlette.responses import JSONResponse
from support.beep_audio import SHORT_BEEP_TIMES, transcribe_beeps, write_beeps
from support.paths import CLINIC_NOTE
from support.recordings import TRANSCRIPTION, WAV, Overlap, fill_directory, source_names
from support.scripted_upstream import Upstream

from llama_index_prem import (
    WHISPER_SUFFIXES,
    PremWhisperReader,
    TranscriptionFailedWarning,
    whisper_file_extractor,
)
from prem_core import BadRequestError, InvalidParameterError
from prem_core.enclave import LocalEnclave

Make = Callable[..., PremWhisperReader]


@pytest.fixture
def reader(upstream_enclave: LocalEnclave, upstream: Upstream) -> Make:
    """Makes readers for an enclave that returns TRANSCRIPTION."""
    upstream.transcribe_with(TRANSCRIPTION)
    return lambda **settings: PremWhisperReader(
        **{**upstream_enclave.client_options, "max_retries": 0, **settings}
    )


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    """A directory with three recordings and a text."""
    return fill_directory(tmp_path)


# --- with the embedded enclave's recogniser


async def test_the_reader_transcribes_the_sample(enclave: LocalEnclave) -> None:
    made = PremWhisperReader(**enclave.client_options, mode="segments")
    first, second = made.load_data(CLINIC_NOTE)
    assert first.text == "the doctor will see the patient again on friday"
    assert second.text == "the hospital will be open on saturday and sunday"
    assert first.metadata["end"] <= second.metadata["start"] < second.metadata["end"] <= 7.4
    assert await made.aload_data(CLINIC_NOTE) == [first, second]


# --- one recording


def test_metadata_is_the_extra_info_and_the_transcripts(reader: Make) -> None:
    (document,) = reader().load_data(CLINIC_NOTE, extra_info={"patient": "Anna"})
    assert document.text == "Anna darf nach Hause. Am Freitag."
    assert document.metadata == {
        "patient": "Anna",
        "source": str(CLINIC_NOTE),
        "segment": 0,
        "start": 0.0,
        "end": 4.5,
        "duration": 4.5,
        "language": "german",
        "model": "openai/whisper-large-v3",
        "task": "transcribe",
    }


def test_times_and_settings_are_neither_embedded_nor_read_by_an_llm(reader: Make) -> None:
    (document,) = reader().load_data(CLINIC_NOTE, extra_info={"patient": "Anna"})
    for mode in (MetadataMode.EMBED, MetadataMode.LLM):
        content = document.get_content(mode)
        assert content.startswith(f"patient: Anna\nsource: {CLINIC_NOTE}\nlanguage: german\n")
        for name in ("start", "end", "duration", "segment", "model", "task"):
            assert f"{name}:" not in content
    assert "start: 0.0" in document.get_content(MetadataMode.ALL)


def test_the_caller_s_extra_info_is_not_changed(reader: Make) -> None:
    given = {"patient": "Anna"}
    reader(mode="segments").load_data(CLINIC_NOTE, extra_info=given)
    assert given == {"patient": "Anna"}


def test_segments_are_joined_up_to_max_segment_seconds(reader: Make) -> None:
    (group,) = reader(mode="segments", max_segment_seconds=30).load_data(CLINIC_NOTE)
    assert (group.text, group.metadata["start"], group.metadata["end"]) == (TRANSCRIPTION["text"], 0.0, 4.0)


def test_a_silent_recording_gives_an_empty_document(reader: Make, upstream: Upstream) -> None:
    upstream.transcribe_with({"text": "", "segments": [], "duration": 3.0})
    (document,) = reader(mode="segments").load_data(CLINIC_NOTE)
    assert document.text == "" and document.metadata["end"] == 3.0


class Named(io.BytesIO):
    name = "/ward/7.wav"


@pytest.mark.parametrize(
    ("file", "source", "name"),
    [
        (str(CLINIC_NOTE), str(CLINIC_NOTE), "clinic_note.wav"),
        (CLINIC_NOTE, str(CLINIC_NOTE), "clinic_note.wav"),
        (("7.wav", WAV), "7.wav", "7.wav"),
        (Named(WAV), "/ward/7.wav", "7.wav"),
    ],
)
def test_a_recording_may_be_a_path_a_named_tuple_or_a_file(
    reader: Make, upstream: Upstream, file: Any, source: str, name: str
) -> None:
    (document,) = reader().load_data(file)
    assert document.metadata["source"] == source
    assert upstream.recordings[0].name == name and upstream.recordings[0].data == WAV


@pytest.mark.parametrize("file", [WAV, bytearray(WAV), io.BytesIO(WAV)])
def test_bytes_and_files_without_a_name_are_identified_by_their_content(reader: Make, file: Any) -> None:
    (document,) = reader().load_data(file)
    (same,) = reader().load_data(WAV)
    assert document == same and document.metadata["source"].startswith("audio-")


# --- many recordings


async def test_a_list_is_transcribed_in_order_by_all_four_methods(reader: Make, calls: Path) -> None:
    made = reader(mode="segments")
    files: list[Any] = [calls / "c.wav", str(calls / "a.wav"), ("b.wav", WAV)]
    loaded = made.load_data(files)
    assert source_names(loaded) == ["c.wav", "c.wav", "a.wav", "a.wav", "b.wav", "b.wav"]
    assert list(made.lazy_load_data(files)) == loaded
    assert await made.aload_data(files) == loaded
    assert [each async for each in made.alazy_load_data(files)] == loaded


async def test_several_recordings_are_transcribed_at_once(reader: Make, upstream: Upstream) -> None:
    overlap = Overlap(2)
    upstream.transcribe_with(overlap)
    await reader(max_concurrent_recordings=2).aload_data([(f"{number}.wav", WAV) for number in range(4)])
    assert overlap.most == 2


def test_one_reader_serves_many_event_loops(reader: Make) -> None:
    made = reader()
    assert len({asyncio.run(made.aload_data(CLINIC_NOTE))[0].id_ for _ in range(3)}) == 1


async def test_errors_are_collected_over_all_calls(reader: Make, upstream: Upstream, calls: Path) -> None:
    upstream.transcribe = lambda recording: (
        JSONResponse({}, 400) if recording.name == "b.wav" else TRANSCRIPTION
    )
    made = reader(on_error="collect")
    files: list[Any] = [calls / "a.wav", calls / "b.wav", calls / "none.wav"]
    with pytest.warns(TranscriptionFailedWarning, match="2 of 3 recordings could not be transcribed"):
        assert source_names(made.load_data(files)) == ["a.wav"]
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


def test_the_progress_bar_counts_recordings(
    reader: Make, calls: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reader(show_progress=True).load_data([calls / "a.wav", calls / "b.wav"])
    shown = capsys.readouterr()
    assert "2/2" in shown.err and shown.out == ""


# --- in a SimpleDirectoryReader


def extractor(upstream_enclave: LocalEnclave, **settings: Any) -> dict[str, PremWhisperReader]:
    return whisper_file_extractor(**{**upstream_enclave.client_options, "max_retries": 0, **settings})


def test_the_extractor_has_one_reader_for_every_suffix_that_whisper_accepts() -> None:
    made = whisper_file_extractor(language="de")
    assert tuple(made) == WHISPER_SUFFIXES
    assert {".mp3", ".mp4", ".mpeg", ".mpga", ".m4a", ".wav", ".webm", ".ogg", ".flac"} <= set(
        WHISPER_SUFFIXES
    )
    assert len({id(each) for each in made.values()}) == 1
    assert made[".wav"].language == "de"


async def test_a_directory_is_read_synchronously_and_asynchronously(
    upstream_enclave: LocalEnclave, upstream: Upstream, calls: Path
) -> None:
    upstream.transcribe_with(TRANSCRIPTION)
    directory = SimpleDirectoryReader(
        calls, file_extractor=extractor(upstream_enclave, mode="segments"), raise_on_error=True
    )
    documents = directory.load_data()
    transcripts = [each for each in documents if "source" in each.metadata]
    assert (
        source_names(transcripts) == ["a.wav", "a.wav", "b.wav", "b.wav", "c.wav", "c.wav"]
        and len(documents) == 7
    )
    assert transcripts[0].metadata["file_name"] == "a.wav" and transcripts[0].metadata["start"] == 0.0
    assert "file_size" not in transcripts[0].get_content(MetadataMode.EMBED)
    assert "start" not in transcripts[0].get_content(MetadataMode.EMBED)
    again = [each for each in await directory.aload_data() if "source" in each.metadata]
    assert [each.id_ for each in again] == [each.id_ for each in transcripts]


def test_a_directory_is_read_by_worker_processes(
    upstream_enclave: LocalEnclave, upstream: Upstream, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.transcribe_with(TRANSCRIPTION)
    # The key is not in what goes to the workers: they read it from the environment.
    monkeypatch.setenv("PREM_API_KEY", upstream_enclave.api_key)
    directory = SimpleDirectoryReader(
        calls, file_extractor=extractor(upstream_enclave), required_exts=[".wav"], raise_on_error=True
    )
    assert source_names(directory.load_data(num_workers=2)) == ["a.wav", "b.wav", "c.wav"]
    assert sorted(each.name for each in upstream.recordings) == ["a.wav", "b.wav", "c.wav"]


@pytest.mark.parametrize("num_workers", [None, 2])
def test_the_error_of_a_directory_names_the_file(
    upstream_enclave: LocalEnclave,
    upstream: Upstream,
    calls: Path,
    monkeypatch: pytest.MonkeyPatch,
    num_workers: int | None,
) -> None:
    upstream.transcribe_with(TRANSCRIPTION)
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
    upstream.transcribe_with(TRANSCRIPTION)
    fs = fsspec.filesystem("memory")
    fs.pipe("/ward/7.wav", WAV)
    directory = SimpleDirectoryReader(
        "/ward", fs=fs, file_extractor=extractor(upstream_enclave), raise_on_error=True
    )
    (document,) = directory.load_data()
    assert document.metadata["source"] == document.metadata["file_path"] == "/ward/7.wav"
    assert upstream.recordings[0].data == WAV


# --- copies


def test_to_dict_has_every_setting_and_no_secret(reader: Make, upstream_enclave: LocalEnclave) -> None:
    with httpx.Client() as client:
        made = reader(mode="segments", max_segment_seconds=60, prompt="Ramipril", http_client=client)
        dumped = made.to_dict()
    assert upstream_enclave.api_key not in json.dumps(dumped) and "http_client" not in dumped
    assert dumped["class_name"] == "PremWhisperReader" and dumped["is_remote"] is True
    again = PremWhisperReader.from_dict(dumped)
    assert again.to_dict() == dumped and again.max_segment_seconds == 60


def test_a_reader_config_accepts_the_reader(reader: Make) -> None:
    config = ReaderConfig(reader=reader(), reader_args=[str(CLINIC_NOTE)])
    assert config.read()[0].text == TRANSCRIPTION["text"]
    assert config.to_dict()["loader"]["class_name"] == "PremWhisperReader"


@pytest.mark.parametrize("made", [copy.copy, copy.deepcopy, lambda each: each.model_copy()])
def test_copies_keep_the_key_and_work(reader: Make, made: Callable[[Any], Any]) -> None:
    first = reader()
    documents = first.load_data(CLINIC_NOTE)
    assert made(first).load_data(CLINIC_NOTE) == documents


def test_nothing_secret_is_shown(reader: Make, upstream_enclave: LocalEnclave) -> None:
    made = reader(prompt="Ramipril")
    for shown in (repr(made), str(made)):
        assert upstream_enclave.api_key not in shown and "Ramipril" not in shown


# --- defects of WhisperReader, one by one


def test_unlike_whisper_reader_each_segment_can_be_a_document(reader: Make) -> None:
    assert len(reader(mode="segments").load_data(CLINIC_NOTE)) == 2


def test_unlike_whisper_reader_documents_have_times_and_language(
    reader: Make, upstream: Upstream, tmp_path: Path
) -> None:
    upstream.transcribe_with(transcribe_beeps)
    path = write_beeps(tmp_path / "long.wav", SHORT_BEEP_TIMES, 20)
    documents = reader(mode="segments", max_chunk_bytes=256 * 1024).load_data(path)
    assert len(upstream.recordings) > 2
    assert [each.text for each in documents] == [f"beep{n}" for n in range(len(SHORT_BEEP_TIMES))]
    assert [each.metadata["start"] for each in documents] == pytest.approx(SHORT_BEEP_TIMES, abs=0.03)
    assert {each.metadata["language"] for each in documents} == {"english"}


def test_unlike_whisper_reader_the_language_is_not_always_english(reader: Make, upstream: Upstream) -> None:
    reader().load_data(CLINIC_NOTE)
    reader(language="de").load_data(CLINIC_NOTE)
    reader(task="translate").load_data(CLINIC_NOTE)
    assert [(each.task, each.params.get("language")) for each in upstream.recordings] == [
        ("transcribe", None),
        ("transcribe", "de"),
        ("translate", None),
    ]


async def test_unlike_whisper_reader_recordings_are_read_from_fs(reader: Make, upstream: Upstream) -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe("/only/there.wav", WAV)
    assert source_names(reader().load_data("/only/there.wav", fs=fs)) == ["there.wav"]
    assert source_names(await reader().aload_data("/only/there.wav", fs=fs)) == ["there.wav"]
    assert [each.data for each in upstream.recordings] == [WAV, WAV]
    with pytest.raises(InvalidParameterError, match="no such file: /only/there.wav"):
        reader().load_data("/only/there.wav")


async def test_unlike_whisper_reader_a_recording_is_transcribed_when_its_document_is_requested(
    reader: Make, upstream: Upstream, calls: Path
) -> None:
    files: list[Any] = [calls / "a.wav", calls / "b.wav"]
    lazily = reader().lazy_load_data(files)
    assert upstream.recordings == []
    next(iter(lazily))
    assert len(upstream.recordings) == 1
    upstream.recordings.clear()
    async for _ in reader(max_concurrent_recordings=1).alazy_load_data(files):
        break
    assert len(upstream.recordings) == 1


def test_unlike_whisper_reader_every_file_keeps_its_name(
    reader: Make, upstream: Upstream, calls: Path
) -> None:
    reader().load_data([calls / "a.wav", WAV, b"fLaC" + bytes(50)])
    sent = [each.name for each in upstream.recordings]
    assert sent[0] == "a.wav"
    assert sent[1].startswith("audio-") and sent[1].endswith(".wav") and sent[2].endswith(".flac")


def test_unlike_whisper_reader_it_pickles_without_its_key(
    reader: Make, upstream_enclave: LocalEnclave, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = reader(mode="segments")
    documents = made.load_data(CLINIC_NOTE)
    asyncio.run(made.aload_data(CLINIC_NOTE))
    pickled = pickle.dumps(made)
    assert upstream_enclave.api_key.encode() not in pickled
    again = pickle.loads(pickled)
    assert isinstance(again, BasePydanticReader)
    with pytest.raises(ValueError, match="PREM_API_KEY"):
        again.load_data(CLINIC_NOTE)
    monkeypatch.setenv("PREM_API_KEY", upstream_enclave.api_key)
    assert again.load_data(CLINIC_NOTE) == documents
